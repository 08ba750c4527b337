//! The life of the child: how it opens NVML, and how it ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ostler::gpu::answer::{Answer, Ask, Closed};
use ostler::gpu::probe::{PATIENCE, Probe, Silence};

use super::{inventory, read, readings, start, start_in_root, uuid, uuids};
use crate::support::agent::{lives, until};
use crate::support::nvml::{FOREVER, Fixture, VERSION, code};
use crate::support::skip;

async fn closed(mut probe: Probe) -> Closed {
    match probe.ask(Ask::Inventory).await.unwrap() {
        Answer::Closed(closed) => closed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_library_and_a_module_of_different_versions_are_named() {
    let mut fixture = Fixture::new(1);
    let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sun Jul 27 07:10:00 UTC 2025\n";
    fixture.root("proc/driver/nvidia/version", line);
    fixture.set(|machine| machine.driver = "575.57.08".to_owned());
    let mismatch = |module: Option<&str>| Closed::Mismatch {
        library: Some(VERSION.to_owned()),
        module: module.map(str::to_owned),
    };
    assert_eq!(closed(start_in_root(&fixture)).await, mismatch(Some("575.57.08")));
    let mut probe = start_in_root(&fixture);
    probe.ask(Ask::Readings).await.unwrap();
    assert!(matches!(probe.ask(Ask::Readings).await, Err(Silence::Died { .. })), "it answers once");
}

#[tokio::test]
async fn a_host_without_a_driver_is_told_from_one_whose_driver_fails() {
    let mut fixture = Fixture::new(1);
    let nowhere = PathBuf::from("/nowhere/libnvidia-ml.so.1");
    let probe = Probe::start(Path::new(env!("CARGO_BIN_EXE_ostler")), Some(&nowhere)).unwrap();
    assert!(matches!(closed(probe).await, Closed::Absent { why } if why.contains("/nowhere/libnvidia-ml.so.1")));
    // 28: the driver is loaded and has no GPU.
    for code in [code::DRIVER_NOT_LOADED, 28] {
        fixture.set(|machine| machine.returns("nvmlInit_v2", code));
        assert!(matches!(closed(start(&fixture)).await, Closed::Absent { .. }), "{code}");
    }
    fixture.set(|machine| machine.returns("nvmlInit_v2", code::UNKNOWN));
    assert!(matches!(closed(start(&fixture)).await, Closed::Failed { .. }));
    fs::write(fixture.library(), "not a library").unwrap();
    assert!(matches!(closed(start(&fixture)).await, Closed::Failed { .. }));
}

#[tokio::test]
async fn a_library_that_is_replaced_is_seen_by_the_next_child() {
    let mut fixture = Fixture::new(1);
    let mut old = start(&fixture);
    inventory(&mut old).await;
    fixture.install("590.10", &[]);
    read(&readings(&mut old).await, 0);
    assert_eq!(inventory(&mut old).await.versions.nvml.as_deref(), Some("13.580.65.06"));
    let Closed::Mismatch { library, .. } = closed(start(&fixture)).await else { panic!("no mismatch") };
    assert_eq!(library.as_deref(), Some("590.10"));
    fixture.set(|machine| machine.driver = "590.10".to_owned());
    assert_eq!(inventory(&mut start(&fixture)).await.versions.nvml.as_deref(), Some("13.590.10"));
}

#[tokio::test]
async fn a_driver_that_goes_away_closes_the_child() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.returns("nvmlDeviceGetCount_v2", code::DRIVER_NOT_LOADED));
    assert!(matches!(probe.ask(Ask::Readings).await, Ok(Answer::Closed(Closed::Absent { .. }))));
    assert!(matches!(probe.ask(Ask::Readings).await, Err(Silence::Died { .. })));
}

#[tokio::test]
async fn a_crash_in_the_library_ends_the_child_alone() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.crash = "nvmlDeviceGetPowerUsage".to_owned());
    let Err(Silence::Died { why }) = probe.ask(Ask::Readings).await else { panic!("it did not die") };
    assert!(why.contains("SIGSEGV"), "{why}");
    assert!(probe.abandon().is_gone());
    fixture.set(|machine| machine.crash.clear());
    read(&readings(&mut start(&fixture)).await, 0);
}

