//! `ostler init` and `ostler join`, as a new user runs them on two hosts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::agent::{Agent, Output, until};

/// A host with systemd and the service: a script in place of `systemctl` runs the agent as the unit would.
struct Host {
    agent: Agent,
    bin: TempDir,
}

impl Host {
    /// A host whose configuration names no seed, and that has no token.
    fn new(cluster: &str, name: &str) -> Self {
        let agent = Agent::prepare("");
        let mesh = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let configuration = agent.configuration(&format!(
            "node = {{ name = '{name}' }}\n\
             cluster = {{ name = '{cluster}', listen = '{mesh}', advertise = '{mesh}' }}"
        ));
        agent.configure(&configuration);
        let bin = tempfile::tempdir().unwrap();
        let host = Self { agent, bin };
        let script = format!(
            "#!/bin/sh\n[ $1 = cat ] && exit 0\n[ \"$1 $2\" = 'restart ostler.service' ] || exit 1\n\
             if [ -e {pid} ]; then kill $(cat {pid}); while kill -0 $(cat {pid}) 2>/dev/null; do sleep 0.05; done; fi\n\
             setsid {program} agent --dev --config {config} >{log} 2>&1 </dev/null &\necho $! >{pid}\n",
            program = env!("CARGO_BIN_EXE_ostler"),
            config = host.agent.config_file().display(),
            log = host.bin.path().join("log").display(),
            pid = host.pid_file().display(),
        );
        let systemctl = host.bin.path().join("systemctl");
        fs::write(&systemctl, script).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        host
    }

    fn pid_file(&self) -> PathBuf {
        self.bin.path().join("pid")
    }

    fn token_file(&self) -> PathBuf {
        self.agent.directory().join("token")
    }

    /// Runs a command of the program on this host, with its configuration.
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let path = format!("{}:{}", self.bin.path().display(), std::env::var("PATH").unwrap());
        let config = self.agent.config_file();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--config", config.to_str().unwrap()]).collect();
        self.agent.cli_with(&arguments, &[("PATH", &path)], input)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.bin.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.pid_file()).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        if let Some(pid) = pid
            && kill_process(pid, Signal::TERM).is_ok()
        {
            // The agent is not a child of this process, so its process id is free once it has ended.
            until("the agent has stopped", || rustix::process::test_kill_process(pid).is_err());
        }
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

#[test]
fn init_creates_the_token_and_join_adds_a_host_with_it() {
    let cluster = crate::support::agent::unique_name();
    let first = Host::new(&cluster, "host-a");
    let made = first.run(&["init"], "");
    assert_eq!(made.code, 0, "{}{}", made.stdout, made.stderr);
    assert!(made.stdout.contains("host-a"), "the node is shown: {}", made.stdout);
    assert_eq!(fs::metadata(first.token_file()).unwrap().permissions().mode() & 0o777, 0o600);
    let token = fs::read_to_string(first.token_file()).unwrap();
    assert!(!made.stdout.contains(token.trim()) && !made.stderr.contains(token.trim()), "the token is not shown");
    let join =
        made.stderr.lines().find_map(|line| line.split_once("ostler join ")).expect("the command for other hosts");
    let seed = join.1.split(' ').next().unwrap().to_owned();
    assert!(first.run(&["init"], "").failed(3).contains("already belongs to a cluster"));

    let second = Host::new(&cluster, "host-b");
    assert!(second.run(&["join", &seed], "").failed(2).contains("--token-file"));
    let guessed = second.run(&["join", &seed, "--token-file", "-"], "password\n").failed(1);
    assert!(guessed.contains("not a cluster token"), "{guessed}");
    second.run(&["join", "not a host", "--token-file", "-"], &token).failed(1);
    assert!(!second.token_file().exists(), "a failed join changes nothing");

    let joined = second.run(&["join", &seed, "--token-file", "-"], &token);
    assert_eq!(joined.code, 0, "{}{}{}", joined.stdout, joined.stderr, second.log());
    assert!(joined.stdout.contains("host-a") && joined.stdout.contains("host-b"), "{}", joined.stdout);
    assert!(fs::read_to_string(second.agent.config_file()).unwrap().contains(&seed));
    second.run(&["join", &seed, "--token-file", "-"], &token).ok();
    let other = "Zt8mPq1rLc4vXs7kWy0hBd3fNg6jAe9uTo2iRb5nQxE";
    assert!(second.run(&["join", &seed, "--token-file", "-"], other).failed(3).contains("another cluster"));
    until("the first host sees it too", || first.agent.cli(&["node", "ls"]).stdout.contains("host-b"));
}

#[test]
fn without_the_service_init_prints_how_to_start_the_agent() {
    let host = Host::new("lonely", "host-a");
    let nowhere = tempfile::tempdir().unwrap();
    let config = host.agent.config_file();
    let path = nowhere.path().to_str().unwrap();
    let made = host.agent.cli_with(&["init", "--config", config.to_str().unwrap()], &[("PATH", path)], "");
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stderr.contains("ostler agent --config"), "{}", made.stderr);
    let run = Command::new(env!("CARGO_BIN_EXE_ostler")).args(["token", "generate"]).output().unwrap();
    assert!(run.status.success());
}
