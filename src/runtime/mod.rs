//! What runs sessions: the one interface that the Docker engine and the embedded
//! process runtime both answer to.
//!
//! A runtime does one step when it is asked and says what it sees. It keeps no
//! opinion of what should be: that is the [lifecycle](crate::sessions::lifecycle)'s.

pub mod container;
pub mod docker;
#[cfg(test)]
pub mod fake;
pub mod process;
mod volume_name;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes as Chunk;
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, watch};

use crate::types::{Bytes, Cores, RuntimeKind, SessionId};

pub use container::{Container, Exit, Found, Launch, Mount, PortBinding, Run};

/// Steps of a session that a runtime can take. Every call has a deadline of its own:
/// an engine that hangs ends in [`Error::Unavailable`].
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    fn kind(&self) -> RuntimeKind;

    /// Whether the engine answers, and what it says of itself.
    fn health(&self) -> watch::Receiver<Health>;

    /// Keeps the link to the engine and says what changed, for the life of the daemon.
    /// It returns only when `events` is closed.
    async fn run(&self, events: mpsc::Sender<Event>);

    /// Every container of this cluster, other nodes' included (they share an engine only by accident).
    async fn list(&self) -> Result<Vec<Found>, Error>;

    async fn observe(&self, session: &SessionId) -> Result<Container, Error>;

    /// Makes the image available as the launch's pull policy says. Answers its digest, where it has one.
    /// Progress goes to `progress` as text for people.
    async fn ensure_image(&self, launch: &Launch, progress: mpsc::Sender<String>) -> Result<Option<String>, Error>;

    /// Which of these images, as workspaces name them, are here.
    async fn present(&self, images: &[String]) -> Result<BTreeSet<String>, Error>;

    /// Creates the container, stopped, under the name made from the session's id. Where one of that
    /// name and session exists already, that one is the answer. Returns the container's id.
    async fn create(&self, launch: &Launch) -> Result<String, Error>;

    async fn start(&self, session: &SessionId) -> Result<(), Error>;

    /// Asks the main process to end, kills it after `grace`, and returns once it is gone.
    async fn stop(&self, session: &SessionId, grace: Duration) -> Result<(), Error>;

    async fn pause(&self, session: &SessionId) -> Result<(), Error>;

    async fn resume(&self, session: &SessionId) -> Result<(), Error>;

    /// Destroys the container, running or not. Named volumes stay. Fine where there is none.
    async fn remove(&self, session: &SessionId) -> Result<(), Error>;

    /// The container's output, oldest first.
    async fn logs(&self, session: &SessionId, request: LogsRequest) -> Result<LogStream, Error>;

    /// Bytes over the session's network since it started; `None` where that cannot be known.
    async fn traffic(&self, session: &SessionId) -> Result<Option<u64>, Error>;

    /// The named volumes of this cluster on this host, by the names that templates gave them.
    async fn volumes(&self) -> Result<Vec<String>, Error>;

    /// Destroys a named volume and what is on it. [`Error::Refused`] while a container uses it.
    async fn remove_volume(&self, name: &str) -> Result<(), Error>;
}

pub type LogStream = BoxStream<'static, io::Result<Chunk>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LogsRequest {
    /// Go on with what comes, until the container ends.
    pub follow: bool,
    /// Only the last lines; `None`: all that is kept.
    pub tail: Option<u32>,
}

/// Whether the engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has not been asked yet.
    Unknown,
    Up(EngineInfo),
    Down {
        message: String,
    },
}

impl Health {
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }
}

/// What the engine says of itself and of the host it runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub version: String,
    pub cores: Cores,
    pub memory: Bytes,
    /// Where images live, if that is a path of this host.
    pub data_root: Option<PathBuf>,
    /// The limits that this host does not let the runtime enforce, in words; empty where it enforces all.
    pub unenforced: Vec<String>,
}

/// What a runtime noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something about this session's container may have changed: look at it.
    Changed(SessionId),
    /// Events may have been missed, or the engine came back: look at everything.
    Relist,
}

/// Why a step was not done. Every variant but `Unavailable` says that nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    /// The engine did not answer in time or at all: what became of the step is not known. Try again.
    #[error("the container engine does not answer: {0}")]
    Unavailable(String),
    #[error("no such container or volume: {0}")]
    NotFound(String),
    /// The image could not be had.
    #[error("{0}")]
    Image(String),
    /// The engine understood and said no.
    #[error("{0}")]
    Refused(String),
}
