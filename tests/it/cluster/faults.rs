//! Leaders that die, freeze and come back. Whatever happens, one key is one session, and no host admits
//! more than it offers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{FOREVER, id};
use crate::support::agent::{Agent, LOOK_EVERY, SOON, until};
use crate::support::cluster::Cluster;
use crate::support::http::{Request, Response};
use crate::support::skip;

/// How long a leader's host is frozen: as long as its orders may be on their way at most.
const FROZEN_FOR: Duration = Duration::from_secs(30);

pub(crate) fn keyed(agent: &Agent, key: &str) -> std::io::Result<Response> {
    let request = Request::new("POST", "/v1/sessions").header("Idempotency-Key", key);
    agent.client().try_send(&request.json(&json!({"workspace": "w", "user": "alice"})))
}

/// Repeats a request with this key until it succeeds; every other answer must be retryable.
pub(crate) fn persist(agent: &Agent, key: &str) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let refusal = match keyed(agent, key) {
            Ok(answer) if answer.status == 200 || answer.status == 202 => return answer.json(),
            Ok(answer) => answer.json(),
            Err(error) => json!({"error": {"retryable": true, "message": error.to_string()}}),
        };
        assert_eq!(refusal["error"]["retryable"], true, "{refusal}");
        assert!(Instant::now() < deadline, "not yet a session for {key}: {refusal}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Adds a workspace whose sessions only this node admits.
pub(super) fn held_to(cluster: &Cluster, name: &str, node: usize) {
    let label = json!({"labels": {name: "yes"}});
    cluster.nodes[node].patch(&format!("/v1/nodes/n{node}"), &label).expect(200);
    cluster.nodes[node].workspace(name, FOREVER, &json!({"cores": 0.1, "constraints": {name: "yes"}}));
    for node in &cluster.nodes {
        until("the workspace is everywhere", || node.get(&format!("/v1/workspaces/{name}")).status == 200);
    }
}

#[test]
fn the_next_leader_takes_over_from_a_killed_one() {
    let mut cluster = Cluster::start(3, "");
    let killed = cluster.leader();
    let survivor = cluster.followers()[0];
    held_to(&cluster, "w", survivor);
    let before = persist(&cluster.nodes[survivor], "before");
    cluster.nodes[killed].kill9();
    let after = persist(&cluster.nodes[survivor], "after");
    assert_ne!(before["id"], after["id"]);
    for key in ["before", "after"] {
        let again = persist(&cluster.nodes[survivor], key);
        assert!(again["id"] == before["id"] || again["id"] == after["id"], "a retry returns the same session");
    }
    cluster.nodes[killed].up();
    cluster.settled();
    for node in &cluster.nodes {
        until("both run", || {
            let sessions = node.sessions(false);
            sessions.len() == 2 && sessions.iter().all(|session| session["state"] == "running")
        });
    }
}

#[test]
fn a_request_that_waits_for_a_killed_leader_is_answered_by_the_next() {
    let mut cluster = Cluster::start(3, "");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    for node in &cluster.nodes {
        until("the workspace is everywhere", || node.get("/v1/workspaces/w").status == 200);
    }
    let (killed, asked) = (cluster.leader(), cluster.followers());
    cluster.nodes[killed].kill9();
    std::thread::scope(|scope| {
        for i in asked {
            let node = &cluster.nodes[i];
            // The first answer is final: the client does not have to retry to learn the outcome.
            scope.spawn(move || {
                let answer = keyed(node, &format!("key-{i}")).unwrap().json();
                assert_ne!(answer["error"]["code"], "outcome_unknown", "{answer}");
            });
        }
    });
}

#[test]
fn a_session_on_an_unreachable_host_is_unknown_and_never_created_again() {
    let mut cluster = Cluster::start(3, "");
    let [asked, away] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    held_to(&cluster, "w", away);
    let made = persist(&cluster.nodes[asked], "key");
    for node in &cluster.nodes {
        until("every node knows it", || node.sessions(false).iter().any(|s| s["state"] == "running"));
    }
    cluster.nodes[away].kill9();
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        until("it is unknown", || node.session(&id(&made))["state"] == "unknown");
        let again = persist(node, "key");
        assert_eq!((&again["id"], &again["state"]), (&made["id"], &json!("unknown")));
        // Until the connection is known to be dead, the outcome of the request is unknown.
        until("the host is known to be unreachable", || {
            let stop = node.client().command(&format!("/v1/sessions/{}/stop", id(&made))).json();
            assert_eq!(stop["error"]["retryable"], true, "{stop}");
            stop["error"]["code"] == "node_unreachable"
        });
    }
    // A session that the unreachable host may have is not reported as not found.
    let other = "a".repeat(26);
    cluster.nodes[asked].get(&format!("/v1/sessions/{other}")).refused(503, "node_unreachable");
    cluster.nodes[asked].get("/v1/sessions/aaaaaaaa").refused(404, "not_found");
    cluster.nodes[away].up();
    until("it runs again", || cluster.nodes[asked].session(&id(&made))["state"] == "running");
}

