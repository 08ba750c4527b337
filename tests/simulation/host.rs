//! One host: what outlives its agent, and the agent's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ostler::capacity::{self, GpuDevice, effective};
use ostler::gossip::ClusterView;
use ostler::ledger::{Capacity, PortRange};
use ostler::node;
use ostler::observe::{self, view};
use ostler::runtime::{Container, EngineInfo, Found, Health, Launch};
use ostler::sessions::decide::{Book, Context, FAILING_STARTS, Report};
use ostler::sessions::lifecycle::Order;
use ostler::sessions::{Admit, Command, Config, Feed, Have, Record, Snapshot, Standing};
use ostler::types::{
    Ballot, Bytes, Condition, ConditionKind, Cores, Moment, Name, NodeId, NodeProfile, Period, Resources, RuntimeKind,
    Session, SessionId, SessionProfile, Settings, Timestamp,
};

use crate::call::{Caller, Then};
use crate::client::Entry;
use crate::engine::Engine;
use crate::leader::Leader;

/// Host ports of each host: fewer than sessions are ever asked for at once would be one more way to refuse.
const PORTS: PortRange = PortRange { first: 20_000, last: 20_063 };

pub(crate) fn cluster_name() -> Name {
    "test".parse().unwrap()
}

/// A host.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    /// Its name and its settings, which are on disk.
    pub(crate) state: node::State,
    pub(crate) report: capacity::Report,
    gpus: Vec<String>,
    /// The journal of sessions.
    pub(crate) disk: BTreeMap<String, Vec<u8>>,
    pub(crate) journal_fails: bool,
    pub(crate) crashes: Option<Crash>,
    pub(crate) engine: Engine,
    /// Of a hundred images and starts, so many fail.
    pub(crate) failing: u64,
    /// Milliseconds that its wall clock is off by.
    pub(crate) wall_ahead: i64,
    pub(crate) boot_id: u64,
    /// What gossip brought, kept in the roster.
    pub(crate) view: ClusterView,
    pub(crate) lives: u64,
    /// `None` while the agent is down.
    pub(crate) life: Option<Life>,
    config: Config,
}

/// Where in a turn of the owner of sessions the agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    BeforeWrite,
    /// Nobody hears of what is on disk.
    AfterWrite,
}

/// The agent's memory, from a start to a crash.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) book: Book,
    pub(crate) inbox: Vec<Input>,
    pub(crate) turn_due: bool,
    pub(crate) runners: BTreeMap<SessionId, Runner>,
    pub(crate) begun_runners: u64,
    /// Admitted in this turn: their containers cannot be there yet.
    pub(crate) fresh: BTreeSet<SessionId>,
    pub(crate) snapshot: Snapshot,
    /// Reports that wait for something to tell.
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) leader: Leader,
    /// What is to be done with the answers to calls.
    pub(crate) pending: BTreeMap<u64, Then>,
    /// People's requests that entered here.
    pub(crate) entries: BTreeMap<u64, Entry>,
}

/// What the owner of sessions is told or asked.
pub(crate) enum Input {
    Admit(Box<Admit>, Caller),
    Find(SessionId, String, Caller),
    Command(SessionId, Command, Caller),
    Fence(Ballot, Option<ostler::placement::Have>, Caller),
    /// What a runner saw, which runner, and what it knows of the container.
    Report(SessionId, u64, Report, Option<Container>),
    Listed(Vec<Found>),
    Tick,
}

/// A leader that waits to be told.
pub(crate) struct Watcher {
    pub(crate) caller: Caller,
    pub(crate) have: Option<ostler::placement::Have>,
    pub(crate) until: u64,
}

/// Carries one session through its life.
pub(crate) struct Runner {
    pub(crate) serial: u64,
    pub(crate) order: Order,
    pub(crate) launch: Arc<Launch>,
    pub(crate) known: Option<Container>,
    /// It waits for the engine or for the owner.
    pub(crate) busy: bool,
}

impl Host {
    pub(crate) fn new(index: usize, id: NodeId, physical: Resources) -> Self {
        let gpus: Vec<String> = (0..physical.gpus).map(|gpu| format!("gpu-{index}-{gpu}")).collect();
        let devices = gpus.iter().zip(0..).map(|(uuid, index)| GpuDevice {
            uuid: uuid.clone(),
            index,
            model: "simulated".to_owned(),
        });
        let report = capacity::Report {
            physical,
            gpus: devices.collect(),
            utilized: None,
            disk: None,
            swap: None,
            load: None,
            dev: false,
        };
        let state = node::State {
            id,
            name: format!("n{index}").parse().unwrap(),
            settings: Settings::default(),
            declared: Vec::new(),
            drain: None,
        };
        let config = Config {
            max_sessions_per_user: 0,
            max_sessions_per_node: 0,
            keep_ended: Period::secs(24 * 3600),
            stopped_retention: Period::secs(8),
            min_free_disk: Bytes::ZERO,
            port_range: PORTS,
            networks: Vec::new(),
            endpoint_host: "host".to_owned(),
        };
        Self {
            id,
            state,
            report,
            gpus,
            disk: BTreeMap::new(),
            journal_fails: false,
            crashes: None,
            engine: Engine::default(),
            failing: 0,
            wall_ahead: 0,
            boot_id: 1,
            view: ClusterView::default(),
            lives: 0,
            life: None,
            config,
        }
    }

