//! Sessions that nobody uses are stopped, and those that somebody uses are not, whatever else happens on the network.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{WEB, add, configuration, id};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, SOCKET};
use crate::support::netns::run;

/// Seconds.
const IDLE_TIMEOUT: u64 = 5;

/// Another computer on a network with this host, with two addresses.
struct Outside {
    name: String,
    subnet: String,
}

impl Outside {
    /// `None`, after printing SKIPPED, if namespaces cannot be created here.
    fn new(test: &str, lab: &Lab) -> Option<Self> {
        let name = format!("o{}", lab.cluster);
        // A part of the range for benchmarks (RFC 2544), which nobody uses; by the name, so that tests do not meet.
        let subnet =
            format!("198.18.{}", lab.cluster.as_str().bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(31) ^ byte));
        let outside = Self { name, subnet };
        if !run("ip", &format!("netns add {}", outside.name)) {
            crate::support::skip(test, "netns");
            return None;
        }
        let (name, device) = (&outside.name, outside.device());
        for arguments in [
            format!("link add {device} type veth peer name eth0 netns {name}"),
            format!("address add {}/24 dev {device}", outside.host()),
            format!("address add {}/24 dev {device}", outside.probed_host()),
            format!("link set {device} up"),
            format!("-n {name} address add {}/24 dev eth0", outside.person()),
            format!("-n {name} address add {}/24 dev eth0", outside.monitor()),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add {}/32 dev eth0 src {}", outside.probed_host(), outside.monitor()),
        ] {
            assert!(run("ip", &arguments), "ip {arguments}");
        }
        Some(outside)
    }

    /// An interface's name has 15 characters at most.
    fn device(&self) -> String {
        format!("v{}", &self.name[self.name.len().saturating_sub(14)..])
    }

    /// The address of this host that the person uses.
    fn host(&self) -> String {
        format!("{}.1", self.subnet)
    }

    /// The address of this host that the monitor uses.
    fn probed_host(&self) -> String {
        format!("{}.2", self.subnet)
    }

    fn person(&self) -> String {
        format!("{}.3", self.subnet)
    }

    fn monitor(&self) -> String {
        format!("{}.4", self.subnet)
    }

    /// A connection to a port at one of this host's addresses. It is open until its input is closed.
    fn connect(&self, to: &str, port: u64) -> Child {
        Command::new("ip")
            .args(["netns", "exec", &self.name, "busybox", "nc", to, &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Asks for a page, as a monitor does.
    fn probe(&self, to: &str, port: u64) -> bool {
        let mut connection = self.connect(to, port);
        let asked = connection.stdin.take().unwrap().write_all(b"GET /index.html HTTP/1.0\r\n\r\n");
        let answered = connection.wait_with_output().is_ok_and(|output| output.stdout.ends_with(b"hello\n"));
        asked.is_ok() && answered
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        run("ip", &format!("link delete {}", self.device()));
        run("ip", &format!("netns delete {}", self.name));
    }
}

fn port(session: &Value) -> u64 {
    session["endpoints"][0]["host_port"].as_u64().unwrap()
}

fn is_idle_expired(agent: &Agent, session: &Value) -> bool {
    let session = agent.session(&id(session));
    session["state"] == "stopped" && session["end_reason"] == "idle_expired"
}

#[test]
fn only_connections_to_its_ports_keep_a_session_and_probes_and_neighbours_do_not() {
    let name = "only_connections_to_its_ports_keep_a_session_and_probes_and_neighbours_do_not";
    let Some(lab) = Lab::open(name) else { return };
    let Some(outside) = Outside::new(name, &lab) else { return };
    let everywhere =
        configuration(&lab, SOCKET).replace("publish_address = '127.0.0.1'", "publish_address = '0.0.0.0'");
    let ignoring = format!("idle_ignore = ['{}'], kind =", outside.monitor());
    let agent = Agent::start(&everywhere.replace("kind =", &ignoring));
    let timeout = json!({"ports": [{"container_port": 8080}], "idle_timeout_seconds": IDLE_TIMEOUT});
    add(&agent, &lab, "web", WEB, &timeout);
    add(&agent, &lab, "listener", "exec nc -ll -p 8080 -e cat", &timeout);
    let start = |workspace, user| agent.running(workspace, user);
    let [alone, probed] = [start("web", "alone"), start("web", "probed")];
    let [used, near] = [start("listener", "used"), start("listener", "near")];
    assert!(alone["expires_at"].is_string(), "the idle end is told before it comes: {alone}");

    // Through the engine's address translation, and through its proxy.
    let mut person = outside.connect(&outside.host(), port(&used));
    let beside = TcpStream::connect(("127.0.0.1", u16::try_from(port(&near)).unwrap())).unwrap();
    until("the monitor has an answer", || outside.probe(&outside.probed_host(), port(&probed)));
    until("the monitor has its answers until the session is stopped", || {
        outside.probe(&outside.probed_host(), port(&probed));
        is_idle_expired(&agent, &probed)
    });
    until("the session that nobody uses is stopped", || is_idle_expired(&agent, &alone));
    let message = agent.session(&id(&alone))["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "idle for 5s: nobody used its published ports, and nobody kept it alive");
    for session in [&used, &near] {
        assert_eq!(agent.session(&id(session))["state"], "running");
    }

    drop(beside);
    until("the session whose neighbour on the host left is stopped", || is_idle_expired(&agent, &near));
    assert_eq!(agent.session(&id(&used))["state"], "running");
    drop(person.stdin.take());
    person.wait().unwrap();
    until("the session that the person left is stopped", || is_idle_expired(&agent, &used));
}
