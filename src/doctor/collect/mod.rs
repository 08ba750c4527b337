//! Reads the facts of this host, each within a time limit, and has them judged. Changes nothing.

mod endpoints;
mod gpus;
mod host;
mod http;
mod mesh;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::judge::{agent, clock, conditions, disk, endpoints as ports, engine, gpus as devices, http as api};
use super::judge::{limits, memory, mesh as network, token};
use super::{Agent, Config};
use crate::gpu;
use crate::runtime::EngineInfo;
use crate::runtime::docker::Visit;
use crate::types::{Check, Checkup, RuntimeKind, Timestamp, Topic};

/// The longest that one topic may take. The engine alone may take 10 s for an answer and the first look at the GPUs of a
/// data centre 30 s; nothing else waits for them.
const LIMIT: Duration = Duration::from_secs(40);
/// How long one fact may take that needs milliseconds on a host in order: a name, a file system, a program.
pub(super) const QUICK: Duration = Duration::from_secs(5);

/// Who examines.
#[derive(Debug, Clone)]
pub struct Examiner {
    /// The version of this program.
    pub version: String,
    pub gpus: Gpus,
    /// The process of the agent, if it is known.
    pub agent_pid: Option<u32>,
    pub now: Timestamp,
}

/// Where the facts of the GPUs come from.
#[derive(Debug, Clone)]
pub enum Gpus {
    /// A child that asks NVML, made of this program's file.
    Child(PathBuf),
    /// The agent that examines, which has asked already: a driver that hangs holds every child that asks it.
    Agent(Arc<gpu::Snapshot>),
}

/// Makes every check of this host. `agent`: what the agent tells, if it runs.
pub async fn examine(config: &Config, agent: &Agent, by: &Examiner) -> Checkup {
    let (engine, took) = asked(config).await;
    let info = engine.as_ref().and_then(|answer| answer.as_ref().ok());
    let credentials = mesh::credentials(config).await;
    let credentials = credentials.as_ref();
    let rows = tokio::join!(
        limited(Topic::Gpus, graphics(config, info, by)),
        limited(Topic::Memory, host::memory(config, agent, info)),
        limited(Topic::Mesh, mesh::facts(config, agent, by, credentials)),
        limited(Topic::Clock, host::ntp()),
        limited(Topic::Token, host::token(config, agent, by, credentials)),
        limited(Topic::Disk, async { (host::disks(config, info).await, host::kept(config).await) }),
        limited(Topic::Limits, host::limits(info)),
        limited(Topic::Http, http::facts(config, agent, by.now)),
        limited(Topic::Endpoints, endpoints::facts(config, agent)),
        limited(Topic::Agent, async { (host::files(by.agent_pid).await, host::unclean(config, by.now).await) }),
    );
    let told = agent.told();
    let nodes = told.map(|told| told.nodes.as_slice()).unwrap_or_default();
    let mut checks = match &engine {
        None => vec![Check::skipped(Topic::Engine, "runtime.kind is process: there is no container engine")],
        Some(answer) => engine::judge(&config.docker_host, answer.as_ref().map_err(String::as_str), took),
    };
    let file = config.token_file.display().to_string();
    let here = told.map(|told| &told.here.name);
    checks.extend(judged(rows.0, |(facts, lacks)| devices::judge(&facts, &lacks)));
    checks.extend(judged(rows.1, |facts| memory::judge(&facts)));
    checks.extend(judged(rows.2, |facts| network::judge(&facts)));
    checks.extend(judged(rows.3, |ntp| clock::judge(&ntp, nodes, here, by.now)));
    checks.extend(judged(rows.4, |facts| token::judge(&facts, &file)));
    checks.extend(judged(rows.5, |(disks, kept)| {
        [disk::judge(&disks, config.min_free_disk), disk::judge_kept(&kept)].concat()
    }));
    checks.extend(judged(rows.6, |facts| limits::judge(&facts)));
    checks.extend(judged(rows.7, |facts| api::judge(&facts)));
    checks.extend(judged(rows.8, |facts| ports::judge(&facts)));
    checks.extend(judged(rows.9, |(files, unclean)| agent_checks(agent, files, &unclean, &by.version)));
    if let Some(told) = told {
        let more = conditions::judge(&told.here.conditions, &checks);
        checks.extend(more);
    }
    Checkup::new(here.unwrap_or(&config.name).clone(), checks)
}

fn agent_checks(
    agent: &Agent,
    files: Option<u64>,
    unclean: &Result<Vec<Timestamp>, String>,
    version: &str,
) -> Vec<Check> {
    let told = match agent {
        Agent::Up(told) => Ok((&told.here, told.nodes.as_slice())),
        Agent::Down(why) => Err(why.as_str()),
    };
    let unclean = unclean.as_deref().map_err(String::as_str);
    agent::judge(&agent::Facts { told, version, files, unclean })
}

/// What the engine tells of itself, and how long it took. `None`: the runtime has no engine.
async fn asked(config: &Config) -> (Option<Result<EngineInfo, String>>, Duration) {
    if config.runtime != RuntimeKind::Docker {
        return (None, Duration::ZERO);
    }
    let began = Instant::now();
    let visit = Visit::as_agent(
        &config.docker_host,
        config.cpu_mode,
        config.hand_over,
        config.gpu_class.clone(),
        config.images_path.clone(),
    );
    let answer = match visit {
        Err(wrong) => Err(wrong.to_string()),
        Ok(visit) => match timeout(LIMIT, visit.greet()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the container engine gave no answer within {} s", LIMIT.as_secs())),
        },
    };
    (Some(answer), began.elapsed())
}

/// The GPUs, and what the engine cannot hand over of them.
async fn graphics(config: &Config, engine: Option<&EngineInfo>, by: &Examiner) -> (devices::Facts, Vec<String>) {
    let (facts, snapshot) = gpus::facts(config, engine, by).await;
    let lacks = engine.map(|info| info.gpus.conditions(&snapshot)).unwrap_or_default();
    (facts, lacks.into_iter().map(|(_, message)| message).collect())
}

/// A fact, or the finding that it took too long.
async fn limited<T>(topic: Topic, fact: impl Future<Output = T>) -> Result<T, Check> {
    timeout(LIMIT, fact).await.map_err(|_| {
        let message = format!("the check did not end within {} s", LIMIT.as_secs());
        Check::fail(topic, message, "look for what hangs in the kernel log: dmesg -T | tail")
    })
}

fn judged<T>(fact: Result<T, Check>, judge: impl FnOnce(T) -> Vec<Check>) -> Vec<Check> {
    fact.map_or_else(|late| vec![late], judge)
}

/// Threads that read at once, in one process. One that hangs, as on a file system of another host, cannot be ended: an
/// agent that is asked again and again must not lose all of its threads so.
const MAX_READS: usize = 16;
static READS: Semaphore = Semaphore::const_new(MAX_READS);

/// Runs what may block in a thread. `None`: it takes longer than [`QUICK`], or too many others hang.
pub(super) async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let read = async {
        let permit = READS.acquire().await.ok()?;
        let read = move || {
            let read = read();
            drop(permit);
            read
        };
        tokio::task::spawn_blocking(read).await.ok()
    };
    timeout(QUICK, read).await.ok()?
}
