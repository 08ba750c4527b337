//! Every session of this host, turn by turn; sans-io.
//!
//! A turn takes the waiting inputs ([`Sessions::take`]) and returns what must be on disk before any answer
//! ([`Sessions::changes`]). Once that is written, or the write has failed, it returns what to publish, the orders for
//! runners and the answers ([`Sessions::finish`]). The owner ([`task`](super::task)) does the work; the simulation
//! does it on virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::decide::{Context, EngineState, Gpus, Registry, Report};
use super::feed::{Feed, Standing};
use super::measure::{Measure, Measured};
use super::record::Record;
use super::runner::{Watch, Work};
use super::told::{Teller, Told};
use super::{Admit, Admitted, Claimed, Command, Config, Error, Rebuilt, Snapshot};
use crate::election::Stale;
use crate::runtime;
use crate::runtime::container::Found;
use crate::store::{self, Cause};
use crate::types::{
    Actor, Ballot, BootInstant, Explanation, Name, NodeId, Session, SessionActivity, SessionId, SessionProfile,
    SessionState,
};

/// After this time the node counts as ready, even if its engine has not answered.
const READY_AFTER: Duration = Duration::from_secs(10);

/// Where a caller waits for its answer: a one-shot channel in the daemon, a waiting call in the simulation.
pub trait Reply {
    /// Where a caller waits for a `T`.
    type To<T>;
}

/// A request to the sessions of this host.
pub enum Request<R: Reply> {
    Find(SessionId, String, R::To<Result<Option<Session>, Error>>),
    Admit(Box<Admit>, R::To<Result<Admitted, Error>>),
    Command(SessionId, Command, Actor, R::To<Result<Session, Error>>),
    Secret(SessionId, R::To<Result<Option<String>, Error>>),
    Explain(SessionId, R::To<Result<Explanation, Error>>),
    Claim(Ballot, SessionId, R::To<Result<Claimed, Error>>),
    Fence(Ballot, R::To<Result<(), Stale>>),
}

/// One input of a turn.
pub enum Input<R: Reply> {
    Request(Request<R>),
    /// A report of a session's runner. The answer says whether it was accepted.
    Report(SessionId, Report, R::To<bool>),
    /// Every container of the engine, which was asked at this time.
    Listed(BootInstant, Result<Vec<Found>, runtime::Error>),
    /// The configuration has changed.
    Config(Box<Config>),
    /// Whether the engine answers.
    Health(EngineState),
    Tick,
    /// The host was read again.
    HostRead,
    /// The data directory was full, and has room again.
    Room,
    /// A runner has failed: every session that needs a runner and has none gets a new one.
    RunnerFailed,
}

/// An answer, and where its caller waits.
#[expect(clippy::large_enum_variant, reason = "there is one for the time of one turn")]
pub enum Answer<R: Reply> {
    Find(R::To<Result<Option<Session>, Error>>, Result<Option<Session>, Error>),
    Admit(R::To<Result<Admitted, Error>>, Result<Admitted, Error>),
    Command(R::To<Result<Session, Error>>, Result<Session, Error>),
    Secret(R::To<Result<Option<String>, Error>>, Result<Option<String>, Error>),
    Explain(R::To<Result<Explanation, Error>>, Result<Explanation, Error>),
    Claim(R::To<Result<Claimed, Error>>, Result<Claimed, Error>),
    Fence(R::To<Result<(), Stale>>, Result<(), Stale>),
    Report(R::To<bool>, bool),
}

/// The new order for a session's runner.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    pub session: SessionId,
    /// `None`: the runner ends.
    pub work: Option<Work>,
    /// The session was admitted in this turn, so it cannot have a container yet.
    pub fresh: bool,
}

/// The results of a turn, in the order in which the owner acts on them.
pub struct Turn<R: Reply> {
    /// What the event log is told, before anybody sees it.
    pub told: Vec<Told>,
    /// What is counted.
    pub measured: Vec<Measured>,
    /// The new snapshot, if it changed.
    pub snapshot: Option<Arc<Snapshot>>,
    pub orders: Vec<Order>,
    /// Every runner observes its container again.
    pub nudge_all: bool,
    /// The driver is to be asked which processes are on the GPUs.
    pub look_at_gpus: bool,
    /// Journal and engine have been reconciled once, or the wait for the engine is over.
    pub ready: bool,
    pub answers: Vec<Answer<R>>,
}

