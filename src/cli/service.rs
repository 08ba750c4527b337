//! The agent as a service of this host: started where systemd knows it, waited for where it answers.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::connection::Connection;
use super::failure::Failure;
use super::output::{Body, Output};
use super::route::Route;
use crate::types::{List, Node, NodeState};

/// The service that the packages install.
const UNIT: &str = "ostler.service";
/// How long a started agent may take to answer, and to meet the others.
const MEETING: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Starts the service, anew where it runs. False where this host has no such service: then how to start the agent
/// with this configuration is told.
///
/// # Errors
/// It has one, which does not start.
pub(super) async fn start(config: Option<&Path>, out: &Output) -> Result<bool, Failure> {
    let known = Command::new("systemctl").args(["cat", UNIT]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !known.await.is_ok_and(|status| status.success()) {
        let config = config.map(|file| format!(" --config {}", file.display())).unwrap_or_default();
        out.note(format!("This host has no ostler service. Start the agent: ostler agent{config}"));
        return Ok(false);
    }
    let started = Command::new("systemctl").args(["restart", UNIT]).stdin(Stdio::null()).status().await;
    match started {
        Ok(status) if status.success() => Ok(true),
        _ => Err(Failure::Failed(format!("{UNIT} does not start: `journalctl -u {UNIT}` says why"))),
    }
}

/// The nodes as the agent behind `socket` sees them, once it answers and `enough` of them are alive.
///
/// # Errors
/// The time is up: how far it came.
pub(super) async fn met(socket: &Path, enough: usize) -> Result<Body, Failure> {
    let connection = Connection { socket: Some(socket.to_owned()), isolated: true, ..Connection::default() };
    let client = Client::new(&connection.choose_here()?)?;
    let deadline = Instant::now() + MEETING;
    loop {
        let listed = client.list(Route::new(&["nodes"])).await;
        let alive = |nodes: &List<Node>| nodes.items.iter().filter(|node| node.state == NodeState::Alive).count();
        match listed.and_then(|body| Ok((alive(&body.read()?), body))) {
            Ok((alive, body)) if alive >= enough => return Ok(body),
            Ok(_) if Instant::now() >= deadline => {
                return Err(Failure::Unreachable(format!(
                    "the agent runs, and has met no other node in {} s: is the token theirs, and does UDP reach them? It \
                     goes on trying; its log says what it hears, and `ostler node ls` who is there",
                    MEETING.as_secs()
                )));
            }
            Err(failure) if Instant::now() >= deadline => return Err(failure),
            _ => sleep(ASK_EVERY).await,
        }
    }
}
