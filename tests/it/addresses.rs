//! Addresses that change while agents run, each on its own host.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::agent::{Agent, until};
use crate::support::netns::Hosts;

/// After a change, every node reaches the host again within this. An agent finds its new address within
/// some rounds of gossip; the rest is room for a busy machine.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(20);

/// Waits until each node can call each other one.
fn all_reach_each_other(hosts: &Hosts) {
    for node in &hosts.cluster.nodes {
        for other in 0..hosts.cluster.nodes.len() {
            let path = format!("/v1/nodes/n{other}");
            until("every node changes a setting of every node", || {
                node.patch(&path, &json!({"labels": {"reached": "yes"}})).status == 200
            });
        }
    }
}

#[test]
fn an_address_that_changes_is_followed() {
    let name = "an_address_that_changes_is_followed";
    let Some(mut hosts) = Hosts::prepare_finding(name, 3, "") else { return };
    hosts.up();
    for moved in [hosts.cluster.leader(), hosts.cluster.followers()[0]] {
        let changed = Instant::now();
        hosts.network.move_to(moved, &format!("10.77.0.{}", 100 + moved));
        let (node, address) = (&hosts.cluster.nodes[moved], format!("to=10.77.0.{}:7000", 100 + moved));
        until("it tells its new address", || node.log().contains(&address));
        all_reach_each_other(&hosts);
        hosts.cluster.settled();
        assert!(changed.elapsed() < FOLLOWED_WITHIN, "followed after {:?}", changed.elapsed());
        for node in &hosts.cluster.nodes {
            let conditions = node.node()["conditions"].to_string();
            assert!(!conditions.contains("duplicate_node_id") && !conditions.contains("alone"), "{conditions}");
        }
    }
}

#[test]
fn a_network_that_comes_up_after_the_agent_is_used() {
    let name = "a_network_that_comes_up_after_the_agent_is_used";
    let Some(mut hosts) = Hosts::prepare_finding(name, 2, "") else { return };
    // The late host knows no other and has no default route: others find it, and must be able to dial it.
    let late = &hosts.cluster.nodes[0];
    let mut table: toml::Table = toml::from_str(&std::fs::read_to_string(late.config_file()).unwrap()).unwrap();
    table["cluster"].as_table_mut().unwrap().insert("seeds".to_owned(), toml::Value::Array(Vec::new()));
    late.configure(&toml::to_string(&table).unwrap());
    hosts.network.link(0, false);
    hosts.cluster.nodes.iter_mut().for_each(Agent::up);
    hosts.network.link(0, true);
    let up = Instant::now();
    hosts.cluster.settled();
    let late = &hosts.cluster.nodes[0];
    until("it tells its address", || late.log().contains("from=127.0.0.1:7000 to=10.77.0.1:7000"));
    all_reach_each_other(&hosts);
    assert!(up.elapsed() < FOLLOWED_WITHIN, "used after {:?}", up.elapsed());
}
