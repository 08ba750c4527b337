//! Who may do what: one table, and the middleware that holds every request to it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::Refusal;
use crate::types::{ErrorCode, Role};

/// What an operation asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: health, which says nothing that an open port does not say.
    Open,
    /// At least this role.
    Needs(Role),
}

use Access::{Needs, Open};
use Role::{Admin, Operate, Read};

/// What every operation asks. Reading needs `read`, sessions and their secrets `operate`, all else `admin`.
pub(super) const OPERATIONS: &[(Method, &str, Access)] = &[
    (Method::GET, "/livez", Open),
    (Method::GET, "/readyz", Open),
    (Method::GET, "/healthz", Open),
    (Method::GET, "/metrics", Needs(Read)),
    (Method::GET, "/openapi.json", Needs(Read)),
    (Method::GET, "/v1/status", Needs(Read)),
    (Method::GET, "/v1/gpus", Needs(Read)),
    (Method::GET, "/v1/nodes", Needs(Read)),
    (Method::GET, "/v1/nodes/{node}", Needs(Read)),
    (Method::PATCH, "/v1/nodes/{node}", Needs(Admin)),
    (Method::DELETE, "/v1/nodes/{node}", Needs(Admin)),
    (Method::POST, "/v1/nodes/{node}/drain", Needs(Admin)),
    (Method::DELETE, "/v1/nodes/{node}/drain", Needs(Admin)),
    (Method::GET, "/v1/nodes/{node}/volumes", Needs(Read)),
    (Method::DELETE, "/v1/nodes/{node}/volumes/{name}", Needs(Admin)),
    (Method::GET, "/v1/workspaces", Needs(Read)),
    (Method::POST, "/v1/workspaces", Needs(Admin)),
    (Method::GET, "/v1/workspaces/{name}", Needs(Read)),
    (Method::PUT, "/v1/workspaces/{name}", Needs(Admin)),
    (Method::DELETE, "/v1/workspaces/{name}", Needs(Admin)),
    (Method::GET, "/v1/sessions", Needs(Read)),
    (Method::POST, "/v1/sessions", Needs(Operate)),
    (Method::GET, "/v1/sessions/{id}", Needs(Read)),
    (Method::DELETE, "/v1/sessions/{id}", Needs(Operate)),
    (Method::POST, "/v1/sessions/{id}/stop", Needs(Operate)),
    (Method::POST, "/v1/sessions/{id}/start", Needs(Operate)),
    (Method::POST, "/v1/sessions/{id}/pause", Needs(Operate)),
    (Method::POST, "/v1/sessions/{id}/resume", Needs(Operate)),
    (Method::POST, "/v1/sessions/{id}/keepalive", Needs(Operate)),
    (Method::POST, "/v1/sessions/{id}/extend", Needs(Operate)),
    (Method::GET, "/v1/sessions/{id}/logs", Needs(Read)),
    (Method::GET, "/v1/sessions/{id}/explain", Needs(Read)),
    (Method::GET, "/v1/sessions/{id}/secret", Needs(Operate)),
    (Method::GET, "/v1/tokens", Needs(Admin)),
    (Method::POST, "/v1/tokens", Needs(Admin)),
    (Method::DELETE, "/v1/tokens/{id}", Needs(Admin)),
];

/// What an operation asks. One that the table lacks is the administrator's.
pub(super) fn access(method: &Method, path: &str) -> Access {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let row = OPERATIONS.iter().find(|(m, p, _)| m == method && *p == path);
    row.map_or(Needs(Admin), |(_, _, access)| *access)
}

/// Who is at the other end of a connection. The listener puts it into each of the connection's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp {
        remote: SocketAddr,
        local: SocketAddr,
    },
    /// The unix socket. An administrator is known by the kernel's word for who has opened it.
    Socket {
        admin: bool,
    },
}

/// Tells the role that a token's text stands for.
pub(super) type RoleOf = Arc<dyn Fn(&str) -> Option<Role> + Send + Sync>;

/// Lets a request through to its operation if its caller may do that.
pub(super) async fn authorise(
    State(role_of): State<RoleOf>,
    matched: MatchedPath,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let access = access(request.method(), matched.as_str());
    check(access, peer, request.headers(), &role_of)?;
    Ok(next.run(request).await)
}

fn check(access: Access, peer: Peer, headers: &HeaderMap, role_of: &RoleOf) -> Result<(), Refusal> {
    let Needs(needed) = access else { return Ok(()) };
    let role = match peer {
        Peer::Socket { admin: true } => Admin,
        Peer::Socket { admin: false } | Peer::Tcp { .. } => role_by_token(headers, role_of)?,
    };
    if role >= needed {
        return Ok(());
    }
    Err(Refusal::new(ErrorCode::Forbidden, format!("this needs role {needed}; the token has role {role}")))
}

fn role_by_token(headers: &HeaderMap, role_of: &RoleOf) -> Result<Role, Refusal> {
    let Some(token) = bearer(headers) else {
        let how = "this needs an API token in the header `Authorization: Bearer TOKEN`, or the unix socket \
                   as root or as a member of group ostler";
        return Err(Refusal::new(ErrorCode::Unauthorized, how));
    };
    role_of(token).ok_or_else(|| Refusal::new(ErrorCode::Unauthorized, "the API token is unknown, revoked or expired"))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Peer = Peer::Tcp {
        remote: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1),
        local: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2),
    };

    fn roles() -> RoleOf {
        Arc::new(|token| Role::ALL.iter().copied().find(|role| role.as_str() == token))
    }

    fn asked(access: Access, peer: Peer, authorization: Option<&str>) -> Option<ErrorCode> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        check(access, peer, &headers, &roles()).err().map(|refusal| refusal.code)
    }

    #[test]
    fn nothing_changes_without_a_token() {
        for (method, path, access) in OPERATIONS {
            assert!(method == Method::GET || matches!(access, Needs(Operate | Admin)), "{method} {path}");
            let open = path.ends_with('z');
            for peer in [TCP, Peer::Socket { admin: false }] {
                let expected = (!open).then_some(ErrorCode::Unauthorized);
                assert_eq!(asked(*access, peer, None), expected, "{method} {path}");
                assert_eq!(asked(*access, peer, Some("Bearer wrong")), expected, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_role_may_do_what_those_before_it_may_and_no_more() {
        for needed in Role::ALL {
            for given in Role::ALL {
                let expected = (given < needed).then_some(ErrorCode::Forbidden);
                assert_eq!(asked(Needs(*needed), TCP, Some(&format!("Bearer {given}"))), expected);
            }
        }
    }

    #[test]
    fn an_administrator_on_the_socket_needs_no_token_and_anybody_else_does() {
        assert_eq!(asked(Needs(Admin), Peer::Socket { admin: true }, None), None);
        assert_eq!(asked(Needs(Read), Peer::Socket { admin: false }, Some("bearer read")), None);
        assert_eq!(asked(Needs(Read), TCP, Some("Basic read")), Some(ErrorCode::Unauthorized));
        assert_eq!(asked(Needs(Read), TCP, Some("Bearer ")), Some(ErrorCode::Unauthorized));
    }

    #[test]
    fn head_asks_what_get_asks_and_the_unknown_is_the_administrators() {
        assert_eq!(access(&Method::HEAD, "/livez"), Open);
        assert_eq!(access(&Method::GET, "/v1/sessions/{id}/secret"), Needs(Operate));
        assert_eq!(access(&Method::POST, "/livez"), Needs(Admin));
        assert_eq!(access(&Method::GET, "/nowhere"), Needs(Admin));
    }
}
