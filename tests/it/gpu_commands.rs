//! `ostler gpu` and `/v1/gpus`, on the devices of `[dev]`: any node shows and changes the GPUs of every node.

use std::fs;

use serde_json::{Value, json};

use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::http::Request;

const TWO_GPUS: &str = "dev = { physical_cores = 6, physical_memory = '6GiB', physical_gpus = 2 }";
const FIRST: &str = "GPU-dev-0000";
const SECOND: &str = "GPU-dev-0001";

/// The GPUs of the answer: the UUID of each, and whether it is cordoned.
fn listed(answer: &Value) -> Vec<(String, bool)> {
    let gpus = answer["items"].as_array().unwrap().iter();
    gpus.map(|gpu| (gpu["uuid"].as_str().unwrap().to_owned(), gpu["cordoned"].as_bool().unwrap())).collect()
}

#[test]
fn a_gpu_is_cordoned_until_it_is_uncordoned() {
    let agent = Agent::start(TWO_GPUS);
    let path = format!("/v1/gpus/{SECOND}/cordon");
    for _ in 0..2 {
        let gpu = agent.client().send(&Request::new("POST", &path)).expect(200);
        assert_eq!((&gpu["uuid"], &gpu["node"], &gpu["cordoned"]), (&json!(SECOND), &json!("one"), &json!(true)));
    }
    let both = |cordoned| vec![(FIRST.to_owned(), false), (SECOND.to_owned(), cordoned)];
    assert_eq!(listed(&agent.get("/v1/gpus").expect(200)), both(true));
    assert_eq!(agent.get(&format!("/v1/gpus/{SECOND}")).expect(200)["cordoned"], true);
    assert!(agent.cli(&["gpu", "ls"]).ok().lines().nth(2).unwrap().contains("cordoned"));
    assert_eq!(agent.delete(&path).expect(200)["cordoned"], false);
    assert_eq!(listed(&agent.get("/v1/gpus?node=self").expect(200)), both(false));

    assert_eq!(agent.cli(&["gpu", "cordon", FIRST, SECOND]).ok(), format!("{FIRST}\n{SECOND}\n"));
    assert_eq!(agent.cli(&["gpu", "uncordon", SECOND, "-o", "json"]).json()["cordoned"], false);
    assert_eq!(listed(&agent.get("/v1/gpus").expect(200)), [(FIRST.to_owned(), true), (SECOND.to_owned(), false)]);
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("kind=gpu_cordoned") && line.contains(FIRST)).unwrap();
    assert!(line.contains("via=one"), "{line}");
}

#[test]
fn a_gpu_that_is_not_there_or_not_the_only_one_is_refused() {
    let agent = Agent::start(TWO_GPUS);
    for path in ["/v1/gpus/GPU-9", "/v1/gpus/GPU-9/cordon"] {
        agent.delete(path).refused(404, "not_found");
    }
    let error = agent.delete("/v1/gpus/GPU-dev/cordon").refused(409, "conflict");
    let told = "`GPU-dev` is 2 GPUs: GPU-dev-0000 on one and GPU-dev-0001 on one; name one by its whole UUID";
    assert_eq!(error["message"], told);
    agent.get("/v1/gpus/GPU-dev").refused(409, "conflict");
    // Only a lost GPU can be forgotten.
    let told = agent.cli(&["gpu", "forget", SECOND, "GPU-9"]).failed(3);
    assert!(told.contains("GPU-dev-0001 is present") && told.contains("ostler gpu ls"), "{told}");
    agent.get("/v1/gpus/a%20b").refused(400, "invalid");
    agent.get("/v1/gpus?state=broken").refused(400, "invalid");
    assert_eq!(agent.get("/v1/gpus?node=elsewhere").expect(200)["items"], json!([]));
    assert_eq!(agent.get("/v1/gpus?state=lost").expect(200)["items"], json!([]));
}

#[test]
fn only_an_administrator_changes_gpus() {
    let agent = Agent::start(TWO_GPUS);
    let cordon = format!("/v1/gpus/{FIRST}/cordon");
    for (role, status) in [("read", 403), ("operate", 403), ("admin", 200)] {
        let client = agent.tcp(Some(&agent.token(role)));
        for method in ["POST", "DELETE"] {
            assert_eq!(client.send(&Request::new(method, &cordon)).status, status, "{role} {method}");
        }
        assert_eq!(client.get(&format!("/v1/gpus/{FIRST}")).status, 200, "{role}");
    }
}

#[test]
fn a_gpu_shows_the_sessions_that_hold_it() {
    let agent = Agent::start(TWO_GPUS);
    agent.workspace("cuda", "exec sleep 600", &json!({"gpus": 1, "gpu_capabilities": ["compute", "compat32"]}));
    let made = agent.cli(&["session", "create", "cuda", "--user", "alice"]).ok();
    let held = made.lines().find_map(|line| line.strip_prefix("  GPU ")).unwrap().to_owned();
    let id = made.lines().next().unwrap();
    let shown = agent.cli(&["gpu", "show", &held]).ok();
    assert!(shown.contains(&format!("sessions         {} (alice)", &id[..8])), "{shown}");
    assert!(shown.contains("memory           -\n") && shown.contains("slots            1 of 1\n"), "{shown}");
    let free = if held == FIRST { SECOND } else { FIRST };
    assert!(agent.cli(&["gpu", "show", free]).ok().contains("sessions         -"));
    agent.cli(&["session", "rm", id]).ok();
    until("nobody holds it", || agent.cli(&["gpu", "show", &held]).ok().contains("sessions         -"));
}

#[test]
fn every_node_changes_the_gpus_of_every_node() {
    let mut cluster = Cluster::start(3, "");
    // Not the leader, so that the leader is still there once this node is killed.
    let has = cluster.followers()[0];
    let text = fs::read_to_string(cluster.nodes[has].config_file()).unwrap();
    cluster.nodes[has].configure(&format!("{text}\n[dev]\nphysical_gpus = 2\n"));
    cluster.nodes[has].restart();
    cluster.settled();
    let (host, path) = (format!("n{has}"), format!("/v1/gpus/{SECOND}/cordon"));
    for (asked, node) in cluster.nodes.iter().enumerate() {
        until("the GPUs are known", || listed(&node.get("/v1/gpus").expect(200)).len() == 2);
        let answer = node.client().send(&Request::new("POST", &path));
        assert_eq!(answer.header("x-ostler-served-by"), (asked != has).then_some(host.as_str()));
        assert_eq!(answer.expect(200)["cordoned"], true);
        // The leader hears of it, and answers for all.
        let listed = || node.get(&format!("/v1/gpus?node={host}")).expect(200)["items"][1]["cordoned"].clone();
        until("the leader knows of it", || listed() == true);
        assert_eq!(node.delete(&path).expect(200)["cordoned"], false);
    }
    assert!(cluster.nodes[has].log().contains("kind=gpu_cordoned"));
    // Its GPUs are still known while the node is away.
    cluster.nodes[has].kill9();
    let answer = cluster.nodes[cluster.leader()].client().send(&Request::new("POST", &path));
    assert_eq!(answer.status, 503, "{}", answer.text());
    let code = answer.json()["error"]["code"].clone();
    assert!(code == "node_unreachable" || code == "outcome_unknown", "{code}");
}
