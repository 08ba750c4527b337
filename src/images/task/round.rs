//! One round: who asked for it, what is left to remove, and its report.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use crate::events::{self, Happening};
use crate::images::Error;
use crate::images::policy::{self, Planned, Pressure, Verdict};
use crate::images::pressure::{self, Watermarks};
use crate::images::shortage::Shortage;
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
    /// The disk was measured, and is too full.
    Pressure,
    /// A pull met a full disk.
    FullDisk,
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

    pub(super) const fn to_make_room(cause: Cause) -> Self {
        Self { cause, mode: None, dry_run: false }
    }

    /// The person who asked for it.
    const fn by(&self) -> Option<&Actor> {
        match &self.cause {
            Cause::Person(by, _) => Some(by),
            _ => None,
        }
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
    pub(super) fn relieve(&mut self) {
        let (for_pressure, others): (VecDeque<Planned>, VecDeque<Planned>) = std::mem::take(&mut self.todo)
            .into_iter()
            .partition(|planned| planned.verdict == Verdict::Remove(PruneReason::Pressure));
        self.todo = others;
        for planned in for_pressure {
            self.keep(&planned.image, KeptBecause::Named);
        }
    }

    /// That the disk is too full still, or would be after what a dry run would remove.
    pub(super) fn shortage(&self, marks: Watermarks) -> Option<Shortage> {
        let disk = self.after.as_ref().or(self.before.as_ref())?;
        if !pressure::is_above(disk, marks.high) || !pressure::is_above(&self.left(disk), marks.high) {
            return None;
        }
        let foreign = self.report.kept.iter().filter(|image| image.reason == KeptBecause::Foreign);
        let foreign =
            foreign.fold((0, Bytes::ZERO), |(count, sum), image| (count + 1, sum.saturating_add(image.bytes)));
        Some(Shortage { disk: disk.clone(), high: marks.high, dry_run: self.ask.dry_run, foreign })
    }

    /// The disk after what a dry run would remove. Nothing tells how many inodes that frees.
    fn left(&self, disk: &Disk) -> Disk {
        let mut left = disk.clone();
        if self.ask.dry_run {
            left.free_bytes = disk.free_bytes.saturating_add(self.report.up_to_bytes);
            left.inodes = disk.inodes.filter(|_| self.report.removed.is_empty());
        }
        left
    }

    pub(super) fn answer(mut self, events: &events::Handle) {
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
            tracing::info!(mode = %self.mode, removed = removed.len(), skipped = skipped.len(), "pruned the images");
            let pruned =
                (!removed.is_empty()).then(|| Happening::image_pruned(removed.len(), *reclaimed_bytes, self.mode));
            events.record_some(pruned, self.ask.by());
        }
        let was_unsafe = self.report.kept.iter().any(|kept| kept.reason == KeptBecause::CatalogueUnknown);
        if !self.ask.dry_run && self.report.removed.is_empty() && was_unsafe && self.ask.by().is_some() {
            let why = "the node is cut off from its leader, or has not compared its catalogue with the leader's yet";
            events.record(Happening::prune_refused(why), self.ask.by());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Inodes;

    const MARKS: Watermarks = Watermarks { high: 85, low: 75 };

    /// A dry run that would free so many bytes of a disk of 1000 bytes and 1000 inodes.
    fn dry_run(used: u64, inodes_used: u64, frees: u64) -> Round {
        let ask = Ask { dry_run: true, ..Ask::scheduled() };
        let mut round = Round::begin(ask, "n1".parse().unwrap());
        round.before = Some(Disk {
            path: "/d".to_owned(),
            total_bytes: Bytes::new(1000),
            free_bytes: Bytes::new(1000 - used),
            inodes: Some(Inodes { total: 1000, free: 1000 - inodes_used }),
        });
        if frees > 0 {
            let image = ListedImage { id: "x".to_owned(), size: Bytes::new(frees), ..ListedImage::default() };
            round.gone(&image, Verdict::Remove(PruneReason::Pressure));
        }
        round
    }

    #[test]
    fn a_dry_run_is_short_if_what_it_would_free_is_not_enough() {
        let is_short = |used, inodes, frees| dry_run(used, inodes, frees).shortage(MARKS).is_some();
        assert!(!is_short(850, 0, 0) && is_short(851, 0, 0));
        assert!(is_short(900, 0, 49) && !is_short(900, 0, 50));
        assert!(is_short(0, 851, 0) && !is_short(0, 851, 1), "nothing tells how many inodes an image has");
    }

    #[test]
    fn a_round_is_short_by_the_disk_after_it() {
        let mut round = Round { ask: Ask::scheduled(), ..dry_run(900, 0, 50) };
        assert_eq!(round.shortage(MARKS).map(|shortage| (shortage.dry_run, shortage.foreign.0)), Some((false, 0)));
        round.after = round.before.clone().map(|disk| Disk { free_bytes: Bytes::new(150), ..disk });
        assert_eq!(round.shortage(MARKS), None);
    }

    #[test]
    fn a_shortage_has_the_images_of_other_programs() {
        let mut round = dry_run(900, 0, 0);
        for (id, reason) in [("a", KeptBecause::Foreign), ("b", KeptBecause::Named), ("c", KeptBecause::Foreign)] {
            let image = ListedImage { id: id.to_owned(), size: Bytes::new(7), ..ListedImage::default() };
            round.keep(&image, reason);
        }
        assert_eq!(round.shortage(MARKS).unwrap().foreign, (2, Bytes::new(14)));
    }
}