    /// The agent starts, with what is on disk.
    pub(crate) fn start(&mut self, fence: Option<Ballot>, placement: ostler::placement::Config) {
        self.lives += 1;
        self.crashes = None;
        let book = Book::new(self.config.clone(), cluster_name(), self.id, fence, self.records());
        self.life = Some(Life {
            number: self.lives,
            book,
            inbox: Vec::new(),
            turn_due: false,
            runners: BTreeMap::new(),
            begun_runners: 0,
            fresh: BTreeSet::new(),
            snapshot: Snapshot { feed: Feed::new(self.lives), ..Snapshot::default() },
            watchers: Vec::new(),
            leader: Leader::new(placement),
            pending: BTreeMap::new(),
            entries: BTreeMap::new(),
        });
    }

    /// Every record on disk.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.disk.values().map(|json| serde_json::from_slice(json).unwrap()).collect()
    }

    /// The record of a session on disk.
    pub(crate) fn kept(&self, session: &SessionId) -> Option<Record> {
        Some(serde_json::from_slice(self.disk.get(session.as_str())?).unwrap())
    }

    pub(crate) fn effective(&self) -> Resources {
        effective::effective(self.report.physical, &self.state.settings)
    }

    /// Decides on something.
    pub(crate) fn decide<T>(&mut self, now: Moment, decide: impl FnOnce(&mut Book, &Context<'_>) -> T) -> T {
        let capacity = Capacity {
            physical: self.report.physical,
            effective: self.effective(),
            gpus: &self.gpus,
            gpu_sharing: self.state.settings.gpu_sharing,
        };
        let cx = Context {
            now,
            node: &self.state,
            capacity,
            engine_up: true,
            duplicated: false,
            disk_free: None,
            port_usable: &|_| true,
            draw_secret: &|| "s3cret".to_owned(),
        };
        decide(&mut self.life.as_mut().unwrap().book, &cx)
    }

    /// The session as everybody sees it.
    pub(crate) fn session(&self, id: &SessionId, now: Moment) -> Option<Session> {
        let record = self.life.as_ref()?.book.record(id)?;
        Some(Session::of(&self.session_profile(record, now), Some(&record.activity())))
    }

    fn session_profile(&self, record: &Record, now: Moment) -> SessionProfile {
        record.profile(&self.state.name, &self.id, "host", now)
    }

    /// Tells everybody what changed, and answers the sessions whose runners have new orders.
    pub(crate) fn publish(&mut self, now: Moment) -> BTreeSet<SessionId> {
        let changed = self.life.as_mut().unwrap().book.take_unpublished();
        for id in &changed {
            let record = self.life.as_ref().unwrap().book.record(id);
            let seen = record.map(|record| (self.session_profile(record, now), record.activity()));
            let life = self.life.as_mut().unwrap();
            let before = life.snapshot.sessions.remove(id);
            life.snapshot.activities.remove(id);
            let (Some((session, activity)), Some(record)) = (seen, life.book.record(id)) else {
                life.snapshot.feed.forget(id);
                continue;
            };
            life.snapshot.feed.note(before.as_deref(), &session, Standing::of(record));
            life.snapshot.sessions.insert(*id, Arc::new(session));
            life.snapshot.activities.insert(*id, activity);
        }
        let life = self.life.as_mut().unwrap();
        let records = || life.book.records();
        life.snapshot.gone = records().filter(|record| record.is_gone()).map(|record| record.id).collect();
        life.snapshot.reserved = records().filter(|record| record.reserved).map(|record| record.id).collect();
        life.snapshot.allocated = life.book.ledger().allocated();
        life.snapshot.failing_starts = life.book.failing_starts();
        changed
    }

    /// Gives a session's runner its orders; begins or ends the runner where that is due.
    pub(crate) fn direct_runner(&mut self, session: &SessionId) {
        let life = self.life.as_mut().unwrap();
        let work = life.book.record(session).and_then(|record| Some((record.order()?, record)));
        let Some((order, record)) = work else {
            life.runners.remove(session);
            return;
        };
        if let Some(runner) = life.runners.get_mut(session) {
            runner.order = order;
            return;
        }
        life.begun_runners += 1;
        let known = life.fresh.contains(session).then_some(Container::Absent);
        let launch = Arc::new(record.launch());
        let runner = Runner { serial: life.begun_runners, order, launch, known, busy: false };
        life.runners.insert(*session, runner);
    }

    /// What this node is and has.
    pub(crate) fn profile(&self, now: Moment) -> NodeProfile {
        let snapshot = &self.life.as_ref().unwrap().snapshot;
        let fails = snapshot.failing_starts >= FAILING_STARTS;
        let conditions = fails.then(|| Condition {
            kind: ConditionKind::FailingStarts,
            since: Timestamp::default(),
            message: String::new(),
        });
        view::profile(view::Seen {
            state: &self.state,
            report: &self.report,
            sessions: snapshot,
            health: &Health::Up(EngineInfo {
                version: "simulated".to_owned(),
                cores: Cores::ZERO,
                memory: Bytes::ZERO,
                data_root: None,
                unenforced: Vec::new(),
            }),
            conditions: conditions.as_slice(),
            facts: &observe::Facts {
                address: self.state.name.to_string(),
                version: "0".to_owned(),
                runtime: RuntimeKind::Docker,
            },
            now,
        })
    }

    /// Up to where somebody knows this host who knows it as it is now.
    pub(crate) fn have(&self) -> ostler::placement::Have {
        let snapshot = &self.life.as_ref().unwrap().snapshot;
        let sessions: Have = snapshot.feed.now();
        // Stands for a version: two states that differ must not have the same.
        let mut version = DefaultHasher::new();
        let settings = &self.state.settings;
        (snapshot.allocated, self.effective(), settings.enabled, snapshot.reserved.len()).hash(&mut version);
        (snapshot.failing_starts >= FAILING_STARTS).hash(&mut version);
        ostler::placement::Have { sessions, node: version.finish() }
    }
}
