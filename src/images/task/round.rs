//! One round: who asked for it, what is left to remove, and its report.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use crate::images::Error;
use crate::images::policy::{self, Planned, Pressure, Verdict};
use crate::images::pressure::{self, Watermarks};
use crate::runtime;
use crate::runtime::images::{ListedImage, Removal};
use crate::types::{
    Actor, Bytes, Disk, KeptBecause, KeptImage, Name, Prune, PruneReason, PruneReport, PrunedImage, SkippedImage,
};

type Reply = oneshot::Sender<Result<PruneReport, Error>>;

/// A round that is asked for.
pub(super) struct Ask {
    pub(super) cause: Cause,
    /// `None`: the node's setting.
    pub(super) mode: Option<Prune>,
    /// Nothing is removed.
    pub(super) dry_run: bool,
}

pub(super) enum Cause {
    Schedule,
    Pressure,
    Person(Actor, Reply),
}

/// A round that runs, from its survey on.
pub(super) struct Round {
    pub(super) ask: Ask,
    pub(super) mode: Prune,
    pub(super) pressure: Option<Pressure>,
    pub(super) in_use: BTreeMap<String, u32>,
    pub(super) todo: VecDeque<Planned>,
    /// The image that is being removed.
    pub(super) current: Option<Planned>,
    pub(super) report: PruneReport,
    pub(super) before: Option<Disk>,
    pub(super) after: Option<Disk>,
}

impl Ask {
    pub(super) const fn scheduled() -> Self {
        Self { cause: Cause::Schedule, mode: None, dry_run: false }
    }

    pub(super) fn answer(self, answer: Result<PruneReport, Error>) {
        match (self.cause, answer) {
            // The caller may have stopped waiting.
            (Cause::Person(_, reply), answer) => drop(reply.send(answer)),
            (_, Err(error)) => tracing::warn!(%error, "cannot prune the images"),
            (_, Ok(_)) => {}
        }
    }
}

impl Round {
    pub(super) fn begin(ask: Ask, node: Name) -> Self {
        let report = PruneReport {
            node,
            mode: Prune::Off,
            dry_run: ask.dry_run,
            removed: Vec::new(),
            kept: Vec::new(),
            skipped: Vec::new(),
            reclaimed_bytes: None,
            up_to_bytes: Bytes::ZERO,
            notes: Vec::new(),
        };
        Self {
            ask,
            mode: Prune::Off,
            pressure: None,
            in_use: BTreeMap::new(),
            todo: VecDeque::new(),
            current: None,
            report,
            before: None,
            after: None,
        }
    }

    /// Takes the plan over. In a dry run, what would be removed is told as if it had been.
    pub(super) fn take(&mut self, planned: Vec<Planned>) {
        for planned in planned {
            match planned.verdict {
                Verdict::Keep(why) => self.keep(&planned.image, why),
                Verdict::Remove(_) if self.ask.dry_run => self.gone(&planned.image, planned.verdict),
                Verdict::Remove(_) => self.todo.push_back(planned),
            }
        }
    }

    pub(super) fn keep(&mut self, image: &ListedImage, reason: KeptBecause) {
        let ListedImage { id, names, .. } = image.clone();
        self.report.kept.push(KeptImage { id, names, bytes: policy::own_bytes(image), reason });
    }

    fn gone(&mut self, image: &ListedImage, verdict: Verdict) {
        let (bytes, ListedImage { id, names, .. }) = (policy::own_bytes(image), image.clone());
        if let Verdict::Remove(reason) = verdict {
            self.report.removed.push(PrunedImage { id, names, bytes, reason });
            self.report.up_to_bytes = self.report.up_to_bytes.saturating_add(bytes);
        }
    }

    fn skip(&mut self, image: &ListedImage, reason: String) {
        tracing::warn!(id = image.id, names = image.names.join(" "), reason, "cannot remove the image");
        let ListedImage { id, names, .. } = image.clone();
        self.report.skipped.push(SkippedImage { id, names, bytes: policy::own_bytes(image), reason });
    }

