//! Checks of `Host` and `Origin`, so that no web page can use the API through the browser of its reader.
//!
//! A page that rebinds its own name to a loopback address still sends that name as `Host`; a page that
//! posts across sites sends its `Origin`. Both are rejected before any other check. Open operations are exempt: a load
//! balancer may ask for health under its own name, or under none, and no page learns more from it than from the port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::watch;

use super::access::{Access, Peer, access};
use super::error::Refusal;
use crate::types::ErrorCode;

/// `http.allowed_hosts`: names, with or without a port, in addition to loopback and the listener's address.
pub(super) type AllowedHosts = watch::Receiver<Arc<[String]>>;

/// Rejects requests that a foreign web page may have sent. No page can reach the unix socket, and open operations
/// answer every caller.
pub(super) async fn same_site(
    State(allowed): State<AllowedHosts>,
    Extension(peer): Extension<Peer>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let is_open = matched.is_some_and(|path| access(request.method(), path.as_str()) == Access::Open);
    if let Peer::Tcp { local, .. } = peer
        && !is_open
    {
        let host = host_of(&request)?;
        check_host(&host, local, &allowed.borrow())?;
        check_origin(&host, request.method(), request.headers())?;
    }
    Ok(next.run(request).await)
}

/// The host of the request: the authority of its target if it has one (RFC 9112 §3.2.2), else the header `Host`.
fn host_of(request: &Request) -> Result<Authority, Refusal> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::malformed("expected exactly one Host header"));
    };
    let host = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
    host.ok_or_else(|| Refusal::malformed("the Host header is not a valid host"))
}

fn check_host(host: &Authority, local: SocketAddr, allowed: &[String]) -> Result<(), Refusal> {
    let name = host.host().trim_matches(['[', ']']);
    let known = match name.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.to_canonical() == local.ip().to_canonical(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    let listed = |entry: &String| entry.eq_ignore_ascii_case(name) || entry.eq_ignore_ascii_case(host.as_str());
    if known || allowed.iter().any(listed) {
        return Ok(());
    }
    let message = format!("the host name {name} is not allowed; add it to http.allowed_hosts of this node");
    Err(Refusal::new(ErrorCode::Forbidden, message))
}

fn check_origin(host: &Authority, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let same = origin
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")))
        .is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_str()));
    if same || matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::Forbidden,
        "requests of other origins may only read: the Origin header differs from the host",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    const LOCAL: &str = "192.0.2.7:7481";

    fn asked(method: Method, uri: &str, headers: &[(&str, &str)], allowed: &[&str]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let allowed: Vec<String> = allowed.iter().map(|&host| host.to_owned()).collect();
        let checked = host_of(&request).and_then(|host| {
            check_host(&host, LOCAL.parse().unwrap(), &allowed)?;
            check_origin(&host, request.method(), request.headers())
        });
        checked.err().map(|refusal| refusal.status.as_u16())
    }

    fn host(host: &str, allowed: &[&str]) -> Option<u16> {
        asked(Method::GET, "/v1/status", &[("host", host)], allowed)
    }

    #[test]
    fn loopback_own_address_and_allowed_hosts_pass() {
        for good in ["localhost", "LOCALHOST:1", "127.0.0.1:7481", "127.9.9.9", "[::1]:7481", "192.0.2.7", LOCAL] {
            assert_eq!(host(good, &[]), None, "{good}");
        }
        assert_eq!(host("Ostler.Example.com:7481", &["ostler.example.com"]), None);
        assert_eq!(host("a.example.com:7481", &["a.example.com:7481"]), None);
    }

    #[test]
    fn a_rebound_name_is_rejected() {
        for bad in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.8", "[2001:db8::1]"] {
            assert_eq!(host(bad, &["ostler.example.com"]), Some(403), "{bad}");
        }
        assert_eq!(asked(Method::GET, "http://evil.example/v1/status", &[("host", "localhost")], &[]), Some(403));
        assert_eq!(host("a.example.com:1", &["a.example.com:7481"]), Some(403));
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        assert_eq!(asked(Method::GET, "/v1/status", &[], &[]), Some(400));
        assert_eq!(asked(Method::GET, "/v1/status", &[("host", "localhost"), ("host", "localhost")], &[]), Some(400));
        assert_eq!(host("a b", &[]), Some(400));
    }

    #[test]
    fn a_foreign_page_changes_nothing() {
        let from = |method, origin| asked(method, "/x", &[("host", "localhost:7481"), ("origin", origin)], &[]);
        assert_eq!(from(Method::POST, "http://localhost:7481"), None);
        assert_eq!(from(Method::POST, "https://LOCALHOST:7481"), None);
        for foreign in ["https://evil.example", "null", "http://localhost", "http://localhost:7482", ""] {
            assert_eq!(from(Method::POST, foreign), Some(403), "{foreign}");
            assert_eq!(from(Method::DELETE, foreign), Some(403), "{foreign}");
            assert_eq!(from(Method::GET, foreign), None, "{foreign}");
        }
    }
}
