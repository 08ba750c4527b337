//! What a placement decision says of itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, NodeReason, SessionId, Timestamp};

/// The answer to a dry run: where the session would go, and what every node said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The node it would be offered to first; `null` where none would take it.
    pub node: Option<Name>,
    pub nodes: Vec<NodeVerdict>,
}

/// One node's part in a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeVerdict {
    pub node: Name,
    /// Its place in the order of offers, from 1; `null` where the node was filtered out.
    pub rank: Option<u32>,
    /// Why it was filtered out, or refused the offer.
    pub refusal: Option<NodeReason>,
}

/// Why a session is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub session: SessionId,
    pub node: Name,
    /// How often this session has been offered; 1 for the first time.
    pub attempt: u32,
    pub decided_at: Timestamp,
    pub nodes: Vec<NodeVerdict>,
}
