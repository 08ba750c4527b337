//! What runs sessions: one interface, which the Docker engine and the embedded
//! process runtime implement.
//!
//! A runtime does one step per call and reports what it sees. It does not decide
//! which step is next: the [lifecycle](crate::sessions::lifecycle) does.

pub mod connections;
pub mod container;
pub mod docker;
#[cfg(test)]
pub mod fake;
pub mod fault;
pub mod gpus;
pub mod images;
pub mod process;
mod volume_name;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes as Chunk;
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, watch};

use images::{DiskUsage, ImageDetails, ImageList, ImageStoreInfo, PullError, PullOptions, PullProgress, Removal};

use crate::types::{Bytes, Cores, ImageReference, Platform, RuntimeKind, SessionId};

pub use connections::Connections;
pub use container::{Container, Exit, Found, Launch, Mount, Observed, Oom, PortBinding, Run};
pub use fault::Fault;
pub use gpus::{GpuSupport, HandOver};

/// The steps of a session that a runtime can take. Every call has its own deadline:
/// when the engine hangs, the call returns [`Error::Unavailable`].
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    fn kind(&self) -> RuntimeKind;

    /// Whether the engine answers, and what it reports about itself.
    fn health(&self) -> watch::Receiver<Health>;

    /// Keeps the link to the engine and sends what changed to `events`, for the life of the daemon.
    /// Returns only when `events` is closed.
    async fn run(&self, events: mpsc::Sender<Event>);

    /// Every container of this cluster, by its labels. It includes those of other nodes, which share an engine only by
    /// mistake. A container that the engine lists and does not describe is in the list, without its state.
    async fn list(&self) -> Result<Vec<Found>, Error>;

    async fn observe(&self, target: &Target) -> Result<Observed, Error>;

    /// Creates the container, stopped, under the name made from the session's id. If a container of that
    /// name and session already exists, uses it. Returns the container's id, by which it is known from then on: its
    /// name is for people, who may change it.
    async fn create(&self, launch: &Launch) -> Result<String, Error>;

    async fn start(&self, target: &Target) -> Result<(), Error>;

    /// Checks that a container that was just started has exactly the GPUs of its session, and kills it otherwise.
    /// Returns what its user should know of them, for people; `None`: nothing.
    ///
    /// # Errors
    /// [`Error::Start`]: it has others, or not all of them.
    async fn verify(&self, _target: &Target, _launch: &Launch) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// Asks the main process to end, kills it after `grace`, and returns once it is gone.
    async fn stop(&self, target: &Target, grace: Duration) -> Result<(), Error>;

    async fn pause(&self, target: &Target) -> Result<(), Error>;

    async fn resume(&self, target: &Target) -> Result<(), Error>;

    /// Destroys the container, running or not. Named volumes stay. Succeeds if there is no container.
    async fn remove(&self, target: &Target) -> Result<(), Error>;

    /// The container's output, oldest first.
    async fn logs(&self, target: &Target, request: LogsRequest) -> Result<LogStream, Error>;

    /// The address of this host at which the published ports of sessions answer.
    fn published_at(&self) -> IpAddr;

    /// Whether anybody is connected to the session's published ports.
    async fn connected(&self, target: &Target, ports: &[PortBinding]) -> Result<Connected, Error>;

    /// The named volumes of this cluster on this host, by the names that templates gave them.
    async fn volumes(&self) -> Result<Vec<String>, Error>;

    /// Destroys a named volume with its content. [`Error::Refused`] while a container uses it.
    async fn remove_volume(&self, name: &str) -> Result<(), Error>;
}

/// The images of one engine: what it can tell of them and do with them. Which are needed, and which are ostler's, the part
/// [`images`](crate::images) decides. Every call has its own deadline.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Grows when the engine tells of a change of its images, and when it may have changed them unheard.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Every image. It can take seconds, so no session waits for it.
    async fn list(&self) -> Result<ImageList, Error>;

    /// The image of this name or id; `None`: there is none.
    async fn inspect(&self, image: &str) -> Result<Option<ImageDetails>, Error>;

    /// Pulls an image, and sends the progress to `progress`. Returns its digest in that registry, if the engine tells.
    async fn pull(
        &self,
        image: &ImageReference,
        options: &PullOptions,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<Option<String>, PullError>;

    /// The images of all containers of the engine, running or stopped, of ostler or not, with their number.
    async fn in_use(&self) -> Result<BTreeMap<String, u32>, Error>;

    /// Removes the image of this id if `names` are exactly its names, and no container or image needs it. Never removes
    /// another image.
    async fn remove(&self, id: &str, names: &[String]) -> Result<Removal, Error>;

    /// The image of this id as an archive, which has no names. It begins at once; an error is an item of the stream, which
    /// then ends.
    fn save(&self, id: &str) -> ByteStream;

    /// Loads the images of an archive. Returns what the engine says that it loaded: an id, or the names of an image.
    async fn load(&self, archive: ByteStream) -> Result<Vec<String>, PullError>;

    /// Gives the image of this id a name, which any other image loses. The name must have a tag.
    async fn tag(&self, id: &str, name: &ImageReference) -> Result<(), Error>;

    /// What else is on the file system of the images. The engine may read every volume for it, so it takes up to a
    /// minute, and nothing but a message for people may wait for it.
    async fn disk_usage(&self) -> Result<DiskUsage, Error>;
}

