//! The images of this host: there when a session needs them, and only ostler's own removed.
//!
//! [`ownership`] (pure) says which images are ostler's: it records every pull before it begins. [`pulls`] (pure) says
//! which pull is next, and how long a registry that limits pulls is left alone; [`credentials`] says who pulls, and
//! [`offers`] (pure) which image of another node is taken. [`give`] gives images to other nodes, and [`archive`] leaves out
//! of them what the other node has. [`policy`] (pure) says which images a prune removes, and [`pressure`] (pure) when the
//! disk is too full. [`here`] tells placement which images of the catalogue are here, [`fetch`] does what the leader asks
//! for, and [`inventory`] (pure) tells people of every image and who uses it. [`task`] owns all of it: it runs the pulls and
//! the prunes, keeps a list of the engine's images, and publishes a [`Snapshot`].

pub mod archive;
pub mod bandwidth;
pub mod credentials;
#[cfg(test)]
pub(crate) mod fake;
pub mod fetch;
pub mod give;
pub mod here;
pub mod inventory;
mod metrics;
pub mod offers;
pub mod ownership;
pub mod policy;
pub mod pressure;
mod provide;
pub mod pulls;
mod reserve;
mod room;
pub mod shortage;
pub mod store;
pub mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::runtime::images::{ImageDetails, ImageStoreInfo, ListedImage, PullError, PullProgress};
use crate::runtime::{self, ByteStream, Health, Images};
use crate::store::{Cause, MovedAside};
use crate::types::{
    Actor, BootInstant, Bytes, FromPeers, ImageReference, Moment, Name, NodeId, NodeImages, Prune, PruneReport,
    Timestamp,
};
use crate::{catalogue, sessions};
pub use metrics::Metrics;
use offers::{Offer, Refusal, Wanted};
use ownership::{Fetched, Records};
use pressure::Watermarks;
use pulls::Urgency;

/// Requests that wait for the owner. Beyond it callers are told that it is busy.
const QUEUE: usize = 256;
/// [`Config::max_pulls`] at most: an engine pulls three layers of each image at once.
pub const MAX_PULLS: u32 = 32;
const HOUR: Duration = Duration::from_secs(3600);

/// `[images]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Pulls at the same time.
    pub max_pulls: u32,
    /// A file in the format of Docker's `config.json`; `None`: no registry is told who pulls.
    pub registry_credentials: Option<PathBuf>,
    /// Whether images come from other nodes, and go to them.
    pub from_peers: FromPeers,
    /// Bytes a second that are sent to other nodes at most; 0: no limit.
    pub peer_bandwidth: Bytes,
    /// No prune removes an image that was pulled or used within this time.
    pub min_age: Duration,
    /// Between two prunes; zero: only a person or a full disk prunes.
    pub prune_interval: Duration,
    pub watermarks: Watermarks,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // As Docker's own client of several images; each takes three layers at once.
            max_pulls: 2,
            registry_credentials: None,
            from_peers: FromPeers::Fallback,
            peer_bandwidth: Bytes::ZERO,
            min_age: HOUR,
            prune_interval: HOUR,
            // Those of Kubernetes are 85 and 80: an image of a desktop is larger.
            watermarks: Watermarks { high: 85, low: 75 },
        }
    }
}

/// The images of the catalogue that a host has, as workspaces name them; and of those that came from a registry, what it
/// gave under that name.
pub type Here = BTreeMap<String, Option<Checked>>;

/// The last answer of a registry about one of its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// `None`: the engine did not tell.
    pub digest: Option<String>,
    /// By the wall clock of the host.
    pub at: Timestamp,
}

/// What everybody may read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The engine's image store; `None`: no engine has answered yet.
    pub store: Option<ImageStoreInfo>,
    /// Every image of the engine, as last listed; `None`: not listed yet since the agent started.
    pub images: Option<Arc<[ListedImage]>>,
    pub records: Arc<Records>,
    /// The images that are being removed. A session that needs one waits until it is gone.
    pub removing: BTreeSet<String>,
    /// The pulls that wait or run.
    pub pulling: BTreeSet<ImageReference>,
    /// How each of them goes.
    pub pulls: BTreeMap<ImageReference, watch::Receiver<Pull>>,
    /// When `images` was listed.
    pub listed_at: Option<Timestamp>,
    /// How many containers used each image, by its id, when it was listed; `None`: not known.
    pub containers: Option<Arc<BTreeMap<String, u32>>>,
    /// The last uses of images that the records do not have yet, by id.
    pub used: BTreeMap<String, Moment>,
    /// The registries that limit pulls, and about when the next pull from each is.
    pub limited: BTreeMap<String, Timestamp>,
    /// The records could not be read at start: every image that is here counts as foreign.
    pub records_lost: Option<MovedAside>,
    /// The file system of the images is above the high watermark, and the last prune could not help it.
    pub disk_pressure: Option<String>,
}

