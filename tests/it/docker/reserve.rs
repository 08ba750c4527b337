//! The room that is held back on the disk of the data directory, once that disk is full.

use serde_json::json;

use super::{FOREVER, add, configuration, id, remove};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, Registry, SOCKET, docker, quietly};
use crate::support::small_disk::SmallDisk;

/// Whose the image of this name is, by the node's list.
fn owner(agent: &Agent, name: &str) -> Option<String> {
    let images = agent.cli(&["image", "ls", "-o", "json"]).json();
    let mut items = images["items"].as_array().unwrap().iter();
    let image = items.find(|image| image["names"].as_array().unwrap().contains(&json!(name)))?;
    Some(image["owner"].as_str().unwrap().to_owned())
}

#[test]
fn a_removal_is_recorded_though_the_disk_of_the_records_is_full() {
    const TEST: &str = "a_removal_is_recorded_though_the_disk_of_the_records_is_full";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let Some(disk) = SmallDisk::mount(TEST, "size=64m") else { return };
    let mut agent = Agent::start(&format!(
        "{}node = {{ data_dir = '{}' }}\n\
         images = {{ min_age = '0s', prune_interval = '0s', high_watermark = 100 }}\n",
        configuration(&lab, SOCKET),
        disk.path().display(),
    ));
    let image = registry.publish(&lab.cluster, 1 << 20);
    add(&agent, &lab, "far", FOREVER, &json!({"image": image}));
    let session = id(&agent.running("far", "alice"));
    remove(&agent, &session);
    agent.delete("/v1/workspaces/far").expect(204);
    add(&agent, &lab, "other", FOREVER, &json!({}));
    until("it is ours", || owner(&agent, &image).as_deref() == Some("ostler"));
    let reserve = disk.path().join("images.reserve");
    assert!(reserve.exists());

    disk.fill();
    let report = agent.cli(&["image", "prune", "--mode", "aggressive", "-o", "json"]).json();
    assert_eq!(report["removed"][0]["names"], json!([image]), "{report}");
    assert!(!reserve.exists(), "only with this room the removal could be recorded");
    let log = agent.log();
    assert!(!log.contains("cannot write the records of the images"), "{log}");

    // Another program brings the same image. Without a record it is that program's.
    agent.kill9();
    disk.free();
    docker(&["pull", "--quiet", &image]);
    agent.up();
    until("it is listed", || owner(&agent, &image).is_some());
    assert_eq!(owner(&agent, &image).as_deref(), Some("foreign"));
    assert!(reserve.exists(), "room is held back again");
    quietly(&["rmi", &image]);
}
