//! The owner of the GPUs: runs the child that asks NVML, as [`State`] decides, or follows what the container engine lists,
//! and publishes what is known.

mod log;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::answer::{Answer, Ask};
use super::changes;
use super::children::Step;
use super::listed::List;
use super::probe::{Abandoned, Probe, Silence};
use super::state::State;
use super::store::Store;
use super::{Command, Config, Error, Handle, QUEUE, Request, Snapshot};
use crate::clock::Clock;
use crate::events;
use crate::types::{Actor, BootInstant, NVIDIA_CLASS, NodeId};

/// What the owner is made of.
pub struct Parts {
    pub config: watch::Receiver<Config>,
    pub store: Store,
    /// This node, for the UUIDs of GPUs that the container engine lists.
    pub node: NodeId,
    /// The GPUs of `gpu.class` that the engine lists. It counts for another class than NVIDIA's.
    pub listed: watch::Receiver<List>,
    /// The agent's own program, which is the child as well.
    pub program: PathBuf,
    /// GPUs that are made up, with `dev.physical_gpus`: no child is started then.
    pub fictitious: Option<u32>,
    pub events: events::Handle,
    pub clock: Clock,
}

/// Starts the owner. Nothing waits for the driver: the first snapshot has the devices that are known from before. The
/// owner ends when nobody can read its snapshot any more.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let Parts { mut config, store, node, mut listed, program, fictitious, events, clock } = parts;
    // The list may be there already.
    listed.mark_changed();
    let (now, limits) = (clock.now(), config.borrow_and_update().clone());
    let stored = store.written().clone();
    let state = match (fictitious, &*limits.class) {
        (Some(count), class) => State::fictitious(class, stored, count, now),
        (None, NVIDIA_CLASS) => State::new(stored, limits.max_temperature_celsius, now),
        (None, class) => State::of_class(class, stored, node, now),
    };
    let (publish, snapshot) = watch::channel(Arc::new(state.snapshot(now)));
    let (requests, queue) = mpsc::channel(QUEUE);
    let look = Arc::new(Notify::new());
    let owner = Owner {
        state,
        store,
        cannot_store: false,
        unusable: (0, 0),
        program,
        library: limits.nvml_library,
        child: None,
        asking: None,
        abandoned: None,
        events,
        clock,
        publish,
    };
    let task = tokio::spawn(owner.run(queue, config, listed, Arc::clone(&look)));
    (Handle { requests, snapshot, look }, task)
}

struct Owner {
    state: State,
    store: Store,
    /// The last write failed, which is logged once.
    cannot_store: bool,
    /// What was last logged of [`State::unusable`].
    unusable: (usize, usize),
    program: PathBuf,
    library: Option<PathBuf>,
    /// The child while it is not asked.
    child: Option<Probe>,
    /// The child while it is.
    asking: Option<Asking>,
    abandoned: Option<Abandoned>,
    events: events::Handle,
    clock: Clock,
    publish: watch::Sender<Arc<Snapshot>>,
}

/// A question in progress. It gives the child back.
type Asking = Pin<Box<dyn Future<Output = (Probe, Result<Answer, Silence>)> + Send>>;

