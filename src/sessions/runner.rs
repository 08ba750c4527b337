//! Carries one session through its life: asks [`lifecycle`] for a step, takes it, reports what it saw.
//!
//! A runner holds no state that matters. It may be ended anywhere and begun again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::decide::Report;
use super::lifecycle::{self, Order, Step};
use crate::runtime::{Container, Error, Launch, Runtime};
use crate::types::SessionId;

/// How long a session's processes have to end by themselves before they are killed: Docker's own default.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The first and the longest wait before an engine that did not answer is asked again.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// How often the traffic of a session that may end for want of it is looked at.
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(10);
/// Progress texts on their way; more of them are dropped.
const PROGRESS_QUEUE: usize = 4;

/// What a runner is to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Work {
    pub(super) order: Order,
    pub(super) launch: Arc<Launch>,
    /// Its traffic counts as activity.
    pub(super) watch_traffic: bool,
}

/// A report on its way to the owner, who answers once it is taken in; false: it could not be.
pub(super) struct Envelope {
    pub(super) session: SessionId,
    pub(super) report: Report,
    pub(super) taken: oneshot::Sender<bool>,
}

pub(super) struct Runner {
    pub(super) session: SessionId,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) reports: mpsc::Sender<Envelope>,
    /// `None`: there is nothing more to do.
    pub(super) work: watch::Receiver<Option<Work>>,
    /// Something about the container may have changed.
    pub(super) nudge: Arc<Notify>,
}

/// What is known of the container after a step; `None`: look.
type Known = Option<Container>;

impl Runner {
    /// Works until there is nothing more to do. `known` saves the first look at a container that
    /// cannot be there yet.
    pub(super) async fn run(mut self, mut known: Known) {
        let mut retry = FIRST_RETRY;
        loop {
            let Some(work) = self.work.borrow_and_update().clone() else { return };
            match self.step(&work, known.take()).await {
                Ok(now_known) => {
                    known = now_known;
                    retry = FIRST_RETRY;
                }
                Err(error) => {
                    self.settle(&work, error, retry).await;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    async fn step(&mut self, work: &Work, known: Known) -> Result<Known, Error> {
        let container = match known {
            Some(container) => container,
            None => self.runtime.observe(&self.session).await?,
        };
        match lifecycle::next(&work.order, &container) {
            Step::Prepare => self.prepare(work).await,
            Step::Start => self.runtime.start(&self.session).await.map(|()| None),
            Step::Pause => self.runtime.pause(&self.session).await.map(|()| None),
            Step::Resume => self.runtime.resume(&self.session).await.map(|()| None),
            Step::Stop => self.runtime.stop(&self.session, STOP_GRACE).await.map(|()| None),
            Step::Remove => self.runtime.remove(&self.session).await.map(|()| Some(Container::Absent)),
            Step::Tell(sight) => {
                let taken = self.tell(Report::Saw(sight)).await;
                Ok(taken.then_some(container))
            }
            Step::Wait => {
                self.wait(work).await;
                Ok(None)
            }
        }
    }

    /// Image, then container. A change of mind ends the wait for an image.
    async fn prepare(&mut self, work: &Work) -> Result<Known, Error> {
        let (progress, mut heard) = mpsc::channel(PROGRESS_QUEUE);
        let runtime = self.runtime.clone();
        let mut image = runtime.ensure_image(&work.launch, progress);
        let image_digest = loop {
            tokio::select! {
                fetched = &mut image => break fetched?,
                Some(progress) = heard.recv() => { self.tell(Report::Pulling(progress)).await; }
                changed = self.work.changed() => if changed.is_err() || !self.still_wanted(work) { return Ok(None) },
            }
        };
        self.tell(Report::Starting { image_digest }).await;
        let container_id = self.runtime.create(&work.launch).await?;
        self.tell(Report::Created { container_id }).await;
        Ok(Some(Container::Created))
    }

    fn still_wanted(&self, work: &Work) -> bool {
        self.work.borrow().as_ref().is_some_and(|now| now.order.wish == work.order.wish)
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self, work: &Work) {
        let mut before = None;
        loop {
            tokio::select! {
                _ = self.work.changed() => return,
                () = self.nudge.notified() => return,
                () = tokio::time::sleep(TRAFFIC_INTERVAL), if work.watch_traffic => {
                    let Ok(Some(now)) = self.runtime.traffic(&self.session).await else { continue };
                    if before.is_some_and(|before| before != now) {
                        self.tell(Report::Active).await;
                    }
                    before = Some(now);
                }
            }
        }
    }

    /// A step was not done: either the session has failed, or it is tried again later.
    async fn settle(&mut self, work: &Work, error: Error, retry: Duration) {
        let starting = matches!(work.order.wish, lifecycle::Wish::Run) && work.order.run.is_none();
        match error {
            Error::Image(message) if starting => {
                self.tell(Report::ImageFailed(message)).await;
            }
            Error::Refused(message) if starting => {
                self.tell(Report::StartFailed(message)).await;
            }
            error => {
                self.tell(Report::Unreachable(error.to_string())).await;
                self.retry_after(retry).await;
            }
        }
    }

    async fn retry_after(&mut self, retry: Duration) {
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = self.nudge.notified() => {}
            _ = self.work.changed() => {}
        }
    }

    /// Tells the owner, and waits until it has taken that in: what it orders next follows from it.
    async fn tell(&self, report: Report) -> bool {
        let (taken, answer) = oneshot::channel();
        let envelope = Envelope { session: self.session, report, taken };
        let sent = self.reports.send(envelope).await.is_ok();
        let taken = sent && answer.await.unwrap_or(false);
        if !taken {
            // The journal cannot be written, or the daemon is stopping: no reason to spin.
            tokio::time::sleep(LONGEST_RETRY).await;
        }
        taken
    }
}
