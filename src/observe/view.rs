//! Builds the profile and the usage of this node.

use super::Facts;
use crate::capacity::Report;
use crate::capacity::effective::{effective, slots_per_device};
use crate::gpu::device::{Presence, RemappedRows};
use crate::gpu::{Device, Driver, Process, Reading};
use crate::ledger::gpus::{judge, offered};
use crate::node::{DrainState, State};
use crate::runtime::Health;
use crate::sessions::{GpuUse, Snapshot};
use crate::types::{
    Condition, Drain, GpuDetails, GpuHealth, GpuProcess, GpuProfile, GpuRelease, GpuRemappedRows, GpuUsage, Moment,
    NodeProfile, NodeUsage, Resources, RuntimeKind, RuntimeStatus, Timestamp,
};

/// Processes of a GPU that are shown at most.
const MAX_PROCESSES: usize = 64;

/// Everything that a node's profile is built from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub state: &'a State,
    pub report: &'a Report,
    pub sessions: &'a Snapshot,
    pub health: &'a Health,
    pub conditions: &'a [Condition],
    pub facts: &'a Facts,
    pub now: Moment,
}

/// What the node is and has.
pub fn profile(inputs: Inputs<'_>) -> NodeProfile {
    let Inputs { state, report, sessions, health, conditions, facts, now } = inputs;
    let slots = effective(report.physical, &state.settings);
    let gpus = gpus(report, slots.gpus, sessions);
    let effective = Resources { gpus: offered_gpus(&gpus, report), ..slots };
    NodeProfile {
        id: state.id,
        name: state.name.clone(),
        address: facts.address.clone(),
        version: facts.version.clone(),
        runtime: runtime_status(facts.runtime, health),
        physical: report.physical,
        effective,
        allocated: sessions.allocated,
        gpus,
        sessions: u32::try_from(sessions.reserved.len()).unwrap_or(u32::MAX),
        settings: state.settings.clone(),
        declared_settings: state.declared.clone(),
        drain: state.drain.as_ref().map(|drain| describe_drain(drain, sessions, now)),
        conditions: conditions.to_vec(),
    }
}

/// The usage of the node.
pub fn usage(report: &Report, sessions: &Snapshot) -> NodeUsage {
    let gpu = |device: &Device| {
        (device.uuid.clone(), gpu_usage(device, sessions.gpus.devices.get(&device.uuid), &report.gpus.driver))
    };
    NodeUsage {
        at: report.utilized.map(|used| used.at).unwrap_or_default(),
        cores: report.utilized.and_then(|used| used.cores),
        memory_bytes: report.utilized.and_then(|used| used.memory),
        disk: report.disks.first().cloned(),
        swap: report.swap.clone(),
        load: report.load,
        pressure: report.pressure,
        gpus: report.gpus.devices.iter().map(gpu).collect(),
    }
}

fn offered_gpus(gpus: &[GpuProfile], report: &Report) -> u32 {
    let usable = |gpu: &GpuProfile| gpu.state.is_usable() && report.gpus_withheld.is_none();
    offered(gpus.iter().map(|gpu| (usable(gpu), gpu.slots, gpu.slots_used)))
}

fn gpus(report: &Report, slots: u32, sessions: &Snapshot) -> Vec<GpuProfile> {
    let each = slots_per_device(report.physical.gpus, slots);
    let nothing = GpuUse::default();
    let describe = |(device, slots): (&Device, u32)| {
        let used = sessions.gpus.devices.get(&device.uuid).unwrap_or(&nothing);
        let (state, message) = judge(device, used.quarantined.as_deref(), used.foreign_use.as_deref());
        GpuProfile {
            uuid: device.uuid.clone(),
            index: device.index,
            model: device.model.clone(),
            class: device.class.clone(),
            pci_address: device.pci_address.clone(),
            mig_parent: device.mig_parent.clone(),
            memory_total_bytes: device.memory_total,
            memory_declared_bytes: used.held.declared,
            health: health(device, &report.gpus.driver),
            state,
            message,
            release: if device.tells_processes() { GpuRelease::Proven } else { GpuRelease::Unproven },
            slots,
            slots_used: used.held.slots,
            holder: used.held.holder.clone(),
            cordoned: device.cordoned,
        }
    };
    report.gpus.devices.iter().zip(each).map(describe).collect()
}

fn health(device: &Device, driver: &Driver) -> GpuHealth {
    match (&device.presence, &device.failing, driver) {
        (Presence::Lost { .. }, _, _) => GpuHealth::Lost,
        (_, Some(_), _) => GpuHealth::Failing,
        // Devices of `[dev]` have no driver.
        (_, None, Driver::Up(_) | Driver::Unknown) => GpuHealth::Ok,
        _ => GpuHealth::Unknown,
    }
}

