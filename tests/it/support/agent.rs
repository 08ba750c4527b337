//! The real agent as a child process with its own directory, under `--dev`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Address, Client, Request, Response};

/// How long a condition may take to become true on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// The pause between two checks of a condition.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Host ports for one agent's sessions.
const PORTS_EACH: u16 = 40;
/// The first agent's first port.
const FIRST_PORT: u16 = 10_000;
/// How many agents have different ports before the ranges repeat. The ranges lie below the kernel's ephemeral ports.
const PORT_SLOTS: u32 = 550;

/// The exit code and output of a command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in: {text}"))
    }

    /// The standard error of a command that must have ended with this code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// An agent and its files. Dropping it removes its sessions, stops it and leaves nothing behind.
pub(crate) struct Agent {
    directory: TempDir,
    program: PathBuf,
    /// The network namespace of the agent and its sessions; `None` for the test's own.
    namespace: Option<String>,
    /// Where it looks for programs first.
    programs: Option<PathBuf>,
    child: Option<Child>,
    /// The number of starts. Each start writes its own log.
    starts: u32,
}

impl Agent {
    /// Starts an agent with the process runtime. `extra` is added to the sections of its configuration, as in
    /// [`Self::configuration`].
    pub(crate) fn start(extra: &str) -> Self {
        let mut agent = Self::prepare(extra);
        agent.up();
        agent
    }