/// The image of a session, which is available.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provided {
    pub digest: Option<String>,
    /// The id by which the engine finds it; `None`: it finds it as the launch names it.
    pub id: Option<String>,
}

/// Makes the images of sessions available.
#[async_trait]
pub trait ProvideImages: Send + Sync + 'static {
    /// Makes the image available as the launch's pull policy says. Sends the progress to `progress` as text for people.
    async fn ensure(&self, launch: &Launch, progress: mpsc::Sender<String>) -> Result<Provided, Error>;
}

/// For a runtime whose sessions need no images.
pub struct NoImages;

#[async_trait]
impl ProvideImages for NoImages {
    async fn ensure(&self, _: &Launch, _: mpsc::Sender<String>) -> Result<Provided, Error> {
        Ok(Provided::default())
    }
}

/// Names a session's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub session: SessionId,
    /// As [`Runtime::create`] returned it; `None` where it is not known, and the labels tell.
    pub container_id: Option<String>,
}

impl From<&SessionId> for Target {
    /// The session's container, by its labels.
    fn from(session: &SessionId) -> Self {
        Self { session: *session, container_id: None }
    }
}

/// Whether anybody is connected to a session's published ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Connected {
    /// Somebody is, or was within the last seconds.
    Yes,
    #[default]
    No,
    /// It cannot be seen on this host, or the session publishes no port.
    Unknown {
        /// Bytes sent and received on the session's network since it started; `None` if they are not counted.
        bytes: Option<u64>,
    },
}

pub type LogStream = ByteStream;

/// Bytes as they come. An error is the last item.
pub type ByteStream = BoxStream<'static, io::Result<Chunk>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LogsRequest {
    /// Send new output as it is written, until the container ends.
    pub follow: bool,
    /// Only the last lines; `None`: all output that is kept.
    pub tail: Option<u32>,
}

/// Whether the engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each engine")]
pub enum Health {
    /// The runtime has not asked it yet.
    Unknown,
    Up(EngineInfo),
    Down {
        message: String,
        /// It answers, and ostler does not work with such an engine.
        unsupported: bool,
    },
}

impl Health {
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }
}

/// What the engine reports about itself and the host it runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub version: String,
    pub cores: Cores,
    pub memory: Bytes,
    /// Where the engine stores images, if that is a path of this host.
    pub data_root: Option<PathBuf>,
    /// The limits that the runtime cannot enforce on this host, in words; empty if it enforces all.
    pub unenforced: Vec<String>,
    /// Which start of the engine answers: one that starts again may have ended containers. `None`: it cannot be told.
    pub epoch: Option<String>,
    /// The platform of the images that it runs; `None`: it does not say.
    pub platform: Option<Platform>,
    /// The id of its process; `None`: it is not known, or the runtime has no process of its own.
    pub pid: Option<u32>,
    /// How it hands GPUs to containers.
    pub gpus: GpuSupport,
    /// Where it keeps images; `None`: the runtime has no images, or the engine does not name itself.
    pub images: Option<ImageStoreInfo>,
}

/// A change that a runtime noticed without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This session's container may have changed: observe it.
    Changed(SessionId),
    /// Events may be lost, or the engine answers again: list everything.
    Relist,
}

/// Why a step was not done. With every variant but `Unavailable` and `Failed`, nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    /// The engine did not answer, or not in time. The step may have been done or not. Try again.
    #[error("the container engine does not answer: {0}")]
    Unavailable(String),
    /// The engine answers that it could not do the step. It may be able to later.
    #[error("{0}")]
    Failed(String),
    #[error("no such container or volume: {0}")]
    NotFound(String),
    /// The session cannot be started.
    #[error("{message}")]
    Start { fault: Fault, message: String },
    /// The engine understood the call and refused it.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub fn start(fault: Fault, message: impl Into<String>) -> Self {
        Self::Start { fault, message: message.into() }
    }
}