fn gpu_usage(device: &Device, used: Option<&GpuUse>, driver: &Driver) -> GpuUsage {
    let reading = device.reading.clone();
    GpuUsage {
        at: device.read_at,
        memory_used_bytes: reading.memory_used,
        memory_foreign_bytes: used.and_then(|used| used.foreign),
        utilization_percent: reading.utilization_percent,
        temperature_celsius: reading.temperature_celsius,
        power_watts: reading.power_watts,
        throttling: reading.throttling.clone(),
        details: details(device, &reading, used, driver),
    }
}

fn details(device: &Device, reading: &Reading, used: Option<&GpuUse>, driver: &Driver) -> GpuDetails {
    let process = |process: &Process| GpuProcess {
        pid: process.pid,
        command: process.command.clone(),
        memory_bytes: process.memory,
        session: used.and_then(|used| used.owners.get(&process.pid).copied()),
    };
    let rows = |rows: RemappedRows| GpuRemappedRows {
        corrected: rows.corrected,
        uncorrected: rows.uncorrected,
        pending: rows.pending,
        failed: rows.failed,
    };
    let processes = device.processes.as_ref();
    GpuDetails {
        driver_version: if let Driver::Up(versions) = driver { Some(versions.driver.clone()) } else { None },
        slowdown_celsius: reading.slowdown_celsius,
        power_limit_watts: reading.power_limit_watts,
        ecc_enabled: reading.ecc_enabled,
        ecc_corrected_errors: reading.ecc_corrected,
        ecc_uncorrected_errors: reading.ecc_uncorrected,
        remapped_rows: reading.remapped_rows.map(rows),
        last_xid: device.last_xid,
        processes: processes.map(|seen| seen.list.iter().take(MAX_PROCESSES).map(process).collect()),
    }
}

fn runtime_status(kind: RuntimeKind, health: &Health) -> RuntimeStatus {
    let (version, message) = match health {
        Health::Unknown => (None, Some("the runtime has not answered yet".to_owned())),
        Health::Down { message, .. } => (None, Some(message.clone())),
        Health::Up(info) => {
            let unenforced =
                (!info.unenforced.is_empty()).then(|| format!("not enforced: {}", info.unenforced.join(", ")));
            let gpus = Some(info.gpus.to_string()).filter(|way| !way.is_empty());
            let messages: Vec<String> = gpus.into_iter().chain(unenforced).collect();
            (Some(info.version.clone()), (!messages.is_empty()).then(|| messages.join("; ")))
        }
    };
    let platform = match health {
        Health::Up(info) => info.platform.clone(),
        Health::Unknown | Health::Down { .. } => None,
    };
    RuntimeStatus { kind, version, available: health.is_up(), platform, message }
}

