//! A node and sessions for tests.

use super::{
    Actor, ApiToken, Bytes, Cores, Event, EventId, EventKind, EventTarget, GpuHealth, GpuProfile, GpuRelease, GpuState,
    Node, NodeId, NodeProfile, NodeState, NodeUsage, Resources, Role, RuntimeKind, RuntimeStatus, Session,
    SessionActivity, SessionId, SessionProfile, SessionState, Settings, Sighting, TargetKind, Timestamp, Who,
    Workspace,
};

/// Root, over the socket of `host-a`.
pub(crate) fn root() -> Actor {
    Actor::Socket { uid: 0, name: Some("root".to_owned()), via: "host-a".parse().unwrap() }
}

/// The bearer of the token `ci`, through `host-a`.
pub(crate) fn token_actor(role: Role) -> Actor {
    Actor::Token { id: "abcdefgh".to_owned(), name: "ci".parse().unwrap(), role, via: "host-a".parse().unwrap() }
}

/// The API token `ci`.
pub(crate) fn api_token(role: Role) -> ApiToken {
    let created_at = Timestamp::from_millis(1_769_860_800_000);
    ApiToken { id: "abcdefgh".to_owned(), name: "ci".parse().unwrap(), role, created_at, expires_at: None }
}

/// The seventh event of a node: root did something to the session `session`.
pub(crate) fn event(kind: EventKind, millis: i64) -> Event {
    let node = NodeId::from_bytes([1; 10]);
    Event {
        id: EventId { node, seq: 7 },
        time: Timestamp::from_millis(millis),
        node: "host-a".parse().unwrap(),
        kind,
        severity: kind.severity(),
        target: Some(EventTarget {
            kind: TargetKind::Session,
            id: "session".to_owned(),
            name: Some("desktop".to_owned()),
        }),
        who: Who::of(&root(), &node),
        via: Some("host-a".parse().unwrap()),
        message: "session session has ended".to_owned(),
        data: serde_json::Map::new(),
        late: false,
    }
}

/// A workspace of one core and 1 GiB.
pub(crate) fn workspace(name: &str) -> Workspace {
    Workspace::new(name.parse().unwrap(), Cores::whole(1), Bytes::gib(1))
}

/// A GPU that nobody uses.
pub(crate) fn gpu(uuid: &str, index: u32) -> GpuProfile {
    GpuProfile {
        uuid: uuid.to_owned(),
        index,
        model: "a model".to_owned(),
        class: "nvidia.com/gpu".to_owned(),
        pci_address: Some("0000:1a:00.0".to_owned()),
        mig_parent: None,
        memory_total_bytes: Some(Bytes::gib(80)),
        memory_declared_bytes: Bytes::ZERO,
        health: GpuHealth::Ok,
        state: GpuState::Ok,
        message: None,
        release: GpuRelease::Proven,
        slots: 1,
        slots_used: 0,
        holder: None,
        cordoned: false,
    }
}

/// An idle node of four cores and 4 GiB.
pub(crate) fn profile(name: &str, id: &str) -> NodeProfile {
    let physical = Resources::new(Cores::whole(4), Bytes::gib(4), 0);
    NodeProfile {
        id: id.parse().unwrap(),
        name: name.parse().unwrap(),
        address: "127.0.0.1".to_owned(),
        version: "0.0.0".to_owned(),
        runtime: RuntimeStatus {
            kind: RuntimeKind::Process,
            version: None,
            available: true,
            platform: None,
            message: None,
        },
        physical,
        effective: physical,
        allocated: Resources::ZERO,
        gpus: Vec::new(),
        sessions: 0,
        settings: Settings::default(),
        declared_settings: Vec::new(),
        drain: None,
        conditions: Vec::new(),
    }
}

pub(crate) fn usage() -> NodeUsage {
    NodeUsage { cores: Some(Cores::ZERO), memory_bytes: Some(Bytes::ZERO), ..NodeUsage::default() }
}

pub(crate) fn node(name: &str, id: &str) -> Node {
    let seen = Sighting { state: NodeState::Alive, is_leader: true, last_seen: Timestamp::default() };
    Node::of(&profile(name, id), &usage(), seen)
}

pub(crate) fn session_id(key: &str) -> SessionId {
    SessionId::of_key(&"test".parse().unwrap(), key)
}

/// A session with one core on node `one`.
pub(crate) fn session(key: &str, workspace: &str, user: &str, state: SessionState) -> Session {
    Session::of(&session_profile(key, workspace, user, state), None)
}

pub(crate) fn session_profile(key: &str, workspace: &str, user: &str, state: SessionState) -> SessionProfile {
    SessionProfile {
        id: session_id(key),
        user: user.parse().unwrap(),
        workspace: workspace.parse().unwrap(),
        image: None,
        image_digest: None,
        node: "one".parse().unwrap(),
        node_id: "aabb222222222222".parse().unwrap(),
        container_id: None,
        state,
        resources: Resources::new(Cores::whole(1), Bytes::gib(1), 0),
        gpu_uuids: Vec::new(),
        endpoints: Vec::new(),
        created_at: Timestamp::default(),
        ready_at: None,
        health: None,
        expires_at: None,
        kept_alive_by: None,
        end_reason: None,
        exit_code: None,
        message: None,
        attempt: 1,
    }
}

pub(crate) fn activity() -> SessionActivity {
    SessionActivity { last_activity_at: Timestamp::default(), idle_ends_at: None, progress: None }
}
