//! The owner of the event log.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::log::Log;
use super::rate::Bucket;
use super::tally::Tally;
use super::{Config, Counts, Handle, Happening, Published, QUEUE, Recorded, Request, hook};
use crate::clock::Clock;
use crate::types::{Event, EventId, Name, NodeId, Severity, Who};

/// Requests of one turn at most, which are written together.
const TURN: usize = 256;
/// How soon a written event is on the disk.
const SYNC: Duration = Duration::from_secs(1);
/// The pause before a log that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Events that wait for a log that cannot be written at most. The oldest wait, and later ones are dropped.
const PENDING: usize = 2048;

/// What the owner is made of.
pub struct Parts {
    /// The directory of the log, which is made if it is not there.
    pub directory: PathBuf,
    pub me: NodeId,
    pub name: Name,
    /// For the first event.
    pub version: String,
    /// Its changes are followed.
    pub config: watch::Receiver<Config>,
    pub clock: Clock,
}

/// Starts the owner, whose first event is that the agent started. It ends when every handle is dropped.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let (requests, inbox) = mpsc::channel(QUEUE);
    let (publish, published) = watch::channel(Arc::new(Published::default()));
    let (take, taken) = watch::channel(0);
    let counts = Counts::default();
    let (trouble, troubled) = watch::channel(None);
    let handle = Handle {
        requests,
        handed: Arc::new(AtomicU64::new(0)),
        taken,
        counts: counts.clone(),
        published,
        trouble: troubled,
    };
    let (to_hook, hooked) = mpsc::channel(hook::QUEUE);
    tokio::spawn(hook::run(hooked, parts.config.clone(), counts.clone()));
    let bucket = Bucket::full(parts.clock.now().boot);
    let mut owner = Owner {
        parts,
        log: None,
        bucket,
        tally: Tally::default(),
        pending: VecDeque::new(),
        trouble,
        counts,
        told_dropped: 0,
        to_hook,
        publish,
        take,
        sync_at: None,
        is_closed: false,
    };
    owner.begin();
    (handle, tokio::spawn(owner.run(inbox)))
}

struct Owner {
    parts: Parts,
    /// `None`: it could not be opened yet.
    log: Option<Log>,
    bucket: Bucket,
    tally: Tally,
    /// Happenings that are not written yet.
    pending: VecDeque<Recorded>,
    /// Why the log cannot be written.
    trouble: watch::Sender<Option<String>>,
    counts: Counts,
    /// How many dropped events were told.
    told_dropped: u64,
    to_hook: mpsc::Sender<Arc<Event>>,
    publish: watch::Sender<Arc<Published>>,
    take: watch::Sender<u64>,
    /// When the disk is synchronised next.
    sync_at: Option<Instant>,
    /// The agent stops: its last event is written or pending.
    is_closed: bool,
}

