//! The owner of the images: runs the pulls, records what they bring, and keeps a list of the engine's images.
//!
//! The engine's slow calls run in tasks of their own, which end with a [`Done`]. The owner alone writes the records, and
//! every pull waits until its record is on disk.

mod around;
mod listing;
mod peer;
mod prune;
mod pulling;
mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until};

use self::listing::Listing;
use self::peer::{Source, Tried};
use self::pulling::agree;
use super::metrics::Metrics;
use super::ownership::Records;
use super::pulls::{Pulls, Via};
use super::store::Store;
use super::{Command, Config, Error, Handle, Neighbours, Pull, QUEUE, Request, Snapshot};
use crate::clock::Clock;
use crate::events::{self, Happening};
use crate::runtime::images::{DiskUsage, ImageDetails, ImageList, ImageStoreInfo, ListedImage, Removal};
use crate::runtime::{self, Health, Images};
use crate::types::{Actor, Disk, ImageReference, Moment, Timestamp};

pub use self::peer::Others;
pub use around::Around;
use prune::{Prunes, Survey};
use round::{Ask, Cause};

/// How often the images are listed though the engine tells of no change.
const LIST_EVERY: Duration = Duration::from_secs(600);
/// How often the time when images were last used goes to disk, and a write that failed is tried again.
const KEEP_EVERY: Duration = Duration::from_secs(300);

/// What the owner is made of.
pub struct Parts {
    /// Its changes are followed.
    pub config: watch::Receiver<Config>,
    pub store: Store,
    pub engine: Arc<dyn Images>,
    pub health: watch::Receiver<Health>,
    pub neighbours: Arc<dyn Neighbours>,
    pub events: events::Handle,
    pub clock: Clock,
    pub others: Others,
}

/// The owner, made and not started: requests wait for it.
pub struct Made {
    parts: Parts,
    metrics: Metrics,
    inbox: mpsc::Receiver<Request>,
    publish: watch::Sender<Arc<Snapshot>>,
}

/// Makes the owner. Those that it reads need its handle, so that it is started after them.
pub fn make(parts: Parts) -> (Handle, Made) {
    let (requests, inbox) = mpsc::channel(QUEUE);
    let records = Arc::new(parts.store.written().clone());
    let snapshot = Snapshot { records, records_lost: parts.store.lost(), ..Snapshot::default() };
    let (publish, published) = watch::channel(Arc::new(snapshot));
    let metrics = Metrics::default();
    let handle = Handle {
        requests,
        snapshot: published,
        engine: Arc::clone(&parts.engine),
        health: parts.health.clone(),
        clock: parts.clock.clone(),
        metrics: metrics.clone(),
    };
    (handle, Made { parts, metrics, inbox, publish })
}

impl Made {
    /// Starts the owner. It ends when every handle is dropped.
    pub fn start(self, around: Around) -> JoinHandle<()> {
        let Self { parts, metrics, inbox, publish } = self;
        let Parts { config, store, engine, health, neighbours, events, clock, others } = parts;
        let owner = Owner {
            source: Source::new(Arc::clone(&engine), config.clone(), others),
            config,
            engine,
            health,
            neighbours,
            events,
            metrics,
            clock,
            records: Arc::new(store.written().clone()),
            store,
            used: BTreeMap::new(),
            place: None,
            images: None,
            containers: None,
            listed_at: None,
            listing: Listing::default(),
            compared: BTreeSet::new(),
            pulls: Pulls::default(),
            tried_again: BTreeSet::new(),
            reports: BTreeMap::new(),
            prunes: Prunes::new(around),
            tasks: JoinSet::new(),
            publish,
        };
        tokio::spawn(owner.run(inbox))
    }
}

