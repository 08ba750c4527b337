//! The images of the engine.

mod archive;
mod place;
mod progress;
mod pull;
mod request;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{ImageInspect, ImageSummary, SystemInfo};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use ring::digest::{SHA256, digest};
use tokio::sync::{mpsc, watch};

use super::engine::{CHANGE, Engine, Failure, LOOK};
use super::{DockerRuntime, Error};
use crate::runtime::images::{
    DiskUsage, ImageDetails, ImageList, ImageStore, ImageStoreKind, ListedImage, PullError, PullOptions, PullProgress,
    Removal,
};
use crate::runtime::{ByteStream, Images};
use crate::types::{Bytes, ImageReference, Platform};

/// Deadline of a list. The store of containerd was measured to need 5 s for 325 images.
const LIST: Duration = Duration::from_secs(60);
/// Deadline of a removal, which takes an image's files away: an attempt that takes longer goes on in the engine.
const REMOVAL: Duration = Duration::from_secs(120);
/// What stands for a name where an image has none: of older engines, and of a containerd store.
const PLACEHOLDERS: [&str; 2] = ["<none>", "moby-dangling@"];
/// What the status of a driver says if it is a snapshotter of containerd.
const CONTAINERD: [&str; 2] = ["driver-type", "io.containerd.snapshotter.v1"];

#[async_trait]
impl Images for DockerRuntime {
    fn changes(&self) -> watch::Receiver<u64> {
        self.image_changes.subscribe()
    }

    async fn list(&self) -> Result<ImageList, Error> {
        let before = self.store_now().await?;
        let options = ListImagesOptionsBuilder::default().shared_size(true).build();
        let listed =
            self.engine.ask("list images", LIST, |docker| async move { docker.list_images(Some(options)).await });
        let images = listed.await.map_err(Failure::or_try_again)?.into_iter().map(listed_image).collect();
        if self.store_now().await? != before {
            return Err(Error::Unavailable("the engine restarted with another image store".to_owned()));
        }
        Ok(ImageList { store: before, images })
    }

    async fn inspect(&self, image: &str) -> Result<Option<ImageDetails>, Error> {
        Ok(inspect(&self.engine, image).await?.map(details))
    }

    async fn pull(
        &self,
        image: &ImageReference,
        options: &PullOptions,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<Option<String>, PullError> {
        pull::pull(&self.engine, image, options, progress).await
    }

    async fn in_use(&self) -> Result<BTreeMap<String, u32>, Error> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let listed = self.engine.ask("list", LIST, |docker| async move { docker.list_containers(Some(options)).await });
        let mut used = BTreeMap::new();
        for id in listed.await.map_err(Failure::or_try_again)?.into_iter().filter_map(|container| container.image_id) {
            *used.entry(id).or_default() += 1;
        }
        Ok(used)
    }

    async fn remove(&self, id: &str, names: &[String]) -> Result<Removal, Error> {
        let Some(now) = self.inspect_details(id).await? else { return Ok(Removal::Gone) };
        if now.names != names {
            return Ok(Removal::Skipped(format!("its names changed to {}", now.names.join(", "))));
        }
        // With a single name, the removal by id takes the name too, unless a container or another image needs the image.
        // With several it is refused.
        // A containerd store gives up a name by digest with the image only.
        let (by_digest, tags): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.contains('@'));
        let in_order: Vec<&String> = tags.into_iter().chain(by_digest).collect();
        if let Some((_, others)) = in_order.split_last() {
            for name in others {
                match self.remove_by(name).await {
                    Ok(()) => {}
                    Err(failure) if failure.is_conflict() => return Ok(Removal::Skipped(failure.to_string())),
                    Err(failure) if failure.is_not_found() => {}
                    Err(failure) => return Err(failure.or_try_again()),
                }
            }
        }
        match (self.remove_by(id).await, in_order.last()) {
            // A containerd store may also have the image under a hidden name, which stands for none.
            (Err(failure), Some(last)) if failure.is_conflict() && self.has_hidden_names().await? => {
                match self.remove_by(last).await {
                    Ok(()) => removal(self.remove_by(id).await),
                    Err(failure) if failure.is_not_found() => removal(self.remove_by(id).await),
                    failed => removal(failed),
                }
            }
            (removed, _) => removal(removed),
        }
    }

    fn save(&self, id: &str) -> ByteStream {
        archive::save(Arc::clone(&self.engine), id.to_owned())
    }

    async fn load(&self, archive: ByteStream) -> Result<Vec<String>, PullError> {
        archive::load(&self.engine, archive).await
    }

    async fn tag(&self, id: &str, name: &ImageReference) -> Result<(), Error> {
        let tag = name.tag().ok_or_else(|| Error::Refused(format!("`{name}` has no tag")))?;
        let options = TagImageOptionsBuilder::default().repo(name.repository()).tag(tag).build();
        let tagged =
            self.engine.ask("tag image", CHANGE, |docker| async move { docker.tag_image(id, Some(options)).await });
        tagged.await.map_err(Failure::or_try_again)
    }

    async fn disk_usage(&self) -> Result<DiskUsage, Error> {
        usage::disk_usage(&self.engine).await.map_err(Failure::or_try_again)
    }
}

