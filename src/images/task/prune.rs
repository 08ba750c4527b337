//! Rounds of pruning: on a schedule, for a person, or because the disk is too full.
//!
//! A round lists images and containers afresh, makes a plan, and removes one image after the other. Before each removal
//! it looks again, publishes that the image is being removed, and looks at the sessions once more: a session that was
//! admitted before has kept the image by then, and one that comes later waits until it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Duration, Instant};

use super::around::{Around, Link};
use super::round::{Ask, Cause, Round};
use super::{Done, Owner};
use crate::capacity::probe;
use crate::images::Error;
use crate::images::ownership::ImageKey;
use crate::images::policy::{self, Planned, Pressure, Situation, Verdict};
use crate::images::pressure;
use crate::images::pulls::Via;
use crate::images::shortage::Shortage;
use crate::runtime::images::{DiskUsage, ListedImage, Removal};
use crate::runtime::{self, Images};
use crate::types::{Disk, ImageReference, KeptBecause, Prune};

/// When the first round on a schedule begins, if the schedule does not say sooner: an agent that is restarted every day
/// prunes too.
const FIRST_ROUND: Duration = Duration::from_secs(600);
/// The least pause after a round for pressure that freed nothing: what fills the disk is not ostler's images then.
const PRESSURE_PAUSE: Duration = Duration::from_secs(600);

/// What a round begins with.
pub(super) struct Survey {
    in_use: BTreeMap<String, u32>,
    /// `None`: the file system of the images cannot be seen from here.
    disk: Option<Disk>,
}

/// What the owner keeps of prunes.
pub(super) struct Prunes {
    pub(super) around: Around,
    link: Link,
    round: Option<Round>,
    /// The images that are being removed.
    pub(super) removing: BTreeSet<String>,
    /// The pulls that wait until an image of their repository is gone.
    held: Vec<(ImageReference, Via)>,
    /// When the last round on the schedule began, or when the first would have, had there been one.
    last: Instant,
    is_first: bool,
    /// No round for pressure begins before.
    no_pressure_before: Option<Instant>,
    /// A pull met a full disk, and a round for it follows the one that runs.
    full_disk: bool,
    /// The rounds that wait until the engine has told what else is on the disk, which they could not free enough.
    short: Vec<Short>,
    /// What the last round could not free the disk of, for people.
    pub(super) stuck: Option<String>,
}

/// A round that could not free the disk enough, or a dry run that would not.
struct Short {
    round: Round,
    shortage: Shortage,
    /// Its message is told as the state of this node, too. Not of a dry run, nor once the disk has room.
    is_condition: bool,
}

impl Prunes {
    pub(super) fn new(around: Around) -> Self {
        Self {
            link: around.link(),
            around,
            round: None,
            removing: BTreeSet::new(),
            held: Vec::new(),
            last: Instant::now(),
            is_first: true,
            no_pressure_before: None,
            full_disk: false,
            short: Vec::new(),
            stuck: None,
        }
    }

    /// The disk has room.
    fn relieve(&mut self) {
        self.stuck = None;
        self.short.iter_mut().for_each(|short| short.is_condition = false);
    }

    pub(super) fn follow_leader(&mut self) {
        self.around.follow_leader(&mut self.link);
    }

    /// When a round on the schedule is due; `None`: never, or one runs.
    pub(super) fn due(&self, interval: Duration) -> Option<Instant> {
        let pause = if self.is_first { interval.min(FIRST_ROUND) } else { interval };
        (!interval.is_zero() && self.round.is_none()).then(|| self.last + pause)
    }

    /// Whether a round frees the disk, or is about to.
    pub(super) fn is_making_room(&self) -> bool {
        let makes_room = |round: &Round| matches!(round.ask.cause, Cause::Pressure | Cause::FullDisk);
        self.full_disk || self.round.as_ref().is_some_and(makes_room)
    }

