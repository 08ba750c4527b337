//! The other owners, as a test moves them.

use super::*;
use crate::node::fixture;
use crate::types::{Ballot, Bytes, Cores, Disk, NodeId, Prune, SessionState, Workspace, sample};
use crate::{capacity, catalogue, election, node, sessions};

/// A node that leads its own cluster of one, with a catalogue that names `w:1`, and no session.
pub(in crate::images::task) struct Owners {
    pub(in crate::images::task) sessions: watch::Sender<Arc<sessions::Snapshot>>,
    ready: watch::Sender<bool>,
    pub(in crate::images::task) catalogue: watch::Sender<Arc<catalogue::Snapshot>>,
    pub(in crate::images::task) node: watch::Sender<Arc<node::State>>,
    leadership: watch::Sender<Arc<election::Leadership>>,
    members: watch::Sender<Arc<election::Members>>,
    report: watch::Sender<Arc<capacity::Report>>,
}

impl Owners {
    pub(in crate::images::task) fn new() -> Self {
        let me: NodeId = "k3f7q2m5x6a4b7c2".parse().unwrap();
        let leadership =
            election::Leadership { leader: Some(me), ballot: Some(Ballot { term: 1, node: me }), reign: None };
        let mut workspace = Workspace::new("w".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        workspace.image = Some("w:1".to_owned());
        let catalogue = catalogue::Snapshot {
            workspaces: [(workspace.name.clone(), Arc::new(workspace))].into(),
            synced: true,
            ..catalogue::Snapshot::default()
        };
        Self {
            sessions: watch::Sender::default(),
            ready: watch::Sender::new(true),
            catalogue: watch::Sender::new(Arc::new(catalogue)),
            node: watch::Sender::new(Arc::new(fixture::state())),
            leadership: watch::Sender::new(Arc::new(leadership)),
            members: watch::Sender::default(),
            report: watch::Sender::new(Arc::new(fixture::report())),
        }
    }

    pub(in crate::images::task) fn around(&self) -> Around {
        Around {
            sessions: self.sessions.subscribe(),
            sessions_ready: self.ready.subscribe(),
            catalogue: self.catalogue.subscribe(),
            node: self.node.subscribe(),
            leadership: self.leadership.subscribe(),
            members: self.members.subscribe(),
            report: self.report.subscribe(),
        }
    }

    pub(in crate::images::task) fn set_mode(&self, mode: Prune) {
        let mut state = node::State::clone(&self.node.borrow());
        state.settings.prune = mode;
        self.node.send_replace(Arc::new(state));
    }

    /// A session of this image is admitted.
    pub(in crate::images::task) fn admit(&self, image: &str) {
        let mut session = sample::session_profile("k", "w", "alice", SessionState::Pending);
        session.image = Some(image.to_owned());
        let mut snapshot = sessions::Snapshot::default();
        snapshot.sessions.insert(session.id, Arc::new(session));
        self.sessions.send_replace(Arc::new(snapshot));
    }

    pub(in crate::images::task) fn lose_leader(&self) {
        let leadership = election::Leadership { leader: None, ..(**self.leadership.borrow()).clone() };
        self.leadership.send_replace(Arc::new(leadership));
    }

    /// So many percent are used of the file system at this path.
    pub(in crate::images::task) fn measure(&self, path: &str, used: u64) {
        let disk = Disk {
            path: path.to_owned(),
            total_bytes: Bytes::mib(100),
            free_bytes: Bytes::mib(100 - used),
            inodes: None,
        };
        self.report.send_modify(|report| Arc::make_mut(report).disks = vec![disk]);
    }
}
