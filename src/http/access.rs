//! Authorisation: the table of the role of each operation, and the middleware that enforces it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{Refusal, Refused};
use crate::events::{self, Happening};
use crate::types::{Actor, ApiToken, ErrorCode, Name, Role};
use crate::wire::Call;
use crate::wire::message::{
    ChangeGpu, ChangeImage, Command, Describe, Digests, Doctor, Drain, DryRun, Edit, Explain, FollowEvents, Forget,
    ForgetSession, History, Hold, ListEvents, ListImages, Locate, Logs, Nodes, Patch, Place, PreviewPrune, PruneImages,
    PullImage, Refresh, RemoveVolume, Secret, Sessions, Undrain, Volumes,
};

/// Characters of a path that an event shows at most.
const MAX_PATH: usize = 200;

/// What an operation requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// No token, and any `Host`: health, which reveals no more than an open port does.
    Open,
    /// At least this role.
    Needs(Role),
}

use Access::{Needs, Open};
use Role::Read;

/// How an operation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// In an answer of this node itself, without a call.
    Here(Access),
    /// In one of these calls, each with the role that the table of calls requires for it.
    InCalls(&'static [(&'static str, Role)]),
}

use Ends::Here;

impl Ends {
    /// The highest role that one of the calls requires.
    pub(super) const fn access(self) -> Access {
        let calls = match self {
            Self::Here(access) => return access,
            Self::InCalls(calls) => calls,
        };
        let (mut role, mut i) = (Read, 0);
        while i < calls.len() {
            if calls[i].1 as u8 > role as u8 {
                role = calls[i].1;
            }
            i += 1;
        }
        Needs(role)
    }
}

/// The name and role of a call that people may make. It does not compile for a call that only nodes may make.
const fn person<C: Call>() -> (&'static str, Role) {
    match C::ASKER.role() {
        Some(role) => (C::NAME, role),
        None => panic!("only nodes may make this call"),
    }
}

macro_rules! calls {
    ($($call:ty),+) => {
        Ends::InCalls(&[$(person::<$call>()),+])
    };
}

/// The access of every operation. An operation that ends in calls requires their roles; the others state theirs here.
pub(super) const OPERATIONS: &[(Method, &str, Ends)] = &[
    (Method::GET, "/livez", Here(Open)),
    (Method::GET, "/readyz", Here(Open)),
    (Method::GET, "/healthz", Here(Open)),
    (Method::GET, "/metrics", Here(Needs(Read))),
    (Method::GET, "/openapi.json", Here(Needs(Read))),
    (Method::GET, "/v1/status", Here(Needs(Read))),
    (Method::GET, "/v1/events", calls![ListEvents, FollowEvents]),
    (Method::GET, "/v1/gpus", calls![Nodes]),
    (Method::GET, "/v1/gpus/{uuid}", calls![Nodes]),
    (Method::DELETE, "/v1/gpus/{uuid}", calls![ChangeGpu]),
    (Method::POST, "/v1/gpus/{uuid}/cordon", calls![ChangeGpu]),
    (Method::DELETE, "/v1/gpus/{uuid}/cordon", calls![ChangeGpu]),
    (Method::GET, "/v1/nodes", calls![Nodes]),
    (Method::GET, "/v1/nodes/{node}", calls![Describe]),
    (Method::PATCH, "/v1/nodes/{node}", calls![Patch]),
    (Method::DELETE, "/v1/nodes/{node}", calls![Forget]),
    (Method::POST, "/v1/nodes/{node}/drain", calls![Drain]),
    (Method::DELETE, "/v1/nodes/{node}/drain", calls![Undrain]),
    (Method::POST, "/v1/nodes/{node}/refresh", calls![Refresh]),
    (Method::GET, "/v1/nodes/{node}/doctor", calls![Doctor]),
    (Method::GET, "/v1/nodes/{node}/history", calls![History]),
    (Method::GET, "/v1/history", Here(Needs(Read))),
    (Method::GET, "/v1/nodes/{node}/images", calls![ListImages]),
    (Method::POST, "/v1/nodes/{node}/images/pull", calls![PullImage]),
    (Method::POST, "/v1/nodes/{node}/images/adopt", calls![ChangeImage]),
    (Method::POST, "/v1/nodes/{node}/images/pin", calls![ChangeImage]),
    (Method::POST, "/v1/nodes/{node}/images/unpin", calls![ChangeImage]),
    (Method::POST, "/v1/nodes/{node}/images/prune", calls![PruneImages, PreviewPrune]),
    (Method::GET, "/v1/nodes/{node}/volumes", calls![Volumes]),
    (Method::DELETE, "/v1/nodes/{node}/volumes/{name}", calls![RemoveVolume]),
    (Method::GET, "/v1/workspaces", Here(Needs(Read))),
    (Method::POST, "/v1/workspaces", calls![Edit]),
    (Method::GET, "/v1/workspaces/{name}", Here(Needs(Read))),
    (Method::PUT, "/v1/workspaces/{name}", calls![Edit]),
    (Method::DELETE, "/v1/workspaces/{name}", calls![Edit]),
    (Method::GET, "/v1/workspaces/{name}/digests", calls![Digests]),
    (Method::GET, "/v1/sessions", calls![Sessions]),
    (Method::POST, "/v1/sessions", calls![Place, DryRun, Hold]),
    (Method::GET, "/v1/sessions/{id}", calls![Locate, Hold]),
    (Method::DELETE, "/v1/sessions/{id}", calls![Command, ForgetSession, Hold]),
    (Method::POST, "/v1/sessions/{id}/stop", calls![Command, Hold]),
    (Method::POST, "/v1/sessions/{id}/start", calls![Command, Hold]),
    (Method::POST, "/v1/sessions/{id}/pause", calls![Command, Hold]),
    (Method::POST, "/v1/sessions/{id}/resume", calls![Command, Hold]),
    (Method::POST, "/v1/sessions/{id}/keepalive", calls![Command, Hold]),
    (Method::POST, "/v1/sessions/{id}/extend", calls![Command, Hold]),
    (Method::GET, "/v1/sessions/{id}/logs", calls![Logs]),
    (Method::GET, "/v1/sessions/{id}/explain", calls![Explain]),
    (Method::GET, "/v1/sessions/{id}/secret", calls![Secret]),
    (Method::GET, "/v1/tokens", Here(Needs(Role::Admin))),
    (Method::POST, "/v1/tokens", calls![Edit]),
    (Method::DELETE, "/v1/tokens/{id}", calls![Edit]),
];