#[tokio::test]
async fn a_child_that_hangs_is_late_and_can_be_abandoned_at_once() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.takes("nvmlDeviceGetTemperature", FOREVER));
    let asked = Instant::now();
    assert_eq!(probe.ask(Ask::Readings).await, Err(Silence::Late));
    let waited = asked.elapsed();
    assert!(waited >= PATIENCE && waited < PATIENCE + Duration::from_secs(2), "{waited:?}");
    assert_eq!(probe.ask(Ask::Inventory).await, Err(Silence::Late), "what comes next may answer the question before");
    let pid = probe.pid().unwrap();
    let mut abandoned = probe.abandon();
    until("the child is gone", || abandoned.is_gone());
    assert!(!lives(pid.into()));
}

#[tokio::test]
async fn a_driver_may_take_its_time_to_initialize_but_not_to_answer() {
    let mut fixture = Fixture::new(1);
    let slow = PATIENCE.as_secs() * 1000 + 1000;
    fixture.set(|machine| machine.takes("nvmlInit_v2", slow));
    assert_eq!(uuids(&inventory(&mut start(&fixture)).await), [Some(uuid(0))]);
}

#[tokio::test]
async fn a_question_that_was_given_up_is_not_answered_by_the_next() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.takes("nvmlDeviceGetCount_v2", 200));
    assert!(tokio::time::timeout(Duration::from_millis(50), probe.ask(Ask::Inventory)).await.is_err());
    assert_eq!(probe.ask(Ask::Processes).await, Err(Silence::Late));
}

#[tokio::test]
async fn a_child_that_cannot_be_killed_is_waited_for_by_nobody() {
    const TEST: &str = "a_child_that_cannot_be_killed_is_waited_for_by_nobody";
    let fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    let pid = probe.pid().unwrap();
    let Some(freezer) = Freezer::of(TEST, pid) else { return };
    let started = Instant::now();
    let mut abandoned = probe.abandon();
    assert!(started.elapsed() < Duration::from_secs(1));
    until("it was sent SIGKILL", || is_sent_sigkill(pid));
    assert!(!abandoned.is_gone() && Path::new(&format!("/proc/{pid}")).exists());
    freezer.thaw();
    until("the child is gone", || abandoned.is_gone());
}

/// Whether the process has a SIGKILL that did not reach it yet.
fn is_sent_sigkill(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:").or(line.strip_prefix("SigPnd:")));
    pending.map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap()).any(|mask| mask & 1 << 8 != 0)
}

/// A cgroup whose processes stand still, even when they are killed: the only way to have what hangs in the kernel.
struct Freezer(PathBuf);

impl Freezer {
    /// Freezes the process; `None`, after printing SKIPPED, without the freezer of cgroup v1.
    fn of(test: &str, pid: u32) -> Option<Self> {
        let group = Path::new("/sys/fs/cgroup/freezer").join(format!("ostler-test-{pid}"));
        if fs::create_dir(&group).is_err() || !group.join("freezer.state").exists() {
            skip(test, "freezer");
            return None;
        }
        let freezer = Self(group);
        fs::write(freezer.0.join("cgroup.procs"), pid.to_string()).unwrap();
        freezer.write("FROZEN");
        until("it is frozen", || fs::read_to_string(freezer.0.join("freezer.state")).unwrap().trim() == "FROZEN");
        Some(freezer)
    }

    fn thaw(&self) {
        self.write("THAWED");
    }

    fn write(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        // A process leaves its group when it was reaped.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn dropping_a_probe_ends_its_child_even_if_that_hangs() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    let pid = probe.pid().unwrap();
    fixture.set(|machine| machine.takes("nvmlDeviceGetCount_v2", FOREVER));
    assert!(tokio::time::timeout(Duration::from_millis(50), probe.ask(Ask::Inventory)).await.is_err());
    assert!(lives(pid.into()));
    drop(probe);
    until("the child is gone", || !lives(pid.into()));
}

#[tokio::test]
async fn the_child_holds_nothing_of_the_agent() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    let fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    let target = |pid: u32, fd: i32| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    let child = probe.pid().unwrap();
    let open = fs::read_dir(format!("/proc/{child}/fd")).unwrap().map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    let open: BTreeSet<PathBuf> = open.collect();
    let mine = [socket.as_raw_fd(), file.as_raw_fd()].map(|fd| target(std::process::id(), fd));
    assert!(mine.iter().all(|target| !open.contains(target)), "{mine:?} {open:?}");
    assert_eq!(target(child, 2), Path::new("/dev/null"));
}

#[test]
fn the_child_ends_when_nobody_can_ask_it_any_more() {
    let fixture = Fixture::new(1);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ostler"))
        .arg("gpu-probe")
        .arg(fixture.library())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\"inventory\"\n").unwrap();
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"{\"inventory\":"), "{output:?}");
}
