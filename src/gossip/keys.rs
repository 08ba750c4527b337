//! What a node publishes about itself: a few small keys, each a JSON document; pure.
//!
//! Each change of a key travels to every node. So figures that change every second are left out or rounded, and
//! measured figures have a key of their own that changes seldom. A node of another version may have written a document:
//! a reader skips only what is missing, unknown or malformed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{Bytes, ClusterMode, Cores, Disk, Node, NodeId, NodeState, Session, SessionId, Timestamp};

/// Bytes of one value at most. A value above 64 KiB would never spread, and would block every later key.
pub const MAX_VALUE: usize = 8 << 10;
/// Sessions that one node publishes at most.
pub const MAX_SESSIONS: usize = 512;

/// The node, without measured figures.
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
/// Deadlines are rounded down to whole seconds: they are computed from two clocks, and could otherwise differ by a
/// millisecond each time.
const DEADLINE_STEP_MILLIS: i64 = 1000;

/// What a node publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub node: Node,
    /// Its sessions that are not gone.
    pub sessions: Vec<Arc<Session>>,
    /// The digest of its catalogue.
    pub catalogue: String,
    pub mode: ClusterMode,
}

/// What another node has published, as far as it has arrived.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    pub node: Option<Node>,
    pub sessions: BTreeMap<SessionId, Arc<Session>>,
    pub catalogue: Option<String>,
    pub mode: Option<ClusterMode>,
    pub left: bool,
}

/// The measured figures, rounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Load {
    at: Timestamp,
    cores: Option<Cores>,
    memory_bytes: Option<Bytes>,
}

/// The keys of what a node publishes. A document that cannot be made small enough is left out.
pub fn write(published: &Published) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut say = |key: String, value: Option<String>| {
        if let Some(value) = value.filter(|value| value.len() <= MAX_VALUE) {
            keys.insert(key, value);
        }
    };
    say(NODE.to_owned(), shrunk(steady_node(&published.node), SHRINK_NODE));
    say(LOAD.to_owned(), load(&published.node).as_ref().and_then(json));
    say(MODE.to_owned(), json(&published.mode));
    say(CATALOGUE.to_owned(), json(&published.catalogue));
    for session in told(&published.sessions) {
        say(format!("{SESSION}{}", session.id), shrunk(steady_session(session), SHRINK_SESSION));
    }
    keys
}

