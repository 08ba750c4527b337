//! When the images are listed: one list at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// The least pause after a list. It is also ten times as long as the list took, so that a slow engine lists for a tenth
/// of its time at most.
const LIST_PAUSE: Duration = Duration::from_secs(1);
const LIST_PAUSE_FACTOR: u32 = 10;
/// A list that is older is made anew when somebody looks at it: containers come and go without an event of an image.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// Lists, one at a time.
#[derive(Default)]
pub(super) struct Listing {
    /// A list runs. Those of `next` came after it began, so it may lack what they saw.
    runs: bool,
    /// A list is wanted, not before this time.
    wanted: bool,
    not_before: Option<Instant>,
    ended_at: Option<Instant>,
    /// A record changed since the list that runs began, which may not show it.
    pub(super) is_outdated: bool,
    /// What was removed since the list that runs began, which may show it.
    pub(super) gone: BTreeSet<String>,
    /// Pulls that wait for the list that runs, and for the one after it.
    current: Vec<oneshot::Sender<()>>,
    next: Vec<oneshot::Sender<()>>,
}

impl Listing {
    pub(super) const fn want(&mut self) {
        self.wanted = true;
    }

    /// Another engine answers, or another store.
    pub(super) const fn at_once(&mut self) {
        (self.wanted, self.not_before) = (true, None);
    }

    /// A record changed: the list that runs may not show it.
    pub(super) const fn outdate(&mut self) {
        (self.wanted, self.is_outdated) = (true, true);
    }

    /// When a list is due; `None`: none is wanted, or one runs.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_wanted = self.wanted || !self.next.is_empty();
        (is_wanted && !self.runs).then(|| match self.not_before {
            // A pull waits for it.
            _ if !self.next.is_empty() => Instant::now(),
            Some(at) => at,
            None => Instant::now(),
        })
    }

    /// A list is wanted, unless the last one is as good as new.
    pub(super) fn look(&mut self) {
        self.wanted |= self.ended_at.is_none_or(|at| at.elapsed() >= LOOK_AFTER);
    }

    /// A list that begins after now tells `fresh`.
    pub(super) fn ask(&mut self, fresh: oneshot::Sender<()>) {
        self.next.push(fresh);
    }

    pub(super) fn begin(&mut self) {
        (self.runs, self.wanted, self.is_outdated) = (true, false, false);
        self.gone.clear();
        self.current = std::mem::take(&mut self.next);
    }

    pub(super) fn ended(&mut self, took: Duration, well: bool) {
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
