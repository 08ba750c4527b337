//! The body of every error response of the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Dimension, Name};

/// `{"error": {…}}`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    pub code: ErrorCode,
    /// For people: what is wrong and what is expected.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The reason of each node, if the leader considered nodes for a session.
    #[serde(default)]
    pub nodes: Vec<NodeReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    Invalid,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    IdempotencyMismatch,
    DeclaredSetting,
    ExceedsPhysical,
    NoCapacity,
    QuotaExceeded,
    NodeDisabled,
    NodeUnreachable,
    NoLeader,
    OutcomeUnknown,
    RuntimeUnavailable,
    Internal,
}

/// Why one node does not admit a session, with the figures that it compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeReason {
    pub node: Name,
    pub reason: Reason,
    /// The resource that is short, if one is.
    pub dimension: Option<Dimension>,
    /// Figures in the dimension's unit: cores, bytes, devices, sessions or ports.
    pub requested: Option<f64>,
    pub available: Option<f64>,
    pub physical: Option<f64>,
}

impl NodeReason {
    /// A reason without figures.
    pub const fn plain(node: Name, reason: Reason) -> Self {
        Self { node, reason, dimension: None, requested: None, available: None, physical: None }
    }
}

/// Why a node does not admit a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The session requests more than the host has: it never fits.
    ExceedsPhysical,
    /// The session fits the host, but not beside the present sessions.
    NoCapacity,
    /// GPU slots are free, but `gpu_sharing` does not let this user share the devices.
    GpuSharing,
    Disabled,
    Draining,
    /// The node lacks labels that the constraints require.
    Constraint,
    /// `runtime.networks` of the node does not list the workspace's network.
    Network,
    /// The container engine does not answer.
    RuntimeUnavailable,
    /// The node does not answer, or has not reported its resources yet.
    Unreachable,
    /// The workspace lacks the image or the command that the node's runtime needs.
    Runtime,
    /// A volume of this user and workspace is on another node.
    Volume,
    /// The node failed to start the session.
    StartFailed,
    /// Another live node has this node's id.
    DuplicateNodeId,
    /// The node has `limits.max_sessions_per_node` sessions.
    SessionLimit,
    /// `runtime.port_range` has too few free ports.
    NoPorts,
    /// Less disk is free than `limits.min_free_disk`.
    LowDisk,
}
