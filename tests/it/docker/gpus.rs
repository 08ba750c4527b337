//! GPUs of containers, on an engine of the test's own whose runtime `nvidia` is a program of the test: it adds harmless
//! device nodes, which no driver serves. Seen from inside the container, by a user who is not root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use ostler::gpu::{Device, Driver, DriverVersions, Snapshot};
use ostler::runtime::docker::{Config, DockerRuntime};
use ostler::runtime::{Container, Error, Fault, HandOver, Launch, Runtime};
use ostler::types::GpuCapability;
use serde_json::json;
use tokio::sync::watch;

use super::own_engine::OwnEngine;
use super::{FOREVER, add, configuration, container, id};
use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::docker::{Lab, SOCKET, config};
use crate::support::nvml::{Fixture, Gpu};

const PROGRAM: &str = include_str!("nvidia_runtime.pl");
/// Prints what a session can see of GPUs, and then runs on.
const SHOW: &str = "id -u; for node in /dev/nvidia*; do stat -c '%n %t:%T %u' $node; done 2>/dev/null; \
                    echo $NVIDIA_VISIBLE_DEVICES $NVIDIA_DRIVER_CAPABILITIES; echo end; exec sleep 100000";

/// The program that stands in for NVIDIA's container runtime, in a directory of its own.
struct Toolkit(tempfile::TempDir);

