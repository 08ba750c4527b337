//! Every decision about the sessions of this host, pure: requests and sights go in, changed records come out. The
//! [owner](super::task) persists, publishes and replies.

mod admit;
mod command;
mod elsewhere;
mod expire;
mod gpus;
mod listing;
mod recover;
mod report;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod troubles;

use std::collections::{BTreeMap, BTreeSet};

use self::recover::Unseen;
use super::record::{Live, Record};
use super::{Config, Error};
use crate::capacity::Report as HostReport;
use crate::capacity::effective::effective;
use crate::election::Stale;
use crate::ledger::{Ledger, Ports, Refusal, Reservation};
use crate::node;
use crate::types::{Ballot, Deadline, EndReason, Moment, Name, NodeId, NodeReason, Reason, Resources, SessionId};

pub use elsewhere::{MAX_ATTEMPTS, Unplaced};
pub use gpus::{Exceeded, GpuUse, Gpus, Leaving};
pub use listing::{Oddities, Oddity};
pub use recover::EngineState;
pub use report::Report;
pub use troubles::{Trouble, Troubles};

/// Starts in a row that fail before the node has a condition that says so and is offered sessions last.
pub const FAILING_STARTS: u32 = 3;

/// What a decision may look at besides the registry.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub now: Moment,
    pub node: &'a node::State,
    /// What was last read of this host.
    pub report: &'a HostReport,
    /// Another live node has this node's id: one of the two is a copy.
    pub duplicated: bool,
    pub port_usable: &'a dyn Fn(u16) -> bool,
    pub draw_secret: &'a dyn Fn() -> String,
}

impl Context<'_> {
    /// What the host offers; of GPUs, every slot, as if all devices took sessions.
    pub fn effective(&self) -> Resources {
        effective(self.report.physical, &self.node.settings)
    }
}

/// Every record, and what they hold together.
pub struct Registry {
    config: Config,
    cluster: Name,
    node: NodeId,
    records: BTreeMap<SessionId, Record>,
    ledger: Ledger,
    ports: Ports,
    troubles: Troubles,
    /// Offers under a lower ballot are rejected.
    fence: Option<Ballot>,
    engine_up: bool,
    /// Which start of the engine answered last.
    engine_epoch: Option<String>,
    /// When the engine was lost; `None` while it is up, and before its state was first known.
    engine_lost_at: Option<Moment>,
    /// The engine has listed its containers since the agent started: until then, sessions may run that no record knows.
    is_listed: bool,
    /// Sessions of which it is not known what they do.
    out_of_sight: BTreeMap<SessionId, Unseen>,
    /// Sessions whose idle time is over, and when it ended: their runners were told to look whether they are used.
    idle_due: BTreeMap<SessionId, Deadline>,
    /// What the last list had that the operator should know.
    oddities: Oddities,
    /// What the driver last said of the processes on the GPUs.
    seen: gpus::Seen,
    /// The records as they were before the changes that are not yet on disk.
    undo: BTreeMap<SessionId, Option<Record>>,
    /// Records that differ from what is on disk. Those that are not in `undo` can wait.
    unwritten: BTreeSet<SessionId>,
    /// Records that differ from what was published.
    unpublished: BTreeSet<SessionId>,
}

