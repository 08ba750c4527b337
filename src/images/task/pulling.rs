//! The pulls of the owner, from the turn of each to what it brought.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::peer::{self, Brought, Here, Source, Tried};
use super::{Done, Owner};
use crate::events::Happening;
use crate::images::offers::Place;
use crate::images::ownership::Origin;
use crate::images::provide::{platform_of, runs};
use crate::images::pulls::{Trouble, Urgency, Via};
use crate::images::{Pull, credentials};
use crate::runtime::images::{ImageDetails, ImageStore, ListedImage, PullCause, PullError, PullOptions, PullProgress};
use crate::runtime::{self, Images};
use crate::types::{ImageReference, Platform, Timestamp};

/// How long a pull waits for a list of the images that are here now. Beyond it the last list counts, which the engine's
/// events have kept up to date.
const LIST_BEFORE_PULL: Duration = Duration::from_secs(2);
/// How long a pull waits for the leader to tell whether its registry limits pulls. Without an answer it goes on.
const ASK_NEIGHBOURS: Duration = Duration::from_secs(1);
/// When the next pull from a registry is, is published in steps of this: it differs by the jitter anyway.
const LIMIT_STEP: Duration = Duration::from_secs(60);
/// Progress of a pull that waits to be published; a newer one replaces it.
const PROGRESS: usize = 16;

impl Owner {
    pub(super) fn start_pulls(&mut self) {
        // What is pulled now would fill the disk that is being freed.
        if self.prunes.is_making_room() {
            return;
        }
        let most = usize::try_from(self.config.borrow().max_pulls).unwrap_or(usize::MAX);
        let (source, images) = (&self.source, self.images.as_deref());
        let may_copy = |image: &ImageReference| may_copy(source, images, image);
        while let Some((image, via)) = self.pulls.next(most, self.clock.now().boot, may_copy) {
            let (told, fresh) = oneshot::channel();
            self.listing.ask(told);
            let neighbours = Arc::clone(&self.neighbours);
            self.tasks.spawn(async move {
                let registry = async {
                    match via {
                        Via::Registry => timeout(ASK_NEIGHBOURS, neighbours.ask(image.registry())).await.ok().flatten(),
                        Via::Peers => None,
                    }
                };
                let (_, limit) = tokio::join!(timeout(LIST_BEFORE_PULL, fresh), registry);
                Done::MayBegin(image, via, limit)
            });
        }
    }

