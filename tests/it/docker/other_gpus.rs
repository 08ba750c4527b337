//! GPUs of other makers, on an engine with CDI: harmless device nodes, which no driver serves, under AMD's class.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ostler::gpu::{Device, Driver, Snapshot};
use ostler::runtime::docker::{Config, DockerRuntime};
use ostler::runtime::{Container, Error, Fault, Launch, Runtime};
use ostler::types::GpuCapability;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::gpus::engine_with_cdi;
use super::own_engine::OwnEngine;
use super::{FOREVER, add, configuration, container, id};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, config};

const CLASS: &str = "amd.com/gpu";
/// Prints which device nodes of GPUs a session has, and then runs on.
const SHOW: &str = "for node in /dev/kfd /dev/dri/*; do stat -c '%n %t:%T' $node; done; echo end; exec sleep 100000";
/// Devices of another number than any that a driver of this machine could have.
const MAJOR: u32 = 510;

/// Writes a list: names, and the numbers of their render nodes. Each has the node of all cards as well.
fn list(directory: &Path, devices: &[(&str, &[u32])]) {
    let node = |path: String, minor: u32| json!({"path": path, "type": "c", "major": MAJOR, "minor": minor});
    let device = |(name, minors): &(&str, &[u32])| {
        let render = minors.iter().map(|&minor| node(format!("/dev/dri/renderD{minor}"), minor));
        let nodes: Vec<Value> = render.chain([node("/dev/kfd".to_owned(), 0)]).collect();
        json!({"name": name, "containerEdits": {"deviceNodes": nodes}})
    };
    let devices: Vec<Value> = devices.iter().map(device).collect();
    let text = json!({"cdiVersion": "0.5.0", "kind": CLASS, "devices": devices}).to_string();
    // Nobody reads half of it.
    fs::write(directory.join("new"), text).unwrap();
    fs::rename(directory.join("new"), directory.join("amd.json")).unwrap();
}

/// The device nodes of GPUs that a session with [`SHOW`] has.
fn nodes(engine: &OwnEngine, container: &str) -> Vec<String> {
    let mut lines = Vec::new();
    until("what it shows", || {
        lines = engine.docker(&["logs", container]).lines().map(str::to_owned).collect::<Vec<_>>();
        lines.last().is_some_and(|line| line == "end")
    });
    lines.pop();
    lines
}

#[test]
fn an_agent_hands_over_the_gpus_of_its_class_that_the_engine_lists() {
    const TEST: &str = "an_agent_hands_over_the_gpus_of_its_class_that_the_engine_lists";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some((engine, lists)) = engine_with_cdi(TEST, &lab) else { return };
    list(lists.path(), &[("0", &[128]), ("1", &[129]), ("all", &[128, 129])]);
    let class = format!("gpu = {{ class = '{CLASS}' }}\n");
    let mut agent = Agent::start(&(configuration(&lab, &engine.host()) + &class));
    let gpus = |agent: &Agent| agent.get("/v1/gpus").expect(200)["items"].as_array().unwrap().clone();
    until("the GPUs are found", || gpus(&agent).len() == 2);
    let node = agent.node();
    let (first, second) = (gpus(&agent)[0].clone(), gpus(&agent)[1].clone());
    assert_eq!(first["uuid"], format!("0-{}", node["id"].as_str().unwrap()));
    let shown = [&first["class"], &first["model"], &first["state"], &first["release"], &first["pci_address"]];
    assert_eq!(shown, [&json!(CLASS), &json!("amd.com/gpu=0"), &json!("ok"), &json!("unproven"), &Value::Null]);
    for unknown in ["memory_total_bytes", "memory_used_bytes", "utilization_percent", "temperature_celsius", "read_at"]
    {
        assert_eq!(second[unknown], Value::Null, "{unknown}");
    }
    assert!(agent.cli(&["gpu", "ls"]).ok().contains("amd.com/gpu=1"));

    add(&agent, &lab, "rocm", SHOW, &json!({"gpus": 1, "gpu_class": CLASS}));
    add(&agent, &lab, "cuda", FOREVER, &json!({"gpus": 1}));
    add(&agent, &lab, "large", FOREVER, &json!({"gpus": 1, "gpu_class": CLASS, "gpu_memory_bytes": 1 << 30}));
    let session = agent.running("rocm", "alice");
    assert_eq!(session["gpu_uuids"], json!([first["uuid"]]));
    assert_eq!(nodes(&engine, &container(&lab, &id(&session))), ["/dev/kfd 1fe:0", "/dev/dri/renderD128 1fe:80"]);
    assert_eq!(refusal(&agent, "cuda"), "gpu_class");
    assert_eq!(refusal(&agent, "large"), "gpu_memory_unknown");

    agent.post(&format!("/v1/gpus/{}/cordon", second["uuid"].as_str().unwrap()), &Value::Null).expect(200);
    assert_eq!(refusal(&agent, "rocm"), "no_capacity");
    agent.delete(&format!("/v1/sessions/{}?wait=true", id(&session))).expect(200);
    agent.running("rocm", "bob");

    // A card is gone while the agent is away.
    agent.kill9();
    list(lists.path(), &[("0", &[128])]);
    agent.up();
    until("the GPU is lost", || gpus(&agent)[1]["state"] == "lost");
    let after = gpus(&agent);
    assert!(after[1]["message"].as_str().unwrap().contains("CDI list does not have it"), "{after:?}");
    assert_eq!((&after[0]["state"], &after[0]["slots_used"]), (&json!("ok"), &json!(1)), "the session goes on");
}

