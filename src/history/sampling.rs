//! One reading of the host, of each GPU and of the cluster, in the order of the columns. Pure.

use crate::gossip::ClusterView;
use crate::sessions::Snapshot;
use crate::types::{Bytes, Cores, NodeProfile, NodeState, NodeUsage, Resources, SessionState};

const UNKNOWN: f64 = f64::NAN;

/// Running totals since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sessions of this host.
    pub created: u64,
    pub ended: u64,
    pub failed: u64,
    /// Requests for sessions that no host admits. The leader refuses them: `None` while another node leads.
    pub refused: Option<u64>,
}

impl Totals {
    /// What was added since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            created: self.created.saturating_sub(before.created),
            ended: self.ended.saturating_sub(before.ended),
            failed: self.failed.saturating_sub(before.failed),
            refused: self.refused.zip(before.refused).map(|(now, before)| now.saturating_sub(before)),
        }
    }
}

/// The host's figures.
pub fn host(profile: &NodeProfile, usage: &NodeUsage, sessions: &Snapshot, counts: Totals) -> Vec<f64> {
    let NodeProfile { physical, effective, allocated, .. } = profile;
    let states = States::of(sessions);
    let (swap, disk, pressure) = (usage.swap.as_ref(), usage.disk.as_ref(), usage.pressure.as_ref());
    let share = |share: Option<f64>| share.unwrap_or(UNKNOWN);
    vec![
        cores(physical.cores),
        cores(effective.cores),
        cores(allocated.cores),
        usage.cores.map_or(UNKNOWN, cores),
        bytes(physical.memory),
        bytes(effective.memory),
        bytes(allocated.memory),
        usage.memory_bytes.map_or(UNKNOWN, bytes),
        swap.map_or(UNKNOWN, |swap| bytes(swap.total_bytes)),
        swap.map_or(UNKNOWN, |swap| bytes(swap.used_bytes)),
        disk.map_or(UNKNOWN, |disk| bytes(disk.total_bytes)),
        disk.map_or(UNKNOWN, |disk| bytes(disk.total_bytes.saturating_sub(disk.free_bytes))),
        usage.load.map_or(UNKNOWN, |[one, ..]| one),
        share(pressure.and_then(|pressure| pressure.cpu)),
        share(pressure.and_then(|pressure| pressure.memory)),
        share(pressure.and_then(|pressure| pressure.io)),
        f64::from(effective.gpus),
        f64::from(allocated.gpus),
        f64::from(profile.sessions),
        states.running,
        states.starting,
        counts.created as f64,
        counts.ended as f64,
        counts.failed as f64,
    ]
}

/// The figures of each GPU, by its UUID.
pub fn gpus(profile: &NodeProfile, usage: &NodeUsage) -> Vec<(String, Vec<f64>)> {
    let one = |gpu: &crate::types::GpuProfile| {
        let read = usage.gpus.get(&gpu.uuid);
        let figures = vec![
            read.and_then(|read| read.utilization_percent).map_or(UNKNOWN, |percent| percent / 100.0),
            read.and_then(|read| read.memory_used_bytes).map_or(UNKNOWN, bytes),
            read.and_then(|read| read.memory_foreign_bytes).map_or(UNKNOWN, bytes),
            read.and_then(|read| read.temperature_celsius).map_or(UNKNOWN, f64::from),
            read.and_then(|read| read.power_watts).map_or(UNKNOWN, f64::from),
            f64::from(gpu.slots_used),
        ];
        (gpu.uuid.clone(), figures)
    };
    profile.gpus.iter().map(one).collect()
}

/// The totals of the cluster, as this node sees it. What a node that is not alive used is not known, and neither is what
/// it offers now: only nodes that are alive count, but for the number of those that are known.
pub fn cluster(
    profile: &NodeProfile,
    usage: &NodeUsage,
    sessions: &Snapshot,
    view: &ClusterView,
    refused: Option<u64>,
) -> Vec<f64> {
    let mut states = States::of(sessions);
    let (mut known, mut alive) = (1_u32, 1_u32);
    let (mut effective, mut allocated) = (profile.effective, profile.allocated);
    let mut used = (usage.cores.map(cores), usage.memory_bytes.map(bytes));
    for member in view.members.values().filter(|member| member.state != NodeState::Left) {
        known += 1;
        if member.state != NodeState::Alive {
            states.unknown += member.sessions.values().filter(|session| !session.state.has_ended()).count() as f64;
            continue;
        }
        alive += 1;
        if let Some(profile) = &member.profile {
            effective = sum(effective, profile.effective);
            allocated = sum(allocated, profile.allocated);
        }
        // A sum that lacks a part would be a wrong figure.
        used.0 = used.0.zip(member.usage.cores).map(|(sum, used)| sum + cores(used));
        used.1 = used.1.zip(member.usage.memory_bytes).map(|(sum, used)| sum + bytes(used));
        member.sessions.values().for_each(|session| states.count(session.state));
    }
    vec![
        f64::from(known),
        f64::from(alive),
        cores(effective.cores),
        cores(allocated.cores),
        used.0.unwrap_or(UNKNOWN),
        bytes(effective.memory),
        bytes(allocated.memory),
        used.1.unwrap_or(UNKNOWN),
        f64::from(effective.gpus),
        f64::from(allocated.gpus),
        states.running,
        states.starting,
        states.unknown,
        refused.map_or(UNKNOWN, |refused| refused as f64),
    ]
}

#[derive(Default)]
struct States {
    running: f64,
    starting: f64,
    unknown: f64,
}

impl States {
    fn of(sessions: &Snapshot) -> Self {
        let mut states = Self::default();
        let here = sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        here.for_each(|(_, session)| states.count(session.state));
        states
    }

    fn count(&mut self, state: SessionState) {
        match state {
            SessionState::Running => self.running += 1.0,
            SessionState::Pending | SessionState::Pulling | SessionState::Starting => self.starting += 1.0,
            SessionState::Unknown => self.unknown += 1.0,
            _ => {}
        }
    }
}

fn sum(one: Resources, other: Resources) -> Resources {
    one.saturating_add(other)
}

fn cores(cores: Cores) -> f64 {
    cores.milli() as f64 / 1000.0
}

fn bytes(bytes: Bytes) -> f64 {
    bytes.get() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::columns::Table;

    #[test]
    fn what_was_refused_is_known_only_between_two_readings_of_a_leader() {
        let totals = |created, refused| Totals { created, ended: 7, failed: 1, refused };
        let counted = |created, refused| Totals { created, ended: 0, failed: 0, refused };
        assert_eq!(totals(5, Some(4)).since(totals(3, Some(1))), counted(2, Some(3)));
        assert_eq!(totals(5, Some(4)).since(totals(3, None)), counted(2, None));
        assert_eq!(totals(5, None).since(totals(3, Some(4))), counted(2, None));
    }

    #[test]
    fn a_reading_has_a_figure_for_each_column() {
        let node = crate::types::sample::profile("a", "aaaa222222222222");
        let (usage, sessions, view) = (NodeUsage::default(), Snapshot::default(), ClusterView::default());
        let figures = host(&node, &usage, &sessions, Totals::default());
        assert_eq!(figures.len(), Table::Host.columns().len());
        assert!(figures[Table::Host.find("cores.utilized").unwrap()].is_nan(), "unknown is not 0");
        let figures = cluster(&node, &usage, &sessions, &view, None);
        assert_eq!(figures.len(), Table::Cluster.columns().len());
        assert_eq!(figures[..2], [1.0, 1.0]);
    }
}
