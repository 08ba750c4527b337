//! The keeper of a demo: `ostler demo-keeper`, a process that the demo starts and that outlives it.
//!
//! It reads the [plan](Plan) from standard input, creates the demo's directory and starts the agents.
//! Then it carries out [orders](Order) until standard input ends. The kernel closes that pipe when the
//! demo ends, is killed, or loses its terminal. So there is one cleanup for every case, and it always
//! runs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines, Take};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::plan::{Agent, Engine, Plan};
use crate::identity;
use crate::runtime::docker::Visit;
use crate::runtime::process::{self, ProcessRuntime};
use crate::runtime::{Error, Runtime, Target};
use crate::types::{Bytes, Cores, NodeId};

/// The subcommand that runs this program as a keeper.
pub const SUBCOMMAND: &str = "demo-keeper";

/// Most bytes that a demo sends: a plan is a few paths, and its orders are a few words.
const MAX_SAID: u64 = 64 << 10;
/// How long the agents may take to end after SIGTERM, before they are killed.
const AGENT_GRACE: Duration = Duration::from_secs(3);
/// How many times the keeper looks for leftovers, and the pause between two looks. This gives an engine that
/// restarts or is busy time to answer, and operations that the agents had under way time to show.
const LOOKS: u32 = 120;
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// The cleanup is done when this many looks in a row find nothing.
const EMPTY_LOOKS: u32 = 2;
/// The same while the engine may still be importing an image.
const EMPTY_LOOKS_IMPORTING: u32 = 20;

/// The demo's orders to the keeper after the plan, one line of JSON each. Agents are named by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Kill an agent with SIGKILL: it cannot log or save anything more.
    Kill(usize),
    /// Start a killed agent again, in the same way as at first.
    Start(usize),
}

/// The keeper's messages to the demo, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    /// The directory exists and the agents are started, or an order is carried out.
    Done,
    /// An agent ended without an order. `how` is its exit status as text.
    Ended { agent: usize, how: String },
    /// Something failed. The text is for the user.
    Trouble(String),
}

type Said = Lines<Take<BufReader<Receiver>>>;

/// Runs the keeper of one demo, from its plan to its cleanup.
pub fn main() -> ExitCode {
    // A session of its own: Ctrl-C and the hang-up of the terminal reach the demo only.
    let detached = rustix::process::setsid().map_err(io::Error::from);
    let runtime = detached.and_then(|_| tokio::runtime::Builder::new_current_thread().enable_all().build());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            say(&Word::Trouble(format!("the demo's keeper cannot start: {e}")));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(keep()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            say(&Word::Trouble(trouble));
            ExitCode::FAILURE
        }
    }
}

async fn keep() -> Result<(), String> {
    let mut said = standard_input().map_err(|e| format!("only `ostler demo` may start the demo's keeper: {e}"))?;
    let plan = read_plan(&mut said).await?;
    let mut agents = Agents::default();
    match make(&plan, &mut agents) {
        Ok(()) => {
            say(&Word::Done);
            hold(&plan, said, &mut agents).await;
        }
        Err(e) => say(&Word::Trouble(format!("the demo in {} cannot be started: {e}", plan.directory.display()))),
    }
    agents.end().await;
    clear(&plan).await
}

/// The demo's pipe. If standard input is anything else, no demo started this program.
fn standard_input() -> io::Result<Said> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(BufReader::new(Receiver::from_owned_fd(input)?).take(MAX_SAID).lines())
}

async fn read_plan(said: &mut Said) -> Result<Plan, String> {
    let line = said.next_line().await.map_err(|e| e.to_string())?.unwrap_or_default();
    // An incomplete line is not a plan: the demo ended before it sent one, and nothing is created yet.
    serde_json::from_str(&line).map_err(|e| format!("invalid plan: {e}"))
}

/// Creates the demo's directory, and starts the agents in it.
fn make(plan: &Plan, agents: &mut Agents) -> io::Result<()> {
    // If the demo runs as root, its sessions run as another user, which must reach its own directories below this one.
    let mode = if plan.sessions_are_others() { 0o711 } else { 0o700 };
    DirBuilder::new().mode(0o700).create(&plan.directory)?;
    fs::set_permissions(&plan.directory, fs::Permissions::from_mode(mode))?;
    if plan.sessions_are_others() {
        fs::copy(&plan.program, plan.program_for_others())?;
        fs::set_permissions(plan.program_for_others(), fs::Permissions::from_mode(0o755))?;
    }
    let token = identity::generate().map_err(io::Error::other)?;
    identity::write_new(&plan.token(), &token).map_err(io::Error::other)?;
    for agent in plan.agents() {
        private(&agent.configuration())?.write_all(agent.configuration_text().as_bytes())?;
    }
    plan.agents().try_for_each(|agent| agents.start(plan, agent))
}

/// Opens a file that only this user can read, for appending.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Carries out orders. Returns when the demo's end of the pipe is closed, or on SIGTERM or SIGHUP to this
/// process.
async fn hold(plan: &Plan, mut said: Said, agents: &mut Agents) {
    let (Ok(mut terminate), Ok(mut hangup)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup())) else {
        return;
    };
    loop {
        tokio::select! {
            line = said.next_line() => {
                let Ok(Some(line)) = line else { return };
                say(&obey(plan, agents, &line).await.map_or_else(Word::Trouble, |()| Word::Done));
            }
            // The demo reads the agent's log before anything is cleared away.
            (agent, how) = agents.ended_unasked() => say(&Word::Ended { agent, how }),
            _ = terminate.recv() => return,
            _ = hangup.recv() => return,
        }
    }
}