impl Registry {
    /// Begins with what is on disk: the records, and the highest ballot that this host has followed.
    pub fn new(config: Config, cluster: Name, node: NodeId, fence: Option<Ballot>, records: Vec<Record>) -> Self {
        let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.origin().id, record)).collect();
        let mut registry = Self {
            config,
            cluster,
            node,
            unpublished: records.keys().copied().collect(),
            records,
            ledger: Ledger::default(),
            ports: Ports::default(),
            troubles: Troubles::default(),
            fence,
            engine_up: false,
            engine_epoch: None,
            engine_lost_at: None,
            is_listed: false,
            out_of_sight: BTreeMap::new(),
            idle_due: BTreeMap::new(),
            oddities: Oddities::default(),
            seen: gpus::Seen::default(),
            undo: BTreeMap::new(),
            unwritten: BTreeSet::new(),
        };
        registry.rebuild();
        registry
    }

    /// From now on, offers under a lower ballot are rejected.
    pub fn fence(&mut self, ballot: &Ballot) -> Result<(), Stale> {
        match &self.fence {
            Some(highest) if highest > ballot => Err(Stale { highest: *highest }),
            _ => {
                self.fence = Some(*ballot);
                Ok(())
            }
        }
    }

    /// Where this host's sessions are shown to be.
    pub fn endpoint_host(&self) -> &str {
        &self.config.endpoint_host
    }

    /// Every record, ended ones included.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The record of a session; `None` where it is not remembered.
    pub fn record(&self, session: &SessionId) -> Option<&Record> {
        self.records.get(session)
    }

    /// What the records reserve together.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Follows a change of the configuration. It decides what comes, and nothing that is here.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// What the last list of the engine had that the operator should know.
    pub const fn oddities(&self) -> &Oddities {
        &self.oddities
    }

    /// What kept sessions from starting lately.
    pub const fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Starts in a row that failed.
    pub const fn failing_starts(&self) -> u32 {
        self.troubles.failing_starts
    }

    /// Whether a decision must be on disk before it is published or answered.
    pub fn must_commit(&self) -> bool {
        !self.undo.is_empty()
    }

    /// What to write: every session that differs from the disk; `None` to remove its record.
    pub fn changes(&self) -> impl Iterator<Item = (&SessionId, Option<&Record>)> {
        self.unwritten.iter().map(|id| (id, self.records.get(id)))
    }

    /// The changes are on disk.
    pub fn committed(&mut self) {
        self.undo.clear();
        self.unwritten.clear();
    }

    /// The changes could not be written: everything is as it was before them.
    pub fn roll_back(&mut self) {
        for (id, before) in std::mem::take(&mut self.undo) {
            self.unpublished.insert(id);
            match before {
                Some(record) => self.records.insert(id, record),
                None => self.records.remove(&id),
            };
        }
        self.rebuild();
    }

    /// The sessions to publish anew.
    pub fn take_unpublished(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.unpublished)
    }

    /// The ledger and the ports follow from the records alone.
    fn rebuild(&mut self) {
        self.ledger = Ledger::default();
        self.ports = Ports::default();
        for (id, record) in &self.records {
            if let Some(leaving) = &record.status().gpus_leaving {
                self.ledger.restore_leaving(*id, record.gpus_only(leaving.gpus.clone()));
            }
            let Some(live) = record.live() else { continue };
            if live.reserved {
                let gpus = record.gpus_only(live.status.gpu_uuids.clone());
                self.ledger.restore(*id, Reservation { resources: live.origin.workspace.resources(), ..gpus });
            }
            self.ports.restore(*id, live.ports.iter().map(|port| port.host_port).collect());
        }
    }

    /// Every session whose container is not destroyed.
    fn live_sessions(&self) -> impl Iterator<Item = &Live> {
        self.records.values().filter_map(Record::live)
    }

    fn live(&self, session: &SessionId) -> Result<&Live, Error> {
        let record = self.records.get(session).ok_or(Error::NotFound(*session))?;
        record.live().ok_or_else(|| removed(session))
    }

    /// A session to change durably: the change is on disk before it is published or answered.
    fn change(&mut self, session: &SessionId) -> Result<&mut Live, Error> {
        let record = self.change_record(session).ok_or(Error::NotFound(*session))?;
        record.live_mut().ok_or_else(|| removed(session))
    }

    /// Like [`Self::change`], of a tombstone too; `None` where the session is not remembered.
    fn change_record(&mut self, session: &SessionId) -> Option<&mut Record> {
        let record = self.records.get_mut(session)?;
        self.undo.entry(*session).or_insert_with(|| Some(record.clone()));
        self.unwritten.insert(*session);
        self.unpublished.insert(*session);
        Some(record)
    }

    /// A session to change without a write of its own: progress and activity, written with the next durable change.
    fn touch(&mut self, session: &SessionId) -> Option<&mut Live> {
        let live = self.records.get_mut(session)?.live_mut()?;
        self.unwritten.insert(*session);
        self.unpublished.insert(*session);
        Some(live)
    }

    fn insert(&mut self, record: Record) {
        let id = record.origin().id;
        self.unwritten.insert(id);
        self.unpublished.insert(id);
        let before = self.records.insert(id, record);
        self.undo.entry(id).or_insert(before);
    }

    fn forget(&mut self, session: &SessionId) {
        if let Some(record) = self.records.remove(session) {
            self.ledger.free_gpus(session);
            self.undo.entry(*session).or_insert(Some(record));
            self.unwritten.insert(*session);
            self.unpublished.insert(*session);
        }
    }

    /// The session is over, and its reservation is free. To be called only after the runtime confirmed the end.
    fn end(&mut self, session: &SessionId, reason: EndReason, cx: &Context<'_>) -> Result<&mut Live, Error> {
        self.release(session, cx)?;
        let retention = self.config.stopped_retention;
        let live = self.change(session)?;
        live.reserved = false;
        live.unplaced = None;
        live.ended_at = Some(cx.now.boot);
        live.status.ready_at = None;
        live.status.health = None;
        live.status.end_reason = Some(reason);
        live.status.state = live.status.ended_state();
        if !retention.0.is_zero() {
            live.retention = Some(Deadline::after(cx.now, retention.0));
        }
        Ok(live)
    }

    fn refusal(&self, cx: &Context<'_>, refusal: Refusal) -> Error {
        Error::Refused(Box::new(refusal.on(cx.node.name.clone())))
    }

    fn plain_refusal(&self, cx: &Context<'_>, reason: Reason) -> Error {
        Error::Refused(Box::new(NodeReason::plain(cx.node.name.clone(), reason)))
    }
}

fn conflict(session: &SessionId, what: &str) -> Error {
    Error::Conflict(format!("session {session} {what}"))
}

fn removed(session: &SessionId) -> Error {
    conflict(session, "has been removed")
}
