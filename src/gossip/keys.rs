//! What a node publishes about itself: a few small keys, each a JSON document; pure.
//!
//! Each change of a key travels to every node. So figures that change every second are left out or rounded, and
//! measured figures have a key of their own that changes seldom. A node of another version may have written a document:
//! a reader skips only what is missing, unknown or malformed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{
    Bytes, ClusterMode, Cores, Disk, GpuDetails, GpuUsage, Inodes, NodeId, NodeProfile, NodeUsage, SessionId,
    SessionProfile, Timestamp,
};

/// Bytes of one value at most. A value above 64 KiB would never spread, and would block every later key.
pub const MAX_VALUE: usize = 8 << 10;
/// Sessions that one node publishes at most.
pub const MAX_SESSIONS: usize = 512;

/// The node's profile.
pub const NODE: &str = "node";
/// The measured figures. The publishing node changes them less often than the rest.
pub const LOAD: &str = "load";
/// Present once the node is leaving.
pub const LEFT: &str = "left";
const MODE: &str = "mode";
const CATALOGUE: &str = "catalogue";
/// Prefix of a session's key; the session's id follows.
const SESSION: &str = "s/";

/// Measured cores are rounded to a tenth of a core.
const CORES_STEP_MILLI: u64 = 100;
/// Measured memory is rounded down to this step, 64 MiB.
const MEMORY_STEP: u64 = 64 << 20;
/// Free disk is rounded down to this step, 1 GiB.
const DISK_STEP: u64 = 1 << 30;
/// Memory of a GPU is rounded down to this step, 256 MiB; its load to 5 %, its power to 5 W, its temperature to 1 °C.
const GPU_MEMORY_STEP: u64 = 256 << 20;
const GPU_UTILIZATION_STEP: f64 = 5.0;
const GPU_POWER_STEP: f64 = 5.0;

/// What a node publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub profile: Arc<NodeProfile>,
    pub usage: NodeUsage,
    /// The sessions whose containers exist.
    pub sessions: Vec<Arc<SessionProfile>>,
    /// The digest of its catalogue.
    pub catalogue: String,
    pub mode: ClusterMode,
}

/// What another node has published, as far as it has arrived.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    pub profile: Option<Arc<NodeProfile>>,
    /// Rounded.
    pub usage: Option<NodeUsage>,
    pub sessions: BTreeMap<SessionId, Arc<SessionProfile>>,
    pub catalogue: Option<String>,
    pub mode: Option<ClusterMode>,
    pub left: bool,
}

/// The published figures of the usage, rounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Load {
    at: Timestamp,
    cores: Option<Cores>,
    memory_bytes: Option<Bytes>,
    disk: Option<Disk>,
    gpus: BTreeMap<String, GpuUsage>,
}

impl Load {
    /// `None` if nothing was measured.
    fn of(usage: &NodeUsage) -> Option<Self> {
        let NodeUsage { at, cores, memory_bytes, disk, gpus, swap: _, load: _, pressure: _ } = usage;
        let is_known = cores.is_some() || memory_bytes.is_some() || disk.is_some() || !gpus.is_empty();
        let disk = disk.as_ref().map(|disk| Disk {
            free_bytes: rounded_down(disk.free_bytes, DISK_STEP),
            path: disk.path.clone(),
            total_bytes: disk.total_bytes,
            inodes: disk.inodes.map(in_percent),
        });
        is_known.then(|| Self {
            at: *at,
            cores: cores.map(in_tenths),
            memory_bytes: memory_bytes.map(|memory| rounded_down(memory, MEMORY_STEP)),
            disk,
            gpus: gpus.iter().map(|(uuid, usage)| (uuid.clone(), rounded_gpu(usage))).collect(),
        })
    }

    fn usage(self) -> NodeUsage {
        let Self { at, cores, memory_bytes, disk, gpus } = self;
        NodeUsage { at, cores, memory_bytes, disk, gpus, ..NodeUsage::default() }
    }
}

