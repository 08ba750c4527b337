//! Every node has the catalogue and the API tokens.

use serde_json::{Value, json};

use crate::support::agent::until;
use crate::support::cluster::Cluster;

/// The names of the workspaces that a node lists from its own copy.
fn workspaces(cluster: &Cluster, node: usize) -> Vec<String> {
    let list = cluster.nodes[node].get("/v1/workspaces").expect(200);
    list["items"].as_array().unwrap().iter().map(|w| w["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_change_is_read_at_its_node_at_once_and_everywhere_soon() {
    let cluster = Cluster::start(3, "");
    for node in 0..3 {
        cluster.nodes[node].workspace(&format!("w{node}"), "true", &json!({}));
        assert!(workspaces(&cluster, node).contains(&format!("w{node}")), "the node that was asked sees it");
    }
    for node in 0..3 {
        until("everywhere", || workspaces(&cluster, node) == ["w0", "w1", "w2"]);
    }
    cluster.nodes[2].delete("/v1/workspaces/w0").expect(204);
    for node in 0..3 {
        until("removed everywhere", || workspaces(&cluster, node) == ["w1", "w2"]);
    }
}

#[test]
fn a_node_that_was_away_catches_up_and_serves_alone() {
    let mut cluster = Cluster::start(3, "");
    let away = cluster.followers()[0];
    let here = cluster.leader();
    cluster.nodes[here].workspace("old", "true", &json!({}));
    until("there", || workspaces(&cluster, away) == ["old"]);
    cluster.nodes[away].kill9();
    cluster.nodes[here].workspace("new", "true", &json!({}));
    cluster.nodes[here].delete("/v1/workspaces/old").expect(204);
    cluster.nodes[away].up();
    until("caught up", || workspaces(&cluster, away) == ["new"]);
    for i in (0..3).filter(|i| *i != away) {
        cluster.nodes[i].kill9();
    }
    cluster.nodes[away].restart();
    assert_eq!(workspaces(&cluster, away), ["new"], "it has its own copy");
}

#[test]
fn a_token_made_on_one_node_is_accepted_and_revoked_on_all() {
    let cluster = Cluster::start(3, "");
    let token = cluster.nodes[0].token("operate");
    for node in &cluster.nodes {
        until("accepted", || node.tcp(Some(&token)).get("/v1/sessions").status == 200);
    }
    let id = cluster.nodes[1].get("/v1/tokens").expect(200)["items"][0]["id"].clone();
    let Value::String(id) = id else { panic!("it is listed there") };
    cluster.nodes[1].delete(&format!("/v1/tokens/{id}")).expect(204);
    for node in &cluster.nodes {
        until("refused", || node.tcp(Some(&token)).get("/v1/sessions").status == 401);
    }
}
