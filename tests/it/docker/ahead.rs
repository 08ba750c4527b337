//! Images that nodes have before a session needs them, and workspaces that are pinned to one digest.

use serde_json::json;

use super::{FOREVER, add, configuration, id, start};
use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::docker::{Lab, Registry, SOCKET, docker, lines, quietly};

/// Bytes of noise in an image.
const SMALL: u64 = 1 << 20;

/// The digest of a new session, once it runs.
fn digest_of_new(agent: &Agent, workspace: &str) -> String {
    let session = id(&agent.create(workspace, "alice").expect(202));
    let running = agent.until_state(&session, "running");
    running["image_digest"].as_str().unwrap().to_owned()
}

fn has(image: &str) -> bool {
    !lines(&["images", "--quiet", image]).is_empty()
}

#[test]
fn a_node_has_the_image_of_a_prepull_workspace_before_any_session() {
    const TEST: &str = "a_node_has_the_image_of_a_prepull_workspace_before_any_session";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let agent = start(&lab);
    let image = registry.publish(&lab.cluster, SMALL);
    assert!(!has(&image));
    add(&agent, &lab, "later", FOREVER, &json!({"image": image}));
    add(&agent, &lab, "barred", FOREVER, &json!({"image": image, "prepull": true, "constraints": {"rack": "9"}}));
    // A change of the catalogue has a turn within a second. Nothing is pulled by it: the next change is what has it pulled.
    add(&agent, &lab, "ahead", FOREVER, &json!({"image": lab.image, "prepull": true}));
    assert!(!has(&image), "no workspace that this node may run asks for it");
    agent.cli(&["workspace", "set", "later", "--prepull"]).ok();
    until("the image is pulled ahead", || has(&image));
    assert!(agent.cli(&["session", "ls"]).ok().lines().count() <= 1, "without a session");

    // The session starts from it, without the registry.
    drop(registry);
    let digest = digest_of_new(&agent, "later");
    assert!(docker(&["inspect", "--format", "{{index .RepoDigests 0}}", &image]).ends_with(&digest));
}

#[test]
fn workspace_pull_reaches_each_node_that_may_run_a_prepull_workspace() {
    const TEST: &str = "workspace_pull_reaches_each_node_that_may_run_a_prepull_workspace";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let of_lab: toml::Table = toml::from_str(&configuration(&lab, SOCKET)).unwrap();
    let cluster = Cluster::start(2, &toml::to_string(&toml::toml! { runtime = (of_lab["runtime"].clone()) }).unwrap());
    let first = &cluster.nodes[0];
    first.cli(&["node", "label", "n1", "rack=9"]).ok();
    let image = registry.reference(&lab.cluster);
    add(first, &lab, "far", FOREVER, &json!({"image": image, "constraints": {"rack": "9"}}));
    let none = first.cli(&["workspace", "pull", "far"]).failed(1);
    assert!(none.contains(&format!("no node has image {image} of workspace far")), "{none}");

    // The registry does not have it yet, so that no node has it by the pull ahead.
    first.cli(&["workspace", "set", "far", "--prepull"]).ok();
    let failed = first.cli(&["workspace", "pull", "far"]).failed(1);
    assert!(failed.starts_with(&format!("n1: error: cannot pull {image}: ")) && !failed.contains("n0"), "{failed}");
    // Both share an engine, which must not have the name meanwhile.
    registry.publish_newer(&lab.cluster, SMALL);
    assert!(!has(&image));
    let pulled = first.cli(&["workspace", "pull", "far"]).ok();
    assert!(pulled.starts_with(&format!("n1: pulled {image} (")) && !pulled.contains("n0"), "{pulled}");
    assert!(has(&image));
    quietly(&["rmi", &image]);
}

#[test]
fn a_pinned_workspace_keeps_its_digest_while_the_tag_moves_and_can_be_rolled_back() {
    const TEST: &str = "a_pinned_workspace_keeps_its_digest_while_the_tag_moves_and_can_be_rolled_back";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let agent = start(&lab);
    let image = registry.publish(&lab.cluster, SMALL);
    add(&agent, &lab, "far", FOREVER, &json!({"image": image, "pull": "always"}));
    let none = agent.cli(&["workspace", "pin", "far"]).failed(3);
    assert!(none.contains("no node has image"), "{none}");

    let old = digest_of_new(&agent, "far");
    let old_id = docker(&["inspect", "--format", "{{.Id}}", &image]);
    until("the leader knows the digest", || agent.cli(&["workspace", "pin", "far"]).code == 0);
    assert_eq!(agent.get("/v1/workspaces/far").expect(200)["image_digest"], json!(old));
    registry.publish_newer(&lab.cluster, SMALL);
    assert_eq!(digest_of_new(&agent, "far"), old, "the tag has moved, and `pull` is always");
    let exported = agent.cli(&["workspace", "export", "far"]).ok();
    assert!(exported.contains(&format!("image_digest = \"{old}\"")), "{exported}");

    agent.cli(&["workspace", "unpin", "far"]).ok();
    let new = digest_of_new(&agent, "far");
    assert_ne!(new, old);

    // Both are in use now: the operator chooses, here the older one.
    let mut refused = String::new();
    until("the leader knows both", || {
        refused = agent.cli(&["workspace", "pin", "far"]).failed(3);
        refused.contains(&new) && refused.contains(&old)
    });
    assert_eq!(agent.get("/v1/workspaces/far").expect(200)["image_digest"], json!(null), "nothing changed");
    agent.cli(&["workspace", "pin", "far", "--digest", &old]).ok();
    assert_eq!(digest_of_new(&agent, "far"), old);
    let mut shown = String::new();
    until("it shows where the tag is", || {
        shown = agent.cli(&["workspace", "show", "far"]).ok();
        shown.contains(&format!("tag moved to      {new} on "))
    });
    assert!(shown.contains(&format!("pinned to         {old}\n")), "{shown}");

    // An image of this engine alone has no digest that another node could pull.
    add(&agent, &lab, "built", FOREVER, &json!({}));
    digest_of_new(&agent, "built");
    let mut refused = String::new();
    until("the leader knows the session", || {
        refused = agent.cli(&["workspace", "pin", "built"]).failed(3);
        refused.contains("came from no registry")
    });

    drop(agent);
    drop(lab);
    quietly(&["rmi", &image, &old_id]);
}
