//! Takes an image from another node.
//!
//! The engine loads one archive, however often the stream from the other node breaks: [`Splice`] joins the tries.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::pulling;
use crate::images::archive::pipe::{self, Writer};
use crate::images::archive::splice::Splice;
use crate::images::offers::{self, Offer, Place, Refusal, Wanted};
use crate::images::ownership::Origin;
use crate::images::pulls::Via;
use crate::images::{Config, MinFree, NotGiven, Peers, Pull, room};
use crate::retry::Pauses;
use crate::runtime::images::{ImageStoreKind, PullCause, PullError};
use crate::runtime::{self, ByteStream, Images};
use crate::types::{Bytes, FromPeers, ImageReference, NodeId, Platform};

/// Nodes that are asked for an offer at most: of a larger cluster some have the image if any does, mostly.
const ASKED: usize = 8;
/// Images taken at the same time: the engine writes a copy of each to its disk first.
const DOWNLOADS: usize = 1;
/// How often a stream that broke is begun anew.
const ANEW: usize = 3;
/// How long a node may take to begin anew: its agent may be starting. It is less than the engine waits for a byte.
const BEGIN_WITHIN: Duration = Duration::from_secs(40);
/// A stream breaks if no byte comes for this long. Before the first byte, the other node's engine writes a copy.
const STALL: Duration = Duration::from_secs(60);
const FIRST_BYTE: Duration = Duration::from_secs(8 * 60);
/// How long the engine may take to say why it takes no more of an archive.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How long a pull waits for other nodes, and how often it asks. If the registry was not asked yet, it waits less.
const BEFORE_REGISTRY: Patience = Patience { busy: Duration::from_secs(20), offer: Duration::ZERO };
const INSTEAD_OF_REGISTRY: Patience = Patience { busy: Duration::from_secs(15 * 60), offer: Duration::from_secs(2) };
const BUSY_EVERY: Duration = Duration::from_secs(2);
const OFFER_EVERY: Duration = Duration::from_millis(500);
/// Images of this node whose layers are compared at most: the engine is asked about each.
const COMPARED: usize = 200;

struct Patience {
    /// For nodes that give images to others, which takes minutes.
    busy: Duration,
    /// For an offer: a node gives an image only after it has heard of its workspace, which may be new.
    offer: Duration,
}

/// How a pull ended.
#[derive(Debug)]
pub(super) struct Tried {
    /// What the registry answered; `None`: it was not asked.
    pub(super) registry: Option<Result<(), PullCause>>,
    pub(super) brought: Result<Brought, PullError>,
}

/// What a pull brought.
#[derive(Debug)]
pub(super) struct Brought {
    /// `None`: the image that the engine has under the name now.
    pub(super) id: Option<String>,
    pub(super) digest: Option<String>,
    pub(super) origin: Origin,
    /// The name is from a registry.
    pub(super) fetched: bool,
    /// The node that gave it.
    pub(super) node: Option<String>,
}

/// The images that are here, when a pull begins.
#[derive(Debug, Clone)]
pub(super) struct Here {
    pub(super) place: Place,
    pub(super) path: Option<PathBuf>,
    pub(super) ids: BTreeSet<String>,
}

/// Pulls images, from a registry or from another node.
pub(super) struct Source {
    pub(super) engine: Arc<dyn Images>,
    pub(super) config: watch::Receiver<Config>,
    pub(super) others: Others,
    downloads: Semaphore,
}

/// The other nodes, and what of this node bounds a copy.
pub struct Others {
    pub peers: Arc<dyn Peers>,
    pub min_free: MinFree,
}

impl Others {
    /// There are none.
    pub fn none() -> Self {
        Self { peers: Arc::new(Nobody), min_free: Arc::new(|| Bytes::ZERO) }
    }
}

struct Nobody;

#[async_trait]
impl Peers for Nobody {
    fn nodes(&self) -> Vec<(NodeId, String)> {
        Vec::new()
    }

    async fn offer(&self, _: &NodeId, _: &ImageReference) -> Option<Offer> {
        None
    }

    async fn take(&self, _: &NodeId, _: Wanted) -> Result<ByteStream, NotGiven> {
        Err(Refusal::NotHere.into())
    }
}

/// Why an image did not come from another node.
enum NotCopied {
    Busy,
    /// Another node may give it all the same.
    There(String),
    /// No node can help.
    Here(PullError),
}

/// Why an archive did not pass whole.
enum Unsent {
    /// The engine took no more.
    Refused,
    Broke(String),
}

impl Source {
    pub(super) fn new(engine: Arc<dyn Images>, config: watch::Receiver<Config>, others: Others) -> Arc<Self> {
        Arc::new(Self { engine, config, others, downloads: Semaphore::new(DOWNLOADS) })
    }

