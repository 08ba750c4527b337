//! GPUs on the real agent, with an NVML library whose devices a test changes while the agent runs.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, until, until_within};
use crate::support::cluster::Cluster;
use crate::support::nvml::{FOREVER, Fixture, Gpu, List, Process, VERSION, code};

const GIB: u64 = 1 << 30;
/// How long what the agent tries again once a minute may take.
const WITHIN_MINUTES: Duration = Duration::from_secs(180);

/// A machine with idle GPUs.
fn idle(gpus: u32) -> Fixture {
    let mut fixture = Fixture::new(gpus);
    fixture.set(|machine| machine.gpus.iter_mut().for_each(|gpu| (gpu.used, gpu.free) = (GIB / 4, 79 * GIB)));
    fixture
}

/// The configuration of an agent on a large host with these GPUs.
fn on(fixture: &Fixture, more: &str) -> String {
    let library = fixture.library();
    format!(
        "gpu = {{ nvml_library = '{}'{more} }}\ndev = {{ physical_cores = 64, physical_memory = '64GiB' }}",
        library.display()
    )
}

/// An agent that has found its GPUs, with a workspace `cuda` of one GPU and one without, `plain`.
fn start(fixture: &Fixture, more: &str) -> Agent {
    let agent = Agent::start(&on(fixture, more));
    until("the GPUs are found", || !gpus(&agent).is_empty() && gpus(&agent).iter().all(|gpu| gpu["state"] == "ok"));
    add_workspaces(&agent);
    agent
}

fn add_workspaces(agent: &Agent) {
    agent.workspace("cuda", "exec sleep 600", &json!({"gpus": 1}));
    agent.workspace("plain", "exec sleep 600", &json!({}));
}

fn gpus(agent: &Agent) -> Vec<Value> {
    agent.get("/v1/gpus").expect(200)["items"].as_array().unwrap().clone()
}

fn set(agent: &Agent, node: &str, settings: Value) {
    agent.patch(&format!("/v1/nodes/{node}"), &settings).expect(200);
}

/// The message of a condition of the node.
fn condition(agent: &Agent, node: &str, kind: &str) -> Option<String> {
    let node = agent.get(&format!("/v1/nodes/{node}")).expect(200);
    let found = node["conditions"].as_array().unwrap().iter().find(|condition| condition["kind"] == kind);
    found.map(|condition| condition["message"].as_str().unwrap().to_owned())
}

fn until_condition(agent: &Agent, kind: &str, what: &str) {
    until(kind, || condition(agent, "self", kind).is_some_and(|message| message.contains(what)));
}

fn until_no_condition(agent: &Agent, kind: &str) {
    until(kind, || condition(agent, "self", kind).is_none());
}

/// Why the one host with GPUs does not take a session for now.
fn refused(agent: &Agent, workspace: &str, user: &str) -> Value {
    let error = agent.create(workspace, user).refused(503, "no_capacity");
    error["nodes"].as_array().unwrap().iter().find(|reason| reason["requested"].is_number()).unwrap().clone()
}

/// A process that is not of any session, and is ended with the value.
struct Stranger(Child);

impl Stranger {
    /// It carries the mark of this session of the process runtime.
    fn of(session: &str) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").env_clear().env("OSTLER_SESSION", session).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ten_sessions_share_a_gpu_that_is_overridden_to_ten_and_users_do_not_unless_the_operator_says_so() {
    let fixture = idle(1);
    let mut cluster = Cluster::prepare(3, &on(&fixture, ""));
    for without in &mut cluster.nodes[1..] {
        let text = std::fs::read_to_string(without.config_file()).unwrap();
        without.configure(&text.replace("libnvidia-ml.so.1", "none.so"));
        without.up();
    }
    cluster.nodes[0].up();
    cluster.settled();
    // Everything goes through a node that neither leads nor has the GPU.
    let asked = cluster.followers().into_iter().find(|node| *node != 0).unwrap();
    let (agent, host) = (&cluster.nodes[asked], "n0".to_owned());
    until("the GPU is known", || gpus(agent).len() == 1 && gpus(agent)[0]["state"] == "ok");
    add_workspaces(agent);
    agent.workspace("ten", "exec sleep 600", &json!({"gpus": 10}));
    set(agent, &host, json!({"gpus_override": 10}));
    until("sharing limits the override", || condition(agent, &host, "gpu_sharing_limits_override").is_some());