/// The keys of what a node publishes. A document that cannot be made small enough is left out.
pub fn write(published: &Published) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut say = |key: String, value: Option<String>| {
        if let Some(value) = value.filter(|value| value.len() <= MAX_VALUE) {
            keys.insert(key, value);
        }
    };
    say(NODE.to_owned(), shrunk((*published.profile).clone(), SHRINK_NODE));
    say(LOAD.to_owned(), Load::of(&published.usage).and_then(|load| shrunk(load, SHRINK_LOAD)));
    say(MODE.to_owned(), json(&published.mode));
    say(CATALOGUE.to_owned(), json(&published.catalogue));
    for session in told(&published.sessions) {
        say(format!("{SESSION}{}", session.id), shrunk(session.clone(), SHRINK_SESSION));
    }
    keys
}

/// Reads the keys that the node `id` has published.
pub fn read<'a>(id: &NodeId, keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Heard {
    let mut heard = Heard::default();
    for (key, value) in keys {
        if value.len() > MAX_VALUE {
            continue;
        }
        match key {
            NODE => heard.profile = read_profile(value).filter(|profile| profile.id == *id).map(Arc::new),
            LOAD => heard.usage = parse(value).map(Load::usage),
            MODE => heard.mode = parse(value),
            CATALOGUE => heard.catalogue = parse(value),
            LEFT => heard.left = true,
            _ => {
                if let Some(session) = read_session(id, key, value)
                    && heard.sessions.len() < MAX_SESSIONS
                {
                    heard.sessions.insert(session.id, Arc::new(session));
                }
            }
        }
    }
    heard
}

/// The parts that a document can lose, in the order in which they are removed while it is too long.
type Shrink<T> = &'static [fn(&mut T)];

const SHRINK_NODE: Shrink<NodeProfile> = &[
    |node| {
        node.conditions.iter_mut().for_each(|condition| condition.message.clear());
        node.runtime.message = None;
    },
    |node| node.drain.iter_mut().for_each(|drain| drain.blockers.clear()),
    |node| node.gpus.clear(),
    |node| node.settings.labels.clear(),
];

const SHRINK_LOAD: Shrink<Load> = &[|load| load.gpus.clear()];

const SHRINK_SESSION: Shrink<SessionProfile> =
    &[|session| session.message = None, |session| session.gpu_uuids.clear(), |session| session.endpoints.clear()];

fn shrunk<T: Serialize>(mut document: T, shrink: Shrink<T>) -> Option<String> {
    let mut text = json(&document)?;
    for leave_out in shrink {
        if text.len() <= MAX_VALUE {
            break;
        }
        leave_out(&mut document);
        text = json(&document)?;
    }
    Some(text)
}

/// The sessions to publish. If there are too many, those that have not ended come first, then the youngest.
fn told(sessions: &[Arc<SessionProfile>]) -> Vec<&SessionProfile> {
    let mut told: Vec<&SessionProfile> = sessions.iter().map(Arc::as_ref).collect();
    if told.len() > MAX_SESSIONS {
        told.sort_by_key(|session| (session.state.has_ended(), Reverse(session.created_at)));
        told.truncate(MAX_SESSIONS);
    }
    told
}

/// Reads a profile without the conditions that only a newer version knows: they must not hide the node.
fn read_profile(text: &str) -> Option<NodeProfile> {
    parse(text).or_else(|| {
        let mut document: serde_json::Value = parse(text)?;
        let conditions = document.get_mut("conditions")?.as_array_mut()?;
        conditions.retain(|condition| serde_json::from_value::<crate::types::Condition>(condition.clone()).is_ok());
        serde_json::from_value(document).ok()
    })
}

fn read_session(id: &NodeId, key: &str, value: &str) -> Option<SessionProfile> {
    let session: SessionProfile = parse(value)?;
    (key.strip_prefix(SESSION)? == session.id.as_str() && session.node_id == *id).then_some(session)
}