    /// Whether images may come from other nodes.
    pub(super) fn may_copy(&self) -> bool {
        let is_off = self.config.borrow().from_peers == FromPeers::Off;
        !is_off && !self.others.peers.nodes().is_empty()
    }

    /// Brings an image here, for the platform of the host. `here`: what is here, if the image may come from another node.
    pub(super) async fn bring(
        &self,
        image: &ImageReference,
        via: Via,
        here: Option<Here>,
        host: Option<Platform>,
        report: &watch::Sender<Pull>,
    ) -> Tried {
        let here = here.filter(|_| self.may_copy());
        if via == Via::Peers {
            return Tried { registry: None, brought: self.copy_instead(image, here, limited(image), report).await };
        }
        let mode = self.config.borrow().from_peers;
        let mut not_copied = None;
        if let (FromPeers::Prefer, Some(here)) = (mode, &here) {
            match self.copy(image, here, BEFORE_REGISTRY, report).await {
                Ok(brought) => return Tried { registry: None, brought: Ok(brought) },
                Err(error) => not_copied = Some(error),
            }
        }
        let refused = match self.pull(image, host, report).await {
            Ok(digest) => {
                let brought = Brought { id: None, digest, origin: Origin::Registry, fetched: true, node: None };
                return Tried { registry: Some(Ok(())), brought: Ok(brought) };
            }
            Err(error) => error,
        };
        let registry = Some(Err(refused.cause));
        let brought = match not_copied {
            Some(error) => Err(both(refused, &error)),
            None if offers::is_reason(refused.cause) => self.copy_instead(image, here, refused, report).await,
            None => Err(refused),
        };
        Tried { registry, brought }
    }

    /// Takes an image from another node, since its registry did not give it.
    async fn copy_instead(
        &self,
        image: &ImageReference,
        here: Option<Here>,
        refused: PullError,
        report: &watch::Sender<Pull>,
    ) -> Result<Brought, PullError> {
        let Some(here) = here else { return Err(refused) };
        tracing::info!(%image, "asking the other nodes for the image: {refused}");
        self.copy(image, &here, INSTEAD_OF_REGISTRY, report).await.map_err(|error| both(refused, &error))
    }

    /// Pulls an image from its registry. Returns its digest there, if the engine tells.
    async fn pull(
        &self,
        image: &ImageReference,
        host: Option<Platform>,
        report: &watch::Sender<Pull>,
    ) -> Result<Option<String>, PullError> {
        let file = self.config.borrow().registry_credentials.clone();
        let options = pulling::options(&*self.engine, image, file, host).await?;
        pulling::pull(&*self.engine, image, &options, report).await
    }

    /// Takes an image from the first node that gives it.
    async fn copy(
        &self,
        image: &ImageReference,
        here: &Here,
        patience: Patience,
        report: &watch::Sender<Pull>,
    ) -> Result<Brought, PullError> {
        let (begun, mut failed) = (Instant::now(), Vec::new());
        loop {
            report.send_replace(Pull::Waiting);
            let offers = self.offers(image, here, &failed).await;
            if offers.is_empty() && failed.is_empty() && begun.elapsed() < patience.offer {
                sleep(OFFER_EVERY).await;
                continue;
            }
            // It is never closed.
            let download = self.downloads.acquire().await;
            let mut is_busy = false;
            for (node, name, offer) in offers {
                match self.copy_from(&node, &name, &offer, image, here, report).await {
                    Ok(()) => {
                        tracing::info!(%image, id = offer.id, node = name, "took the image from another node");
                        let Offer { id, digest, fetched, .. } = offer;
                        return Ok(Brought { id: Some(id), digest, origin: Origin::Peer, fetched, node: Some(name) });
                    }
                    Err(NotCopied::Busy) => is_busy = true,
                    Err(NotCopied::There(reason)) => {
                        tracing::warn!(%image, node = name, "cannot take the image from the node: {reason}");
                        failed.push((node, format!("node {name}: {reason}")));
                    }
                    Err(NotCopied::Here(error)) => return Err(error),
                }
            }
            drop(download);
            if !is_busy || begun.elapsed() >= patience.busy {
                return Err(none_gave(&failed, is_busy));
            }
            report.send_replace(Pull::Waiting);
            sleep(BUSY_EVERY).await;
        }
    }

    /// The offers that can be taken, but not of those that failed.
    async fn offers(
        &self,
        image: &ImageReference,
        here: &Here,
        failed: &[(NodeId, String)],
    ) -> Vec<(NodeId, String, Offer)> {
        let mut nodes = self.others.peers.nodes();
        nodes.retain(|(node, _)| !failed.iter().any(|(other, _)| other == node));
        nodes.truncate(ASKED);
        let asked = nodes.into_iter().map(|(node, name)| async move {
            let offer = self.others.peers.offer(&node, image).await?;
            Some(((node, name), offer))
        });
        let offered = join_all(asked).await.into_iter().flatten().collect();
        let usable = offers::usable(offered, image, &here.place).into_iter();
        usable.map(|((node, name), offer)| (node, name, offer)).collect()
    }

