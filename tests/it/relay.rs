//! Real agents on a network that loses, delays and reorders packets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::faults::persist;
use crate::cluster::{FOREVER, id};
use crate::support::agent::{Agent, until};
use crate::support::cluster::{Cluster, Mesh, free_port};
use crate::support::relay::{Relay, Weather};

/// A bad long-distance line.
const BAD: Weather = Weather { lost: 10, delay: Duration::from_millis(40), jitter: Duration::from_millis(10) };
const SEED: u64 = 17;
/// Longer than it takes to notice a missing node.
const SPAN: Duration = Duration::from_secs(20);
/// Sessions created at each node.
const EACH: usize = 4;
/// No node may have been seen as dead for this long before the measurement begins: a node that has just started is not
/// heard yet.
const CALM: Duration = Duration::from_secs(3);

/// Whether a node lists every node, and none as dead. A node with a late heartbeat may be suspect.
fn sees_no_node_dead(node: &Agent) -> bool {
    let list = node.get("/v1/nodes").expect(200);
    let states: Vec<&str> = list["items"].as_array().unwrap().iter().map(|n| n["state"].as_str().unwrap()).collect();
    states.len() == 3 && states.iter().all(|state| ["alive", "suspect"].contains(state))
}

#[test]
fn on_a_lossy_network_no_node_is_taken_for_dead_and_every_node_creates_sessions() {
    let listen: Vec<SocketAddr> = (0..3).map(|_| SocketAddr::from(([127, 0, 0, 1], free_port()))).collect();
    let relay = Relay::between(listen.clone(), BAD, SEED);
    let mesh = |(i, listen): (usize, &SocketAddr)| Mesh {
        listen: listen.to_string(),
        reached: relay.address(i).to_string(),
        finds_itself: false,
    };
    let mut cluster = Cluster::prepare_at(listen.iter().enumerate().map(mesh).collect(), "");
    cluster.nodes.iter_mut().for_each(Agent::up);
    cluster.settled();
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    let mut made = BTreeSet::new();
    for (i, node) in cluster.nodes.iter().enumerate() {
        until("the workspace is everywhere", || node.get("/v1/workspaces/w").status == 200);
        made.extend((0..EACH).map(|n| id(&persist(node, &format!("{i}-{n}")))));
    }
    let mut calm = Instant::now();
    until("every node is heard", || {
        if !cluster.nodes.iter().all(sees_no_node_dead) {
            calm = Instant::now();
        }
        calm.elapsed() > CALM
    });
    let begun = Instant::now();
    while begun.elapsed() < SPAN {
        for (i, node) in cluster.nodes.iter().enumerate() {
            assert!(sees_no_node_dead(node), "as n{i} sees it: {}", node.get("/v1/nodes").text());
        }
    }
    assert_eq!(made.len(), 3 * EACH);
    for node in &cluster.nodes {
        until("every session is listed once and runs", || {
            let sessions = node.sessions(false);
            sessions.len() == made.len()
                && sessions.iter().all(|session| session["state"] == "running" && made.contains(&id(session)))
        });
    }
}
