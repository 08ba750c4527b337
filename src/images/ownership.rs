//! Which images are ostler's, and which names came from a registry. Pure.
//!
//! Nothing that an engine says proves either: a containerd store lists a digest for every image that has a name, and a
//! label is part of the image. So each pull is recorded before it begins, with the images that are here; what it brought
//! is ostler's only if it was not among them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::runtime::images::{ImageDetails, ImageStore, ListedImage};
use crate::types::{ImageReference, Moment, Timestamp};

/// Records at most. Those of the stores that the engine uses no more are dropped first.
pub const MAX_RECORDS: usize = 10_000;

/// What names an image for good: an id means something within one store only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageKey {
    pub store: ImageStore,
    pub id: String,
}

/// What is recorded of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// It was not here when the pull began that brought it, or an operator adopted it.
    pub ours: bool,
    pub origin: Origin,
    /// The names that it got from a pull of ours, or that an operator adopted.
    pub names: BTreeMap<String, Naming>,
    /// [`ImageDetails::content`]
    pub content: String,
    pub pinned: bool,
    /// When it was pulled or adopted.
    pub since: Timestamp,
    /// When it was last pulled, or a session made from it.
    pub used: Moment,
}

impl Record {
    fn fetched(&self, reference: &ImageReference) -> Option<&Fetched> {
        self.names.get(reference.as_str())?.fetched.as_ref()
    }

    /// What registries have it under, as `repository@digest`.
    fn digests(&self) -> BTreeSet<String> {
        let pair = |(name, naming): (&String, &Naming)| {
            let digest = naming.fetched.as_ref()?.digest.as_ref()?;
            Some(ImageReference::parse(name).ok()?.at_digest(digest).to_string())
        };
        self.names.iter().filter_map(pair).collect()
    }
}

/// How an image came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Registry,
    /// From another node of the cluster.
    Peer,
    /// It was here, and an operator adopted or pinned it.
    Here,
}

/// How an image got a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// The name is ostler's: it did not have it before, or an operator adopted it.
    pub ours: bool,
    /// What a registry gave under this name, and when; `None`: the name came from none.
    pub fetched: Option<Fetched>,
}

/// An answer of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The digest in that repository; `None`: the engine did not tell.
    pub digest: Option<String>,
    /// When the registry last answered.
    pub at: Moment,
    /// When it was asked in vain since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Moment>,
}

impl Fetched {
    /// When the registry was last asked.
    pub fn asked_at(&self) -> Moment {
        self.failed.unwrap_or(self.at)
    }
}

/// A pull that has begun. It is on disk before the engine is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub store: ImageStore,
    /// The ids of all images that were here.
    pub present: BTreeSet<String>,
    /// The image that had the name; `None`: none had it.
    pub named: Option<String>,
}

/// The records, as they are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records {
    pub images: BTreeMap<ImageKey, Record>,
    pub intents: BTreeMap<ImageReference, Intent>,
}

impl Records {
    /// What is recorded of an image of this store.
    pub fn record(&self, store: &ImageStore, id: &str) -> Option<&Record> {
        self.images.get(&ImageKey { store: store.clone(), id: id.to_owned() })
    }

    /// Whether an image is ostler's: it came by a pull of ours or was adopted, and so did every name on it.
    pub fn is_ours(&self, store: &ImageStore, id: &str, names: &[String]) -> bool {
        let is_ours = |record: &Record| {
            record.ours && names.iter().all(|name| record.names.get(name).is_some_and(|naming| naming.ours))
        };
        self.record(store, id).is_some_and(is_ours)
    }

    /// What a registry gave under this name, if the name still means that image. `None`: the name came from no registry,
    /// as far as is recorded, and no registry may replace it.
    pub fn fetched(&self, store: &ImageStore, id: &str, reference: &ImageReference) -> Option<&Fetched> {
        self.record(store, id)?.fetched(reference)
    }

    /// The id of the image that a registry has under this digest. An engine does not know the digest of an image that
    /// another node gave.
    pub fn of_digest(&self, store: &ImageStore, reference: &ImageReference) -> Option<&str> {
        let digest = reference.digest()?;
        let has = |record: &Record| reference.own_digests(&record.digests()).any(|own| own == digest);
        let own = self.images.iter().filter(|(key, _)| key.store == *store);
        own.filter(|(_, record)| has(record)).map(|(key, _)| key.id.as_str()).next()
    }