    /// Whether a pull must wait: the engine removes an image of its repository, which it may bring again.
    pub(super) fn holds(&mut self, pull: &ImageReference, via: Via) -> bool {
        let current = self.round.as_ref().and_then(|round| round.current.as_ref());
        let is_held = current.is_some_and(|planned| policy::is_pulled(&planned.image, &BTreeSet::from([pull.clone()])));
        if is_held {
            self.held.push((pull.clone(), via));
        }
        is_held
    }
}

impl Owner {
    pub(super) fn prune_on_schedule(&mut self) {
        (self.prunes.last, self.prunes.is_first) = (Instant::now(), false);
        if self.prunes.around.mode() != Prune::Off {
            self.prune(Ask::scheduled());
        }
    }

    /// The host was measured: it may be too full.
    pub(super) fn follow_disks(&mut self) {
        if self.measured_pressure().is_none() {
            self.prunes.relieve();
            return;
        }
        if self.prunes.round.is_none() && self.may_make_room() {
            self.make_room(Cause::Pressure);
        }
    }

    /// Frees the disk for a pull that met a full one, after the round that runs. Pulls wait for it.
    pub(super) fn make_room_for_pull(&mut self) {
        if !self.may_make_room() {
            return;
        }
        if self.prunes.round.is_some() {
            self.prunes.full_disk = true;
        } else {
            self.make_room(Cause::FullDisk);
        }
    }

    fn make_room(&mut self, cause: Cause) {
        self.prunes.no_pressure_before = Some(Instant::now() + PRESSURE_PAUSE);
        self.prune(Ask::to_make_room(cause));
    }

    /// Whether the node removes images from a full disk, and has not done so in vain lately.
    fn may_make_room(&self) -> bool {
        let is_due = self.prunes.no_pressure_before.is_none_or(|at| Instant::now() >= at);
        is_due && self.prunes.around.is_ready() && self.prunes.around.mode() != Prune::Off
    }

    /// Whether the file system of the images is too full, as last measured.
    fn measured_pressure(&self) -> Option<Pressure> {
        let disk = self.prunes.around.disk(self.place.as_ref()?.path.as_ref()?)?;
        pressure::pressure(&disk, self.config.borrow().watermarks)
    }

    /// Begins a round, or a dry run beside one.
    pub(super) fn prune(&mut self, ask: Ask) {
        if let Cause::Person(by, _) = &ask.cause {
            tracing::info!(%by, mode = ?ask.mode, dry_run = ask.dry_run, "prune requested");
        }
        if let Err(error) = self.may_prune(&ask) {
            ask.answer(Err(error));
            return;
        }
        let (told, fresh) = oneshot::channel();
        self.listing.ask(told);
        let engine = Arc::clone(&self.engine);
        let path = self.place.as_ref().and_then(|place| place.path.clone());
        if ask.dry_run {
            self.tasks.spawn(async move { Done::Surveyed(Some(ask), survey(&*engine, fresh, path).await) });
        } else {
            self.prunes.round = Some(Round::begin(ask, self.prunes.around.node_name()));
            self.tasks.spawn(async move { Done::Surveyed(None, survey(&*engine, fresh, path).await) });
        }
    }

    fn may_prune(&self, ask: &Ask) -> Result<(), Error> {
        if !self.prunes.around.is_ready() {
            return Err(Error::Conflict("the agent has not read its sessions yet; try again in a moment".to_owned()));
        }
        if self.prunes.round.is_some() && !ask.dry_run {
            return Err(Error::Conflict("a prune of this node runs already; try again once it has ended".to_owned()));
        }
        Ok(())
    }