    async fn copy_from(
        &self,
        node: &NodeId,
        name: &str,
        offer: &Offer,
        image: &ImageReference,
        here: &Here,
        report: &watch::Sender<Pull>,
    ) -> Result<(), NotCopied> {
        if !here.ids.contains(&offer.id) {
            // The engine's own copy of the archive, and the image.
            let needs = Bytes::new(offer.size.get().saturating_mul(2));
            let least = (self.others.min_free)();
            room::check(here.path.clone(), needs, least).await.map_err(|message| {
                NotCopied::Here(PullError {
                    cause: PullCause::DiskFull,
                    message: format!("cannot copy {image}: {message}"),
                })
            })?;
            let wanted = Wanted {
                image: image.clone(),
                id: offer.id.clone(),
                layers: self.left_out(offer, here).await,
                entries: BTreeSet::new(),
            };
            let told = self.load(node, name, wanted, offer.size, report).await?;
            self.check(&told, &offer.id, here).await?;
        }
        self.name(image, offer, here).await
    }

    /// The layers of the offer that are here. An engine of containerd does not tell which it has.
    async fn left_out(&self, offer: &Offer, here: &Here) -> BTreeSet<String> {
        if here.place.store == ImageStoreKind::Containerd {
            return BTreeSet::new();
        }
        let mut layers = Vec::new();
        for id in here.ids.iter().take(COMPARED) {
            if let Ok(Some(details)) = self.engine.inspect(id).await {
                layers.push(details.layers);
            }
        }
        offers::left_out(&offer.layers, layers.iter().map(Vec::as_slice))
    }

    /// Has the engine load what the other node sends. Returns what the engine says that it loaded.
    async fn load(
        &self,
        node: &NodeId,
        name: &str,
        wanted: Wanted,
        size: Bytes,
        report: &watch::Sender<Pull>,
    ) -> Result<Vec<String>, NotCopied> {
        // The engine is not asked before the other node gives.
        let first = self.begin(node, &wanted).await?;
        let (writer, archive) = pipe::to_task();
        let mut sent = pin!(self.send(node, wanted, first, writer, |copied: u64| {
            let copied = Bytes::new(copied).min(size);
            report.send_replace(Pull::Copying { node: name.to_owned(), copied, size });
        }));
        let mut loading = self.engine.load(archive);
        let mut is_sent = false;
        let loaded = loop {
            tokio::select! {
                biased;
                ended = &mut sent, if !is_sent => {
                    match ended {
                        Ok(()) => is_sent = true,
                        Err(Unsent::Broke(reason)) => return Err(NotCopied::There(reason)),
                        Err(Unsent::Refused) => return Err(NotCopied::Here(last_word(loading).await)),
                    }
                }
                loaded = &mut loading => break loaded,
            }
        };
        loaded.map_err(NotCopied::Here)
    }

    /// Passes the archive on to `writer`, in as many tries as it takes.
    async fn send(
        &self,
        node: &NodeId,
        mut wanted: Wanted,
        first: ByteStream,
        writer: Writer,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<(), Unsent> {
        let (mut splice, mut stream, mut copied, mut anew) = (Splice::new(writer), first, 0, 0);
        loop {
            let (filler, reader) = pipe::to_thread();
            let thread = spawn_blocking(move || {
                let taken = splice.take(reader);
                (splice, taken)
            });
            let count = |size: usize| {
                copied += u64::try_from(size).unwrap_or(0);
                progress(copied);
            };
            filler.fill(impatient(stream), count).await;
            let (back, taken) = thread.await.map_err(|error| Unsent::Broke(error.to_string()))?;
            splice = back;
            let Err(error) = taken else { break };
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Err(Unsent::Refused);
            }
            if anew == ANEW {
                return Err(Unsent::Broke(format!("the stream broke: {error}")));
            }
            anew += 1;
            wanted.entries = splice.arrived().into_iter().collect();
            tracing::info!(image = %wanted.image, arrived = wanted.entries.len(), anew, "the stream broke: {error}");
            stream = self.begin_anew(node, &wanted).await.map_err(Unsent::Broke)?;
        }
        let ended = spawn_blocking(move || splice.finish().and_then(Writer::end)).await;
        ended.map_err(|error| Unsent::Broke(error.to_string()))?.map_err(|_| Unsent::Refused)
    }

