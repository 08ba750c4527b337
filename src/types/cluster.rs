//! The settings of a cluster.

use serde::{Deserialize, Serialize};

use super::text::words;

/// What a cluster does during a partition: `cluster.mode`, together with `cluster.expected_nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ClusterMode {
    /// Each side that can elect a leader goes on.
    #[default]
    Available,
    /// Only a majority of this many nodes goes on.
    Quorum { expected_nodes: u32 },
}

/// Which of the nodes with room gets a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The node with the most room left.
    #[default]
    Spread,
    /// The node with the least room left, so that other nodes stay free for large sessions.
    Binpack,
}
words!(Strategy { Spread => "spread", Binpack => "binpack" });

/// What the leader does with a request whose idempotency key an unreachable node may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// Place the session. After a partition it may exist twice, until the leader removes one of the two.
    Place,
    /// Reject the request, until the node is back or removed.
    Fail,
}
words!(OnUnknown { Place => "place", Fail => "fail" });

impl OnUnknown {
    /// The default for a mode.
    pub const fn of(mode: ClusterMode) -> Self {
        match mode {
            ClusterMode::Available => Self::Place,
            ClusterMode::Quorum { .. } => Self::Fail,
        }
    }
}
