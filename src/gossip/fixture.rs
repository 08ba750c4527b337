//! Nodes and sessions for the tests of this part.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::Published;
use crate::types::{
    Bytes, ClusterMode, Cores, Disk, Figures, Node, NodeId, NodeResources, NodeState, RuntimeKind, RuntimeStatus,
    Session, SessionId, SessionState, Settings, Timestamp,
};

pub(super) fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

pub(super) fn node(n: u8) -> Node {
    fn figures<T: Copy>(physical: T, none: T) -> Figures<T> {
        Figures {
            physical,
            override_: none,
            effective: physical,
            allocated: none,
            available: physical,
            utilized: None,
            utilized_at: None,
        }
    }
    Node {
        id: id(n),
        name: format!("n{n}").parse().unwrap(),
        address: format!("127.0.0.1:{n}"),
        version: "0".to_owned(),
        state: NodeState::Alive,
        enabled: true,
        is_leader: false,
        last_seen: Timestamp::from_millis(1_000_000),
        runtime: RuntimeStatus { kind: RuntimeKind::Docker, version: None, available: true, message: None },
        resources: NodeResources {
            cores: figures(Cores::whole(6), Cores::ZERO),
            memory_bytes: figures(Bytes::gib(6), Bytes::ZERO),
            gpus: figures(0, 0),
        },
        disk: Some(Disk { path: "/".to_owned(), total_bytes: Bytes::gib(100), free_bytes: Bytes::gib(50) }),
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

/// Session number `which` of node `n`, running.
pub(super) fn session(n: u8, which: u32) -> Arc<Session> {
    let created_at = Timestamp::from_millis(1000 * i64::from(which));
    Arc::new(Session {
        id: SessionId::of_key(&"c".parse().unwrap(), &format!("{n} {which}")),
        user: "alice".parse().unwrap(),
        workspace: "desktop".parse().unwrap(),
        image: Some("busybox".to_owned()),
        image_digest: None,
        node: format!("n{n}").parse().unwrap(),
        node_id: id(n),
        container_id: None,
        state: SessionState::Running,
        cores: Cores::whole(1),
        memory_bytes: Bytes::gib(1),
        gpus: 0,
        gpu_uuids: Vec::new(),
        endpoints: Vec::new(),
        created_at,
        last_activity_at: created_at,
        expires_at: None,
        kept_alive_by: None,
        end_reason: None,
        exit_code: None,
        message: None,
        attempt: 1,
        secret: None,
    })
}

pub(super) fn published(n: u8, sessions: u32) -> Published {
    Published {
        node: node(n),
        sessions: (0..sessions).map(|which| session(n, which)).collect(),
        catalogue: format!("digest {n}"),
        mode: ClusterMode::Available,
    }
}

pub(super) fn by_id(sessions: &[Arc<Session>]) -> BTreeMap<SessionId, Arc<Session>> {
    sessions.iter().map(|session| (session.id, Arc::clone(session))).collect()
}
