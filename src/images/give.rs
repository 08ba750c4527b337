//! Gives images to other nodes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::archive::thin::{LeftOut, Spool, thin};
use super::archive::{MAX_ENTRIES, pipe};
use super::bandwidth::Bucket;
use super::offers::{MAX_LAYERS, Offer, Refusal, Wanted};
use super::{Config, Handle, MinFree, here, room};
use crate::catalogue;
use crate::runtime::ByteStream;
use crate::types::{Bytes, FromPeers, ImageReference};

/// Images given at the same time: the engine writes a copy of each to its disk first.
const UPLOADS: usize = 1;
/// The longest pause for the bandwidth at once. The rate may be changed meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the giver is made of.
pub struct Parts {
    pub images: Handle,
    pub catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    /// Its changes are followed.
    pub config: watch::Receiver<Config>,
    pub min_free: MinFree,
    pub data_dir: PathBuf,
}

/// Gives this node's images. Cheap to clone.
#[derive(Clone)]
pub struct Giver {
    parts: Arc<Parts>,
    uploads: Arc<Semaphore>,
}

impl Giver {
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), uploads: Arc::new(Semaphore::new(UPLOADS)) }
    }

    /// The image of this name, if it is here and a workspace names it.
    pub async fn offer(&self, image: &ImageReference) -> Option<Offer> {
        if self.parts.config.borrow().from_peers == FromPeers::Off || !self.is_named(image) {
            return None;
        }
        // The engine is asked, since the last list may be older than the image.
        let details = self.parts.images.details(image).await.ok()??;
        let snapshot = self.parts.images.snapshot();
        if snapshot.removing.contains(&details.id) {
            return None;
        }
        // What a store of containerd says of one image is smaller than what it takes.
        let mut listed = snapshot.images.iter().flat_map(|images| images.iter());
        let listed = listed.find(|listed| listed.id == details.id).map(|listed| listed.size);
        let fetched = snapshot.fetched(&details.id, image);
        // What is found by its digest has that digest, also if it was pulled by a tag.
        let by_digest = image.digest().map(str::to_owned);
        Some(Offer {
            id: details.id,
            store: snapshot.store.as_ref()?.store.kind,
            platform: details.platform,
            fetched: by_digest.is_some() || fetched.is_some(),
            digest: by_digest.or_else(|| fetched.and_then(|fetched| fetched.digest.clone())),
            size: listed.unwrap_or(details.size),
            layers: details.layers,
        })
    }

    /// The image, and its archive without what the other node has.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn give(&self, wanted: Wanted) -> Result<(Offer, ByteStream), Refusal> {
        if self.parts.config.borrow().from_peers == FromPeers::Off {
            return Err(Refusal::Off);
        }
        if wanted.layers.len() > MAX_LAYERS || wanted.entries.len() > MAX_ENTRIES {
            return Err(Refusal::Invalid);
        }
        if self.parts.images.snapshot().images.is_none() {
            return Err(Refusal::NotReady);
        }
        let offer = self.offer(&wanted.image).await.filter(|offer| offer.id == wanted.id);
        let offer = offer.ok_or(Refusal::NotHere)?;
        let upload = Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        // The engine writes the archive to a file of its own first.
        let path = self.parts.images.snapshot().store.as_ref().and_then(|info| info.path.clone());
        room::check(path, offer.size, (self.parts.min_free)()).await.map_err(Refusal::NoRoom)?;
        let (image, id) = (&wanted.image, &offer.id);
        tracing::info!(%image, id, left_out = wanted.layers.len() + wanted.entries.len(), "giving the image to a node");
        let archive = self.thinned(&offer.id, LeftOut { layers: wanted.layers, entries: wanted.entries });
        Ok((offer, self.paced(archive, upload)))
    }

    fn is_named(&self, image: &ImageReference) -> bool {
        let catalogue = self.parts.catalogue.borrow();
        let named = here::named(catalogue.workspaces.values().map(|workspace| &**workspace));
        named.iter().any(|text| ImageReference::parse(text).as_ref() == Ok(image))
    }

    /// The engine's archive without what is left out. Ends with whoever reads it.
    fn thinned(&self, id: &str, out: LeftOut) -> ByteStream {
        let (filler, reader) = pipe::to_thread();
        let (mut writer, archive) = pipe::to_task();
        tokio::spawn(filler.fill(self.parts.images.engine.save(id), |_| ()));
        let parts = Arc::clone(&self.parts);
        spawn_blocking(move || {
            let (data_dir, min_free) = (parts.data_dir.clone(), Arc::clone(&parts.min_free));
            let spool = Spool::new(&parts.data_dir, move |size| {
                room::check_now(&data_dir, Bytes::new(size), min_free()).map_err(io::Error::other)
            });
            let ended = match thin(reader, &mut writer, &out, &spool) {
                Ok(()) => writer.end(),
                Err(error) => {
                    let told = io::Error::new(error.kind(), error.to_string());
                    writer.fail(error);
                    Err(told)
                }
            };
            if let Err(error) = ended {
                tracing::info!(%error, "an image was not given to the end");
            }
        });
        archive
    }

    /// The same bytes, at `images.peer_bandwidth`. The upload ends with the stream.
    fn paced(&self, archive: ByteStream, upload: OwnedSemaphorePermit) -> ByteStream {
        let (config, begun) = (self.parts.config.clone(), Instant::now());
        let state = (archive, Bucket::default(), 0_u64, upload);
        stream::unfold(state, move |(mut archive, mut bucket, sent, upload)| {
            let config = config.clone();
            async move {
                let Some(piece) = archive.next().await else {
                    tracing::info!(bytes = sent, seconds = begun.elapsed().as_secs_f32(), "gave the image");
                    return None;
                };
                let size = piece.as_ref().map_or(0, |piece| u64::try_from(piece.len()).unwrap_or(u64::MAX));
                let rate = config.borrow().peer_bandwidth.get();
                let pause = bucket.take(size, rate, begun.elapsed()).min(LONGEST_PAUSE);
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                Some((piece, (archive, bucket, sent.saturating_add(size), upload)))
            }
        })
        .boxed()
    }
}