    /// `dry`: the dry run that asked for the survey; `None`: the round.
    pub(super) fn surveyed(&mut self, dry: Option<Ask>, survey: Result<Survey, runtime::Error>) {
        let is_round = dry.is_none();
        let asked = match dry {
            Some(ask) => Some(Round::begin(ask, self.prunes.around.node_name())),
            None => self.prunes.round.take(),
        };
        let Some(mut round) = asked else { return };
        let survey = match survey {
            Ok(survey) => survey,
            Err(error) => {
                round.ask.answer(Err(error.into()));
                return self.make_room_that_waits();
            }
        };
        round.mode = round.ask.mode.unwrap_or_else(|| self.prunes.around.mode());
        round.pressure = survey.disk.as_ref().filter(|_| round.ask.mode.is_none()).and_then(|disk| {
            let marks = self.config.borrow().watermarks;
            let is_for_pull = matches!(round.ask.cause, Cause::FullDisk);
            pressure::pressure(disk, if is_for_pull { marks.met_full_disk() } else { marks })
        });
        (round.in_use, round.before) = (survey.in_use, survey.disk);
        round.report.mode = round.mode;
        let images = self.images.clone().unwrap_or_default();
        let planned = self.with_situation(&round, |situation| policy::plan(&images, situation));
        round.take(planned.unwrap_or_default());
        if is_round {
            self.prunes.round = Some(round);
            self.remove_next();
        } else {
            self.explain(round);
        }
    }

