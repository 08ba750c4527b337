//! What a prune needs to know of the rest of the node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::images::policy::Catalogue;
use crate::types::{Disk, ImageReference, Name, Prune};
use crate::{capacity, catalogue, election, node, sessions};

/// How long after a leader was found again its catalogue counts as compared with this node's: both compare after some
/// seconds if they differ.
const COMPARED_WITHIN: Duration = Duration::from_secs(15);

/// The other owners, as a prune reads them. Those of sessions and of the catalogue start after that of the images.
#[derive(Debug, Clone)]
pub struct Around {
    pub sessions: watch::Receiver<Arc<sessions::Snapshot>>,
    /// Whether the sessions of the journal are in the snapshot. Nothing is removed before.
    pub sessions_ready: watch::Receiver<bool>,
    pub catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    pub node: watch::Receiver<Arc<node::State>>,
    pub leadership: watch::Receiver<Arc<election::Leadership>>,
    /// The nodes of the cluster, reachable or not.
    pub members: watch::Receiver<Arc<election::Members>>,
    pub report: watch::Receiver<Arc<capacity::Report>>,
}

/// Whether this node has a leader, and since when after it had none.
#[derive(Debug, Default)]
pub(super) struct Link {
    is_up: bool,
    /// The leader's catalogue may differ until then.
    settles_at: Option<Instant>,
}

impl Around {
    pub(super) fn mode(&self) -> Prune {
        self.node.borrow().settings.prune
    }

    pub(super) fn node_name(&self) -> Name {
        self.node.borrow().name.clone()
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.sessions_ready.borrow()
    }

    /// The images of the sessions whose container is not destroyed.
    pub(super) fn needed_by_sessions(&self) -> BTreeSet<ImageReference> {
        let sessions = self.sessions.borrow();
        let here = sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        here.filter_map(|(_, session)| ImageReference::parse(session.image.as_deref()?).ok()).collect()
    }

    /// The file system at this path, as last measured.
    pub(super) fn disk(&self, path: &std::path::Path) -> Option<Disk> {
        let report = self.report.borrow();
        report.disks.iter().find(|disk| std::path::Path::new(&disk.path) == path).cloned()
    }

    pub(super) fn link(&self) -> Link {
        Link { is_up: self.has_leader(), settles_at: None }
    }

    pub(super) fn catalogue(&self, link: &mut Link) -> Catalogue {
        let catalogue = self.catalogue.borrow();
        let now = Instant::now();
        link.follow(self.has_leader(), catalogue.synced, now);
        // That of the tag too, for a workspace that is pinned to a digest: it may be unpinned.
        let images = catalogue.workspaces.values().flat_map(|workspace| {
            let pinned = workspace.image_reference().and_then(|image| ImageReference::parse(&image).ok());
            pinned.into_iter().chain(workspace.tag())
        });
        Catalogue {
            named: images.collect(),
            is_empty: catalogue.workspaces.is_empty(),
            is_current: catalogue.synced && link.is_settled(now),
        }
    }

    /// Takes note of a change of the leader.
    pub(super) fn follow_leader(&self, link: &mut Link) {
        link.follow(self.has_leader(), self.catalogue.borrow().synced, Instant::now());
    }

    /// A node that leads and reaches none of the nodes that it knows is cut off, though it may lead.
    fn has_leader(&self) -> bool {
        let leadership = self.leadership.borrow();
        let is_alone =
            leadership.reign.as_ref().is_some_and(|reign| reign.reached.len() <= 1 && self.members.borrow().known > 0);
        leadership.leader.is_some() && !is_alone
    }
}

impl Link {
    /// Before the first comparison, that of the catalogue tells.
    fn follow(&mut self, is_up: bool, was_compared: bool, now: Instant) {
        if is_up && !self.is_up && was_compared {
            self.settles_at = Some(now + COMPARED_WITHIN);
        }
        self.is_up = is_up;
    }

    fn is_settled(&self, now: Instant) -> bool {
        self.is_up && self.settles_at.is_none_or(|at| now >= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_was_lost_counts_again_once_catalogues_were_compared() {
        let (mut link, now) = (Link::default(), Instant::now());
        assert!(!link.is_settled(now), "no leader yet");
        link.follow(true, false, now);
        assert!(link.is_settled(now), "the catalogue tells whether it was compared");
        link.follow(false, true, now);
        assert!(!link.is_settled(now));
        link.follow(true, true, now);
        assert!(!link.is_settled(now));
        let later = now + COMPARED_WITHIN;
        link.follow(true, true, later);
        assert!(link.is_settled(later));
    }
}
