//! What keeps nodes from reaching each other, on real agents, each on its own host: addresses of one family only, a
//! path too narrow for QUIC, and a clock that was never set.

use crate::support::agent::{Agent, until};
use crate::support::foreign_host;
use crate::support::netns::{Hosts, MESH_PORT};

/// Listeners on every address of the host.
const EVERY_ADDRESS: &str = "cluster = { listen = '[::]:7000' }\nhttp = { status_listen = '[::]:7482' }";

/// Whether the host reaches its own status listener under this address.
fn answers(hosts: &Hosts, host: usize, address: &str) -> bool {
    hosts.network.inside(host, || std::net::TcpStream::connect(address).is_ok())
}

/// The message of a condition, or nothing if it does not hold.
fn condition(agent: &Agent, kind: &str) -> String {
    let node = agent.node();
    let conditions = node["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["kind"] == kind);
    found.map(|condition| condition["message"].as_str().unwrap().to_owned()).unwrap_or_default()
}

#[test]
fn every_address_means_ipv4_too_whatever_bindv6only_says() {
    let name = "every_address_means_ipv4_too_whatever_bindv6only_says";
    let Some(mut hosts) = Hosts::prepare(name, 2, EVERY_ADDRESS) else { return };
    for host in 0..2 {
        hosts.network.set(host, "net.ipv6.bindv6only", "1");
    }
    hosts.up();
    for host in 0..2 {
        assert!(answers(&hosts, host, "127.0.0.1:7482"), "over IPv4");
        assert!(answers(&hosts, host, "[::1]:7482"), "over IPv6");
    }
}

#[test]
fn a_host_with_ipv6_switched_off_listens_to_ipv4() {
    let name = "a_host_with_ipv6_switched_off_listens_to_ipv4";
    let Some(mut hosts) = Hosts::prepare(name, 2, EVERY_ADDRESS) else { return };
    for interface in ["all", "default", "lo"] {
        hosts.network.set(0, &format!("net.ipv6.conf.{interface}.disable_ipv6"), "1");
    }
    hosts.up();
    assert!(answers(&hosts, 0, "127.0.0.1:7482"));
}

#[test]
fn a_kernel_without_ipv6_gets_ipv4_and_a_warning() {
    let name = "a_kernel_without_ipv6_gets_ipv4_and_a_warning";
    let Some(mut hosts) = Hosts::prepare(name, 2, EVERY_ADDRESS) else { return };
    if !foreign_host::without_ipv6(name, &mut hosts.cluster.nodes[0]) {
        return;
    }
    hosts.up();
    assert!(answers(&hosts, 0, "127.0.0.1:7482"));
    let log = hosts.cluster.nodes[0].log();
    for key in ["cluster.listen", "http.status_listen"] {
        let warned = |line: &&str| line.contains("has no IPv6: listening on IPv4 only") && line.contains(key);
        assert_eq!(log.lines().filter(warned).count(), 1, "{key}: {log}");
    }
}

#[test]
fn a_path_too_narrow_for_quic_is_not_taken_for_a_dead_node() {
    let name = "a_path_too_narrow_for_quic_is_not_taken_for_a_dead_node";
    let Some(mut hosts) = Hosts::prepare(name, 3, "") else { return };
    // The first host's own interface is narrow; the second's datagrams vanish behind its interface; the third is dead.
    hosts.network.narrow(0, 1100);
    for node in &mut hosts.cluster.nodes[..2] {
        node.up();
    }
    for (host, other) in [(0, 1), (1, 0)] {
        let node = &hosts.cluster.nodes[host];
        let address = hosts.cluster.mesh(other);
        let expected = format!("the path to {address} carries only datagrams of less than 1200 bytes; raise its MTU");
        until("the condition names the path", || condition(node, "mesh_failing").contains(&expected));
        assert!(node.log().contains(&expected), "{}", node.log());
        assert!(node.cli(&["node", "ls"]).ok().contains("mesh_failing"));
    }
    let (node, dead) = (&hosts.cluster.nodes[1], hosts.cluster.mesh(2));
    until("a dead node does not answer", || {
        condition(node, "alone_with_seeds").contains(&format!("{dead}: no answer"))
    });
    assert!(!condition(node, "mesh_failing").contains(&dead));
    hosts.network.narrow(0, 1500);
    hosts.cluster.settled();
    for node in &hosts.cluster.nodes[..2] {
        until("the condition ends", || condition(node, "mesh_failing").is_empty());
    }
}

#[test]
fn a_clock_that_was_never_set_is_named_on_both_sides() {
    let name = "a_clock_that_was_never_set_is_named_on_both_sides";
    let Some(mut hosts) = Hosts::prepare(name, 2, "") else { return };
    if !foreign_host::with_clock_never_set(name, &mut hosts.cluster.nodes[1]) {
        return;
    }
    for node in &mut hosts.cluster.nodes {
        node.up();
    }
    let sides = [("the clock of that host shows 19", 0), ("the clock of this host shows 19", 1)];
    for (expected, host) in sides {
        let node = &hosts.cluster.nodes[host];
        until("the condition names the clock", || condition(node, "mesh_failing").contains(expected));
        assert!(node.log().contains(expected), "{}", node.log());
        assert!(!node.log().contains("another token"), "{}", node.log());
    }
    let both = condition(&hosts.cluster.nodes[0], "mesh_failing");
    assert!(both.contains("and the clock of this host 20"), "{both}");
    assert!(both.contains(&format!(":{MESH_PORT}")), "{both}");
}
