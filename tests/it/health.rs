//! Health on every listener: load balancers ask for it in their own words.

use crate::support::agent::Agent;
use crate::support::http::Client;

const HEALTH: [&str; 3] = ["/livez", "/readyz", "/healthz"];

/// The status of the answer to this request, as it stands.
fn status_of(client: &Client, message: &str) -> u16 {
    let answer = client.exchange(message.as_bytes()).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{message}: {answer}"))
}

#[test]
fn health_answers_on_every_listener_whatever_host_the_request_names() {
    let agent = Agent::start("http = { status_listen = '127.0.0.1:0' }");
    for (listener, client) in
        [("http.listen", agent.tcp(None)), ("status", agent.status_client()), ("socket", agent.client())]
    {
        for method in ["GET", "HEAD"] {
            for path in HEALTH {
                for request in [
                    format!("{method} {path} HTTP/1.0\r\n\r\n"),
                    format!("{method} {path} HTTP/1.0\r\nHost: upstream\r\n\r\n"),
                    format!("{method} {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"),
                    format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n\r\n"),
                    format!("{method} http://evil.example{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
                ] {
                    assert_eq!(status_of(&client, &request), 200, "{listener}: {request}");
                }
            }
        }
    }
}

#[test]
fn everything_else_checks_the_host_before_the_token() {
    let agent = Agent::start("");
    for path in ["/metrics", "/openapi.json", "/v1/status", "/v1/nodes", "/nowhere", "/livez/x"] {
        let foreign = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        assert_eq!(status_of(&agent.tcp(None), &foreign), 403, "{path}");
        assert_eq!(status_of(&agent.tcp(None), &format!("GET {path} HTTP/1.0\r\n\r\n")), 400, "{path}");
    }
}

#[test]
fn health_does_not_name_the_leader() {
    let agent = Agent::start("");
    let token = agent.token("read");
    assert!(agent.tcp(Some(&token)).get("/v1/status").header("x-ostler-leader").is_some());
    assert_eq!(agent.tcp(None).get("/livez").header("x-ostler-leader"), None);
}
