//! The images of a node, as people see them: what each is, whose it is and who uses it. Pure.

use std::collections::BTreeMap;

use super::ownership::{Origin, Record};
use super::{Pull, Snapshot};
use crate::runtime::images::{ImageStoreInfo, ListedImage, PullProgress};
use crate::types::{
    Bytes, Image, ImageFilter, ImageOrigin, ImageOwner, ImagePull, ImagePullState, ImageReference, ImageSource, List,
    Name, NodeImages, SessionId, SessionProfile,
};
use crate::{catalogue, sessions};

/// Everything that the list is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The name of this node.
    pub node: &'a Name,
    pub images: &'a Snapshot,
    /// The pulls that wait or run.
    pub pulls: &'a [(ImageReference, Pull)],
    pub catalogue: &'a catalogue::Snapshot,
    pub sessions: &'a sessions::Snapshot,
}

/// Every image of the node, by id.
pub fn inventory(inputs: Inputs<'_>) -> NodeImages {
    let Inputs { node, images: snapshot, pulls, .. } = inputs;
    let listed: &[ListedImage] = snapshot.images.as_deref().unwrap_or_default();
    let users = Users::of(inputs, &Names::of(listed));
    let mut items: Vec<Image> = listed.iter().map(|image| describe(image, snapshot, &users)).collect();
    items.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    let total = Total::of(listed);
    NodeImages {
        node: node.clone(),
        store: snapshot.store.as_ref().map(|info| info.store.kind),
        path: snapshot.store.as_ref().and_then(|info| Some(info.path.as_ref()?.display().to_string())),
        listed_at: snapshot.listed_at,
        total_bytes: total.exactly().filter(|_| snapshot.images.is_some()),
        total_at_most_bytes: total.at_most,
        images: count(listed.len()),
        note: snapshot.images.is_none().then(|| "the engine has not listed its images yet".to_owned()),
        pulls: pulls.iter().filter_map(|(image, pull)| Some(describe_pull(node, image, state(pull)?))).collect(),
        items,
        next_cursor: None,
    }
}

/// The images of a node whose runtime has none.
pub fn without_images(node: &Name) -> NodeImages {
    NodeImages {
        node: node.clone(),
        store: None,
        path: None,
        listed_at: None,
        total_bytes: Some(Bytes::ZERO),
        total_at_most_bytes: Bytes::ZERO,
        images: 0,
        note: Some(super::Error::NoImages.to_string()),
        pulls: Vec::new(),
        items: Vec::new(),
        next_cursor: None,
    }
}

/// A page of the images that the filter selects.
pub fn select(all: NodeImages, filter: &ImageFilter) -> NodeImages {
    let wanted = all.items.into_iter().filter(|image| filter.owner.is_none_or(|owner| image.owner == owner));
    let by_id = wanted.map(|image| (image.id.clone(), image));
    let List { items, next_cursor } = List::page(by_id, filter.after.as_deref(), filter.limit);
    NodeImages { items, next_cursor, ..all }
}

/// A pull that a person asked for, in this state.
pub fn describe_pull(
    node: &Name,
    image: &ImageReference,
    (state, progress): (ImagePullState, PullProgress),
) -> ImagePull {
    let PullProgress { fetched, size, layers_ready, layers } = progress;
    ImagePull {
        node: node.clone(),
        image: image.to_string(),
        state,
        fetched_bytes: fetched,
        size_bytes: size,
        layers_ready,
        layers,
        id: None,
        changed: None,
    }
}

/// How a pull goes; `None`: it has ended.
pub fn state(pull: &Pull) -> Option<(ImagePullState, PullProgress)> {
    match pull {
        Pull::Waiting => Some((ImagePullState::Waiting, PullProgress::default())),
        Pull::Limited { .. } => Some((ImagePullState::Limited, PullProgress::default())),
        Pull::Running(progress) => Some((ImagePullState::Running, *progress)),
        Pull::Copying { copied, size, .. } => {
            let progress = PullProgress { fetched: *copied, size: *size, ..PullProgress::default() };
            Some((ImagePullState::Running, progress))
        }
        Pull::Ended(_) => None,
    }
}

fn describe(image: &ListedImage, snapshot: &Snapshot, users: &Users) -> Image {
    let record = record(snapshot, &image.id);
    let last_used_at = match (snapshot.used.get(&image.id), record) {
        (Some(used), _) => Some(used.wall),
        // The record was made when the image was adopted or pinned, which is no use of it.
        (None, Some(record)) if record.origin == Origin::Here && record.used.wall == record.since => None,
        (None, record) => record.map(|record| record.used.wall),
    };
    Image {
        id: image.id.clone(),
        names: image.names.clone(),
        digests: image.digests.clone(),
        size_bytes: image.size,
        shared_bytes: image.shared,
        owner: if snapshot.is_ours(image) { ImageOwner::Ostler } else { ImageOwner::Foreign },
        origin: record.map(origin),
        sources: record.map(sources).unwrap_or_default(),
        pinned: record.is_some_and(|record| record.pinned),
        removing: snapshot.removing.contains(&image.id),
        workspaces: users.workspaces.get(&*image.id).cloned().unwrap_or_default(),
        sessions: users.sessions.get(&*image.id).cloned().unwrap_or_default(),
        containers: snapshot.containers.as_ref().map(|used| used.get(&image.id).copied().unwrap_or(0)),
        pulled_at: record.filter(|record| record.origin == Origin::Registry).map(|record| record.since),
        last_used_at,
    }
}

