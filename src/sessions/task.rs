//! The owner of this host's sessions: does what [`Sessions`] decides.
//!
//! One turn of its loop takes all waiting inputs, writes the decisions in one durable transaction, publishes, gives
//! runners their orders and only then replies: a group commit without a second queue.

use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::decide::{Context, EngineState};
use super::journal::Journal;
use super::metrics::Metrics;
use super::record::Record;
use super::runners::{Envelope, Runners};
use super::state::{Answer, Input, Reply, Request, Sessions, Start, Turn};
use super::{Config, Error, Handle, QUEUE, Snapshot};
use crate::clock::Clock;
use crate::runtime::{Error as RuntimeError, Event, Found, Health, ProvideImages, Runtime};
use crate::types::template::SECRET_BYTES;
use crate::types::{Ballot, BootInstant, Name, NodeId};
use crate::{capacity, events, gpu, node};

/// Requests and reports of one turn at most, which one write makes durable.
const TURN: usize = 256;
/// Reports of runners that wait for the owner. Each runner waits for its answer, so there is at most one a session.
const REPORTS: usize = 256;
/// Events of the engine that wait for the owner. An event only says that a container may have changed, so a burst
/// that waits loses nothing.
const EVENTS: usize = 256;
/// The pause before a list that failed is tried again.
const LIST_AGAIN: Duration = Duration::from_secs(5);
/// How often deadlines are checked.
const TICK: Duration = Duration::from_secs(1);

/// What the owner is made of.
pub struct Parts {
    /// Its changes are followed.
    pub config: watch::Receiver<Config>,
    pub cluster: Name,
    pub node_id: NodeId,
    pub journal: Journal,
    pub records: Vec<Record>,
    /// The highest ballot on disk that this node has followed or voted for.
    pub fence: Option<Ballot>,
    /// The number of this start of the agent: it grows with every start.
    pub incarnation: u64,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn ProvideImages>,
    pub node: watch::Receiver<Arc<node::State>>,
    pub capacity: watch::Receiver<Arc<capacity::Report>>,
    /// Asked which processes are on the GPUs when a session has left them.
    pub gpus: gpu::Handle,
    pub signs: watch::Receiver<Arc<node::ClusterSigns>>,
    pub events: events::Handle,
    pub clock: Clock,
}

/// Starts the owner. Its task ends when every handle is dropped, or when it fails.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let (requests, inbox) = mpsc::channel(QUEUE);
    let (snapshot, published) = watch::channel(Arc::new(Snapshot::default()));
    let (ready, is_ready) = watch::channel(false);
    let metrics = Metrics::default();
    let runtime = parts.runtime.clone();
    let handle = Handle { requests, snapshot: published, ready: is_ready, runtime, metrics: metrics.clone() };
    let (reporter, reports) = mpsc::channel(REPORTS);
    let owner = Owner::new(parts, metrics, reporter, snapshot, ready);
    (handle, tokio::spawn(owner.run(inbox, reports)))
}

/// Callers in the daemon wait on one-shot channels.
pub(super) struct Channels;

impl Reply for Channels {
    type To<T> = oneshot::Sender<T>;
}

impl Answer<Channels> {
    /// Sends the answer. The caller may have stopped waiting.
    fn send(self) {
        match self {
            Self::Find(to, answer) => drop(to.send(answer)),
            Self::Admit(to, answer) => drop(to.send(answer)),
            Self::Command(to, answer) => drop(to.send(answer)),
            Self::Secret(to, answer) => drop(to.send(answer)),
            Self::Explain(to, answer) => drop(to.send(answer)),
            Self::Claim(to, answer) => drop(to.send(answer)),
            Self::Fence(to, answer) => drop(to.send(answer)),
            Self::Report(to, answer) => drop(to.send(answer)),
        }
    }
}

struct Owner {
    sessions: Sessions<Channels>,
    config: watch::Receiver<Config>,
    journal: Journal,
    runners: Runners,
    runtime: Arc<dyn Runtime>,
    health: watch::Receiver<Health>,
    surroundings: Surroundings,
    gpus: gpu::Handle,
    events: events::Handle,
    metrics: Metrics,
    snapshot: watch::Sender<Arc<Snapshot>>,
    ready: watch::Sender<bool>,
}

