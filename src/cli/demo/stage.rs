//! The demo's side of its [keeper](super::keeper): starts it, waits until the agents are one cluster,
//! sends orders, and ends it, so that it removes everything.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::image;
use super::keeper::{Order, SUBCOMMAND, Word};
use super::plan::{Agent, Engine, Plan, REPOSITORY};
use crate::cli::client::Client;
use crate::cli::connection::Connection;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::cli::status::Status;
use crate::runtime::docker::Visit;
use crate::types::{List, Name, Node, NodeState};

/// How long the agents may take to answer and to find each other. It usually takes seconds.
const OPENING: Duration = Duration::from_secs(60);
/// The pause between two looks at the agents meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long the demo waits for the cleanup. After that the keeper continues it alone.
const STRIKING: Duration = Duration::from_secs(120);
/// Capacity for unread answers of the keeper. Each order has one answer, and the demo waits for it.
const ANSWERS: usize = 1;
/// How much of an agent's log is shown after a failure.
const LOG_LINES: usize = 20;
const LOG_BYTES: u64 = 16 << 10;

/// A temporary directory, the agents in it, and the way to their keeper.
pub(super) struct Stage {
    pub(super) plan: Plan,
    keeper: Child,
    orders: Mutex<Orders>,
    trouble: watch::Receiver<Option<Trouble>>,
    reader: JoinHandle<Vec<String>>,
}

/// The way to the keeper, and its answers.
struct Orders {
    /// While it is open, the keeper keeps everything running. The kernel closes it if the demo is killed.
    hold: ChildStdin,
    done: mpsc::Receiver<()>,
}

/// A failure that the keeper reported.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// The agent that has ended, if that is the failure.
    pub(super) agent: Option<usize>,
    what: String,
}

impl Stage {
    /// Starts the keeper, which creates the demo's directory and starts the agents.
    pub(super) async fn set(plan: Plan) -> Result<Self, Failure> {
        let mut keeper = Command::new(&plan.program)
            .arg(SUBCOMMAND)
            // The keeper ignores it: it tells demos apart in a list of processes.
            .arg(&plan.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Failure::Failed(format!("the demo's keeper cannot be started: {e}")))?;
        let (Some(hold), Some(words)) = (keeper.stdin.take(), keeper.stdout.take()) else {
            return Err(Failure::Failed("the demo's keeper has no pipes".to_owned()));
        };
        let (publish_done, done) = mpsc::channel(ANSWERS);
        let (publish_trouble, trouble) = watch::channel(None);
        let reader = tokio::spawn(read(words, plan.clone(), publish_done, publish_trouble));
        let stage = Self { plan, keeper, orders: Mutex::new(Orders { hold, done }), trouble, reader };
        tokio::select! {
            biased;
            trouble = stage.trouble() => return Err(trouble),
            set = stage.say(&stage.plan) => set?,
        }
        Ok(stage)
    }

    /// Creates the image of the sessions, if they need one, and waits until the agents are one cluster. Returns the
    /// command of a session that serves a page.
    pub(super) async fn open(&self) -> Result<Vec<String>, Failure> {
        let page_command = match &self.plan.engine {
            Engine::Docker { host } => self.bring_image(host).await?,
            Engine::Process if self.plan.sessions_are_others() => {
                image::page_command(&self.plan.program_for_others().display().to_string())
            }
            Engine::Process => image::page_command(&self.plan.program.display().to_string()),
        };
        let clients: Vec<Client> = self.plan.agents().map(|agent| self.client(agent)).collect::<Result<_, _>>()?;
        let found = timeout(OPENING, one_cluster(&clients)).await;
        found.map_err(|_| Failure::Failed("the agents did not find each other in time".to_owned()))?;
        Ok(page_command)
    }

    /// Tells the keeper to kill or start an agent, and returns once that is done.
    pub(super) async fn order(&self, order: Order) -> Result<(), Failure> {
        self.say(&order).await
    }

    /// Sends the keeper a plan or an order, and waits for its answer. [`Stage::trouble`] returns the failure, if any.
    async fn say(&self, what: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(what).map_err(|e| Failure::Failed(e.to_string()))?;
        line.push(b'\n');
        let mut orders = self.orders.lock().await;
        let sent = orders.hold.write_all(&line).await;
        match (sent, orders.done.recv().await) {
            (Ok(()), Some(())) => Ok(()),
            _ => Err(Failure::Failed("the demo's keeper has ended".to_owned())),
        }
    }

