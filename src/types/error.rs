//! The body of every error of the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Dimension, Name};

/// `{"error": {…}}`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    pub code: ErrorCode,
    /// What is wrong and how to correct it, for a person.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Why each node cannot take the session; empty if placement was not tried.
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

words!(ErrorCode {
    Invalid => "invalid",
    Unauthorized => "unauthorized",
    Forbidden => "forbidden",
    NotFound => "not_found",
    Conflict => "conflict",
    IdempotencyMismatch => "idempotency_mismatch",
    DeclaredSetting => "declared_setting",
    ExceedsPhysical => "exceeds_physical",
    NoCapacity => "no_capacity",
    QuotaExceeded => "quota_exceeded",
    NodeDisabled => "node_disabled",
    NodeUnreachable => "node_unreachable",
    NoLeader => "no_leader",
    OutcomeUnknown => "outcome_unknown",
    RuntimeUnavailable => "runtime_unavailable",
    Internal => "internal",
});

/// Why one node cannot take a session, with the figures that were compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeReason {
    pub node: Name,
    pub reason: Reason,
    /// The resource that is short; `null` if the reason is not a resource.
    pub dimension: Option<Dimension>,
    /// Figures in the dimension's unit: cores, bytes, devices, sessions, ports or inodes.
    pub requested: Option<f64>,
    pub available: Option<f64>,
    pub physical: Option<f64>,
    /// What the node says about it; `null` if the reason and the figures say all.
    #[serde(default)]
    pub message: Option<String>,
}

impl NodeReason {
    /// A reason without figures.
    pub const fn plain(node: Name, reason: Reason) -> Self {
        Self { node, reason, dimension: None, requested: None, available: None, physical: None, message: None }
    }
}

impl Reason {
    /// Whether a resource of the node would have to change before it could ever take the session.
    pub const fn is_for_good(self) -> bool {
        matches!(self, Self::ExceedsPhysical | Self::GpuClass | Self::GpuMemoryUnknown)
    }
}

/// Why a node cannot take a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The session needs more than the host has, and will never fit there.
    ExceedsPhysical,
    /// What the host has is not known: its container engine has not reported it.
    PhysicalUnknown,
    /// The session fits the host, but not beside the sessions that are there now.
    NoCapacity,
    /// GPUs have room, but `gpu_sharing` does not let this user share them.
    GpuSharing,
    /// The session's workspace says how much GPU memory it needs, and how much a GPU of the node has is not known.
    GpuMemoryUnknown,
    /// The node's GPUs are of another class than the workspace's `gpu_class`.
    GpuClass,
    Disabled,
    Draining,
    /// The node lacks a label that the session requires.
    Constraint,
    /// The workspace's network is not in the node's `runtime.networks`.
    Network,
    /// The container engine does not answer.
    RuntimeUnavailable,
    /// The node does not answer, or has not reported its resources to the leader yet.
    Unreachable,
    /// The node's runtime needs an image or a command that the workspace does not have.
    Runtime,
    /// A volume of this user and workspace is on another node.
    Volume,
    /// The session failed to start there.
    StartFailed,
    /// The image is for another platform than the node's.
    Platform,
    /// Another live node has this node's id.
    DuplicateNodeId,
    /// The node has `limits.max_sessions_per_node` sessions.
    SessionLimit,
    /// `runtime.port_range` has too few free ports.
    NoPorts,
    /// The node cannot write its journal, for example because its data directory is full.
    Journal,
    /// Less disk is free than `limits.min_free_disk`, or too few inodes.
    LowDisk,
}