/// What the loop receives: an input of a turn, or an event that only wakes runners.
enum Incoming {
    Input(Input<Channels>),
    Event(Event),
    /// Every handle is dropped.
    Closed,
}

impl From<Envelope> for Input<Channels> {
    fn from(Envelope { session, report, taken }: Envelope) -> Self {
        Self::Report(session, report, taken)
    }
}

impl Owner {
    fn new(
        parts: Parts,
        metrics: Metrics,
        reporter: mpsc::Sender<Envelope>,
        snapshot: watch::Sender<Arc<Snapshot>>,
        ready: watch::Sender<bool>,
    ) -> Self {
        let surroundings =
            Surroundings { node: parts.node, capacity: parts.capacity, signs: parts.signs, clock: parts.clock };
        let mut config = parts.config;
        let start = Start {
            config: config.borrow_and_update().clone(),
            cluster: parts.cluster,
            node: parts.node_id,
            records: parts.records,
            journal_rebuilt: parts.journal.rebuilt(),
            fence: parts.fence,
            incarnation: parts.incarnation,
        };
        Self {
            sessions: surroundings.with_context(|cx| Sessions::new(start, cx)),
            config,
            journal: parts.journal,
            runners: Runners::new(Arc::clone(&parts.runtime), parts.images, reporter),
            health: parts.runtime.health(),
            runtime: parts.runtime,
            surroundings,
            gpus: parts.gpus,
            events: parts.events,
            metrics,
            snapshot,
            ready,
        }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Request<Channels>>, mut reports: mpsc::Receiver<Envelope>) {
        let (event_sender, mut events) = mpsc::channel(EVENTS);
        let (listed_sender, mut listed) = mpsc::channel(1);
        let relist = Arc::new(Notify::new());
        let mut children = JoinSet::new();
        let runtime = Arc::clone(&self.runtime);
        children.spawn(async move { runtime.run(event_sender).await });
        let clock = self.surroundings.clock.clone();
        children.spawn(list(Arc::clone(&self.runtime), clock, Arc::clone(&relist), listed_sender));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

        // An engine that has not answered yet is not one that went away: what ended meanwhile ended by itself.
        let engine = state_of(&self.health.borrow_and_update());
        self.turn(if engine == EngineState::Down { Vec::new() } else { vec![Input::Health(engine)] }).await;
        loop {
            let first = tokio::select! {
                request = requests.recv() => request.map_or(Incoming::Closed, |r| Incoming::Input(Input::Request(r))),
                Some(report) = reports.recv() => Incoming::Input(report.into()),
                Some(event) = events.recv() => Incoming::Event(event),
                Some((since, found)) = listed.recv() => Incoming::Input(Input::Listed(since, found)),
                Ok(()) = self.config.changed() => {
                    Incoming::Input(Input::Config(Box::new(self.config.borrow_and_update().clone())))
                }
                Ok(()) = self.health.changed() => {
                    Incoming::Input(Input::Health(state_of(&self.health.borrow_and_update())))
                }
                Ok(()) = self.surroundings.capacity.changed() => {
                    self.surroundings.capacity.mark_unchanged();
                    Incoming::Input(Input::HostRead)
                }
                Some(ended) = self.runners.ended() => match ended {
                    Ok(()) => continue,
                    Err(failure) => {
                        tracing::error!(%failure, "runner of a session failed");
                        Incoming::Input(Input::RunnerFailed)
                    }
                },
                Some(ended) = children.join_next() => match ended {
                    Ok(()) => continue,
                    Err(failure) => {
                        tracing::error!(%failure, "task of the engine link or of a container list failed");
                        continue;
                    }
                },
                _ = tick.tick() => Incoming::Input(self.tick().await),
            };
            let mut inputs = match first {
                Incoming::Input(input) => vec![input],
                Incoming::Event(Event::Changed(session)) => {
                    self.runners.nudge(&session);
                    continue;
                }
                Incoming::Event(Event::Relist) => {
                    relist.notify_one();
                    continue;
                }
                Incoming::Closed => return,
            };
            // What the engine says of itself comes before what was seen on it: an end is told apart from one that came
            // with a restart of the engine.
            if self.health.has_changed().unwrap_or(false) {
                inputs.insert(0, Input::Health(state_of(&self.health.borrow_and_update())));
            }
            while inputs.len() < TURN
                && let Some(input) =
                    requests.try_recv().map(Input::Request).or_else(|_| reports.try_recv().map(Input::from)).ok()
            {
                inputs.push(input);
            }
            self.turn(inputs).await;
        }
    }

