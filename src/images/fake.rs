//! The images of an engine in memory, for tests.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes as Chunk;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, watch};

use super::archive::sample::{Part, archive, contents, digest};
use crate::images::Neighbours;
use crate::runtime::images::{
    DiskUsage, ImageDetails, ImageList, ImageStore, ImageStoreInfo, ImageStoreKind, ListedImage, PullCause, PullError,
    PullOptions, PullProgress, Removal,
};
use crate::runtime::{ByteStream, EngineInfo, Error, GpuSupport, Health, Images};
use crate::types::{Bytes, Cores, ImageReference, Platform};

/// An engine that has images, and a registry that it pulls from.
pub(crate) struct FakeImages {
    /// The lock is held for one read or change, never across an await.
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    told: watch::Sender<Vec<(String, Duration)>>,
    /// Whether the engine lists its containers, or cannot; `None`: it does not answer.
    lists_containers: watch::Sender<Option<bool>>,
    /// Removals wait while it is set.
    holds_removals: watch::Sender<bool>,
    /// What the engine says of its disk; `None`: nothing yet.
    disk_usage: watch::Sender<Option<Result<DiskUsage, Error>>>,
    /// How often it was asked for that.
    disk_usage_asked: watch::Sender<u32>,
    pub(crate) health: watch::Sender<Health>,
}

#[derive(Default)]
struct State {
    images: Vec<ListedImage>,
    /// The id of the image that the registry has under each name.
    registry: BTreeMap<String, String>,
    refuse: Option<PullError>,
    used: BTreeMap<String, u32>,
    pulls: Vec<String>,
    /// Those of the last pull.
    options: PullOptions,
    removed: Vec<String>,
    limit: Option<Duration>,
    platforms: BTreeMap<String, Platform>,
    /// The layers of images, by their content.
    layers: BTreeMap<String, Vec<String>>,
    /// The names of the entries of each archive that was loaded.
    loaded: Vec<Vec<String>>,
    /// Every archive is loaded as this image.
    loads_as: Option<String>,
}

/// The entry of an archive that has the image's id.
const ID: &str = "id";

/// The image store of the engine.
pub(crate) fn place() -> ImageStore {
    ImageStore { engine: "fake".to_owned(), kind: ImageStoreKind::GraphDriver }
}

