//! Images of other nodes: which to take, and what of it. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::runtime::images::{ImageStoreKind, PullCause};
use crate::types::{Bytes, ImageReference, Platform};

/// Layers of an image at most. Engines allow 127.
pub const MAX_LAYERS: usize = 512;

/// An image that a node can give another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub id: String,
    pub store: ImageStoreKind,
    pub platform: Option<Platform>,
    /// The name is from a registry, as far as that node has recorded.
    pub fetched: bool,
    /// What the registry gave under that name; `None`: not known.
    pub digest: Option<String>,
    /// About what the archive has.
    pub size: Bytes,
    /// The digests of its unpacked layers, lowest first.
    pub layers: Vec<String>,
}

/// An image that a node asks another for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub image: ImageReference,
    /// As it was offered.
    pub id: String,
    /// The layers that need not be sent, by the digests of their unpacked content.
    pub layers: BTreeSet<String>,
    /// The entries of the archive that need not be sent: they came before the stream broke.
    pub entries: BTreeSet<String>,
}

/// Why a node does not give an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It has no such image, or no workspace of its catalogue names it.
    #[error("it does not have the image any more")]
    NotHere,
    /// It has not listed its images since it started.
    #[error("it has only just started")]
    NotReady,
    /// It gives an image to another node.
    #[error("it gives an image to another node")]
    Busy,
    /// With the figures.
    #[error("{0}")]
    NoRoom(String),
    #[error("it gives no images (images.from_peers = \"off\")")]
    Off,
    #[error("the request is not valid")]
    Invalid,
}

/// The place that an image would come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub store: ImageStoreKind,
    pub platform: Option<Platform>,
}

/// Whether a registry that failed like this is a reason to ask the other nodes.
pub const fn is_reason(cause: PullCause) -> bool {
    matches!(cause, PullCause::Registry | PullCause::Limited)
}

/// The offers that can be taken here, in order.
pub fn usable<N>(offers: Vec<(N, Offer)>, image: &ImageReference, here: &Place) -> Vec<(N, Offer)> {
    let runs = |offer: &Offer| match (&here.platform, &offer.platform) {
        (Some(host), Some(needs)) => host.runs(needs),
        _ => true,
    };
    let is_usable = |offer: &Offer| {
        offer.store == here.store
            && runs(offer)
            && offer.layers.len() <= MAX_LAYERS
            && image.digest().is_none_or(|digest| offer.digest.as_deref() == Some(digest))
    };
    offers.into_iter().filter(|(_, offer)| is_usable(offer)).collect()
}

/// The layers of an image that need not be sent. `here`: the layers of each image that is here.
///
/// An engine finds a layer only with all those below it, so only those count that an image here begins with, too. One
/// that the image has again further up must be sent.
pub fn left_out<'a>(image: &[String], here: impl Iterator<Item = &'a [String]>) -> BTreeSet<String> {
    let shared = |other: &[String]| image.iter().zip(other).take_while(|(one, other)| one == other).count();
    let (known, new) = image.split_at(here.map(shared).max().unwrap_or(0));
    known.iter().filter(|layer| !new.contains(layer)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place { store: ImageStoreKind::GraphDriver, platform: Some(Platform::new("linux", "amd64")) }
    }

    fn offer() -> Offer {
        Offer {
            id: "sha256:1".to_owned(),
            store: ImageStoreKind::GraphDriver,
            platform: Some(Platform::new("linux", "amd64")),
            fetched: true,
            digest: Some("sha256:d".to_owned()),
            size: Bytes::mib(1),
            layers: Vec::new(),
        }
    }

    fn is_usable(offer: Offer, image: &str) -> bool {
        !usable(vec![((), offer)], &ImageReference::parse(image).unwrap(), &place()).is_empty()
    }

    #[test]
    fn only_an_image_of_the_same_kind_of_store_and_platform_is_taken() {
        assert!(is_usable(offer(), "x:1"));
        assert!(is_usable(Offer { platform: None, ..offer() }, "x:1"));
        assert!(!is_usable(Offer { store: ImageStoreKind::Containerd, ..offer() }, "x:1"));
        assert!(!is_usable(Offer { platform: Some(Platform::new("linux", "arm64")), ..offer() }, "x:1"));
        assert!(!is_usable(Offer { layers: vec![String::new(); MAX_LAYERS + 1], ..offer() }, "x:1"));
    }

    #[test]
    fn of_a_digest_only_that_digest_is_taken() {
        assert!(is_usable(offer(), "x@sha256:d"));
        assert!(!is_usable(offer(), "x@sha256:e"));
        assert!(!is_usable(Offer { digest: None, ..offer() }, "x@sha256:d"));
    }

    #[test]
    fn the_first_that_is_usable_comes_first() {
        let foreign = Offer { store: ImageStoreKind::Containerd, ..offer() };
        let all = vec![(1, foreign), (2, offer()), (3, offer())];
        let order: Vec<i32> =
            usable(all, &ImageReference::parse("x").unwrap(), &place()).into_iter().map(|(node, _)| node).collect();
        assert_eq!(order, [2, 3]);
    }

    #[test]
    fn a_registry_that_does_not_serve_is_a_reason_and_one_that_answers_is_none() {
        use PullCause::{Absent, Denied, DiskFull, Engine, Limited, Other, Registry, Stalled, UnknownAuthority};
        assert!([Registry, Limited].into_iter().all(is_reason));
        assert!(![Absent, Denied, DiskFull, Engine, Other, Stalled, UnknownAuthority].into_iter().any(is_reason));
    }

    fn layers(of: &[&str]) -> Vec<String> {
        of.iter().map(|layer| (*layer).to_owned()).collect()
    }

    #[test]
    fn layers_are_left_out_that_an_image_here_begins_with() {
        let out = |image: &[&str], here: &[&[&str]]| {
            let here: Vec<Vec<String>> = here.iter().map(|image| layers(image)).collect();
            left_out(&layers(image), here.iter().map(Vec::as_slice)).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(out(&["a", "b", "c"], &[&["a", "x"], &["a", "b", "y"]]), ["a", "b"]);
        assert_eq!(out(&["a", "b"], &[&["b", "a"]]), [""; 0], "the layer above is another one there");
        assert_eq!(out(&["e", "a", "e"], &[&["e", "a"]]), ["a"], "it is needed again further up");
        assert_eq!(out(&["a"], &[]), [""; 0]);
    }

    proptest! {
        #[test]
        fn what_is_left_out_is_never_needed(
            image in prop::collection::vec("[abc]", 0..6),
            here in prop::collection::vec(prop::collection::vec("[abc]", 0..6), 0..4),
        ) {
            let out = left_out(&image, here.iter().map(Vec::as_slice));
            // As an engine loads it: a layer is there if an image has it with all those below it.
            for place in 0..image.len() {
                let chain = &image[..=place];
                let is_here = here.iter().any(|other| other.starts_with(chain));
                prop_assert!(is_here || !out.contains(&image[place]));
            }
        }
    }
}
