//! The owner of this host's sessions: the book, the journal and every runner.
//!
//! One turn of its loop takes in all that waits, decides on each, writes one durable transaction,
//! publishes, sets runners to work and only then replies: a group commit without a second queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::decide::{Book, Context};
use super::feed::Standing;
use super::journal::Journal;
use super::record::Record;
use super::runner::{Envelope, Runner, Work};
use super::{Admitted, Config, Error, Feed, Handle, QUEUE, Request, Snapshot};
use crate::clock::Clock;
use crate::ledger::Capacity;
use crate::runtime::{Container, Error as RuntimeError, Event, Found, Health, Runtime};
use crate::types::{Actor, Ballot, Explanation, Moment, Name, NodeId, Session, SessionId, SessionState};
use crate::{capacity, node};

/// Requests and reports decided on in one turn, and so made durable by one write.
const TURN: usize = 256;
/// Reports of runners on their way: each runner waits for its answer, so one a session is ever here.
const REPORTS: usize = 256;
/// Events of the engine on their way. An event only says "look": a burst that waits loses nothing.
const EVENTS: usize = 256;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);
/// The node counts as ready after this long even if its engine never answered.
const READY_AFTER: Duration = Duration::from_secs(10);
/// Random bytes of a session's secret.
const SECRET_BYTES: usize = 18;

/// What the owner is made of.
pub struct Parts {
    pub config: Config,
    pub cluster: Name,
    pub node_id: NodeId,
    pub journal: Journal,
    pub records: Vec<Record>,
    /// The highest ballot that this node has followed or voted for, as it is on disk.
    pub fence: Option<Ballot>,
    /// Which life of the agent this is: grows with every start.
    pub incarnation: u64,
    pub runtime: Arc<dyn Runtime>,
    pub node: watch::Receiver<Arc<node::State>>,
    pub capacity: watch::Receiver<Arc<capacity::Report>>,
    pub signs: watch::Receiver<Arc<node::ClusterSigns>>,
    pub clock: Clock,
}

/// Starts the owner. Its task ends when every handle is dropped, or when it fails.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let (requests, inbox) = mpsc::channel(QUEUE);
    let (snapshot, published) = watch::channel(Arc::new(Snapshot::default()));
    let (ready, is_ready) = watch::channel(false);
    let handle = Handle { requests, snapshot: published, ready: is_ready, runtime: parts.runtime.clone() };
    let (reporter, reports) = mpsc::channel(REPORTS);
    let owner = Owner::new(parts, reporter, snapshot, ready);
    (handle, tokio::spawn(owner.run(inbox, reports)))
}

struct Owner {
    book: Book,
    journal: Journal,
    runtime: Arc<dyn Runtime>,
    health: watch::Receiver<Health>,
    node: watch::Receiver<Arc<node::State>>,
    capacity: watch::Receiver<Arc<capacity::Report>>,
    signs: watch::Receiver<Arc<node::ClusterSigns>>,
    clock: Clock,
    endpoint_host: String,
    runners: HashMap<SessionId, Link>,
    tasks: JoinSet<()>,
    reporter: mpsc::Sender<Envelope>,
    /// Sessions admitted in this turn: their containers cannot be there yet.
    fresh: BTreeSet<SessionId>,
    /// The actors of what changes in this turn, for the log.
    actors: BTreeMap<SessionId, Actor>,
    published: BTreeMap<SessionId, Arc<Session>>,
    feed: Feed,
    /// Every session looks different now, not only those that changed.
    publish_all: bool,
    snapshot: watch::Sender<Arc<Snapshot>>,
    ready: watch::Sender<bool>,
    /// Journal and engine were brought together once: the node is ready as soon as that is published.
    reconciled: bool,
    engine_up: bool,
    engine_lost_at: Option<Moment>,
}

/// The owner's end of a runner.
struct Link {
    work: watch::Sender<Option<Work>>,
    nudge: Arc<Notify>,
}

/// Something that came in.
enum Input {
    Request(Request),
    Report(Envelope),
    Event(Event),
    Listed(Result<Vec<Found>, RuntimeError>),
    Health,
    Tick,
    /// A runner, or another child, panicked.
    TaskFailed(JoinError),
    /// Nobody can ask any more.
    Closed,
}

/// An answer that waits for the disk. It is told whether the turn was written.
type Answer = Box<dyn FnOnce(Result<(), Error>, &Owner) + Send>;

