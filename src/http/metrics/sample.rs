//! A node with figures, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::figures::Figures;
use crate::election::Leadership;
use crate::gossip::{ClusterView, Member};
use crate::images;
use crate::runtime::images::ListedImage;
use crate::sessions::Snapshot;
use crate::types::{
    Ballot, Bytes, ClusterMode, Cores, Disk, Gpu, GpuProfile, GpuState, GpuUsage, Inodes, Node, NodeState, NodeUsage,
    SessionState, Swap, Timestamp, sample,
};

/// Much of it is not known.
pub(super) fn node() -> Node {
    let mut node = sample::node("one", "aabb222222222222");
    node.resources.cores.physical = Some(Cores::whole(6));
    node.resources.cores.effective = Cores::whole(12);
    node.resources.cores.allocated = Cores::from_milli(2500);
    node.resources.cores.utilized = None;
    let profile = GpuProfile {
        model: "A \"quoted\" model".to_owned(),
        memory_total_bytes: Some(Bytes::gib(24)),
        slots: 4,
        slots_used: 1,
        state: GpuState::Foreign,
        ..sample::gpu("GPU-1", 0)
    };
    let usage = GpuUsage {
        memory_used_bytes: Some(Bytes::gib(1)),
        utilization_percent: Some(12.5),
        temperature_celsius: Some(60.0),
        throttling: Some(Vec::new()),
        ..GpuUsage::default()
    };
    node.gpus = vec![Gpu::of(&profile, &node.name, Some(&usage))];
    node
}

/// Everything of it is known.
pub(super) fn known_node() -> Node {
    let mut node = node();
    node.resources.cores.utilized = Some(Cores::whole(1));
    node.resources.cores.utilized_at = Some(Timestamp::from_millis(1500));
    node.resources.memory_bytes.utilized = Some(Bytes::gib(1));
    node.disk = Some(Disk {
        path: "/".into(),
        total_bytes: Bytes::gib(2),
        free_bytes: Bytes::gib(1),
        inodes: Some(Inodes { total: 9, free: 8 }),
    });
    node.swap = Some(Swap { total_bytes: Bytes::gib(2), used_bytes: Bytes::gib(1) });
    node.gpus[0].power_watts = Some(200.0);
    node.gpus[0].memory_foreign_bytes = Some(Bytes::mib(300));
    node.gpus[0].read_at = Some(Timestamp::from_millis(2500));
    node
}

/// Another node, that was heard and is silent now.
fn view() -> ClusterView {
    let member = Member {
        address: "192.0.2.7:7480".parse().unwrap(),
        incarnation: 1,
        state: NodeState::Suspect,
        mode: ClusterMode::default(),
        last_seen: Timestamp::default(),
        profile: None,
        usage: NodeUsage::default(),
        sessions: BTreeMap::new(),
        catalogue: None,
    };
    let members = BTreeMap::from([("aacc222222222222".parse().unwrap(), Arc::new(member))]);
    ClusterView { members, ..ClusterView::default() }
}

/// What the snapshots of such a node tell.
pub(super) fn figures(node: Node) -> Figures {
    let mut sessions = Snapshot::default();
    for key in ["a", "b"] {
        let session = sample::session_profile(key, "desktop", "alice", SessionState::Running);
        sessions.sessions.insert(session.id, Arc::new(session));
    }
    sessions.gone.insert(sample::session_id("b"));
    let ballot = Ballot { term: 7, node: node.id };
    let leadership = Leadership { leader: Some(node.id), ballot: Some(ballot), reign: None };
    let image = ListedImage { id: "sha256:1".to_owned(), size: Bytes::gib(3), ..ListedImage::default() };
    let images = images::Snapshot { images: Some(Arc::new([image])), ..images::Snapshot::default() };
    Figures {
        node,
        sessions: Arc::new(sessions),
        view: Arc::new(view()),
        leadership: Arc::new(leadership),
        certificate_end: Some(1_800_000_000),
        images: Some(Arc::new(images)),
    }
}