/// The access of operations whose query is [`DRY_RUN`] and nothing else: they change nothing then.
const DRY_RUNS: &[(Method, &str, Ends)] = &[(Method::POST, "/v1/nodes/{node}/images/prune", calls![PreviewPrune])];
const DRY_RUN: &str = "dry_run=true";

/// The access of a request.
fn access_of(method: &Method, path: &str, query: Option<&str>) -> Access {
    let row = DRY_RUNS.iter().find(|(m, p, _)| query == Some(DRY_RUN) && m == method && *p == path);
    row.map_or_else(|| access(method, path), |(_, _, ends)| ends.access())
}

/// The access of an operation. An operation that the table lacks requires role `admin`.
pub(super) fn access(method: &Method, path: &str) -> Access {
    operation(method, path).map_or(Needs(Role::Admin), |(_, _, ends)| ends.access())
}

/// The row of an operation. HEAD is GET without its body.
pub(super) fn operation(method: &Method, path: &str) -> Option<&'static (Method, &'static str, Ends)> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    OPERATIONS.iter().find(|(m, p, _)| m == method && *p == path)
}

/// The other end of a connection. The listener adds it to the extensions of each request of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp {
        remote: SocketAddr,
        local: SocketAddr,
    },
    /// The unix socket. `admin`: the user that opened it, if that user is an administrator.
    Socket {
        admin: Option<Admin>,
    },
}

/// An administrator of this host: a user of the unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admin {
    /// From the kernel.
    pub(super) uid: u32,
    /// `None`: `/etc/passwd` does not have the user.
    pub(super) name: Option<Arc<str>>,
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) actor: Actor,
    pub(super) role: Role,
}

/// What this node authenticates callers by.
#[derive(Clone)]
pub(super) struct Gate {
    /// This node, which receives the requests.
    pub(super) node: Name,
    /// Returns the API token that has this text.
    pub(super) token_of: TokenOf,
    pub(super) events: events::Handle,
}

pub(super) type TokenOf = Arc<dyn Fn(&str) -> Option<ApiToken> + Send + Sync>;

