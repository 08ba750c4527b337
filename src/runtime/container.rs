//! What a container is made from and what is seen of it, whichever engine has it. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{Bytes, Name, NodeId, Protocol, PullPolicy, Resources, SessionId, Timestamp, User};

/// A container as it is, whatever it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    Absent,
    /// It has never been started.
    Created,
    Running(Run),
    Paused(Run),
    Exited(Exit),
}

/// Tells one start of a container from the next: the engine's start time, or the pid and its start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub String);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub run: Run,
    /// As a shell counts: 128 + n where signal n ended it.
    pub code: i64,
    pub oom_killed: bool,
    pub finished_at: Option<Timestamp>,
}

/// A container of this cluster, as its labels describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub container_id: String,
    pub node: NodeId,
    pub session: SessionId,
    pub user: User,
    pub workspace: Name,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    pub image: Option<String>,
    pub ports: Vec<PortBinding>,
    pub created_at: Timestamp,
    pub container: Container,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBinding {
    pub container_port: u16,
    pub protocol: Protocol,
    pub host_port: u16,
}

/// Everything that a container is made from. Templates are filled in, ports are assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub session: SessionId,
    pub user: User,
    pub workspace: Name,
    pub image: Option<String>,
    pub pull: PullPolicy,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    pub ports: Vec<PortBinding>,
    pub volumes: Vec<Mount>,
    pub shm: Bytes,
    /// `None`: ostler's own network.
    pub network: Option<Name>,
}

/// A named volume at a path of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// As the template gave it, `home-alice@example.com`; the runtime makes a safe name of it.
    pub name: String,
    pub path: String,
    pub read_only: bool,
}