impl DockerRuntime {
    /// The store of the engine that answers now. What the connection knows of it may be of an engine before a restart.
    async fn store_now(&self) -> Result<Option<ImageStore>, Error> {
        let said = self.engine.ask("info", LOOK, |docker| async move { docker.info().await }).await;
        Ok(store(&said.map_err(Failure::or_try_again)?))
    }

    async fn has_hidden_names(&self) -> Result<bool, Error> {
        let info = &self.engine.connection().await?.info;
        Ok(info.images.as_ref().is_some_and(|images| images.store.kind == ImageStoreKind::Containerd))
    }

    async fn inspect_details(&self, image: &str) -> Result<Option<ImageDetails>, Error> {
        Ok(inspect(&self.engine, image).await?.map(details))
    }

    /// Removes an image, or a name of it. Its untagged parents stay: they may be somebody else's.
    async fn remove_by(&self, image: &str) -> Result<(), Failure> {
        let options = RemoveImageOptionsBuilder::default().force(false).noprune(true).build();
        let remove =
            |docker: bollard::Docker| async move { docker.remove_image(image, Some(options), None).await.map(drop) };
        self.engine.ask("remove image", REMOVAL, remove).await
    }

    /// The words that a container of the image executes first: its entry point, or its command without one. Empty if the
    /// image cannot be inspected: the creation that follows says what is wrong.
    pub(super) async fn command_line(&self, image: &str, command: &[String]) -> Vec<String> {
        let Ok(Some(inspected)) = inspect(&self.engine, image).await else { return Vec::new() };
        let config = inspected.config.unwrap_or_default();
        let command = || if command.is_empty() { config.cmd } else { Some(command.to_vec()) };
        config.entrypoint.filter(|words| !words.is_empty()).or_else(command).unwrap_or_default()
    }
}

fn removal(removed: Result<(), Failure>) -> Result<Removal, Error> {
    match removed {
        Ok(()) => Ok(Removal::Removed),
        Err(failure) if failure.is_not_found() => Ok(Removal::Removed),
        Err(failure) if failure.is_conflict() => Ok(Removal::Skipped(failure.to_string())),
        Err(failure) => Err(failure.or_try_again()),
    }
}

async fn inspect(engine: &Arc<Engine>, image: &str) -> Result<Option<ImageInspect>, Error> {
    let seen = engine.ask("inspect image", LOOK, |docker| async move { docker.inspect_image(image).await });
    match seen.await {
        Ok(inspected) => Ok(Some(inspected)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure.or_try_again()),
    }
}

pub(super) use place::path;

/// The image store of an engine; `None`: the engine does not name itself.
pub(super) fn store(said: &SystemInfo) -> Option<ImageStore> {
    let engine = said.id.clone().filter(|id| !id.is_empty())?;
    let is_containerd = said.driver_status.iter().flatten().any(|row| *row == CONTAINERD);
    let kind = if is_containerd { ImageStoreKind::Containerd } else { ImageStoreKind::GraphDriver };
    Some(ImageStore { engine, kind })
}

