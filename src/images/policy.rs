//! Which images a prune removes. Pure.
//!
//! Only ostler's own, and only those that nothing needs: no container, no session, no pull, and not lately. How much of
//! those is the mode's business; what the catalogue names stays in every mode.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ownership::{Record, Records};
use crate::runtime::images::{ImageStore, ListedImage};
use crate::types::{Bytes, ImageReference, KeptBecause, Moment, Prune, PruneReason};

/// What the catalogue tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// The images that workspaces name.
    pub named: BTreeSet<ImageReference>,
    /// It has no workspaces.
    pub is_empty: bool,
    /// This node has compared it with the leader's since it started, and still has a leader. If not, a workspace that
    /// needs an image may be missing in it.
    pub is_current: bool,
}

/// The file system of the images is fuller than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// What must be free in addition; `None`: inodes are short, and nothing tells how many of them an image has.
    pub bytes: Option<Bytes>,
}

/// What the images are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub store: &'a ImageStore,
    pub records: &'a Records,
    /// The images of containers, running or stopped, of ostler or not.
    pub in_use: &'a BTreeMap<String, u32>,
    /// The images of this node's sessions whose container is not destroyed.
    pub sessions: &'a BTreeSet<ImageReference>,
    pub catalogue: &'a Catalogue,
    /// The pulls that wait or run, or whose end is not known.
    pub pulls: &'a BTreeSet<ImageReference>,
    pub mode: Prune,
    /// `images.min_age`
    pub min_age: Duration,
    pub now: Moment,
    pub pressure: Option<Pressure>,
}

/// What becomes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Remove(PruneReason),
    Keep(KeptBecause),
}

/// An image, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub image: ListedImage,
    pub verdict: Verdict,
}

/// What a removal frees, as far as the engine tells.
pub fn own_bytes(image: &ListedImage) -> Bytes {
    image.size.saturating_sub(image.shared.unwrap_or_default())
}

/// Judges every image, once each. Those to remove come first, in the order in which to remove them: dangling ones, then
/// those that were used longest ago.
pub fn plan(images: &[ListedImage], situation: &Situation<'_>) -> Vec<Planned> {
    let judged = images.iter().map(|image| Planned { image: image.clone(), verdict: judge(image, situation) });
    let mut planned: Vec<Planned> = judged.collect();
    planned.sort_by_cached_key(|planned| {
        let unused = record(&planned.image, situation).map(|record| situation.now.since(record.used));
        let place = match planned.verdict {
            Verdict::Remove(PruneReason::Dangling) => 0,
            Verdict::Remove(_) => 1,
            Verdict::Keep(_) => 2,
        };
        (place, Reverse(unused))
    });
    if let Some(Pressure { bytes: Some(wanted) }) = situation.pressure {
        stop_at(&mut planned, wanted);
    }
    planned
}

/// Keeps what needs not go for pressure: what comes before it frees enough.
fn stop_at(planned: &mut [Planned], wanted: Bytes) {
    let mut freed = Bytes::ZERO;
    for Planned { image, verdict } in planned {
        match verdict {
            Verdict::Remove(PruneReason::Pressure) if freed >= wanted => *verdict = Verdict::Keep(KeptBecause::Named),
            Verdict::Remove(_) => freed = freed.saturating_add(own_bytes(image)),
            Verdict::Keep(_) => {}
        }
    }
}

/// What becomes of one image, however much has been freed.
pub fn judge(image: &ListedImage, situation: &Situation<'_>) -> Verdict {
    match protection(image, situation) {
        Some(why) => Verdict::Keep(why),
        None => by_mode(image, situation),
    }
}

/// Why the image stays in every mode; `None`: nothing needs it.
fn protection(image: &ListedImage, situation: &Situation<'_>) -> Option<KeptBecause> {
    let Situation { store, records, now, min_age, .. } = situation;
    let Some(record) = record(image, situation).filter(|_| records.is_ours(store, &image.id, &image.names)) else {
        return Some(KeptBecause::Foreign);
    };
    let holds = [
        (record.pinned, KeptBecause::Pinned),
        (situation.in_use.contains_key(&image.id), KeptBecause::Container),
        (is_named(image, record, situation.sessions), KeptBecause::Session),
        (is_pulled(image, situation.pulls), KeptBecause::Pulling),
        (now.since(record.used) < *min_age, KeptBecause::Young),
        (is_named(image, record, &situation.catalogue.named), KeptBecause::Workspace),
    ];
    holds.into_iter().find_map(|(holds, why)| holds.then_some(why))
}

/// What the mode does with an image that nothing needs.
fn by_mode(image: &ListedImage, situation: &Situation<'_>) -> Verdict {
    let reason = match (situation.mode, situation.pressure) {
        (Prune::Off, _) => return Verdict::Keep(KeptBecause::Off),
        // What was pulled by its digest has no tag either: a workspace of a catalogue that is not current may name it.
        _ if !has_tag(image) => match record(image, situation) {
            Some(record) if !situation.catalogue.is_current && is_by_digest(record) => {
                return Verdict::Keep(KeptBecause::CatalogueUnknown);
            }
            _ => return Verdict::Remove(PruneReason::Dangling),
        },
        (Prune::Aggressive, _) => PruneReason::Unnamed,
        (Prune::Normal, Some(_)) => PruneReason::Pressure,
        (Prune::Normal, None) => return Verdict::Keep(KeptBecause::Named),
    };
    match situation.catalogue {
        Catalogue { is_empty: true, .. } => Verdict::Keep(KeptBecause::CatalogueEmpty),
        Catalogue { is_current: false, .. } => Verdict::Keep(KeptBecause::CatalogueUnknown),
        _ => Verdict::Remove(reason),
    }
}

/// A containerd store also names an image by its digest.
fn has_tag(image: &ListedImage) -> bool {
    image.names.iter().any(|name| !name.contains('@'))
}

/// Whether a pull of ours by digest brought the image.
fn is_by_digest(record: &Record) -> bool {
    record.names.keys().any(|name| name.contains('@'))
}

fn record<'a>(image: &ListedImage, situation: &Situation<'a>) -> Option<&'a Record> {
    situation.records.record(situation.store, &image.id)
}

/// Whether one of the references means the image. What a pull by digest brought counts too where the engine does not
/// list that digest.
fn is_named(image: &ListedImage, record: &Record, references: &BTreeSet<ImageReference>) -> bool {
    references.iter().any(|reference| {
        let is_recorded = || reference.digest().is_some() && record.names.contains_key(reference.as_str());
        reference.names(&image.names, &image.digests) || is_recorded()
    })
}

/// Whether a pull of one of the image's repositories runs: it may bring this image, or give it another name, while the
/// engine removes it.
pub fn is_pulled(image: &ListedImage, pulls: &BTreeSet<ImageReference>) -> bool {
    let parsed = image.names.iter().chain(&image.digests).filter_map(|name| ImageReference::parse(name).ok());
    let repositories: BTreeSet<String> = parsed.map(|name| name.repository().to_owned()).collect();
    pulls.iter().any(|pull| repositories.contains(pull.repository()))
}

#[cfg(test)]
mod tests;
