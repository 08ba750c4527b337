//! The real agent on the real engine. Each test has its own cluster and leaves nothing behind.
//!
//! The agent's answers are compared with those of the `docker` command, which shares no code with it.

mod ahead;
mod ends;
mod engine;
mod faults;
mod full_disk;
mod gpus;
mod idle;
mod image_commands;
mod images;
mod limits;
mod other_gpus;
mod own_engine;
mod peers;
mod prune;
mod pull;
mod ready;
mod recovery;
mod registry;
mod reserve;
mod stores;
mod storm;
mod strangers;

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, until};
use crate::support::docker::{Lab, SOCKET, docker, lines};

/// Runs until it is stopped.
const FOREVER: &str = "exec sleep 100000";
/// Serves a page that names the session's user.
const WEB: &str = "mkdir -p /tmp/w; echo hello $WHO > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";

/// The configuration of an agent on the lab's cluster and on the engine at `host`.
fn configuration(lab: &Lab, host: &str) -> String {
    format!(
        "cluster = {{ name = '{}' }}\n\
         runtime = {{ kind = 'docker', docker_host = '{host}', publish_address = '127.0.0.1', endpoint_host = '127.0.0.1' }}\n",
        lab.cluster
    )
}

/// An agent on the lab's engine.
fn start(lab: &Lab) -> Agent {
    Agent::start(&configuration(lab, SOCKET))
}

/// Adds a workspace that needs little of everything, unless `more` says otherwise.
fn add(agent: &Agent, lab: &Lab, name: &str, script: &str, more: &Value) {
    let mut all = json!({"image": lab.image, "cores": 0.05, "memory_bytes": 16 << 20, "shm_bytes": 1 << 20});
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    agent.workspace(name, script, &all);
}

/// A workspace whose sessions serve a page on an endpoint.
fn add_web(agent: &Agent, lab: &Lab) {
    add(agent, lab, "web", WEB, &json!({"ports": [{"container_port": 8080}], "env": {"WHO": "{user}"}}));
}

fn id(session: &Value) -> String {
    session["id"].as_str().unwrap().to_owned()
}

fn container(lab: &Lab, id: &str) -> String {
    lab.container(&id.parse().unwrap())
}

/// Waits until the container of a session runs [`FOREVER`]: a signal that arrives before its first process is ready is
/// lost.
fn until_it_sleeps(lab: &Lab, id: &str) {
    let container = container(lab, id);
    until("the command runs", || docker(&["top", &container, "-eo", "pid,comm"]).contains(" sleep"));
}

/// The container of the session, and the start and state of its run.
fn run(lab: &Lab, id: &str) -> String {
    docker(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}} {{.State.Status}}", &container(lab, id)])
}

/// The sessions of the cluster's containers in any state, sorted.
fn sessions_of_containers(lab: &Lab) -> Vec<String> {
    let of_cluster = format!("label=ostler.cluster={}", lab.cluster);
    let mut sessions = lines(&["ps", "--all", "--filter", &of_cluster, "--format", r#"{{.Label "ostler.session"}}"#]);
    sessions.sort_unstable();
    sessions
}

/// Waits until the session serves a page on its first endpoint, and returns it.
fn page(session: &Value) -> String {
    let port = u16::try_from(session["endpoints"][0]["host_port"].as_u64().unwrap()).unwrap();
    let mut text = String::new();
    until("a page", || {
        text = fetch(port).unwrap_or_default();
        !text.is_empty()
    });
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn fetch(port: u16) -> std::io::Result<String> {
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.set_read_timeout(Some(SOON))?;
    server.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    server.read_to_string(&mut text)?;
    Ok(text)
}

/// Removes the session and waits until nothing is left of it.
fn remove(agent: &Agent, id: &str) {
    agent.delete(&format!("/v1/sessions/{id}?wait=true&timeout=60s")).expect(200);
}

/// The message of the node's condition of this kind, if there is one.
fn condition(agent: &Agent, kind: &str) -> Option<String> {
    let node = agent.node();
    let found = node["conditions"].as_array().unwrap().iter().find(|condition| condition["kind"] == kind);
    found.map(|condition| condition["message"].as_str().unwrap().to_owned())
}

fn command(agent: &Agent, id: &str, what: &str) {
    let answer = agent.client().command(&format!("/v1/sessions/{id}/{what}"));
    assert!(answer.status < 300, "{}", answer.text());
}
