//! The channels that are read before the owner that publishes to them can start.
//!
//! An owner makes its own channel, and those who read it start later. That is not possible where the publisher itself
//! needs what its readers make. Such channels are tied here, before all owners; until the publisher starts, its
//! readers find the first value.

use std::sync::Arc;

use tokio::sync::watch;

use crate::gossip::{self, ClusterView, Directory};
use crate::gpu::listed::List;
use crate::{election, node};

/// The ends that are read.
pub(super) struct Watches {
    /// Where each node is. The mesh dials by it; gossip publishes it, and travels over the mesh.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// The nodes that may vote. The election counts them; gossip publishes them, and tells of the catalogue, which
    /// follows the election's leader.
    pub members: watch::Receiver<Arc<election::Members>>,
    /// Every other node. The catalogue and placement read it; gossip publishes it, and tells of the catalogue.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Conflicts within the cluster. The owners of sessions and conditions read them; they are made from the view and
    /// from the catalogue, which starts after those two.
    pub signs: watch::Receiver<Arc<node::ClusterSigns>>,
    /// The GPUs of another maker that the engine lists. The owner of the GPUs reads them; the runtime, which lists them,
    /// starts after it, since it hands the owner's devices over.
    pub listed: watch::Receiver<List>,
    /// Why the history cannot be written. The owner of conditions reads it; the history is made from the observer, which
    /// reads the conditions.
    pub history: watch::Receiver<Option<String>>,
}

/// The ends that are written. Without a mesh gossip's are dropped, and the first values stay.
pub(super) struct Publishers {
    pub gossip: gossip::Channels,
    pub signs: watch::Sender<Arc<node::ClusterSigns>>,
    pub listed: watch::Sender<List>,
    pub history: watch::Sender<Option<String>>,
}

pub(super) fn tie(has_token: bool) -> (Watches, Publishers) {
    // Without a mesh there is no node to look for: this one may lead at once.
    let alone = election::Members { untried: has_token, ..election::Members::default() };
    let (publish_directory, directory) = watch::channel(Arc::default());
    let (publish_members, members) = watch::channel(Arc::new(alone));
    let (publish_view, view) = watch::channel(Arc::default());
    let (publish_signs, signs) = watch::channel(Arc::default());
    let (publish_listed, listed) = watch::channel(None);
    let (publish_history, history) = watch::channel(None);
    let gossip = gossip::Channels { directory: publish_directory, view: publish_view, members: publish_members };
    let publishers = Publishers { gossip, signs: publish_signs, listed: publish_listed, history: publish_history };
    (Watches { directory, members, view, signs, listed, history }, publishers)
}