/// An answer that waits for the write.
#[expect(clippy::large_enum_variant, reason = "there is one for the time of one turn")]
enum Pending<R: Reply> {
    Find(R::To<Result<Option<Session>, Error>>, SessionId, String),
    Admit(R::To<Result<Admitted, Error>>, SessionId, Result<bool, Error>),
    Command(R::To<Result<Session, Error>>, SessionId, Result<(), Error>),
    Secret(R::To<Result<Option<String>, Error>>, SessionId),
    Explain(R::To<Result<Explanation, Error>>, SessionId),
    Claim(R::To<Result<Claimed, Error>>, Result<Claimed, Error>),
    Fence(R::To<Result<(), Stale>>, Result<(), Stale>),
    Report(R::To<bool>),
}

impl<R: Reply> Pending<R> {
    /// The session that somebody asked a change of.
    const fn asked(&self) -> Option<&SessionId> {
        match self {
            Self::Admit(_, id, _) | Self::Command(_, id, _) => Some(id),
            _ => None,
        }
    }
}

/// What [`Sessions`] starts with.
pub struct Start {
    pub config: Config,
    pub cluster: Name,
    pub node: NodeId,
    /// The journal's records.
    pub records: Vec<Record>,
    /// Why the journal could not be read and was created anew.
    pub journal_rebuilt: Option<Rebuilt>,
    /// The highest ballot on disk that this node has followed or voted for.
    pub fence: Option<Ballot>,
    /// The number of this start of the agent: it grows with every start.
    pub incarnation: u64,
}

/// The state of the owner.
pub struct Sessions<R: Reply> {
    registry: Registry,
    /// Answers that wait for the end of this turn.
    pending: Vec<Pending<R>>,
    /// The sessions that were admitted in this turn.
    fresh: BTreeSet<SessionId>,
    teller: Teller,
    measure: Measure,
    published: BTreeMap<SessionId, Arc<SessionProfile>>,
    published_gpus: Gpus,
    activities: BTreeMap<SessionId, SessionActivity>,
    feed: Feed,
    /// Publish every session in this turn, not only those that changed.
    publish_all: bool,
    nudge_all: bool,
    journal_rebuilt: Option<Rebuilt>,
    data_dir_full: Option<PathBuf>,
    started: BootInstant,
    ready: bool,
}

impl<R: Reply> Sessions<R> {
    /// Starts from what is on disk. The first turn needs no input: it publishes the sessions and starts their runners.
    pub fn new(start: Start, cx: &Context<'_>) -> Self {
        let Start { config, cluster, node, records, journal_rebuilt, fence, incarnation } = start;
        let mut registry = Registry::new(config, cluster, node, fence, records);
        registry.rebase_deadlines(cx);
        Self {
            registry,
            pending: Vec::new(),
            fresh: BTreeSet::new(),
            teller: Teller::default(),
            measure: Measure::default(),
            published: BTreeMap::new(),
            published_gpus: Gpus::default(),
            activities: BTreeMap::new(),
            feed: Feed::new(incarnation),
            publish_all: true,
            nudge_all: false,
            journal_rebuilt,
            data_dir_full: None,
            started: cx.now.boot,
            ready: false,
        }
    }

    /// The records, with this turn's decisions.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Decides on one input.
    pub fn take(&mut self, input: Input<R>, cx: &Context<'_>) {
        match input {
            Input::Request(request) => self.decide(request, cx),
            Input::Report(session, report, reply) => {
                self.registry.report(&session, report, cx);
                self.pending.push(Pending::Report(reply));
            }
            Input::Config(config) => self.registry.set_config(*config),
            Input::Listed(since, listed) => self.reconcile(listed, since, cx),
            Input::Health(engine) => {
                let news = self.registry.engine_is(&engine, cx);
                self.publish_all |= news;
                self.nudge_all |= news && engine != EngineState::Down;
            }
            Input::Tick => {
                self.publish_all |= self.registry.expire(cx);
                self.see_gpus(cx);
                self.ready |= cx.now.boot.since(self.started) >= READY_AFTER;
            }
            Input::HostRead => self.see_gpus(cx),
            Input::Room => self.note_full(None),
            Input::RunnerFailed => self.publish_all = true,
        }
    }

    /// Takes what the driver says of the GPUs, and how long it has said so.
    fn see_gpus(&mut self, cx: &Context<'_>) {
        self.registry.gpus_seen(cx);
        self.publish_all |= self.published_gpus != self.registry.gpus(cx);
    }

