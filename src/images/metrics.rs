//! What the owner of the images counts, and how much the images take.

use super::Handle;
use crate::metrics::{Count, CountBy, Registry, Source};
use crate::runtime::images::PullCause;
use crate::types::{Bytes, ImageOwner, PruneReason};

/// The image came from its registry.
const PULLED: &str = "pulled";
/// The image came from another node.
const COPIED: &str = "copied";

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pulls: CountBy,
    pulled_bytes: Count,
    pruned: CountBy,
    reclaimed_bytes: Count,
}

impl Default for Metrics {
    fn default() -> Self {
        let causes = PullCause::ALL.iter().map(|cause| cause.as_str());
        Self {
            pulls: CountBy::new("outcome", [PULLED, COPIED].into_iter().chain(causes)),
            pulled_bytes: Count::default(),
            pruned: CountBy::new("reason", PruneReason::ALL.iter().map(|reason| reason.as_str())),
            reclaimed_bytes: Count::default(),
        }
    }
}

impl Metrics {
    /// `from_node`: another node gave the image.
    pub(super) fn pulled(&self, size: Bytes, from_node: bool) {
        self.pulls.of(if from_node { COPIED } else { PULLED }).inc();
        self.pulled_bytes.add(size.get());
    }

    pub(super) fn failed(&self, cause: PullCause) {
        self.pulls.of(cause.as_str()).inc();
    }

    /// `freed`: what the engine said that the image took alone.
    pub(super) fn pruned(&self, reason: PruneReason, freed: Bytes) {
        self.pruned.of(reason.as_str()).inc();
        self.reclaimed_bytes.add(freed.get());
    }
}

impl Source for Handle {
    fn register(&self, registry: &mut Registry<'_>) {
        let Metrics { pulls, pulled_bytes, pruned, reclaimed_bytes } = &self.metrics;
        let help = "Pulls of images: from the registry (pulled), from another node (copied), or why they failed";
        registry.count_by("image_pulls", help, pulls);
        registry.count("image_pulled_bytes", "Sizes of the images that were pulled", pulled_bytes);
        registry.count_by("images_pruned", "Images that were pruned, by reason", pruned);
        registry.count("image_reclaimed_bytes", "Disk space that pruned images took alone", reclaimed_bytes);

        let snapshot = self.snapshot();
        let Some(images) = &snapshot.images else { return };
        let sizes = ImageOwner::ALL.iter().map(|owner| {
            let owned = images.iter().filter(|image| snapshot.is_ours(image) == (*owner == ImageOwner::Ostler));
            let bytes: u64 = owned.map(|image| image.size.get()).sum();
            (vec![("owner", owner.to_string())], bytes as f64)
        });
        let help = "Sizes of the images, by owner; layers that images share count for each of them";
        registry.gauges("image_bytes", help, sizes);
    }
}