impl FakeImages {
    pub(crate) fn new() -> Arc<Self> {
        let info = EngineInfo {
            version: "fake".to_owned(),
            cores: Cores::whole(1),
            memory: Bytes::gib(1),
            data_root: None,
            unenforced: Vec::new(),
            epoch: None,
            platform: None,
            pid: None,
            gpus: GpuSupport::default(),
            images: Some(ImageStoreInfo { store: place(), path: Some("/".into()) }),
        };
        let health = watch::Sender::new(Health::Up(info));
        let holds_removals = watch::Sender::new(false);
        Arc::new(Self {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            lists_containers: watch::Sender::new(Some(true)),
            holds_removals,
            disk_usage: watch::Sender::new(Some(Ok(DiskUsage::default()))),
            disk_usage_asked: watch::Sender::new(0),
            told: watch::Sender::new(Vec::new()),
            health,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Another program brings an image.
    pub(crate) fn bring(&self, id: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let image = ListedImage { id: id.to_owned(), names, size: Bytes::mib(10), ..ListedImage::default() };
        self.state().images.push(image);
        self.say();
    }

    /// Whether the engine lists its containers, or cannot; `None`: it does not answer.
    pub(crate) fn list_containers(&self, lists: Option<bool>) {
        self.lists_containers.send_replace(lists);
    }

    /// The registry has this image under this name from now on.
    pub(crate) fn publish(&self, name: &str, id: &str) {
        self.state().registry.insert(name.to_owned(), id.to_owned());
    }

    /// The image of this id is for this platform.
    pub(crate) fn is_for(&self, id: &str, platform: &Platform) {
        self.state().platforms.insert(id.to_owned(), platform.clone());
    }

    /// How the last pull was asked for.
    pub(crate) fn options(&self) -> PullOptions {
        self.state().options.clone()
    }

    /// The registry limits pulls, by what the leader knows; `None`: it does not.
    pub(crate) fn limit(&self, pause: Option<Duration>) {
        self.state().limit = pause;
    }

    /// What the leader was told.
    pub(crate) fn told(&self) -> watch::Receiver<Vec<(String, Duration)>> {
        self.told.subscribe()
    }

    /// Pulls fail for this reason; `None`: they succeed again.
    pub(crate) fn refuse(&self, error: Option<PullError>) {
        self.state().refuse = error;
    }

    /// An image consists of layers with this content.
    pub(crate) fn layer(&self, id: &str, layers: &[&str]) {
        self.state().layers.insert(id.to_owned(), layers.iter().map(|layer| (*layer).to_owned()).collect());
    }

    /// Every archive is loaded as this image from now on.
    pub(crate) fn load_as(&self, id: &str) {
        self.state().loads_as = Some(id.to_owned());
    }

    /// The names of the entries of each archive that was loaded.
    pub(crate) fn loaded(&self) -> Vec<Vec<String>> {
        self.state().loaded.clone()
    }

    /// Removals wait from now on, or those that wait go on.
    pub(crate) fn hold_removals(&self, holds: bool) {
        self.holds_removals.send_replace(holds);
    }

    /// The engine says this of its disk from now on; `None`: it does not answer.
    pub(crate) fn tell_disk_usage(&self, usage: Option<Result<DiskUsage, Error>>) {
        self.disk_usage.send_replace(usage);
    }

    /// How often the engine was asked what is on its disk.
    pub(crate) fn disk_usage_asked(&self) -> watch::Receiver<u32> {
        self.disk_usage_asked.subscribe()
    }

    /// A container of the image is made.
    pub(crate) fn run(&self, id: &str) {
        *self.state().used.entry(id.to_owned()).or_default() += 1;
    }

    /// The ids of the images that were removed, in order.
    pub(crate) fn removed(&self) -> Vec<String> {
        self.state().removed.clone()
    }

    /// The references that the engine was asked to pull, in order.
    pub(crate) fn pulls(&self) -> Vec<String> {
        self.state().pulls.clone()
    }
}

#[async_trait]
impl Neighbours for FakeImages {
    async fn tell(&self, registry: &str, pause: Duration) {
        self.told.send_modify(|told| told.push((registry.to_owned(), pause)));
    }

    async fn ask(&self, _: &str) -> Option<Duration> {
        self.state().limit
    }
}

#[async_trait]
impl Images for FakeImages {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn list(&self) -> Result<ImageList, Error> {
        Ok(ImageList { store: Some(place()), images: self.state().images.clone() })
    }

    async fn inspect(&self, image: &str) -> Result<Option<ImageDetails>, Error> {
        let state = self.state();
        let is_meant = |listed: &&ListedImage| {
            listed.id == image || listed.names.iter().chain(&listed.digests).any(|name| name == image)
        };
        Ok(state.images.iter().find(is_meant).map(|listed| ImageDetails {
            id: listed.id.clone(),
            names: listed.names.clone(),
            digests: listed.digests.clone(),
            content: format!("content of {}", listed.id),
            platform: state.platforms.get(&listed.id).cloned(),
            size: listed.size,
            layers: state.layers.get(&listed.id).into_iter().flatten().map(|layer| digest(layer.as_bytes())).collect(),
        }))
    }

    async fn pull(
        &self,
        image: &ImageReference,
        options: &PullOptions,
        _: mpsc::Sender<PullProgress>,
    ) -> Result<Option<String>, PullError> {
        {
            let mut state = self.state();
            state.pulls.push(image.to_string());
            state.options = options.clone();
            if let Some(error) = &state.refuse {
                return Err(error.clone());
            }
            let absent = || PullError { cause: PullCause::Absent, message: format!("cannot pull {image}: not found") };
            let id = state.registry.get(image.as_str()).cloned().ok_or_else(absent)?;
            if !state.images.iter().any(|listed| listed.id == id) {
                state.images.push(ListedImage { id: id.clone(), size: Bytes::mib(10), ..ListedImage::default() });
            }
            if let Some(digest) = image.digest() {
                state.images.iter_mut().filter(|listed| listed.id == id).for_each(|listed| {
                    listed.digests.push(image.to_string());
                });
                return Ok(Some(digest.to_owned()));
            }
            state.name(&id, image.as_str());
        }
        self.say();
        Ok(Some(format!("digest of {image}")))
    }

    async fn in_use(&self) -> Result<BTreeMap<String, u32>, Error> {
        let mut lists = self.lists_containers.subscribe();
        let lists = lists.wait_for(Option::is_some).await.is_ok_and(|lists| *lists == Some(true));
        if !lists {
            return Err(Error::Unavailable("the engine lists no containers".to_owned()));
        }
        Ok(self.state().used.clone())
    }

    async fn remove(&self, id: &str, names: &[String]) -> Result<Removal, Error> {
        let _ = self.holds_removals.subscribe().wait_for(|holds| !holds).await;
        let removal = {
            let mut state = self.state();
            match state.images.iter().find(|image| image.id == id) {
                None => Removal::Gone,
                Some(image) if image.names != names => Removal::Skipped("its names changed".to_owned()),
                Some(_) if state.used.contains_key(id) => Removal::Skipped("a container uses it".to_owned()),
                Some(_) => {
                    state.images.retain(|image| image.id != id);
                    state.removed.push(id.to_owned());
                    Removal::Removed
                }
            }
        };
        self.say();
        Ok(removal)
    }

    fn save(&self, id: &str) -> ByteStream {
        let archive = archive_of(id, self.state().layers.get(id).map_or(&[], Vec::as_slice));
        stream::iter([Ok(archive.into())]).boxed()
    }

    async fn load(&self, archive: ByteStream) -> Result<Vec<String>, PullError> {
        let refused = |error: io::Error| PullError { cause: PullCause::Other, message: error.to_string() };
        let pieces: Vec<Chunk> = archive.try_collect().await.map_err(refused)?;
        let contents = contents(&pieces.concat());
        let id = contents.iter().find(|(name, _)| name == ID).map(|(_, id)| String::from_utf8_lossy(id).into_owned());
        let id = self.state().loads_as.clone().or(id).expect("an archive of this engine");
        {
            let mut state = self.state();
            state.loaded.push(contents.into_iter().map(|(name, _)| name).collect());
            if !state.images.iter().any(|listed| listed.id == id) {
                state.images.push(ListedImage { id: id.clone(), size: Bytes::mib(10), ..ListedImage::default() });
            }
        }
        self.say();
        Ok(vec![id])
    }

    async fn tag(&self, id: &str, name: &ImageReference) -> Result<(), Error> {
        self.state().name(id, name.as_str());
        self.say();
        Ok(())
    }

    async fn disk_usage(&self) -> Result<DiskUsage, Error> {
        self.disk_usage_asked.send_modify(|asked| *asked += 1);
        let mut told = self.disk_usage.subscribe();
        let told = told.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
        told.expect("the sender is this engine's")
    }
}

impl State {
    /// Gives an image a name, which any other loses.
    fn name(&mut self, id: &str, name: &str) {
        self.images.iter_mut().for_each(|listed| listed.names.retain(|own| own != name));
        if let Some(listed) = self.images.iter_mut().find(|listed| listed.id == id) {
            listed.names.push(name.to_owned());
            listed.names.sort_unstable();
        }
    }
}

/// An archive as Docker up to 24 writes it, as far as these tests need it: a layer is its own content.
fn archive_of(id: &str, layers: &[String]) -> Vec<u8> {
    let named: Vec<(String, &String)> =
        layers.iter().enumerate().map(|(place, layer)| (format!("{place}/layer.tar"), layer)).collect();
    let mut parts: Vec<Part<'_>> = named.iter().map(|(name, layer)| Part::File(name, layer.as_bytes())).collect();
    parts.push(Part::File(ID, id.as_bytes()));
    archive(&parts)
}