    fn decide(&mut self, request: Request<R>, cx: &Context<'_>) {
        let pending = match request {
            Request::Find(id, fingerprint, reply) => Pending::Find(reply, id, fingerprint),
            Request::Admit(admit, reply) => {
                let decided = self.registry.admit(&admit, cx);
                if decided == Ok(false) {
                    self.fresh.insert(admit.session);
                    if let Some(by) = admit.asked.by {
                        self.teller.created(admit.session, by);
                    }
                }
                Pending::Admit(reply, admit.session, decided)
            }
            Request::Command(id, command, by, reply) => {
                let decided = self.registry.command(&id, &command, cx);
                if decided.is_ok()
                    && let Some(session) = self.published.get(&id)
                {
                    self.teller.asked(id, session.state, &command, by);
                }
                Pending::Command(reply, id, decided)
            }
            Request::Secret(id, reply) => Pending::Secret(reply, id),
            Request::Explain(id, reply) => Pending::Explain(reply, id),
            Request::Claim(ballot, id, reply) => Pending::Claim(reply, self.registry.claim(&ballot, &id, cx)),
            // Answered once this turn is published, so that every session that was admitted before is published too.
            Request::Fence(ballot, reply) => Pending::Fence(reply, self.registry.fence(&ballot)),
        };
        self.pending.push(pending);
    }

    fn reconcile(&mut self, listed: Result<Vec<Found>, runtime::Error>, since: BootInstant, cx: &Context<'_>) {
        match listed {
            Ok(found) => {
                let oddities = self.registry.oddities().clone();
                self.registry.reconcile(found, since, cx);
                self.publish_all |= oddities != *self.registry.oddities();
                self.nudge_all = true;
                self.ready = true;
            }
            Err(error) => tracing::warn!(%error, "cannot list the containers of the engine"),
        }
    }

    /// What must be on disk before [`Self::finish`]: every record that differs from the disk, or `None` if the disk
    /// is up to date. A record that is `None` is removed.
    pub fn changes(&self) -> Option<impl Iterator<Item = (&SessionId, Option<&Record>)>> {
        self.registry.must_commit().then(|| self.registry.changes())
    }

    /// Ends the turn. `written` says whether the changes, if any, are on disk. If they are not, the whole turn is
    /// rolled back.
    pub fn finish(&mut self, written: Result<(), Error>, cx: &Context<'_>) -> Turn<R> {
        if self.registry.must_commit() {
            match &written {
                Ok(()) => {
                    self.registry.committed();
                    self.note_full(None);
                }
                Err(error) => {
                    self.registry.roll_back();
                    self.pending.iter().filter_map(Pending::asked).for_each(|id| self.teller.not_done(id));
                    if let Error::Journal(Cause::Here(store::Error::Full(directory))) = error {
                        self.note_full(Some(directory.clone()));
                    }
                }
            }
        }
        let (snapshot, orders) = self.publish(cx);
        let pending = std::mem::take(&mut self.pending);
        Turn {
            told: self.teller.take(),
            measured: self.measure.take(),
            snapshot,
            orders,
            nudge_all: std::mem::take(&mut self.nudge_all),
            look_at_gpus: self.registry.is_leaving_gpus(cx),
            ready: self.ready,
            answers: pending.into_iter().map(|pending| self.answer(pending, &written, cx)).collect(),
        }
    }

    /// Whether the last change was refused by a full data directory.
    pub const fn is_full(&self) -> bool {
        self.data_dir_full.is_some()
    }

    fn note_full(&mut self, directory: Option<PathBuf>) {
        self.publish_all |= self.data_dir_full != directory;
        self.data_dir_full = directory;
    }

    fn publish(&mut self, cx: &Context<'_>) -> (Option<Arc<Snapshot>>, Vec<Order>) {
        let mut changed = self.registry.take_unpublished();
        if std::mem::take(&mut self.publish_all) {
            changed.extend(self.registry.records().map(|record| record.origin().id));
        } else if changed.is_empty() {
            return (None, Vec::new());
        }
        for id in &changed {
            let before = self.published.remove(id);
            let activity_before = self.activities.remove(id);
            let Some(record) = self.registry.record(id) else {
                self.feed.forget(id);
                self.teller.forget(id);
                self.measure.forget(id);
                continue;
            };
            let (session, activity) = (self.profile(record, cx), record.activity(cx.now));
            log_change(before.as_deref(), &session);
            self.teller.see(before.as_deref(), &session, record);
            self.measure.see(before.as_deref(), &session, cx.now.boot);
            self.feed.note(before.as_deref(), &session, Standing::of(record));
            if activity_before.as_ref() != Some(&activity) {
                self.feed.note_activity(id);
            }
            self.published.insert(*id, Arc::new(session));
            self.activities.insert(*id, activity);
        }
        let orders = changed.iter().map(|id| self.order(id, cx)).collect();
        self.fresh.clear();
        self.published_gpus = self.registry.gpus(cx);
        (Some(Arc::new(self.summary())), orders)
    }

    fn summary(&self) -> Snapshot {
        let ids = |holds: fn(&Record) -> bool| {
            let records = self.registry.records().filter(|record| holds(record));
            records.map(|record| record.origin().id).collect()
        };
        Snapshot {
            sessions: self.published.clone(),
            activities: self.activities.clone(),
            gone: ids(|record| record.live().is_none()),
            reserved: ids(Record::is_reserved),
            allocated: self.registry.ledger().allocated(),
            gpus: self.published_gpus.clone(),
            journal_rebuilt: self.journal_rebuilt.clone(),
            data_dir_full: self.data_dir_full.clone(),
            failing_starts: self.registry.failing_starts(),
            oddities: self.registry.oddities().clone(),
            troubles: self.registry.troubles().clone(),
            feed: self.feed.clone(),
        }
    }