    /// The same, not started yet.
    pub(crate) fn prepare(extra: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // If the test runs as root, sessions run as another user, which must be able to traverse the directory.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let agent = Self {
            directory,
            program: env!("CARGO_BIN_EXE_ostler").into(),
            namespace: None,
            programs: None,
            child: None,
            starts: 0,
        };
        let configuration = agent.configuration(extra);
        agent.configure(&configuration);
        agent
    }

    /// The configuration of an agent with its own cluster, directories and ports. Sections of `extra`, such as
    /// `[runtime]`, `[node]`, `[cluster]`, `[http]` or `[log]`, are merged into it and take precedence.
    pub(crate) fn configuration(&self, extra: &str) -> String {
        let root = self.directory.path().display();
        let own: toml::Table = toml::from_str(&format!(
            r#"
            node = {{ name = "one", data_dir = "{root}/data" }}
            cluster = {{ name = "{cluster}", token_file = "{root}/token" }}
            http = {{ listen = "127.0.0.1:0", socket = "{root}/ostler.sock" }}
            runtime = {{ kind = "process", port_range = "{ports}", endpoint_host = "localhost" }}
            limits = {{ min_free_disk = 0 }}
            log = {{ level = "info,ostler::sessions=debug" }}
            "#,
            cluster = unique_name(),
            ports = own_ports(),
        ))
        .unwrap();
        let mut all: toml::Table = toml::from_str(extra).unwrap();
        for (section, keys) in own {
            let keys = keys.as_table().unwrap().clone();
            let joined = all.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
            for (key, value) in keys {
                joined.entry(key).or_insert(value);
            }
        }
        toml::to_string(&all).unwrap()
    }

    /// Writes the configuration file. A running agent does not read it again.
    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.config_file(), text).unwrap();
    }

    /// Upgrades the agent: from its next start on it runs this program.
    pub(crate) fn run_with(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// The agent runs in this network namespace from its next start on.
    pub(crate) fn live_in(&mut self, namespace: &str) {
        self.namespace = Some(namespace.to_owned());
    }

    /// From its next start on the agent looks for programs in this directory first.
    pub(crate) fn find_programs_in(&mut self, directory: &Path) {
        self.programs = Some(directory.to_owned());
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) fn up(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.spawn());
        let probe = self.client();
        let deadline = Instant::now() + SOON;
        while !probe.try_send(&Request::new("GET", "/readyz")).is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                panic!("the agent ended with {status}: {}", self.log());
            }
            assert!(Instant::now() < deadline, "the agent is not ready: {}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Starts the agent without waiting until it is ready.
    fn spawn(&mut self) -> Child {
        self.starts += 1;
        let log = File::create(self.log_file()).unwrap();
        let mut command = match &self.namespace {
            // `ip netns exec` would hide the control groups.
            Some(namespace) => {
                let mut nsenter = Command::new("nsenter");
                nsenter.arg(format!("--net=/run/netns/{namespace}")).arg(&self.program);
                nsenter
            }
            None => Command::new(&self.program),
        };
        command
            .args(["agent", "--dev", "--config"])
            .arg(self.config_file())
            .env_clear()
            .env("PATH", self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn path(&self) -> std::ffi::OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path);
        std::env::join_paths(self.programs.iter().cloned().chain(folders)).unwrap()
    }

    pub(crate) const fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    /// Sends the agent SIGHUP, as `systemctl reload` does.
    pub(crate) fn sighup(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::HUP).unwrap();
    }

    /// Freezes the agent's process with SIGSTOP, or lets it continue with SIGCONT.
    pub(crate) fn freeze(&self, freeze: bool) {
        let signal = if freeze { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Kills the agent with SIGKILL: it cannot send or flush anything.
    pub(crate) fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the agent with SIGTERM and waits until it has ended.
    pub(crate) fn sigterm(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// Stops the agent with SIGTERM and starts it again.
    pub(crate) fn restart(&mut self) {
        assert!(self.sigterm().success(), "{}", self.log());
        self.up();
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory.path().join("ostler.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("ostler.sock")
    }

    /// The agent's log since its last start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join(format!("agent-{}.log", self.starts))
    }

    /// A client of the unix socket: an administrator.
    pub(crate) fn client(&self) -> Client {
        Client { address: Address::Socket(self.socket()), token: None }
    }

    /// The TCP address of the agent: `127.0.0.1:PORT`.
    pub(crate) fn tcp_address(&self) -> String {
        self.logged_address("http=")
    }

    /// A client of the status listener, if the agent has one.
    pub(crate) fn status_client(&self) -> Client {
        Client { address: Address::Tcp(self.logged_address("status=")), token: None }
    }

    fn logged_address(&self, field: &str) -> String {
        let log = self.log();
        let found = log.split_whitespace().find_map(|word| word.strip_prefix(field));
        found.unwrap_or_else(|| panic!("the log has no address `{field}`: {log}")).to_owned()
    }

    /// A client over TCP, with this API token or none.
    pub(crate) fn tcp(&self, token: Option<&str>) -> Client {
        Client { address: Address::Tcp(self.tcp_address()), token: token.map(str::to_owned) }
    }

    /// A new API token of this role, for clients over TCP.
    pub(crate) fn token(&self, role: &str) -> String {
        let made = self.client().post("/v1/tokens", &json!({"name": format!("test-{role}"), "role": role}));
        made.expect(201)["secret"].as_str().unwrap().to_owned()
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.client().post(path, body)
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Response {
        self.client().put(path, body)
    }

    pub(crate) fn patch(&self, path: &str, body: &Value) -> Response {
        self.client().patch(path, body)
    }

    pub(crate) fn delete(&self, path: &str) -> Response {
        self.client().delete(path)
    }

    /// Runs `ostler …` to its end, against this agent's socket.
    pub(crate) fn cli<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        self.cli_with(arguments, &[], "")
    }

    /// The same, with extra environment variables and a text on standard input.
    pub(crate) fn cli_with<A: AsRef<OsStr>>(&self, arguments: &[A], env: &[(&str, &str)], input: &str) -> Output {
        let mut child = self.command(arguments).envs(env.iter().copied()).spawn().unwrap();
        // A program that does not read its input may have ended by now.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The command `ostler …` with its three streams piped.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("USER", "alice")
            .env("OSTLER_SOCKET", self.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Adds a workspace that runs `script` in a shell, with the fields of `more`.
    pub(crate) fn workspace(&self, name: &str, script: &str, more: &Value) {
        let mut workspace =
            json!({"name": name, "command": ["/bin/sh", "-c", script], "cores": 1, "memory_bytes": 64 << 20});
        for (key, value) in more.as_object().unwrap() {
            workspace[key] = value.clone();
        }
        self.post("/v1/workspaces", &workspace).expect(201);
    }

    /// Requests a session.
    pub(crate) fn create(&self, workspace: &str, user: &str) -> Response {
        self.post("/v1/sessions", &json!({"workspace": workspace, "user": user}))
    }

    /// Creates a session and waits until it runs.
    #[track_caller]
    pub(crate) fn running(&self, workspace: &str, user: &str) -> Value {
        let body = json!({"workspace": workspace, "user": user});
        let session = self.post("/v1/sessions?wait=running&timeout=60s", &body).expect(202);
        assert_eq!(session["state"], "running", "{session}: {}", self.log());
        session
    }

    /// The session as it is now.
    pub(crate) fn session(&self, id: &str) -> Value {
        self.get(&format!("/v1/sessions/{id}")).expect(200)
    }

    /// The node, as the API shows it.
    pub(crate) fn node(&self) -> Value {
        self.get("/v1/nodes/self").expect(200)
    }

    /// Sessions of every page, including removed ones if `all` is set.
    pub(crate) fn sessions(&self, all: bool) -> Vec<Value> {
        self.sessions_with(&format!("all={all}"))
    }

    /// Sessions of every page that this query selects.
    fn sessions_with(&self, query: &str) -> Vec<Value> {
        let mut sessions = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("/v1/sessions?{query}&limit=500{cursor}")).expect(200);
            sessions.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return sessions,
            }
        }
    }

    /// Waits until `wanted` accepts the session, and returns it.
    #[track_caller]
    pub(crate) fn until(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let session = self.session(id);
            if wanted(&session) {
                return session;
            }
            assert!(Instant::now() < deadline, "not yet {what}: {session}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the session is in this state.
    #[track_caller]
    pub(crate) fn until_state(&self, id: &str, state: &str) -> Value {
        self.until(id, state, |session| session["state"] == state)
    }

    /// The state file of a session in the process runtime; `null` if there is none.
    pub(crate) fn process_state(&self, id: &str) -> Value {
        let path = self.data_dir().join("process").join(id).join("state.json");
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// The ids of the sessions with a directory in the process runtime.
    pub(crate) fn process_directories(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.data_dir().join("process")) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.len() == 26)
            .collect();
        names.sort_unstable();
        names
    }

    fn clean_up(&mut self) {
        if self.starts == 0 {
            return;
        }
        if self.child.is_none() {
            self.up();
        }
        let deadline = Instant::now() + SOON;
        loop {
            let sessions = self.sessions_with("node=self");
            if sessions.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "sessions are not removed: {sessions:?}");
            for session in sessions {
                self.delete(&format!("/v1/sessions/{}", session["id"].as_str().unwrap()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.sigterm();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            println!("the agent's log:\n{}", self.log());
        }
        // A failed test must not abort the others, nor leave its sessions behind.
        let cleaned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clean_up()));
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        assert!(cleaned.is_ok() || failed, "the agent could not be cleaned up");
    }
}

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(SOON, what, condition);
}

/// The same, for what takes longer.
#[track_caller]
pub(crate) fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "not yet: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether the process is alive. A zombie is not.
pub(crate) fn lives(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// A cluster name that no other test on this host uses.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A range of host ports that no other agent of this test binary uses, and most likely none of another binary.
fn own_ports() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let slot = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORT_SLOTS;
    let slot = u16::try_from(slot).unwrap();
    let first = FIRST_PORT + slot * PORTS_EACH;
    format!("{first}-{}", first + PORTS_EACH - 1)
}