    let made: Vec<Value> = (0..10).map(|_| agent.create("cuda", "alice").expect(202)).collect();
    let uuid = &fixture.gpu(0).uuid;
    assert!(made.iter().all(|session| session["gpu_uuids"] == json!([uuid])), "{made:?}");
    let full = refused(agent, "cuda", "alice");
    assert_eq!(
        (&full["reason"], &full["dimension"], &full["available"]),
        (&json!("no_capacity"), &json!("gpus"), &json!(0.0))
    );
    agent.create("ten", "alice").refused(422, "exceeds_physical");
    agent.create("plain", "bob").expect(202);

    agent.delete(&format!("/v1/sessions/{}", made[0]["id"].as_str().unwrap()));
    until("its slot is free", || gpus(agent)[0]["slots_used"] == 9);
    until("it is said at once", || refused(agent, "cuda", "bob")["reason"] == "gpu_sharing");
    let told = agent.cli(&["node", "set", &host, "--gpu-sharing", "any"]);
    assert!(told.stderr.contains("isolate processes poorly") && told.code == 0, "the caution: {told:?}");
    until("the leader knows the rule", || agent.create("cuda", "bob").status == 202);
    until("no limit any more", || condition(agent, &host, "gpu_sharing_limits_override").is_none());
    until("it is full again", || agent.cli(&["gpu", "ls"]).ok().contains("10 of 10"));
}

#[test]
fn a_gpu_that_vanishes_under_load_is_told_everywhere_and_takes_sessions_again_once_it_returns() {
    let mut fixture = idle(2);
    let agent = start(&fixture, "");
    let running = |agent: &Agent, key: &str| {
        let session = agent.create("cuda", key).expect(202);
        agent.until_state(session["id"].as_str().unwrap(), "running")
    };
    let (first, second) = (running(&agent, "alice"), running(&agent, "bob"));
    let lost = fixture.gpu(0).clone();
    let (victim, other) = if first["gpu_uuids"] == json!([lost.uuid]) { (&first, &second) } else { (&second, &first) };
    fixture.set(|machine| drop(machine.gpus.remove(0)));

    until_condition(&agent, "gpu_lost", &lost.uuid);
    let shown = agent.cli(&["node", "show", "self"]).ok();
    assert!(shown.contains("gpu_lost") && shown.contains("lost"), "{shown}");
    let id = victim["id"].as_str().unwrap();
    let session =
        agent.until(id, "told", |session| session["message"].as_str().is_some_and(|m| m.contains("gpu_lost")));
    assert_eq!(session["state"], "running");
    assert_eq!(agent.session(other["id"].as_str().unwrap())["message"], Value::Null);
    let metrics = agent.get("/metrics").text();
    let series = |state: &str| {
        format!("ostler_gpu_state{{node=\"one\",uuid=\"{}\",index=\"0\",state=\"{state}\"}} 1", lost.uuid)
    };
    assert!(metrics.contains(&series("lost")), "{metrics}");
    // It may return, so a session waits for it: it is not refused for good, and the other GPU gets no more slots.
    assert_eq!(refused(&agent, "cuda", "carol")["reason"], "no_capacity");
    agent.workspace("two", "exec sleep 600", &json!({"gpus": 2}));
    assert!(refused(&agent, "two", "carol")["message"].as_str().unwrap().contains("1 of 2 GPUs is lost"));
    agent.create("plain", "carol").expect(202);

    // It comes back with another index.
    fixture.set(|machine| machine.gpus.push(lost.clone()));
    until_within(WITHIN_MINUTES, "it is back", || condition(&agent, "self", "gpu_lost").is_none());
    assert!(agent.get("/metrics").text().contains(&series("ok").replace("index=\"0\"", "index=\"1\"")));
    agent.until(id, "as before", |session| session["message"].is_null());
    agent.delete(&format!("/v1/sessions/{id}"));
    until("another user gets it", || agent.create("cuda", "carol").status == 202);
}