    fn order(&self, session: &SessionId, cx: &Context<'_>) -> Order {
        let work = self.registry.record(session).and_then(Record::live).and_then(|live| {
            let watch = match live.idle.filter(|_| live.is_in_use()) {
                None => Watch::Off,
                Some(idle) if idle.is_due(cx.now) => Watch::IdleIsDue,
                Some(_) => Watch::On,
            };
            let order = live.order(self.registry.is_out_of_sight(session))?;
            let container_id = live.status.container_id.clone();
            Some(Work { order, launch: Arc::new(live.launch()), container_id, watch, probe: live.probe() })
        });
        Order { session: *session, work, fresh: self.fresh.contains(session) }
    }

    fn answer(&self, pending: Pending<R>, written: &Result<(), Error>, cx: &Context<'_>) -> Answer<R> {
        let written = written.clone();
        match pending {
            Pending::Find(reply, id, fingerprint) => {
                let found = self.registry.find(&id, &fingerprint).map(|record| record.is_some());
                let session = found.and_then(|found| found.then(|| self.session_with_secret(&id, cx)).transpose());
                Answer::Find(reply, session)
            }
            Pending::Admit(reply, id, decided) => {
                let admitted = written.and(decided).and_then(|replayed| {
                    let session = self.session_with_secret(&id, cx)?;
                    Ok(Admitted { session, replayed })
                });
                Answer::Admit(reply, admitted)
            }
            Pending::Command(reply, id, decided) => {
                Answer::Command(reply, written.and(decided).and_then(|()| self.session(&id, cx)))
            }
            Pending::Secret(reply, id) => Answer::Secret(reply, self.secret(&id)),
            Pending::Explain(reply, id) => Answer::Explain(reply, self.known(&id).map(|record| explain(record, cx))),
            Pending::Claim(reply, decided) => Answer::Claim(reply, written.and(decided)),
            Pending::Fence(reply, fenced) => Answer::Fence(reply, fenced),
            Pending::Report(reply) => Answer::Report(reply, written.is_ok()),
        }
    }

    fn known(&self, id: &SessionId) -> Result<&Record, Error> {
        self.registry.record(id).ok_or(Error::NotFound(*id))
    }

    fn session(&self, id: &SessionId, cx: &Context<'_>) -> Result<Session, Error> {
        let record = self.known(id)?;
        Ok(Session::of(&self.profile(record, cx), Some(&record.activity(cx.now))))
    }

    fn profile(&self, record: &Record, cx: &Context<'_>) -> SessionProfile {
        let mut profile = record.profile(&cx.node.name, &cx.node.id, self.registry.endpoint_host(), cx.now);
        if record.live().is_some() && !profile.state.has_ended() && self.registry.is_unseen(&profile.id) {
            profile.state = SessionState::Unknown;
            let why = self.registry.why_unseen(&profile.id).map(str::to_owned);
            profile.message = why.or(profile.message);
        }
        let lost: Vec<&str> = self.registry.lost_gpus(record).collect();
        if !lost.is_empty() {
            let lost =
                format!("gpu_lost: GPU {} is not found any more; the session goes on without it", lost.join(", "));
            profile.message.get_or_insert(lost);
        }
        profile
    }

    fn secret(&self, id: &SessionId) -> Result<Option<String>, Error> {
        Ok(self.known(id)?.live().and_then(|live| live.secret.clone()))
    }

    /// The session with its secret: for the caller that created it, and for a retry of the same request.
    fn session_with_secret(&self, id: &SessionId, cx: &Context<'_>) -> Result<Session, Error> {
        Ok(Session { secret: self.secret(id)?, ..self.session(id, cx)? })
    }
}

fn explain(record: &Record, cx: &Context<'_>) -> Explanation {
    let origin = record.origin();
    Explanation {
        session: origin.id,
        node: cx.node.name.clone(),
        attempt: origin.attempt,
        decided_at: origin.created_at,
        nodes: origin.considered.clone(),
    }
}

/// Logs each change of a session's state, the steps in between too.
fn log_change(before: Option<&SessionProfile>, now: &SessionProfile) {
    if before.is_some_and(|before| before.state == now.state) {
        return;
    }
    let reason = now.end_reason.map(|reason| reason.as_str());
    tracing::debug!(session = %now.id, user = now.user.as_str(), workspace = %now.workspace, state = %now.state, reason, "session changed");
}