impl Owner {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Request>,
        mut config: watch::Receiver<Config>,
        mut listed: watch::Receiver<List>,
        look: Arc<Notify>,
    ) {
        loop {
            let until = self.act();
            self.settle().await;
            tokio::select! {
                () = self.publish.closed() => return,
                (child, outcome) = answer(&mut self.asking) => self.heard(child, outcome),
                Some(request) = queue.recv() => self.answer(request).await,
                Ok(()) = listed.changed() => {
                    if let Some(list) = &*listed.borrow_and_update() {
                        self.state.listed(list, self.clock.now());
                    }
                }
                () = look.notified() => self.state.look(self.clock.now()),
                Ok(()) = config.changed() => {
                    let max = config.borrow_and_update().max_temperature_celsius;
                    self.state.limit(max);
                }
                () = pause(until, &self.clock) => {}
            }
        }
    }

    /// Does what is to be done now. Returns when there is more to do; `None`: when something happens.
    fn act(&mut self) -> Option<BootInstant> {
        loop {
            let now = self.clock.now();
            match self.state.next(now) {
                Step::Start => {
                    let started = Probe::start(&self.program, self.library.as_deref());
                    let outcome = started.map(|child| self.child = Some(child)).map_err(|e| e.to_string());
                    self.state.started(outcome, now);
                }
                Step::Ask(ask) => self.ask(ask),
                Step::Abandon => self.abandoned = self.child.take().map(Probe::abandon),
                Step::Check => {
                    let is_gone = self.abandoned.as_mut().is_none_or(Abandoned::is_gone);
                    self.abandoned.take_if(|_| is_gone);
                    self.state.checked(is_gone);
                }
                Step::Wait(until) => return until,
            }
        }
    }

    fn ask(&mut self, ask: Ask) {
        match self.child.take() {
            Some(mut child) => {
                self.asking = Some(Box::pin(async move {
                    let outcome = child.ask(ask).await;
                    (child, outcome)
                }));
            }
            // The state asks only a child that it has started.
            None => self.state.died("there is no child to ask".to_owned(), self.clock.now()),
        }
    }

    fn heard(&mut self, child: Probe, outcome: Result<Answer, Silence>) {
        (self.child, self.asking) = (Some(child), None);
        let now = self.clock.now();
        match outcome {
            Ok(answer) => {
                if let Answer::Readings(readings) = &answer {
                    log::faults(&readings.xids);
                }
                self.state.answered(answer, now);
            }
            Err(Silence::Late) => {
                tracing::warn!("the NVIDIA driver did not answer in time: its child is killed");
                self.state.hung(now);
            }
            Err(Silence::Died { why }) => {
                tracing::warn!(%why, "the process that asks the NVIDIA driver has died");
                self.state.died(why, now);
            }
        }
    }

    /// Writes and publishes what has changed. What was seen is published even if it cannot be written: the next call
    /// writes it.
    async fn settle(&mut self) {
        let outcome = self.store.keep(self.state.records()).await;
        if let Err(error) = &outcome
            && !self.cannot_store
        {
            tracing::error!(%error, "cannot store the known GPUs");
        }
        self.cannot_store = outcome.is_err();
        self.publish();
        let unusable = self.state.unusable();
        log::unusable(self.unusable, unusable);
        self.unusable = unusable;
    }

    async fn answer(&mut self, request: Request) {
        let Request { uuid, command, by, reply } = request;
        let outcome = self.command(&uuid, command, &by).await;
        self.publish();
        // The caller may have gone: the change is made all the same.
        drop(reply.send(outcome));
    }

    async fn command(&mut self, uuid: &str, command: Command, by: &Actor) -> Result<(), Error> {
        let before = self.state.clone();
        self.state.command(uuid, command)?;
        let records = self.state.records();
        if records == before.records() {
            return Ok(());
        }
        if let Err(error) = self.store.keep(records).await {
            self.state = before;
            return Err(Error::Store(error.into()));
        }
        log::command(uuid, command, by, &self.events);
        Ok(())
    }

    fn publish(&self) {
        let after = self.state.snapshot(self.clock.now());
        let before = self.publish.borrow().clone();
        if *before != after {
            changes::events(&before, &after).into_iter().for_each(|event| log::event(event, &self.events));
            self.publish.send_replace(Arc::new(after));
        }
    }
}

/// The answer of the child, if it is asked; never returns otherwise.
async fn answer(asking: &mut Option<Asking>) -> (Probe, Result<Answer, Silence>) {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

async fn pause(until: Option<BootInstant>, clock: &Clock) {
    match until {
        // The clock shows whole milliseconds, so the pause may end one early: then there is another of 1 ms.
        Some(until) => sleep(until.since(clock.now().boot).max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
