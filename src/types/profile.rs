//! The two halves of a node, which travel apart inside the cluster: its profile, which changes only when something
//! happened, and its usage, which changes with every reading. [`Node`](super::Node) is the document made of both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Bytes, Condition, Cores, Disk, Drain, Name, NodeId, Resources, RuntimeStatus, Settings, Swap, Timestamp};

/// What a node is and has, as its host says. Equal profiles mean that nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProfile {
    pub id: NodeId,
    pub name: Name,
    pub address: String,
    pub version: String,
    pub runtime: RuntimeStatus,
    /// What the host has.
    pub physical: Resources,
    /// What the host offers: the overrides of its settings where they are not 0, else physical.
    pub effective: Resources,
    /// The sum of what admitted sessions reserved.
    pub allocated: Resources,
    pub gpus: Vec<GpuProfile>,
    /// Sessions that hold a reservation.
    pub sessions: u32,
    pub settings: Settings,
    pub declared_settings: Vec<String>,
    pub drain: Option<Drain>,
    pub conditions: Vec<Condition>,
}

/// A GPU, without what is measured of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProfile {
    pub uuid: String,
    pub index: u32,
    pub model: String,
    pub memory_total_bytes: Option<Bytes>,
    pub health: String,
    pub slots: u32,
    pub slots_used: u32,
    pub cordoned: bool,
}

/// What was measured of a node, foreign processes included. `None`: not known.
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
    /// By the GPU's UUID.
    pub gpus: BTreeMap<String, GpuUsage>,
}

/// What was measured of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuUsage {
    pub memory_used_bytes: Option<Bytes>,
    pub utilization_percent: Option<f64>,
    pub temperature_celsius: Option<f64>,
    pub power_watts: Option<f64>,
}