#[test]
fn a_session_that_one_host_cannot_start_runs_on_another() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_session_that_one_host_cannot_start_runs_on_another", "root");
    }
    let mut cluster = Cluster::prepare(3, "");
    // Only on this host do sessions run as the user that may run the program: on the others the start fails.
    let able = 2;
    for (i, node) in cluster.nodes.iter().enumerate().filter(|(i, _)| *i != able) {
        let mut configuration: toml::Table =
            toml::from_str(&std::fs::read_to_string(node.config_file()).unwrap()).unwrap();
        let user = if i == 0 { "daemon" } else { "bin" };
        configuration["runtime"].as_table_mut().unwrap().insert("process_user".to_owned(), user.into());
        node.configure(&toml::to_string(&configuration).unwrap());
    }
    cluster.nodes.iter_mut().for_each(Agent::up);
    cluster.settled();
    let program = tempfile::NamedTempFile::with_prefix("only-nobody").unwrap();
    std::fs::write(program.path(), "#!/bin/sh\nexec sleep 100000\n").unwrap();
    rustix::fs::chmod(program.path(), rustix::fs::Mode::RWXU).unwrap();
    let program = program.into_temp_path();
    assert!(std::process::Command::new("chown").arg("nobody").arg(&program).status().unwrap().success());

    let asked = &cluster.nodes[0];
    let workspace = json!({"name": "w", "command": [program.display().to_string()], "cores": 0.1, "memory_bytes": 64 << 20,
        "env": {"PASSWORD": "{secret}"}});
    asked.post("/v1/workspaces", &workspace).expect(201);
    for key in ["a", "b", "c"] {
        let request = Request::new("POST", "/v1/sessions?wait=running&timeout=60s").header("Idempotency-Key", key);
        let made = asked.client().send(&request.json(&json!({"workspace": "w", "user": "alice"}))).expect(202);
        assert_eq!((&made["state"], &made["node"]), (&json!("running"), &json!(format!("n{able}"))), "{made}");
        let again = persist(asked, key);
        assert_eq!((&again["id"], &again["secret"]), (&made["id"], &made["secret"]), "still the same session");
        let explained = asked.get(&format!("/v1/sessions/{}/explain", id(&made))).expect(200);
        let failed = |verdict: &Value| verdict["refusal"]["reason"] == "start_failed";
        let tried = explained["nodes"].as_array().unwrap().iter().filter(|verdict| failed(verdict)).count();
        assert_eq!(explained["attempt"], tried + 1, "{explained}");
    }
    // No node can start this session, so that no other is asked.
    asked.workspace("none", "true", &json!({"command": ["/no/such"]}));
    let failed = asked.post("/v1/sessions?wait=running", &json!({"workspace": "none", "user": "alice"})).expect(202);
    assert_eq!((&failed["state"], &failed["end_reason"]), (&json!("failed"), &json!("start_failed")), "{failed}");
    assert_eq!(failed["attempt"], 1);
    until("each session exists once", || {
        let mut everywhere: Vec<usize> = cluster
            .nodes
            .iter()
            .map(|node| usize::try_from(node.node()["sessions"].as_u64().unwrap()).unwrap())
            .collect();
        everywhere.sort_unstable();
        everywhere == [0, 0, 3]
    });
}

#[test]
fn a_leader_that_froze_is_no_longer_followed() {
    let cluster = Cluster::start(3, "");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    let frozen = cluster.leader();
    let survivor = cluster.followers()[0];
    until("it has the workspace", || cluster.nodes[survivor].get("/v1/workspaces/w").status == 200);
    cluster.nodes[frozen].freeze(true);
    let made = persist(&cluster.nodes[survivor], "during");
    assert_ne!(made["node"], format!("n{frozen}"));
    cluster.nodes[frozen].freeze(false);
    // The hosts reject the orders of the former leader, and it becomes a follower.
    let asked = persist(&cluster.nodes[frozen], "during");
    assert_eq!(asked["id"], made["id"]);
    cluster.settled();
    assert_ne!(cluster.leader(), frozen);
    let term = |node: &Agent| node.get("/v1/status").expect(200)["cluster"]["term"].as_u64().unwrap();
    assert_eq!(term(&cluster.nodes[frozen]), term(&cluster.nodes[survivor]));
}

