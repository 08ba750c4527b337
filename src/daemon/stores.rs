//! What the data directory holds of this node's earlier lives.

use std::path::Path;

use anyhow::Result;

use crate::sessions::{Journal, Record};
use crate::types::{Ballot, NodeId, Timestamp};
use crate::{catalogue, election, gossip, gpu, images, node};

/// Each owner's store, and what was in it. They are opened together and before anything starts: a node that cannot
/// read its disk never says a word to the others.
pub(super) struct Stores {
    pub host: HostStores,
    pub ballots: (election::store::Store, election::state::Stored),
    pub roster: (gossip::roster::Store, gossip::roster::Stored),
    pub gpus: gpu::store::Store,
}

/// Those of the owners of this host.
pub(super) struct HostStores {
    pub node: (node::store::Store, node::store::Stored),
    pub journal: (Journal, Vec<Record>),
    /// The highest ballot on disk: the owner of sessions refuses offers below it.
    pub fence: Option<Ballot>,
    pub catalogue: (catalogue::store::Store, catalogue::Contents),
    pub images: images::store::Store,
}

impl Stores {
    pub(super) fn open(data_dir: &Path, now: Timestamp) -> Result<Self> {
        let node = node::store::Store::open(data_dir, node::store::machine_id().as_deref(), now)?;
        let roster = gossip::roster::Store::open(data_dir, now)?;
        let ballots = election::store::Store::open(data_dir, now)?;
        let journal = Journal::open(data_dir, now)?;
        let catalogue = catalogue::store::Store::open(data_dir, &node.1.id, now)?;
        let images = images::store::Store::open(data_dir, now)?;
        let gpus = gpu::store::Store::open(data_dir, now)?;
        let fence = ballots.1.highest;
        Ok(Self { host: HostStores { node, journal, fence, catalogue, images }, ballots, roster, gpus })
    }

    /// This node's id.
    pub(super) const fn me(&self) -> NodeId {
        self.host.node.1.id
    }

    /// The number of this life of the agent.
    pub(super) const fn incarnation(&self) -> u64 {
        self.roster.1.incarnation
    }
}
