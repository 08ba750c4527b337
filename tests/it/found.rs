//! `ostler init` and `ostler join`, as a new user runs them on two hosts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::agent::{Agent, Output, until};
use crate::support::skip;

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

/// A token with a byte order mark, a line end of Windows and blanks around it, as editors and templates write it.
fn padded(token: &str) -> String {
    format!("\u{feff}\r\n {token} \r\n")
}

#[test]
fn the_agent_join_and_login_take_the_same_token_files() {
    let token = "Zt8mPq1rLc4vXs7kWy0hBd3fNg6jAe9uTo2iRb5nQxE";
    let mut agent = Agent::prepare("");
    let cluster_token = agent.directory().join("token");
    fs::write(&cluster_token, padded(token)).unwrap();
    fs::set_permissions(&cluster_token, fs::Permissions::from_mode(0o400)).unwrap();
    agent.up();
    let config = agent.config_file();
    let nowhere = tempfile::tempdir().unwrap();
    let join = |file: &str, input: &str| {
        let arguments = ["join", "127.0.0.1:1", "--config", config.to_str().unwrap(), "--token-file", file];
        agent.cli_with(&arguments, &[("PATH", nowhere.path().to_str().unwrap())], input)
    };
    // The agent's file and the input hold one token: join finds nothing to change.
    join("-", &padded(token)).ok();
    join(cluster_token.to_str().unwrap(), "").ok();

    let api_token = agent.token("read");
    let file = agent.directory().join("api-token");
    fs::write(&file, padded(&api_token)).unwrap();
    let url = format!("http://{}", agent.tcp_address());
    agent.cli(&["login", &url, "--token-file", file.to_str().unwrap()]).ok();
    agent.cli_with(&["login", &url], &[], &padded(&api_token)).ok();
    agent
        .cli_with(&["--node", &url, "status"], &[("OSTLER_SOCKET", ""), ("OSTLER_API_TOKEN", &padded(&api_token))], "")
        .ok();

    // A byte inside of it is named, with its offset, and no part of the token is shown.
    let broken = |token: &str| format!("{}\u{7f}{}", &token[..20], &token[20..]);
    let odd = |told: String, token: &str| {
        assert!(told.contains("byte 0x7f at offset ") && !told.contains(&token[..10]), "{told}");
        assert!(!told.contains("token generate"), "a new token is not needed: {told}");
    };
    odd(join("-", &broken(token)).failed(1), token);
    odd(agent.cli_with(&["login", &url], &[], &broken(&api_token)).failed(1), &api_token);
    fs::write(&file, broken(&api_token)).unwrap();
    odd(agent.cli(&["login", &url, "--token-file", file.to_str().unwrap()]).failed(1), &api_token);
    fs::write(&file, broken(token)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    odd(join(file.to_str().unwrap(), "").failed(1), token);
}

#[test]
fn a_credential_of_systemd_is_readable_by_its_group_and_no_other_file_is() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_credential_of_systemd_is_readable_by_its_group_and_no_other_file_is", "root");
    }
    let agent = Agent::prepare("");
    let credentials = tempfile::tempdir().unwrap();
    let file = credentials.path().join("token");
    fs::write(&file, "Zt8mPq1rLc4vXs7kWy0hBd3fNg6jAe9uTo2iRb5nQxE").unwrap();
    // A group that is neither root's nor the process's own, as the mask of an ACL looks like.
    std::os::unix::fs::chown(&file, None, Some(65_533)).unwrap();
    let mode = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&file, 0o440);
    mode(credentials.path(), 0o500);
    let config = agent.config_file();
    let nowhere = tempfile::tempdir().unwrap();
    let join = |directory: &std::path::Path| {
        let file = file.to_str().unwrap();
        let arguments = ["join", "127.0.0.1:1", "--config", config.to_str().unwrap(), "--token-file", file];
        let env = [("PATH", nowhere.path()), ("CREDENTIALS_DIRECTORY", directory)];
        agent.cli_with(&arguments, &env.map(|(name, path)| (name, path.to_str().unwrap())), "")
    };
    for (wrong, directory, file_mode, directory_mode) in [
        ("readable by group 65533 (mode 0440)", nowhere.path(), 0o440, 0o500),
        ("readable by group 65533 (mode 0440)", credentials.path(), 0o440, 0o555),
        ("accessible by others (mode 0444)", credentials.path(), 0o444, 0o500),
    ] {
        mode(&file, file_mode);
        mode(credentials.path(), directory_mode);
        let told = join(directory).failed(1);
        assert!(told.contains(&format!("{wrong}; run: chmod 600")), "{told}");
    }
    mode(&file, 0o440);
    mode(credentials.path(), 0o550);
    join(credentials.path()).ok();
}
