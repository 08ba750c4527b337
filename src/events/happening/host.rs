//! What happens to the images, GPUs and volumes of this host.

use std::time::Duration;

use super::Happening;
use crate::types::{Bytes, EventKind, ImageReference, Prune, TargetKind};

impl Happening {
    /// `from`: `registry`, or the name of the node that gave it.
    pub fn image_pulled(image: &ImageReference, bytes: Option<Bytes>, took: Duration, from: &str) -> Self {
        let seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
        let size = bytes.map(|bytes| format!(" ({bytes})")).unwrap_or_default();
        of_image(EventKind::ImagePulled, image, format!("{image}{size} was pulled from {from} in {seconds} s"))
            .with("bytes", bytes)
            .with("seconds", seconds)
            .with("from", from)
    }

    pub fn image_failed(image: &ImageReference, why: &str) -> Self {
        of_image(EventKind::ImageFailed, image, format!("{image} was not pulled: {why}")).with("reason", why)
    }

    pub fn image_pruned(images: usize, reclaimed: Option<Bytes>, mode: Prune) -> Self {
        let back = reclaimed.map(|bytes| format!(", {bytes} are free again")).unwrap_or_default();
        Self::of(EventKind::ImagePruned, format!("a prune removed {images} images{back} (mode {mode})"))
            .with("images", images)
            .with("bytes", reclaimed)
            .with("mode", mode)
    }

    pub fn prune_refused(why: &str) -> Self {
        Self::of(EventKind::PruneRefused, format!("a prune was refused: {why}")).with("reason", why)
    }

    /// `change`: `adopted`, `pinned` or `unpinned`.
    pub fn image_changed(id: &str, name: Option<&str>, change: &str) -> Self {
        Self::of(EventKind::ImageChanged, format!("image {} was {change}", name.unwrap_or(id)))
            .about(TargetKind::Image, id, name.map(str::to_owned))
            .with("change", change)
    }

    pub fn gpu_lost(uuid: &str, model: &str, why: &str) -> Self {
        of_gpu(EventKind::GpuLost, uuid, Some(model), format!("GPU {uuid} ({model}) vanished: {why}"))
            .with("reason", why)
    }

    pub fn gpu_back(uuid: &str, model: &str) -> Self {
        of_gpu(EventKind::GpuBack, uuid, Some(model), format!("GPU {uuid} ({model}) is back"))
    }

    pub fn gpu_hot(uuid: &str, model: &str, celsius: Option<f64>) -> Self {
        let how = celsius.map(|celsius| format!(": {celsius} °C")).unwrap_or_default();
        of_gpu(EventKind::GpuHot, uuid, Some(model), format!("GPU {uuid} ({model}) is hotter than it may be{how}"))
            .with("celsius", celsius)
    }

    pub fn gpu_cordoned(uuid: &str) -> Self {
        of_gpu(EventKind::GpuCordoned, uuid, None, format!("GPU {uuid} was cordoned: it takes no new sessions"))
    }

    pub fn gpu_uncordoned(uuid: &str) -> Self {
        of_gpu(EventKind::GpuUncordoned, uuid, None, format!("GPU {uuid} takes sessions again"))
    }

    pub fn gpu_forgotten(uuid: &str) -> Self {
        of_gpu(EventKind::GpuForgotten, uuid, None, format!("GPU {uuid} was removed for good"))
    }

    pub fn volume_removed(name: &str) -> Self {
        Self::of(EventKind::VolumeRemoved, format!("volume {name} was removed")).about(
            TargetKind::Volume,
            name,
            Some(name.to_owned()),
        )
    }
}

fn of_image(kind: EventKind, image: &ImageReference, message: String) -> Happening {
    Happening::of(kind, message).about(TargetKind::Image, image, Some(image.to_string()))
}

fn of_gpu(kind: EventKind, uuid: &str, model: Option<&str>, message: String) -> Happening {
    Happening::of(kind, message).about(TargetKind::Gpu, uuid, model.map(str::to_owned))
}
