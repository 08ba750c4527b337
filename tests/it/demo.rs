//! `ostler demo` as users run it: it shows what it promises, and leaves nothing behind, however it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::support;
use rustix::process::{Pid, Signal, kill_process};

/// How long a condition may take to become true on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const NO_ENGINE: &str = "unix:///nonexistent/docker.sock";
/// Part of the command line of the demo's agents.
const AGENT: &str = " agent --dev ";
const LAST_STEP: &str = "The demo stays up ";

/// A demo with its own directory for temporary files.
struct Demo {
    process: Child,
    output: BufReader<ChildStdout>,
    /// The output so far.
    text: String,
    temporary: tempfile::TempDir,
}

impl Demo {
    fn start(docker_host: &str, arguments: &[&str]) -> Self {
        Self::start_as(None, Path::new(env!("CARGO_BIN_EXE_ostler")), docker_host, arguments)
    }

    fn start_as(user: Option<u32>, program: &Path, docker_host: &str, arguments: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new(program);
        command
            .arg("demo")
            .args(arguments)
            .env("DOCKER_HOST", docker_host)
            .env("TMPDIR", temporary.path())
            // The demo must ignore the environment's settings for other clusters.
            .env("OSTLER_TOKEN_FILE", "/nonexistent")
            .env("OSTLER_SOCKET", "/nonexistent")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = user {
            command.uid(user);
        }
        let mut process = command.spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output, text: String::new(), temporary }
    }

    /// Reads on until the demo has printed this.
    fn until(&mut self, wanted: &str) {
        while !self.text.contains(wanted) {
            if self.output.read_line(&mut self.text).unwrap() == 0 {
                let mut errors = String::new();
                self.process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("`{wanted}` was never printed:\n{}\n{errors}", self.text);
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        self.output.read_to_string(&mut self.text).unwrap();
        self.process.wait().unwrap()
    }

    /// The demo's own directory.
    fn directory(&self) -> PathBuf {
        let socket = self.text.split("OSTLER_SOCKET=").nth(1).unwrap().lines().next().unwrap();
        let directory = Path::new(socket).parent().unwrap().to_owned();
        assert!(directory.starts_with(self.temporary.path()), "{}", directory.display());
        directory
    }

    /// The name of its cluster.
    fn cluster(&self) -> String {
        self.directory().file_name().unwrap().to_string_lossy().strip_prefix("ostler-").unwrap().to_owned()
    }

    fn pages(&self) -> Vec<&str> {
        self.text.split_whitespace().filter_map(|word| word.strip_prefix("http://")?.strip_suffix('/')).collect()
    }

    /// Waits until no file and no process of the demo is left.
    fn leaves_nothing(&self) {
        let temporary = self.temporary.path();
        let left = || (files(temporary), processes(temporary));
        let deadline = Instant::now() + SOON;
        while left() != (Vec::new(), Vec::new()) {
            assert!(Instant::now() < deadline, "left behind: {:?}", left());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The processes that name the directory in their arguments or environment: all of the demo's but itself.
fn processes(directory: &Path) -> Vec<String> {
    let name = directory.as_os_str().as_encoded_bytes();
    let inside = [name, b"/"].concat();
    let mentions =
        |file: &PathBuf| fs::read(file).is_ok_and(|bytes| bytes.windows(inside.len()).any(|window| window == inside));
    let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    pids.filter(|pid| mentions(&pid.join("cmdline")) || mentions(&pid.join("environ")))
        .filter_map(|pid| Some(fs::read_to_string(pid.join("cmdline")).ok()?.replace('\0', " ")))
        .filter(|arguments| !arguments.is_empty())
        .collect()
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// The demo's own lines, without the output of commands, which may be wider.
fn narrated<'a>(text: &'a str) -> impl Iterator<Item = &'a str> {
    let wide = ["$ ostler status", "$ ostler node ls", "$ ostler session ls", "$ ostler session explain"];
    let mut answer = false;
    text.lines().filter(move |line: &&'a str| {
        if line.starts_with("$ ") || line.is_empty() {
            answer = wide.iter().any(|command| line.starts_with(command));
        }
        !answer && !line.starts_with('$')
    })
}

#[test]
fn it_shows_a_cluster_refusals_and_a_killed_leader_and_ends_by_itself() {
    let mut demo = Demo::start(NO_ENGINE, &["--for", "1s"]);
    demo.until(LAST_STEP);
    for told in [
        "Docker is not available",
        "3 nodes",
        "x-ostler-served-by: host-",
        "no_capacity",
        "(physical ",
        "exceeds_physical",
        "waits for ",
        "draining",
        "s after host-",
        "term 2 after term 1",
        " unknown ",
        "Nothing is lost.",
        "export OSTLER_SOCKET=",
    ] {
        let told_in = demo.text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(told_in.contains(told.trim()), "`{told}` in {}", demo.text);
    }
    for refusal in ["no_capacity", "exceeds_physical"] {
        for node in ["host-a", "host-b", "host-c"] {
            let named = |line: &str| line.starts_with(node) && line.contains(refusal);
            assert!(demo.text.lines().any(named), "{node} {refusal}: {}", demo.text);
        }
    }
    for line in narrated(&demo.text) {
        let ours = line.contains(demo.temporary.path().to_str().unwrap());
        assert!(ours || line.chars().count() <= 80, "too wide: {line}");
    }
    // The pages at the end: every session runs by then.
    let pages: std::collections::BTreeSet<&str> = demo.pages().into_iter().rev().take(6).collect();
    assert_eq!(pages.len(), 6, "{}", demo.text);
    for address in pages {
        let page = get(address);
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("Hello, "), "{page}");
    }
    assert_eq!(agents(demo.temporary.path()), 3, "the killed agent runs again");
    let status = demo.ended();
    assert!(status.success(), "{status}: {}", demo.text);
    assert!(demo.text.ends_with("Nothing is left behind.\n"), "{}", demo.text);
    // The demo waits for its cleanup: nothing is left when it ends.
    assert_eq!((files(demo.temporary.path()), processes(demo.temporary.path())), (Vec::new(), Vec::new()));
}

/// How many agents of the demo run.
fn agents(directory: &Path) -> usize {
    processes(directory).iter().filter(|arguments| arguments.contains(AGENT)).count()
}

#[test]
fn killed_at_any_point_it_leaves_nothing() {
    for point in [
        "Continuing with",
        "1. Three nodes",
        "$ ostler session create page --user carol",
        "$ ostler node drain",
        "$ pkill",
        "10. Its agent",
        LAST_STEP,
    ] {
        let mut demo = Demo::start(NO_ENGINE, &[]);
        demo.until(point);
        demo.signal(Signal::KILL);
        demo.process.wait().unwrap();
        demo.leaves_nothing();
    }
}

#[test]
fn ended_by_a_signal_it_leaves_nothing() {
    for (point, signal, code) in [
        ("3. A session", Signal::INT, 130),
        ("5. Let", Signal::TERM, 130),
        ("9. The leader", Signal::INT, 130),
        (LAST_STEP, Signal::INT, 0),
        (LAST_STEP, Signal::HUP, 0),
    ] {
        let mut demo = Demo::start(NO_ENGINE, &["--for", "5m"]);
        demo.until(point);
        demo.signal(signal);
        assert_eq!(demo.ended().code(), Some(code), "{signal:?} at `{point}`: {}", demo.text);
        demo.leaves_nothing();
    }
}

#[test]
fn a_closed_standard_output_ends_it() {
    let mut demo = Demo::start(NO_ENGINE, &[]);
    demo.until("2. A catalogue");
    let unread = std::mem::replace(&mut demo.output, BufReader::new(closed()));
    drop(unread);
    assert!(demo.process.wait().unwrap().success());
    demo.leaves_nothing();
}

/// The output of a process that has none.
fn closed() -> ChildStdout {
    let mut quiet = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    let output = quiet.stdout.take().unwrap();
    quiet.wait().unwrap();
    output
}

#[test]
fn an_agent_that_dies_is_reported_with_its_log() {
    let mut demo = Demo::start(NO_ENGINE, &["--for", "5m"]);
    demo.until(LAST_STEP);
    kill_process(pid_of("host-b.toml", demo.temporary.path()), Signal::KILL).unwrap();
    assert_eq!(demo.ended().code(), Some(1));
    let mut errors = String::new();
    demo.process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.contains("the agent of host-b has ended") && errors.contains("kind=session_created"), "{errors}");
    assert!(!errors.contains("host-a:"), "only the log of the ended agent is shown: {errors}");
    demo.leaves_nothing();
}

