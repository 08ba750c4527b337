//! What happened on this node, and who did it: a log on disk, which outlives the agent.
//!
//! An owner that did something says so by [`Handle::record`], which never waits. The owner of the log ([`task`]) gives
//! each event its number and its time, writes it as a line of JSON ([`log`]) and hands it to the operator's program
//! ([`hook`]). Whoever answers a request for a change waits with [`Handle::flush`] until what the change recorded is
//! with the kernel: so an agent that is killed loses nothing that it has answered. The disk is synchronised within a
//! second, and nobody waits for that.
//!
//! [`happening`] has the sentences of the events. [`rate`] bounds how many are written, [`tally`] counts those that
//! come again and again, and [`mod@line`] is the format: pure.

pub mod happening;
pub mod hook;
mod line;
mod log;
pub mod merge;
mod rate;
mod read;
mod tally;
pub mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::{Count, CountBy, Registry, Source};
use crate::types::{Actor, Event, EventFilter, EventKind, EventPlace, Timestamp};
pub use happening::Happening;
pub use log::MAX_BYTES;
pub use read::scan;

/// What waits for the owner at most. An event beyond it is dropped and counted: no owner waits for the log.
const QUEUE: usize = 4096;
/// How long an answer waits for the log at most. A disk that hangs must not hang the node.
const FLUSH: Duration = Duration::from_millis(250);
/// Events of one answer at most.
pub const MAX_PAGE: usize = 1000;

/// `[events]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The program that is run for each event.
    pub hook: Option<PathBuf>,
    /// The kinds that it is run for; empty: every kind.
    pub hook_kinds: Vec<EventKind>,
}

/// Why events cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("the event log cannot be read: {0}")]
    Read(String),
}

/// A page of one node's events.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Page {
    pub filter: EventFilter,
    /// Only events before this place, that is older ones.
    pub before: Option<EventPlace>,
    /// [`MAX_PAGE`] at most.
    pub limit: usize,
}

/// Events of one node, the newest first.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Paged {
    pub events: Vec<Event>,
    /// There may be older ones that match.
    pub more: bool,
}

/// From where the events of a node are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum FollowFrom {
    /// The events after this number.
    After(u64),
    /// The events that are not older, [`MAX_PAGE`] at most.
    Since(Timestamp),
}

/// The events of one node after a number, in their order.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Following {
    pub events: Vec<Event>,
    /// The number of the newest event of the node; 0: it has none.
    pub last: u64,
}

/// What everyone may see of the log.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The files, the oldest first.
    files: Arc<[log::Segment]>,
    /// Bytes of complete lines of the newest file.
    bytes: u64,
    /// The number of the newest event; 0: there is none.
    pub last: u64,
}

/// A happening, and who did it.
struct Recorded {
    happening: Happening,
    by: Option<Actor>,
}

enum Request {
    Record(Box<Recorded>),
    /// The agent stops: write the last event, and answer once it is on the disk.
    Close(oneshot::Sender<()>),
}

/// What is counted since the agent started.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Happenings by [`EventKind`], dropped ones included.
    kinds: CountBy,
    dropped: Count,
    hook_failures: Count,
}

impl Default for Counts {
    fn default() -> Self {
        let kinds = CountBy::new("kind", EventKind::ALL.iter().map(|kind| kind.as_str()));
        Self { kinds, dropped: Count::default(), hook_failures: Count::default() }
    }
}

impl Counts {
    pub fn of(&self, kind: EventKind) -> u64 {
        self.kinds.of(kind.as_str()).get()
    }

    /// Events that were not written.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Runs of the hook that failed, and events that did not reach it.
    pub fn hook_failures(&self) -> u64 {
        self.hook_failures.get()
    }

    fn count(&self, kind: EventKind) {
        self.kinds.of(kind.as_str()).inc();
    }

    fn drop_one(&self) {
        self.dropped.inc();
    }

    fn hook_failed(&self) {
        self.hook_failures.inc();
    }
}

