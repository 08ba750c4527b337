//! Disks that run full under a running agent.

use serde_json::json;

use crate::support::agent::{Agent, until};
use crate::support::small_disk::SmallDisk;

/// The node's conditions: kind, then message.
fn conditions(agent: &Agent) -> Vec<(String, String)> {
    let node = agent.node();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let conditions = node["conditions"].as_array().unwrap();
    conditions.iter().map(|condition| (text(&condition["kind"]), text(&condition["message"]))).collect()
}

fn condition(agent: &Agent, kind: &str) -> Option<String> {
    conditions(agent).into_iter().find(|(found, _)| found == kind).map(|(_, message)| message)
}

fn on(disk: &SmallDisk, min_free: &str) -> Agent {
    let data = disk.path().display();
    Agent::start(&format!("node = {{ data_dir = '{data}' }}\nlimits = {{ min_free_disk = '{min_free}' }}"))
}

#[test]
fn a_data_directory_without_inodes_admits_nothing_until_some_are_free() {
    let name = "a_data_directory_without_inodes_admits_nothing_until_some_are_free";
    let Some(disk) = SmallDisk::mount(name, "size=64m,nr_inodes=1000") else { return };
    let agent = on(&disk, "1MiB");
    agent.workspace("w", "sleep 600", &json!({}));
    let session = agent.running("w", "alice");
    disk.use_up_inodes(10);
    until("it is a condition", || condition(&agent, "low_disk").is_some());
    let message = condition(&agent, "low_disk").unwrap();
    assert!(message.contains("10 of 1000 inodes are free"), "{message}");
    let refused = agent.create("w", "bob").refused(503, "no_capacity");
    let reason = &refused["nodes"][0];
    assert_eq!((&reason["reason"], &reason["dimension"]), (&json!("low_disk"), &json!("disk_inodes")), "{refused}");
    assert!(agent.cli(&["node", "show", "self"]).ok().contains("10 of 1000 inodes free"));
    disk.free();
    until("it ends", || condition(&agent, "low_disk").is_none());
    agent.running("w", "bob");
    assert_eq!(agent.session(session["id"].as_str().unwrap())["state"], "running");
}

#[test]
fn a_full_data_directory_is_named_and_works_again_without_a_restart() {
    let name = "a_full_data_directory_is_named_and_works_again_without_a_restart";
    let Some(disk) = SmallDisk::mount(name, "size=32m") else { return };
    let agent = on(&disk, "0");
    agent.workspace("w", "sleep 600", &json!({"cores": 0.1}));
    let session = agent.running("w", "alice");
    let full = format!("data directory {} is full", disk.path().display());
    disk.fill();
    // Free pages of the journal's file take some sessions more.
    let mut refusal = None;
    until("a session is refused", || {
        let answer = agent.create("w", "bob");
        refusal = (answer.status != 202).then(|| answer.refused(503, "no_capacity"));
        refusal.is_some()
    });
    let refusal = refusal.unwrap();
    assert!(refusal["message"].as_str().unwrap().contains(&full), "{refusal}");
    assert_eq!(refusal["nodes"][0]["reason"], "journal", "{refusal}");
    until("it is a condition", || condition(&agent, "data_directory_full").is_some_and(|text| text.contains(&full)));
    assert_eq!(condition(&agent, "runtime_unavailable"), None, "the engine answers");
    let ready = agent.get("/readyz").refused(503, "runtime_unavailable");
    assert!(ready["message"].as_str().unwrap().contains(&full), "{ready}");
    agent.get("/livez").expect(200);
    assert_eq!(agent.session(session["id"].as_str().unwrap())["state"], "running");
    disk.free();
    until("it ends", || condition(&agent, "data_directory_full").is_none());
    agent.get("/readyz").expect(200);
    agent.running("w", "carol");
}
