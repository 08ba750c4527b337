//! What the owner of the images counts.

use crate::metrics::{Count, CountBy, Registry, Source};
use crate::runtime::images::PullCause;
use crate::types::{Bytes, PruneReason};

/// The image came from its registry.
const PULLED: &str = "pulled";
/// The image came from another node.
const COPIED: &str = "copied";

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
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

impl Source for Metrics {
    fn register(&self, registry: &mut Registry<'_>) {
        let help = "Pulls of images: from the registry (pulled), from another node (copied), or why they failed";
        registry.count_by("image_pulls", help, &self.pulls);
        registry.count("image_pulled_bytes", "Sizes of the images that were pulled", &self.pulled_bytes);
        registry.count_by("images_pruned", "Images that were pruned, by reason", &self.pruned);
        registry.count("image_reclaimed_bytes", "Disk space that pruned images took alone", &self.reclaimed_bytes);
    }
}