#[test]
fn sessions_are_created_while_the_driver_hangs() {
    let mut fixture = idle(1);
    let agent = start(&fixture, "");
    fixture.set(|machine| machine.hangs = [("nvmlDeviceGetTemperature".to_owned(), FOREVER)].into());
    until("it is given up", || agent.log().contains("did not answer in time"));
    for workspace in ["plain", "cuda", "plain"] {
        let session = agent.create(workspace, "alice").expect(202);
        agent.until_state(session["id"].as_str().unwrap(), "running");
    }
    assert_eq!(condition(&agent, "self", "gpu_lost"), None, "a driver that does not answer has lost nothing");
    let (before, gpu) = (gpus(&agent)[0]["read_at"].clone(), &gpus(&agent)[0]);
    assert_eq!((&gpu["temperature_celsius"], &gpu["slots_used"]), (&json!(50.0), &json!(1)), "as last read: {gpu}");
    fixture.set(|machine| machine.hangs.clear());
    until_within(WITHIN_MINUTES, "it is read again", || gpus(&agent)[0]["read_at"] != before);
}

#[test]
fn a_gpu_is_free_once_no_process_of_the_session_is_left_on_it() {
    let mut fixture = idle(1);
    let agent = start(&fixture, "");
    let session = agent.create("cuda", "alice").expect(202);
    let id = session["id"].as_str().unwrap();
    agent.until_state(id, "running");
    let left = Stranger::of(id);
    let process = Process { list: List::Compute, pid: left.pid(), memory: Some(GIB) };
    fixture.set(|machine| (machine.gpus[0].processes, machine.gpus[0].used) = (vec![process], GIB));
    agent.delete(&format!("/v1/sessions/{id}")).expect(202);
    agent.until_state(id, "stopped");
    assert_eq!(refused(&agent, "cuda", "bob")["reason"], "no_capacity");
    until_condition(&agent, "gpu_quarantined", &format!("{} (sleep)", left.pid()));
    assert_eq!(gpus(&agent)[0]["state"], "quarantined");
    // What is left is still known after a restart.
    let mut agent = agent;
    agent.restart();
    until("the GPUs are found", || gpus(&agent).iter().any(|gpu| gpu["slots_used"] == 1));
    agent.create("cuda", "bob").refused(503, "no_capacity");
    drop(left);
    fixture.set(|machine| machine.gpus[0].processes.clear());
    until("it is free", || agent.create("cuda", "bob").status == 202);
    until_no_condition(&agent, "gpu_quarantined");
}

#[test]
fn memory_that_other_programs_use_keeps_sessions_off() {
    let mut fixture = idle(1);
    let agent = start(&fixture, ", max_foreign_memory = '2GiB'");
    let stranger = Stranger::of("nobody");
    let process = Process { list: List::Compute, pid: stranger.pid(), memory: Some(3 * GIB) };
    fixture.set(|machine| (machine.gpus[0].processes, machine.gpus[0].used) = (vec![process], 3 * GIB));
    until_condition(&agent, "gpu_foreign_use", &format!("3 GiB of its memory is used by {} (sleep)", stranger.pid()));
    let refusal = refused(&agent, "cuda", "alice");
    assert_eq!(refusal["message"], "1 of 1 GPU is foreign");
    let gpu = &gpus(&agent)[0];
    assert_eq!((&gpu["state"], &gpu["memory_foreign_bytes"]), (&json!("foreign"), &json!(3 * GIB)));
    fixture.set(|machine| (machine.gpus[0].processes, machine.gpus[0].used) = (Vec::new(), 0));
    until("it takes sessions again", || agent.create("cuda", "alice").status == 202);
}

