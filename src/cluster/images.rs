//! Images: each node answers for its own.

use std::time::Duration;

use async_trait::async_trait;

use super::host::MAX_HOLD;
use super::rpc::Serves;
use super::{Cluster, Error, Host, QUICK, Routed, SLOW};
use crate::images::{self, Command, Pull, inventory};
use crate::types::{
    Actor, Image, ImageFilter, ImagePull, ImagePullState, ImageReference, Name, NodeImages, PruneReport, PruneRequest,
};
use crate::wire::message::{ChangeImage, ListImages, PreviewPrune, PruneImages, PullImage};

/// How long a node may take for a prune: an image of a desktop takes the engine some seconds. A prune that takes longer
/// goes on.
const PRUNE: Duration = Duration::from_secs(600);

impl Cluster {
    /// The images of a node that the filter selects, as the node last listed them.
    pub async fn images(&self, wanted: &Name, filter: ImageFilter) -> Result<Routed<NodeImages>, Error> {
        let id = self.resolve(wanted).await?;
        self.on(&id, ListImages(filter), QUICK).await
    }

    /// Pulls an image on a node, or joins its pull there. Answers once the pull is done, or after `hold`: then it goes on.
    ///
    /// # Errors
    /// The image could not be pulled, or the image that has the name came from no registry.
    pub async fn pull_image(
        &self,
        wanted: &Name,
        image: ImageReference,
        hold: Duration,
        by: &Actor,
    ) -> Result<Routed<ImagePull>, Error> {
        let id = self.resolve(wanted).await?;
        let hold_millis = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        let Routed { answer, by } = self.change_on(&id, PullImage { image, hold_millis }, by, hold + SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// Changes an image on a node. Returns it after the change.
    pub async fn change_image(
        &self,
        wanted: &Name,
        image: String,
        command: Command,
        by: &Actor,
    ) -> Result<Routed<Image>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.change_on(&id, ChangeImage { image, command }, by, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// Prunes the images of a node once.
    pub async fn prune_images(
        &self,
        wanted: &Name,
        request: PruneRequest,
        by: &Actor,
    ) -> Result<Routed<PruneReport>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.change_on(&id, PruneImages(request), by, PRUNE).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// What a prune of a node's images would do.
    pub async fn preview_prune(&self, wanted: &Name, request: PruneRequest) -> Result<Routed<PruneReport>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.on(&id, PreviewPrune(request), PRUNE).await?;
        Ok(Routed { answer: answer?, by })
    }
}

impl Host {
    fn own_images(&self) -> Result<&images::Handle, images::Error> {
        self.images.as_ref().ok_or(images::Error::NoImages)
    }

    /// Every image of this node.
    fn inventory(&self) -> NodeImages {
        let node = &self.settings.state().name;
        match &self.images {
            Some(images) => images.inventory(node, &self.catalogue.snapshot(), &self.sessions.snapshot()),
            None => inventory::without_images(node),
        }
    }

    async fn prune(&self, request: PruneRequest, dry_run: bool, by: &Actor) -> Result<PruneReport, images::Error> {
        self.own_images()?.prune(request.mode, dry_run, by.clone()).await
    }
}

#[async_trait]
impl Serves<ListImages> for Host {
    async fn serve(&self, ListImages(filter): ListImages, _: &Actor) -> NodeImages {
        inventory::select(self.inventory(), &filter)
    }
}

#[async_trait]
impl Serves<PullImage> for Host {
    async fn serve(&self, PullImage { image, hold_millis }: PullImage, by: &Actor) -> Result<ImagePull, images::Error> {
        let (images, node) = (self.own_images()?, self.settings.state().name.clone());
        let hold = Duration::from_millis(hold_millis).min(MAX_HOLD);
        let (mut pull, before) = images.pull_for(&image, &node, by).await?;
        // A sender that is gone has published the end, or the daemon is stopping.
        let _ = tokio::time::timeout(hold, pull.wait_for(|pull| matches!(pull, Pull::Ended(_)))).await;
        let now = pull.borrow().clone();
        if let Some(state) = inventory::state(&now) {
            return Ok(inventory::describe_pull(&node, &image, state));
        }
        if let Pull::Ended(result) = now {
            result?;
        }
        let id = images.id_of(&image).await?;
        let done = inventory::describe_pull(&node, &image, (ImagePullState::Done, Default::default()));
        Ok(ImagePull { changed: Some(id != before), id, ..done })
    }
}

#[async_trait]
impl Serves<ChangeImage> for Host {
    async fn serve(&self, ChangeImage { image, command }: ChangeImage, by: &Actor) -> Result<Image, images::Error> {
        let changed = self.own_images()?.command(&image, command, by.clone()).await?;
        let found = self.inventory().items.into_iter().find(|image| image.id == changed.id);
        // It was removed meanwhile.
        found.ok_or(images::Error::NotFound(image))
    }
}

#[async_trait]
impl Serves<PruneImages> for Host {
    async fn serve(&self, PruneImages(request): PruneImages, by: &Actor) -> Result<PruneReport, images::Error> {
        self.prune(request, false, by).await
    }
}

#[async_trait]
impl Serves<PreviewPrune> for Host {
    async fn serve(&self, PreviewPrune(request): PreviewPrune, by: &Actor) -> Result<PruneReport, images::Error> {
        self.prune(request, true, by).await
    }
}
