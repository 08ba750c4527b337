//! Debian's nginx and haproxy as child processes in front of an agent. They listen on unix sockets in a directory of
//! their own, so that no test needs a free port.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::agent::until;
use super::http::{Address, Client};

/// The `Host` under which nginx passes requests on by default: the name of its upstream.
pub(crate) const UPSTREAM: &str = "agents";

/// A running proxy. Dropping it ends it.
pub(crate) struct Proxy {
    directory: TempDir,
    child: Child,
}

impl Proxy {
    /// nginx, or `None` after the note of a skip if the machine lacks it. It serves `default.sock` with its defaults,
    /// and `kept.sock` over kept connections, which it closes after `keep`.
    pub(crate) fn nginx(test: &str, agent: &str, keep: &str) -> Option<Self> {
        let program = find(test, "nginx")?;
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("    {what}_temp_path {root}/{what};\n"))
            .concat();
        let configuration = format!(
            r#"
daemon off;
master_process off;
pid {root}/nginx.pid;
error_log {root}/log info;
events {{}}
http {{
    access_log off;
{temporary}
    upstream {UPSTREAM} {{
        server {agent};
        keepalive 4;
        keepalive_timeout {keep};
    }}
    server {{
        listen unix:{root}/default.sock;
        location / {{ proxy_pass http://{UPSTREAM}; }}
    }}
    server {{
        listen unix:{root}/kept.sock;
        location / {{
            proxy_pass http://{UPSTREAM};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
        }}
    }}
}}
"#
        );
        let file = write(&directory, &configuration);
        let mut command = Command::new(program);
        command.arg("-e").arg(directory.path().join("log")).arg("-c").arg(file).arg("-p").arg(directory.path());
        Some(Self::start(command, directory, &["default.sock", "kept.sock"]))
    }

    /// haproxy, or `None` after the note of a skip if the machine lacks it. It serves `default.sock`, checks the agent
    /// with `option httpchk`, and answers the state of its checks on `admin.sock`.
    pub(crate) fn haproxy(test: &str, agent: &str) -> Option<Self> {
        let program = find(test, "haproxy")?;
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        let configuration = format!(
            "
global
    stats socket {root}/admin.sock
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend all
    bind {root}/default.sock
    default_backend {UPSTREAM}
backend {UPSTREAM}
    option httpchk GET /readyz
    server one {agent} check inter 100ms
"
        );
        let file = write(&directory, &configuration);
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(file);
        Some(Self::start(command, directory, &["default.sock", "admin.sock"]))
    }

    fn start(mut command: Command, directory: TempDir, sockets: &[&str]) -> Self {
        let output = fs::File::create(directory.path().join("output")).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut proxy = Self { child: command.spawn().unwrap(), directory };
        until("the proxy listens", || {
            assert!(proxy.child.try_wait().unwrap().is_none(), "the proxy ended: {}", proxy.log());
            sockets.iter().all(|socket| std::os::unix::net::UnixStream::connect(proxy.path(socket)).is_ok())
        });
        proxy
    }

    /// A client of this socket of the proxy, with an API token or none.
    pub(crate) fn client(&self, socket: &str, token: Option<&str>) -> Client {
        Client { address: Address::Socket(self.path(socket)), token: token.map(str::to_owned) }
    }

    pub(crate) fn log(&self) -> String {
        ["output", "log"].map(|file| fs::read_to_string(self.path(file)).unwrap_or_default()).concat()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the proxy's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program. Debian has it in a directory that is not in the PATH of every user.
pub(crate) fn find(test: &str, name: &str) -> Option<PathBuf> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&directories).collect();
    directories.push("/usr/sbin".into());
    let found = directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    if found.is_none() {
        super::skip(test, name);
    }
    found
}

fn write(directory: &TempDir, configuration: &str) -> PathBuf {
    let file = directory.path().join("configuration");
    fs::write(&file, configuration).unwrap();
    file
}

/// The local addresses of the TCP connections to `agent`, an IPv4 address, in this state of `/proc/net/tcp`.
pub(crate) fn connections_to(agent: &str, state: &str) -> Vec<String> {
    let port: u16 = agent.rsplit(':').next().unwrap().parse().unwrap();
    let remote = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[2].ends_with(&remote) && row[3] == state).map(|row| row[1].to_owned()).collect()
}
