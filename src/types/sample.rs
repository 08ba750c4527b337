//! A node and sessions for tests.

use super::{
    Bytes, Cores, Figures, Node, NodeResources, NodeState, RuntimeKind, RuntimeStatus, Session, SessionId,
    SessionState, Settings, Timestamp,
};

pub(crate) fn node(name: &str, id: &str) -> Node {
    Node {
        id: id.parse().unwrap(),
        name: name.parse().unwrap(),
        address: "127.0.0.1".to_owned(),
        version: "0.0.0".to_owned(),
        state: NodeState::Alive,
        enabled: true,
        is_leader: true,
        last_seen: Timestamp::default(),
        runtime: RuntimeStatus { kind: RuntimeKind::Process, version: None, available: true, message: None },
        resources: NodeResources {
            cores: figures(Cores::whole(4)),
            memory_bytes: figures(Bytes::gib(4)),
            gpus: figures(0),
        },
        disk: None,
        swap: None,
        load: None,
        gpus: Vec::new(),
        sessions: 0,
        settings: Settings::default(),
        declared_settings: Vec::new(),
        drain: None,
        conditions: Vec::new(),
    }
}

fn figures<T: Copy + Default>(physical: T) -> Figures<T> {
    Figures {
        physical,
        override_: T::default(),
        effective: physical,
        allocated: T::default(),
        available: physical,
        utilized: Some(T::default()),
        utilized_at: Some(Timestamp::default()),
    }
}

pub(crate) fn session_id(key: &str) -> SessionId {
    SessionId::of_key(&"test".parse().unwrap(), key)
}

/// A session with one core on node `one`.
pub(crate) fn session(key: &str, workspace: &str, user: &str, state: SessionState) -> Session {
    Session {
        id: session_id(key),
        user: user.parse().unwrap(),
        workspace: workspace.parse().unwrap(),
        image: None,
        image_digest: None,
        node: "one".parse().unwrap(),
        node_id: "aabb222222222222".parse().unwrap(),
        container_id: None,
        state,
        cores: Cores::whole(1),
        memory_bytes: Bytes::gib(1),
        gpus: 0,
        gpu_uuids: Vec::new(),
        endpoints: Vec::new(),
        created_at: Timestamp::default(),
        last_activity_at: Timestamp::default(),
        expires_at: None,
        kept_alive_by: None,
        end_reason: None,
        exit_code: None,
        message: None,
        attempt: 1,
        secret: None,
    }
}