fn listed_image(said: ImageSummary) -> ListedImage {
    let bytes = |n: i64| u64::try_from(n).ok().map(Bytes::new);
    ListedImage {
        id: said.id,
        names: names(said.repo_tags),
        digests: names(said.repo_digests),
        size: bytes(said.size).unwrap_or_default(),
        shared: bytes(said.shared_size),
    }
}

fn details(said: ImageInspect) -> ImageDetails {
    let filled = |name: Option<String>| name.filter(|name| !name.is_empty());
    let platform = filled(said.os).zip(filled(said.architecture));
    let platform = platform.map(|(os, architecture)| Platform::new(&os, &architecture));
    let layers = said.root_fs.and_then(|fs| fs.layers).unwrap_or_default();
    ImageDetails {
        id: said.id.unwrap_or_default(),
        names: names(said.repo_tags.unwrap_or_default()),
        digests: names(said.repo_digests.unwrap_or_default()),
        size: said.size.and_then(|size| u64::try_from(size).ok()).map(Bytes::new).unwrap_or_default(),
        content: content(&layers, platform.as_ref()),
        layers,
        platform,
    }
}

/// Without the placeholders that engines list for an image without a name. Sorted, and each once: an engine lists them
/// in any order, and a containerd store repeats a digest for each tag.
fn names(mut said: Vec<String>) -> Vec<String> {
    said.retain(|name| !PLACEHOLDERS.iter().any(|placeholder| name.starts_with(placeholder)));
    said.sort_unstable();
    said.dedup();
    said
}

/// Empty without layers: images without any would all be the same.
fn content(layers: &[String], platform: Option<&Platform>) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let platform = platform.map(ToString::to_string).unwrap_or_default();
    let text = format!("{platform}\n{}", layers.join("\n"));
    data_encoding::HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageInspectRootFs;

    use super::*;

    fn strings(of: &[&str]) -> Vec<String> {
        of.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_store_is_told_by_its_driver() {
        let said = |status: &[[&str; 2]]| SystemInfo {
            id: Some("e".to_owned()),
            driver_status: Some(status.iter().map(|row| strings(row)).collect()),
            ..SystemInfo::default()
        };
        let kind = |said: &SystemInfo| store(said).unwrap().kind;
        assert_eq!(kind(&said(&[["Backing Filesystem", "extfs"]])), ImageStoreKind::GraphDriver);
        assert_eq!(kind(&said(&[CONTAINERD])), ImageStoreKind::Containerd);
        assert_eq!(store(&SystemInfo::default()), None, "an engine without an id");
    }

    #[test]
    fn an_image_without_a_name_has_none() {
        let said = ImageSummary {
            id: "sha256:1".to_owned(),
            repo_tags: strings(&["<none>:<none>"]),
            repo_digests: strings(&["<none>@<none>"]),
            size: 7,
            shared_size: -1,
            ..ImageSummary::default()
        };
        let listed = listed_image(said);
        assert!(listed.names.is_empty() && listed.digests.is_empty());
        assert_eq!((listed.size, listed.shared), (Bytes::new(7), None));
        assert!(names(strings(&["moby-dangling@sha256:1"])).is_empty());
    }

    #[test]
    fn names_are_in_order_and_each_is_there_once() {
        let said = strings(&["x@sha256:2", "x@sha256:1", "x@sha256:2"]);
        assert_eq!(names(said), strings(&["x@sha256:1", "x@sha256:2"]));
    }

    #[test]
    fn the_content_follows_from_layers_and_platform() {
        let of = |layers: &[&str], architecture: &str| {
            let said = ImageInspect {
                os: Some("linux".to_owned()),
                architecture: Some(architecture.to_owned()),
                root_fs: Some(ImageInspectRootFs { layers: Some(strings(layers)), ..ImageInspectRootFs::default() }),
                ..ImageInspect::default()
            };
            details(said).content
        };
        assert_eq!(of(&["a", "b"], "amd64"), of(&["a", "b"], "x86_64"));
        assert_ne!(of(&["a", "b"], "amd64"), of(&["b", "a"], "amd64"));
        assert_ne!(of(&["a", "b"], "amd64"), of(&["a", "b"], "arm64"));
        assert_eq!(of(&[], "amd64"), "");
    }
}