impl Owner {
    /// Opens the log and writes the first event: what is read from now on has it.
    fn begin(&mut self) {
        let unclean = self.open();
        self.pending.push_back(by_itself(Happening::agent_started(&self.parts.version, unclean)));
        self.write();
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut turn = Vec::with_capacity(TURN);
        loop {
            let due = self.due();
            tokio::select! {
                taken = inbox.recv_many(&mut turn, TURN) => {
                    if taken == 0 {
                        return;
                    }
                    let closing = self.accept(&mut turn);
                    self.write();
                    self.take.send_modify(|before| *before += taken as u64);
                    for reply in closing {
                        self.sync().await;
                        // The caller may have stopped waiting.
                        let _ = reply.send(());
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let now = self.parts.clock.now().boot;
                    if !self.is_closed {
                        self.pending.extend(self.tally.due(now));
                    }
                    self.write();
                    if self.sync_at.is_some_and(|at| at <= Instant::now()) {
                        self.sync_later();
                    }
                }
            }
        }
    }

    /// Opens the log, and says whether the agent before did not stop as it was told to.
    fn open(&mut self) -> bool {
        match Log::open(&self.parts.directory) {
            Ok(log) => {
                let unclean = log.is_unclean();
                self.log = Some(log);
                unclean
            }
            Err(error) => {
                self.suffer(&format!("{}: {error}", self.parts.directory.display()));
                false
            }
        }
    }

    /// When the owner has something to do without a request.
    fn due(&self) -> Option<Instant> {
        let now = self.parts.clock.now().boot;
        let minute = self.tally.next(now).map(|left| Instant::now() + left);
        let again = (!self.pending.is_empty()).then(|| Instant::now() + AGAIN);
        let dropped = (self.counts.dropped() > self.told_dropped).then(|| Instant::now() + AGAIN);
        [minute, again, dropped, self.sync_at].into_iter().flatten().min()
    }

    /// Takes the requests of a turn. Returns those who wait for the end of the log.
    fn accept(&mut self, turn: &mut Vec<Request>) -> Vec<tokio::sync::oneshot::Sender<()>> {
        let now = self.parts.clock.now().boot;
        let mut closing = Vec::new();
        for request in turn.drain(..) {
            match request {
                // What parts do while the agent stops is not told: the last event of a clean stop is that of the stop.
                Request::Record(_) if self.is_closed => {}
                Request::Record(recorded) => {
                    let Some(recorded) = self.tally.take(*recorded, now) else { continue };
                    if self.pending.len() < PENDING && self.bucket.take(now) {
                        self.pending.push_back(recorded);
                    } else {
                        self.counts.drop_one();
                    }
                }
                Request::Close(reply) => {
                    if !self.is_closed {
                        self.pending.push_back(by_itself(Happening::agent_stopped(&self.parts.version)));
                    }
                    self.is_closed = true;
                    closing.push(reply);
                }
            }
        }
        closing
    }

    /// Writes what is pending. What cannot be written stays pending.
    fn write(&mut self) {
        if self.log.is_none() {
            self.open();
        }
        self.tell_dropped();
        let Some(log) = &mut self.log else { return };
        if self.pending.is_empty() {
            return;
        }
        let now = log.time(self.parts.clock.now().wall);
        let seqs = log.last() + 1..;
        let events: Vec<Event> =
            seqs.zip(&self.pending).map(|(seq, recorded)| event(&self.parts, seq, now, recorded)).collect();
        match log.append(&events) {
            Ok(()) => {
                self.pending.clear();
                self.trouble.send_if_modified(|trouble| trouble.take().is_some());
                self.sync_at.get_or_insert_with(|| Instant::now() + SYNC);
                self.publish();
                events.into_iter().for_each(|event| self.pass_on(event));
            }
            Err(error) => self.suffer(&error.to_string()),
        }
    }

    /// Says how many events were dropped, once there is room to say it.
    fn tell_dropped(&mut self) {
        let dropped = self.counts.dropped();
        let count = dropped.saturating_sub(self.told_dropped);
        if count > 0
            && !self.is_closed
            && self.trouble.borrow().is_none()
            && self.bucket.take(self.parts.clock.now().boot)
        {
            self.told_dropped = dropped;
            self.pending.push_back(by_itself(Happening::events_dropped(count)));
        }
    }

    /// Logs the event for journald and log shippers, and hands it to the operator's program.
    fn pass_on(&self, event: Event) {
        log_line(&event);
        if self.parts.config.borrow().hook.is_some() && self.to_hook.try_send(Arc::new(event)).is_err() {
            self.counts.hook_failed();
        }
    }

    fn suffer(&mut self, error: &str) {
        if self.trouble.borrow().is_none() {
            tracing::error!(%error, "the event log cannot be written: events wait in memory");
            self.trouble.send_replace(Some(error.to_owned()));
        }
    }

    fn publish(&self) {
        let Some(log) = &self.log else { return };
        let before = self.publish.borrow().files.clone();
        // Only the newest file grows, and its length is told apart: the list changes with a file.
        let same = before.len() == log.segments.len()
            && before.first().zip(log.segments.first()).is_none_or(|(one, other)| one.path == other.path)
            && before.last().zip(log.segments.last()).is_none_or(|(one, other)| one.path == other.path);
        let files = if same { before } else { log.segments.clone().into() };
        let bytes = log.segments.last().map_or(0, |newest| newest.bytes);
        let published = Published { files, bytes, last: log.last() };
        self.publish.send_replace(Arc::new(published));
    }

    /// Synchronises the disk beside the owner, which goes on writing.
    fn sync_later(&mut self) {
        self.sync_at = None;
        if let Some(file) = self.log.as_mut().and_then(Log::unsynced) {
            // It fails where writing fails, which is told.
            tokio::task::spawn_blocking(move || file.sync_data());
        }
    }

    async fn sync(&mut self) {
        self.sync_at = None;
        if let Some(file) = self.log.as_mut().and_then(Log::unsynced) {
            let _ = tokio::task::spawn_blocking(move || file.sync_data()).await;
        }
    }
}

const fn by_itself(happening: Happening) -> Recorded {
    Recorded { happening, by: None }
}

fn event(parts: &Parts, seq: u64, time: crate::types::Timestamp, recorded: &Recorded) -> Event {
    let Recorded { happening, by } = recorded;
    Event {
        id: EventId { node: parts.me, seq },
        time,
        node: parts.name.clone(),
        kind: happening.kind,
        severity: happening.severity,
        target: happening.target.clone(),
        who: by.as_ref().map_or(Who::SYSTEM, |actor| Who::of(actor, &parts.me)),
        via: by.as_ref().and_then(|actor| actor.via().cloned()),
        message: happening.message.clone(),
        data: happening.data.clone(),
        late: false,
    }
}

/// The line of the log for an event, with its facts as one field.
fn log_line(event: &Event) {
    let (id, kind, by) = (event.id, event.kind, &event.who);
    let via = event.via.as_ref().map(tracing::field::display);
    let target = event.target.as_ref().map(|target| target.id.as_str());
    let data = (!event.data.is_empty()).then(|| serde_json::to_string(&event.data).unwrap_or_default());
    match event.severity {
        Severity::Warning => tracing::warn!(target: "event", %id, %kind, target, %by, via, data, "{}", event.message),
        Severity::Info | Severity::Notice => {
            tracing::info!(target: "event", %id, %kind, target, %by, via, data, "{}", event.message);
        }
    }
}
