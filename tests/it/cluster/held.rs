//! Answers that wait for a session on another node, while the connection to that node fails.

use std::thread;

use serde_json::json;

use super::faults::held_to;
use super::id;
use crate::support::agent::until;
use crate::support::cluster::Cluster;
use crate::support::netns::Hosts;

#[test]
fn a_held_answer_waits_until_the_host_is_back() {
    let mut cluster = Cluster::start(3, "");
    let [asked, host] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    held_to(&cluster, "w", host);
    let session = id(&cluster.nodes[asked].running("w", "alice"));
    let held = |wait: &str| {
        let (client, path) = (cluster.nodes[asked].client(), format!("/v1/sessions/{session}{wait}"));
        thread::spawn(move || client.get(&path).expect(200))
    };
    let stopped = held("?wait=stopped&timeout=80s");
    let in_vain = held("?wait=stopped&timeout=5s");
    cluster.nodes[host].kill9();
    until("the host is silent", || !cluster.alive(asked).contains(&format!("n{host}")));
    assert_ne!(in_vain.join().unwrap()["state"], "stopped");
    assert!(!stopped.is_finished(), "the answer waits for the host");
    cluster.nodes[host].up();
    cluster.nodes[host].client().command(&format!("/v1/sessions/{session}/stop")).expect(202);
    assert_eq!(stopped.join().unwrap()["state"], "stopped");
}

#[test]
fn a_held_answer_ends_when_the_host_is_removed() {
    let mut cluster = Cluster::start(3, "");
    let [asked, host] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    held_to(&cluster, "w", host);
    let session = id(&cluster.nodes[asked].running("w", "alice"));
    let client = cluster.nodes[asked].client();
    let path = format!("/v1/sessions/{session}?wait=stopped&timeout=600s");
    let held = thread::spawn(move || client.get(&path).expect(200));
    cluster.nodes[host].kill9();
    let name = format!("n{host}");
    until("the host is removed", || cluster.nodes[asked].cli(&["node", "rm", &name]).code == 0);
    until("the answer comes", || held.is_finished());
    assert_ne!(held.join().unwrap()["state"], "stopped");
    cluster.nodes[host].up();
    cluster.settled();
}

/// As on a cluster that is new, where not all nodes are connected: the leader reaches the host, and the node that was
/// asked does not.
#[test]
fn a_created_session_is_awaited_at_a_node_that_does_not_reach_its_host() {
    let name = "a_created_session_is_awaited_at_a_node_that_does_not_reach_its_host";
    let Some(hosts) = Hosts::start(name, 3, "") else { return };
    let cluster = &hosts.cluster;
    let [asked, host] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    held_to(cluster, "w", host);
    hosts.network.split(&[asked], &[host]);
    let wanted = json!({"workspace": "w", "user": "alice"});
    let made = cluster.nodes[asked].post("/v1/sessions?wait=running&timeout=60s", &wanted).expect(202);
    assert_eq!(made["state"], "running", "the leader knows it: {made}");
}