fn describe_drain(drain: &DrainState, sessions: &Snapshot, now: Moment) -> Drain {
    let deadline: Option<Timestamp> = drain.deadline.map(|deadline| deadline.shown(now));
    Drain {
        since: drain.since,
        deadline,
        stop_sessions: drain.stop_sessions,
        message: drain.message.clone(),
        blockers: sessions.reserved.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::capacity::Utilized;
    use crate::gpu;
    use crate::ledger::gpus::Held;
    use crate::node::fixture;
    use crate::runtime::gpus::{CdiDevice, EngineGpus};
    use crate::runtime::{EngineInfo, GpuSupport};
    use crate::types::{Bytes, Cores, Deadline, Node, NodeState, Resources, SessionId, Sighting};

    fn described(change: impl FnOnce(&mut Report, &mut State, &mut Snapshot, &mut Health)) -> Node {
        let (mut report, mut state, mut sessions) = (fixture::report(), fixture::state(), Snapshot::default());
        let mut health = Health::Unknown;
        change(&mut report, &mut state, &mut sessions, &mut health);
        let facts = Facts { address: "h:1".to_owned(), version: "0".to_owned(), runtime: RuntimeKind::Docker };
        let profile = profile(Inputs {
            state: &state,
            report: &report,
            sessions: &sessions,
            health: &health,
            conditions: &[],
            facts: &facts,
            now: fixture::moment(),
        });
        let seen = Sighting { state: NodeState::Alive, is_leader: false, last_seen: fixture::moment().wall };
        Node::of(&profile, &usage(&report, &sessions), seen)
    }

    #[test]
    fn an_override_replaces_the_physical_cores() {
        let node = described(|_, state, sessions, _| {
            state.settings.cores_override = Cores::whole(12);
            sessions.allocated = Resources::new(Cores::whole(5), Bytes::gib(5), 0);
        });
        let cores = &node.resources.cores;
        assert_eq!((cores.physical, cores.override_), (Some(Cores::whole(6)), Cores::whole(12)));
        assert_eq!((cores.allocated, cores.effective), (Cores::whole(5), Cores::whole(12)));
        assert_eq!(cores.available, Cores::whole(7));
        assert_eq!(node.resources.memory_bytes.available, Bytes::gib(1));
    }

    #[test]
    fn available_is_never_below_zero() {
        let node = described(|_, state, sessions, _| {
            state.settings.cores_override = Cores::whole(3);
            sessions.allocated = Resources::new(Cores::whole(5), Bytes::ZERO, 0);
        });
        assert_eq!(node.resources.cores.available, Cores::ZERO);
    }

    #[test]
    fn unknown_figures_are_null() {
        let node = described(|report, _, _, _| {
            report.physical.cores = Cores::ZERO;
            report.utilized =
                Some(Utilized { cores: None, memory: Some(Bytes::gib(1)), at: Timestamp::from_millis(3) });
        });
        let json = serde_json::to_value(&node).unwrap();
        assert!(json["resources"]["cores"]["utilized"].is_null());
        assert!(json["resources"]["cores"]["physical"].is_null());
        assert_eq!(json["resources"]["gpus"]["physical"], 0);
        assert!(json["resources"]["cores"]["utilized_at"].is_null());
        assert_eq!(node.resources.memory_bytes.utilized_at, Some(Timestamp::from_millis(3)));
    }

    #[test]
    fn gpus_show_their_slots() {
        let node = described(|report, state, sessions, _| {
            report.physical.gpus = 2;
            report.gpus = Arc::new(gpu::Snapshot::fictitious(2));
            state.settings.gpus_override = 5;
            let held = Held { slots: 2, ..Held::default() };
            sessions.gpus.devices.insert("GPU-dev-0001".to_owned(), GpuUse { held, ..GpuUse::default() });
        });
        let slots: Vec<_> = node.gpus.iter().map(|gpu| (gpu.slots, gpu.slots_used)).collect();
        assert_eq!(slots, [(3, 0), (2, 2)]);
    }

    #[test]
    fn a_drain_lists_the_sessions_that_block_it() {
        let blocker: SessionId = SessionId::of_key(&"c".parse().unwrap(), "k");
        let hour = Duration::from_secs(3600);
        let node = described(|_, state, sessions, _| {
            state.drain = Some(DrainState {
                since: Timestamp::from_millis(1),
                deadline: Some(Deadline::after(fixture::moment(), hour)),
                stop_sessions: true,
                message: None,
            });
            sessions.reserved.insert(blocker);
        });
        let drain = node.drain.unwrap();
        assert_eq!(drain.blockers, [blocker]);
        assert_eq!(drain.deadline, Some(fixture::moment().wall.plus(hour)));
        assert!(node.enabled);
        assert_eq!(node.sessions, 1);
    }

    #[test]
    fn the_profile_of_a_draining_node_ignores_small_differences_between_the_clocks() {
        let (report, sessions) = (fixture::report(), Snapshot::default());
        let facts = Facts { address: "h:1".to_owned(), version: "0".to_owned(), runtime: RuntimeKind::Docker };
        let start = fixture::moment();
        let deadline = Some(Deadline::after(start, Duration::from_secs(60)));
        let drain = Some(DrainState { since: start.wall, deadline, stop_sessions: true, message: None });
        let state = State { drain, ..fixture::state() };
        let at = |now| {
            let (state, report, sessions, facts) = (&state, &report, &sessions, &facts);
            profile(Inputs { state, report, sessions, health: &Health::Unknown, conditions: &[], facts, now })
        };
        for tick in 0..40 {
            let now = start.plus(Duration::from_millis(5003 * tick));
            for apart in [-20, -1, 0, 1, 20] {
                let wall = Timestamp::from_millis(now.wall.millis() + apart);
                assert_eq!(at(Moment { wall, ..now }), at(start));
            }
        }
    }

    #[test]
    fn the_runtime_status_follows_its_health() {
        let info = EngineInfo {
            version: "29.1".to_owned(),
            cores: Cores::whole(6),
            memory: Bytes::gib(6),
            data_root: None,
            unenforced: Vec::new(),
            epoch: None,
            platform: None,
            images: None,
            pid: None,
            gpus: GpuSupport::default(),
        };
        let listed = [("nvidia.com/gpu=0".to_owned(), CdiDevice::default())].into();
        let by_cdi = EngineGpus { cdi: Some(listed), ..EngineGpus::default() };
        let limited = EngineInfo { unenforced: vec!["cores".to_owned()], gpus: by_cdi.into(), ..info.clone() };
        let up = described(|_, _, _, health| *health = Health::Up(limited)).runtime;
        assert_eq!(up.message.as_deref(), Some("GPUs by CDI; not enforced: cores"));
        let up = described(|_, _, _, health| *health = Health::Up(info)).runtime;
        assert_eq!((up.available, up.version.as_deref(), up.message), (true, Some("29.1"), None));
        let down =
            described(|_, _, _, health| *health = Health::Down { message: "gone".to_owned(), unsupported: false })
                .runtime;
        assert_eq!((down.available, down.message.as_deref()), (false, Some("gone")));
        assert!(!described(|_, _, _, _| {}).runtime.available);
    }
}
