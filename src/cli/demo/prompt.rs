//! The demo's prompt: prints commands as a user would type them, runs them in the same way, and prints
//! their output.

use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::narrator::Narrator;
use super::plan::Agent;
use super::stage::Stage;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::node::{draining, resources};
use crate::cli::route::Route;
use crate::cli::status::{Status, describe};
use crate::cli::table::table;
use crate::cli::{Cli, run};
use crate::types::{ErrorCode, List, Name, Node, Session};

/// How long the demo waits for a result. It usually takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The pause between two attempts of a command whose answer asks to try again.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// How long a page may take to answer once its session runs. It usually takes milliseconds.
const ANSWERING: Duration = Duration::from_secs(15);
/// Most bytes read of an answer. A page has 2 kB, and so has a list of the demo's sessions with its head.
const MAX_ANSWER: u64 = 64 << 10;
/// The prefix of ostler's own headers.
const HEADERS: &str = "x-ostler-";

/// Prints commands and runs them against one agent of the demo.
pub(super) struct Prompt<'a> {
    pub(super) stage: &'a Stage,
    pub(super) narrator: &'a Narrator<'a>,
    /// The agent that commands contact.
    asked: Agent<'a>,
    client: Client,
}

impl<'a> Prompt<'a> {
    pub(super) fn at(asked: Agent<'a>, stage: &'a Stage, narrator: &'a Narrator<'a>) -> Result<Self, Failure> {
        Ok(Self { stage, narrator, asked, client: stage.client(asked)? })
    }

    /// Contacts another agent from now on.
    pub(super) fn turn_to(&mut self, asked: Agent<'a>) -> Result<(), Failure> {
        *self = Self::at(asked, self.stage, self.narrator)?;
        self.export()
    }

