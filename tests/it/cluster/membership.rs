//! Which nodes are in a cluster, and which are kept out of it.

use serde_json::{Value, json};

use super::faults::persist;
use super::{FOREVER, id};
use crate::support::agent::{Agent, until};
use crate::support::cluster::{Cluster, write_token};

/// The state that one node sees another in.
fn state(asked: &Agent, name: &str) -> String {
    let nodes = asked.get("/v1/nodes").expect(200);
    let found = nodes["items"].as_array().unwrap().iter().find(|node| node["name"] == name).cloned();
    found.map_or_else(String::new, |node| node["state"].as_str().unwrap().to_owned())
}

#[test]
fn a_stopped_node_has_left_and_a_killed_node_is_unknown() {
    let mut cluster = Cluster::start(3, "");
    let [leaves, vanishes] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    let asked = cluster.leader();
    assert!(cluster.nodes[leaves].sigterm().success());
    until("it left", || state(&cluster.nodes[asked], &format!("n{leaves}")) == "left");
    cluster.nodes[vanishes].kill9();
    until("it is suspect", || state(&cluster.nodes[asked], &format!("n{vanishes}")) == "suspect");
    until("it is unknown", || state(&cluster.nodes[asked], &format!("n{vanishes}")) == "unknown");
    cluster.nodes[leaves].up();
    cluster.nodes[vanishes].up();
    cluster.settled();
}

#[test]
fn a_removed_node_is_forgotten_by_all() {
    let mut cluster = Cluster::start(3, "");
    let [asked, gone] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    let name = format!("n{gone}");
    let refused = cluster.nodes[asked].cli(&["node", "rm", &name]).failed(3);
    assert!(refused.contains("is alive"), "{refused}");
    cluster.nodes[gone].workspace("w", "exec sleep 100000", &json!({"constraints": {"here": "yes"}}));
    cluster.nodes[gone].patch(&format!("/v1/nodes/{name}"), &json!({"labels": {"here": "yes"}})).expect(200);
    cluster.nodes[asked].create("w", "alice").expect(202);
    cluster.nodes[gone].kill9();
    until("it can be removed", || cluster.nodes[asked].cli(&["node", "rm", &name]).code == 0);
    for i in (0..3).filter(|i| *i != gone) {
        let list = || cluster.nodes[i].get("/v1/nodes").expect(200)["items"].as_array().unwrap().len();
        until("it is no longer listed", || list() == 2);
        until("its sessions are no longer listed", || cluster.nodes[i].sessions(false).is_empty());
        assert_eq!(cluster.nodes[i].get(&format!("/v1/nodes/{name}")).status, 404);
    }
    cluster.nodes[gone].up();
    cluster.settled();
    until("it is back with its session", || cluster.nodes[asked].sessions(false).len() == 1);
}

#[test]
fn a_session_whose_host_will_not_return_is_forgotten_and_its_key_is_free() {
    let mut cluster = Cluster::start(3, "");
    let [asked, gone] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    cluster.nodes[gone].workspace("w", FOREVER, &json!({"cores": 0.1}));
    for node in &cluster.nodes {
        until("the workspace is everywhere", || node.get("/v1/workspaces/w").status == 200);
    }
    // The sessions are spread: one on each node.
    let made: Vec<Value> = (0..3).map(|key| persist(&cluster.nodes[asked], &format!("key-{key}"))).collect();
    let name = format!("n{gone}");
    let key = made.iter().position(|session| session["node"] == json!(name)).expect("it has one");
    let lost = id(&made[key]);
    let agent = &cluster.nodes[asked];
    for node in &cluster.nodes {
        until("every node knows it", || node.sessions(false).iter().any(|session| id(session) == lost));
    }
    let refused = agent.cli(&["session", "rm", "--forget", &lost]).failed(3);
    assert!(refused.contains("is alive"), "{refused}");
    cluster.nodes[gone].kill9();
    let agent = &cluster.nodes[asked];
    agent.cli(&["session", "rm", "--forget", "--no-wait", &lost]).failed(2);
    until("it can be forgotten", || agent.cli(&["session", "rm", "--forget", &lost]).code == 0);
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        until("it is no longer listed", || node.sessions(false).iter().all(|session| id(session) != lost));
        assert_eq!(node.sessions(false).len(), 2, "the other sessions are listed");
    }
    // The id follows from the key, so a new request with the same key creates a new session with the same id.
    let anew = persist(&cluster.nodes[asked], &format!("key-{key}"));
    assert_eq!((id(&anew), anew["node"] == json!(name)), (lost.clone(), false));
    cluster.nodes[gone].up();
    cluster.settled();
    until("it exists once, on whatever node", || {
        cluster.nodes.iter().filter(|node| node.process_directories().contains(&lost)).count() == 1
    });
}

