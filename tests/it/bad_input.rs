//! Invalid input: each is rejected with the given status, the answer names the error, and nothing changes.

use std::fs;

use serde_json::{Value, json};

use crate::support::agent::Agent;
use crate::support::http::{Address, Client, Request, Response};

const ROOMY: &str = "dev = { physical_cores = 6, physical_memory = '6GiB' }";
/// The API's bound of a body, in bytes.
const MAX_BODY: usize = 1 << 20;

/// An agent with one workspace, `shell`, and one running session of it.
fn lab() -> (Agent, String) {
    let agent = Agent::start(ROOMY);
    agent.workspace("shell", "exec sleep 600", &json!({}));
    let session = agent.running("shell", "alice")["id"].as_str().unwrap().to_owned();
    (agent, session)
}

/// Everything that a request can change.
fn everything(agent: &Agent) -> Value {
    let node = agent.node();
    json!({
        "sessions": agent.get("/v1/sessions?all=true").expect(200),
        "workspaces": agent.get("/v1/workspaces").expect(200),
        "tokens": agent.get("/v1/tokens").expect(200),
        "volumes": agent.get("/v1/nodes/self/volumes").expect(200),
        "settings": node["settings"],
        "drain": node["drain"],
        "allocated": node["resources"]["cores"]["allocated"],
    })
}

/// What is wrong with an answer that should be an error of the API with this status and code, and contain `told`.
fn wrong_with(what: &str, answer: &Response, status: u16, code: &str, told: &str) -> Option<String> {
    let wrong = |why: &str| Some(format!("{what}: {why}: {} {}", answer.status, answer.text()));
    if answer.status != status {
        return wrong(&format!("not {status}"));
    }
    if answer.header("content-type") != Some("application/json") {
        return wrong("not JSON");
    }
    let error = &answer.json()["error"];
    let message = error["message"].as_str().unwrap_or_default();
    if error["code"] != code || !error["retryable"].is_boolean() || !error["nodes"].is_array() {
        return wrong(&format!("not {code}"));
    }
    if !message.contains(told) {
        return wrong(&format!("`{told}` is missing"));
    }
    // A message is short enough for a person, whatever was sent.
    (message.is_empty() || message.len() > 2000).then(|| format!("{what}: a message of {} bytes", message.len()))
}

#[track_caller]
fn assert_refused(what: &str, answer: &Response, status: u16, code: &str, told: &str) {
    assert_none(wrong_with(what, answer, status, code, told));
}

