//! One host: the state that survives its agent, and the agent's memory.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ostler::capacity::{self, effective};
use ostler::gossip::ClusterView;
use ostler::gpu;
use ostler::ledger::PortRange;
use ostler::observe::{self, view};
use ostler::runtime::{EngineInfo, GpuSupport, Health};
use ostler::sessions::decide::{Context, EngineState, FAILING_STARTS, Registry};
use ostler::sessions::state::{self, Reply, Sessions, Start};
use ostler::sessions::{Config, Have, Record, Snapshot};
use ostler::types::{
    Ballot, Bytes, Condition, ConditionKind, Cores, Moment, Name, NodeId, NodeProfile, Period, Resources, RuntimeKind,
    SessionId, Settings, Timestamp,
};
use ostler::{node, placement};

use crate::call::{Caller, Then};
use crate::client::Entry;
use crate::engine::Engine;
use crate::leader::Leader;
use crate::runner::Running;

/// Host ports of each host: as many as sessions can need, so that no host rejects one for want of a port.
const PORTS: PortRange = PortRange { first: 20_000, last: 20_063 };

pub(crate) fn cluster_name() -> Name {
    "test".parse().unwrap()
}

/// A host.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    /// Its name and its settings, as on disk.
    pub(crate) state: node::State,
    pub(crate) report: capacity::Report,
    /// The journal of sessions, as the agent would read it.
    pub(crate) disk: BTreeMap<SessionId, Record>,
    pub(crate) journal_fails: bool,
    pub(crate) crashes: Option<Crash>,
    pub(crate) engine: Engine,
    /// The percentage of pulls and starts that fail.
    pub(crate) failing: u64,
    /// Milliseconds by which its wall clock is ahead.
    pub(crate) wall_ahead: i64,
    pub(crate) boot_id: u64,
    /// Its view by gossip, as kept in the roster.
    pub(crate) view: Arc<ClusterView>,
    pub(crate) lives: u64,
    /// `None` while the agent is down.
    pub(crate) life: Option<Life>,
    config: Config,
}

/// The point in a turn of the owner of sessions at which the agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    BeforeWrite,
    /// The changes are on disk, and no answer is sent.
    AfterWrite,
}

/// The agent's memory, from a start to a crash.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) sessions: Sessions<Callers>,
    pub(crate) inbox: Vec<Input>,
    pub(crate) turn_due: bool,
    pub(crate) runners: BTreeMap<SessionId, Running>,
    pub(crate) begun_runners: u64,
    pub(crate) snapshot: Arc<Snapshot>,
    /// Reports that wait for a change.
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) leader: Leader,
    /// What to do with the answers to calls.
    pub(crate) pending: BTreeMap<u64, Then>,
    /// Clients' requests that this host received.
    pub(crate) entries: BTreeMap<u64, Entry>,
}

/// The callers of the owner of sessions in the simulation.
pub(crate) struct Callers;

impl Reply for Callers {
    type To<T> = Back;
}

pub(crate) type Input = state::Input<Callers>;

/// The way back to a caller.
pub(crate) enum Back {
    /// A call over the network.
    Call(Caller),
    /// A leader that asks for a report.
    Report { caller: Caller, ballot: Ballot, have: Option<placement::Have> },
    /// A runner of this host, by its serial number.
    Runner(SessionId, u64),
}

/// A leader that waits for a report.
pub(crate) struct Watcher {
    pub(crate) caller: Caller,
    pub(crate) have: Option<placement::Have>,
    pub(crate) until: u64,
}

impl Host {
    pub(crate) fn new(index: usize, id: NodeId, physical: Resources) -> Self {
        let device = |gpu: u32| gpu::Device::new(format!("gpu-{index}-{gpu}"), gpu, "simulated".to_owned());
        let devices: Vec<gpu::Device> = (0..physical.gpus).map(device).collect();
        let report = capacity::Report {
            engine: None,
            physical,
            gpus: Arc::new(gpu::Snapshot { devices, ..gpu::Snapshot::default() }),
            gpus_withheld: None,
            utilized: None,
            disks: Vec::new(),
            swap: None,
            load: None,
            pressure: None,
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
            max_foreign_gpu_memory: Bytes::gib(1),
            port_range: PORTS,
            networks: Vec::new(),
            endpoint_host: "host".to_owned(),
        };
        Self {
            id,
            state,
            report,
            disk: BTreeMap::new(),
            journal_fails: false,
            crashes: None,
            engine: Engine::default(),
            failing: 0,
            wall_ahead: 0,
            boot_id: 1,
            view: Arc::default(),
            lives: 0,
            life: None,
            config,
        }
    }