/// Passes a request on if its caller has the role of the operation, and adds the [`Actor`] to its extensions. An open
/// operation has no actor. What the request made happen is in the event log before it is answered, and so is a refusal.
pub(super) async fn authorise(
    State(gate): State<Gate>,
    matched: MatchedPath,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let method = request.method().clone();
    let Needs(needed) = access_of(&method, matched.as_str(), request.uri().query()) else {
        return Ok(next.run(request).await);
    };
    let Caller { actor, role } = gate.caller(&peer, request.headers())?;
    let path = request.uri().path().to_owned();
    let response = if role >= needed {
        request.extensions_mut().insert(actor.clone());
        next.run(request).await
    } else {
        forbidden(needed, role).into_response()
    };
    let refused = response.extensions().get().filter(|refused| is_audited(&method, response.status(), refused));
    let refused = refused.map(|Refused { code, message }| {
        let path: String = path.chars().take(MAX_PATH).collect();
        Happening::request_refused(method.as_str(), &path, *code, message)
    });
    gate.events.record_some(refused, Some(&actor));
    if !method.is_safe() {
        gate.events.flush().await;
    }
    Ok(response)
}

/// Whether a refusal is one that an auditor looks for: something was not allowed, or a change contradicts what is there.
/// What no host has room for is told by the leader.
fn is_audited(method: &Method, status: StatusCode, refused: &Refused) -> bool {
    match status {
        StatusCode::FORBIDDEN => true,
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
            !method.is_safe() && refused.code != ErrorCode::ExceedsPhysical
        }
        _ => false,
    }
}

fn forbidden(needed: Role, role: Role) -> Refusal {
    let message = format!("this operation requires role {needed}; the token has role {role}");
    Refusal::new(ErrorCode::Forbidden, message)
}

impl Gate {
    fn caller(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Refusal> {
        match peer {
            Peer::Socket { admin: Some(user) } => Ok(self.admin(user)),
            Peer::Socket { admin: None } | Peer::Tcp { .. } => self.bearer(headers),
        }
    }

    fn admin(&self, user: &Admin) -> Caller {
        let name = user.name.as_deref().map(str::to_owned);
        Caller { actor: Actor::Socket { uid: user.uid, name, via: self.node.clone() }, role: Role::Admin }
    }

    fn bearer(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let Some(text) = bearer(headers) else {
            let how = "expected an API token in the header `Authorization: Bearer TOKEN`, or a connection over the \
                       unix socket as root or as a member of group ostler";
            return Err(Refusal::new(ErrorCode::Unauthorized, how));
        };
        let unknown = || Refusal::new(ErrorCode::Unauthorized, "the API token is unknown, revoked or expired");
        let ApiToken { id, name, role, .. } = (self.token_of)(text).ok_or_else(unknown)?;
        Ok(Caller { actor: Actor::Token { id, name, role, via: self.node.clone() }, role })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};

    use super::Role::Operate;
    use super::*;
    use crate::types::sample;
    use crate::wire::message::{ASKERS, Asker};

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn tcp() -> Peer {
        Peer::Tcp { remote: SocketAddr::new(LOOPBACK, 1), local: SocketAddr::new(LOOPBACK, 2) }
    }

    fn root() -> Peer {
        Peer::Socket { admin: Some(Admin { uid: 0, name: Some("root".into()) }) }
    }

    /// Knows tokens whose text is the name of their role.
    fn gate() -> Gate {
        let token_of: TokenOf = Arc::new(|text| text.parse().ok().map(sample::api_token));
        Gate { node: "host-a".parse().unwrap(), token_of, events: events::recorder::nowhere() }
    }

    fn checked(access: Access, peer: &Peer, authorization: Option<&str>) -> Result<Option<Actor>, Refusal> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let Needs(needed) = access else { return Ok(None) };
        let Caller { actor, role } = gate().caller(peer, &headers)?;
        if role >= needed { Ok(Some(actor)) } else { Err(forbidden(needed, role)) }
    }

    fn asked(access: Access, peer: &Peer, authorization: Option<&str>) -> Option<ErrorCode> {
        checked(access, peer, authorization).err().map(|refusal| refusal.code)
    }