    async fn begin(&self, node: &NodeId, wanted: &Wanted) -> Result<ByteStream, NotCopied> {
        let given = self.others.peers.take(node, wanted.clone()).await;
        given.map_err(|error| match error {
            NotGiven::Refused(Refusal::Busy) => NotCopied::Busy,
            other => NotCopied::There(other.to_string()),
        })
    }

    /// The other node may still be busy with the stream that broke, not be connected again yet, or have just started.
    async fn begin_anew(&self, node: &NodeId, wanted: &Wanted) -> Result<ByteStream, String> {
        let mut pauses = Pauses::until(Instant::now() + BEGIN_WITHIN);
        loop {
            let error = match self.others.peers.take(node, wanted.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let may_help =
                matches!(error, NotGiven::Unanswered(_) | NotGiven::Refused(Refusal::Busy | Refusal::NotReady));
            if !may_help || !pauses.pass().await {
                return Err(error.to_string());
            }
        }
    }

    /// Checks that exactly the image that was offered is here now, and removes anything else that came.
    async fn check(&self, told: &[String], id: &str, here: &Here) -> Result<(), NotCopied> {
        let lost =
            |error: runtime::Error| NotCopied::Here(PullError { cause: PullCause::Engine, message: error.to_string() });
        let is_here = self.engine.inspect(id).await.map_err(lost)?.is_some();
        if is_here && told == [id] {
            return Ok(());
        }
        for came in told.iter().map(String::as_str).chain([id]) {
            if let Some(details) = self.engine.inspect(came).await.map_err(lost)? {
                self.remove_again(&details.id, &details.names, here).await;
            }
        }
        let found = if told.is_empty() { "nothing".to_owned() } else { told.join(", ") };
        Err(NotCopied::There(format!("it offered {id}, and the engine loaded {found}")))
    }

    /// Gives the image its name, which no other image has. No engine takes a digest as a name: the records have it.
    async fn name(&self, image: &ImageReference, offer: &Offer, here: &Here) -> Result<(), NotCopied> {
        if image.digest().is_some() {
            return Ok(());
        }
        let named = match self.engine.inspect(image.as_str()).await {
            Ok(Some(other)) if other.id == offer.id => return Ok(()),
            Ok(Some(other)) => Err(format!("{image} is the name of another image, {}, meanwhile", other.id)),
            Ok(None) => self.engine.tag(&offer.id, image).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(message) = named {
            self.remove_again(&offer.id, &[], here).await;
            return Err(NotCopied::Here(PullError { cause: PullCause::Other, message }));
        }
        Ok(())
    }

    /// Removes an image that was not here before. An image with other names than these stays.
    async fn remove_again(&self, id: &str, names: &[String], here: &Here) {
        if here.ids.contains(id) {
            return;
        }
        if let Err(error) = self.engine.remove(id, names).await {
            tracing::warn!(id, %error, "cannot remove an image that another node sent");
        }
    }
}

/// A pull that its registry would refuse.
pub(super) fn limited(image: &ImageReference) -> PullError {
    let message = format!("cannot pull {image}: registry {} limits pulls (429)", image.registry());
    PullError { cause: PullCause::Limited, message }
}

/// Why the engine took no more of an archive.
async fn last_word(loading: impl Future<Output = Result<Vec<String>, PullError>>) -> PullError {
    let message = "the engine took no more of the archive".to_owned();
    let silent = PullError { cause: PullCause::Engine, message };
    timeout(LAST_WORD, loading).await.ok().and_then(Result::err).unwrap_or(silent)
}

/// The same stream, which breaks if no byte comes.
fn impatient(stream: ByteStream) -> ByteStream {
    let begin = Some((stream, FIRST_BYTE));
    stream::unfold(begin, |state| async move {
        let (mut stream, within) = state?;
        match timeout(within, stream.next()).await {
            Ok(piece) => Some((piece?, Some((stream, STALL)))),
            Err(_) => {
                let message = format!("no byte came for {} s", within.as_secs());
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, message)), None))
            }
        }
    })
    .boxed()
}

fn none_gave(failed: &[(NodeId, String)], is_busy: bool) -> PullError {
    let mut reasons: Vec<&str> = failed.iter().map(|(_, reason)| reason.as_str()).collect();
    if is_busy {
        reasons.push("the nodes that have it give images to other nodes");
    }
    let message = if reasons.is_empty() { "no other node offers it".to_owned() } else { reasons.join("; ") };
    PullError { cause: PullCause::Other, message }
}

/// The registry's refusal, and why no node helped. A full disk of this host is the cause in any case.
fn both(refused: PullError, not_copied: &PullError) -> PullError {
    let cause = if not_copied.cause == PullCause::DiskFull { PullCause::DiskFull } else { refused.cause };
    PullError { cause, message: format!("{refused}; from the other nodes: {not_copied}") }
}

#[cfg(test)]
mod tests;
