//! The process runtime with its real shim: commands run, end, are paused, outlive their agent, and
//! leave nothing behind when removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use ostler::runtime::process::{Config, ProcessRuntime};
use ostler::runtime::{
    Connected, Container, Error, Event, Exit, Health, Launch, LogsRequest, Mount, Oom, PortBinding, Run, Runtime,
    Target,
};
use ostler::types::{Bytes, Cores, Init, Name, NodeId, Protocol, PullPolicy, Resources, RuntimeKind, SessionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::support;

/// How long a condition may take to become true on a busy machine.
const SOON: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(10);

/// A data directory with a runtime on it. Dropping it removes all sessions, even if the test failed.
struct Host {
    directory: tempfile::TempDir,
    runtime: ProcessRuntime,
    cluster: Name,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // If the test runs as root, sessions run as another user, which must be able to traverse the directory.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = open(directory.path());
        Self { directory, runtime, cluster: cluster() }
    }

    /// Opens the runtime anew, as the next agent does.
    fn restart(&mut self) {
        self.runtime = open(self.directory.path());
    }

    fn session(&self, key: &str) -> SessionId {
        // Tests run at the same time on one host, in different directories.
        SessionId::of_key(&self.cluster, &format!("{key} {}", self.directory.path().display()))
    }

    fn launch(&self, key: &str, script: &str) -> Launch {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Launch {
            session: self.session(key),
            user: "alice".parse().unwrap(),
            workspace: "shell".parse().unwrap(),
            image: None,
            pull: PullPolicy::Missing,
            command,
            env: BTreeMap::new(),
            resources: Resources::new(Cores::whole(1), Bytes::mib(256), 0),
            gpu_uuids: Vec::new(),
            gpu_capabilities: Vec::new(),
            gpu_memory: None,
            ports: Vec::new(),
            volumes: Vec::new(),
            shm: Bytes::mib(64),
            stop_grace: Duration::from_secs(10),
            entrypoint: Vec::new(),
            run_as: None,
            init: Init::Auto,
            tmpfs: Vec::new(),
            read_only: false,
            network: None,
        }
    }

    async fn run(&self, launch: &Launch) -> SessionId {
        self.runtime.create(launch).await.unwrap();
        self.runtime.start(&(&launch.session).into()).await.unwrap();
        launch.session
    }

    async fn script(&self, key: &str, script: &str) -> SessionId {
        self.run(&self.launch(key, script)).await
    }

    async fn observe(&self, session: &SessionId) -> Container {
        self.runtime.observe(&session.into()).await.unwrap().container
    }

    async fn exit(&self, session: &SessionId) -> Exit {
        let deadline = Instant::now() + SOON;
        loop {
            match self.observe(session).await {
                Container::Exited(exit) => return exit,
                other => assert!(Instant::now() < deadline, "still {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn running(&self, session: &SessionId) -> Run {
        match self.observe(session).await {
            Container::Running(run) => run,
            other => panic!("{other:?} instead of running; its log: {}", self.log(session).await),
        }
    }

    async fn log(&self, session: &SessionId) -> String {
        self.read_log(session, false, None).await
    }

    async fn read_log(&self, session: &SessionId, follow: bool, tail: Option<u32>) -> String {
        let mut stream = self.runtime.logs(&session.into(), LogsRequest { follow, tail }).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = stream.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    async fn until_log_has(&self, session: &SessionId, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let log = self.log(session).await;
            if log.contains(text) {
                return log;
            }
            assert!(Instant::now() < deadline, "no `{text}` in: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_connected(&self, session: &SessionId, ports: &[PortBinding]) {
        let deadline = Instant::now() + SOON;
        while self.runtime.connected(&session.into(), ports).await != Ok(Connected::Yes) {
            assert!(Instant::now() < deadline, "nobody is connected to {ports:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn path(&self, session: &SessionId) -> PathBuf {
        self.directory.path().join("process").join(session.as_str())
    }

    /// The process of the run: `shim` or `command`.
    fn pid(&self, session: &SessionId, which: &str) -> i32 {
        let text = fs::read_to_string(self.path(session).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        i32::try_from(state[which]["pid"].as_i64().unwrap()).unwrap()
    }

    fn enforces(&self, limit: &str) -> bool {
        let health = self.runtime.health().borrow().clone();
        let Health::Up(engine) = health else { panic!("{health:?}") };
        !engine.unenforced.iter().any(|words| words.starts_with(limit))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // This thread may be inside the test's async runtime, so another thread waits for the removal.
        let directory = self.directory.path().to_owned();
        let cleaned = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(async {
                let runtime = open(&directory);
                for found in runtime.list().await.unwrap() {
                    runtime.remove(&(&found.session).into()).await.unwrap();
                }
            });
        });
        if cleaned.join().is_err() && !std::thread::panicking() {
            panic!("sessions could not be removed");
        }
    }
}

fn cluster() -> Name {
    "test".parse().unwrap()
}

fn open(directory: &Path) -> ProcessRuntime {
    ProcessRuntime::open(Config {
        directory: directory.join("process"),
        cluster: cluster(),
        node: node_of(directory),
        user: "nobody".to_owned(),
        shim: env!("CARGO_BIN_EXE_ostler").into(),
        cores: Cores::whole(2),
        memory: Bytes::gib(2),
        idle_ignore: Vec::new(),
    })
    .unwrap()
}

/// A separate node id for every test, since tests share the host's control groups.
fn node_of(directory: &Path) -> NodeId {
    SessionId::of_key(&cluster(), &directory.display().to_string()).as_str()[..16].parse().unwrap()
}

/// Whether the process is alive. A zombie is not.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn kill(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The pid that a script printed as `NAME=pid`.
fn printed_pid(log: &str, name: &str) -> i32 {
    log.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_command_serves_on_the_port_it_was_assigned() {
    if Command::new("perl").arg("-e1").status().is_err() {
        return support::skip("a_command_serves_on_the_port_it_was_assigned", "perl");
    }
    let host = Host::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let server = r#"exec perl -MIO::Socket::INET -e '
        $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ENV{OSTLER_PORT_8080}, Listen => 5) or die;
        $| = 1; print "ready\n"; while ($c = $s->accept) { print $c scalar <$c>; close $c }'"#;
    let mut launch = host.launch("echo", server);
    launch.ports = vec![PortBinding { container_port: 8080, protocol: Protocol::Tcp, host_port: port }];
    let session = host.run(&launch).await;
    host.until_log_has(&session, "ready").await;
    assert_eq!(host.runtime.connected(&(&session).into(), &launch.ports).await, Ok(Connected::No));
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    host.until_connected(&session, &launch.ports).await;
    stream.write_all(b"hello\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hello\n");
    host.running(&session).await;
}

#[tokio::test]
async fn exit_codes_are_as_in_shells() {
    let host = Host::new();
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let session = host.script(script, script).await;
        let exit = host.exit(&session).await;
        assert_eq!((exit.code, exit.oom), (code, Oom::Nothing), "{script}");
        assert!(exit.finished_at.is_some());
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_run_says_why() {
    let host = Host::new();
    for (program, code) in [("/no/such/program", 127), ("no-such-program", 127), ("/etc/passwd", 126)] {
        let mut launch = host.launch(program, "");
        launch.command = vec![program.to_owned()];
        host.runtime.create(&launch).await.unwrap();
        let refused = host.runtime.start(&(&launch.session).into()).await;
        assert!(matches!(&refused, Err(Error::Start { message, .. }) if message.contains(program)), "{refused:?}");
        assert_eq!(host.exit(&launch.session).await.code, code, "{program}");
        assert!(host.log(&launch.session).await.contains(program));
    }
    let mut launch = host.launch("none", "");
    launch.command.clear();
    assert!(matches!(host.runtime.create(&launch).await, Err(Error::Start { .. })));
    assert_eq!(host.observe(&launch.session).await, Container::Absent);
}

#[tokio::test]
async fn a_command_gets_its_own_environment_and_nothing_of_the_agents() {
    let host = Host::new();
    let script = "env; pwd; touch here; ls -l /proc/self/fd; grep NoNewPrivs /proc/self/status";
    let mut launch = host.launch("env", script);
    launch.env.insert("PASSWORD".to_owned(), "hunter2".to_owned());
    let session = host.run(&launch).await;
    assert_eq!(host.exit(&session).await.code, 0);
    let log = host.log(&session).await;
    assert!(log.contains("PASSWORD=hunter2\n"), "{log}");
    assert!(log.contains(&format!("OSTLER_SESSION={session}\n")), "{log}");
    // The environment of the test, for example from cargo, stands for that of an agent.
    let given = ["PATH", "HOME", "USER", "LOGNAME", "PWD", "CUDA_VISIBLE_DEVICES"];
    for (name, _) in std::env::vars().filter(|(name, _)| !given.contains(&name.as_str())) {
        assert!(!log.lines().any(|line| line.starts_with(&format!("{name}="))), "{name} is passed on: {log}");
    }
    let work = host.path(&session).join("work");
    assert!(log.contains(&format!("HOME={}\n", work.display())), "{log}");
    assert!(log.contains(&format!("\n{}\n", work.display())), "{log}");
    assert!(work.join("here").exists());
    let data = host.directory.path().to_str().unwrap();
    assert!(!log.lines().any(|line| line.contains(&format!("-> {data}"))), "an open file of the shim: {log}");
    let output = log.lines().find_map(|line| line.split_once(" 1 -> ")).expect("it has an output").1;
    assert_eq!(log.matches(output).count(), 2, "only the writing end, as 1 and as 2: {log}");
    assert!(log.contains("NoNewPrivs:\t1\n"), "{log}");
}

#[tokio::test]
async fn secrets_are_read_by_the_agent_alone() {
    let host = Host::new();
    let mut launch = host.launch("secret", "echo ready; exec sleep 1000");
    launch.env.insert("PASSWORD".to_owned(), "hunter2".to_owned());
    let session = host.run(&launch).await;
    let shim = host.pid(&session, "shim");
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{shim}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("hunter2"), "{file}");
    }
    for file in ["launch.json", "plan.json", "state.json", "log", "lock"] {
        let mode = fs::metadata(host.path(&session).join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_root_agent_drops_its_privileges() {
    if !is_root() {
        return support::skip("a_root_agent_drops_its_privileges", "root");
    }
    let host = Host::new();
    let script = "id -u; id -G; grep CapEff /proc/self/status; ls ..; cat ../launch.json; echo done";
    let session = host.script("drop", script).await;
    host.exit(&session).await;
    let nobody = |flag: &str| {
        let output = Command::new("id").args([flag, "nobody"]).output().unwrap().stdout;
        String::from_utf8(output).unwrap()
    };
    let log = host.log(&session).await;
    let expected = format!("{}{}CapEff:\t0000000000000000\n", nobody("-u"), nobody("-g"));
    assert!(log.starts_with(&expected), "{log}");
    assert_eq!(log.matches("denied").count(), 2, "neither the session's files nor their names: {log}");
}

#[tokio::test]
async fn a_data_directory_that_sessions_cannot_traverse_has_no_volumes() {
    if !is_root() {
        return support::skip("a_data_directory_that_sessions_cannot_traverse_has_no_volumes", "root");
    }
    let host = Host::new();
    fs::set_permissions(host.directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let session = host.script("inside", "touch file && echo written").await;
    host.exit(&session).await;
    assert_eq!(host.log(&session).await, "written\n");
    let mut launch = host.launch("volume", "true");
    launch.volumes = vec![Mount { name: "v".to_owned(), path: "/v".to_owned(), read_only: false, user: None }];
    let refused = host.runtime.create(&launch).await;
    let data = host.directory.path().to_str().unwrap();
    assert!(matches!(&refused, Err(Error::Refused(why)) if why.ends_with(data)), "{refused:?}");
}

#[tokio::test]
async fn a_stopped_command_may_tidy_up() {
    let host = Host::new();
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let session = host.script("tidy", script).await;
    host.until_log_has(&session, "ready").await;
    host.runtime.stop(&(&session).into(), GRACE).await.unwrap();
    assert_eq!(host.exit(&session).await.code, 5);
    assert!(host.log(&session).await.ends_with("bye\n"));
    assert!(!lives(host.pid(&session, "shim")));
    host.runtime.stop(&(&session).into(), GRACE).await.unwrap();
}

#[tokio::test]
async fn a_command_that_does_not_end_is_killed() {
    let host = Host::new();
    let session = host.script("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done").await;
    host.until_log_has(&session, "ready").await;
    let begun = Instant::now();
    let grace = Duration::from_millis(300);
    host.runtime.stop(&(&session).into(), grace).await.unwrap();
    assert!(begun.elapsed() >= grace);
    assert_eq!(host.exit(&session).await.code, 137);
    assert!(!lives(host.pid(&session, "command")) && !lives(host.pid(&session, "shim")));
}

#[tokio::test]
async fn processes_left_by_a_command_end_with_it() {
    let host = Host::new();
    // A daemon: another session, no parent, no environment, no output, and it ignores SIGTERM and SIGHUP.
    let script = r#"
        setsid env -i sh -c 'trap "" TERM HUP; echo DAEMON=$$ >&2; exec >/dev/null 2>&1; while :; do sleep 1; done' &
        (sleep 1000 & echo ORPHAN=$!)
        echo ready; sleep 0.2; exit 4"#;
    let session = host.script("daemons", script).await;
    assert_eq!(host.exit(&session).await.code, 4);
    let log = host.log(&session).await;
    assert!(!lives(printed_pid(&log, "DAEMON")), "{log}");
    assert!(!lives(printed_pid(&log, "ORPHAN")), "{log}");
}

#[tokio::test]
async fn orphans_that_end_are_reaped() {
    let host = Host::new();
    let session = host.script("orphans", "(sh -c 'echo ORPHAN=$$' &); echo ready; exec sleep 1000").await;
    let log = host.until_log_has(&session, "ORPHAN=").await;
    let orphan = format!("/proc/{}", printed_pid(&log, "ORPHAN"));
    until("the orphan is reaped", || !Path::new(&orphan).exists()).await;
    host.running(&session).await;
}

#[tokio::test]
async fn each_start_is_a_run_of_its_own() {
    let host = Host::new();
    let launch = host.launch("again", "echo run; exit 7");
    assert_eq!(host.observe(&launch.session).await, Container::Absent);
    host.runtime.create(&launch).await.unwrap();
    assert_eq!(host.observe(&launch.session).await, Container::Created);
    host.runtime.start(&(&launch.session).into()).await.unwrap();
    let first = host.exit(&launch.session).await;
    host.runtime.start(&(&launch.session).into()).await.unwrap();
    let second = host.exit(&launch.session).await;
    assert_ne!(first.run, second.run);
    assert_eq!((first.code, second.code), (7, 7));
    assert_eq!(host.log(&launch.session).await, "run\nrun\n");
}

#[tokio::test]
async fn many_starts_at_once_make_one_run() {
    let host = Host::new();
    let launch = host.launch("once", "echo run; exec sleep 1000");
    host.runtime.create(&launch).await.unwrap();
    let target = Target::from(&launch.session);
    let starts = (0..8).map(|_| host.runtime.start(&target));
    for started in futures_util::future::join_all(starts).await {
        started.unwrap();
    }
    host.running(&launch.session).await;
    assert_eq!(host.until_log_has(&launch.session, "run").await, "run\n");
}

#[tokio::test]
async fn a_session_outlives_its_agent_and_is_adopted() {
    let mut host = Host::new();
    let session = host.script("adopted", "trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done").await;
    host.until_log_has(&session, "ready").await;
    let run = host.running(&session).await;
    let shim = host.pid(&session, "shim");
    let session_of_shim = rustix::process::getsid(rustix::process::Pid::from_raw(shim)).unwrap();
    assert_eq!(session_of_shim.as_raw_pid(), shim, "a terminal's Ctrl-C does not reach it");

    host.restart();
    assert_eq!(host.running(&session).await, run);
    let found = host.runtime.list().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].session, found[0].container.clone()), (session, Some(Container::Running(run))));
    assert_eq!(found[0].resources, Resources::new(Cores::whole(1), Bytes::mib(256), 0));
    host.runtime.stop(&(&session).into(), GRACE).await.unwrap();
    assert_eq!(host.exit(&session).await.code, 6);
}

#[tokio::test]
async fn the_end_of_a_session_is_noticed_adopted_or_not() {
    let mut host = Host::new();
    let session = host.script("noticed", "echo ready; exec sleep 1000").await;
    host.restart();
    let (events, mut heard) = mpsc::channel(16);
    let running = host.runtime.run(events);
    let watched = async {
        assert_eq!(heard.recv().await, Some(Event::Relist));
        host.running(&session).await;
        kill("-TERM", host.pid(&session, "command"));
        assert_eq!(heard.recv().await, Some(Event::Changed(session)));
        assert_eq!(host.exit(&session).await.code, 143);
        let own = host.script("own", "exit 0").await;
        assert_eq!(heard.recv().await, Some(Event::Changed(own)));
        drop(heard);
    };
    tokio::time::timeout(SOON, async { tokio::join!(running, watched) })
        .await
        .expect("it ends once the receiver is dropped");
}

#[tokio::test]
async fn a_shim_that_is_killed_takes_its_session_with_it() {
    let host = Host::new();
    let script = "setsid sh -c 'echo DAEMON=$$; exec sleep 1000' & echo ready; exec sleep 1000";
    let session = host.script("shimless", script).await;
    let log = host.until_log_has(&session, "DAEMON").await;
    let run = host.running(&session).await;
    kill("-KILL", host.pid(&session, "shim"));
    let exit = host.exit(&session).await;
    assert_eq!((exit.code, exit.run, exit.oom), (137, run, Oom::Nothing));
    assert!(!lives(host.pid(&session, "command")));
    assert!(!lives(printed_pid(&log, "DAEMON")));
    // The session can be started again.
    host.runtime.start(&(&session).into()).await.unwrap();
    host.running(&session).await;
}

#[tokio::test]
async fn a_run_of_another_boot_is_over() {
    let host = Host::new();
    let session = host.script("rebooted", "exec sleep 1000").await;
    host.runtime.stop(&(&session).into(), GRACE).await.unwrap();
    // The state after a reboot: no exit file, and process ids that other processes have by now.
    fs::remove_file(host.path(&session).join("exit.json")).unwrap();
    let path = host.path(&session).join("state.json");
    let mut state: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    state["boot_id"] = 42.into();
    state["shim"]["pid"] = std::process::id().into();
    state["command"]["pid"] = std::process::id().into();
    fs::write(path, state.to_string()).unwrap();
    let exit = host.exit(&session).await;
    assert_eq!((exit.code, exit.finished_at), (137, None));
    assert!(exit.run.0.starts_with("000000000000002a-"), "{:?}", exit.run);
}

#[tokio::test]
async fn a_session_that_takes_more_memory_than_it_has_is_killed() {
    let host = Host::new();
    let swap = fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1;
    if !host.enforces("memory") || swap {
        return support::skip("a_session_that_takes_more_memory_than_it_has_is_killed", "cgroup");
    }
    // `tail` keeps the last line in memory, and that line never ends.
    let mut launch = host.launch("hungry", "head -c 300M /dev/zero | tail -n 1 >/dev/null");
    launch.resources.memory = Bytes::mib(24);
    let session = host.run(&launch).await;
    let exit = host.exit(&session).await;
    assert_eq!(exit.oom, Oom::Main, "{exit:?}");
    // The kernel's count of OOM kills starts anew with each run.
    let mut launch = host.launch("modest", "exit 1");
    launch.resources.memory = Bytes::mib(24);
    let session = host.run(&launch).await;
    assert_eq!(host.exit(&session).await.oom, Oom::Nothing);
}

#[tokio::test]
async fn a_session_that_takes_more_cores_than_it_has_is_slowed() {
    let host = Host::new();
    if !host.enforces("cores") {
        return support::skip("a_session_that_takes_more_cores_than_it_has_is_slowed", "cgroup");
    }
    // With a tenth of a core, two loops use far less processor time in a second than one core offers.
    let mut launch = host.launch("busy", "(while :; do :; done) & (while :; do :; done) & sleep 1; times; exit 0");
    launch.resources.cores = Cores::from_milli(100);
    let session = host.run(&launch).await;
    let command = host.pid(&session, "command");
    let of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(of(command).contains(session.as_str()));
    assert!(!of(host.pid(&session, "shim")).contains(session.as_str()), "the shim is not counted");
    let mut spent = 0.0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(900) {
        spent = busy_seconds(command).unwrap_or(spent);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(spent > 0.0 && spent < 0.4, "{spent} s of CPU in about a second");
}

/// CPU time of a process's children according to `/proc`, in seconds.
fn busy_seconds(parent: i32) -> Option<f64> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let ticks = children.split_ascii_whitespace().filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<u32> =
            stat.rsplit_once(')')?.1.split_ascii_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
        Some(fields.get(11)? + fields.get(12)?)
    });
    Some(f64::from(ticks.sum::<u32>()) / 100.0)
}

#[tokio::test]
async fn a_paused_session_stops_and_resumes() {
    let host = Host::new();
    let session = host.script("paused", "while :; do echo tick; sleep 0.02; done").await;
    host.until_log_has(&session, "tick").await;
    let run = host.running(&session).await;
    host.runtime.pause(&(&session).into()).await.unwrap();
    assert_eq!(host.observe(&session).await, Container::Paused(run.clone()));
    // Output that was in the pipe may still arrive. After that, nothing arrives for many ticks.
    let mut ticks = host.log(&session).await.len();
    let mut quiet = 0;
    let deadline = Instant::now() + SOON;
    while quiet < 10 {
        assert!(Instant::now() < deadline, "it keeps ticking");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = host.log(&session).await.len();
        quiet = if now == ticks { quiet + 1 } else { 0 };
        ticks = now;
    }
    host.runtime.resume(&(&session).into()).await.unwrap();
    assert_eq!(host.observe(&session).await, Container::Running(run));
    let path = host.path(&session).join("log");
    until("it ticks again", || fs::metadata(&path).unwrap().len() > ticks as u64).await;
}

#[tokio::test]
async fn a_paused_session_is_adopted_stopped_and_removed_like_another() {
    let mut host = Host::new();
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    let (stopped, removed) = (host.script("stopped", script).await, host.script("removed", script).await);
    for session in [&stopped, &removed] {
        host.until_log_has(session, "ready").await;
        host.runtime.pause(&session.into()).await.unwrap();
    }
    host.restart();
    assert!(matches!(host.observe(&stopped).await, Container::Paused(_)));
    host.runtime.stop(&(&stopped).into(), GRACE).await.unwrap();
    assert_eq!(host.exit(&stopped).await.code, 9);
    let command = host.pid(&removed, "command");
    host.runtime.remove(&(&removed).into()).await.unwrap();
    assert!(!lives(command));
    let refused = host.runtime.pause(&(&stopped).into()).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert!(matches!(host.runtime.pause(&(&removed).into()).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_log_is_bounded_and_keeps_the_newest() {
    let host = Host::new();
    let script = "i=0; while [ $i -lt 3 ]; do i=$((i+1)); yes \"part $i\" | head -c 6000000; echo; done; echo the end";
    let session = host.script("chatty", script).await;
    host.exit(&session).await;
    let size = |name| fs::metadata(host.path(&session).join(name)).unwrap().len();
    assert!(size("log") <= 5 << 20 && size("log.1") <= 5 << 20);
    let log = host.log(&session).await;
    assert!(log.len() > 5 << 20, "{}", log.len());
    assert!(log.ends_with("\nthe end\n"));
    assert!(!log.contains("part 1"));
    assert_eq!(host.read_log(&session, false, Some(2)).await.lines().last(), Some("the end"));
    assert_eq!(host.read_log(&session, false, Some(2)).await.lines().count(), 2);
    assert_eq!(host.read_log(&session, false, Some(0)).await, "");
}

#[tokio::test]
async fn a_log_is_followed_to_the_end_of_the_session() {
    let host = Host::new();
    let script = "echo one; echo two; while [ ! -e go ]; do sleep 0.02; done; yes line | head -n 2000000; echo last";
    let session = host.script("followed", script).await;
    host.until_log_has(&session, "two").await;
    let request = LogsRequest { follow: true, tail: Some(1) };
    let mut stream = host.runtime.logs(&(&session).into(), request).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "two\n");
    fs::write(host.path(&session).join("work/go"), "").unwrap();
    let mut last = Vec::new();
    while let Some(chunk) = tokio::time::timeout(SOON, stream.next()).await.unwrap() {
        last = [last.split_off(last.len().saturating_sub(10)), chunk.unwrap().to_vec()].concat();
    }
    assert!(last.ends_with(b"line\nlast\n"));
    assert_eq!(host.read_log(&session, true, Some(1)).await, "last\n", "the log of a session that has ended already");
}

#[tokio::test]
async fn nothing_is_left_of_a_removed_session() {
    let host = Host::new();
    let script = "setsid sh -c 'trap \"\" TERM; echo DAEMON=$$; exec sleep 1000' & mkdir -m 0 locked; exec sleep 1000";
    let session = host.script("removed", script).await;
    let log = host.until_log_has(&session, "DAEMON").await;
    let pids = [host.pid(&session, "shim"), host.pid(&session, "command"), printed_pid(&log, "DAEMON")];
    host.runtime.remove(&(&session).into()).await.unwrap();
    assert_eq!(host.observe(&session).await, Container::Absent);
    assert_eq!(pids.map(lives), [false; 3]);
    until("the shim is reaped", || !Path::new(&format!("/proc/{}", pids[0])).exists()).await;
    let left: Vec<_> = fs::read_dir(host.directory.path().join("process")).unwrap().flatten().collect();
    assert_eq!(left.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["volumes"]);
    assert_eq!(groups_named(session.as_str()), 0);
    host.runtime.remove(&(&session).into()).await.unwrap();
    assert!(matches!(host.runtime.start(&(&session).into()).await, Err(Error::NotFound(_))));
    let request = LogsRequest { follow: false, tail: None };
    assert!(matches!(host.runtime.logs(&(&session).into(), request).await.err(), Some(Error::NotFound(_))));
}

/// The number of control groups of this host whose name contains `part`.
fn groups_named(part: &str) -> usize {
    fn below(directory: &Path, part: &str) -> usize {
        let Ok(entries) = fs::read_dir(directory) else { return 0 };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories
            .map(|entry| usize::from(entry.file_name().to_string_lossy().contains(part)) + below(&entry.path(), part))
            .sum()
    }
    below(Path::new("/sys/fs/cgroup"), part)
}

#[tokio::test]
async fn a_volume_outlives_its_sessions() {
    let host = Host::new();
    let mut writer = host.launch("writer", "echo kept >$OSTLER_VOLUME_HOME_ALICE_X/file");
    let mount = Mount { name: "home-alice@x".to_owned(), path: "/home".to_owned(), read_only: false, user: None };
    writer.volumes = vec![mount.clone()];
    let session = host.run(&writer).await;
    assert_eq!(host.exit(&session).await.code, 0, "{}", host.log(&session).await);
    assert_eq!(host.runtime.volumes().await.unwrap(), ["home-alice@x"]);
    let refused = host.runtime.remove_volume("home-alice@x").await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    host.runtime.remove(&(&session).into()).await.unwrap();

    let mut reader = host.launch("reader", "cat $OSTLER_VOLUME_HOME_ALICE_X/file");
    reader.volumes = vec![mount];
    let session = host.run(&reader).await;
    host.exit(&session).await;
    assert_eq!(host.log(&session).await, "kept\n");
    host.runtime.remove(&(&session).into()).await.unwrap();
    host.runtime.remove_volume("home-alice@x").await.unwrap();
    assert!(host.runtime.volumes().await.unwrap().is_empty());
    assert!(matches!(host.runtime.remove_volume("home-alice@x").await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn directories_that_are_not_sessions_are_left_alone() {
    let mut host = Host::new();
    let session = host.script("whole", "exec sleep 1000").await;
    let process = host.directory.path().join("process");
    let damaged = host.session("damaged");
    fs::create_dir(process.join(damaged.as_str())).unwrap();
    fs::write(process.join(damaged.as_str()).join("launch.json"), "{").unwrap();
    fs::create_dir(process.join("notes")).unwrap();
    fs::create_dir_all(process.join(".unfinished-x/work")).unwrap();
    host.restart();
    let found = host.runtime.list().await.unwrap();
    assert_eq!(found.iter().map(|found| &found.session).collect::<Vec<_>>(), [&session]);
    assert!(process.join("notes").exists() && process.join(damaged.as_str()).exists());
    assert!(!process.join(".unfinished-x").exists(), "a directory that a crash left unfinished is removed");
    host.runtime.remove(&(&damaged).into()).await.unwrap();
    assert_eq!(host.observe(&damaged).await, Container::Absent);
}

#[tokio::test]
async fn the_runtime_reports_its_kind_and_resources() {
    let host = Host::new();
    assert_eq!(host.runtime.kind(), RuntimeKind::Process);
    let Health::Up(engine) = host.runtime.health().borrow().clone() else { panic!("not up") };
    assert_eq!((engine.cores, engine.memory), (Cores::whole(2), Bytes::gib(2)));
    println!("not enforced on this host: {:?}", engine.unenforced);
    let launch = host.launch("twice", "exit 0");
    assert_eq!(host.runtime.create(&launch).await.unwrap(), host.runtime.create(&launch).await.unwrap());
}