    /// Deadlines are due or, after a full data directory refused a change, there is room again.
    async fn tick(&self) -> Input<Channels> {
        if self.sessions.is_full() && self.journal.has_room().await {
            tracing::info!("the data directory has room again");
            return Input::Room;
        }
        Input::Tick
    }

    /// Decides, persists, publishes, gives orders and replies, in this order.
    async fn turn(&mut self, inputs: Vec<Input<Channels>>) {
        for input in inputs {
            self.surroundings.with_context(|cx| self.sessions.take(input, cx));
        }
        let mut written = Ok(());
        if let Some(changes) = self.sessions.changes() {
            let began = Instant::now();
            let committed = self.journal.commit(changes).await;
            self.metrics.committed(began.elapsed());
            if let Err(error) = committed {
                tracing::error!(%error, "cannot write the journal; nothing changed");
                written = Err(Error::Journal(error.into()));
            }
        }
        let Turn { told, measured, snapshot, orders, nudge_all, look_at_gpus, ready, answers } =
            self.surroundings.with_context(|cx| self.sessions.finish(written, cx));
        for (happening, by) in told {
            self.events.record(happening, by.as_ref());
        }
        measured.into_iter().for_each(|measured| self.metrics.count(measured));
        for order in orders {
            self.runners.direct(order);
        }
        if let Some(snapshot) = snapshot {
            self.snapshot.send_replace(snapshot);
        }
        if look_at_gpus {
            self.gpus.look();
        }
        if nudge_all {
            self.runners.nudge_all();
        }
        if ready {
            self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
        answers.into_iter().for_each(Answer::send);
    }
}

fn state_of(health: &Health) -> EngineState {
    match health {
        Health::Up(info) => EngineState::Up { epoch: info.epoch.clone() },
        Health::Unknown | Health::Down { .. } => EngineState::Down,
    }
}

/// A list of all containers, and when the engine was asked for it.
type Listed = (BootInstant, Result<Vec<Found>, RuntimeError>);

/// Lists all containers whenever it is asked to, in a task of its own so that the loop does not wait for the engine.
/// A list that fails is tried again.
async fn list(runtime: Arc<dyn Runtime>, clock: Clock, relist: Arc<Notify>, listed: mpsc::Sender<Listed>) {
    loop {
        relist.notified().await;
        let since = clock.now().boot;
        let found = runtime.list().await;
        let failed = found.is_err();
        if listed.send((since, found)).await.is_err() {
            return;
        }
        // The link asks for a list once an engine that was away is back.
        if failed && runtime.health().borrow().is_up() {
            tokio::time::sleep(LIST_AGAIN).await;
            relist.notify_one();
        }
    }
}

/// What decisions read besides the sessions.
struct Surroundings {
    node: watch::Receiver<Arc<node::State>>,
    capacity: watch::Receiver<Arc<capacity::Report>>,
    signs: watch::Receiver<Arc<node::ClusterSigns>>,
    clock: Clock,
}

impl Surroundings {
    fn with_context<T>(&self, decide: impl FnOnce(&Context<'_>) -> T) -> T {
        let node = self.node.borrow().clone();
        let report = self.capacity.borrow().clone();
        decide(&Context {
            now: self.clock.now(),
            node: &node,
            report: &report,
            duplicated: self.signs.borrow().duplicate.is_some(),
            port_usable: &port_usable,
            draw_secret: &draw_secret,
        })
    }
}

/// Whether no process on this host listens on the port. A hint: only the engine's bind is certain.
fn port_usable(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok()
}

fn draw_secret() -> String {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes once it has booted");
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}