    pub(super) fn note(&mut self, image: &ListedImage, verdict: Verdict, removed: Result<Removal, runtime::Error>) {
        match removed {
            Ok(Removal::Removed) => {
                let (names, bytes) = (image.names.join(" "), policy::own_bytes(image));
                if let Verdict::Remove(reason) = verdict {
                    tracing::info!(id = image.id, names, %bytes, %reason, "removed the image");
                }
                self.gone(image, verdict);
            }
            Ok(Removal::Gone) => {}
            Ok(Removal::Skipped(why)) => self.skip(image, why),
            Err(error) => {
                self.skip(image, error.to_string());
                if let runtime::Error::Unavailable(_) = error {
                    self.give_up("the container engine does not answer");
                }
            }
        }
    }

    /// Leaves what is left of the plan as it is.
    fn give_up(&mut self, why: &str) {
        for planned in std::mem::take(&mut self.todo) {
            self.skip(&planned.image, why.to_owned());
        }
    }

    /// Enough is free: what was to go for pressure only stays.
    pub(super) fn is_relieved(&mut self) {
        let (for_pressure, others): (VecDeque<Planned>, VecDeque<Planned>) = std::mem::take(&mut self.todo)
            .into_iter()
            .partition(|planned| planned.verdict == Verdict::Remove(PruneReason::Pressure));
        self.todo = others;
        for planned in for_pressure {
            self.keep(&planned.image, KeptBecause::Named);
        }
    }

    /// That the disk is too full still, and what else there is on it that the agent knows of. It is never touched.
    pub(super) fn stuck(&self, marks: Watermarks) -> Option<String> {
        let disk = self.after.as_ref().or(self.before.as_ref()).filter(|disk| pressure::is_above(disk, marks.high))?;
        let foreign = self.report.kept.iter().filter(|image| image.reason == KeptBecause::Foreign);
        let (count, bytes) =
            foreign.fold((0_usize, Bytes::ZERO), |(count, sum), image| (count + 1, sum.saturating_add(image.bytes)));
        Some(format!(
            "{used} % of the file system of the images, {path}, is used, which is above images.high_watermark ({high} %), \
             and a prune cannot free more; {count} images of other programs take {bytes} of it; volumes, the build cache \
             and logs of containers may take more: run: docker system df",
            used = pressure::used_percent(disk),
            path = disk.path,
            high = marks.high,
        ))
    }

    pub(super) fn answer(mut self) {
        let free = |disk: &Option<Disk>| disk.as_ref().map(|disk| disk.free_bytes);
        if !self.ask.dry_run {
            let before = free(&self.before);
            let after = free(&self.after).or(before);
            self.report.reclaimed_bytes = after.zip(before).map(|(after, before)| after.saturating_sub(before));
        }
        self.report.notes.extend(notes(&self.report));
        let PruneReport { removed, skipped, reclaimed_bytes, .. } = &self.report;
        let touched = removed.len() + skipped.len();
        if !self.ask.dry_run && touched > 0 {
            let reclaimed = reclaimed_bytes.map(|bytes| bytes.to_string());
            tracing::info!(mode = %self.mode, removed = removed.len(), skipped = skipped.len(), reclaimed, "pruned the images");
        }
        self.ask.answer(Ok(self.report));
    }
}

/// What keeps a prune from doing what its mode says.
fn notes(report: &PruneReport) -> Vec<String> {
    let is_kept = |why| report.kept.iter().any(|kept| kept.reason == why);
    let texts = [
        (
            KeptBecause::CatalogueEmpty,
            "the catalogue has no workspaces, which tell what images are needed: only images without a name are removed",
        ),
        (
            KeptBecause::CatalogueUnknown,
            "this node is cut off from its leader, or has not compared its catalogue with the leader's yet: only images \
             without a name are removed",
        ),
        (KeptBecause::Off, "the node's setting prune is off: to remove images once, pass a mode"),
    ];
    texts.into_iter().filter(|(why, _)| is_kept(*why)).map(|(_, text)| text.to_owned()).collect()
}