impl Snapshot {
    /// What a registry gave under this name, if the name still means that image. `None`: no registry may replace it.
    pub fn fetched(&self, id: &str, reference: &ImageReference) -> Option<&Fetched> {
        self.records.fetched(&self.store.as_ref()?.store, id, reference)
    }

    /// The id of the image of this digest, if the records have it.
    pub fn of_digest(&self, reference: &ImageReference) -> Option<&str> {
        self.records.of_digest(&self.store.as_ref()?.store, reference)
    }

    /// Whether an image is ostler's.
    pub fn is_ours(&self, image: &ListedImage) -> bool {
        self.store.as_ref().is_some_and(|info| self.records.is_ours(&info.store, &image.id, &image.names))
    }

    /// Whether a pull may give this name to another image: the name came from a registry, or is ostler's. A digest means
    /// the same image for ever, so that no pull replaces it.
    pub fn may_replace(&self, id: &str, reference: &ImageReference) -> bool {
        let is_free = |info: &ImageStoreInfo| self.records.may_replace(&info.store, id, reference);
        reference.digest().is_some() || self.store.as_ref().is_some_and(is_free)
    }

    /// The image that a reference means, as last listed.
    pub fn meant(&self, reference: &ImageReference) -> Option<&ListedImage> {
        self.images.iter().flat_map(|images| images.iter()).find(|image| reference.names(&image.names, &image.digests))
    }
}

/// Why a request was not done. Nothing changed, except where the variant says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    #[error("no image {0} on this node")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// A pull could replace an image that came from no registry.
    #[error(
        "image {image} on node {node} was not pulled by ostler, and a pull could replace it: adopt it first: \
         ostler image adopt {image} {node}"
    )]
    NotPulled { image: ImageReference, node: Name },
    #[error("{0}")]
    Pull(#[from] PullError),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error("the change cannot be stored: {0}")]
    Store(#[source] Cause),
    /// The node has no images: its runtime is `process`.
    #[error("this node runs sessions as processes and has no images")]
    NoImages,
    #[error("too many requests are waiting")]
    Busy,
    /// The owner has ended: the daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What can be asked of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// It is ostler's from now on, with its names: a prune may remove it.
    Adopt,
    /// No prune removes it.
    Pin,
    /// Prunes may remove it again.
    Unpin,
}

/// What the hosts of a cluster tell one another of registries, by way of their leader.
#[async_trait]
pub trait Neighbours: Send + Sync + 'static {
    /// Tells that a registry limits pulls, and how long this host leaves it alone.
    async fn tell(&self, registry: &str, pause: Duration);

    /// How long a registry is to be left alone, by what other hosts told. `None`: not at all, or no leader answers.
    async fn ask(&self, registry: &str) -> Option<Duration>;
}

/// For a node that has no cluster.
pub struct NoNeighbours;

#[async_trait]
impl Neighbours for NoNeighbours {
    async fn tell(&self, _: &str, _: Duration) {}

    async fn ask(&self, _: &str) -> Option<Duration> {
        None
    }
}

/// What a leader has a host do about an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fetch {
    /// Pull it if it is not here.
    Missing,
    /// Pull it if it is here and came from a registry, which may have a newer one.
    Refresh,
    /// Pull nothing. The registry gave this digest to another node: an image that has it is the newest.
    Checked { digest: String },
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fetching {
    /// It is done.
    Done,
    /// The pull waits or runs. The same request waits for it.
    Runs,
}

/// How a pull goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pull {
    /// It waits for its turn.
    Waiting,
    /// It waits because its registry limits pulls.
    Limited {
        registry: String,
        until: BootInstant,
    },
    Running(PullProgress),
    /// It comes from another node.
    Copying {
        node: String,
        copied: Bytes,
        size: Bytes,
    },
    /// The image is here; or why it is not.
    Ended(Result<(), PullError>),
}