    pub(super) fn asked(&self) -> &'static str {
        self.asked.name()
    }

    /// Prints the command that makes a shell contact this agent.
    pub(super) fn export(&self) -> Result<(), Failure> {
        self.narrator.command(&format!("export OSTLER_SOCKET={}", self.asked.socket().display()))
    }

    /// Prints the command that starts an agent. The keeper does start it.
    pub(super) fn start(&self, agent: Agent<'_>) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler agent --dev --config {} &", agent.configuration().display()))
    }

    /// Prints a command and runs it as a process of its own would.
    pub(super) async fn ostler(&self, line: &str) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler {line}"))?;
        let mut cli = Cli::try_parse_from(format!("ostler {line}").split(' '))
            .map_err(|e| Failure::Usage(format!("the demo's own command is invalid: {e}")))?;
        cli.connection = self.stage.connection(self.asked);
        // Boxed: the demo is itself a command, and an `async fn` cannot contain itself.
        Box::pin(run(cli)).await
    }

    /// Runs a command that the API must reject with this code, and prints the error.
    pub(super) async fn refused(&self, line: &str, code: ErrorCode) -> Result<(), Failure> {
        match self.ostler(line).await {
            Err(Failure::Api(refusal)) if refusal.code == Some(code) => {
                let failure = Failure::Api(refusal);
                self.narrator.out.text(failure.report().unwrap_or_default())
            }
            Err(failure) => Err(failure),
            Ok(()) => Err(Failure::Failed(format!("`ostler {line}` should have been rejected, but succeeded"))),
        }
    }

    /// Runs a command until its answer no longer asks to try again. It must carry an idempotency key.
    pub(super) async fn persist(&self, line: &str) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            match self.ostler(line).await {
                Err(failure) if asks_to_try_again(&failure) && begun.elapsed() < PATIENCE => {
                    self.narrator.out.text(failure.report().unwrap_or_default())?;
                    sleep(TRY_EVERY).await;
                }
                settled => return settled,
            }
        }
    }

    /// Prints the lines of `node show` about allocation.
    pub(super) async fn bars(&self, node: &Name) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler node show {node} | grep allocated"))?;
        let resources = resources(&self.node(node).await?, &self.narrator.out.terminal);
        let bars: Vec<&str> = resources.lines().filter(|line| line.contains("allocated")).collect();
        self.narrator.out.text(bars.join("\n"))
    }

    /// Prints the part of `node show` about a drain.
    pub(super) async fn drain(&self, node: &Name) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler node show {node} | grep -A5 Draining"))?;
        let out = self.narrator.out;
        let shown = draining(&self.node(node).await?, &out.terminal, out.now);
        out.text(shown.unwrap_or_default())
    }

    /// Prints the line of `status` about the leader.
    pub(super) async fn leads(&self) -> Result<(), Failure> {
        self.narrator.command("ostler status | grep leader")?;
        let status = describe(&self.status().await?, &self.narrator.out.terminal);
        let line: Vec<&str> = status.lines().filter(|line| line.contains("leader ")).collect();
        self.narrator.out.text(line.join("\n"))
    }

    /// Prints the headers of a list of sessions that name the nodes which answered.
    pub(super) async fn headers(&self) -> Result<(), Failure> {
        let socket = self.asked.socket();
        let line = format!("curl -si --unix-socket {} http://localhost/v1/sessions", socket.display());
        self.narrator.command(&format!("{line} | grep {HEADERS}"))?;
        let asked = async { get(UnixStream::connect(&socket).await?, "localhost", "/v1/sessions").await };
        let answer = timeout(ANSWERING, asked).await.unwrap_or_else(|late| Err(late.into()));
        let answer = answer.map_err(|e| Failure::Unreachable(format!("{}: {e}", socket.display())))?;
        let head = answer.lines().take_while(|line| !line.is_empty());
        self.narrator.out.text(head.filter(|line| line.starts_with(HEADERS)).collect::<Vec<_>>().join("\n"))
    }

    /// Prints the address of each session's page, once every page has answered.
    pub(super) async fn pages<'s>(&self, sessions: impl Iterator<Item = &'s Session>) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for session in sessions {
            let Some(endpoint) = session.endpoints.first() else { continue };
            let address = format!("{}:{}", endpoint.host, endpoint.host_port);
            let answered = timeout(ANSWERING, answered(&address, session.id.as_str())).await;
            answered.map_err(|_| Failure::Failed(format!("the page of {} does not answer", session.user)))?;
            rows.push(vec![session.user.to_string(), session.node.to_string(), format!("http://{address}/")]);
        }
        self.narrator.out.text(table(&["USER", "NODE", "PAGE"], rows))
    }

    /// The existing sessions, the oldest first.
    pub(super) async fn sessions(&self) -> Result<Vec<Session>, Failure> {
        let mut sessions = self.client.list(Route::new(&["sessions"])).await?.read::<List<Session>>()?.items;
        sessions.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(sessions)
    }

    /// A node, as it reports itself.
    async fn node(&self, node: &Name) -> Result<Node, Failure> {
        self.client.get(Route::new(&["nodes", node.as_str()])).await?.read()
    }

    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.client.get(Route::new(&["status"])).await?.read()
    }

    /// The agent of the leader and its term, once there is a leader.
    pub(super) async fn leader(&self) -> Result<(Agent<'a>, u64), Failure> {
        let led = async || {
            let Status { cluster, .. } = self.status().await?;
            let is_it =
                |agent: &Agent<'_>| cluster.leader.as_ref().is_some_and(|led| led.name.as_str() == agent.name());
            Ok(self.stage.plan.agents().find(is_it).map(|agent| (agent, cluster.term)))
        };
        self.until("no node is leader", led).await
    }

    /// Calls `ask` until it returns a value; `otherwise` is the error message if it does not in time.
    pub(super) async fn until<T>(
        &self,
        otherwise: &str,
        ask: impl AsyncFn() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            match ask().await {
                Ok(Some(answer)) => return Ok(answer),
                Err(failure) if !failure.is_unreachable() => return Err(failure),
                _ if begun.elapsed() >= PATIENCE => {
                    return Err(Failure::Failed(format!("{otherwise} after {} s", PATIENCE.as_secs())));
                }
                _ => sleep(ASK_EVERY).await,
            }
        }
    }
}

/// Whether the same request may succeed later, according to the cluster. Without a leader, the other nodes
/// do not know yet how much room there is.
fn asks_to_try_again(failure: &Failure) -> bool {
    let later = matches!(failure, Failure::Api(refusal) if refusal.retry_after_seconds.is_some());
    later || failure.is_unreachable()
}

/// Returns once this address serves the page of this session.
async fn answered(address: &str, session: &str) {
    while !is_served(address, session).await.unwrap_or(false) {
        sleep(ASK_EVERY).await;
    }
}

async fn is_served(address: &str, session: &str) -> std::io::Result<bool> {
    let page = get(TcpStream::connect(address).await?, address, "/").await?;
    // Another session's page on this port would answer too.
    Ok(page.starts_with("HTTP/1.1 200 ") && page.contains(session))
}

/// The whole answer, head and body.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
    Ok(answer)
}
