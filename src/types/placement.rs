//! How the API explains a placement.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, NodeReason, SessionId, Timestamp};

/// The answer to a dry run: the node that the session would go to, and the verdict on every node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The node that the leader would offer the session to first; `null` if no node can take it.
    pub node: Option<Name>,
    pub nodes: Vec<NodeVerdict>,
}

/// The verdict on one node in a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeVerdict {
    pub node: Name,
    /// The node's place in the order of offers, from 1; `null` if the node was filtered out.
    pub rank: Option<u32>,
    /// Why the node was filtered out, or rejected the offer.
    pub refusal: Option<NodeReason>,
}

/// Why a session is on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub session: SessionId,
    pub node: Name,
    /// The number of the attempt to place the session, from 1.
    pub attempt: u32,
    pub decided_at: Timestamp,
    pub nodes: Vec<NodeVerdict>,
}