fn json(document: &impl Serialize) -> Option<String> {
    serde_json::to_string(document).ok()
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

const fn in_tenths(cores: Cores) -> Cores {
    Cores::from_milli((cores.milli() + CORES_STEP_MILLI / 2) / CORES_STEP_MILLI * CORES_STEP_MILLI)
}

const fn rounded_down(bytes: Bytes, step: u64) -> Bytes {
    Bytes::new(bytes.get() / step * step)
}

fn rounded_gpu(gpu: &GpuUsage) -> GpuUsage {
    let in_steps = |figure: Option<f64>, step: f64| figure.map(|figure| (figure / step).round() * step);
    let memory = |memory: Option<Bytes>| memory.map(|memory| rounded_down(memory, GPU_MEMORY_STEP));
    GpuUsage {
        at: gpu.at,
        memory_used_bytes: memory(gpu.memory_used_bytes),
        memory_foreign_bytes: memory(gpu.memory_foreign_bytes),
        utilization_percent: in_steps(gpu.utilization_percent, GPU_UTILIZATION_STEP),
        temperature_celsius: in_steps(gpu.temperature_celsius, 1.0),
        power_watts: in_steps(gpu.power_watts, GPU_POWER_STEP),
        throttling: gpu.throttling.clone(),
        // Too much to tell every node.
        details: GpuDetails::default(),
    }
}

/// Free inodes in whole percents, so that a new file does not change what is published.
fn in_percent(inodes: Inodes) -> Inodes {
    let step = (inodes.total / 100).max(1);
    Inodes { free: inodes.free / step * step, ..inodes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gossip::fixture::{id, profile, published, session};
    use crate::types::{Condition, ConditionKind, Drain, GpuProfile, SessionState, sample};

    fn heard(id: &NodeId, keys: &BTreeMap<String, String>) -> Heard {
        read(id, keys.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    fn gpu(index: u32) -> GpuProfile {
        sample::gpu(&format!("GPU-{index:036}"), index)
    }

    fn gpu_usage() -> GpuUsage {
        GpuUsage {
            at: Some(Timestamp::from_millis(4000)),
            memory_used_bytes: Some(Bytes::new(Bytes::gib(3).get() + 1)),
            memory_foreign_bytes: None,
            utilization_percent: Some(23.4),
            temperature_celsius: Some(40.6),
            power_watts: Some(101.0),
            throttling: Some(vec!["thermal".to_owned()]),
            details: GpuDetails { ecc_enabled: Some(true), ..GpuDetails::default() },
        }
    }

    #[test]
    fn a_reader_gets_what_was_published() {
        let mut published = published(1, 3);
        Arc::make_mut(&mut published.profile).gpus = vec![gpu(0)];
        let disk = |free_bytes| Disk { path: "/".to_owned(), total_bytes: Bytes::gib(100), free_bytes, inodes: None };
        published.usage = NodeUsage {
            at: Timestamp::from_millis(5000),
            cores: Some(Cores::from_milli(1234)),
            disk: Some(disk(Bytes::new(Bytes::gib(50).get() + 4096))),
            load: Some([1.0, 2.0, 3.0]),
            gpus: [(gpu(0).uuid, gpu_usage())].into(),
            ..NodeUsage::default()
        };
        published.mode = ClusterMode::Quorum { expected_nodes: 3 };
        let heard = heard(&id(1), &write(&published));
        assert_eq!(heard.profile, Some(published.profile));
        let rounded = GpuUsage {
            memory_used_bytes: Some(Bytes::gib(3)),
            utilization_percent: Some(25.0),
            temperature_celsius: Some(41.0),
            power_watts: Some(100.0),
            details: GpuDetails::default(),
            ..gpu_usage()
        };
        let usage = NodeUsage {
            cores: Some(Cores::from_milli(1200)),
            disk: Some(disk(Bytes::gib(50))),
            load: None,
            gpus: [(gpu(0).uuid, rounded)].into(),
            ..published.usage
        };
        assert_eq!(heard.usage, Some(usage));
        assert_eq!((heard.catalogue, heard.mode, heard.left), (Some(published.catalogue), Some(published.mode), false));
        assert_eq!(heard.sessions.len(), 3);
        for session in &published.sessions {
            assert_eq!(heard.sessions[&session.id], *session);
        }
    }

    #[test]
    fn time_alone_changes_only_the_load() {
        let mut later = published(1, 2);
        let before = write(&later);
        later.usage.load = Some([1.0, 2.0, 3.0]);
        assert_eq!(write(&later), before, "load averages are not published");
        later.usage.memory_bytes = Some(Bytes::gib(1));
        let mut after = write(&later);
        assert!(after.remove(LOAD).is_some_and(|_| !before.contains_key(LOAD)));
        assert_eq!(after, before);
    }

    #[test]
    fn a_document_that_is_too_long_loses_parts_in_order() {
        let mut long = published(1, 0);
        let profile = Arc::make_mut(&mut long.profile);
        let condition = |kind| Condition { kind, message: "m".repeat(3000), since: Timestamp::default() };
        profile.conditions = vec![condition(ConditionKind::LowDisk), condition(ConditionKind::Overcommitted)];
        profile.gpus = (0..12).map(gpu).collect();
        let said = heard(&id(1), &write(&long)).profile.unwrap();
        assert_eq!((said.conditions.len(), said.gpus.len()), (2, 12));
        assert!(said.conditions.iter().all(|condition| condition.message.is_empty()));

        let profile = Arc::make_mut(&mut long.profile);
        profile.gpus = (0..1000).map(gpu).collect();
        let blockers = (0..1000).map(|n| session(1, n).id).collect();
        let since = Timestamp::default();
        profile.drain = Some(Drain { since, deadline: None, stop_sessions: false, message: None, blockers });
        profile.settings.labels = (0..64).map(|n| (format!("{n:063}"), "v".repeat(63))).collect();
        long.usage.cores = Some(Cores::ZERO);
        long.usage.gpus = (0..1000).map(|n| (gpu(n).uuid, gpu_usage())).collect();
        let Heard { profile: Some(said), usage: Some(usage), .. } = heard(&id(1), &write(&long)) else {
            panic!("both are published");
        };
        assert_eq!((said.gpus.len(), said.settings.labels.len(), said.conditions.len()), (0, 0, 2));
        assert!(said.drain.as_ref().unwrap().blockers.is_empty());
        assert_eq!((usage.cores, usage.gpus.len()), (Some(Cores::ZERO), 0));
    }

    #[test]
    fn of_too_many_sessions_those_that_go_on_are_published() {
        let mut many = published(1, 0);
        let numbered = |n: u32| {
            let mut session = (*session(1, n)).clone();
            session.state = if n < 100 { SessionState::Stopped } else { SessionState::Running };
            Arc::new(session)
        };
        let total = u32::try_from(MAX_SESSIONS).unwrap() + 50;
        many.sessions = (0..total).map(numbered).collect();
        let heard = heard(&id(1), &write(&many));
        assert_eq!(heard.sessions.len(), MAX_SESSIONS);
        let ended = heard.sessions.values().filter(|session| session.state.has_ended()).count();
        assert_eq!(ended, 50);
    }

    #[test]
    fn a_reader_skips_only_what_it_cannot_parse() {
        let mut keys = write(&published(1, 2));
        let first = keys.keys().find(|key| key.starts_with(SESSION)).unwrap().clone();
        keys.insert(first, "{".to_owned());
        keys.insert("s/another".to_owned(), json(&*session(1, 9)).unwrap());
        keys.insert(format!("s/{}", session(2, 7).id), json(&*session(2, 7)).unwrap());
        keys.insert(MODE.to_owned(), "\"of a newer version\"".to_owned());
        keys.insert("of_a_newer_version".to_owned(), "1".to_owned());
        keys.insert(CATALOGUE.to_owned(), "x".repeat(MAX_VALUE + 1));
        let heard = heard(&id(1), &keys);
        assert!(heard.profile.is_some());
        assert_eq!((heard.sessions.len(), heard.mode, heard.catalogue), (1, None, None));
    }

    #[test]
    fn a_node_of_a_newer_version_is_read() {
        let mut newer = serde_json::to_value(profile(1)).unwrap();
        newer["of_a_newer_version"] = 1.into();
        newer["conditions"] = serde_json::json!([
            {"kind": "of_a_newer_version", "message": "", "since": "2026-01-31T12:00:00Z"},
            {"kind": "low_disk", "message": "", "since": "2026-01-31T12:00:00Z"},
        ]);
        let text = newer.to_string();
        let said = read(&id(1), [(NODE, text.as_str())]).profile.unwrap();
        assert_eq!(said.conditions.len(), 1);
        assert_eq!(read(&id(2), [(NODE, text.as_str())]).profile, None, "the profile of another node");
    }

    proptest! {
        #[test]
        fn any_keys_are_read_without_a_panic(keys in proptest::collection::btree_map(
            prop_oneof!["node|load|mode|left|catalogue", "s/[a-z2-7]{26}", ".*"], ".*", 0..20)
        ) {
            let heard = heard(&id(1), &keys);
            prop_assert!(heard.profile.is_none() && heard.sessions.is_empty());
            prop_assert_eq!(heard.left, keys.contains_key(LEFT));
        }
    }
}