#[test]
fn declared_memory_of_a_gpu_is_admitted_like_any_other_resource() {
    let fixture = idle(1);
    let agent = start(&fixture, "");
    set(&agent, "self", json!({"gpus_override": 4}));
    agent.workspace("half", "exec sleep 600", &json!({"gpus": 1, "gpu_memory_bytes": 50 * GIB}));
    agent.workspace("huge", "exec sleep 600", &json!({"gpus": 1, "gpu_memory_bytes": 81 * GIB}));
    let made = agent.create("half", "alice").expect(202);
    let refusal = refused(&agent, "half", "alice");
    assert_eq!((&refusal["reason"], &refusal["dimension"]), (&json!("no_capacity"), &json!("gpu_memory_bytes")));
    assert_eq!(gpus(&agent)[0]["memory_declared_bytes"], 50 * GIB);
    agent.create("huge", "alice").refused(422, "exceeds_physical");
    agent.create("cuda", "alice").expect(202);
    agent.delete(&format!("/v1/sessions/{}", made["id"].as_str().unwrap()));
    until("the memory is free", || agent.create("half", "alice").status == 202);
}

#[test]
fn a_session_that_takes_more_than_it_declared_is_named_and_goes_on() {
    let mut fixture = idle(1);
    let agent = start(&fixture, "");
    agent.workspace("small", "exec sleep 600", &json!({"gpus": 1, "gpu_memory_bytes": GIB}));
    let session = agent.create("small", "alice").expect(202);
    let id = session["id"].as_str().unwrap();
    agent.until_state(id, "running");
    let worker = Stranger::of(id);
    let process = |pid| Process { list: List::Compute, pid, memory: Some(2 * GIB) };
    fixture.set(|machine| machine.gpus[0].processes = vec![process(worker.pid())]);
    until_condition(&agent, "gpu_memory_exceeded", id);
    assert_eq!(agent.session(id)["state"], "running");
}

#[test]
fn the_operator_and_the_heat_keep_sessions_off_a_gpu() {
    let mut fixture = idle(1);
    let agent = start(&fixture, ", max_temperature_celsius = 85");
    let uuid = fixture.gpu(0).uuid.clone();
    agent.cli(&["gpu", "cordon", &uuid]).ok();
    assert_eq!(refused(&agent, "cuda", "alice")["message"], "1 of 1 GPU is cordoned");
    let mut agent = agent;
    agent.restart();
    until("it is still cordoned", || gpus(&agent).iter().any(|gpu| gpu["state"] == "cordoned"));
    agent.cli(&["gpu", "uncordon", &uuid]).ok();
    fixture.set(|machine| machine.gpus[0].temperature = 86);
    until_condition(&agent, "gpu_hot", &uuid);
    assert_eq!(refused(&agent, "cuda", "alice")["message"], "1 of 1 GPU is hot");
    fixture.set(|machine| machine.gpus[0].temperature = 81);
    until("81 °C is read", || gpus(&agent)[0]["temperature_celsius"] == 81.0);
    assert_eq!(gpus(&agent)[0]["state"], "hot", "it must cool down by 5 °C");
    fixture.set(|machine| machine.gpus[0].temperature = 79);
    until("it takes sessions again", || agent.create("cuda", "alice").status == 202);
}