#[test]
fn an_agent_that_dies_during_the_show_is_reported_too() {
    let mut demo = Demo::start(NO_ENGINE, &["--for", "5m"]);
    demo.until("2. A catalogue");
    kill_process(pid_of("host-c.toml", demo.temporary.path()), Signal::KILL).unwrap();
    assert_eq!(demo.ended().code(), Some(1), "{}", demo.text);
    let mut errors = String::new();
    demo.process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.contains("the agent of host-c has ended"), "{errors}");
    demo.leaves_nothing();
}

fn pid_of(arguments: &str, directory: &Path) -> Pid {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        line.contains(arguments) && line.contains(directory.to_str().unwrap())
    };
    Pid::from_raw(pids.into_iter().find(is_it).unwrap()).unwrap()
}

#[test]
fn docker_without_permission_is_reported() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = place.path().join("docker.sock");
    let _engine = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    // No mode keeps root from a socket, so the demo runs as another user, which cannot reach cargo's directory.
    let nobody = rustix::process::geteuid().is_root().then_some(65534);
    let program = place.path().join("ostler");
    fs::copy(env!("CARGO_BIN_EXE_ostler"), &program).unwrap();
    let mut demo = Demo::start_as(nobody, &program, &format!("unix://{}", socket.display()), &["--for", "1s"]);
    assert!(demo.ended().success(), "{}", demo.text);
    assert!(demo.text.contains("no permission to use") && demo.text.contains("process runtime"), "{}", demo.text);
    demo.leaves_nothing();
}

