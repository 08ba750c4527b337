//! This node: its identity, its settings and its drain.

pub mod refresh;
pub mod settings;
pub mod store;
pub mod task;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::types::{Actor, Deadline, DrainRequest, Invalid, Name, NodeId, Settings, SettingsPatch, Timestamp};

/// `[node]` and `[settings]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub name: Name,
    /// The settings that the configuration file declares. They win, and the API cannot change them.
    pub declared: SettingsPatch,
    /// The configuration file, to name it when the API rejects a change of a declared setting.
    pub file: Option<std::path::PathBuf>,
}

/// The state of this node. `settings` are those in force, declared ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub id: NodeId,
    pub name: Name,
    pub settings: Settings,
    /// The names of the declared settings.
    pub declared: Vec<String>,
    pub drain: Option<DrainState>,
}

impl State {
    /// Whether the operator lets the node admit new sessions: it is enabled and does not drain.
    pub const fn accepts(&self) -> bool {
        self.settings.enabled && self.drain.is_none()
    }
}

/// A drain in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DrainState {
    pub since: Timestamp,
    pub deadline: Option<Deadline>,
    pub stop_sessions: bool,
    pub message: Option<String>,
}

/// What the mesh and the catalogue show of this node's place in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterSigns {
    /// The address of another node with this node's id.
    pub duplicate: Option<String>,
    /// That no seed has ever answered, and why; `None` if one has.
    pub alone: Option<String>,
    /// The nodes that cannot be reached until the operator does something, each with its address and the reason.
    pub failing: Vec<String>,
    /// Nodes with a different mode.
    pub mode_mismatch: Vec<Name>,
    /// Catalogue entries that were changed on both sides of a partition.
    pub conflicts: Vec<String>,
}

/// Why a change was not made. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The configuration file declares this setting.
    #[error("{field} is declared in {file}, key {}; change it there", settings::config_key(field))]
    Declared { field: String, file: String },
    /// A GPU override on a host without a GPU.
    #[error("gpus_override requires at least one physical GPU, and this node has none")]
    NoGpu,
    #[error("cannot write the node's store: {0}")]
    Store(String),
    /// The configuration, or a file that it names, is not valid.
    #[error("{0}")]
    Configuration(String),
    #[error("the daemon is stopping")]
    Stopping,
}

/// Sends requests to the owner of this node's settings.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<Arc<State>>,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A request to the owner.
#[derive(Debug)]
enum Request {
    Patch(SettingsPatch, Actor, Reply<Settings>),
    Drain(DrainRequest, Actor, Reply<DrainState>),
    Undrain(Actor, Reply<()>),
}

impl Handle {
    /// Changes settings. Returns once the change is durable and in force.
    pub async fn patch(&self, patch: SettingsPatch, by: Actor) -> Result<Settings, Error> {
        self.ask(|reply| Request::Patch(patch, by, reply)).await
    }

    /// Starts a drain, or replaces the one in force.
    pub async fn drain(&self, drain: DrainRequest, by: Actor) -> Result<DrainState, Error> {
        self.ask(|reply| Request::Drain(drain, by, reply)).await
    }

    /// Ends the drain. Does nothing without one.
    pub async fn undrain(&self, by: Actor) -> Result<(), Error> {
        self.ask(|reply| Request::Undrain(by, reply)).await
    }

    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

/// A small host, for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use std::sync::Arc;

    use super::State;
    use crate::capacity::Report;
    use crate::types::{BootInstant, Bytes, Cores, Disk, Moment, Resources, Settings, Swap, Timestamp};

    pub(crate) fn moment() -> Moment {
        Moment { wall: Timestamp::from_millis(1_000_000), boot: BootInstant::from_millis(1000), boot_id: 1 }
    }

    /// 6 cores, 6 GiB and 2 GiB of swap.
    pub(crate) fn report() -> Report {
        Report {
            physical: Resources::new(Cores::whole(6), Bytes::gib(6), 0),
            engine: None,
            gpus: Arc::default(),
            gpus_withheld: None,
            utilized: None,
            disks: vec![Disk {
                path: "/".to_owned(),
                total_bytes: Bytes::gib(100),
                free_bytes: Bytes::gib(50),
                inodes: None,
            }],
            swap: Some(Swap { total_bytes: Bytes::gib(2), used_bytes: Bytes::ZERO }),
            load: None,
            pressure: None,
            dev: false,
        }
    }

    pub(crate) fn state() -> State {
        State {
            id: "k3f7q2m5x6a4b7c2".parse().unwrap(),
            name: "n1".parse().unwrap(),
            settings: Settings::default(),
            declared: Vec::new(),
            drain: None,
        }
    }
}