impl Owner {
    fn new(
        parts: Parts,
        reporter: mpsc::Sender<Envelope>,
        snapshot: watch::Sender<Arc<Snapshot>>,
        ready: watch::Sender<bool>,
    ) -> Self {
        let Parts {
            config,
            cluster,
            node_id,
            journal,
            records,
            fence,
            incarnation,
            runtime,
            node,
            capacity,
            signs,
            clock,
        } = parts;
        let endpoint_host = config.endpoint_host.clone();
        let book = Book::new(config, cluster, node_id, fence, records);
        Self {
            book,
            journal,
            health: runtime.health(),
            runtime,
            node,
            capacity,
            signs,
            clock,
            endpoint_host,
            runners: HashMap::new(),
            tasks: JoinSet::new(),
            reporter,
            fresh: BTreeSet::new(),
            actors: BTreeMap::new(),
            published: BTreeMap::new(),
            feed: Feed::new(incarnation),
            publish_all: true,
            snapshot,
            ready,
            reconciled: false,
            engine_up: false,
            engine_lost_at: None,
        }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut reports: mpsc::Receiver<Envelope>) {
        let (event_sender, mut events) = mpsc::channel(EVENTS);
        let runtime = self.runtime.clone();
        self.tasks.spawn(async move { runtime.run(event_sender).await });
        let (listed_sender, mut listed) = mpsc::channel(1);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = self.clock.now();

        self.engine_up = self.health.borrow_and_update().is_up();
        self.with_context(|book, cx| book.rebase_deadlines(cx));
        self.finish_turn(Vec::new()).await;
        loop {
            let first = tokio::select! {
                request = requests.recv() => request.map_or(Input::Closed, Input::Request),
                Some(report) = reports.recv() => Input::Report(report),
                Some(event) = events.recv() => Input::Event(event),
                Some(found) = listed.recv() => Input::Listed(found),
                Ok(()) = self.health.changed() => Input::Health,
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(()) => continue,
                    Err(failure) => Input::TaskFailed(failure),
                },
                _ = tick.tick() => Input::Tick,
            };
            let mut inputs = vec![first];
            while inputs.len() < TURN
                && let Some(input) =
                    requests.try_recv().map(Input::Request).or_else(|_| reports.try_recv().map(Input::Report)).ok()
            {
                inputs.push(input);
            }
            let mut answers = Vec::new();
            for input in inputs {
                match input {
                    Input::Closed => return,
                    Input::Request(request) => self.decide(request, &mut answers),
                    Input::Report(envelope) => self.take_report(envelope, &mut answers),
                    Input::Event(Event::Changed(session)) => self.nudge(&session),
                    Input::Event(Event::Relist) => self.list(listed_sender.clone()),
                    Input::Listed(found) => self.reconcile(found),
                    Input::Health => self.health_changed(),
                    Input::Tick => self.tick(started),
                    Input::TaskFailed(failure) => {
                        tracing::error!(%failure, "a child of the owner of sessions has failed");
                        // Whoever should have a runner and has none gets a new one.
                        self.publish_all = true;
                    }
                }
            }
            self.finish_turn(answers).await;
        }
    }

    fn decide(&mut self, request: Request, answers: &mut Vec<Answer>) {
        match request {
            Request::Find(id, fingerprint, reply) => {
                let found = self.book.find(&id, &fingerprint).map(|record| record.is_some());
                let session = found.and_then(|found| found.then(|| self.session_with_secret(&id)).transpose());
                let _ = reply.send(session);
            }
            Request::Admit(admit, reply) => {
                let decided = self.with_context(|book, cx| book.admit(&admit, cx));
                let id = admit.session;
                if decided == Ok(false) {
                    self.fresh.insert(id);
                    self.actors.extend(admit.asked.by.map(|by| (id, by)));
                }
                answers.push(Box::new(move |written, owner| {
                    let admitted = written.and(decided).and_then(|replayed| {
                        let session = owner.session_with_secret(&id)?;
                        Ok(Admitted { session, replayed })
                    });
                    let _ = reply.send(admitted);
                }));
            }
            Request::Command(id, command, by, reply) => {
                let decided = self.with_context(|book, cx| book.command(&id, &command, cx));
                if decided.is_ok() {
                    self.actors.insert(id, by);
                }
                answers.push(Box::new(move |written, owner| {
                    let _ = reply.send(written.and(decided).and_then(|()| owner.session(&id)));
                }));
            }
            Request::Claim(ballot, id, reply) => {
                let decided = self.with_context(|book, cx| book.claim(&ballot, &id, cx));
                answers.push(Box::new(move |written, _| drop(reply.send(written.and(decided)))));
            }
            Request::Secret(id, reply) => {
                let record = self.book.record(&id).ok_or(Error::NotFound(id));
                let _ = reply.send(record.map(|record| record.secret.clone()));
            }
            Request::Explain(id, reply) => {
                let record = self.book.record(&id).ok_or(Error::NotFound(id));
                let _ = reply.send(record.map(|record| self.explanation(record)));
            }
            Request::Fence(ballot, reply) => {
                let fenced = self.book.fence(&ballot);
                // Once this turn is published, so is whatever was admitted before.
                answers.push(Box::new(move |_, _| drop(reply.send(fenced))));
            }
        }
    }

    fn take_report(&mut self, envelope: Envelope, answers: &mut Vec<Answer>) {
        let Envelope { session, report, taken } = envelope;
        self.with_context(|book, cx| book.report(&session, report, cx));
        answers.push(Box::new(move |written, _| {
            let _ = taken.send(written.is_ok());
        }));
    }

    fn nudge(&self, session: &SessionId) {
        if let Some(link) = self.runners.get(session) {
            link.nudge.notify_one();
        }
    }

    /// Asks the engine for everything, beside the loop.
    fn list(&mut self, listed: mpsc::Sender<Result<Vec<Found>, RuntimeError>>) {
        let runtime = self.runtime.clone();
        self.tasks.spawn(async move {
            let found = runtime.list().await;
            let _ = listed.send(found).await;
        });
    }

    fn reconcile(&mut self, found: Result<Vec<Found>, RuntimeError>) {
        match found {
            Ok(found) => {
                for (session, node) in self.with_context(|book, cx| book.reconcile(found, cx)) {
                    tracing::warn!(%session, %node, "a container of another node id is on this engine; it is left alone");
                }
                self.runners.values().for_each(|link| link.nudge.notify_one());
            }
            Err(error) => tracing::warn!(%error, "the engine's containers cannot be listed"),
        }
        self.reconciled = true;
    }

    fn health_changed(&mut self) {
        let up = self.health.borrow_and_update().is_up();
        // One that was never up may have gone before this daemon began.
        let went = !up && self.engine_lost_at.is_none();
        if up == self.engine_up && !went {
            return;
        }
        self.engine_up = up;
        self.publish_all = true;
        if up {
            if let Some(lost_at) = self.engine_lost_at.take() {
                self.with_context(|book, cx| book.engine_returned(lost_at, cx));
            }
            self.runners.values().for_each(|link| link.nudge.notify_one());
        } else {
            self.engine_lost_at = Some(self.clock.now());
            self.book.engine_went();
        }
    }

    fn tick(&mut self, started: Moment) {
        self.with_context(|book, cx| book.expire(cx));
        self.reconciled |= self.clock.now().boot.since(started.boot) >= READY_AFTER;
    }

    /// Persist, publish, set to work, reply: in this order.
    async fn finish_turn(&mut self, answers: Vec<Answer>) {
        let mut written = Ok(());
        if self.book.must_commit() {
            match self.journal.commit(self.book.changes()).await {
                Ok(()) => self.book.committed(),
                Err(error) => {
                    tracing::error!(%error, "the journal cannot be written; nothing was changed");
                    self.book.roll_back();
                    written = Err(Error::Journal(error.to_string()));
                }
            }
        }
        self.publish();
        if self.reconciled {
            self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
        for answer in answers {
            answer(written.clone(), self);
        }
    }

    fn publish(&mut self) {
        let actors = std::mem::take(&mut self.actors);
        let mut changed = self.book.take_unpublished();
        if std::mem::take(&mut self.publish_all) {
            changed.extend(self.book.records().map(|record| record.id));
        } else if changed.is_empty() {
            return;
        }
        for id in &changed {
            self.direct_runner(id);
            let before = self.published.remove(id);
            let (Ok(session), Some(record)) = (self.session(id), self.book.record(id)) else {
                self.feed.forget(id);
                continue;
            };
            log_change(before.as_deref(), &session, actors.get(id));
            self.feed.note(before.as_deref(), &session, Standing::of(record));
            self.published.insert(*id, Arc::new(session));
        }
        self.fresh.clear();
        self.snapshot.send_replace(Arc::new(self.summary()));
    }

    fn summary(&self) -> Snapshot {
        let records = || self.book.records();
        let gpus = &self.capacity.borrow().gpus;
        Snapshot {
            sessions: self.published.clone(),
            gone: records().filter(|record| record.is_gone()).map(|record| record.id).collect(),
            reserved: records().filter(|record| record.reserved).map(|record| record.id).collect(),
            allocated: self.book.ledger().allocated(),
            gpu_slots_used: gpus
                .iter()
                .map(|gpu| (gpu.uuid.clone(), self.book.ledger().gpu_slots_used(&gpu.uuid)))
                .collect(),
            journal_rebuilt: self.journal.rebuilt(),
            failing_starts: self.book.failing_starts(),
            feed: self.feed.clone(),
        }
    }

    /// Gives the session's runner its orders; begins or ends the runner where that is due.
    fn direct_runner(&mut self, session: &SessionId) {
        let record = self.book.record(session);
        let work = record.and_then(|record| {
            let order = record.order()?;
            let watch_traffic = record.idle.is_some() && record.state == SessionState::Running;
            Some(Work { order, launch: Arc::new(record.launch()), watch_traffic })
        });
        let Some(work) = work else {
            // Dropping the link tells the runner that it is done.
            if let Some(link) = self.runners.remove(session) {
                link.work.send_replace(None);
            }
            return;
        };
        if let Some(link) = self.runners.get(session)
            && !link.work.is_closed()
        {
            link.work.send_if_modified(|now| {
                let news = now.as_ref() != Some(&work);
                if news {
                    *now = Some(work);
                }
                news
            });
            return;
        }
        self.begin_runner(session, work);
    }

    fn begin_runner(&mut self, session: &SessionId, work: Work) {
        let (sender, receiver) = watch::channel(Some(work));
        let nudge = Arc::new(Notify::new());
        let runner = Runner {
            session: *session,
            runtime: self.runtime.clone(),
            reports: self.reporter.clone(),
            work: receiver,
            nudge: nudge.clone(),
        };
        let known = self.fresh.contains(session).then_some(Container::Absent);
        self.tasks.spawn(runner.run(known));
        self.runners.insert(*session, Link { work: sender, nudge });
    }

    fn session(&self, id: &SessionId) -> Result<Session, Error> {
        let record = self.book.record(id).ok_or(Error::NotFound(*id))?;
        let node = self.node.borrow();
        let mut session = record.view(&node.name, &node.id, &self.endpoint_host, self.clock.now());
        let unseen = !self.engine_up || self.book.is_out_of_sight(id);
        if unseen && !record.is_gone() && !record.state.has_ended() {
            session.state = SessionState::Unknown;
        }
        Ok(session)
    }

    /// For whoever made the session, and for a retry of the same request.
    fn session_with_secret(&self, id: &SessionId) -> Result<Session, Error> {
        let secret = self.book.record(id).and_then(|record| record.secret.clone());
        Ok(Session { secret, ..self.session(id)? })
    }

    fn explanation(&self, record: &Record) -> Explanation {
        Explanation {
            session: record.id,
            node: self.node.borrow().name.clone(),
            attempt: record.attempt,
            decided_at: record.created_at,
            nodes: record.considered.clone(),
        }
    }

    fn with_context<T>(&mut self, decide: impl FnOnce(&mut Book, &Context<'_>) -> T) -> T {
        let node = self.node.borrow().clone();
        let report = self.capacity.borrow().clone();
        let gpus: Vec<String> = report.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        let capacity = Capacity {
            physical: report.physical,
            effective: capacity::effective::effective(report.physical, &node.settings),
            gpus: &gpus,
            gpu_sharing: node.settings.gpu_sharing,
        };
        let cx = Context {
            now: self.clock.now(),
            node: &node,
            capacity,
            engine_up: self.engine_up,
            duplicated: self.signs.borrow().duplicate.is_some(),
            disk_free: report.disk.as_ref().map(|disk| disk.free_bytes),
            port_usable: &port_usable,
            draw_secret: &draw_secret,
        };
        decide(&mut self.book, &cx)
    }
}

/// One line for each step of a session's life.
fn log_change(before: Option<&Session>, now: &Session, by: Option<&Actor>) {
    if before.is_some_and(|before| before.state == now.state) {
        return;
    }
    let reason = now.end_reason.map(|reason| reason.as_str());
    let by = by.map(tracing::field::display);
    tracing::info!(session = %now.id, user = %now.user, workspace = %now.workspace, state = %now.state, reason, by, "session changed");
}

/// Whether nobody on this host listens on the port. A hint: the engine finds out for certain.
fn port_usable(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok()
}

fn draw_secret() -> String {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes once it has booted");
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}