fn record<'a>(snapshot: &'a Snapshot, id: &str) -> Option<&'a Record> {
    let ImageStoreInfo { store, .. } = snapshot.store.as_ref()?;
    snapshot.records.record(store, id)
}

const fn origin(record: &Record) -> ImageOrigin {
    match record.origin {
        Origin::Registry => ImageOrigin::Registry,
        Origin::Peer => ImageOrigin::Peer,
        Origin::Here => ImageOrigin::Here,
    }
}

fn sources(record: &Record) -> Vec<ImageSource> {
    let fetched = record.names.iter().filter_map(|(name, naming)| Some((name, naming.fetched.as_ref()?)));
    fetched
        .map(|(name, fetched)| ImageSource {
            name: name.clone(),
            digest: fetched.digest.clone(),
            checked_at: fetched.at.wall,
        })
        .collect()
}

/// The ids of images by what names them.
struct Names<'a> {
    /// By `repository:tag`, and by `repository@digest`.
    by_name: BTreeMap<&'a str, &'a str>,
    by_id: BTreeMap<&'a str, &'a str>,
}

impl<'a> Names<'a> {
    fn of(listed: &'a [ListedImage]) -> Self {
        let names = |image: &'a ListedImage| {
            image.names.iter().chain(&image.digests).map(move |name| (name.as_str(), image.id.as_str()))
        };
        let by_id = listed.iter().map(|image| (image.id.as_str(), image.id.as_str())).collect();
        Self { by_name: listed.iter().flat_map(names).collect(), by_id }
    }

    fn meant(&self, reference: &ImageReference) -> Option<&'a str> {
        let by_digest = reference.digest().map(|digest| reference.at_digest(digest));
        self.by_name.get(by_digest.as_ref().unwrap_or(reference).as_str()).copied()
    }

    /// The image that a session was made from: by the digest that it had then, since the tag may have moved.
    fn made(&self, session: &SessionProfile, records: &BTreeMap<(&str, &str), &'a str>) -> Option<&'a str> {
        let reference = ImageReference::parse(session.image.as_ref()?).ok()?;
        let Some(digest) = session.image_digest.as_deref() else { return self.meant(&reference) };
        let recorded = || records.get(&(reference.as_str(), digest)).copied();
        self.by_id.get(digest).copied().or_else(recorded).or_else(|| self.meant(&reference.at_digest(digest)))
    }
}

/// Who uses each image, by its id.
#[derive(Default)]
struct Users<'a> {
    workspaces: BTreeMap<&'a str, Vec<Name>>,
    sessions: BTreeMap<&'a str, Vec<SessionId>>,
}

impl<'a> Users<'a> {
    fn of(inputs: Inputs<'a>, names: &Names<'a>) -> Self {
        let Inputs { images, catalogue, sessions, .. } = inputs;
        let (mut users, fetched) = (Self::default(), fetched(images));
        for (name, workspace) in &catalogue.workspaces {
            let reference = workspace.image_reference().and_then(|image| ImageReference::parse(&image).ok());
            if let Some(id) = reference.and_then(|reference| names.meant(&reference)) {
                users.workspaces.entry(id).or_default().push(name.clone());
            }
        }
        for (session, profile) in sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id)) {
            if let Some(id) = names.made(profile, &fetched) {
                users.sessions.entry(id).or_default().push(*session);
            }
        }
        users
    }
}

/// The ids of the listed images by what registries gave: a name and a digest.
fn fetched(snapshot: &Snapshot) -> BTreeMap<(&str, &str), &str> {
    let listed = snapshot.images.iter().flat_map(|images| images.iter());
    let recorded = listed.filter_map(|image| Some((image, record(snapshot, &image.id)?)));
    let digests = recorded.flat_map(|(image, record)| {
        let fetched = record.names.iter().filter_map(|(name, naming)| Some((name, naming.fetched.as_ref()?)));
        fetched.filter_map(|(name, fetched)| Some(((name.as_str(), fetched.digest.as_deref()?), image.id.as_str())))
    });
    digests.collect()
}

/// What all images take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Total {
    at_least: Bytes,
    at_most: Bytes,
    /// The engine tells of every image what it shares.
    is_told: bool,
}

impl Total {
    /// A layer that images share is in at least two of them. So all shared layers together take at most half of what the
    /// images share, and at least as much as one image shares.
    fn of(listed: &[ListedImage]) -> Self {
        let (mut alone, mut shared, mut most) = (0_u64, 0_u64, 0);
        for image in listed {
            let part = image.shared.map_or(0, Bytes::get);
            alone = alone.saturating_add(image.size.get().saturating_sub(part));
            shared = shared.saturating_add(part);
            most = most.max(part);
        }
        let bytes = |shared: u64| Bytes::new(alone.saturating_add(shared));
        let is_told = listed.iter().all(|image| image.shared.is_some());
        Self { at_least: bytes(most), at_most: bytes((shared / 2).max(most)), is_told }
    }

    /// `None`: only the bounds are known.
    fn exactly(self) -> Option<Bytes> {
        (self.is_told && self.at_least == self.at_most).then_some(self.at_most)
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