    /// Starts the agent from what is on disk.
    pub(crate) fn start(&mut self, fence: Option<Ballot>, placement: placement::Config, now: Moment) {
        self.lives += 1;
        self.crashes = None;
        let start = Start {
            config: self.config.clone(),
            cluster: cluster_name(),
            node: self.id,
            records: self.disk.values().cloned().collect(),
            journal_rebuilt: None,
            fence,
            incarnation: self.lives,
        };
        let mut sessions = self.with_context(now, |cx| Sessions::new(start, cx));
        self.with_context(now, |cx| sessions.take(Input::Health(EngineState::Up { epoch: None }), cx));
        self.life = Some(Life {
            number: self.lives,
            sessions,
            inbox: Vec::new(),
            turn_due: false,
            runners: BTreeMap::new(),
            begun_runners: 0,
            snapshot: Arc::default(),
            watchers: Vec::new(),
            leader: Leader::new(placement),
            pending: BTreeMap::new(),
            entries: BTreeMap::new(),
        });
    }

    pub(crate) fn effective(&self) -> Resources {
        effective::effective(self.report.physical, &self.state.settings)
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.life.as_ref().unwrap().sessions.registry()
    }

    /// Whether the agent has a record of the session, and its container is not removed.
    pub(crate) fn has(&self, session: &SessionId) -> bool {
        self.registry().record(session).and_then(Record::live).is_some()
    }

    /// Runs a decision of the sessions.
    pub(crate) fn with_sessions<T>(
        &mut self,
        now: Moment,
        decide: impl FnOnce(&mut Sessions<Callers>, &Context<'_>) -> T,
    ) -> T {
        let mut life = self.life.take().unwrap();
        let decided = self.with_context(now, |cx| decide(&mut life.sessions, cx));
        self.life = Some(life);
        decided
    }

    fn with_context<T>(&self, now: Moment, decide: impl FnOnce(&Context<'_>) -> T) -> T {
        decide(&Context {
            now,
            node: &self.state,
            report: &self.report,
            duplicated: false,
            port_usable: &|_| true,
            draw_secret: &|| "s3cret".to_owned(),
        })
    }

    /// This node's profile.
    pub(crate) fn profile(&self, now: Moment) -> NodeProfile {
        let snapshot = &self.life.as_ref().unwrap().snapshot;
        let fails = snapshot.failing_starts >= FAILING_STARTS;
        let conditions = fails.then(|| Condition {
            kind: ConditionKind::FailingStarts,
            since: Timestamp::default(),
            message: String::new(),
        });
        view::profile(view::Inputs {
            state: &self.state,
            report: &self.report,
            sessions: snapshot,
            health: &Health::Up(EngineInfo {
                version: "simulated".to_owned(),
                cores: Cores::ZERO,
                memory: Bytes::ZERO,
                data_root: None,
                unenforced: Vec::new(),
                epoch: None,
                platform: None,
                images: None,
                pid: None,
                gpus: GpuSupport::default(),
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

    /// The versions of a report that is up to date.
    pub(crate) fn have(&self) -> placement::Have {
        let snapshot = &self.life.as_ref().unwrap().snapshot;
        let sessions: Have = snapshot.feed.now();
        // A hash stands for the version: it differs for different states.
        let mut version = DefaultHasher::new();
        let settings = &self.state.settings;
        (snapshot.allocated, self.effective(), settings.enabled, snapshot.reserved.len()).hash(&mut version);
        self.state.drain.is_some().hash(&mut version);
        (snapshot.failing_starts >= FAILING_STARTS).hash(&mut version);
        placement::Have { sessions, node: version.finish() }
    }
}
