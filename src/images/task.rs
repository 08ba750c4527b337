//! The owner of the images: runs the pulls, records what they bring, and keeps a list of the engine's images.
//!
//! The engine's slow calls run in tasks of their own, which end with a [`Done`]. The owner alone writes the records, and
//! every pull waits until its record is on disk.

mod around;
mod peer;
mod prune;
mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout};

use self::peer::{Brought, Here, Source};
use super::offers::Place;
use super::ownership::{Origin, Records};
use super::pulls::{Pulls, Trouble, Urgency};
use super::store::Store;
use super::{
    Command, Config, Error, Handle, Neighbours, Pull, QUEUE, Request, Snapshot, credentials, platform_of, runs,
};
use crate::clock::Clock;
use crate::runtime::images::{
    ImageDetails, ImageList, ImageStore, ImageStoreInfo, ListedImage, PullCause, PullError, PullOptions, PullProgress,
    Removal,
};
use crate::runtime::{self, Health, Images};
use crate::types::{Actor, Disk, ImageReference, Moment, Platform, Timestamp};

pub use self::peer::Others;
pub use around::Around;
use prune::{Prunes, Survey};
use round::{Ask, Cause};

/// How often the images are listed though the engine tells of no change.
const LIST_EVERY: Duration = Duration::from_secs(600);
/// The least pause after a list. It is also ten times as long as the list took, so that a slow engine lists for a tenth
/// of its time at most.
const LIST_PAUSE: Duration = Duration::from_secs(1);
const LIST_PAUSE_FACTOR: u32 = 10;
/// How long a pull waits for a list of the images that are here now. Beyond it the last list counts, which the engine's
/// events have kept up to date.
const LIST_BEFORE_PULL: Duration = Duration::from_secs(2);
/// How often the time when images were last used goes to disk, and a write that failed is tried again.
const KEEP_EVERY: Duration = Duration::from_secs(300);
/// A list that is older is made anew when somebody looks at it: containers come and go without an event of an image.
const LOOK_AFTER: Duration = Duration::from_secs(10);
/// How long a pull waits for the leader to tell whether its registry limits pulls. Without an answer it goes on.
const ASK_NEIGHBOURS: Duration = Duration::from_secs(1);
/// When the next pull from a registry is, is published in steps of this: it differs by the jitter anyway.
const LIMIT_STEP: Duration = Duration::from_secs(60);
/// Progress of a pull that waits to be published; a newer one replaces it.
const PROGRESS: usize = 16;

/// What the owner is made of.
pub struct Parts {
    /// Its changes are followed.
    pub config: watch::Receiver<Config>,
    pub store: Store,
    pub engine: Arc<dyn Images>,
    pub health: watch::Receiver<Health>,
    pub neighbours: Arc<dyn Neighbours>,
    pub clock: Clock,
    pub others: Others,
}

/// The owner, made and not started: requests wait for it.
pub struct Made {
    parts: Parts,
    inbox: mpsc::Receiver<Request>,
    publish: watch::Sender<Arc<Snapshot>>,
}

/// Makes the owner. Those that it reads need its handle, so that it is started after them.
pub fn make(parts: Parts) -> (Handle, Made) {
    let (requests, inbox) = mpsc::channel(QUEUE);
    let records = Arc::new(parts.store.written().clone());
    let snapshot = Snapshot { records, records_lost: parts.store.lost(), ..Snapshot::default() };
    let (publish, published) = watch::channel(Arc::new(snapshot));
    let handle = Handle {
        requests,
        snapshot: published,
        engine: Arc::clone(&parts.engine),
        health: parts.health.clone(),
        clock: parts.clock.clone(),
    };
    (handle, Made { parts, inbox, publish })
}

