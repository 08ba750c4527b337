//! What a cluster is told to be.

use serde::{Deserialize, Serialize};

use super::text::words;

/// What a cluster does when it is cut in two: `cluster.mode`, and with it `cluster.expected_nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ClusterMode {
    /// Each side that can elect a leader goes on.
    #[default]
    Available,
    /// Only a majority of this many nodes goes on.
    Quorum { expected_nodes: u32 },
}

/// Which of the nodes with room a session goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The one with the most room left.
    #[default]
    Spread,
    /// The one with the least, so that others stay free for what is large.
    Binpack,
}
words!(Strategy { Spread => "spread", Binpack => "binpack" });

/// What to do with a key that a node may know which cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// Place it: after a partition the session may be there twice, until one of the two is put away.
    Place,
    /// Refuse it, until the node is back or removed.
    Fail,
}
words!(OnUnknown { Place => "place", Fail => "fail" });

impl OnUnknown {
    /// What fits the mode where nobody says.
    pub const fn of(mode: ClusterMode) -> Self {
        match mode {
            ClusterMode::Available => Self::Place,
            ClusterMode::Quorum { .. } => Self::Fail,
        }
    }
}