    async fn bring_image(&self, host: &str) -> Result<Vec<String>, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("the image cannot be created: {e}"));
        let visit = Visit::new(host).map_err(|e| failed(&e))?;
        let made = tokio::task::spawn_blocking(image::of_this_program).await.map_err(|e| failed(&e))?;
        let made = made.map_err(|e| failed(&e))?;
        let mark = self.plan.importing();
        std::fs::write(&mark, "").map_err(|e| failed(&e))?;
        visit.import_image(REPOSITORY, self.plan.tag(), made.archive.into()).await.map_err(|e| failed(&e))?;
        std::fs::remove_file(&mark).map_err(|e| failed(&e))?;
        Ok(made.command)
    }

    /// The connection of commands to an agent, independent of the environment.
    pub(super) fn connection(&self, agent: Agent<'_>) -> Connection {
        Connection { socket: Some(agent.socket()), isolated: true, ..Connection::default() }
    }

    pub(super) fn client(&self, agent: Agent<'_>) -> Result<Client, Failure> {
        Client::new(&self.connection(agent).choose_here()?)
    }

    /// Returns when the keeper reports a failure, or that an agent has ended without an order.
    pub(super) async fn trouble(&self) -> Failure {
        let mut trouble = self.trouble.clone();
        let told = trouble.wait_for(Option::is_some).await;
        let told = told.ok().and_then(|trouble| trouble.as_ref().map(|trouble| trouble.what.clone()));
        Failure::Failed(told.unwrap_or_else(|| "the demo's keeper has ended".to_owned()))
    }

    /// The agents whose logs may explain a failure: the one that has ended, otherwise all.
    pub(super) fn witnesses(&self) -> Vec<Agent<'_>> {
        let ended = self.trouble.borrow().as_ref().and_then(|trouble| trouble.agent);
        ended.map_or_else(|| self.plan.agents().collect(), |agent| vec![self.plan.agent(agent)])
    }

    /// The last lines of an agent's log.
    pub(super) fn log_tail(agent: Agent<'_>) -> String {
        let read = || -> std::io::Result<String> {
            let mut log = std::fs::File::open(agent.log())?;
            let start = log.metadata()?.len().saturating_sub(LOG_BYTES);
            log.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            BufReader::new(log).take(LOG_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Lets the keeper remove everything, and waits until it has.
    ///
    /// # Errors
    /// Something cannot be removed. The message says what to do about it.
    pub(super) async fn strike(self) -> Result<(), Failure> {
        let Self { mut keeper, orders, reader, .. } = self;
        drop(orders);
        let struck = timeout(STRIKING, async { (reader.await.unwrap_or_default(), keeper.wait().await) });
        match struck.await {
            Ok((_, Ok(status))) if status.success() => Ok(()),
            Ok((troubles, Ok(status))) if troubles.is_empty() => {
                Err(Failure::Failed(format!("the demo's keeper: {status}")))
            }
            Ok((troubles, Ok(_))) => Err(Failure::Failed(troubles.join("\n"))),
            Ok((_, Err(e))) => Err(Failure::Failed(format!("the demo's keeper cannot be waited for: {e}"))),
            Err(_) => Err(Failure::Failed("the cleanup takes long; it continues in the background".to_owned())),
        }
    }
}

/// Reads the keeper's messages until it ends: passes on what is done and the first failure. Returns every failure.
async fn read(
    words: ChildStdout,
    plan: Plan,
    done: mpsc::Sender<()>,
    publish: watch::Sender<Option<Trouble>>,
) -> Vec<String> {
    let mut lines = tokio::io::BufReader::new(words).lines();
    let mut troubles = Vec::new();
    let first = |trouble: Trouble| {
        publish.send_modify(|known| {
            known.get_or_insert(trouble);
        });
    };
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            // An interrupted demo does not wait for it.
            Ok(Word::Done) => drop(done.try_send(())),
            Ok(Word::Ended { agent, how }) => {
                let what = format!("the agent of {} has ended ({how})", plan.agent(agent).name());
                first(Trouble { agent: Some(agent), what });
            }
            Ok(Word::Trouble(what)) => {
                first(Trouble { agent: None, what: what.clone() });
                troubles.push(what);
            }
            Err(_) => {}
        }
    }
    troubles
}

/// Returns once every agent sees every node, knows its resources, and follows the same leader.
async fn one_cluster(clients: &[Client]) {
    loop {
        let mut followed = Vec::new();
        for client in clients {
            followed.push(leader_of_all(client, clients.len()).await.ok().flatten());
        }
        if followed.iter().all(|leader| leader.is_some() && *leader == followed[0]) {
            return;
        }
        sleep(ASK_EVERY).await;
    }
}

/// The leader that this agent follows; `None` until it sees this many nodes ready for sessions.
async fn leader_of_all(client: &Client, nodes: usize) -> Result<Option<Name>, Failure> {
    let list = client.list(Route::new(&["nodes"])).await?.read::<List<Node>>()?;
    let at_work = |node: &Node| {
        node.state == NodeState::Alive && node.runtime.available && node.resources.cores.physical.is_some()
    };
    if list.items.len() != nodes || !list.items.iter().all(at_work) {
        return Ok(None);
    }
    let status = client.get(Route::new(&["status"])).await?.read::<Status>()?;
    // Its list of nodes is the leader's; `status` counts the nodes that it sees itself.
    Ok(status.cluster.leader.filter(|_| usize::try_from(status.cluster.nodes) == Ok(nodes)).map(|leader| leader.name))
}