impl Made {
    /// Starts the owner. It ends when every handle is dropped.
    pub fn start(self, around: Around) -> JoinHandle<()> {
        let Self { parts: Parts { config, store, engine, health, neighbours, clock, others }, inbox, publish } = self;
        let owner = Owner {
            source: Source::new(Arc::clone(&engine), config.clone(), others),
            config,
            engine,
            health,
            neighbours,
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

/// Lists, one at a time.
#[derive(Default)]
struct Listing {
    /// A list runs. Those of `next` came after it began, so it may lack what they saw.
    runs: bool,
    /// A list is wanted, not before this time.
    wanted: bool,
    not_before: Option<Instant>,
    ended_at: Option<Instant>,
    /// A record changed since the list that runs began, which may not show it.
    is_outdated: bool,
    /// What was removed since the list that runs began, which may show it.
    gone: BTreeSet<String>,
    /// Pulls that wait for the list that runs, and for the one after it.
    current: Vec<oneshot::Sender<()>>,
    next: Vec<oneshot::Sender<()>>,
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
    MayBegin(ImageReference, Option<Duration>),
    /// The leader was told of a registry, or did not answer.
    Told,
    Pulled(ImageReference, Result<Brought, PullError>, Result<Option<ImageDetails>, runtime::Error>),
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
                    self.listing.wanted = true;
                }
                _ = relist.tick() => self.listing.wanted = true,
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
        (self.listing.wanted, self.listing.not_before) = (true, None);
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

    fn start_pulls(&mut self) {
        let most = usize::try_from(self.config.borrow().max_pulls).unwrap_or(usize::MAX);
        while let Some(image) = self.pulls.next(most, self.clock.now().boot) {
            let (told, fresh) = oneshot::channel();
            self.listing.ask(told);
            let neighbours = Arc::clone(&self.neighbours);
            self.tasks.spawn(async move {
                let asked = timeout(ASK_NEIGHBOURS, neighbours.ask(image.registry()));
                let (_, asked) = tokio::join!(timeout(LIST_BEFORE_PULL, fresh), asked);
                Done::MayBegin(image, asked.ok().flatten())
            });
        }
    }

    /// Those that wait are told what they wait for.
    fn tell_waiting(&self) {
        for image in self.pulls.waiting() {
            let registry = image.registry();
            let waits = match self.pulls.limited_until(registry) {
                Some(until) => Pull::Limited { registry: registry.to_owned(), until },
                None => Pull::Waiting,
            };
            if let Some(report) = self.reports.get(image) {
                report.send_if_modified(|told| std::mem::replace(told, waits.clone()) != waits);
            }
        }
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Listed { listed, containers, took } => self.listed(listed, containers, took).await,
            Done::MayBegin(image, _) if self.prunes.holds(&image) => {}
            Done::MayBegin(image, Some(pause)) if !pause.is_zero() => {
                self.pulls.hold(image.registry(), pause, self.clock.now().boot);
                self.wait_again(&image);
            }
            Done::MayBegin(image, _) => self.begin_pull(image).await,
            Done::Told => {}
            Done::Pulled(image, pulled, seen) => self.pulled(image, pulled, seen).await,
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

    /// Finds out what those pulls brought whose end is not known: an earlier life of the agent began them, or the engine
    /// did not answer.
    fn resolve(&mut self, store: &ImageStore) {
        let open = self
            .records
            .intents
            .iter()
            .filter(|(image, intent)| intent.store == *store && !self.reports.contains_key(*image));
        for (image, _) in open {
            let (engine, image) = (Arc::clone(&self.engine), image.clone());
            self.tasks.spawn(async move {
                let seen = engine.inspect(image.as_str()).await;
                Done::Resolved(image, seen)
            });
        }
    }

    async fn resolved(&mut self, image: &ImageReference, seen: Result<Option<ImageDetails>, runtime::Error>) {
        // A pull of this life has begun meanwhile, and records anew.
        if self.reports.contains_key(image) {
            return;
        }
        let Ok(seen) = seen else { return };
        let now = self.clock.now();
        let records = Arc::make_mut(&mut self.records);
        let is_new = |details: &ImageDetails| {
            records.intents.get(image).is_some_and(|intent| !intent.present.contains(&details.id))
        };
        match seen.filter(is_new) {
            Some(details) => records.pulled(image, &details, None, Origin::Registry, now),
            None => records.not_pulled(image),
        }
        (self.listing.wanted, self.listing.is_outdated) = (true, true);
        self.keep().await;
    }

    async fn begin_pull(&mut self, image: ImageReference) {
        let begun = self.record_begin(&image).await;
        if let Err(error) = begun {
            self.end_pull(&image, Err(error));
            return;
        }
        let Some(report) = self.reports.get(&image).cloned() else { return };
        tracing::info!(%image, "pulling the image");
        let (source, here, host) = (Arc::clone(&self.source), self.here(&image), platform_of(&self.health));
        self.tasks.spawn(async move {
            let pulled = source.bring(&image, here, host, &report).await;
            let seen = source.engine.inspect(image.as_str()).await;
            Done::Pulled(image, pulled, seen)
        });
    }

    /// A pull that was about to begin waits for its registry. Without anybody that waits for it, it ends: it is asked for
    /// again when it is needed.
    fn wait_again(&mut self, image: &ImageReference) {
        match self.pulls.urgency(image) {
            Some(Urgency::Demand) => self.pulls.again(image),
            _ => {
                let message = format!("cannot pull {image}: registry {} limits pulls (429)", image.registry());
                self.end_pull(image, Err(PullError { cause: PullCause::Limited, message }));
            }
        }
    }

    /// What is here, if the image may come from another node: one that has the name already is only refreshed, which a
    /// registry alone can do.
    fn here(&self, image: &ImageReference) -> Option<Here> {
        let (place, intent) = (self.place.as_ref()?, self.records.intents.get(image)?);
        if intent.named.is_some() {
            return None;
        }
        let (store, path, platform) = (place.store.kind, place.path.clone(), platform_of(&self.health));
        Some(Here { place: Place { store, platform }, path, ids: intent.present.clone() })
    }

    /// Records that a pull begins, with every image that is here.
    async fn record_begin(&mut self, image: &ImageReference) -> Result<(), PullError> {
        let (Some(place), Some(images)) = (&self.place, &self.images) else {
            let message = "the engine has not listed its images yet".to_owned();
            return Err(PullError { cause: PullCause::Engine, message });
        };
        Arc::make_mut(&mut self.records).begin(image, &place.store, images);
        if let Err(error) = self.store.keep(&self.records).await {
            Arc::make_mut(&mut self.records).not_pulled(image);
            let message = format!("cannot record the pull of {image}: {error}");
            return Err(PullError { cause: PullCause::Other, message });
        }
        Ok(())
    }

    async fn pulled(
        &mut self,
        image: ImageReference,
        pulled: Result<Brought, PullError>,
        seen: Result<Option<ImageDetails>, runtime::Error>,
    ) {
        let now = self.clock.now();
        let records = Arc::make_mut(&mut self.records);
        match (&pulled, seen) {
            (Ok(Brought { digest, origin, fetched, .. }), Ok(Some(details))) => {
                tracing::info!(%image, id = details.id, "pulled the image");
                records.pulled(&image, &details, digest.clone(), *origin, now);
                if let (false, Some(place)) = (fetched, &self.place) {
                    records.not_fetched(&place.store, &details.id, &image);
                }
            }
            // The record of the pull stays: the next list finds out what it brought.
            (Ok(_), Err(_)) => {}
            (Ok(_), Ok(None)) => records.not_pulled(&image),
            (Err(error), seen) => {
                tracing::warn!(%image, "cannot pull the image: {error}");
                if error.cause != PullCause::Engine {
                    records.not_pulled(&image);
                }
                if let (Ok(Some(details)), Some(place)) = (seen, &self.place) {
                    records.not_answered(&place.store, &details.id, &image, now);
                }
            }
        }
        (self.listing.wanted, self.listing.is_outdated) = (true, true);
        self.keep().await;
        let cause = pulled.as_ref().err().map(|error| error.cause);
        match &pulled {
            // It may not have been asked.
            Ok(Brought { origin: Origin::Peer, refused: None, .. }) => {}
            Ok(Brought { refused, .. }) => self.note_registry(&image, *refused),
            Err(error) => self.note_registry(&image, Some(error.cause)),
        }
        match cause {
            Some(PullCause::Limited) if self.pulls.urgency(&image) == Some(Urgency::Demand) => self.pulls.again(&image),
            Some(PullCause::DiskFull) if self.tried_again.insert(image.clone()) => {
                self.disk_is_full();
                self.pulls.again(&image);
            }
            _ => self.end_pull(&image, pulled.map(drop)),
        }
    }

    /// Leaves a registry alone that is in trouble. Other hosts hear of a limit, which holds for them too.
    fn note_registry(&mut self, image: &ImageReference, cause: Option<PullCause>) {
        let registry = image.registry();
        let trouble = match cause {
            None => return self.pulls.worked(registry),
            Some(PullCause::Limited) => Trouble::Limits,
            Some(PullCause::Registry | PullCause::Stalled) => Trouble::Fails,
            Some(_) => return,
        };
        let pause = self.pulls.failed(registry, trouble, self.clock.now().boot, random());
        tracing::warn!(registry, pause_seconds = pause.as_secs(), ?trouble, "leaving the registry alone for a while");
        if trouble == Trouble::Limits {
            let (neighbours, registry) = (Arc::clone(&self.neighbours), registry.to_owned());
            self.tasks.spawn(async move {
                neighbours.tell(&registry, pause).await;
                Done::Told
            });
        }
    }

    /// A pull met a full disk, and is tried once more.
    #[expect(clippy::unused_self, reason = "it asks for room where images are removed")]
    fn disk_is_full(&mut self) {
        tracing::warn!("the disk of the images is full");
    }

    fn end_pull(&mut self, image: &ImageReference, result: Result<(), PullError>) {
        self.pulls.ended(image);
        self.tried_again.remove(image);
        let report = self.reports.remove(image);
        // Published first, so that a caller that waits finds the records of its image.
        self.publish();
        report.map(|report| report.send_replace(Pull::Ended(result)));
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
        (self.listing.wanted, self.listing.is_outdated) = (true, true);
        tracing::info!(image = image.id, names = image.names.join(" "), ?command, %by, "image changed");
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

    /// The registries that limit pulls, and about when the next pull from each is.
    fn limited(&self) -> BTreeMap<String, Timestamp> {
        let now = self.clock.now();
        let step = i64::try_from(LIMIT_STEP.as_millis()).unwrap_or(i64::MAX);
        let limited = self.pulls.limited(now.boot).map(|(registry, until)| {
            let at = now.wall.plus(until.since(now.boot)).millis();
            (registry.to_owned(), Timestamp::from_millis(at.div_euclid(step).saturating_add(1).saturating_mul(step)))
        });
        limited.collect()
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

/// Whether two tables of limits say the same. A time that was computed again may fall into the next step.
fn agree(told: &BTreeMap<String, Timestamp>, now: &BTreeMap<String, Timestamp>) -> bool {
    let is_same = |(one, two): (&Timestamp, &Timestamp)| one.since(*two).max(two.since(*one)) <= LIMIT_STEP;
    told.keys().eq(now.keys()) && told.values().zip(now.values()).all(is_same)
}

/// For the jitter of a pause.
fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter.
    let _ = SystemRandom::new().fill(&mut bytes);
    u32::from_ne_bytes(bytes)
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

/// Who pulls, and for which platform: if an image for another platform is here under this name, only one for the host is
/// of use.
async fn options(
    engine: &dyn Images,
    image: &ImageReference,
    credentials: Option<PathBuf>,
    host: Option<Platform>,
) -> Result<PullOptions, PullError> {
    let login = match credentials {
        Some(file) => credentials::login(&file, image).await.map_err(|error| {
            let message = format!("cannot pull {image}: {error}");
            PullError { cause: PullCause::Other, message }
        })?,
        None => None,
    };
    let here = engine.inspect(image.as_str()).await.ok().flatten();
    let platform = host.filter(|host| here.is_some_and(|here| !runs(&here, Some(host))));
    Ok(PullOptions { login, platform, ..PullOptions::default() })
}

/// Pulls an image, and publishes the progress.
async fn pull(
    engine: &dyn Images,
    image: &ImageReference,
    options: &PullOptions,
    report: &watch::Sender<Pull>,
) -> Result<Option<String>, PullError> {
    report.send_replace(Pull::Running(PullProgress::default()));
    let (progress, mut told) = mpsc::channel(PROGRESS);
    let mut pulling = engine.pull(image, options, progress);
    loop {
        tokio::select! {
            result = &mut pulling => return result,
            Some(progress) = told.recv() => drop(report.send_replace(Pull::Running(progress))),
        }
    }
}

impl Listing {
    /// When a list is due; `None`: none is wanted, or one runs.
    fn due(&self) -> Option<Instant> {
        let is_wanted = self.wanted || !self.next.is_empty();
        (is_wanted && !self.runs).then(|| match self.not_before {
            // A pull waits for it.
            _ if !self.next.is_empty() => Instant::now(),
            Some(at) => at,
            None => Instant::now(),
        })
    }

    /// A list is wanted, unless the last one is as good as new.
    fn look(&mut self) {
        self.wanted |= self.ended_at.is_none_or(|at| at.elapsed() >= LOOK_AFTER);
    }

    /// A list that begins after now tells `fresh`.
    fn ask(&mut self, fresh: oneshot::Sender<()>) {
        self.next.push(fresh);
    }

    fn begin(&mut self) {
        (self.runs, self.wanted, self.is_outdated) = (true, false, false);
        self.gone.clear();
        self.current = std::mem::take(&mut self.next);
    }

    fn ended(&mut self, took: Duration, well: bool) {
        self.runs = false;
        self.ended_at = Some(Instant::now());
        self.not_before = Some(Instant::now() + LIST_PAUSE.max(took * LIST_PAUSE_FACTOR));
        self.wanted |= !well;
        // Those who wait are told that no list came by dropping their ends.
        for fresh in std::mem::take(&mut self.current) {
            if well {
                let _ = fresh.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
