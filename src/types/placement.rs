//! How a placement was decided.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, NodeReason, SessionId, Timestamp};

/// The answer to a dry run: the node that would get the session, and the verdict on every node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The node that would get the first offer; `null` if no node can admit the session.
    pub node: Option<Name>,
    pub nodes: Vec<NodeVerdict>,
}

/// The verdict on one node in a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeVerdict {
    pub node: Name,
    /// The node's position in the order of offers, from 1; `null` if the leader does not offer it the session.
    pub rank: Option<u32>,
    /// Why the leader does not offer the session to the node, or why the node rejected the offer.
    pub refusal: Option<NodeReason>,
}

/// Why a session is on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub session: SessionId,
    pub node: Name,
    /// The number of the placement attempt, from 1.
    pub attempt: u32,
    pub decided_at: Timestamp,
    pub nodes: Vec<NodeVerdict>,
}