    #[test]
    fn every_operation_except_health_requires_a_token() {
        for (method, path, ends) in OPERATIONS {
            let access = ends.access();
            assert!(method == Method::GET || matches!(access, Needs(Operate | Role::Admin)), "{method} {path}");
            let open = path.ends_with('z');
            for peer in [&tcp(), &Peer::Socket { admin: None }] {
                let expected = (!open).then_some(ErrorCode::Unauthorized);
                assert_eq!(asked(access, peer, None), expected, "{method} {path}");
                assert_eq!(asked(access, peer, Some("Bearer wrong")), expected, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_role_includes_the_roles_before_it() {
        for needed in Role::ALL {
            for given in Role::ALL {
                let expected = (given < needed).then_some(ErrorCode::Forbidden);
                assert_eq!(asked(Needs(*needed), &tcp(), Some(&format!("Bearer {given}"))), expected);
            }
        }
    }

    #[test]
    fn only_an_administrator_on_the_socket_needs_no_token() {
        assert_eq!(asked(Needs(Role::Admin), &root(), None), None);
        assert_eq!(asked(Needs(Read), &Peer::Socket { admin: None }, Some("bearer read")), None);
        assert_eq!(asked(Needs(Read), &tcp(), Some("Basic read")), Some(ErrorCode::Unauthorized));
        assert_eq!(asked(Needs(Read), &tcp(), Some("Bearer ")), Some(ErrorCode::Unauthorized));
    }

    #[test]
    fn head_requires_the_role_of_get_and_an_unknown_operation_requires_admin() {
        assert_eq!(access(&Method::HEAD, "/livez"), Open);
        assert_eq!(access(&Method::GET, "/v1/sessions/{id}/secret"), Needs(Operate));
        assert_eq!(access(&Method::POST, "/livez"), Needs(Role::Admin));
        assert_eq!(access(&Method::GET, "/nowhere"), Needs(Role::Admin));
    }

    #[test]
    fn a_dry_run_requires_the_role_of_what_it_reads_and_nothing_that_looks_like_one_does() {
        let needed = |query| access_of(&Method::POST, "/v1/nodes/{node}/images/prune", query);
        assert_eq!(needed(Some("dry_run=true")), Needs(Read));
        for query in [None, Some(""), Some("dry_run=false"), Some("dry_run=true&dry_run=false"), Some("dry_run=true&x")]
        {
            assert_eq!(needed(query), Needs(Role::Admin), "{query:?}");
        }
        assert_eq!(access_of(&Method::POST, "/v1/nodes/{node}/drain", Some("dry_run=true")), Needs(Role::Admin));
    }

    #[test]
    fn refused_changes_are_audited_and_wrong_reads_are_not() {
        let audited =
            |method: Method, status, code| is_audited(&method, status, &Refused { code, message: String::new() });
        assert!(audited(Method::GET, StatusCode::FORBIDDEN, ErrorCode::Forbidden));
        for (status, code) in
            [(StatusCode::CONFLICT, ErrorCode::DeclaredSetting), (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Invalid)]
        {
            assert!(audited(Method::POST, status, code) && !audited(Method::GET, status, code));
        }
        assert!(!audited(Method::POST, StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::ExceedsPhysical));
        assert!(!audited(Method::POST, StatusCode::BAD_REQUEST, ErrorCode::Invalid));
        assert!(!audited(Method::POST, StatusCode::NOT_FOUND, ErrorCode::NotFound));
    }

    #[test]
    fn the_actor_is_the_user_of_the_socket_or_the_token() {
        assert_eq!(checked(Needs(Role::Admin), &root(), None).unwrap(), Some(sample::root()));
        let without = Peer::Socket { admin: None };
        assert_eq!(checked(Needs(Read), &without, Some("Bearer operate")).unwrap(), Some(sample::token_actor(Operate)));
        assert_eq!(checked(Needs(Read), &tcp(), Some("Bearer read")).unwrap(), Some(sample::token_actor(Read)));
        assert_eq!(checked(Open, &tcp(), None).unwrap(), None);
    }

    #[test]
    fn each_call_of_people_belongs_to_an_operation_that_requires_its_role() {
        let mut reached = BTreeSet::new();
        for (method, path, ends) in OPERATIONS {
            let Ends::InCalls(calls) = ends else { continue };
            for (name, role) in *calls {
                let asker = ASKERS.iter().find(|(call, _)| call == name).map(|(_, asker)| *asker);
                assert_eq!(asker, Some(Asker::Person(*role)), "{name}");
                assert!(matches!(ends.access(), Needs(needed) if needed >= *role), "{method} {path}: {name}");
                reached.insert(*name);
            }
        }
        let askable: BTreeSet<&str> =
            ASKERS.iter().filter(|(_, asker)| asker.role().is_some()).map(|(call, _)| *call).collect();
        assert_eq!(reached, askable);
    }
}