impl Source for Counts {
    fn register(&self, registry: &mut Registry<'_>) {
        registry.count_by("events", "Events of this node, by kind", &self.kinds);
        let help = "Events that were not written to the log: it is behind, or the disk is full";
        registry.count("events_dropped", help, &self.dropped);
        let help = "Runs of events.hook that failed, and events that did not reach it";
        registry.count("hook_failures", help, &self.hook_failures);
    }
}

/// Records and reads events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    /// How many happenings were handed to the owner.
    handed: Arc<AtomicU64>,
    /// How many of them the owner has taken.
    taken: watch::Receiver<u64>,
    counts: Counts,
    published: watch::Receiver<Arc<Published>>,
    trouble: watch::Receiver<Option<String>>,
}

impl Handle {
    /// Records what happened. It never waits: if too much waits for the log, the event is dropped and counted.
    /// `by`: who did it; `None`: this node by itself.
    pub fn record(&self, happening: Happening, by: Option<&Actor>) {
        self.counts.count(happening.kind);
        let recorded = Box::new(Recorded { happening, by: by.cloned() });
        // It is counted first: a flush that begins now waits for it.
        self.handed.fetch_add(1, Ordering::AcqRel);
        if self.requests.try_send(Request::Record(recorded)).is_err() {
            self.handed.fetch_sub(1, Ordering::AcqRel);
            self.counts.drop_one();
        }
    }

    /// Records what happened, if anything did.
    pub fn record_some(&self, happening: Option<Happening>, by: Option<&Actor>) {
        if let Some(happening) = happening {
            self.record(happening, by);
        }
    }

    /// Waits until everything that was recorded before is with the kernel, for a quarter of a second at most.
    pub async fn flush(&self) {
        let handed = self.handed.load(Ordering::Acquire);
        if *self.taken.borrow() >= handed {
            return;
        }
        let mut taken = self.taken.clone();
        // An owner that has ended takes nothing any more.
        let _ = tokio::time::timeout(FLUSH, taken.wait_for(|taken| *taken >= handed)).await;
    }

    /// Writes that the agent stops, and waits until that is on the disk.
    pub async fn close(&self) {
        let (reply, written) = oneshot::channel();
        if self.requests.send(Request::Close(reply)).await.is_ok() {
            let _ = written.await;
        }
    }

    /// The newest events of this node that match, the newest first.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn page(&self, page: Page) -> Result<Paged, Error> {
        let published = self.published.borrow().clone();
        blocking(move || read::page(&published, &page)).await
    }

    /// The events after this number, in their order, `limit` at most.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn after(&self, seq: u64, limit: usize) -> Result<Following, Error> {
        let published = self.published.borrow().clone();
        let last = published.last;
        let events = if seq < last { blocking(move || read::after(&published, seq, limit)).await? } else { Vec::new() };
        Ok(Following { events, last })
    }

    /// The events from a place on, in their order. If there is none yet, it waits for one, `hold` at most.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn follow(&self, from: FollowFrom, hold: Duration) -> Result<Following, Error> {
        match from {
            FollowFrom::Since(since) => {
                let last = self.published.borrow().last;
                let filter = EventFilter { since: Some(since), ..EventFilter::default() };
                let mut events = self.page(Page { filter, before: None, limit: MAX_PAGE }).await?.events;
                events.reverse();
                let last = events.last().map_or(last, |event| event.id.seq);
                Ok(Following { events, last })
            }
            FollowFrom::After(seq) => {
                let mut published = self.published.clone();
                // An owner that has ended writes nothing any more: what there is, is the answer.
                let _ = tokio::time::timeout(hold, published.wait_for(|published| published.last > seq)).await;
                self.after(seq, MAX_PAGE).await
            }
        }
    }

    pub fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }

    /// Why the log cannot be written now.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(Error::Read(error.to_string())),
        Err(failure) => Err(Error::Read(failure.to_string())),
    }
}

#[cfg(test)]
pub(crate) mod recorder;
#[cfg(test)]
mod tests;