    /// Adds the digests that are recorded and that the engine does not know.
    pub fn complete(&self, store: &ImageStore, listed: &mut [ListedImage]) {
        for image in listed {
            let recorded = self.record(store, &image.id).map(Record::digests).unwrap_or_default();
            let unknown = recorded.into_iter().filter(|pair| !image.digests.contains(pair)).collect::<Vec<_>>();
            image.digests.extend(unknown);
        }
    }

    /// Whether a pull may give this name to another image: the name came from a registry, or is ostler's.
    pub fn may_replace(&self, store: &ImageStore, id: &str, reference: &ImageReference) -> bool {
        let naming = self.record(store, id).and_then(|record| record.names.get(reference.as_str()));
        naming.is_some_and(|naming| naming.ours || naming.fetched.is_some())
    }

    /// A pull begins. `present`: every image that is here.
    pub fn begin(&mut self, reference: &ImageReference, store: &ImageStore, present: &[ListedImage]) {
        let named = present.iter().find(|image| reference.names(&image.names, &image.digests));
        let intent = Intent {
            store: store.clone(),
            present: present.iter().map(|image| image.id.clone()).collect(),
            named: named.map(|image| image.id.clone()),
        };
        self.intents.insert(reference.clone(), intent);
    }

    /// A pull ended and brought `image`, which has the name now. `digest`: what the registry gave it in that repository.
    pub fn pulled(
        &mut self,
        reference: &ImageReference,
        image: &ImageDetails,
        digest: Option<String>,
        origin: Origin,
        now: Moment,
    ) {
        let Some(intent) = self.intents.remove(reference) else { return };
        let was_here = intent.present.contains(&image.id);
        let had_the_name = intent.named.as_ref() == Some(&image.id);
        let key = ImageKey { store: intent.store, id: image.id.clone() };
        let record = self.images.entry(key).or_insert_with(|| Record {
            ours: !was_here,
            origin,
            names: BTreeMap::new(),
            content: String::new(),
            pinned: false,
            since: now.wall,
            used: now,
        });
        record.content.clone_from(&image.content);
        record.used = now;
        let naming = record.names.entry(reference.as_str().to_owned());
        let naming = naming.or_insert(Naming { ours: !had_the_name, fetched: None });
        naming.fetched =
            Some(Fetched { digest: digest.or_else(|| own_digest(reference, image)), at: now, failed: None });
        self.make_room(&image.id);
    }

    /// The name is from no registry: another node gave the image, which has it from none either.
    pub fn not_fetched(&mut self, store: &ImageStore, id: &str, reference: &ImageReference) {
        let naming = self.record_mut(store, id).and_then(|record| record.names.get_mut(reference.as_str()));
        if let Some(naming) = naming {
            naming.fetched = None;
        }
    }

    /// A pull ended, or the agent did, and nothing came of it.
    pub fn not_pulled(&mut self, reference: &ImageReference) {
        self.intents.remove(reference);
    }

    /// The registry could not be asked: the next question waits as long as after an answer.
    pub fn not_answered(&mut self, store: &ImageStore, id: &str, reference: &ImageReference, now: Moment) {
        if let Some(fetched) = self.fetched_mut(store, id, reference) {
            fetched.failed = Some(now);
        }
    }

    /// Another node asked the registry, which has this digest: the image is the newest if it has the same.
    pub fn checked(&mut self, store: &ImageStore, id: &str, reference: &ImageReference, digest: &str, now: Moment) {
        if let Some(fetched) = self.fetched_mut(store, id, reference)
            && fetched.digest.as_deref() == Some(digest)
        {
            (fetched.at, fetched.failed) = (now, None);
        }
    }

    /// A session is made from an image.
    pub fn used(&mut self, store: &ImageStore, id: &str, now: Moment) {
        if let Some(record) = self.record_mut(store, id) {
            record.used = now;
        }
    }

    /// An operator makes an image ostler's, with the names that it has. A prune may remove it from now on.
    pub fn adopt(&mut self, store: &ImageStore, image: &ImageDetails, now: Moment) {
        let record = self.here(store, image, now);
        record.ours = true;
        for name in &image.names {
            record.names.entry(name.clone()).or_insert(Naming { ours: true, fetched: None }).ours = true;
        }
    }

