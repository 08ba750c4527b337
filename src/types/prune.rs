//! Prunes: what a node removes of its images, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Bytes, Invalid, KeptBecause, Name, Prune};

/// Why a prune removes an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PruneReason {
    /// It has no name.
    Dangling,
    /// No workspace of the catalogue names it.
    Unnamed,
    /// No workspace of the catalogue names it, and the file system of the images is above `images.high_watermark`.
    Pressure,
}
words!(PruneReason { Dangling => "dangling", Unnamed => "unnamed", Pressure => "pressure" });

/// How to prune the images of a node once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruneRequest {
    /// `normal` or `aggressive`, for this prune only. Default: the node's setting `prune`.
    pub mode: Option<Prune>,
}

impl PruneRequest {
    /// # Errors
    /// The mode is `off`.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.mode == Some(Prune::Off) {
            return Err(Invalid::new("mode", "`off` removes nothing; expected `normal` or `aggressive`"));
        }
        Ok(())
    }
}

/// An image that a prune removed or would remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedImage {
    pub id: String,
    pub names: Vec<String>,
    /// What it takes without the layers that it shares with other images.
    pub bytes: Bytes,
    pub reason: PruneReason,
}

/// An image that a prune keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptImage {
    pub id: String,
    pub names: Vec<String>,
    /// What it takes without the layers that it shares with other images.
    pub bytes: Bytes,
    /// The first reason that applies.
    pub reason: KeptBecause,
}

/// An image that a prune was to remove and left as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedImage {
    pub id: String,
    pub names: Vec<String>,
    /// What it takes without the layers that it shares with other images.
    pub bytes: Bytes,
    /// For people.
    pub reason: String,
}

/// What a prune did, or what a dry run would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PruneReport {
    pub node: Name,
    pub mode: Prune,
    /// Nothing was removed: `removed` is what would be.
    pub dry_run: bool,
    pub removed: Vec<PrunedImage>,
    pub kept: Vec<KeptImage>,
    /// What was to be removed and could not be.
    pub skipped: Vec<SkippedImage>,
    /// By how much the free space on the file system of the images grew: about what was reclaimed, since other programs
    /// use it too. `null` for a dry run, and where the agent cannot see that file system.
    pub reclaimed_bytes: Option<Bytes>,
    /// The sum of the bytes of `removed`.
    pub up_to_bytes: Bytes,
    /// What an operator should know of it, for people.
    pub notes: Vec<String>,
}