/// Reads the keys that the node `id` has published.
pub fn read<'a>(id: &NodeId, keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Heard {
    let mut heard = Heard::default();
    let mut load = None;
    for (key, value) in keys {
        if value.len() > MAX_VALUE {
            continue;
        }
        match key {
            NODE => heard.node = read_node(value).filter(|node| node.id == *id),
            LOAD => load = parse::<Load>(value),
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
    if let (Some(node), Some(load)) = (&mut heard.node, load) {
        show_load(node, &load);
    }
    heard
}

/// The node without the figures that change all the time.
fn steady_node(node: &Node) -> Node {
    let mut node = node.clone();
    node.state = NodeState::Alive;
    node.last_seen = Timestamp::default();
    node.load = None;
    node.swap = None;
    node.disk = node.disk.map(|disk| Disk { free_bytes: rounded_down(disk.free_bytes, DISK_STEP), ..disk });
    let resources = &mut node.resources;
    (resources.cores.utilized, resources.cores.utilized_at) = (None, None);
    (resources.memory_bytes.utilized, resources.memory_bytes.utilized_at) = (None, None);
    (resources.gpus.utilized, resources.gpus.utilized_at) = (None, None);
    for gpu in &mut node.gpus {
        gpu.memory_used_bytes = None;
        gpu.utilization_percent = None;
        gpu.temperature_celsius = None;
        gpu.power_watts = None;
    }
    if let Some(drain) = &mut node.drain {
        drain.deadline = drain.deadline.map(whole_seconds);
    }
    node
}

/// The session without the fields that change every second, and without its secret.
fn steady_session(session: &Session) -> Session {
    Session {
        message: None,
        last_activity_at: session.created_at,
        expires_at: session.expires_at.map(whole_seconds),
        secret: None,
        ..session.clone()
    }
}

/// What is left out of a document that is too long, in this order.
type Shrink<T> = &'static [fn(&mut T)];

const SHRINK_NODE: Shrink<Node> = &[
    |node| {
        node.conditions.iter_mut().for_each(|condition| condition.message.clear());
        node.runtime.message = None;
    },
    |node| node.drain.iter_mut().for_each(|drain| drain.blockers.clear()),
    |node| node.gpus.clear(),
    |node| node.settings.labels.clear(),
];

const SHRINK_SESSION: Shrink<Session> = &[|session| session.gpu_uuids.clear(), |session| session.endpoints.clear()];

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

/// The sessions to publish. If there are too many, those that go on come before those that have ended, and the youngest
/// first.
fn told(sessions: &[Arc<Session>]) -> Vec<&Session> {
    let mut told: Vec<&Session> = sessions.iter().map(Arc::as_ref).collect();
    if told.len() > MAX_SESSIONS {
        told.sort_by_key(|session| (session.state.has_ended(), Reverse(session.created_at)));
        told.truncate(MAX_SESSIONS);
    }
    told
}

fn load(node: &Node) -> Option<Load> {
    let (cores, memory) = (&node.resources.cores, &node.resources.memory_bytes);
    let at = cores.utilized_at.max(memory.utilized_at)?;
    let tenths =
        |cores: Cores| Cores::from_milli((cores.milli() + CORES_STEP_MILLI / 2) / CORES_STEP_MILLI * CORES_STEP_MILLI);
    Some(Load {
        at,
        cores: cores.utilized.map(tenths),
        memory_bytes: memory.utilized.map(|memory| rounded_down(memory, MEMORY_STEP)),
    })
}

fn show_load(node: &mut Node, load: &Load) {
    let (cores, memory) = (&mut node.resources.cores, &mut node.resources.memory_bytes);
    (cores.utilized, cores.utilized_at) = (load.cores, load.cores.map(|_| load.at));
    (memory.utilized, memory.utilized_at) = (load.memory_bytes, load.memory_bytes.map(|_| load.at));
}

/// Reads a node. A condition of a newer version is skipped, so that it does not hide the node.
fn read_node(text: &str) -> Option<Node> {
    parse(text).or_else(|| {
        let mut document: serde_json::Value = parse(text)?;
        let conditions = document.get_mut("conditions")?.as_array_mut()?;
        conditions.retain(|condition| serde_json::from_value::<crate::types::Condition>(condition.clone()).is_ok());
        serde_json::from_value(document).ok()
    })
}

fn read_session(id: &NodeId, key: &str, value: &str) -> Option<Session> {
    let session: Session = parse(value)?;
    (key.strip_prefix(SESSION)? == session.id.as_str() && session.node_id == *id).then_some(session)
}

fn json(document: &impl Serialize) -> Option<String> {
    serde_json::to_string(document).ok()
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

const fn rounded_down(bytes: Bytes, step: u64) -> Bytes {
    Bytes::new(bytes.get() / step * step)
}

const fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_millis(time.millis() / DEADLINE_STEP_MILLIS * DEADLINE_STEP_MILLIS)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::gossip::fixture::{id, node, published, session};
    use crate::types::{Condition, ConditionKind, Drain, Gpu, SessionState};

    fn heard(id: &NodeId, keys: &BTreeMap<String, String>) -> Heard {
        read(id, keys.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    fn gpu(index: u32) -> Gpu {
        Gpu {
            uuid: format!("GPU-{index:036}"),
            index,
            node: "n".parse().unwrap(),
            model: "a model".to_owned(),
            memory_total_bytes: Some(Bytes::gib(80)),
            memory_used_bytes: Some(Bytes::gib(3)),
            utilization_percent: Some(1.5),
            temperature_celsius: Some(40.0),
            power_watts: Some(100.0),
            health: "ok".to_owned(),
            slots: 1,
            slots_used: 0,
            cordoned: false,
        }
    }

    #[test]
    fn a_reader_gets_what_was_published() {
        let mut published = published(1, 3);
        published.node.resources.cores.utilized = Some(Cores::from_milli(1234));
        published.node.resources.cores.utilized_at = Some(Timestamp::from_millis(5000));
        published.node.gpus = vec![gpu(0)];
        published.mode = ClusterMode::Quorum { expected_nodes: 3 };
        let heard = heard(&id(1), &write(&published));
        let said = heard.node.unwrap();
        assert_eq!((&said.name, &said.settings), (&published.node.name, &published.node.settings));
        assert_eq!(said.resources.cores.utilized, Some(Cores::from_milli(1200)), "in tenths");
        assert_eq!(said.resources.cores.utilized_at, Some(Timestamp::from_millis(5000)));
        assert_eq!(said.resources.memory_bytes.utilized, None);
        assert_eq!((said.gpus[0].power_watts, said.gpus[0].memory_total_bytes), (None, Some(Bytes::gib(80))));
        assert_eq!((heard.catalogue, heard.mode, heard.left), (Some(published.catalogue), Some(published.mode), false));
        assert_eq!(heard.sessions.len(), 3);
        for session in &published.sessions {
            assert_eq!(*heard.sessions[&session.id], steady_session(session));
        }
    }

    #[test]
    fn time_alone_changes_only_the_load() {
        let mut later = published(1, 2);
        let before = write(&later);
        let second = Duration::from_secs(1);
        later.node.last_seen = later.node.last_seen.plus(second);
        later.node.load = Some([1.0, 2.0, 3.0]);
        later.node.disk.as_mut().unwrap().free_bytes = Bytes::new(Bytes::gib(50).get() + 4096);
        later.node.resources.memory_bytes.utilized = Some(Bytes::gib(1));
        later.node.resources.memory_bytes.utilized_at = Some(later.node.last_seen);
        later.sessions = later
            .sessions
            .iter()
            .map(|session| {
                let last_activity_at = session.last_activity_at.plus(second);
                let secret = Some("a secret".to_owned());
                Arc::new(Session { last_activity_at, message: Some("43 %".to_owned()), secret, ..(**session).clone() })
            })
            .collect();
        let mut after = write(&later);
        assert!(after.values().all(|value| !value.contains("a secret")));
        assert!(after.remove(LOAD).is_some_and(|_| !before.contains_key(LOAD)));
        assert_eq!(after, before);
    }

    #[test]
    fn a_document_that_is_too_long_loses_parts_in_order() {
        let mut long = published(1, 0);
        let condition = |kind| Condition { kind, message: "m".repeat(3000), since: Timestamp::default() };
        long.node.conditions = vec![condition(ConditionKind::LowDisk), condition(ConditionKind::Overcommitted)];
        long.node.gpus = (0..12).map(gpu).collect();
        let said = heard(&id(1), &write(&long)).node.unwrap();
        assert_eq!((said.conditions.len(), said.gpus.len()), (2, 12));
        assert!(said.conditions.iter().all(|condition| condition.message.is_empty()));

        long.node.gpus = (0..1000).map(gpu).collect();
        let blockers = (0..1000).map(|n| session(1, n).id).collect();
        let since = Timestamp::default();
        long.node.drain = Some(Drain { since, deadline: None, stop_sessions: false, message: None, blockers });
        long.node.settings.labels = (0..64).map(|n| (format!("{n:063}"), "v".repeat(63))).collect();
        let said = heard(&id(1), &write(&long)).node.unwrap();
        assert_eq!((said.gpus.len(), said.settings.labels.len(), said.conditions.len()), (0, 0, 2));
        assert!(said.drain.unwrap().blockers.is_empty());
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
        assert!(heard.node.is_some());
        assert_eq!((heard.sessions.len(), heard.mode, heard.catalogue), (1, None, None));
    }

    #[test]
    fn a_node_of_a_newer_version_is_read() {
        let mut newer = serde_json::to_value(node(1)).unwrap();
        newer["of_a_newer_version"] = 1.into();
        newer["conditions"] = serde_json::json!([
            {"kind": "of_a_newer_version", "message": "", "since": "2026-01-31T12:00:00Z"},
            {"kind": "low_disk", "message": "", "since": "2026-01-31T12:00:00Z"},
        ]);
        let text = newer.to_string();
        let said = read(&id(1), [(NODE, text.as_str())]).node.unwrap();
        assert_eq!(said.conditions.len(), 1);
        assert_eq!(read(&id(2), [(NODE, text.as_str())]).node, None, "the document of another node");
    }

    proptest! {
        #[test]
        fn any_keys_are_read_without_a_panic(keys in proptest::collection::btree_map(
            prop_oneof!["node|load|mode|left|catalogue", "s/[a-z2-7]{26}", ".*"], ".*", 0..20)
        ) {
            let heard = heard(&id(1), &keys);
            prop_assert!(heard.node.is_none() && heard.sessions.is_empty());
            prop_assert_eq!(heard.left, keys.contains_key(LEFT));
        }
    }
}