#[test]
fn orders_of_a_leader_that_froze_for_half_a_minute_create_nothing_twice() {
    const KEYS: usize = 24;
    let cluster = Cluster::start(3, "dev = { physical_cores = 8, physical_memory = '8GiB' }");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    for node in &cluster.nodes {
        until("everywhere", || node.get("/v1/workspaces/w").status == 200);
    }
    let (frozen, survivors) = (&cluster.nodes[cluster.leader()], cluster.followers());
    std::thread::scope(|scope| {
        // The leader freezes while it handles these requests, and continues with them after the thaw.
        let asked: Vec<_> = (0..KEYS).map(|i| scope.spawn(move || keyed(frozen, &format!("key-{i}")))).collect();
        frozen.freeze(true);
        let thaws = Instant::now() + FROZEN_FOR;
        let made: Vec<Value> =
            (0..KEYS).map(|i| persist(&cluster.nodes[survivors[i % survivors.len()]], &format!("key-{i}"))).collect();
        std::thread::sleep(thaws.saturating_duration_since(Instant::now()));
        frozen.freeze(false);
        for (asked, made) in asked.into_iter().zip(&made) {
            let answer = asked.join().unwrap().expect("it answers after the thaw");
            let told = answer.json();
            match answer.status {
                200 | 202 => assert_eq!(told["id"], made["id"]),
                _ => assert_eq!(told["error"]["retryable"], true, "{told}"),
            }
        }
        for (i, made) in made.iter().enumerate() {
            assert_eq!(persist(frozen, &format!("key-{i}"))["id"], made["id"]);
        }
    });
    cluster.settled();
    until("each session exists once and runs", || {
        let sessions = cluster.nodes[survivors[0]].sessions(false);
        let directories: usize = cluster.nodes.iter().map(|node| node.process_directories().len()).sum();
        directories == KEYS && sessions.len() == KEYS && sessions.iter().all(|session| session["state"] == "running")
    });
}

#[test]
fn a_leader_that_is_stopped_hands_over() {
    let mut cluster = Cluster::start(3, "");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    let first = cluster.leader();
    let survivor = cluster.followers()[0];
    until("it has the workspace", || cluster.nodes[survivor].get("/v1/workspaces/w").status == 200);
    assert!(cluster.nodes[first].sigterm().success());
    persist(&cluster.nodes[survivor], "key");
    assert_ne!(cluster.leader(), first);
}

#[test]
fn requests_during_kills_of_leaders_create_one_session_each() {
    const ROUNDS: usize = 3;
    const EACH: usize = 8;
    let mut cluster = Cluster::start(3, "dev = { physical_cores = 4, physical_memory = '4GiB' }");
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.25}));
    for node in 0..3 {
        until("everywhere", || cluster.nodes[node].get("/v1/workspaces/w").status == 200);
    }
    let mut made = std::collections::BTreeMap::new();
    for round in 0..ROUNDS {
        let killed = cluster.leader();
        let asked = cluster.followers();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..EACH)
                .map(|i| {
                    let agent = &cluster.nodes[asked[i % asked.len()]];
                    scope.spawn(move || (i, id(&persist(agent, &format!("{round}-{i}")))))
                })
                .collect();
            let victim = cluster.nodes[killed].pid();
            rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
            for client in clients {
                let (i, session) = client.join().unwrap();
                made.insert(format!("{round}-{i}"), session);
            }
        });
        cluster.nodes[killed].kill9();
        cluster.nodes[killed].up();
        cluster.settled();
    }
    let asked = &cluster.nodes[0];
    until("each session exists once and runs", || {
        let sessions = asked.sessions(false);
        sessions.len() == ROUNDS * EACH && sessions.iter().all(|session| session["state"] == "running")
    });
    let listed: std::collections::BTreeSet<String> = asked.sessions(false).iter().map(id).collect();
    assert_eq!(listed, made.into_values().collect());
    for node in &cluster.nodes {
        let cores = &node.node()["resources"]["cores"];
        assert!(cores["allocated"].as_f64() <= cores["effective"].as_f64(), "{cores}");
        let own = node.process_directories().len();
        assert_eq!(own, node.node()["sessions"].as_u64().map_or(0, |n| usize::try_from(n).unwrap()), "none twice");
    }
}
