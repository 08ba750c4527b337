//! The prompt that the demo types at: commands as a person would type them, run as they would be, and
//! what they answer.

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

/// How long something that is waited for may take. It takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Between two attempts of somebody who was told to try again.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// How long a page may take to answer once its session runs. It takes milliseconds.
const ANSWERING: Duration = Duration::from_secs(15);
/// A page has two kilobytes, and so has a list of the demo's sessions with its head.
const MAX_ANSWER: u64 = 64 << 10;
/// What the headers of ostler's own begin with.
const HEADERS: &str = "x-ostler-";

/// Types commands at one agent of the demo.
pub(super) struct Prompt<'a> {
    pub(super) stage: &'a Stage,
    pub(super) narrator: &'a Narrator<'a>,
    /// The agent that is asked.
    asked: Agent<'a>,
    client: Client,
}

impl<'a> Prompt<'a> {
    pub(super) fn at(asked: Agent<'a>, stage: &'a Stage, narrator: &'a Narrator<'a>) -> Result<Self, Failure> {
        Ok(Self { stage, narrator, asked, client: stage.client(asked)? })
    }

    /// Asks another agent from now on.
    pub(super) fn turn_to(&mut self, asked: Agent<'a>) -> Result<(), Failure> {
        *self = Self::at(asked, self.stage, self.narrator)?;
        self.export()
    }

    pub(super) fn asked(&self) -> &'static str {
        self.asked.name()
    }

    /// Types what makes a shell ask this agent.
    pub(super) fn export(&self) -> Result<(), Failure> {
        self.narrator.command(&format!("export OSTLER_SOCKET={}", self.asked.socket().display()))
    }

    /// Types what starts an agent; that it is started is the keeper's to do.
    pub(super) fn start(&self, agent: Agent<'_>) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler agent --dev --config {} &", agent.configuration().display()))
    }

    /// Runs a command as its own process would.
    pub(super) async fn ostler(&self, line: &str) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler {line}"))?;
        let mut cli = Cli::try_parse_from(format!("ostler {line}").split(' '))
            .map_err(|e| Failure::Usage(format!("the demo's own command is wrong: {e}")))?;
        cli.connection = self.stage.connection(self.asked);
        // A demo is a command that runs commands.
        Box::pin(run(cli)).await
    }

    /// Runs a command that must be refused for this reason, and shows the refusal.
    pub(super) async fn refused(&self, line: &str, code: ErrorCode) -> Result<(), Failure> {
        match self.ostler(line).await {
            Err(Failure::Api(refusal)) if refusal.code == Some(code) => {
                let failure = Failure::Api(refusal);
                self.narrator.out.text(failure.report().unwrap_or_default())
            }
            Err(failure) => Err(failure),
            Ok(()) => Err(Failure::Failed(format!("`ostler {line}` should have been refused, and was not"))),
        }
    }

    /// Runs a command until it is not told any more to try again. It must carry an idempotency key.
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

    /// The part of `node show` about what is allocated.
    pub(super) async fn bars(&self, node: &Name) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler node show {node} | grep allocated"))?;
        let resources = resources(&self.node(node).await?, &self.narrator.out.terminal);
        let bars: Vec<&str> = resources.lines().filter(|line| line.contains("allocated")).collect();
        self.narrator.out.text(bars.join("\n"))
    }

    /// The part of `node show` about a drain.
    pub(super) async fn drain(&self, node: &Name) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler node show {node} | grep -A5 Draining"))?;
        let out = self.narrator.out;
        let shown = draining(&self.node(node).await?, &out.terminal, out.now);
        out.text(shown.unwrap_or_default())
    }

    /// The part of `status` about the leader.
    pub(super) async fn leads(&self) -> Result<(), Failure> {
        self.narrator.command("ostler status | grep leader")?;
        let status = describe(&self.status().await?, &self.narrator.out.terminal);
        let line: Vec<&str> = status.lines().filter(|line| line.contains("leader ")).collect();
        self.narrator.out.text(line.join("\n"))
    }

    /// What the API says, of a list of sessions, about who made it.
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

    /// The address of each session's page, once it has answered.
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

    /// The sessions that are not gone, the oldest first.
    pub(super) async fn sessions(&self) -> Result<Vec<Session>, Failure> {
        let mut sessions = self.client.list(Route::new(&["sessions"])).await?.read::<List<Session>>()?.items;
        sessions.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(sessions)
    }

    /// A node as it sees itself.
    async fn node(&self, node: &Name) -> Result<Node, Failure> {
        self.client.get(Route::new(&["nodes", node.as_str()])).await?.read()
    }

    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.client.get(Route::new(&["status"])).await?.read()
    }

    /// The agent of the node that leads, and since which term, once there is one.
    pub(super) async fn leader(&self) -> Result<(Agent<'a>, u64), Failure> {
        let led = async || {
            let Status { cluster, .. } = self.status().await?;
            let is_it =
                |agent: &Agent<'_>| cluster.leader.as_ref().is_some_and(|led| led.name.as_str() == agent.name());
            Ok(self.stage.plan.agents().find(is_it).map(|agent| (agent, cluster.term)))
        };
        self.until("nobody leads", led).await
    }

    /// Asks until there is an answer; `otherwise` says what it means if there never is.
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
                    return Err(Failure::Failed(format!("{otherwise}, after {} s", PATIENCE.as_secs())));
                }
                _ => sleep(ASK_EVERY).await,
            }
        }
    }
}

/// Whether the cluster says that the same request may do later. While a leader is missing, others do
/// not know yet how much room there is.
fn asks_to_try_again(failure: &Failure) -> bool {
    let later = matches!(failure, Failure::Api(refusal) if refusal.retry_after_seconds.is_some());
    later || failure.is_unreachable()
}

/// Returns once the page of this session was served there.
async fn answered(address: &str, session: &str) {
    while !is_served(address, session).await.unwrap_or(false) {
        sleep(ASK_EVERY).await;
    }
}

async fn is_served(address: &str, session: &str) -> std::io::Result<bool> {
    let page = get(TcpStream::connect(address).await?, address, "/").await?;
    // Another's page on this port would be answered too.
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