struct Owner {
    config: watch::Receiver<Config>,
    store: Store,
    engine: Arc<dyn Images>,
    source: Arc<Source>,
    health: watch::Receiver<Health>,
    neighbours: Arc<dyn Neighbours>,
    events: events::Handle,
    metrics: Metrics,
    clock: Clock,
    records: Arc<Records>,
    /// The last uses that are not in the records yet.
    used: BTreeMap<String, Moment>,
    place: Option<ImageStoreInfo>,
    images: Option<Arc<[ListedImage]>>,
    /// How many containers used each image at the last list.
    containers: Option<Arc<BTreeMap<String, u32>>>,
    listed_at: Option<Timestamp>,
    listing: Listing,
    /// Images of other programs that were compared with the records of another store.
    compared: BTreeSet<String>,
    pulls: Pulls,
    /// The pulls that met a full disk and are tried once more.
    tried_again: BTreeSet<ImageReference>,
    /// The reports of the pulls that wait or run.
    reports: BTreeMap<ImageReference, watch::Sender<Pull>>,
    prunes: Prunes,
    tasks: JoinSet<Done>,
    publish: watch::Sender<Arc<Snapshot>>,
}

/// What a task of the owner ended with.
enum Done {
    Listed {
        listed: Result<ImageList, runtime::Error>,
        /// `None`: the engine did not list its containers.
        containers: Option<BTreeMap<String, u32>>,
        took: Duration,
    },
    /// A list is here that began after the pull was asked for, or none came in time. Other hosts may have told how long
    /// the registry is to be left alone.
    MayBegin(ImageReference, Via, Option<Duration>),
    /// The leader was told of a registry, or did not answer.
    Told,
    Pulled(ImageReference, Tried, Result<Option<ImageDetails>, runtime::Error>, Duration),
    /// What an open pull of an earlier life of the agent brought.
    Resolved(ImageReference, Result<Option<ImageDetails>, runtime::Error>),
    /// An image that may be recorded in another store.
    Compared(Result<Option<ImageDetails>, runtime::Error>),
    /// The image that a person wants to change.
    Found(Result<ImageDetails, Error>, Command, Actor, oneshot::Sender<Result<ImageDetails, Error>>),
    /// The images are listed for a dry run, or for the round that runs.
    Surveyed(Option<Ask>, Result<Survey, runtime::Error>),
    /// What became of the image that the round removes, and the file system of the images after it.
    Removed(Result<Removal, runtime::Error>, Option<Disk>),
    /// What else is on the disk that a round could not free enough.
    DiskUsage(Result<DiskUsage, runtime::Error>),
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut changes = self.engine.changes();
        let mut keep = tokio::time::interval(KEEP_EVERY);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut relist = tokio::time::interval(LIST_EVERY);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.health.mark_changed();
        loop {
            let list_at = self.listing.due();
            let now = self.clock.now().boot;
            let pulls_in = self.pulls.due(now).map(|due| due.since(now));
            let prune_at = self.prunes.due(self.config.borrow().prune_interval);
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => self.take(request),
                    None => return,
                },
                Ok(()) = self.health.changed() => self.follow_engine(),
                Ok(()) = self.config.changed() => self.config.mark_unchanged(),
                Ok(()) = changes.changed() => {
                    changes.mark_unchanged();
                    self.listing.want();
                }
                _ = relist.tick() => self.listing.want(),
                _ = keep.tick() => {
                    self.keep().await;
                    self.store.hold_reserve().await;
                }
                () = sleep_until(list_at.unwrap_or_else(Instant::now)), if list_at.is_some() => self.list(),
                () = sleep(pulls_in.unwrap_or_default()), if pulls_in.is_some() => {}
                () = sleep_until(prune_at.unwrap_or_else(Instant::now)), if prune_at.is_some() => self.prune_on_schedule(),
                Ok(()) = self.prunes.around.report.changed() => self.follow_disks(),
                Ok(()) = self.prunes.around.leadership.changed() => self.prunes.follow_leader(),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done).await,
                    Err(failure) => tracing::error!(%failure, "task of the owner of the images failed"),
                },
            }
            self.start_pulls();
            self.tell_waiting();
            self.publish();
        }
    }

    /// The engine that answers may be another one, or have another store.
    fn follow_engine(&mut self) {
        let Health::Up(info) = &*self.health.borrow_and_update() else { return };
        if self.place == info.images {
            return;
        }
        self.place.clone_from(&info.images);
        (self.images, self.containers, self.listed_at) = (None, None, None);
        self.compared.clear();
        self.listing.at_once();
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Pull(image, urgency, reply) => {
                if self.pulls.ask(&image, urgency) {
                    self.reports.insert(image.clone(), watch::Sender::new(Pull::Waiting));
                }
                // The caller may have stopped waiting.
                self.reports.get(&image).map(|report| reply.send(report.subscribe()));
            }
            Request::Used(id) => {
                self.used.insert(id, self.clock.now());
            }
            Request::Look => self.listing.look(),
            Request::Checked { image, digest } => {
                let meant = self.publish.borrow().meant(&image).map(|listed| listed.id.clone());
                if let (Some(id), Some(place)) = (meant, &self.place) {
                    let now = self.clock.now();
                    Arc::make_mut(&mut self.records).checked(&place.store, &id, &image, &digest, now);
                }
            }
            Request::Change { image, command, by, reply } => {
                let found = find(&self.publish.borrow(), &image);
                let engine = Arc::clone(&self.engine);
                self.tasks.spawn(async move {
                    let details = match found {
                        Ok(id) => engine.inspect(&id).await.map_err(Error::from),
                        Err(error) => Err(error),
                    };
                    let found = details.and_then(|details| details.ok_or(Error::NotFound(image)));
                    Done::Found(found, command, by, reply)
                });
            }
            Request::Prune { mode, dry_run, by, reply } => {
                self.prune(Ask { cause: Cause::Person(by, reply), mode, dry_run });
            }
        }
    }

    fn list(&mut self) {
        let engine = Arc::clone(&self.engine);
        self.listing.begin();
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let (listed, containers) = tokio::join!(engine.list(), engine.in_use());
            Done::Listed { listed, containers: containers.ok(), took: begun.elapsed() }
        });
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Listed { listed, containers, took } => self.listed(listed, containers, took).await,
            Done::MayBegin(image, _, Some(pause)) if !pause.is_zero() => {
                self.pulls.hold(image.registry(), pause, self.clock.now().boot);
                self.wait_again(&image);
            }
            Done::MayBegin(image, via, _) if self.prunes.holds(&image, via) => {}
            Done::MayBegin(image, via, _) => self.begin_pull(image, via).await,
            Done::Told => {}
            Done::Pulled(image, tried, seen, took) => self.pulled(image, tried, seen, took).await,
            Done::Resolved(image, seen) => self.resolved(&image, seen).await,
            Done::Compared(seen) => {
                if let (Ok(Some(details)), Some(place)) = (seen, &self.place) {
                    Arc::make_mut(&mut self.records).recognise(&place.store, &details);
                    self.keep().await;
                }
            }
            Done::Found(found, command, by, reply) => {
                let changed = match found {
                    Ok(details) => self.change(details, command, &by).await,
                    Err(error) => Err(error),
                };
                self.publish();
                let _ = reply.send(changed);
            }
            Done::Surveyed(dry, survey) => self.surveyed(dry, survey),
            Done::Removed(removed, disk) => self.removed(removed, disk).await,
            Done::DiskUsage(usage) => self.explained(usage),
        }
    }

    async fn listed(
        &mut self,
        listed: Result<ImageList, runtime::Error>,
        containers: Option<BTreeMap<String, u32>>,
        took: Duration,
    ) {
        self.listing.ended(took, listed.is_ok());
        let ImageList { store, images: mut listed } = match listed {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "cannot list the images of the engine");
                return;
            }
        };
        let now_in_use = self.place.as_ref().map(|place| &place.store);
        // An engine that restarted with another store is followed first.
        let Some(store) = store.filter(|store| Some(store) == now_in_use) else { return };
        // It began before those were removed, and none of them came back by a pull of ours.
        listed
            .retain(|image| !self.listing.gone.contains(&image.id) || self.records.record(&store, &image.id).is_some());
        if !self.listing.is_outdated {
            Arc::make_mut(&mut self.records).listed(&store, &listed);
        }
        self.records.complete(&store, &mut listed);
        for image in self.records.unrecognised(&store, &listed) {
            if self.compared.insert(image.id.clone()) {
                let (engine, id) = (Arc::clone(&self.engine), image.id.clone());
                self.tasks.spawn(async move { Done::Compared(engine.inspect(&id).await) });
            }
        }
        self.images = Some(listed.into());
        (self.containers, self.listed_at) = (containers.map(Arc::new), Some(self.clock.now().wall));
        self.keep().await;
        self.resolve(&store);
    }

    async fn change(&mut self, image: ImageDetails, command: Command, by: &Actor) -> Result<ImageDetails, Error> {
        let Some(place) = &self.place else { return Err(Error::NotFound(image.id)) };
        let before = Arc::clone(&self.records);
        let records = Arc::make_mut(&mut self.records);
        match command {
            Command::Adopt => records.adopt(&place.store, &image, self.clock.now()),
            Command::Pin => records.pin(&place.store, &image, true, self.clock.now()),
            Command::Unpin => records.pin(&place.store, &image, false, self.clock.now()),
        }
        if let Err(error) = self.store.keep(&self.records).await {
            self.records = before;
            return Err(Error::Store(error.into()));
        }
        self.listing.outdate();
        let change = match command {
            Command::Adopt => "adopted",
            Command::Pin => "pinned",
            Command::Unpin => "unpinned",
        };
        let name = image.names.first().map(String::as_str);
        self.events.record(Happening::image_changed(&image.id, name, change), Some(by));
        Ok(image)
    }

    /// Takes the last uses into the records.
    fn note_uses(&mut self) {
        let Some(place) = self.place.as_ref().filter(|_| !self.used.is_empty()) else { return };
        let records = Arc::make_mut(&mut self.records);
        for (id, at) in std::mem::take(&mut self.used) {
            records.used(&place.store, &id, at);
        }
    }

    /// Brings the disk up to date. What cannot be written is tried again.
    async fn keep(&mut self) {
        self.note_uses();
        if let Err(error) = self.store.keep(&self.records).await {
            tracing::error!(%error, "cannot write the records of the images; trying again");
        }
    }

    fn publish(&self) {
        self.publish.send_if_modified(|published| {
            let pulling: BTreeSet<ImageReference> = self.pulls.all().cloned().collect();
            let limited = self.limited();
            let is_news = published.store != self.place
                || !same(published.images.as_ref(), self.images.as_ref())
                || !Arc::ptr_eq(&published.records, &self.records)
                || published.listed_at != self.listed_at
                || published.used != self.used
                || published.pulling != pulling
                || !agree(&published.limited, &limited)
                || published.removing != self.prunes.removing
                || published.disk_pressure != self.prunes.stuck;
            if is_news {
                *published = Arc::new(Snapshot {
                    store: self.place.clone(),
                    images: self.images.clone(),
                    records: Arc::clone(&self.records),
                    removing: self.prunes.removing.clone(),
                    pulling,
                    pulls: self.reports.iter().map(|(image, report)| (image.clone(), report.subscribe())).collect(),
                    listed_at: self.listed_at,
                    containers: self.containers.clone(),
                    used: self.used.clone(),
                    limited,
                    records_lost: published.records_lost.clone(),
                    disk_pressure: self.prunes.stuck.clone(),
                });
            }
            is_news
        });
    }
}

fn same(one: Option<&Arc<[ListedImage]>>, other: Option<&Arc<[ListedImage]>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// The id of the image that a person means: by a name, its id, or a prefix of its id, with `sha256:` or without.
fn find(snapshot: &Snapshot, wanted: &str) -> Result<String, Error> {
    let images = snapshot.images.iter().flat_map(|images| images.iter());
    let short = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).to_owned();
    let wanted_id = short(wanted);
    let of_id: Vec<&ListedImage> =
        images.filter(|image| !wanted_id.is_empty() && short(&image.id).starts_with(&wanted_id)).collect();
    let named = ImageReference::parse(wanted).ok().and_then(|reference| snapshot.meant(&reference));
    match (named, of_id.as_slice()) {
        (Some(image), _) => Ok(image.id.clone()),
        (None, [image]) => Ok(image.id.clone()),
        (None, []) => Err(Error::NotFound(wanted.to_owned())),
        (None, several) => {
            let count = several.len();
            Err(Error::Conflict(format!("`{wanted}` is the beginning of {count} image ids; use a longer one")))
        }
    }
}

#[cfg(test)]
mod tests;
