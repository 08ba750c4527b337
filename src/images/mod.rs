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
pub mod offers;
pub mod ownership;
pub mod policy;
pub mod pressure;
pub mod pulls;
mod reserve;
mod room;
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
use crate::runtime::images::{ImageDetails, ImageStoreInfo, ListedImage, PullCause, PullError, PullProgress};
use crate::runtime::{self, ByteStream, Fault, Health, Images, Launch, ProvideImages};
use crate::store::{Cause, MovedAside};
use crate::types::{
    Actor, BootInstant, Bytes, FromPeers, ImageReference, Moment, Name, NodeId, NodeImages, Platform, Prune,
    PruneReport, PullPolicy, Timestamp,
};
use crate::{catalogue, sessions};
use offers::{Offer, Refusal, Wanted};
use ownership::{Fetched, Records};
use pressure::Watermarks;
use pulls::Urgency;

/// Requests that wait for the owner. Beyond it callers are told that it is busy.
const QUEUE: usize = 256;
/// [`Config::max_pulls`] at most: an engine pulls three layers of each image at once.
pub const MAX_PULLS: u32 = 32;
/// A node asks the registry about a [`PullPolicy::Daily`] image by itself once nobody did for so long. The leader has the
/// cluster ask once a day: the hours beyond it are for its turns, and for a new leader.
const ASK_AFTER: Duration = Duration::from_secs(27 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
/// How often a caller that waits for a pull passes its progress on.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// How long a session waits for a registry that limits pulls. It is the user that waits: beyond it an error is better.
const LIMIT_PATIENCE: Duration = Duration::from_secs(600);
/// How often a caller that waits for a registry is told how long it still waits.
const COUNTDOWN_EVERY: Duration = Duration::from_secs(5);

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
    /// Those that are alive, with their names. Those that can be asked soonest come first.
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
}

impl Handle {
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

    /// The image, once it is here and as the policy says.
    async fn make_available(
        &self,
        image: &ImageReference,
        policy: PullPolicy,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        let Some(here) = self.look(image).await? else {
            return self.pull_now(image, progress).await;
        };
        if !self.runs_here(&here) && self.snapshot().fetched(&here.id, image).is_some() {
            return self.replace_platform(image, here, progress).await;
        }
        // A digest means the same image for ever.
        if policy == PullPolicy::Missing || image.digest().is_some() {
            return Ok(here);
        }
        // What came from no registry is never replaced by what a registry has under that name.
        let Some(asked_at) = self.snapshot().fetched(&here.id, image).map(Fetched::asked_at) else {
            return Ok(here);
        };
        if policy == PullPolicy::Always {
            return self.refresh_now(image, here, progress).await;
        }
        if self.clock.now().since(asked_at) >= ASK_AFTER {
            // The session does not wait for it. If the owner is busy, the next session asks again.
            let _ = self.pull(image, Urgency::Refresh).await;
        }
        Ok(here)
    }

    async fn pull_now(
        &self,
        image: &ImageReference,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        self.pull_and_wait(image, progress, LIMIT_PATIENCE).await?;
        let removed = || runtime::Error::start(Fault::Host, format!("image {image} was removed right after its pull"));
        self.look(image).await?.ok_or_else(removed)
    }

    /// The registry gave an image for another platform. It may have one for this host now; if it has none, the image that
    /// is here tells why the session does not start.
    async fn replace_platform(
        &self,
        image: &ImageReference,
        here: ImageDetails,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        match self.pull_now(image, progress).await {
            Err(runtime::Error::Start { fault: Fault::Image, .. }) => Ok(here),
            pulled => pulled,
        }
    }

    /// Pulls the image; if that fails, or would have to wait for the registry, uses the one that is here.
    async fn refresh_now(
        &self,
        image: &ImageReference,
        here: ImageDetails,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        if let Err(error) = self.pull_and_wait(image, progress, Duration::ZERO).await {
            tracing::warn!(%image, "cannot refresh the image, using the local one: {error}");
            return Ok(here);
        }
        Ok(self.look(image).await?.unwrap_or(here))
    }

    /// The image, if it is here and is not being removed.
    async fn look(&self, image: &ImageReference) -> Result<Option<ImageDetails>, runtime::Error> {
        let mut snapshot = self.snapshot.clone();
        loop {
            let Some(here) = self.engine.inspect(image.as_str()).await? else { return Ok(None) };
            let is_going = |snapshot: &Arc<Snapshot>| snapshot.removing.contains(&here.id);
            if !is_going(&snapshot.borrow_and_update()) {
                return Ok(Some(here));
            }
            let stopping = |_| runtime::Error::Unavailable("the daemon is stopping".to_owned());
            snapshot.wait_for(|snapshot| !is_going(snapshot)).await.map_err(stopping)?;
        }
    }

    /// Pulls, or joins a pull that runs, and sends its progress until it ends. Waits for a registry that limits pulls for
    /// as long as `patience`.
    async fn pull_and_wait(
        &self,
        image: &ImageReference,
        progress: &mpsc::Sender<String>,
        patience: Duration,
    ) -> Result<(), runtime::Error> {
        let joined = self.pull(image, Urgency::Demand).await;
        let mut pull = joined.map_err(|error| runtime::Error::Unavailable(error.to_string()))?;
        // When it first had to wait for the registry.
        let mut held: Option<BootInstant> = None;
        loop {
            let now = pull.borrow_and_update().clone();
            let mut pause = PROGRESS_EVERY;
            let text = match &now {
                Pull::Ended(result) => return result.clone().map_err(runtime::Error::from),
                Pull::Waiting => "waiting for other pulls".to_owned(),
                Pull::Running(now) => now.to_string(),
                Pull::Limited { registry, until } => {
                    let now = self.clock.now().boot;
                    let left = patience.saturating_sub(now.since(*held.get_or_insert(now)));
                    let text = limited(registry, until.since(now));
                    if left.is_zero() {
                        let message = format!("cannot pull {image}: {text}");
                        return Err(PullError { cause: PullCause::Limited, message }.into());
                    }
                    pause = left.min(COUNTDOWN_EVERY);
                    text
                }
                Pull::Copying { node, copied, size } => format!("copying {copied} of {size} from node {node}"),
            };
            // A receiver that is behind misses this progress; the next one replaces it anyway.
            drop(progress.try_send(text));
            let is_limited = matches!(now, Pull::Limited { .. });
            wait(&mut pull, is_limited, pause).await.map_err(|_| aborted(image))?;
        }
    }
}

