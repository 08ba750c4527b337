//! The agent as a systemd service of this host: starts it if it is installed, and waits until it answers.

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
/// How long a started agent may take to answer and to find other nodes.
const MEETING: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Starts the service, or restarts it if it runs. Returns false if this host has no such service; it then prints how to
/// start the agent with this configuration.
///
/// # Errors
/// The service exists and does not start.
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
        _ => Err(Failure::Failed(format!("{UNIT} does not start; to see why, run: journalctl -u {UNIT}"))),
    }
}

/// Waits until the agent at `socket` answers and sees `enough` nodes alive. Returns its list of nodes.
///
/// # Errors
/// The agent did not answer, or did not see enough nodes, within [`MEETING`].
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
                    "the agent runs but found no other node within {} s; check that the token is the cluster's and \
                    that UDP reaches the other nodes; the agent keeps trying: see its log and `ostler node ls`",
                    MEETING.as_secs()
                )));
            }
            Err(failure) if Instant::now() >= deadline => return Err(failure),
            _ => sleep(ASK_EVERY).await,
        }
    }
}