#[test]
fn a_gpu_whose_driver_says_that_it_needs_a_reset_takes_no_sessions_until_it_is_uncordoned() {
    let mut fixture = idle(1);
    let agent = start(&fixture, "");
    fixture.set(|machine| {
        machine.gpus[0].fields.insert("230".to_owned(), 1);
        machine.gpus[0].xids.push(119);
    });
    until_condition(&agent, "gpu_failing", "119");
    assert_eq!(refused(&agent, "cuda", "alice")["message"], "1 of 1 GPU is failing");
    fixture.set(|machine| machine.gpus[0].fields.extend([("230".to_owned(), 0)]));
    agent.cli(&["gpu", "uncordon", &fixture.gpu(0).uuid]).ok();
    until("it takes sessions again", || agent.create("cuda", "alice").status == 202);
    // A fault of an application says nothing of the device.
    fixture.set(|machine| machine.gpus[0].xids.push(31));
    until("it is logged", || agent.log().contains("31"));
    assert_eq!(gpus(&agent)[0]["state"], "ok");
}

#[test]
fn gpus_are_known_by_their_uuids_and_unknown_readings_are_null() {
    let mut fixture = idle(2);
    let agent = start(&fixture, "");
    let uuids = [fixture.gpu(0).uuid.clone(), fixture.gpu(1).uuid.clone()];
    let session = agent.create("cuda", "alice").expect(202);
    fixture.set(|machine| {
        machine.gpus.swap(0, 1);
        machine.gpus[0].returns("nvmlDeviceGetPowerUsage", code::NOT_SUPPORTED);
        machine.gpus[0].returns("nvmlDeviceGetMemoryInfo_v2", code::NOT_SUPPORTED);
    });
    let index =
        |agent: &Agent, uuid: &str| gpus(agent).iter().find(|gpu| gpu["uuid"] == uuid).unwrap()["index"].clone();
    until("the numbers are those of now", || index(&agent, &uuids[0]) == 1 && index(&agent, &uuids[1]) == 0);
    let of = |uuid: &str| gpus(&agent).into_iter().find(|gpu| gpu["uuid"] == uuid).unwrap();
    until("not read any more", || {
        of(&uuids[1])["power_watts"].is_null() && of(&uuids[1])["memory_used_bytes"].is_null()
    });
    assert_eq!(of(&uuids[0])["power_watts"], 210.5);
    let shown = agent.cli(&["gpu", "ls"]).ok();
    assert!(shown.lines().any(|line| line.contains(&uuids[1]) && line.contains(" - ")), "{shown}");
    assert_eq!(agent.session(session["id"].as_str().unwrap())["gpu_uuids"], session["gpu_uuids"]);
}

#[test]
fn a_library_of_another_version_than_the_driver_is_named_and_a_driver_that_comes_later_is_found() {
    let mut fixture = idle(1);
    fixture.set(|machine| machine.driver = "590.44.01".to_owned());
    fixture.root("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.44.01  Tue\n");
    let agent = Agent::start(&on(&fixture, ""));
    add_workspaces(&agent);
    until_condition(&agent, "gpu_driver_mismatch", VERSION);
    agent.create("plain", "alice").expect(202);
    agent.create("cuda", "alice").refused(422, "exceeds_physical");
    // The module is loaded again.
    fixture.set(|machine| machine.driver = VERSION.to_owned());
    until_within(WITHIN_MINUTES, "the GPU is found", || agent.create("cuda", "alice").status == 202);
    until_no_condition(&agent, "gpu_driver_mismatch");
}

#[test]
fn each_instance_of_a_divided_gpu_is_one() {
    let mut fixture = idle(1);
    fixture.set(|machine| {
        let gpu = &machine.gpus[0];
        let hole = Gpu::default();
        machine.gpus[0].mig = Some(vec![gpu.instance(0), hole, gpu.instance(2)]);
    });
    let agent = start(&fixture, "");
    let shown = gpus(&agent);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(shown.iter().all(|gpu| gpu["mig_parent"] == fixture.gpu(0).uuid.as_str()), "{shown:?}");
    let users = ["alice", "bob"].map(|user| agent.create("cuda", user).expect(202)["gpu_uuids"].clone());
    assert!(users[0] != users[1] && users[0][0].as_str().unwrap().starts_with("MIG-"), "{users:?}");
    agent.create("cuda", "carol").refused(503, "no_capacity");
}
