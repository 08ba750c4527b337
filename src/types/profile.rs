//! The parts of nodes and sessions, which travel separately inside the cluster: a profile, which changes only when
//! something happened, and the usage of a node or the activity of a session. [`Node`](super::Node) and
//! [`Session`](super::Session) join both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Bytes, Condition, Cores, Disk, Drain, EndReason, Endpoint, GpuProfile, GpuUsage, HealthStatus, Name, NodeId,
    Pressure, Resources, RuntimeStatus, SessionId, SessionState, Settings, Swap, Timestamp, User,
};

/// What a node is and has, as its host reports it. Equal profiles mean that nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProfile {
    pub id: NodeId,
    pub name: Name,
    pub address: String,
    pub version: String,
    pub runtime: RuntimeStatus,
    /// The resources that the host has. [Not every figure is known](Resources::known).
    pub physical: Resources,
    /// The resources that the host offers: each override that is not 0, else the physical amount.
    pub effective: Resources,
    /// The sum of the reservations of admitted sessions.
    pub allocated: Resources,
    pub gpus: Vec<GpuProfile>,
    /// Sessions that hold a reservation.
    pub sessions: u32,
    pub settings: Settings,
    pub declared_settings: Vec<String>,
    pub drain: Option<Drain>,
    pub conditions: Vec<Condition>,
}

/// The measurements of a node, other processes of the host included. `None`: not known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeUsage {
    /// When cores and memory were measured.
    pub at: Timestamp,
    pub cores: Option<Cores>,
    pub memory_bytes: Option<Bytes>,
    pub disk: Option<Disk>,
    pub swap: Option<Swap>,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    #[serde(default)]
    pub pressure: Option<Pressure>,
    /// By the GPU's UUID.
    pub gpus: BTreeMap<String, GpuUsage>,
}

/// What a session is, as its host reports it. Equal profiles mean that nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionProfile {
    pub id: SessionId,
    pub user: User,
    pub workspace: Name,
    pub image: Option<String>,
    pub image_digest: Option<String>,
    pub node: Name,
    pub node_id: NodeId,
    pub container_id: Option<String>,
    pub state: SessionState,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    pub endpoints: Vec<Endpoint>,
    pub created_at: Timestamp,
    pub ready_at: Option<Timestamp>,
    pub health: Option<HealthStatus>,
    pub expires_at: Option<Timestamp>,
    pub kept_alive_by: Option<String>,
    pub end_reason: Option<EndReason>,
    pub exit_code: Option<i64>,
    /// What went wrong, for a person.
    pub message: Option<String>,
    pub attempt: u32,
}

/// What changes in a session while its profile stays the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionActivity {
    pub last_activity_at: Timestamp,
    /// When its idle timeout ends it unless it is used before; `None`: never.
    #[serde(default)]
    pub idle_ends_at: Option<Timestamp>,
    /// The progress of the image pull, while it runs.
    pub progress: Option<String>,
}
