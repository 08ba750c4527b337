//! The conditions of this node, which its operator should know, and the owner that keeps them.

mod gpus;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::capacity::effective::effective;
use crate::capacity::probe::cgroup::Bounds;
use crate::capacity::room::{beyond_ram_and_swap, shortage};
use crate::capacity::{EngineFigures, Report};
use crate::clock::Clock;
use crate::events::{self, Happening};
use crate::images;
use crate::node::{ClusterSigns, State};
use crate::runtime::Health;
use crate::sessions::{self, FAILING_STARTS, Oddities, Oddity, Snapshot, Trouble};
use crate::store::MovedAside;
use crate::types::{Bytes, Condition, ConditionKind, Dimension, Resources, Swap, Timestamp};

/// The least time between two evaluations, so that a burst of sessions changes the conditions once.
const PAUSE: Duration = Duration::from_millis(100);

/// Containers or GPUs that a condition names at most.
const MAX_NAMED: usize = 3;

/// What conditions are evaluated from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub report: &'a Report,
    pub node: &'a State,
    pub sessions: &'a Snapshot,
    pub health: &'a Health,
    pub cluster: &'a ClusterSigns,
    /// Whether the journal that could not be read is still there, set aside.
    pub is_journal_aside: bool,
    /// The records of images that could not be read, if they are still there, set aside.
    pub records_lost: Option<&'a MovedAside>,
    /// `limits.min_free_disk`
    pub min_free_disk: Bytes,
    pub images: &'a images::Snapshot,
    /// Why the event log cannot be written.
    pub event_log: Option<&'a str>,
    /// Why the history cannot be written.
    pub history: Option<&'a str>,
}

/// What the owner watches.
#[derive(Debug)]
pub struct Watches {
    pub report: watch::Receiver<Arc<Report>>,
    pub node: watch::Receiver<Arc<State>>,
    pub sessions: watch::Receiver<Arc<Snapshot>>,
    pub health: watch::Receiver<Health>,
    pub cluster: watch::Receiver<Arc<ClusterSigns>>,
    pub limits: watch::Receiver<sessions::Config>,
    /// Its first value, for a runtime without images.
    pub images: watch::Receiver<Arc<images::Snapshot>>,
    /// Why the event log cannot be written.
    pub event_log: watch::Receiver<Option<String>>,
    /// Why the history cannot be written.
    pub history: watch::Receiver<Option<String>>,
}

/// Starts the owner. It ends when the conditions have no reader any more.
pub fn spawn(
    watches: Watches,
    publish: watch::Sender<Arc<Vec<Condition>>>,
    events: events::Handle,
    clock: Clock,
) -> JoinHandle<()> {
    tokio::spawn(run(watches, publish, events, clock))
}