/// Returns when there may be news. A pull that runs has news at most once a `pause`; a limit counts down meanwhile.
async fn wait(
    pull: &mut watch::Receiver<Pull>,
    is_limited: bool,
    pause: Duration,
) -> Result<(), watch::error::RecvError> {
    if is_limited {
        return tokio::time::timeout(pause, pull.changed()).await.unwrap_or(Ok(()));
    }
    pull.changed().await?;
    let ended = pull.wait_for(|pull| matches!(pull, Pull::Ended(_) | Pull::Limited { .. }));
    let _ = tokio::time::timeout(pause, ended).await;
    Ok(())
}

fn aborted(image: &ImageReference) -> runtime::Error {
    PullError { cause: PullCause::Other, message: format!("the pull of {image} was aborted") }.into()
}

fn limited(registry: &str, left: Duration) -> String {
    let next = match left.as_secs() {
        0 => "soon".to_owned(),
        seconds @ ..120 => format!("in {seconds} s"),
        seconds => format!("in {} min", seconds / 60),
    };
    format!("registry {registry} limits pulls (429); next try {next}")
}

#[async_trait]
impl ProvideImages for Handle {
    async fn ensure(&self, launch: &Launch, progress: mpsc::Sender<String>) -> Result<Option<String>, runtime::Error> {
        let text = launch.image.as_deref();
        let none = || runtime::Error::start(Fault::Workspace, "the Docker runtime needs an image");
        let parsed = ImageReference::parse(text.ok_or_else(none)?);
        let image = parsed.map_err(|odd| runtime::Error::start(Fault::Image, odd))?;
        let here = self.make_available(&image, launch.pull, &progress).await?;
        check_platform(&image, here.platform.as_ref(), platform_of(&self.health).as_ref())?;
        // If the owner is busy, the image seems a little older than it is.
        let _ = self.send(Request::Used(here.id.clone()));
        Ok(Some(self.digest(&image, &here)))
    }
}

impl Handle {
    fn runs_here(&self, image: &ImageDetails) -> bool {
        runs(image, platform_of(&self.health).as_ref())
    }

    /// The digest that is told of a session's image: that of its own repository, or the image's id.
    fn digest(&self, image: &ImageReference, here: &ImageDetails) -> String {
        let fetched = || self.snapshot().fetched(&here.id, image).and_then(|fetched| fetched.digest.clone());
        let own = || image.own_digests(&here.digests).next().map(str::to_owned);
        image.digest().map(str::to_owned).or_else(fetched).or_else(own).unwrap_or_else(|| here.id.clone())
    }
}

/// The platform of the engine's images, if it is up and says so.
fn platform_of(health: &watch::Receiver<Health>) -> Option<Platform> {
    match &*health.borrow() {
        Health::Up(info) => info.platform.clone(),
        Health::Unknown | Health::Down { .. } => None,
    }
}

/// Whether this host can execute the image's programs, as far as is known.
fn runs(image: &ImageDetails, host: Option<&Platform>) -> bool {
    image.platform.as_ref().zip(host).is_none_or(|(needs, host)| host.runs(needs))
}

/// Refuses an image whose programs this host cannot execute: a container of it would end at once, without a word.
fn check_platform(
    image: &ImageReference,
    needs: Option<&Platform>,
    host: Option<&Platform>,
) -> Result<(), runtime::Error> {
    match (needs, host) {
        (Some(needs), Some(host)) if !host.runs(needs) => {
            let message = format!("image {image} is for {needs}, and this host runs {host}");
            Err(runtime::Error::start(Fault::Platform { image: needs.clone() }, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_with_the_time_that_is_left() {
        let text = |seconds| limited("docker.io", Duration::from_secs(seconds));
        assert_eq!(text(55), "registry docker.io limits pulls (429); next try in 55 s");
        assert_eq!(text(1799), "registry docker.io limits pulls (429); next try in 29 min");
        assert_eq!(text(0), "registry docker.io limits pulls (429); next try soon");
    }

    #[test]
    fn an_image_of_another_platform_is_refused_and_both_are_named() {
        let (amd64, arm64) = (Platform::new("linux", "x86_64"), Platform::new("linux", "aarch64"));
        let image = ImageReference::parse("x").unwrap();
        let check = |needs, host| check_platform(&image, needs, host);
        assert_eq!(check(Some(&amd64), Some(&amd64)), Ok(()));
        assert_eq!((check(None, Some(&amd64)), check(Some(&arm64), None)), (Ok(()), Ok(())));
        let Err(runtime::Error::Start { fault, message }) = check(Some(&arm64), Some(&amd64)) else {
            panic!("it cannot run")
        };
        assert_eq!(fault, Fault::Platform { image: arm64 });
        assert_eq!(message, "image x:latest is for linux/arm64, and this host runs linux/amd64");
    }
}
