//! API tokens over TCP: their roles, expiry and revocation, and the permissions of the socket.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Output, until};
use crate::support::http::Request;

const ROOMY: &str = "dev = { physical_cores = 6, physical_memory = '6GiB' }";

/// Runs `ostler …` over TCP with `token`.
fn cli_as(agent: &Agent, token: &str, arguments: &[&str]) -> Output {
    let node = format!("http://{}", agent.tcp_address());
    agent.cli_with(arguments, &[("OSTLER_NODE", &node), ("OSTLER_SOCKET", ""), ("OSTLER_API_TOKEN", token)], "")
}

#[test]
fn each_role_allows_its_requests_and_no_others() {
    let agent = Agent::start(ROOMY);
    agent.workspace("shell", "exec sleep 600", &json!({}));
    let session = agent.running("shell", "alice");
    let id = session["id"].as_str().unwrap();
    let create = Request::new("POST", "/v1/sessions").json(&json!({"workspace": "shell", "user": "bob"}));
    let set = Request::new("PATCH", "/v1/nodes/self").json(&json!({"labels": {"a": "b"}}));
    let look = Request::new("GET", &format!("/v1/sessions/{id}"));
    let secret = Request::new("GET", &format!("/v1/sessions/{id}/secret"));
    for (role, allowed) in
        [("read", [200, 403, 403, 403]), ("operate", [200, 200, 202, 403]), ("admin", [200, 200, 202, 200])]
    {
        let client = agent.tcp(Some(&agent.token(role)));
        for (request, status) in [&look, &secret, &create, &set].into_iter().zip(allowed) {
            let answer = client.send(request);
            assert_eq!(answer.status, status, "{role} {} {}: {}", request.method, request.path, answer.text());
        }
    }
}

#[test]
fn a_token_is_shown_once_listed_without_its_text_and_revoked_at_once() {
    let mut agent = Agent::start(ROOMY);
    let made = agent.cli(&["token", "api", "create", "--role", "operate", "--name", "ci", "-o", "json"]).json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    assert!(secret.contains(id) && secret.len() >= 40, "{made}");
    agent.post("/v1/tokens", &json!({"role": "read", "name": "ci"})).refused(409, "conflict");

    let listed = agent.get("/v1/tokens");
    assert!(!listed.text().contains(secret));
    let items = listed.expect(200)["items"].clone();
    assert_eq!(
        (items.as_array().unwrap().len(), &items[0]["id"], &items[0]["role"]),
        (1, &json!(id), &json!("operate"))
    );
    let shown = agent.cli(&["token", "api", "ls"]).ok();
    assert!(shown.contains("ci") && !shown.contains(secret), "{shown}");
    assert!(!agent.log().contains(secret));

    assert_eq!(agent.tcp(Some(secret)).get("/v1/status").status, 200);
    cli_as(&agent, secret, &["status"]).ok();
    assert!(cli_as(&agent, secret, &["node", "set", "one", "--cores-override", "3"]).failed(1).contains("admin"));
    agent.kill9();
    agent.up();
    assert_eq!(agent.tcp(Some(secret)).get("/v1/status").status, 200, "it survives a crash");

    agent.cli(&["token", "api", "revoke", "ci"]).ok();
    agent.tcp(Some(secret)).get("/v1/status").refused(401, "unauthorized");
    cli_as(&agent, secret, &["status"]).failed(1);
    assert_eq!(agent.get("/v1/tokens").expect(200)["items"], json!([]));
    agent.kill9();
    agent.up();
    agent.tcp(Some(secret)).get("/v1/status").refused(401, "unauthorized");
}

#[test]
fn a_token_expires() {
    let agent = Agent::start(ROOMY);
    let made = agent.post("/v1/tokens", &json!({"role": "read", "expires_in_seconds": 1})).expect(201);
    assert!(made["expires_at"].is_string(), "{made}");
    let client = agent.tcp(Some(made["secret"].as_str().unwrap()));
    until("it expires", || {
        let answer = client.get("/v1/status");
        assert!(matches!(answer.status, 200 | 401), "{}", answer.text());
        answer.status == 401
    });
}

#[test]
fn a_token_is_never_stored_in_clear_text() {
    let agent = Agent::start(ROOMY);
    let secret = agent.token("admin");
    // The last part of the token is the secret. Its first part is the id, which is stored.
    let hidden = &secret.as_bytes()[secret.len() - 20..];
    for entry in std::fs::read_dir(agent.data_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(hidden.len()).any(|window| window == hidden), "{}", path.display());
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is {mode:o}", path.display());
        }
    }
}

#[test]
fn the_socket_is_for_its_owner_and_group() {
    let agent = Agent::start(ROOMY);
    let mode = std::fs::metadata(agent.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // Over TCP no request has administrator rights without a token.
    agent.tcp(None).get("/v1/tokens").refused(401, "unauthorized");
    assert_eq!(agent.get("/v1/tokens").expect(200)["items"], Value::Array(Vec::new()));
}

#[test]
fn the_status_listener_shows_little_without_a_token() {
    let agent = Agent::start(&format!("{ROOMY}\nhttp = {{ status_listen = '127.0.0.1:0' }}"));
    let client = agent.status_client();
    for open in ["/livez", "/readyz", "/healthz", "/metrics"] {
        assert_eq!(client.get(open).status, 200, "{open}");
    }
    let status = client.get("/v1/status").expect(200);
    assert_eq!(status["node"].as_object().unwrap().keys().collect::<Vec<_>>(), ["name", "state", "version"]);
    assert_eq!(status["cluster"].as_object().unwrap().keys().collect::<Vec<_>>(), ["leader"]);
    for closed in ["/v1/sessions", "/v1/nodes", "/openapi.json", "/"] {
        client.get(closed).refused(404, "not_found");
    }
    assert_eq!(client.command("/v1/status").status, 405);
}