async fn run(mut watches: Watches, publish: watch::Sender<Arc<Vec<Condition>>>, events: events::Handle, clock: Clock) {
    loop {
        let before = publish.borrow().clone();
        let after = carry(&before, watches.evaluate(), clock.now().wall);
        changes(&before, &after).into_iter().for_each(|change| events.record(change, None));
        if *before != after {
            publish.send_replace(Arc::new(after));
        }
        tokio::select! {
            () = publish.closed() => return,
            // A watch whose sender is gone is not waited for any more.
            Ok(()) = watches.report.changed() => {}
            Ok(()) = watches.node.changed() => {}
            Ok(()) = watches.sessions.changed() => {}
            Ok(()) = watches.health.changed() => {}
            Ok(()) = watches.cluster.changed() => {}
            Ok(()) = watches.limits.changed() => {}
            Ok(()) = watches.images.changed() => {}
            Ok(()) = watches.event_log.changed() => {}
            Ok(()) = watches.history.changed() => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Watches {
    fn evaluate(&mut self) -> Vec<(ConditionKind, String)> {
        let sessions = self.sessions.borrow_and_update().clone();
        let report = self.report.borrow_and_update().clone();
        let node = self.node.borrow_and_update().clone();
        let health = self.health.borrow_and_update().clone();
        let cluster = self.cluster.borrow_and_update().clone();
        let images = self.images.borrow_and_update().clone();
        let event_log = self.event_log.borrow_and_update().clone();
        let history = self.history.borrow_and_update().clone();
        let min_free_disk = self.limits.borrow_and_update().min_free_disk;
        let (report, node, sessions) = (&*report, &*node, &*sessions);
        evaluate(Inputs {
            report,
            node,
            sessions,
            health: &health,
            cluster: &cluster,
            is_journal_aside: sessions.journal_rebuilt.as_ref().is_some_and(|rebuilt| rebuilt.moved_to.exists()),
            records_lost: images.records_lost.as_ref().filter(|lost| lost.to.exists()),
            min_free_disk,
            images: &images,
            event_log: event_log.as_deref(),
            history: history.as_deref(),
        })
    }
}

/// Every condition that holds, with its message for the operator.
pub fn evaluate(inputs: Inputs<'_>) -> Vec<(ConditionKind, String)> {
    let Inputs {
        report,
        node,
        sessions,
        health,
        cluster,
        is_journal_aside,
        records_lost,
        min_free_disk,
        images,
        event_log,
        history,
    } = inputs;
    let offered = effective(report.physical, &node.settings);
    [
        (ConditionKind::Overcommitted, overcommitted(&sessions.allocated, &offered, &report.physical)),
        (ConditionKind::MemoryOvercommitWithoutSwap, memory_without_swap(report, offered.memory)),
        (ConditionKind::RuntimeUnavailable, down(health, false)),
        (ConditionKind::EngineUnsupported, down(health, true)),
        (ConditionKind::EngineLimited, engine_limited(report)),
        (ConditionKind::LimitsNotEnforced, limits_not_enforced(health)),
        (ConditionKind::JournalRebuilt, journal_rebuilt(sessions, is_journal_aside)),
        (ConditionKind::ImagesRecordLost, images_record_lost(records_lost)),
        (ConditionKind::DataDirectoryFull, data_dir_full(sessions)),
        (ConditionKind::EventsUnwritable, events_unwritable(event_log)),
        (ConditionKind::HistoryUnwritable, history_unwritable(history)),
        (ConditionKind::ContainerRenamed, renamed(&sessions.oddities.renamed)),
        (ConditionKind::StrayContainers, strays(&sessions.oddities)),
        (ConditionKind::NetworkFailing, trouble(sessions.troubles.network.as_ref())),
        (ConditionKind::RegistryFailing, trouble(sessions.troubles.registry.as_ref())),
        (ConditionKind::RegistryLimited, registry_limited(&images.limited)),
        (ConditionKind::FailingStarts, failing_starts(sessions.failing_starts)),
        (ConditionKind::DiskPressure, images.disk_pressure.clone()),
        (ConditionKind::LowDisk, low_disk(report, min_free_disk)),
        (ConditionKind::DuplicateNodeId, duplicate(cluster)),
        (ConditionKind::AloneWithSeeds, cluster.alone.clone()),
        (ConditionKind::MeshFailing, failing(cluster)),
        (ConditionKind::ModeMismatch, mode_mismatch(cluster)),
        (ConditionKind::WorkspaceConflict, conflicts(cluster)),
        (ConditionKind::DevFigures, dev_figures(report)),
    ]
    .into_iter()
    .filter_map(|(kind, message)| Some((kind, message?)))
    .chain(gpus::evaluate(inputs))
    .collect()
}

/// It ends once the operator has removed the file: until then somebody may want to look at it.
fn journal_rebuilt(sessions: &Snapshot, is_aside: bool) -> Option<String> {
    sessions.journal_rebuilt.as_ref().filter(|_| is_aside).map(|rebuilt| rebuilt.message.clone())
}

/// It ends once the operator has removed the file, as for the journal.
fn images_record_lost(lost: Option<&MovedAside>) -> Option<String> {
    let MovedAside { reason, to } = lost?;
    Some(format!(
        "the records of pulled images could not be read ({reason}) and were moved to {}: every image that was here then \
         counts as foreign, and no prune removes it; for each that is ostler's run: ostler image adopt IMAGE; then \
         remove that file",
        to.display()
    ))
}

fn duplicate(cluster: &ClusterSigns) -> Option<String> {
    let other = cluster.duplicate.as_ref()?;
    Some(format!(
        "the agent at {other} has the same node id: one data directory is a copy of the other; \
         stop one of the two agents and remove its data directory"
    ))
}

fn failing(cluster: &ClusterSigns) -> Option<String> {
    let nodes = cluster.failing.join("; ");
    (!nodes.is_empty()).then(|| format!("cannot reach {nodes}"))
}

fn mode_mismatch(cluster: &ClusterSigns) -> Option<String> {
    let nodes = cluster.mode_mismatch.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = format!(
        "cluster.mode or cluster.expected_nodes differs on {nodes}: this node does not count their votes; \
         set the same values on every node"
    );
    (!nodes.is_empty()).then_some(message)
}

fn conflicts(cluster: &ClusterSigns) -> Option<String> {
    let entries = cluster.conflicts.join(", ");
    let message =
        format!("changed on both sides of a partition, and only one change was kept: {entries}; check and edit again");
    (!entries.is_empty()).then_some(message)
}

/// For example `5 of 3 cores allocated`.
fn overcommitted(allocated: &Resources, offered: &Resources, physical: &Resources) -> Option<String> {
    let over: Vec<String> = [Dimension::Cores, Dimension::MemoryBytes, Dimension::Gpus]
        .into_iter()
        .filter_map(|dimension| {
            let (used, of) = (allocated.figure(dimension)?, offered.figure(dimension)?);
            (used > of && physical.known(dimension)).then(|| overcommitted_in(dimension, allocated, used, of))
        })
        .collect();
    (!over.is_empty()).then(|| over.join(", "))
}

fn overcommitted_in(dimension: Dimension, allocated: &Resources, used: f64, of: f64) -> String {
    let used = match dimension {
        Dimension::MemoryBytes => allocated.memory.to_string(),
        _ => used.to_string(),
    };
    format!("{used} of {} allocated", dimension.describe(of))
}

fn memory_without_swap(report: &Report, offered: Bytes) -> Option<String> {
    let swap = report.swap.as_ref().map_or(Bytes::ZERO, |Swap { total_bytes, .. }| *total_bytes);
    let beyond = beyond_ram_and_swap(offered, report.physical.memory, swap);
    beyond.filter(|_| report.physical.known(Dimension::MemoryBytes))
}

/// Why the engine does not answer, or is none that ostler works with.
fn down(health: &Health, is_unsupported: bool) -> Option<String> {
    match health {
        Health::Down { message, unsupported } if *unsupported == is_unsupported => Some(message.clone()),
        Health::Unknown | Health::Down { .. } | Health::Up(_) => None,
    }
}

/// For example `the container engine reports 8 cores, and its cgroup allows 2 cores: the node offers no more`.
fn engine_limited(report: &Report) -> Option<String> {
    let EngineFigures { cores, memory, bounds } = report.engine?;
    let limited = |bounds: Bounds| {
        let (allowed_cores, allowed_memory) = (bounds.limit_cores(cores), bounds.limit_memory(memory));
        let parts = [
            (allowed_cores < cores).then(|| format!("{cores} cores, and its cgroup allows {allowed_cores}")),
            (allowed_memory < memory).then(|| format!("{memory} of memory, and its cgroup allows {allowed_memory}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    };
    if let Some(parts) = limited(bounds.containers) {
        return Some(format!("the container engine reports {parts}: the node offers what the cgroup allows"));
    }
    let parts = limited(bounds.process)?;
    Some(format!(
        "the container engine reports {parts}: containers are outside of that cgroup, so the node offers what the \
         engine reports, but the engine itself may be slow or be killed; raise the limits of its service"
    ))
}

fn limits_not_enforced(health: &Health) -> Option<String> {
    match health {
        Health::Up(info) if !info.unenforced.is_empty() => {
            Some(format!("the runtime cannot enforce these limits on this host: {}", info.unenforced.join(", ")))
        }
        _ => None,
    }
}

fn data_dir_full(sessions: &Snapshot) -> Option<String> {
    let directory = sessions.data_dir_full.as_ref()?;
    Some(format!(
        "data directory {} is full: the node admits no session and stores no change; free space on its file system",
        directory.display()
    ))
}

/// Names the first [`MAX_NAMED`] of `odd`, and says how many more there are.
fn named(odd: &[&Oddity], name: impl Fn(&Oddity) -> String) -> Option<String> {
    listed(odd.iter().map(|odd| name(odd)).collect())
}

/// The first [`MAX_NAMED`] texts, and how many more there are; `None` for an empty list.
fn listed(mut texts: Vec<String>) -> Option<String> {
    let more = texts.len().saturating_sub(MAX_NAMED);
    texts.truncate(MAX_NAMED);
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn renamed(odd: &[Oddity]) -> Option<String> {
    let name = |odd: &Oddity| {
        let (name, expected) = odd.renamed.as_ref().map(|by| (&*by.name, &*by.expected)).unwrap_or_default();
        format!("the container of session {} is named {name}; run: docker rename {name} {expected}", odd.session)
    };
    named(&odd.iter().collect::<Vec<_>>(), name)
}

fn strays(oddities: &Oddities) -> Option<String> {
    let name = |odd: &Oddity| {
        let (id, session) = (short(&odd.container_id), odd.session);
        format!("container {id} has the labels of session {session} of node id {}", odd.node)
    };
    let named = named(&oddities.strays.iter().chain(&oddities.foreign).collect::<Vec<_>>(), name)?;
    Some(format!(
        "{named}: not created by this node, so ostler leaves it alone and does not count what it uses; \
         if it is not needed, remove it with docker rm"
    ))
}

/// The characters of a container's id that `docker ps` shows.
fn short(container_id: &str) -> &str {
    container_id.get(..12).unwrap_or(container_id)
}

fn trouble(trouble: Option<&Trouble>) -> Option<String> {
    trouble.map(|trouble| format!("a session could not be started on this node: {}", trouble.message))
}

/// For example `docker.io limits pulls (429) …; the next pull from it is at about 2026-11-27T19:45Z`. The times are whole
/// minutes.
fn registry_limited(limited: &BTreeMap<String, Timestamp>) -> Option<String> {
    const MINUTES: usize = "2026-11-27T19:45".len();
    let named = limited.iter().map(|(registry, until)| {
        let until = until.to_string();
        let until = until.get(..MINUTES).unwrap_or(&until);
        format!("registry {registry} limits pulls (429), and the next pull from it is at about {until}Z")
    });
    let named = listed(named.collect())?;
    Some(format!("{named}: wait, or give the node an account there (images.registry_credentials)"))
}

fn failing_starts(in_a_row: u32) -> Option<String> {
    (in_a_row >= FAILING_STARTS).then(|| {
        format!(
            "the last {in_a_row} sessions failed to start on this node, so leaders offer it sessions last; \
                 for the reasons run: ostler session ls --state failed"
        )
    })
}

fn low_disk(report: &Report, min_free: Bytes) -> Option<String> {
    shortage(&report.disks, min_free).map(|short| short.to_string())
}

fn dev_figures(report: &Report) -> Option<String> {
    report.dev.then(|| "physical figures come from [dev] in the configuration; they are not measured".to_owned())
}

/// The conditions that hold now. A condition that held before keeps its `since`.
fn carry(before: &[Condition], holding: Vec<(ConditionKind, String)>, now: Timestamp) -> Vec<Condition> {
    let since = |kind| before.iter().find(|condition| condition.kind == kind).map_or(now, |condition| condition.since);
    holding.into_iter().map(|(kind, message)| Condition { kind, message, since: since(kind) }).collect()
}

/// What the event log is told: conditions that hold now and did not, and the other way round.
fn changes(before: &[Condition], after: &[Condition]) -> Vec<Happening> {
    let absent = |from: &[Condition], kind| !from.iter().any(|condition| condition.kind == kind);
    let raised = after.iter().filter(|condition| absent(before, condition.kind)).map(Happening::condition_raised);
    let cleared = before.iter().filter(|condition| absent(after, condition.kind));
    raised.chain(cleared.map(|condition| Happening::condition_cleared(condition.kind))).collect()
}

fn events_unwritable(trouble: Option<&str>) -> Option<String> {
    let trouble = trouble?;
    Some(format!(
        "the event log cannot be written ({trouble}): events wait in memory, and are lost if the agent ends; free disk \
         space, or make the directory `events` of the data directory writable"
    ))
}

fn history_unwritable(why: Option<&str>) -> Option<String> {
    let why = why?;
    Some(format!(
        "the history cannot be written ({why}): what is measured meanwhile is not kept; free space on the file system of \
         the data directory"
    ))
}

#[cfg(test)]
mod tests;