/// Fails with every error at once, so that each row of a table is tried.
#[track_caller]
fn assert_none(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A workspace that is valid but for the fields in `change`.
fn workspace(change: &Value) -> String {
    let mut body = json!({"name": "new", "image": "busybox", "cores": 1, "memory_bytes": 64 << 20});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string()
}

fn session(change: &Value) -> String {
    let mut body = json!({"workspace": "shell", "user": "alice"});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string()
}

#[test]
fn invalid_bodies_are_rejected() {
    let (agent, id) = lab();
    let before = everything(&agent);
    let many = |n: usize, value: &dyn Fn(usize) -> Value| (0..n).map(value).collect::<Vec<_>>();
    let labels = |n: usize| (0..n).map(|i| (format!("l{i}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    let post = |path: &'static str, body: String, status: u16, told: &'static str| {
        ("POST", path.to_owned(), body, status, told)
    };
    let add = |change: Value, told| post("/v1/workspaces", workspace(&change), 422, told);
    let create = |change: Value, told| post("/v1/sessions", session(&change), 422, told);
    let set = |body: &str, told| ("PATCH", "/v1/nodes/self".to_owned(), body.to_owned(), 422, told);
    let on_session =
        |command: &str, body: &str, told| ("POST", format!("/v1/sessions/{id}/{command}"), body.to_owned(), 422, told);
    let table = [
        // Not JSON, or JSON that is not an object.
        post("/v1/sessions", String::new(), 400, "not JSON"),
        post("/v1/sessions", "{".to_owned(), 400, "not JSON"),
        post("/v1/sessions", "{\"workspace\":\"shell\",\"user\":\"alice\",}".to_owned(), 400, "not JSON"),
        post("/v1/sessions", "{'workspace':'shell'}".to_owned(), 400, "not JSON"),
        post("/v1/sessions", "{} {}".to_owned(), 400, "not JSON"),
        post("/v1/sessions", "{\"workspace\":\"shell\",\"user\":\"alice\",\"cores\":NaN}".to_owned(), 400, "not JSON"),
        post(
            "/v1/sessions",
            "{\"workspace\":\"shell\",\"user\":\"alice\",\"cores\":1e999}".to_owned(),
            400,
            "not JSON",
        ),
        post("/v1/sessions", "\u{0}".to_owned(), 400, "not JSON"),
        post("/v1/sessions", "[".repeat(100_000), 400, "not JSON"),
        post("/v1/sessions", "[\"shell\",\"alice\"]".to_owned(), 422, "expected an object"),
        post("/v1/sessions", "null".to_owned(), 422, "null"),
        post("/v1/sessions", "7".to_owned(), 422, "7"),
        // Requests for sessions.
        post("/v1/sessions", "{}".to_owned(), 422, "workspace"),
        post("/v1/sessions", "{\"workspace\":\"shell\"}".to_owned(), 422, "user"),
        post("/v1/sessions", "{\"workspace\":\"shell\",\"user\":\"alice\",\"user\":\"bob\"}".to_owned(), 400, "user"),
        create(json!({"workspace": 7}), "workspace"),
        create(json!({"workspace": "../etc"}), "workspace"),
        create(json!({"workspace": "Shell"}), "workspace"),
        create(json!({"workspace": "x".repeat(64)}), "workspace"),
        create(json!({"user": ""}), "user"),
        create(json!({"user": "a\nb"}), "user"),
        create(json!({"user": "x".repeat(10_000)}), "user"),
        create(json!({"cores": -1}), "cores"),
        create(json!({"cores": 0}), "cores"),
        create(json!({"cores": "two"}), "cores"),
        create(json!({"cores": 0.0001}), "cores"),
        create(json!({"cores": 1e300}), "cores"),
        create(json!({"memory_bytes": -1}), "memory_bytes"),
        create(json!({"memory_bytes": 1}), "memory_bytes"),
        create(json!({"memory_bytes": "4 bananas"}), "memory_bytes"),
        create(json!({"memory_bytes": 1.5}), "memory_bytes"),
        create(json!({"memory_bytes": u64::MAX}), "memory_bytes"),
        create(json!({"gpus": -1}), "gpus"),
        create(json!({"gpus": 1.5}), "gpus"),
        create(json!({"gpus": 1_000_000}), "gpus"),
        create(json!({"ttl_seconds": 0}), "ttl_seconds"),
        create(json!({"ttl_seconds": "1h"}), "ttl_seconds"),
        create(json!({"idle_timeout_seconds": -5}), "idle_timeout_seconds"),
        create(json!({"env": {"LD_PRELOAD": "/tmp/evil.so"}}), "env.LD_PRELOAD"),
        create(json!({"env": {"NVIDIA_VISIBLE_DEVICES": "all"}}), "env.NVIDIA_VISIBLE_DEVICES"),
        create(json!({"env": {"OSTLER_PORT_80": "1"}}), "env.OSTLER_PORT_80"),
        create(json!({"env": {"A=B": "1"}}), "env.A=B"),
        create(json!({"env": {"A": "x\u{0}y"}}), "env.A"),
        create(json!({"env": {"A": 1}}), "env.A"),
        create(json!({"env": {"A": "x".repeat(100_000)}}), "env.A"),
        create(json!({"env": {"A": "{user}".repeat(5000)}}), "env.A"),
        create(json!({"env": labels(129)}), "env"),
        create(json!({"constraints": {"a b": "c"}}), "constraints"),
        create(json!({"privileged": true}), "privileged"),
        create(json!({"image": "evil"}), "image"),
        create(json!({"volumes": [{"name": "/etc", "path": "/host"}]}), "volumes"),
        create(json!({"command": ["sh"]}), "command"),
        // Workspaces.
        post("/v1/workspaces", "{}".to_owned(), 422, "name"),
        add(json!({"name": "-x"}), "name"),
        add(json!({"name": ""}), "name"),
        add(json!({"image": null}), "image"),
        add(json!({"image": "--privileged"}), "image"),
        add(json!({"image": "a b"}), "image"),
        add(json!({"cores": 0}), "cores"),
        add(json!({"memory_bytes": 0}), "memory_bytes"),
        add(json!({"gpus": 4_294_967_296_u64}), "gpus"),
        add(json!({"ports": [{"container_port": 0}]}), "ports[0].container_port"),
        add(
            json!({"ports": [{"container_port": 65_536}]}),
            "ports[0].container_port: 65536; expected a whole number from 1 to 65535, as 8080",
        ),
        add(json!({"ports": [80]}), "ports[0]: 80; expected an object {container_port, protocol}"),
        add(json!({"ports": [[80, "tcp"]]}), "ports[0]: a list; expected an object {container_port, protocol}"),
        add(json!({"ports": [{"container_port": 80}, {"container_port": 80}]}), "ports[1]"),
        add(json!({"ports": [{"container_port": 80, "protocol": "sctp"}]}), "ports[0].protocol"),
        add(json!({"ports": [{"container_port": 80, "host_port": 22}]}), "host_port"),
        add(json!({"ports": many(33, &|i| json!({"container_port": i + 1}))}), "ports"),
        add(json!({"volumes": [{"name": "/etc", "path": "/host"}]}), "volumes[0].name"),
        add(json!({"volumes": [{"name": "../up", "path": "/host"}]}), "volumes[0].name"),
        add(json!({"volumes": [{"name": "home-{secret}", "path": "/home"}]}), "volumes[0].name"),
        add(json!({"volumes": [{"name": "home", "path": "home"}]}), "volumes[0].path"),
        add(json!({"volumes": [{"name": "home", "path": "/a/../../etc"}]}), "volumes[0].path"),
        add(json!({"volumes": [{"name": "home", "path": "/proc"}]}), "volumes[0].path"),
        add(json!({"volumes": [{"name": "home", "path": "/x:rw,exec"}]}), "volumes[0].path"),
        add(json!({"volumes": [{"name": "a", "path": "/x"}, {"name": "b", "path": "/x"}]}), "volumes[1].path"),
        add(json!({"env": {"A": "x".repeat(200_000)}}), "env.A"),
        add(json!({"env": {"A": "{user}".repeat(5000)}}), "env.A"),
        add(json!({"command": [""]}), "command[0]"),
        add(json!({"command": ["sh", "-c", "x".repeat(200_000)]}), "command[2]"),
        add(json!({"command": many(300, &|_| json!("x"))}), "command"),
        add(json!({"command": "sh -c true"}), "command"),
        add(json!({"shm_bytes": 1_u64 << 40}), "shm_bytes"),
        add(json!({"pull": "sometimes"}), "pull"),
        add(json!({"on_host_restart": "maybe"}), "on_host_restart"),
        add(json!({"gpu_capabilities": ["all"]}), "gpu_capabilities[0]"),
        add(json!({"gpu_memory_bytes": "1KiB"}), "gpu_memory_bytes"),
        add(json!({"gpu_class": "gpu"}), "gpu_class"),
        add(json!({"description": "x".repeat(2000)}), "description"),
        add(json!({"network": "host network"}), "network"),
        add(json!({"devices": ["/dev/mem"]}), "devices"),
        add(json!({"cap_add": ["SYS_ADMIN"]}), "cap_add"),
        add(json!({"labels": {"ostler.cluster": "x"}}), "labels"),
        ("PUT", "/v1/workspaces/other".to_owned(), workspace(&json!({})), 422, "name"),
        // Settings, drains, commands, tokens.
        set(r#"{"cores_override":-1}"#, "cores_override"),
        set(r#"{"cores_override":1e9}"#, "cores_override"),
        set(r#"{"memory_override_bytes":-1}"#, "memory_override_bytes"),
        set(r#"{"memory_override_bytes":"lots"}"#, "memory_override_bytes"),
        set(r#"{"gpus_override":100000}"#, "gpus_override"),
        set(r#"{"gpus_override":1}"#, "gpus_override"),
        set(r#"{"gpu_sharing":"all"}"#, "gpu_sharing"),
        set(r#"{"prune":"everything"}"#, "prune"),
        set(r#"{"enabled":"yes"}"#, "enabled"),
        set(r#"{"labels":{"a b":"c"}}"#, "labels.a b"),
        set(r#"{"labels":{"a":"ä"}}"#, "labels.a"),
        set(r#"{"enabled":false,"name":"two"}"#, "name"),
        ("PATCH", "/v1/nodes/self".to_owned(), json!({"labels": labels(65)}).to_string(), 422, "labels"),
        post("/v1/nodes/self/drain", r#"{"deadline_seconds":0}"#.to_owned(), 422, "deadline_seconds"),
        post("/v1/nodes/self/drain", r#"{"deadline":"1h"}"#.to_owned(), 422, "deadline"),
        post("/v1/nodes/self/drain", json!({"message": "x".repeat(2000)}).to_string(), 422, "message"),
        on_session("extend", r#"{"ttl_seconds":0}"#, "ttl_seconds"),
        on_session("extend", r#"{"ttl_seconds":1e18}"#, "ttl_seconds"),
        on_session("extend", "{}", "ttl_seconds"),
        on_session("keepalive", r#"{"by":""}"#, "by"),
        on_session("keepalive", r#"{"by":"a","until":"tomorrow"}"#, "until"),
        post("/v1/tokens", r#"{"role":"root"}"#.to_owned(), 422, "role"),
        post("/v1/tokens", "{}".to_owned(), 422, "role"),
        post("/v1/tokens", r#"{"role":"read","name":"a b"}"#.to_owned(), 422, "name"),
        post("/v1/tokens", r#"{"role":"read","expires_in_seconds":0}"#.to_owned(), 422, "expires_in_seconds"),
        post("/v1/tokens", r#"{"role":"read","expires_in_seconds":-1}"#.to_owned(), 422, "expires_in_seconds"),
    ];
    assert_none(table.iter().filter_map(|(method, path, body, status, told)| {
        let shown: String = body.chars().take(200).collect();
        let answer = agent.client().send(&Request::new(method, path).text("application/json", body));
        wrong_with(&format!("{method} {path} {shown}"), &answer, *status, "invalid", told)
    }));
    assert_eq!(everything(&agent), before, "nothing has changed");
}

#[test]
fn invalid_paths_queries_and_methods_are_rejected() {
    let (agent, id) = lab();
    let before = everything(&agent);
    let nobody = "a".repeat(26);
    for (method, path, status, code, told) in [
        ("GET", "/v1/nothing".to_owned(), 404, "not_found", "/v1/nothing"),
        ("GET", "/v1/sessions/".to_owned(), 404, "not_found", ""),
        ("GET", "//v1/sessions".to_owned(), 404, "not_found", ""),
        ("GET", "/v1/../v1/sessions".to_owned(), 404, "not_found", ""),
        ("GET", format!("/v1/sessions/{nobody}"), 404, "not_found", &nobody),
        ("DELETE", format!("/v1/sessions/{nobody}"), 404, "not_found", &nobody),
        ("POST", format!("/v1/sessions/{nobody}/stop"), 404, "not_found", &nobody),
        ("GET", format!("/v1/sessions/{nobody}/logs"), 404, "not_found", &nobody),
        ("GET", "/v1/sessions/UPPER".to_owned(), 400, "invalid", "id"),
        ("GET", "/v1/sessions/%00".to_owned(), 400, "invalid", "id"),
        ("GET", "/v1/sessions/%FF".to_owned(), 400, "invalid", "UTF-8"),
        ("GET", "/v1/sessions/..%2f..%2fetc".to_owned(), 400, "invalid", "id"),
        ("GET", format!("/v1/sessions/{}", "a".repeat(27)), 400, "invalid", "id"),
        ("POST", format!("/v1/sessions/{id}/explode"), 404, "not_found", "explode"),
        ("GET", "/v1/workspaces/nothing".to_owned(), 404, "not_found", "nothing"),
        ("DELETE", "/v1/workspaces/nothing".to_owned(), 404, "not_found", "nothing"),
        ("GET", "/v1/workspaces/%2e%2e".to_owned(), 400, "invalid", "name"),
        ("GET", "/v1/nodes/two".to_owned(), 404, "not_found", "two"),
        ("GET", "/v1/nodes/Two".to_owned(), 400, "invalid", "Two"),
        ("POST", "/v1/nodes/two/drain".to_owned(), 404, "not_found", "two"),
        ("DELETE", "/v1/nodes/self/volumes/nothing".to_owned(), 404, "not_found", "nothing"),
        // The template `{user}` has this volume for the user `../etc`. It is a name and never a path.
        ("DELETE", "/v1/nodes/self/volumes/..%2fetc".to_owned(), 404, "not_found", "../etc"),
        ("DELETE", "/v1/nodes/self/volumes/a%0ab".to_owned(), 400, "invalid", "name"),
        ("DELETE", "/v1/tokens/abcd2345".to_owned(), 404, "not_found", "abcd2345"),
        ("GET", "/v1/sessions?limit=0".to_owned(), 400, "invalid", "limit"),
        ("GET", "/v1/sessions?limit=-1".to_owned(), 400, "invalid", "limit"),
        ("GET", "/v1/sessions?limit=1001".to_owned(), 400, "invalid", "limit"),
        ("GET", "/v1/sessions?limit=1&limit=2".to_owned(), 400, "invalid", "limit"),
        ("GET", "/v1/sessions?limits=1".to_owned(), 400, "invalid", "limits"),
        ("GET", "/v1/sessions?cursor=%3Cx%3E".to_owned(), 400, "invalid", "cursor"),
        ("GET", "/v1/sessions?state=dead".to_owned(), 400, "invalid", "state"),
        ("GET", "/v1/sessions?user=".to_owned(), 400, "invalid", "user"),
        ("GET", "/v1/sessions?all=maybe".to_owned(), 400, "invalid", "all"),
        ("GET", format!("/v1/sessions/{id}?wait=done"), 400, "invalid", "wait"),
        ("GET", format!("/v1/sessions/{id}?wait=running&timeout=-1s"), 400, "invalid", "timeout"),
        ("GET", format!("/v1/sessions/{id}?wait=running&timeout=forever"), 400, "invalid", "timeout"),
        ("GET", format!("/v1/sessions/{id}/logs?tail=-1"), 400, "invalid", "tail"),
        ("GET", format!("/v1/sessions/{id}/logs?tail=4294967296"), 400, "invalid", "tail"),
        ("GET", format!("/v1/sessions/{id}/logs?follow=x"), 400, "invalid", "follow"),
        ("GET", "/v1/status?verbose=1".to_owned(), 400, "invalid", "verbose"),
        ("POST", format!("/v1/sessions/{id}/stop?force=true"), 400, "invalid", "force"),
        ("PUT", "/v1/sessions".to_owned(), 405, "invalid", "PUT"),
        ("DELETE", "/v1/sessions".to_owned(), 405, "invalid", "DELETE"),
        ("PATCH", format!("/v1/sessions/{id}"), 405, "invalid", "PATCH"),
        ("GET", format!("/v1/sessions/{id}/stop"), 405, "invalid", "GET"),
        ("POST", "/livez".to_owned(), 405, "invalid", "POST"),
        ("BREW", "/v1/sessions".to_owned(), 405, "invalid", "BREW"),
    ] {
        let answer = agent.client().send(&Request::new(method, &path));
        assert_refused(&format!("{method} {path}"), &answer, status, code, told);
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}: {:?}", answer.headers);
    }
    assert_eq!(everything(&agent), before, "nothing has changed");
}

#[test]
fn malformed_messages_are_rejected() {
    let (agent, _) = lab();
    let before = everything(&agent);
    let body = session(&json!({}));
    let post = || Request::new("POST", "/v1/sessions");
    let keyed = |key: &str| post().text("application/json", &body).header("idempotency-key", key);
    for (what, request, status, told) in [
        ("no type", Request { body: body.clone().into_bytes(), ..post() }, 415, "Content-Type"),
        ("a form", post().text("application/x-www-form-urlencoded", "workspace=shell"), 415, "Content-Type"),
        ("text", post().text("text/plain", &body), 415, "Content-Type"),
        ("no UTF-8", post().bytes("application/json", b"{\"workspace\":\"\xff\"}"), 400, "not JSON"),
        ("too long", post().bytes("application/json", &vec![b' '; MAX_BODY + 1]), 413, "larger"),
        ("an empty key", keyed(""), 400, "Idempotency-Key"),
        ("a long key", keyed(&"k".repeat(257)), 400, "Idempotency-Key"),
        ("a key that is not ASCII", keyed("ä"), 400, "Idempotency-Key"),
        ("a key with a tab", keyed("a\tb"), 400, "Idempotency-Key"),
    ] {
        assert_refused(what, &agent.client().send(&request), status, "invalid", told);
    }
    // The server rejects requests that are not HTTP, and stays up.
    for request in [
        Request::new("GET", "/v1/sessions").header("content-length", "-1"),
        Request::new("GET", "/v1/sessions").header("x", &"y".repeat(1 << 20)),
        Request::new("GET", &format!("/v1/{}", "a".repeat(100_000))),
        Request::new("G E T", "/v1/sessions"),
        Request::new("GET", "v1/sessions"),
    ] {
        let status = agent.client().try_send(&request).map_or(400, |answer| answer.status);
        let shown: String = format!("{request:?}").chars().take(200).collect();
        assert!((400..500).contains(&status), "{status}: {shown}");
    }
    agent.get("/readyz").expect(200);
    assert_eq!(everything(&agent), before, "nothing has changed");
}

#[test]
fn unauthorized_and_cross_site_requests_are_rejected() {
    let (agent, id) = lab();
    let before = everything(&agent);
    let (read, operate) = (agent.token("read"), agent.token("operate"));
    let body = session(&json!({}));
    let create = |token: Option<&str>| {
        let request = Request::new("POST", "/v1/sessions").text("application/json", &body);
        agent.tcp(token).send(&request)
    };
    assert_refused("no token", &create(None), 401, "unauthorized", "token");
    for wrong in ["wrong", "", &read[..read.len() - 1], &format!("{read}x"), &read.to_uppercase()] {
        assert_refused(wrong, &create(Some(wrong)), 401, "unauthorized", "token");
    }
    for authorization in ["Basic YTpi", "Bearer", "bearer  ", "Bearer a b", "Token x"] {
        let request = Request::new("GET", "/v1/status").header("authorization", authorization);
        assert_refused(authorization, &agent.tcp(None).send(&request), 401, "unauthorized", "token");
    }
    assert_refused("read may not create", &create(Some(&read)), 403, "forbidden", "operate");
    for (method, path) in [
        ("PATCH", "/v1/nodes/self"),
        ("POST", "/v1/nodes/self/drain"),
        ("POST", "/v1/workspaces"),
        ("DELETE", "/v1/workspaces/shell"),
        ("POST", "/v1/tokens"),
        ("GET", "/v1/tokens"),
    ] {
        let answer = agent.tcp(Some(&operate)).send(&Request::new(method, path).json(&json!({})));
        assert_refused(&format!("{method} {path}"), &answer, 403, "forbidden", "admin");
    }
    // Host names that a web page may have rebound to this address, and origins of other sites.
    for host in ["evil.example", "localhost.evil.example", "10.1.2.3:7481", "one"] {
        let request = Request::new("GET", "/v1/status").header("host", host);
        assert_refused(host, &agent.tcp(Some(&read)).send(&request), 403, "forbidden", "allowed_hosts");
    }
    for origin in ["http://evil.example", "null", "https://localhost:1"] {
        let request = Request::new("DELETE", &format!("/v1/sessions/{id}")).header("origin", origin);
        assert_refused(origin, &agent.tcp(Some(&operate)).send(&request), 403, "forbidden", "origin");
    }
    let doubled = Request::new("GET", "/v1/status").header("host", "localhost").header("host", "localhost");
    assert_refused("two hosts", &agent.tcp(Some(&read)).send(&doubled), 400, "invalid", "Host");
    let mut after = everything(&agent);
    after["tokens"] = before["tokens"].clone();
    assert_eq!(after, before, "nothing has changed");
}

#[test]
fn invalid_command_lines_are_rejected() {
    let (agent, id) = lab();
    let before = everything(&agent);
    let id = id.as_str();
    let mut wrong = Vec::new();
    for (arguments, code, told) in [
        (vec![], 2, "Usage"),
        (vec!["fly"], 2, "fly"),
        (vec!["session", "fly"], 2, "fly"),
        (vec!["session", "create", "shell", "--cores", "lots"], 2, "--cores"),
        (vec!["session", "create", "shell", "--cores", "-1"], 2, "-1"),
        (vec!["session", "create", "shell", "--memory", "4X"], 2, "--memory"),
        (vec!["session", "create", "shell", "--ttl", "soon"], 2, "--ttl"),
        (vec!["session", "create", "shell", "--env", "NOVALUE"], 2, "--env"),
        (vec!["session", "create", "shell", "--env", "LD_PRELOAD=/x"], 3, "LD_PRELOAD"),
        (vec!["session", "create", "Shell"], 2, "Shell"),
        (vec!["session", "create", "nothing"], 1, "nothing"),
        (vec!["session", "create", "shell", "--cores", "100"], 3, "exceeds_physical"),
        (vec!["session", "create", "shell", "--user", "a\nb"], 2, "--user"),
        (vec!["session", "show", "UPPER"], 1, "not a session id"),
        (vec!["session", "rm"], 2, "ID"),
        (vec!["session", "extend", id, "--ttl", "0s"], 3, "ttl_seconds"),
        (vec!["session", "ls", "--state", "dead"], 2, "dead"),
        (vec!["session", "ls", "-o", "xml"], 2, "xml"),
        (vec!["session", "logs", id, "--tail", "-1"], 2, "-1"),
        (vec!["node", "show", "two"], 1, "two"),
        (vec!["node", "set", "one"], 2, "required"),
        (vec!["node", "set", "one", "--gpus-override", "2"], 3, "gpus_override"),
        (vec!["node", "set", "one", "--cores-override", "1000000"], 3, "cores_override"),
        (vec!["node", "label", "one", "a b=c"], 3, "labels"),
        (vec!["node", "drain"], 2, "NODE"),
        (vec!["workspace", "rm", "nothing"], 1, "nothing"),
        (vec!["workspace", "add", "x", "--memory", "1GiB", "--image", "busybox"], 2, "--cores"),
        (vec!["workspace", "add", "x", "--cores", "1", "--memory", "1GiB"], 3, "image"),
        (vec!["workspace", "add", "x", "--cores", "1", "--memory", "1GiB", "--image", "b", "--port", "0"], 2, "--port"),
        (
            vec!["workspace", "add", "x", "--cores", "1", "--memory", "1GiB", "--image", "b", "--volume", "/etc:/host"],
            3,
            "volumes[0].name",
        ),
        (
            vec!["workspace", "add", "x", "--cores", "1", "--memory", "1GiB", "--image", "b", "--gpus", "two"],
            2,
            "expected a whole number from 0 to ",
        ),
        (vec!["gpu", "cordon", "GPU-9"], 1, "GPU-9"),
        (vec!["gpu", "ls", "--state", "broken"], 2, "quarantined"),
        (vec!["token", "api", "create", "--role", "root"], 2, "root"),
        (vec!["token", "api", "revoke", "abcd2345"], 1, "abcd2345"),
        (vec!["volume", "rm", "one", "nothing"], 1, "nothing"),
        (vec!["--node", "ftp://x", "status"], 2, "ftp://x"),
        (vec!["--node", "http://127.0.0.1:1", "--token-file", "/nowhere", "status"], 1, "/nowhere"),
    ] {
        let ran = agent.cli(&arguments);
        // Errors are not printed on standard output.
        if ran.code != code || !ran.stderr.contains(told) || !ran.stdout.is_empty() {
            wrong.push(format!("{arguments:?}: {code} and `{told}` expected: {ran:?}"));
        }
    }
    assert_none(wrong);
    assert_eq!(everything(&agent), before, "nothing has changed");
}

#[test]
fn invalid_configurations_are_rejected() {
    let agent = Agent::prepare(ROOMY);
    let file = agent.directory().join("bad.toml");
    let mut wrong = Vec::new();
    for (text, told) in [
        ("[http\nlisten = 1", vec![":1:"]),
        ("http:\n  listen: 127.0.0.1:7481\n", vec![":1: this is YAML; expected TOML"]),
        (r#"{"http": {"listen": "127.0.0.1:7481"}}"#, vec![":1: this is JSON; expected TOML"]),
        ("[http]\nlisten = '127.0.0.1:7481'\nlisten = '127.0.0.1:7482'", vec!["listen"]),
        ("[http]\nlisen = '127.0.0.1:7481'", vec![":2:", "lisen", "listen"]),
        ("[htp]\nlisten = '127.0.0.1:7481'", vec![":1:", "htp", "[http]"]),
        ("listen = '127.0.0.1:7481'", vec![":1:", "http.listen"]),
        ("[http]\nlisten = 7481", vec![":2:", "http.listen"]),
        ("[http]\nlisten = '0.0.0.0:7481'", vec!["http.listen", "tls"]),
        ("[http]\ntls_cert = '/x'", vec!["tls_key"]),
        ("[settings]\ncores_override = -1", vec![":2:", "settings.cores_override"]),
        ("[settings]\ncores_override = nan", vec![":2:", "settings.cores_override"]),
        ("[settings]\ncores_override = inf", vec![":2:", "settings.cores_override"]),
        ("[settings]\nmemory_override = '1e30'", vec!["settings.memory_override"]),
        ("[settings]\ngpu_sharing = 'all'", vec!["settings.gpu_sharing", "same_user"]),
        ("[settings]\nlabels = { 'a b' = 'c' }", vec!["settings.labels"]),
        ("[runtime]\nkind = 'podman'", vec!["runtime.kind", "docker"]),
        ("[runtime]\nport_range = '30000-20000'", vec!["runtime.port_range"]),
        ("[runtime]\nport_range = '7000-8000'", vec!["7481"]),
        ("[runtime]\ncap_allow = ['EVERYTHING']", vec!["runtime.cap_allow"]),
        ("[node]\nname = 'Node One'", vec!["node.name"]),
        ("[node]\ndata_dir = 'relative'", vec!["node.data_dir"]),
        ("[limits]\nkeep_ended = 'a while'", vec!["limits.keep_ended"]),
        ("[limits]\nmax_sessions_per_user = -1", vec!["limits.max_sessions_per_user"]),
        ("[log]\nlevel = 'loud'", vec!["log.level"]),
        ("[dev]\nphysical_cores = 4", vec!["dev.physical_cores", "--dev"]),
        ("[runtime]\nkind = 'process'", vec!["runtime.kind", "--dev"]),
        ("[log]\nlevel = 'loud'\n[node]\nname = ''", vec!["log.level", "node.name"]),
    ] {
        fs::write(&file, text).unwrap();
        let checked = agent.cli(&["config", "check", "--config", file.to_str().unwrap()]);
        let started = agent.cli(&["agent", "--config", file.to_str().unwrap()]);
        if checked.code != 1 || !told.iter().all(|told| checked.stderr.contains(told)) || started.code != 2 {
            wrong.push(format!("{text}: {told:?} expected: {checked:?} {started:?}"));
        }
    }
    assert_none(wrong);
    let missing = agent.cli(&["config", "check", "--config", "/nowhere/ostler.toml"]).failed(1);
    assert!(missing.contains("/nowhere/ostler.toml"), "{missing}");
    assert!(
        agent
            .cli(&["config", "check", "--dev", "--config", agent.config_file().to_str().unwrap()])
            .ok()
            .contains("valid")
    );
    assert!(!agent.data_dir().exists(), "a check creates nothing");
}

#[test]
fn a_socket_without_an_agent_is_unreachable() {
    let agent = Agent::prepare(ROOMY);
    let told = agent.cli(&["status"]).failed(4);
    assert!(told.contains(&agent.socket().display().to_string()), "{told}");
    let client = Client { address: Address::Socket(agent.socket()), token: None };
    assert!(client.try_send(&Request::new("GET", "/livez")).is_err());
}