    /// Those that wait are told what they wait for.
    pub(super) fn tell_waiting(&self) {
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

    /// Finds out what those pulls brought whose end is not known: an earlier life of the agent began them, or the engine
    /// did not answer.
    pub(super) fn resolve(&mut self, store: &ImageStore) {
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

    pub(super) async fn resolved(
        &mut self,
        image: &ImageReference,
        seen: Result<Option<ImageDetails>, runtime::Error>,
    ) {
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
        self.listing.outdate();
        self.keep().await;
    }

    pub(super) async fn begin_pull(&mut self, image: ImageReference, via: Via) {
        let begun = self.record_begin(&image).await;
        if let Err(error) = begun {
            self.end_pull(&image, Err(error));
            return;
        }
        let Some(report) = self.reports.get(&image).cloned() else { return };
        tracing::debug!(%image, "pulling the image");
        let begun = Instant::now();
        let (source, here, host) = (Arc::clone(&self.source), self.here(&image), platform_of(&self.health));
        self.tasks.spawn(async move {
            let tried = source.bring(&image, via, here, host, &report).await;
            let id = tried.brought.as_ref().ok().and_then(|brought| brought.id.as_deref());
            let seen = source.engine.inspect(id.unwrap_or(image.as_str())).await;
            Done::Pulled(image, tried, seen, begun.elapsed())
        });
    }

    /// A pull that was about to begin waits for its registry, or asks the other nodes only. Without either it ends, if
    /// nobody waits for it: it is asked for again when it is needed.
    pub(super) fn wait_again(&mut self, image: &ImageReference) {
        let is_awaited = self.pulls.urgency(image) == Some(Urgency::Demand);
        if is_awaited || may_copy(&self.source, self.images.as_deref(), image) {
            self.pulls.again(image);
        } else {
            self.end_pull(image, Err(peer::limited(image)));
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

    pub(super) async fn pulled(
        &mut self,
        image: ImageReference,
        Tried { registry, brought }: Tried,
        seen: Result<Option<ImageDetails>, runtime::Error>,
        took: Duration,
    ) {
        let now = self.clock.now();
        let records = Arc::make_mut(&mut self.records);
        match (&brought, seen) {
            (Ok(Brought { digest, origin, fetched, node, .. }), Ok(Some(details))) => {
                let from = node.as_deref().unwrap_or("registry");
                self.metrics.pulled(details.size, node.is_some());
                self.events.record(Happening::image_pulled(&image, Some(details.size), took, from), None);
                records.pulled(&image, &details, digest.clone(), *origin, now);
                if let (false, Some(place)) = (fetched, &self.place) {
                    records.not_fetched(&place.store, &details.id, &image);
                }
            }
            // The record of the pull stays: the next list finds out what it brought.
            (Ok(_), Err(_)) => {}
            (Ok(_), Ok(None)) => records.not_pulled(&image),
            (Err(error), seen) => {
                self.metrics.failed(error.cause);
                self.events.record(Happening::image_failed(&image, &error.to_string()), None);
                if error.cause != PullCause::Engine {
                    records.not_pulled(&image);
                }
                if let (Ok(Some(details)), Some(place)) = (seen, &self.place) {
                    records.not_answered(&place.store, &details.id, &image, now);
                }
            }
        }
        self.listing.outdate();
        self.keep().await;
        if let Some(answer) = registry {
            self.note_registry(&image, answer.err());
        }
        let is_awaited = self.pulls.urgency(&image) == Some(Urgency::Demand);
        match brought.as_ref().map_err(|error| error.cause) {
            Err(PullCause::Limited) if is_awaited => self.pulls.wait(&image),
            Err(PullCause::DiskFull) if self.tried_again.insert(image.clone()) => {
                tracing::warn!(%image, "the disk of the images is full: making room, and pulling the image once more");
                self.make_room_for_pull();
                self.pulls.again(&image);
            }
            _ => self.end_pull(&image, brought.map(drop)),
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

    pub(super) fn end_pull(&mut self, image: &ImageReference, result: Result<(), PullError>) {
        self.pulls.ended(image);
        self.tried_again.remove(image);
        let report = self.reports.remove(image);
        // Published first, so that a caller that waits finds the records of its image.
        self.publish();
        report.map(|report| report.send_replace(Pull::Ended(result)));
    }

    /// The registries that limit pulls, and about when the next pull from each is.
    pub(super) fn limited(&self) -> BTreeMap<String, Timestamp> {
        let now = self.clock.now();
        let step = i64::try_from(LIMIT_STEP.as_millis()).unwrap_or(i64::MAX);
        let limited = self.pulls.limited(now.boot).map(|(registry, until)| {
            let at = now.wall.plus(until.since(now.boot)).millis();
            (registry.to_owned(), Timestamp::from_millis(at.div_euclid(step).saturating_add(1).saturating_mul(step)))
        });
        limited.collect()
    }
}

/// Whether an image may come from another node. One that has the name already is only refreshed, which a registry alone can
/// do.
fn may_copy(source: &Source, images: Option<&[ListedImage]>, image: &ImageReference) -> bool {
    let mut here = images.unwrap_or_default().iter();
    source.may_copy() && !here.any(|listed| image.names(&listed.names, &listed.digests))
}

/// Whether two tables of limits say the same. A time that was computed again may fall into the next step.
pub(super) fn agree(told: &BTreeMap<String, Timestamp>, now: &BTreeMap<String, Timestamp>) -> bool {
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

/// Who pulls, and for which platform: if an image for another platform is here under this name, only one for the host is
/// of use.
pub(super) async fn options(
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
pub(super) async fn pull(
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