    /// No prune removes the image, or prunes may again.
    pub fn pin(&mut self, store: &ImageStore, image: &ImageDetails, pinned: bool, now: Moment) {
        self.here(store, image, now).pinned = pinned;
    }

    /// All images of this store, listed since the last change of its records: forgets those that are gone, and the names
    /// that an image has no more, since another program may give it that name again. Records of other stores are kept: the
    /// engine may use that store again.
    pub fn listed(&mut self, store: &ImageStore, listed: &[ListedImage]) {
        let here: BTreeMap<&str, &[String]> =
            listed.iter().map(|image| (image.id.as_str(), image.names.as_slice())).collect();
        self.images.retain(|key, record| {
            if key.store != *store {
                return true;
            }
            let names = here.get(key.id.as_str());
            record.names.retain(|name, _| {
                let by_digest = ImageReference::parse(name).is_ok_and(|reference| reference.digest().is_some());
                by_digest || names.is_some_and(|names| names.contains(name))
            });
            names.is_some()
        });
    }

    /// The ids of the listed images that may be recorded under another id, in another store of the same engine: their
    /// content tells.
    pub fn unrecognised<'a>(&self, store: &ImageStore, listed: &'a [ListedImage]) -> Vec<&'a ListedImage> {
        let elsewhere: BTreeSet<&String> =
            self.other_stores(store).flat_map(|(_, record)| record.names.keys()).collect();
        let may_be = |image: &&ListedImage| {
            self.record(store, &image.id).is_none() && image.names.iter().any(|name| elsewhere.contains(name))
        };
        listed.iter().filter(may_be).collect()
    }

    /// The image is the one that was recorded in another store of the same engine, if it has a name and the content of
    /// that one.
    pub fn recognise(&mut self, store: &ImageStore, image: &ImageDetails) {
        let same = |record: &Record| {
            !image.content.is_empty()
                && record.content == image.content
                && image.names.iter().any(|name| record.names.contains_key(name))
        };
        let found = self.other_stores(store).find(|(_, record)| same(record)).map(|(_, record)| record.clone());
        if let Some(record) = found {
            self.images.insert(ImageKey { store: store.clone(), id: image.id.clone() }, record);
        }
    }

    fn other_stores(&self, store: &ImageStore) -> impl Iterator<Item = (&ImageKey, &Record)> {
        self.images.iter().filter(move |(key, _)| key.store.engine == store.engine && key.store.kind != store.kind)
    }

    fn record_mut(&mut self, store: &ImageStore, id: &str) -> Option<&mut Record> {
        self.images.get_mut(&ImageKey { store: store.clone(), id: id.to_owned() })
    }

    fn fetched_mut(&mut self, store: &ImageStore, id: &str, reference: &ImageReference) -> Option<&mut Fetched> {
        self.record_mut(store, id)?.names.get_mut(reference.as_str())?.fetched.as_mut()
    }

    /// The record of an image that is here, made if there is none.
    fn here(&mut self, store: &ImageStore, image: &ImageDetails, now: Moment) -> &mut Record {
        let key = ImageKey { store: store.clone(), id: image.id.clone() };
        self.images.entry(key).or_insert_with(|| Record {
            ours: false,
            origin: Origin::Here,
            names: BTreeMap::new(),
            content: image.content.clone(),
            pinned: false,
            since: now.wall,
            used: now,
        })
    }

    /// Keeps [`MAX_RECORDS`]: drops those that were used longest ago, but not `new`.
    fn make_room(&mut self, new: &str) {
        while self.images.len() > MAX_RECORDS {
            let others = self.images.iter().filter(|(key, _)| key.id != new);
            let Some(oldest) = others.min_by_key(|(_, record)| record.used.wall).map(|(key, _)| key.clone()) else {
                return;
            };
            self.images.remove(&oldest);
        }
    }
}

/// The digest of this repository, if the image has exactly one.
fn own_digest(reference: &ImageReference, image: &ImageDetails) -> Option<String> {
    let mut own = reference.own_digests(&image.digests);
    own.next().filter(|_| own.next().is_none()).map(str::to_owned)
}

#[cfg(test)]
mod tests;