/// Why the only node refuses a session.
fn refusal(agent: &Agent, workspace: &str) -> String {
    let error = agent.create(workspace, "carol").refused(503, "no_capacity");
    let nodes = error["nodes"].as_array().unwrap_or_else(|| panic!("{error}"));
    nodes[0]["reason"].as_str().unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// A device as the owner of the GPUs knows it.
fn device(name: &str) -> Device {
    let device = Device::new(format!("{name}-k3f7q2m5x6a4b7c2"), 0, format!("{CLASS}={name}"));
    Device { class: CLASS.to_owned(), ..device }
}

#[tokio::test]
async fn a_container_with_the_gpu_of_another_session_is_killed() {
    const TEST: &str = "a_container_with_the_gpu_of_another_session_is_killed";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some((engine, lists)) = engine_with_cdi(TEST, &lab) else { return };
    list(lists.path(), &[("0", &[128]), ("1", &[129])]);
    let devices = vec![device("0"), device("1")];
    let snapshot = Snapshot { driver: Driver::NotAsked, devices, ..Snapshot::default() };
    let config = Config { host: engine.host(), gpu_class: CLASS.to_owned(), ..config(&lab.cluster) };
    let runtime = DockerRuntime::new(config, watch::channel(Arc::new(snapshot)).1).unwrap();
    let launch = |key: &str, name: &str| Launch {
        gpu_uuids: vec![device(name).uuid],
        gpu_capabilities: vec![GpuCapability::Graphics],
        ..lab.launch(key, SHOW)
    };
    let run = async |launch: &Launch| {
        let target = (&launch.session).into();
        runtime.create(launch).await?;
        runtime.start(&target).await?;
        runtime.verify(&target, launch).await
    };
    let right = launch("right", "0");
    assert_eq!(run(&right).await, Ok(None), "there is nothing to know");
    assert_eq!(nodes(&engine, &lab.container(&right.session)).len(), 2);

    // The runtime has read the list, and now it says something else.
    list(lists.path(), &[("0", &[128]), ("1", &[128])]);
    until("the engine reads its list again", || has_node_of_another(&engine, &lab));
    let wrong = launch("wrong", "1");
    let Err(Error::Start { fault: Fault::Host, message }) = run(&wrong).await else { panic!("it was not noticed") };
    for part in ["does not have /dev/dri/renderD129", "/dev/dri/renderD128", "amd-ctk cdi generate"] {
        assert!(message.contains(part), "{message}");
    }
    let seen = runtime.observe(&(&wrong.session).into()).await.unwrap().container;
    assert!(matches!(&seen, Container::Exited(exit) if exit.code == 137), "it does not run on: {seen:?}");
}

/// Whether the engine hands over the first device under the name of the second.
fn has_node_of_another(engine: &OwnEngine, lab: &Lab) -> bool {
    let run = ["run", "--rm", "--network", "none", "--device", "amd.com/gpu=1", &lab.image, "ls", "/dev/dri"];
    let output = Command::new("docker").arg("-H").arg(engine.host()).args(run).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("renderD128")
}