#[test]
fn the_nodes_of_a_stopped_cluster_find_each_other_again_without_seeds() {
    let mut cluster = Cluster::start(3, "");
    let mesh = cluster.mesh(0);
    for node in &mut cluster.nodes {
        node.sigterm();
        let configuration = std::fs::read_to_string(node.config_file()).unwrap();
        let mut table: toml::Table = toml::from_str(&configuration).unwrap();
        table["cluster"].as_table_mut().unwrap().insert("seeds".to_owned(), toml::Value::Array(Vec::new()));
        node.configure(&toml::to_string(&table).unwrap());
    }
    assert!(!std::fs::read_to_string(cluster.nodes[1].config_file()).unwrap().contains(&mesh));
    cluster.nodes.iter_mut().for_each(Agent::up);
    cluster.settled();
}

#[test]
fn nodes_with_another_token_or_another_cluster_stay_out() {
    let cluster = Cluster::start(2, "");
    let seeds = format!("seeds = ['{}', '{}']", cluster.mesh(0), cluster.mesh(1));
    let mut strangers = Vec::new();
    for (token, name) in [
        ("Zt8mPq1rLc4vXs7kWy0hBd3fNg6jAe9uTo2iRb5nQxE", cluster.name.clone()),
        (crate::support::cluster::TOKEN, format!("{}-other", cluster.name)),
    ] {
        let agent = Agent::prepare("");
        write_token(&agent.directory().join("token"), token);
        let configuration = agent.configuration(&format!(
            "node = {{ name = 'stranger' }}\ncluster = {{ name = '{name}', listen = '127.0.0.1:0', {seeds} }}"
        ));
        agent.configure(&configuration);
        strangers.push(agent);
    }
    for stranger in &mut strangers {
        stranger.up();
        until("it says that it is alone", || stranger.node()["conditions"].to_string().contains("alone_with_seeds"));
        until("it says why", || stranger.log().contains("another token"));
        assert_eq!(stranger.get("/v1/nodes").expect(200)["items"].as_array().unwrap().len(), 1);
    }
    for node in &cluster.nodes {
        assert_eq!(node.get("/v1/nodes").expect(200)["items"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn two_nodes_with_one_id_are_noticed_and_admit_nothing() {
    let mut cluster = Cluster::start(2, "");
    // A copy of the data directory on the same machine: only the mesh can detect it.
    cluster.nodes[1].sigterm();
    let twin = Agent::prepare("");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(cluster.nodes[1].data_dir()).arg(twin.data_dir()).status();
    assert!(copied.unwrap().success());
    cluster.nodes[1].up();
    write_token(&twin.directory().join("token"), crate::support::cluster::TOKEN);
    let configuration = twin.configuration(&format!(
        "node = {{ name = 'twin' }}\ncluster = {{ name = '{}', listen = '127.0.0.1:0', seeds = ['{}', '{}'] }}",
        cluster.name,
        cluster.mesh(0),
        cluster.mesh(1)
    ));
    twin.configure(&configuration);
    let mut twin = twin;
    twin.up();
    until("one of them shows the condition", || {
        [&twin, &cluster.nodes[1]]
            .iter()
            .any(|node| node.node()["conditions"].to_string().contains("duplicate_node_id"))
    });
    // The one that stays recovers without a restart.
    assert!(twin.sigterm().success());
    std::fs::remove_dir_all(twin.data_dir()).unwrap();
    until("the condition ends with its cause", || {
        !cluster.nodes[1].node()["conditions"].to_string().contains("duplicate_node_id")
    });
    cluster.settled();
}

#[test]
fn in_quorum_mode_a_minority_places_nothing() {
    let mut cluster = Cluster::prepare(3, "cluster = { mode = 'quorum', expected_nodes = 3 }");
    cluster.nodes[0].up();
    let alone = &cluster.nodes[0];
    alone
        .post("/v1/workspaces", &json!({"name": "w", "command": ["true"], "cores": 1, "memory_bytes": 64 << 20}))
        .refused(503, "no_leader");
    cluster.nodes[1].up();
    cluster.settled();
    until("the workspace is stored", || {
        let workspace = json!({"name": "w", "command": ["sleep", "1000"], "cores": 0.1, "memory_bytes": 64 << 20});
        [201, 409].contains(&cluster.nodes[0].post("/v1/workspaces", &workspace).status)
    });
    until("two of three place sessions", || cluster.nodes[0].create("w", "alice").status == 202);
    cluster.nodes[2].up();
    cluster.settled();
    let leader = cluster.leader();
    for i in (0..3).filter(|i| *i != leader) {
        cluster.nodes[i].kill9();
    }
    until("its lease is over", || cluster.nodes[leader].create("w", "alice").status == 503);
    cluster.nodes[leader].create("w", "alice").refused(503, "no_leader");
    assert_eq!(cluster.nodes[leader].get("/v1/nodes").expect(200)["items"].as_array().unwrap().len(), 3);
    cluster.nodes.iter_mut().filter(|node| !node.is_running()).for_each(Agent::up);
    cluster.settled();
    until("they place sessions again", || cluster.nodes[0].create("w", "alice").status == 202);
}
