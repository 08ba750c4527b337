//! The cluster's choices of its operator: `cluster.mode` and `[placement]`.

use serde::{Deserialize, Serialize};

use super::text::words;

/// What a cluster does during a network partition: `cluster.mode` with `cluster.expected_nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ClusterMode {
    /// Every side that can elect a leader goes on.
    #[default]
    Available,
    /// Only a side with a majority of this number of nodes goes on.
    Quorum { expected_nodes: u32 },
}

/// Which of the nodes with room a session goes to: `placement.strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The node with the most room left.
    #[default]
    Spread,
    /// The node with the least room left, so that the others keep room for large sessions.
    Binpack,
}
words!(Strategy { Spread => "spread", Binpack => "binpack" });

/// What the leader does with a request whose idempotency key an unreachable node may already know:
/// `placement.on_unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// Place the session. After a partition there may be two sessions of one key, until one of them ends as a
    /// duplicate.
    Place,
    /// Reject the request until the node is back or removed.
    Fail,
}
words!(OnUnknown { Place => "place", Fail => "fail" });

impl OnUnknown {
    /// The default in a mode.
    pub const fn of(mode: ClusterMode) -> Self {
        match mode {
            ClusterMode::Available => Self::Place,
            ClusterMode::Quorum { .. } => Self::Fail,
        }
    }
}