    /// Judges by what is known now. `None`: the engine has not named its store.
    fn with_situation<T>(&mut self, round: &Round, judge: impl FnOnce(&Situation<'_>) -> T) -> Option<T> {
        self.note_uses();
        let place = self.place.as_ref()?;
        let catalogue = self.prunes.around.catalogue(&mut self.prunes.link);
        // A pull whose end is not known may still run in the engine.
        let pulls: BTreeSet<ImageReference> = self.pulls.all().chain(self.records.intents.keys()).cloned().collect();
        // For a round of the node's own mode, the setting may have changed since.
        let mode = round.ask.mode.unwrap_or_else(|| self.prunes.around.mode());
        Some(judge(&Situation {
            store: &place.store,
            records: &self.records,
            in_use: &round.in_use,
            sessions: &self.prunes.around.needed_by_sessions(),
            catalogue: &catalogue,
            pulls: &pulls,
            mode,
            min_age: self.config.borrow().min_age,
            now: self.clock.now(),
            pressure: round.pressure,
        }))
    }

    /// Removes the next image of the plan that still may go; ends the round after the last.
    fn remove_next(&mut self) {
        let Some(mut round) = self.prunes.round.take() else { return };
        while let Some(planned) = round.todo.pop_front() {
            let listed = self.images.iter().flat_map(|images| images.iter());
            // Another program has removed it.
            let Some(image) = listed.clone().find(|image| image.id == planned.image.id).cloned() else { continue };
            if let Some(why) = self.kept_now(&round, &image) {
                round.keep(&image, why);
                continue;
            }
            self.prunes.removing.insert(image.id.clone());
            self.publish();
            // A session that was admitted before this was published may have found the image.
            if let Some(why) = self.kept_now(&round, &image) {
                self.prunes.removing.remove(&image.id);
                round.keep(&image, why);
                continue;
            }
            self.remove(&image);
            round.current = Some(Planned { image, verdict: planned.verdict });
            break;
        }
        let is_over = round.current.is_none();
        self.prunes.round = Some(round);
        if is_over {
            self.end_round();
        }
    }

    /// Why an image that was to go must stay, by what is known now.
    fn kept_now(&mut self, round: &Round, image: &ListedImage) -> Option<KeptBecause> {
        match self.with_situation(round, |situation| policy::judge(image, situation)) {
            Some(Verdict::Remove(_)) => None,
            Some(Verdict::Keep(why)) => Some(why),
            None => Some(KeptBecause::Foreign),
        }
    }

    fn remove(&mut self, image: &ListedImage) {
        let (engine, id, names) = (Arc::clone(&self.engine), image.id.clone(), image.names.clone());
        let path = self.place.as_ref().and_then(|place| place.path.clone());
        self.tasks.spawn(async move {
            let removed = engine.remove(&id, &names).await;
            Done::Removed(removed, measure(path).await)
        });
    }

    pub(super) async fn removed(&mut self, removed: Result<Removal, runtime::Error>, disk: Option<Disk>) {
        let current = self.prunes.round.as_mut().and_then(|round| round.current.take());
        let Some(Planned { image, verdict }) = current else { return };
        if matches!(removed, Ok(Removal::Removed | Removal::Gone)) {
            self.forget(&image.id);
        }
        if let (Ok(Removal::Removed), Verdict::Remove(reason)) = (&removed, verdict) {
            self.metrics.pruned(reason, policy::own_bytes(&image));
        }
        self.prunes.removing.remove(&image.id);
        self.listing.outdate();
        let marks = self.config.borrow().watermarks;
        if let Some(round) = &mut self.prunes.round {
            round.note(&image, verdict, removed);
            round.after = disk.or(round.after.take());
            if round.after.as_ref().is_some_and(|disk| !pressure::is_above(disk, marks.low)) {
                round.relieve();
            }
        }
        self.keep().await;
        self.publish();
        for (pull, via) in std::mem::take(&mut self.prunes.held) {
            self.begin_pull(pull, via).await;
        }
        self.remove_next();
    }

    /// Drops what is known of an image that is gone. What is on disk follows, so that a full disk can be freed.
    fn forget(&mut self, id: &str) {
        let Some(place) = &self.place else { return };
        let key = ImageKey { store: place.store.clone(), id: id.to_owned() };
        Arc::make_mut(&mut self.records).images.remove(&key);
        self.used.remove(id);
        self.listing.gone.insert(id.to_owned());
        self.images =
            self.images.as_ref().map(|images| images.iter().filter(|image| image.id != id).cloned().collect());
    }

    fn end_round(&mut self) {
        let Some(round) = self.prunes.round.take() else { return };
        if !round.report.removed.is_empty() {
            // It helped, so the next one may follow at once.
            self.prunes.no_pressure_before = None;
        }
        self.explain(round);
        self.make_room_that_waits();
    }

    /// Frees the disk for a pull that met a full one while a round ran, which is over.
    fn make_room_that_waits(&mut self) {
        let is_free = self.prunes.round.is_none();
        if is_free && std::mem::take(&mut self.prunes.full_disk) && self.may_make_room() {
            self.make_room(Cause::FullDisk);
        }
    }

    /// Answers a round that is over. If the disk is too full still, the engine is asked first what else is on it; the
    /// next round does not wait for that.
    fn explain(&mut self, round: Round) {
        let is_dry = round.ask.dry_run;
        let Some(shortage) = round.shortage(self.config.borrow().watermarks) else {
            if !is_dry {
                self.prunes.relieve();
            }
            return round.answer(&self.events);
        };
        self.prunes.short.push(Short { round, shortage, is_condition: !is_dry });
        if self.prunes.short.len() == 1 {
            let engine = Arc::clone(&self.engine);
            self.tasks.spawn(async move { Done::DiskUsage(engine.disk_usage().await) });
        }
    }

    pub(super) fn explained(&mut self, usage: Result<DiskUsage, runtime::Error>) {
        let usage = usage.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot ask the engine what else is on the disk of the images");
            DiskUsage::default()
        });
        for Short { mut round, shortage, is_condition } in std::mem::take(&mut self.prunes.short) {
            let text = shortage.text(&usage);
            if is_condition {
                self.prunes.stuck = Some(text.clone());
            }
            round.report.notes.push(text);
            round.answer(&self.events);
        }
    }
}

/// What a round begins with: `fresh` tells that a list of the images is there that began after it was asked for.
async fn survey(
    engine: &dyn Images,
    fresh: oneshot::Receiver<()>,
    path: Option<PathBuf>,
) -> Result<Survey, runtime::Error> {
    fresh.await.map_err(|_| runtime::Error::Failed("cannot list the images of the engine".to_owned()))?;
    Ok(Survey { in_use: engine.in_use().await?, disk: measure(path).await })
}

/// The file system at this path now.
async fn measure(path: Option<PathBuf>) -> Option<Disk> {
    let path = path?;
    spawn_blocking(move || probe::disk::all(&[path]).pop()).await.ok()?
}
