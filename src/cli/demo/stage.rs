//! The demo's side of its [keeper](super::keeper): has the stage set, waits until the agents are one
//! cluster, gives orders, has it all struck.

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

/// How long the agents may take to answer and to find each other. It takes seconds.
const OPENING: Duration = Duration::from_secs(60);
/// How often they are asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long clearing away may take. The keeper goes on by itself if the demo does not wait.
const STRIKING: Duration = Duration::from_secs(120);
/// Answers of the keeper that nobody has read yet: there is one to each order, which is waited for.
const ANSWERS: usize = 1;
/// How much of an agent's log is shown when something failed.
const LOG_LINES: usize = 20;
const LOG_BYTES: u64 = 16 << 10;

/// A temporary place with agents in it.
pub(super) struct Stage {
    pub(super) plan: Plan,
    keeper: Child,
    orders: Mutex<Orders>,
    trouble: watch::Receiver<Option<Trouble>>,
    reader: JoinHandle<Vec<String>>,
}

/// The way to the keeper, and its answers.
struct Orders {
    /// As long as it is open the keeper keeps the place; the kernel closes it for whoever is killed.
    hold: ChildStdin,
    done: mpsc::Receiver<()>,
}

/// What went wrong at the keeper's.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// The agent that has ended, if that is what it was.
    pub(super) agent: Option<usize>,
    what: String,
}

impl Stage {
    /// Starts the keeper, which makes the place and starts the agents.
    pub(super) async fn set(plan: Plan) -> Result<Self, Failure> {
        let mut keeper = Command::new(&plan.program)
            .arg(SUBCOMMAND)
            // For people who look at processes.
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

    /// Makes what sessions are made of, and returns once the agents are one cluster: the command words of a
    /// session that serves a page.
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
        found.map_err(|_| Failure::Failed("the agents do not find each other".to_owned()))?;
        Ok(page_command)
    }

    /// Has an agent killed or started, and returns once it is.
    pub(super) async fn order(&self, order: Order) -> Result<(), Failure> {
        self.say(&order).await
    }

    /// Tells the keeper something that it answers. What went wrong instead is heard from [`Stage::trouble`].
    async fn say(&self, what: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(what).map_err(|e| Failure::Failed(e.to_string()))?;
        line.push(b'\n');
        let mut orders = self.orders.lock().await;
        let sent = orders.hold.write_all(&line).await;
        match (sent, orders.done.recv().await) {
            (Ok(()), Some(())) => Ok(()),
            _ => Err(Failure::Failed("the demo's keeper is gone".to_owned())),
        }
    }

    async fn bring_image(&self, host: &str) -> Result<Vec<String>, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("the image cannot be made: {e}"));
        let visit = Visit::new(host).map_err(|e| failed(&e))?;
        let made = tokio::task::spawn_blocking(image::of_this_program).await.map_err(|e| failed(&e))?;
        let made = made.map_err(|e| failed(&e))?;
        let mark = self.plan.importing();
        std::fs::write(&mark, "").map_err(|e| failed(&e))?;
        visit.import_image(REPOSITORY, self.plan.tag(), made.archive.into()).await.map_err(|e| failed(&e))?;
        std::fs::remove_file(&mark).map_err(|e| failed(&e))?;
        Ok(made.command)
    }

    /// How commands reach an agent, whatever the environment says of others.
    pub(super) fn connection(&self, agent: Agent<'_>) -> Connection {
        Connection { socket: Some(agent.socket()), isolated: true, ..Connection::default() }
    }

    pub(super) fn client(&self, agent: Agent<'_>) -> Result<Client, Failure> {
        Client::new(&self.connection(agent).choose_here()?)
    }

    /// Returns when something has gone wrong with the place: an agent has ended, which it should not have.
    pub(super) async fn trouble(&self) -> Failure {
        let mut trouble = self.trouble.clone();
        let told = trouble.wait_for(Option::is_some).await;
        let told = told.ok().and_then(|trouble| trouble.as_ref().map(|trouble| trouble.what.clone()));
        Failure::Failed(told.unwrap_or_else(|| "the demo's keeper is gone".to_owned()))
    }

    /// The agents that have something to say of a failure: the one that has ended, else all.
    pub(super) fn witnesses(&self) -> Vec<Agent<'_>> {
        let ended = self.trouble.borrow().as_ref().and_then(|trouble| trouble.agent);
        ended.map_or_else(|| self.plan.agents().collect(), |agent| vec![self.plan.agent(agent)])
    }

    /// The last lines that an agent printed.
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

    /// Has everything cleared away, and returns once it is.
    ///
    /// # Errors
    /// Something could not be, and what to do about it.
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
            Err(_) => Err(Failure::Failed("clearing away takes long; it goes on by itself".to_owned())),
        }
    }
}

/// Hears the keeper out: passes on what was done and the first trouble. Answers everything that failed.
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
            // Nobody waits for it where the demo was interrupted.
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

/// Returns once every agent sees every node, knows what it has, and follows the same leader.
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

/// Whom this agent follows; `None` while it does not see so many nodes at work.
async fn leader_of_all(client: &Client, nodes: usize) -> Result<Option<Name>, Failure> {
    let list = client.list(Route::new(&["nodes"])).await?.read::<List<Node>>()?;
    let at_work = |node: &Node| {
        node.state == NodeState::Alive && node.runtime.available && !node.resources.cores.physical.is_zero()
    };
    if list.items.len() != nodes || !list.items.iter().all(at_work) {
        return Ok(None);
    }
    let status = client.get(Route::new(&["status"])).await?.read::<Status>()?;
    // It lists what its leader sees, and tells how many it sees itself.
    Ok(status.cluster.leader.filter(|_| usize::try_from(status.cluster.nodes) == Ok(nodes)).map(|leader| leader.name))
}
