//! Any node takes any request.

use serde_json::{Value, json};

use super::{FOREVER, id};
use crate::support::agent::until;
use crate::support::cluster::Cluster;
use crate::support::http::Request;

/// The names of the nodes that a list shows.
fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

#[test]
fn every_node_shows_and_changes_every_node() {
    let cluster = Cluster::start(3, "");
    let leader = format!("n{}", cluster.leader());
    for node in &cluster.nodes {
        let list = node.get("/v1/nodes").expect(200);
        assert_eq!(names(&list), ["n0", "n1", "n2"]);
        let leads = list["items"].as_array().unwrap().iter().find(|node| node["is_leader"] == true).unwrap();
        assert_eq!(leads["name"], leader);
    }
    let [asked, other] = [&cluster.nodes[0], &cluster.nodes[1]];
    let changed = asked.patch("/v1/nodes/n1", &json!({"cores_override": 12, "labels": {"rack": "3"}}));
    assert_eq!(changed.header("x-ostler-served-by"), Some("n1"));
    assert_eq!(changed.header("x-ostler-leader"), Some(leader.as_str()));
    assert_eq!(changed.expect(200)["settings"]["cores_override"], 12.0);
    assert_eq!(other.node()["settings"]["labels"]["rack"], "3");
    for node in &cluster.nodes {
        until("every node lists it", || {
            node.get("/v1/nodes").expect(200)["items"][1]["settings"]["cores_override"] == 12.0
        });
    }

    // By selector, at a node that the selector does not match.
    asked.cli(&["node", "set", "-l", "rack=3", "--memory-override", "64M"]).ok();
    assert_eq!(other.node()["settings"]["memory_override_bytes"], 64 << 20);
    let refused = asked.patch("/v1/nodes/n1", &json!({"gpus_override": 4}));
    refused.refused(422, "invalid");
    asked.get("/v1/nodes/n9").refused(404, "not_found");
}

#[test]
fn a_session_is_made_seen_and_ended_from_any_node() {
    let cluster = Cluster::start(3, "");
    let [a, b] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    let (a, b) = (&cluster.nodes[a], &cluster.nodes[b]);
    a.workspace("shout", "echo hello from $0; exec sleep 100000", &json!({"env": {"WHO": "{user}"}}));
    let made = a.post("/v1/sessions?wait=running&timeout=60s", &json!({"workspace": "shout", "user": "alice"}));
    assert!(made.header("x-ostler-served-by").is_some(), "the leader placed it");
    let session = made.expect(202);
    assert_eq!(session["state"], "running", "{session}");
    let session = id(&session);

    for node in &cluster.nodes {
        // The host reports to the leader at the same moment as it answers the waiting request.
        node.until_state(&session, "running");
        assert!(node.sessions(false).iter().any(|listed| listed["id"] == session.as_str()));
        until("its output", || node.get(&format!("/v1/sessions/{session}/logs")).text().contains("hello from"));
        let explained = node.get(&format!("/v1/sessions/{session}/explain")).expect(200);
        assert_eq!(explained["nodes"].as_array().unwrap().len(), 3, "{explained}");
    }
    b.cli(&["session", "pause", &session]).ok();
    assert_eq!(a.until_state(&session, "paused")["id"], session.as_str());
    a.cli(&["session", "resume", &session]).ok();
    b.cli(&["session", "stop", &session]).ok();
    a.until_state(&session, "stopped");
    b.delete(&format!("/v1/sessions/{session}?wait=true&timeout=60s")).expect(200);
    for node in &cluster.nodes {
        until("removed everywhere", || node.sessions(false).is_empty());
    }
}

#[test]
fn a_created_session_is_found_on_every_node_at_once() {
    const SESSIONS: usize = 20;
    let cluster = Cluster::start(3, "");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.01}));
    for node in &cluster.nodes {
        until("the workspace is everywhere", || node.get("/v1/workspaces/w").status == 200);
    }
    for i in 0..SESSIONS {
        let made = cluster.nodes[i % cluster.nodes.len()].create("w", "alice").expect(202);
        for node in &cluster.nodes {
            node.get(&format!("/v1/sessions/{}", id(&made))).expect(200);
        }
    }
}

#[test]
fn the_effect_of_a_command_is_seen_on_every_node_at_once() {
    const ROUNDS: usize = 5;
    let cluster = Cluster::start(3, "");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    let sessions: Vec<String> = (0..ROUNDS).map(|_| id(&cluster.nodes[0].create("w", "alice").expect(202))).collect();
    let seen = |session: &str, command: &str, never: &str| {
        cluster.nodes[0].client().command(&format!("/v1/sessions/{session}/{command}")).expect(202);
        for node in &cluster.nodes {
            assert_ne!(node.session(session)["state"], never, "after {command}");
        }
    };
    for session in &sessions {
        cluster.nodes[0].until_state(session, "running");
        seen(session, "stop", "running");
        cluster.nodes[0].until_state(session, "stopped");
        seen(session, "start", "stopped");
    }
}

