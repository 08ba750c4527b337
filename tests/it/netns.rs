//! Real agents, each on its own host. Leaders die and freeze, and the network is cut: into two sides, in one direction,
//! and with one host that reaches both sides.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::faults::{keyed, persist};
use crate::cluster::{FOREVER, id};
use crate::support::agent::until;
use crate::support::cluster::Cluster;
use crate::support::netns::Hosts;

/// After a heal, all nodes follow one leader within this.
const ONE_LEADER_WITHIN: Duration = Duration::from_secs(10);
/// After a heal, only one session of a key is left within this.
const ONE_SESSION_WITHIN: Duration = Duration::from_secs(30);
/// How long the test watches a lasting cut.
const SPAN: Duration = Duration::from_secs(15);
/// Most terms that may begin in that time.
const MOST_CHANGES: u64 = 2;

/// Adds a workspace and waits until every node has it.
fn workspace(cluster: &Cluster) {
    cluster.nodes[0].workspace("w", FOREVER, &json!({"cores": 0.1}));
    for node in &cluster.nodes {
        until("the workspace is everywhere", || node.get("/v1/workspaces/w").status == 200);
    }
}

/// Waits until these nodes all follow one of themselves.
fn elected(cluster: &Cluster, side: &[usize]) {
    let names: BTreeSet<String> = side.iter().map(|i| format!("n{i}")).collect();
    until("a leader of this side", || {
        let followed: BTreeSet<String> = side.iter().filter_map(|i| cluster.followed_by(*i)).collect();
        followed.len() == 1 && followed.is_subset(&names)
    });
}

/// The ballot that this node follows: term first, then node.
fn ballot(cluster: &Cluster, node: usize) -> (u64, String) {
    let status = cluster.nodes[node].get("/v1/status").expect(200);
    (status["cluster"]["term"].as_u64().unwrap(), status["cluster"]["leader"]["id"].as_str().unwrap().to_owned())
}

#[test]
fn sessions_of_both_sides_of_a_cut_remain_and_one_key_is_one_session() {
    let name = "sessions_of_both_sides_of_a_cut_remain_and_one_key_is_one_session";
    let Some(hosts) = Hosts::start(name, 3, "") else { return };
    let cluster = &hosts.cluster;
    workspace(cluster);
    let alone = cluster.leader();
    let together = cluster.followers();
    let asked = together[0];
    let mut made = BTreeSet::from([id(&persist(&cluster.nodes[alone], "before"))]);

    hosts.network.split(&[alone], &together);
    elected(cluster, &together);
    let there = persist(&cluster.nodes[asked], "both");
    made.insert(id(&persist(&cluster.nodes[asked], "there")));
    elected(cluster, &[alone]);
    made.insert(id(&persist(&cluster.nodes[alone], "here")));
    let here = persist(&cluster.nodes[alone], "both");
    assert_eq!(here["id"], there["id"], "one key");
    assert_ne!(here["node"], there["node"], "two sessions, since neither side knows of the other's");
    made.insert(id(&here));

    let ballots = [ballot(cluster, asked), ballot(cluster, alone)];
    hosts.network.heal();
    let healed = Instant::now();
    elected(cluster, &[0, 1, 2]);
    assert!(healed.elapsed() < ONE_LEADER_WITHIN, "one leader after {:?}", healed.elapsed());
    let both = id(&here);
    until("one of the two is removed", || {
        cluster.nodes.iter().filter(|node| node.process_directories().contains(&both)).count() == 1
    });
    assert!(healed.elapsed() < ONE_SESSION_WITHIN, "one session after {:?}", healed.elapsed());
    for node in &cluster.nodes {
        until("every session is listed once and runs", || {
            let sessions = node.sessions(false);
            sessions.len() == made.len()
                && sessions.iter().all(|session| session["state"] == "running" && made.contains(&id(session)))
        });
    }
    // The later of two decisions stays.
    let [kept, lost] = if ballots[0] > ballots[1] { [&there, &here] } else { [&here, &there] };
    assert_eq!(cluster.nodes[asked].session(&both)["node"], kept["node"], "{ballots:?}");
    let lost = cluster.nodes.iter().find(|node| node.node()["name"] == lost["node"]).unwrap();
    assert!(lost.log().contains("reason=\"duplicate\""), "its log says why it removed its session");
    cluster.settled();
}

