//! The error body that every refusal of the API has.

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
    /// For a person: what is wrong and what would be right.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Why each node said no, where nodes were asked.
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

/// One node's reason for not taking a session, with the figures it compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeReason {
    pub node: Name,
    pub reason: Reason,
    /// What was short, where something was.
    pub dimension: Option<Dimension>,
    /// Figures in the dimension's unit: cores, bytes, devices, sessions or ports.
    pub requested: Option<f64>,
    pub available: Option<f64>,
    pub physical: Option<f64>,
}

impl NodeReason {
    /// A reason that no figure goes with.
    pub const fn plain(node: Name, reason: Reason) -> Self {
        Self { node, reason, dimension: None, requested: None, available: None, physical: None }
    }
}

/// Why a node does not take a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// More than the host has, whatever is free: it will never fit there.
    ExceedsPhysical,
    /// It fits the host, but not beside what is there now.
    NoCapacity,
    /// GPUs are free, but sharing rules keep this user off them.
    GpuSharing,
    Disabled,
    Draining,
    /// The node's labels are not those the workspace asks for.
    Constraint,
    /// The node has no network of the name that the workspace asks for.
    Network,
    /// The container engine does not answer.
    RuntimeUnavailable,
    /// The node itself does not answer, or has not told yet what it has.
    Unreachable,
    /// The node's runtime needs an image, or a command, that the workspace does not name.
    Runtime,
    /// A volume of this user and workspace is on another node.
    Volume,
    /// The session could not be started there.
    StartFailed,
    /// Another live node has this node's id.
    DuplicateNodeId,
    /// `limits.max_sessions_per_node` is reached.
    SessionLimit,
    /// No free host port is left in `runtime.port_range`.
    NoPorts,
    /// Less disk is free than `limits.min_free_disk`.
    LowDisk,
}