/// A request to the owner.
pub enum Request {
    /// Joins the pull of this image, or starts one.
    Pull(ImageReference, Urgency, oneshot::Sender<watch::Receiver<Pull>>),
    /// A session is made from this image.
    Used(String),
    /// Somebody looks at the list of the images.
    Look,
    /// Another node asked the registry, which gives this digest under the name.
    Checked { image: ImageReference, digest: String },
    /// The image by name, id, or a prefix of its id.
    Change { image: String, command: Command, by: Actor, reply: oneshot::Sender<Result<ImageDetails, Error>> },
    /// `mode`: for this once; `None`: the node's setting.
    Prune { mode: Option<Prune>, dry_run: bool, by: Actor, reply: oneshot::Sender<Result<PruneReport, Error>> },
}

/// `limits.min_free_disk`, as it is now.
pub type MinFree = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// The other nodes, which may have images.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Those that may answer, with their names. Those that answer soonest come first.
    fn nodes(&self) -> Vec<(NodeId, String)>;

    /// What the node offers under this name. `None`: nothing, or it does not answer.
    async fn offer(&self, node: &NodeId, image: &ImageReference) -> Option<Offer>;

    /// The archive of an image.
    async fn take(&self, node: &NodeId, wanted: Wanted) -> Result<ByteStream, NotGiven>;
}

/// Why another node gave no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotGiven {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// With the cause.
    #[error("{0}")]
    Unanswered(String),
}

/// Asks the owner of the images. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    engine: Arc<dyn Images>,
    health: watch::Receiver<Health>,
    clock: Clock,
    metrics: Metrics,
}

impl Handle {
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// To wait for the images to change.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Joins the pull of an image, or starts one. It goes on when nobody waits for it.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Stopping`].
    pub async fn pull(&self, image: &ImageReference, urgency: Urgency) -> Result<watch::Receiver<Pull>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Pull(image.clone(), urgency, reply))?;
        answer.await.map_err(|_| Error::Stopping)
    }

    /// Changes one image. A change that it has already succeeds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn command(&self, image: &str, command: Command, by: Actor) -> Result<ImageDetails, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Change { image: image.to_owned(), command, by, reply })?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    /// The images of this node, called `node`, with those who use them: as last listed, without asking the engine.
    pub fn inventory(&self, node: &Name, catalogue: &catalogue::Snapshot, sessions: &sessions::Snapshot) -> NodeImages {
        // The next look may see more. If the owner is busy, it lists soon anyway.
        let _ = self.send(Request::Look);
        let snapshot = self.snapshot();
        let pulls =
            snapshot.pulls.iter().map(|(image, pull)| (image.clone(), pull.borrow().clone())).collect::<Vec<_>>();
        inventory::inventory(inventory::Inputs { node, images: &snapshot, pulls: &pulls, catalogue, sessions })
    }

    /// Pulls an image for a person, or joins its pull. Returns the id of the image that has the name until then, too.
    ///
    /// # Errors
    /// [`Error::NotPulled`]: the image that has the name came from no registry.
    pub async fn pull_for(
        &self,
        image: &ImageReference,
        node: &Name,
        by: &Actor,
    ) -> Result<(watch::Receiver<Pull>, Option<String>), Error> {
        let here = self.look(image).await?.map(|here| here.id);
        if here.as_ref().is_some_and(|id| !self.snapshot().may_replace(id, image)) {
            return Err(Error::NotPulled { image: image.clone(), node: node.clone() });
        }
        let pull = self.pull(image, Urgency::Demand).await?;
        tracing::info!(%image, %by, "pull of an image requested");
        Ok((pull, here))
    }

    /// The id of the image that has this name now.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn id_of(&self, image: &ImageReference) -> Result<Option<String>, Error> {
        Ok(self.look(image).await?.map(|here| here.id))
    }

    /// Prunes the images once, or tells what a prune would do. `mode`: `None`: the node's setting. It goes on when nobody
    /// waits for it.
    ///
    /// # Errors
    /// [`Error::Conflict`]: a prune runs already. [`Error::Runtime`]: the engine cannot list its images.
    pub async fn prune(&self, mode: Option<Prune>, dry_run: bool, by: Actor) -> Result<PruneReport, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Prune { mode, dry_run, by, reply })?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    fn send(&self, request: Request) -> Result<(), Error> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Stopping,
        })
    }
}
