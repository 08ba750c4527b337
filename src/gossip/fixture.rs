//! Nodes and sessions for the tests of gossip.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::Published;
use crate::types::{
    Bytes, ClusterMode, Cores, NodeId, NodeProfile, NodeUsage, Resources, RuntimeKind, RuntimeStatus, SessionId,
    SessionProfile, SessionState, Settings, Timestamp,
};

pub(super) fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

pub(super) fn profile(n: u8) -> NodeProfile {
    let physical = Resources::new(Cores::whole(6), Bytes::gib(6), 0);
    NodeProfile {
        id: id(n),
        name: format!("n{n}").parse().unwrap(),
        address: format!("127.0.0.1:{n}"),
        version: "0".to_owned(),
        runtime: RuntimeStatus {
            kind: RuntimeKind::Docker,
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

/// The `which`th session of the `n`th node, running.
pub(super) fn session(n: u8, which: u32) -> Arc<SessionProfile> {
    let created_at = Timestamp::from_millis(1000 * i64::from(which));
    Arc::new(SessionProfile {
        id: SessionId::of_key(&"c".parse().unwrap(), &format!("{n} {which}")),
        user: "alice".parse().unwrap(),
        workspace: "desktop".parse().unwrap(),
        image: Some("busybox".to_owned()),
        image_digest: None,
        node: format!("n{n}").parse().unwrap(),
        node_id: id(n),
        container_id: None,
        state: SessionState::Running,
        resources: Resources::new(Cores::whole(1), Bytes::gib(1), 0),
        gpu_uuids: Vec::new(),
        endpoints: Vec::new(),
        created_at,
        ready_at: None,
        health: None,
        expires_at: None,
        kept_alive_by: None,
        end_reason: None,
        exit_code: None,
        message: None,
        attempt: 1,
    })
}

pub(super) fn published(n: u8, sessions: u32) -> Published {
    Published {
        profile: Arc::new(profile(n)),
        usage: NodeUsage::default(),
        sessions: (0..sessions).map(|which| session(n, which)).collect(),
        catalogue: format!("digest {n}"),
        mode: ClusterMode::Available,
    }
}

pub(super) fn by_id(sessions: &[Arc<SessionProfile>]) -> BTreeMap<SessionId, Arc<SessionProfile>> {
    sessions.iter().map(|session| (session.id, Arc::clone(session))).collect()
}