impl Toolkit {
    fn new() -> Self {
        let toolkit = Self(tempfile::tempdir().unwrap());
        fs::write(toolkit.program(), PROGRAM).unwrap();
        fs::set_permissions(toolkit.program(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(toolkit.0.path().join("gpus"), "GPU-a 0\nGPU-b 1\nGPU-c 2\n").unwrap();
        toolkit.adds("exact");
        toolkit
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("nvidia-container-runtime")
    }

    /// Which nodes it adds: `exact`, `none` or `all`.
    fn adds(&self, mode: &str) {
        fs::write(self.0.path().join("mode"), mode).unwrap();
    }

    /// An engine that has it as its runtime `nvidia`.
    fn engine(&self, test: &str, lab: &Lab) -> Option<OwnEngine> {
        if !std::path::Path::new("/usr/bin/perl").exists() {
            crate::support::skip(test, "perl");
            return None;
        }
        let settings = json!({"runtimes": {"nvidia": {"path": self.program()}}});
        OwnEngine::start_with(test, lab, &settings.to_string(), None)
    }
}

/// Three GPUs, as the driver would list them.
fn three_gpus() -> watch::Receiver<Arc<Snapshot>> {
    let gpu = |(minor, uuid): (u32, &str)| {
        // Not in the order of their indices.
        Device { minor: Some(minor), ..Device::new(uuid.to_owned(), 2 - minor, "test".to_owned()) }
    };
    let devices = [(0, "GPU-a"), (1, "GPU-b"), (2, "GPU-c")].map(gpu).to_vec();
    let driver = Driver::Up(DriverVersions { driver: "580.65.06".to_owned(), ..DriverVersions::default() });
    watch::channel(Arc::new(Snapshot { driver, devices, ..Snapshot::default() })).1
}

fn runtime(lab: &Lab, host: String, hand_over: HandOver) -> Arc<DockerRuntime> {
    DockerRuntime::new(Config { host, hand_over, ..config(&lab.cluster) }, three_gpus()).unwrap()
}

fn launch(lab: &Lab, key: &str, uuids: &[&str]) -> Launch {
    Launch {
        gpu_uuids: uuids.iter().map(|&uuid| uuid.to_owned()).collect(),
        gpu_capabilities: vec![GpuCapability::Compute, GpuCapability::Utility],
        run_as: Some("1000:1000".to_owned()),
        ..lab.launch(key, SHOW)
    }
}

/// Starts it as a session is started. Returns what its user is told of its GPUs.
async fn run(runtime: &DockerRuntime, launch: &Launch) -> Result<Option<String>, Error> {
    let target = (&launch.session).into();
    runtime.create(launch).await?;
    runtime.start(&target).await?;
    runtime.verify(&target, launch).await
}

/// What the session prints of itself, line by line.
fn shown(lab: &Lab, engine: &OwnEngine, launch: &Launch) -> Vec<String> {
    let mut lines = Vec::new();
    until("what it shows", || {
        lines = engine.docker(&["logs", &lab.container(&launch.session)]).lines().map(str::to_owned).collect();
        lines.last().is_some_and(|line| line == "end")
    });
    lines.pop();
    lines
}

fn hosts_fault(answer: Result<Option<String>, Error>) -> String {
    let Err(Error::Start { fault: Fault::Host, message }) = answer else { panic!("{answer:?}") };
    message
}

#[tokio::test]
async fn a_session_has_its_gpus_and_no_others_and_the_rest_have_none() {
    const TEST: &str = "a_session_has_its_gpus_and_no_others_and_the_rest_have_none";
    let Some(lab) = Lab::open(TEST) else { return };
    let toolkit = Toolkit::new();
    let Some(engine) = toolkit.engine(TEST, &lab) else { return };
    let runtime = runtime(&lab, engine.host(), HandOver::Auto);

    let two = launch(&lab, "two", &["GPU-c", "GPU-a"]);
    assert_eq!(run(&runtime, &two).await, Ok(None), "there is nothing to know");
    let nodes = ["/dev/nvidia0 c3:0 1000", "/dev/nvidia2 c3:2 1000"];
    assert_eq!(shown(&lab, &engine, &two), ["1000", nodes[0], nodes[1], "GPU-c,GPU-a compute,utility"]);

    for (key, uuids) in [("none", &[][..]), ("dev", &["GPU-dev-0000"])] {
        let without = launch(&lab, key, uuids);
        run(&runtime, &without).await.unwrap();
        assert_eq!(shown(&lab, &engine, &without), ["1000", "void"], "{key}");
    }
    let drawing = Launch { gpu_capabilities: vec![GpuCapability::Graphics], ..launch(&lab, "draws", &["GPU-b"]) };
    let told = run(&runtime, &drawing).await.unwrap().unwrap();
    assert!(told.starts_with("programs cannot draw with a GPU: ") && told.contains("nvidia_drm"), "{told}");
    let gone = launch(&lab, "gone", &["GPU-d"]);
    assert!(hosts_fault(run(&runtime, &gone).await).contains("GPU-d is not on this host"));
}

#[tokio::test]
async fn a_container_with_the_wrong_gpus_is_killed_and_its_start_has_failed() {
    const TEST: &str = "a_container_with_the_wrong_gpus_is_killed_and_its_start_has_failed";
    let Some(lab) = Lab::open(TEST) else { return };
    let toolkit = Toolkit::new();
    let Some(engine) = toolkit.engine(TEST, &lab) else { return };
    let runtime = runtime(&lab, engine.host(), HandOver::Runtime);
    for (mode, what, mend) in [
        ("none", "does not have GPU-b", "accept-nvidia-visible-devices-envvar-when-unprivileged = true"),
        ("all", "/dev/nvidia0, /dev/nvidia2", "gpu.hand_over = \"cdi\""),
    ] {
        toolkit.adds(mode);
        let one = launch(&lab, mode, &["GPU-b"]);
        let message = hosts_fault(run(&runtime, &one).await);
        assert!(message.contains(what) && message.contains(mend), "{message}");
        let seen = runtime.observe(&(&one.session).into()).await.unwrap().container;
        assert!(matches!(&seen, Container::Exited(exit) if exit.code == 137), "it does not run on: {seen:?}");
    }
}

#[tokio::test]
async fn an_engine_without_a_way_refuses_and_names_the_command() {
    const TEST: &str = "an_engine_without_a_way_refuses_and_names_the_command";
    let Some(lab) = Lab::open(TEST) else { return };
    for (hand_over, command) in [
        (HandOver::Auto, "nvidia-ctk runtime configure --runtime=docker"),
        (HandOver::Runtime, "nvidia-ctk runtime configure --runtime=docker"),
        (HandOver::Cdi, "\"features\": {\"cdi\": true}"),
    ] {
        let runtime = runtime(&lab, SOCKET.to_owned(), hand_over);
        let message = hosts_fault(run(&runtime, &launch(&lab, "k", &["GPU-a"])).await);
        assert!(message.contains(command), "{message}");
    }
}

/// The files of Debian 13, whose Docker is 26.1: `tests/it/docker/cdi_root.sh` makes them.
pub(super) fn debian_13() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    cache.unwrap_or_else(home).join("ostler-ci/debian-13")
}

/// A list of harmless devices: a name, and the number of its only node.
fn specification(devices: &[(&str, u32)]) -> String {
    let device = |(name, minor): &(&str, u32)| {
        let node = json!({"path": format!("/dev/nvidia{minor}"), "type": "c", "major": 195, "minor": minor});
        json!({"name": name, "containerEdits": {"deviceNodes": [node]}})
    };
    let devices: Vec<_> = devices.iter().map(device).collect();
    json!({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}).to_string()
}

/// An engine with CDI, and the directory of its lists.
pub(super) fn engine_with_cdi(test: &str, lab: &Lab) -> Option<(OwnEngine, tempfile::TempDir)> {
    let root = debian_13();
    if !root.join("usr/sbin/dockerd").exists() {
        crate::support::skip(test, "docker-cdi");
        return None;
    }
    let lists = tempfile::tempdir().unwrap();
    let settings = json!({"features": {"cdi": true}, "cdi-spec-dirs": [lists.path()]});
    Some((OwnEngine::start_with(test, lab, &settings.to_string(), Some(&root))?, lists))
}

#[tokio::test]
async fn docker_with_cdi_hands_over_what_its_list_has() {
    const TEST: &str = "docker_with_cdi_hands_over_what_its_list_has";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some((engine, lists)) = engine_with_cdi(TEST, &lab) else { return };
    // The list counts other than the driver does, and is wrong about the last one.
    let list = lists.path().join("nvidia.json");
    fs::write(&list, specification(&[("GPU-a", 0), ("0", 1), ("GPU-c", 1)])).unwrap();
    let runtime = runtime(&lab, engine.host(), HandOver::Auto);

    let two = launch(&lab, "two", &["GPU-a", "GPU-b"]);
    run(&runtime, &two).await.unwrap();
    // Docker before 29.5 leaves the nodes to root.
    let nodes = ["/dev/nvidia0 c3:0 0", "/dev/nvidia1 c3:1 0"];
    assert_eq!(shown(&lab, &engine, &two), ["1000", nodes[0], nodes[1], "void"]);
    let without = launch(&lab, "none", &[]);
    run(&runtime, &without).await.unwrap();
    assert_eq!(shown(&lab, &engine, &without), ["1000", "void"]);

    let stale = hosts_fault(run(&runtime, &launch(&lab, "stale", &["GPU-c"])).await);
    assert!(stale.contains("does not have GPU-c") && stale.contains("nvidia-ctk cdi generate"), "{stale}");

    let hook = json!({"hookName": "createContainer", "path": "/bin/true", "args": ["true", "/lib/libcuda.so.550.54"]});
    let mut old: serde_json::Value = serde_json::from_str(&specification(&[("GPU-a", 0)])).unwrap();
    old["containerEdits"] = json!({"hooks": [hook]});
    fs::write(&list, old.to_string()).unwrap();
    let upgraded = self::runtime(&lab, engine.host(), HandOver::Auto);
    let old = hosts_fault(run(&upgraded, &launch(&lab, "old", &["GPU-a"])).await);
    assert!(old.contains("driver 550.54, and the host runs driver 580.65.06; run: nvidia-ctk cdi generate"), "{old}");

    fs::write(&list, specification(&[])).unwrap();
    until("the engine reads its list again", || engine_refuses(&engine, &lab));
    let gone = hosts_fault(run(&runtime, &launch(&lab, "gone", &["GPU-a"])).await);
    assert!(gone.contains("unresolvable CDI devices") && gone.contains("nvidia-ctk cdi generate"), "{gone}");
}

/// Whether the engine does not find a device that it listed before.
fn engine_refuses(engine: &OwnEngine, lab: &Lab) -> bool {
    let run = ["run", "--rm", "--network", "none", "--device", "nvidia.com/gpu=GPU-a", &lab.image, "true"];
    let output = std::process::Command::new("docker").arg("-H").arg(engine.host()).args(run).output().unwrap();
    !output.status.success()
}

#[test]
fn the_node_says_how_it_hands_gpus_over_and_sessions_without_any_have_void() {
    const TEST: &str = "the_node_says_how_it_hands_gpus_over_and_sessions_without_any_have_void";
    let Some(lab) = Lab::open(TEST) else { return };
    let toolkit = Toolkit::new();
    let Some(engine) = toolkit.engine(TEST, &lab) else { return };
    let agent = Agent::start(&configuration(&lab, &engine.host()));
    until("the way", || agent.node()["runtime"]["message"] == "GPUs by the nvidia runtime 1.18.0");
    assert!(agent.cli(&["node", "show", "one"]).ok().contains("GPUs by the nvidia runtime 1.18.0"));
    add(&agent, &lab, "plain", FOREVER, &json!({}));
    let session = id(&agent.running("plain", "alice"));
    let env =
        engine.docker(&["inspect", "--format", "{{.Config.Env}} {{.HostConfig.Runtime}}", &container(&lab, &session)]);
    assert!(env.contains("NVIDIA_VISIBLE_DEVICES=void") && env.ends_with(" runc"), "{env}");
}

/// The GPUs with these numbers, which no process uses, and a runtime `nvidia` that knows them.
fn host(numbers: &[u32]) -> (Fixture, Toolkit) {
    let mut fixture = Fixture::new(0);
    let idle = |number: &u32| Gpu { used: 0, ..Gpu::numbered(*number) };
    fixture.set(|machine| machine.gpus = numbers.iter().map(idle).collect());
    let toolkit = Toolkit::new();
    let listed = numbers.iter().enumerate().map(|(at, number)| format!("{} {number}\n", fixture.gpu(at).uuid));
    fs::write(toolkit.0.path().join("gpus"), listed.collect::<String>()).unwrap();
    (fixture, toolkit)
}

#[test]
fn a_session_whose_host_hands_over_the_wrong_gpus_starts_on_another() {
    const TEST: &str = "a_session_whose_host_hands_over_the_wrong_gpus_starts_on_another";
    let Some(lab) = Lab::open(TEST) else { return };
    // The first is emptier, so it is tried first.
    let hosts = [host(&[0, 1]), host(&[2])];
    let (Some(first), Some(second)) = (hosts[0].1.engine(TEST, &lab), hosts[1].1.engine(TEST, &lab)) else { return };
    hosts[0].1.adds("all");
    let mut cluster = Cluster::prepare(2, &configuration(&lab, "unix:///ENGINE").replace("cluster =", "#"));
    for ((node, engine), (fixture, _)) in cluster.nodes.iter_mut().zip([&first, &second]).zip(&hosts) {
        let text = fs::read_to_string(node.config_file()).unwrap().replace("unix:///ENGINE", &engine.host());
        let library = fixture.library();
        node.configure(&format!("{text}\n[gpu]\nnvml_library = '{}'\n", library.display()));
        node.up();
    }
    cluster.settled();
    let agent = &cluster.nodes[0];
    let gpus = || agent.get("/v1/gpus").expect(200)["items"].as_array().unwrap().clone();
    until("the GPUs", || gpus().len() == 3 && gpus().iter().all(|gpu| gpu["state"] == "ok"));

    add(agent, &lab, "cuda", FOREVER, &json!({"gpus": 1}));
    let session = agent.running("cuda", "alice");
    let uuid = &hosts[1].0.gpu(0).uuid;
    assert_eq!(
        json!([session["node"], session["attempt"], session["gpu_uuids"]]),
        json!(["n1", 2, [uuid]]),
        "{session}"
    );
    // The driver of the test makes no graphics nodes, which a session asks for unless its workspace says otherwise.
    let message = session["message"].as_str().unwrap();
    assert!(message.starts_with("programs cannot draw with a GPU"), "{message}");
    until("nothing is left of it on the first host", || first.docker(&["ps", "--all", "--quiet"]).is_empty());

    hosts[0].1.adds("exact");
    let session = agent.running("cuda", "alice");
    assert_eq!(json!([session["node"], session["attempt"]]), json!(["n0", 1]), "{session}");
}
