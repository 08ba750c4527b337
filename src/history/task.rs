//! The owner of the rings: takes readings and writes a row of each ring every 10 s.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use super::ring::{Fold, STARTED, STEPPED, Step};
use super::sampling::{self, Totals};
use super::store::Store;
use super::{Handle, Metrics, READERS, Subject};
use crate::clock::Clock;
use crate::gossip::ClusterView;
use crate::observe::Observer;
use crate::sessions::Snapshot;
use crate::types::Moment;

/// Between two readings: the host is measured as often.
const READ_EVERY: Duration = Duration::from_secs(5);
/// The clock was set if it differs from the boot clock by more than this between two readings. Corrections by NTP are
/// slower, and a smaller jump cannot cost a row.
const CLOCK_STEP_MILLIS: i64 = 2000;

/// What the owner is made of.
pub struct Parts {
    pub directory: PathBuf,
    pub observer: Observer,
    pub sessions: watch::Receiver<Arc<Snapshot>>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Running totals of what happened.
    pub totals: Box<dyn Fn() -> Totals + Send>,
    /// Told by how many seconds the clock was set; negative: back.
    pub on_clock_step: Box<dyn Fn(f64) + Send>,
    /// Why rows cannot be written now.
    pub trouble: watch::Sender<Option<String>>,
    pub clock: Clock,
}

/// Starts the owner. It ends only with the daemon.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let metrics = Metrics::default();
    let handle = Handle {
        directory: Arc::new(parts.directory.clone()),
        metrics: metrics.clone(),
        readers: Arc::new(Semaphore::new(READERS)),
    };
    let (before, totals) = (parts.clock.now(), (parts.totals)());
    let store = Store::new(parts.directory.clone());
    let owner = Owner { parts, metrics, before, totals, slot: 0, flags: STARTED, readings: BTreeMap::new() };
    (handle, tokio::spawn(owner.run(store)))
}

struct Owner {
    parts: Parts,
    metrics: Metrics,
    /// When the last reading was taken.
    before: Moment,
    totals: Totals,
    /// The running slot, and its readings.
    slot: u64,
    /// What the next row is marked with.
    flags: u16,
    readings: BTreeMap<Subject, Fold>,
}

impl Owner {
    async fn run(mut self, mut store: Store) {
        let now = Step::Fine.slot(self.before.wall);
        let opening = spawn_blocking(move || {
            let opened = store.prepare(&[Subject::Host, Subject::Cluster], now);
            (store, opened)
        });
        let opened;
        (store, opened) = match opening.await {
            Ok(opened) => opened,
            Err(failure) => (Store::new(self.parts.directory.clone()), Err(io::Error::other(failure))),
        };
        self.report(opened);
        let mut ticks = interval(READ_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            store = match self.turn(store).await {
                Ok(store) => store,
                Err(failure) => {
                    tracing::error!(error = %failure, "writing the history failed");
                    Store::new(self.parts.directory.clone())
                }
            };
        }
    }

    async fn turn(&mut self, mut store: Store) -> Result<Store, tokio::task::JoinError> {
        let now = self.parts.clock.now();
        let (slot, stepped) = (Step::Fine.slot(now.wall), step_of(self.before, now));
        self.before = now;
        if stepped != 0 {
            (self.parts.on_clock_step)(stepped as f64 / 1000.0);
        }
        if stepped < 0 {
            // What was read before the step is of a time that comes again.
            self.readings.clear();
            let (back, cleared) = spawn_blocking(move || {
                let cleared = store.clear_after(slot);
                (store, cleared)
            })
            .await?;
            store = back;
            self.report(cleared);
        }
        if slot != self.slot {
            store = self.write(store).await?;
            self.slot = slot;
        }
        if stepped != 0 {
            self.flags |= STEPPED;
        }
        self.read();
        Ok(store)
    }

    fn read(&mut self) {
        let (profile, usage) = (self.parts.observer.observed().profile, self.parts.observer.usage());
        let sessions = self.parts.sessions.borrow().clone();
        let view = self.parts.view.borrow().clone();
        let totals = (self.parts.totals)();
        let counts = totals.since(self.totals);
        self.totals = totals;
        let mut add = |subject: Subject, figures: &[f64]| {
            let table = subject.table();
            self.readings.entry(subject).or_insert_with(|| Fold::new(table)).add(&Fold::reading(figures));
        };
        add(Subject::Host, &sampling::host(&profile, &usage, &sessions, counts));
        add(Subject::Cluster, &sampling::cluster(&profile, &usage, &sessions, &view, counts.refused));
        for (uuid, figures) in sampling::gpus(&profile, &usage).into_iter().take(super::store::MAX_GPUS) {
            add(Subject::Gpu(uuid), &figures);
        }
    }

    /// Writes the rows of the slot that is over.
    async fn write(&mut self, mut store: Store) -> Result<Store, tokio::task::JoinError> {
        let readings = std::mem::take(&mut self.readings);
        if readings.is_empty() || self.slot == 0 {
            return Ok(store);
        }
        let (slot, flags) = (self.slot, std::mem::take(&mut self.flags));
        let (store, written) = spawn_blocking(move || {
            let mut written = Ok(());
            for (subject, mut fold) in readings {
                fold.flag(flags);
                // One that fails keeps none of the others from being written.
                written = store.write(&subject, &fold.of_readings(slot)).and(written);
            }
            (store, written)
        })
        .await?;
        if written.is_err() {
            self.flags |= flags;
        }
        self.report(written);
        Ok(store)
    }

    fn report(&self, written: io::Result<()>) {
        let trouble = written.err().map(|error| error.to_string());
        if trouble.is_some() {
            self.metrics.errors.inc();
        }
        self.parts.trouble.send_if_modified(|known| {
            if let (None, Some(error)) = (&known, &trouble) {
                tracing::error!(%error, "the history cannot be written: what is measured meanwhile is not kept");
            }
            std::mem::replace(known, trouble.clone()) != trouble
        });
    }
}

/// Milliseconds that the wall clock was set by; 0: it was not.
fn step_of(before: Moment, now: Moment) -> i64 {
    let passed = i64::try_from(now.boot.since(before.boot).as_millis()).unwrap_or(i64::MAX);
    let stepped = (now.wall.millis() - before.wall.millis()).saturating_sub(passed);
    if stepped.abs() > CLOCK_STEP_MILLIS { stepped } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixture;
    use crate::types::Timestamp;

    #[test]
    fn a_clock_that_was_set_differs_from_the_boot_clock() {
        let before = fixture::moment();
        let later = before.plus(READ_EVERY);
        assert_eq!(step_of(before, later), 0);
        let set = |by: i64| Moment { wall: Timestamp::from_millis(later.wall.millis() + by), ..later };
        assert_eq!(step_of(before, set(1500)), 0, "NTP");
        assert_eq!(step_of(before, set(3_600_000)), 3_600_000);
        assert_eq!(step_of(before, set(-60_000)), -60_000);
    }
}