#[test]
fn one_key_is_one_session_on_every_node() {
    let cluster = Cluster::start(3, "");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"env": {"PASSWORD": "{secret}"}}));
    let ask = |node: usize, user: &str| {
        let request = Request::new("POST", "/v1/sessions").header("Idempotency-Key", "order-17");
        cluster.nodes[node].client().send(&request.json(&json!({"workspace": "w", "user": user})))
    };
    let first = ask(0, "alice").expect(202);
    for node in 0..3 {
        let again = ask(node, "alice").expect(200);
        assert_eq!((&again["id"], &again["secret"]), (&first["id"], &first["secret"]), "asked at n{node}");
        ask(node, "bob").refused(422, "idempotency_mismatch");
    }
    assert_eq!(cluster.nodes[1].sessions(false).len(), 1);
}

#[test]
fn sessions_are_spread_and_rejections_name_every_node() {
    let cluster = Cluster::start(3, "dev = { physical_cores = 2, physical_memory = '1GiB' }");
    let asked = &cluster.nodes[0];
    asked.workspace("w", FOREVER, &json!({"cores": 1}));
    asked.workspace("huge", FOREVER, &json!({"cores": 3}));
    let mut hosts: Vec<String> =
        (0..6).map(|_| asked.create("w", "alice").expect(202)["node"].as_str().unwrap().to_owned()).collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["n0", "n0", "n1", "n1", "n2", "n2"], "spread");

    let full = asked.create("w", "alice").refused(503, "no_capacity");
    let mut refused: Vec<_> = full["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    refused.sort_unstable();
    assert_eq!(refused, ["n0", "n1", "n2"], "{full}");
    asked.create("huge", "alice").refused(422, "exceeds_physical");

    // One node offers more: the next session is placed there at once.
    cluster.nodes[2].patch("/v1/nodes/n1", &json!({"cores_override": 3})).expect(200);
    assert_eq!(asked.create("w", "alice").expect(202)["node"], "n1");
}

#[test]
fn a_drain_can_be_started_and_awaited_from_another_node() {
    let cluster = Cluster::start(3, "");
    let [asked, drained] = [&cluster.nodes[0], &cluster.nodes[1]];
    asked.workspace("w", FOREVER, &json!({"cores": 0.1, "constraints": {"here": "yes"}}));
    asked.patch("/v1/nodes/n1", &json!({"labels": {"here": "yes"}})).expect(200);
    let session = asked.create("w", "alice").expect(202);
    assert_eq!(session["node"], "n1");
    let late = asked.cli(&["node", "drain", "n1", "--wait", "--deadline", "1s", "--message", "new disk"]).failed(1);
    assert!(late.contains(&id(&session)[..8]), "the blocker is named: {late}");
    assert_eq!(drained.node()["drain"]["message"], "new disk");
    asked.create("w", "alice").refused(503, "node_disabled");
    asked.cli(&["node", "drain", "-l", "here=yes", "--wait", "--stop-sessions"]).ok();
    assert_eq!(asked.session(&id(&session))["end_reason"], "drained");
    asked.cli(&["node", "undrain", "n1"]).ok();
    assert_eq!(drained.node()["drain"], Value::Null);
}

/// The actor is made where a request comes in, and named by the node that makes the change.
#[test]
fn the_host_names_the_actor_of_a_change_wherever_it_was_asked_for() {
    let cluster = Cluster::start(3, "");
    let [follower, other] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    let leader = cluster.leader();
    let asked = &cluster.nodes[follower];
    let says = |node: usize, what: &str, by: &str| {
        let said = |line: &str| line.contains(what) && line.contains(&format!("by={by}"));
        until(&format!("n{node} logs {what}, {by}"), || cluster.nodes[node].log().lines().any(said));
    };
    let me = rustix::process::geteuid().as_raw();
    let uid = if me == 0 { "root".to_owned() } else { format!("uid {me}") };

    let token = asked.token("admin");
    let bearer = "test-admin".to_owned();
    let client = asked.tcp(Some(&token));
    let drained = Request::new("POST", &format!("/v1/nodes/n{other}/drain")).json(&json!({"message": "new disk"}));
    client.send(&drained).expect(200);
    says(other, "admits no new sessions", &bearer);
    asked.client().delete(&format!("/v1/nodes/n{other}/drain")).expect(200);
    says(other, "kind=drain_ended", &uid);

    let workspace = json!({"name": "sh", "command": ["sleep", "1000"], "cores": 0.1, "memory_bytes": "8M"});
    client.send(&Request::new("POST", "/v1/workspaces").json(&workspace)).expect(201);
    says(leader, "workspace sh was added", &bearer);
    let wanted = json!({"workspace": "sh", "user": "alice"});
    let made = client.send(&Request::new("POST", "/v1/sessions?wait=running&timeout=60s").json(&wanted)).expect(202);
    let host = cluster.nodes.iter().position(|node| made["node"] == node.node()["name"]).unwrap();
    says(host, "kind=session_created", &bearer);
    asked.client().command(&format!("/v1/sessions/{}/stop", id(&made))).expect(202);
    says(host, "kind=session_ended", &uid);
}