#[test]
fn lasting_cuts_do_not_change_the_leader_repeatedly() {
    let Some(hosts) = Hosts::start("lasting_cuts_do_not_change_the_leader_repeatedly", 5, "") else { return };
    let cluster = &hosts.cluster;
    workspace(cluster);
    let mut made = BTreeSet::new();
    let leader = cluster.leader();
    let deaf = cluster.followers()[0];
    hosts.network.cut(leader, deaf);
    made.append(&mut look_on(cluster, "one-way"));
    // The leader learns of the host that it does not hear through the other nodes.
    made.extend(cluster.nodes.iter().enumerate().map(|(i, node)| id(&persist(node, &format!("one-way-{i}")))));
    hosts.network.heal();
    cluster.settled();

    // One host reaches both sides, and the leader is on one side.
    let leader = cluster.leader();
    let [a, _, c, d] = cluster.followers()[..] else { panic!("five nodes have four followers") };
    hosts.network.split(&[leader, a], &[c, d]);
    made.append(&mut look_on(cluster, "bridge"));
    // The host in the middle passes requests on.
    made.extend(cluster.nodes.iter().enumerate().map(|(i, node)| id(&persist(node, &format!("bridge-{i}")))));
    hosts.network.heal();
    cluster.settled();
    for node in &cluster.nodes {
        until("no acknowledged session is lost", || {
            let listed: BTreeSet<String> = node.sessions(false).iter().map(id).collect();
            made.is_subset(&listed)
        });
    }
}

#[test]
fn hosts_keep_working_while_leaders_die_and_freeze() {
    const ROUNDS: usize = 4;
    let Some(mut hosts) = Hosts::start("hosts_keep_working_while_leaders_die_and_freeze", 5, "") else { return };
    let cluster = &mut hosts.cluster;
    workspace(cluster);
    let mut made = BTreeSet::new();
    for round in 0..ROUNDS {
        let (leader, survivors) = (cluster.leader(), cluster.followers());
        let freezes = round % 2 == 1;
        if freezes {
            cluster.nodes[leader].freeze(true);
        } else {
            cluster.nodes[leader].kill9();
        }
        let asked = survivors.iter().map(|i| id(&persist(&cluster.nodes[*i], &format!("{round}-{i}"))));
        made.extend(asked);
        elected(cluster, &survivors);
        if freezes {
            cluster.nodes[leader].freeze(false);
        } else {
            cluster.nodes[leader].up();
        }
        cluster.settled();
        assert_ne!(cluster.leader(), leader, "the returned leader is a follower");
    }
    assert_eq!(made.len(), ROUNDS * cluster.followers().len(), "each key is a session");
    for node in &cluster.nodes {
        until("every session is listed once and runs", || {
            let sessions = node.sessions(false);
            sessions.len() == made.len()
                && sessions.iter().all(|session| session["state"] == "running" && made.contains(&id(session)))
        });
    }
    until("each session exists once", || {
        cluster.nodes.iter().map(|node| node.process_directories().len()).sum::<usize>() == made.len()
    });
}

/// Sends requests to every node for [`SPAN`]: each answer must be a success or retryable. Returns the created sessions.
fn look_on(cluster: &Cluster, cut: &str) -> BTreeSet<String> {
    let nodes = 0..cluster.nodes.len();
    let term = || nodes.clone().map(|i| cluster.term(i)).max().unwrap();
    let (before, begun) = (term(), Instant::now());
    let mut made = BTreeSet::new();
    while begun.elapsed() < SPAN {
        for (i, node) in cluster.nodes.iter().enumerate() {
            let answer = keyed(node, &format!("{cut}-{i}")).unwrap();
            if answer.status == 200 || answer.status == 202 {
                made.insert(id(&answer.json()));
            } else {
                let refusal = answer.json();
                assert_eq!(refusal["error"]["retryable"], true, "at n{i}: {refusal}");
            }
            assert_eq!(node.get("/v1/nodes").expect(200)["items"].as_array().unwrap().len(), nodes.len());
        }
    }
    let began = term() - before;
    assert!(began <= MOST_CHANGES, "{began} terms began");
    made
}

#[test]
fn in_quorum_mode_a_cut_off_node_places_nothing_and_the_others_continue() {
    let name = "in_quorum_mode_a_cut_off_node_places_nothing_and_the_others_continue";
    let Some(hosts) = Hosts::start(name, 3, "cluster = { mode = 'quorum', expected_nodes = 3 }") else { return };
    let cluster = &hosts.cluster;
    workspace(cluster);
    let alone = cluster.leader();
    let together = cluster.followers();
    hosts.network.split(&[alone], &together);
    until("it is no longer leader", || cluster.followed_by(alone).is_none());
    cluster.nodes[alone].create("w", "alice").refused(503, "no_leader");
    elected(cluster, &together);
    // The host that is cut off may know the caller's key, so the request waits. Without a key it is a new session.
    let asked = &cluster.nodes[together[0]];
    let waits = keyed(asked, "key").unwrap().refused(503, "no_leader");
    assert_eq!(waits["retryable"], true, "{waits}");
    until("a session", || asked.create("w", "alice").status == 202);
    hosts.network.heal();
    cluster.settled();
    persist(&cluster.nodes[alone], "key");
}
