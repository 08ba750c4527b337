//! What a container is created from, and its observed state, the same for every engine. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{
    Bytes, GpuCapability, HealthStatus, Init, Name, NodeId, Protocol, PullPolicy, Resources, SessionId, Timestamp, User,
};

/// The observed state of a container; the wanted state is the lifecycle's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    Absent,
    /// It has never been started.
    Created,
    Running(Run),
    Paused(Run),
    Exited(Exit),
    /// The engine removes it, or tried to and could not, as this text says. It does not run and cannot be started.
    Removing(String),
}

/// A container as it was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub container: Container,
    /// What the health check of its image found; `None`: the image has none, or the container does not run.
    pub health: Option<HealthStatus>,
}

impl From<Container> for Observed {
    /// A container whose image has no health check.
    fn from(container: Container) -> Self {
        Self { container, health: None }
    }
}

/// Identifies one start of a container: the engine's start time, or the shim's boot id, pid and start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub String);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub run: Run,
    /// As shells count: 128 + n if signal n ended it.
    pub code: i64,
    pub oom: Oom,
    /// The command could not be executed, as this sentence of the container's init says: nothing of it ever ran.
    pub never_ran: Option<String>,
    pub finished_at: Option<Timestamp>,
}

/// What the kernel killed for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oom {
    #[default]
    Nothing,
    /// A process of the container, such as one browser tab. The main process went on, and ended otherwise.
    Child,
    /// The main process, and with it the run.
    Main,
}

impl Exit {
    /// The end of a run, of which nothing but its exit code is known.
    pub const fn new(run: Run, code: i64) -> Self {
        Self { run, code, oom: Oom::Nothing, never_ran: None, finished_at: None }
    }
}

/// A container of this cluster, as its labels describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub container_id: String,
    /// The container has another name than it was created under.
    pub renamed: Option<Renamed>,
    pub node: NodeId,
    pub session: SessionId,
    pub user: User,
    pub workspace: Name,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    /// What it declared of each GPU's memory.
    pub gpu_memory: Option<Bytes>,
    pub image: Option<String>,
    pub ports: Vec<PortBinding>,
    pub created_at: Timestamp,
    /// `None`: the engine lists it, and could not describe it in time.
    pub container: Option<Container>,
}

/// The name of a container that another program renamed, or made with the labels of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    pub name: String,
    /// The name under which a session's container is created.
    pub expected: String,
}

impl Found {
    /// Orders the containers of one session: the first is the session's where no id was recorded. The engine gives a
    /// name to one container only, so a copy that somebody made of an image with our labels has another.
    pub fn rank(&self) -> impl Ord + use<> {
        (self.renamed.is_some(), self.created_at, self.container_id.clone())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBinding {
    pub container_port: u16,
    pub protocol: Protocol,
    pub host_port: u16,
}

/// Everything that a container is created from. Templates are filled in, ports are assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub session: SessionId,
    pub user: User,
    pub workspace: Name,
    pub image: Option<String>,
    pub pull: PullPolicy,
    #[serde(default)]
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    #[serde(default)]
    pub run_as: Option<String>,
    #[serde(default)]
    pub init: Init,
    pub env: BTreeMap<String, String>,
    pub resources: Resources,
    pub gpu_uuids: Vec<String>,
    #[serde(default)]
    pub gpu_capabilities: Vec<GpuCapability>,
    /// Declared for each GPU; `None`: nothing.
    #[serde(default)]
    pub gpu_memory: Option<Bytes>,
    pub ports: Vec<PortBinding>,
    pub volumes: Vec<Mount>,
    #[serde(default)]
    pub tmpfs: Vec<String>,
    #[serde(default)]
    pub read_only: bool,
    pub shm: Bytes,
    /// How long its processes have to end by themselves before they are killed.
    #[serde(default)]
    pub stop_grace: Duration,
    /// `None`: ostler's own network.
    pub network: Option<Name>,
}

/// A named volume at a path of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// As the template gave it, such as `home-alice@example.com`; the runtime escapes it.
    pub name: String,
    pub path: String,
    pub read_only: bool,
    /// The user whose volume it is, if the template contains the user. Under two templates, or with two workspaces, the
    /// volumes of two users could have one name; the runtime gives a volume to the user that it was created for.
    #[serde(default)]
    pub user: Option<User>,
}

impl Mount {
    /// Checks that a volume created for `owner` may be mounted.
    pub(super) fn check_owner(&self, owner: Option<&str>) -> Result<(), String> {
        match (owner, &self.user) {
            (Some(owner), Some(user)) if owner != user.as_str() => Err(format!(
                "volume {} belongs to user {owner}, not to {user}; change the volume's name in the workspace",
                self.name
            )),
            _ => Ok(()),
        }
    }
}