async fn obey(plan: &Plan, agents: &mut Agents, line: &str) -> Result<(), String> {
    match serde_json::from_str(line).map_err(|e| format!("invalid order: {e}"))? {
        Order::Kill(agent) => agents.kill(plan.agent(agent)).await,
        Order::Start(agent) => {
            let agent = plan.agent(agent);
            agents.start(plan, agent).map_err(|e| format!("the agent of {} cannot be started: {e}", agent.name()))
        }
    }
}

/// The running agents, with their indices.
#[derive(Default)]
struct Agents(Vec<(usize, Child)>);

impl Agents {
    fn start(&mut self, plan: &Plan, agent: Agent<'_>) -> io::Result<()> {
        let log = private(&agent.log())?;
        let child = Command::new(&plan.program)
            .args(["agent", "--dev", "--config"])
            .arg(agent.configuration())
            .env_remove("OSTLER_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.0.push((agent.index, child));
        Ok(())
    }

    async fn kill(&mut self, agent: Agent<'_>) -> Result<(), String> {
        let at = self.0.iter().position(|(index, _)| *index == agent.index);
        let at = at.ok_or_else(|| format!("the agent of {} is not running", agent.name()))?;
        let (_, mut child) = self.0.swap_remove(at);
        child.kill().await.map_err(|e| format!("the agent of {} cannot be killed: {e}", agent.name()))
    }

    /// The first agent that ends, and its exit status. Never returns if none runs.
    async fn ended_unasked(&mut self) -> (usize, String) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        let (ended, at, _) = select_all(self.0.iter_mut().map(|(_, child)| Box::pin(child.wait()))).await;
        let (agent, _) = self.0.swap_remove(at);
        (agent, ended.map_or_else(|e| e.to_string(), |status| status.to_string()))
    }

    async fn end(&mut self) {
        join_all(self.0.iter_mut().map(|(_, child)| end(child))).await;
    }
}

async fn end(agent: &mut Child) {
    // The kernel does not reuse the process id before the child is waited for.
    if let Some(pid) = agent.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(AGENT_GRACE, agent.wait()).await.is_err() {
        // An agent that cannot be killed has already ended.
        let _ = agent.kill().await;
    }
}

/// Removes everything that the demo created. The agents must have ended.
async fn clear(plan: &Plan) -> Result<(), String> {
    let sessions = match &plan.engine {
        Engine::Docker { host } => clear_engine(plan, host).await.map_err(|e| {
            let label = format!("label=ostler.cluster={}", plan.cluster);
            format!(
                "objects of the demo are left in Docker: {e}; to remove them:\n\
                 docker rm -f $(docker ps -aq --filter {label}); docker network prune --filter {label}; \
                 docker rmi {}",
                plan.image()
            )
        }),
        Engine::Process => {
            let cleared = join_all(plan.agents().map(|agent| clear_processes(plan, agent))).await;
            let cleared: Result<(), Error> = cleared.into_iter().collect();
            cleared.map_err(|e| format!("a session of the demo cannot be removed: {e}"))
        }
    };
    let files = remove_directory(plan).await;
    sessions.and(files)
}

async fn clear_engine(plan: &Plan, host: &str) -> Result<(), Error> {
    let visit = Visit::new(host).map_err(|e| Error::Refused(e.to_string()))?;
    let enough = if plan.importing().exists() { EMPTY_LOOKS_IMPORTING } else { EMPTY_LOOKS };
    until_empty(enough, async || clear_engine_once(plan, &visit).await).await
}

async fn clear_engine_once(plan: &Plan, visit: &Visit) -> Result<usize, Error> {
    let found = visit.clear(&plan.cluster).await?;
    let image = plan.image();
    if !visit.has_image(&image).await? {
        return Ok(found);
    }
    visit.remove_image(&image).await?;
    Ok(found + 1)
}

async fn clear_processes(plan: &Plan, agent: Agent<'_>) -> Result<(), Error> {
    let directory = agent.data().join("process");
    if !directory.exists() {
        return Ok(());
    }
    let opened = ProcessRuntime::open(process::Config {
        directory,
        cluster: plan.cluster.clone(),
        // The runtime starts nothing here, so any node id will do.
        node: NodeId::from_bytes([0; 10]),
        user: "nobody".to_owned(),
        shim: plan.program.clone(),
        cores: Cores::ZERO,
        memory: Bytes::ZERO,
        idle_ignore: Vec::new(),
    });
    let runtime = opened.map_err(|e| Error::Unavailable(e.to_string()))?;
    until_empty(1, async || {
        let found = runtime.list().await?;
        for session in &found {
            runtime.remove(&Target::from(&session.session)).await?;
        }
        Ok(found.len())
    })
    .await
}

/// Clears repeatedly, until `enough` looks in a row find nothing.
async fn until_empty(enough: u32, clear: impl AsyncFn() -> Result<usize, Error>) -> Result<(), Error> {
    let mut empty = 0;
    let mut last = Ok(());
    for _ in 0..LOOKS {
        match clear().await {
            Ok(0) => empty += 1,
            Ok(_) => empty = 0,
            Err(error) => {
                empty = 0;
                last = Err(error);
            }
        }
        if empty >= enough {
            return Ok(());
        }
        sleep(LOOK_PAUSE).await;
    }
    last.and(Err(Error::Unavailable("each look found more to remove".to_owned())))
}

/// Removes the demo's directory. Retries, since another process may still write there.
async fn remove_directory(plan: &Plan) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..LOOKS {
        match fs::remove_dir_all(&plan.directory) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => last = e.to_string(),
        }
        sleep(LOOK_PAUSE).await;
    }
    Err(format!("{} cannot be removed: {last}", plan.directory.display()))
}

/// Sends the demo a message. It ignores errors, since the demo may have ended.
fn say(word: &Word) {
    let mut stdout = io::stdout().lock();
    if let Ok(line) = serde_json::to_string(word) {
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}