mod docker {
    use super::*;

    const ENGINE: &str = "unix:///var/run/docker.sock";

    #[test]
    fn with_containers_it_leaves_nothing() {
        if !available("with_containers_it_leaves_nothing") {
            return;
        }
        let mut demo = Demo::start(ENGINE, &["--for", "1s"]);
        demo.until("click one");
        let cluster = demo.cluster();
        assert_eq!(of_cluster(&cluster, &["ps", "--quiet"]).len(), 6, "the filter finds the demo's containers");
        assert!(demo.ended().success(), "{}", demo.text);
        assert!(demo.text.contains("no_capacity") && demo.text.contains("exceeds_physical"), "{}", demo.text);
        demo.leaves_nothing();
        assert_eq!(left(&cluster), Vec::<String>::new());
    }

    #[test]
    fn killed_with_containers_it_leaves_nothing() {
        if !available("killed_with_containers_it_leaves_nothing") {
            return;
        }
        for point in ["OSTLER_SOCKET=", "$ ostler session create page --user bob", "$ pkill", LAST_STEP] {
            let mut demo = Demo::start(ENGINE, &[]);
            demo.until(point);
            let cluster = demo.cluster();
            demo.signal(Signal::KILL);
            demo.process.wait().unwrap();
            demo.leaves_nothing();
            assert_eq!(left(&cluster), Vec::<String>::new(), "killed at `{point}`");
        }
    }

    #[test]
    fn killed_while_the_image_is_made_it_leaves_nothing() {
        if !available("killed_while_the_image_is_made_it_leaves_nothing") {
            return;
        }
        for patience in [0, 100, 200, 400] {
            let demo = Demo::start(ENGINE, &[]);
            let deadline = Instant::now() + SOON;
            let importing =
                || files(demo.temporary.path()).first().is_some_and(|place| place.join("importing").exists());
            while !importing() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            let place = files(demo.temporary.path()).remove(0);
            let cluster = place.file_name().unwrap().to_string_lossy().strip_prefix("ostler-").unwrap().to_owned();
            // Different points of the import. The outcome is the same at each.
            std::thread::sleep(Duration::from_millis(patience));
            demo.signal(Signal::KILL);
            demo.leaves_nothing();
            assert_eq!(left(&cluster), Vec::<String>::new(), "killed after {patience} ms");
        }
    }

    fn available(test: &str) -> bool {
        let engine = Command::new("docker").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let answers = engine.is_ok_and(|status| status.success());
        if !answers {
            support::skip(test, "docker");
        }
        answers
    }

    /// Containers, volumes, networks and images of the demo.
    fn left(cluster: &str) -> Vec<String> {
        let mut left = of_cluster(cluster, &["ps", "--all", "--quiet"]);
        left.extend(of_cluster(cluster, &["volume", "ls", "--quiet"]));
        left.extend(of_cluster(cluster, &["network", "ls", "--quiet"]));
        let tag = cluster.strip_prefix("demo-").unwrap();
        left.extend(docker(&["images", "--quiet", &format!("ostler-demo:{tag}")]));
        left
    }

    fn of_cluster(cluster: &str, arguments: &[&str]) -> Vec<String> {
        let filter = format!("label=ostler.cluster={cluster}");
        docker(&[arguments, &["--filter", &filter]].concat())
    }

    fn docker(arguments: &[&str]) -> Vec<String> {
        let output = Command::new("docker").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}
