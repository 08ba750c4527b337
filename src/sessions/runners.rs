//! The runners of this host's sessions, each a task: executes on the engine what [`Runner`] decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::decide::Report;
use super::probe::Prober;
use super::runner::{Action, Done, Op, Outcome, Runner, Work};
use super::state::Order;
use crate::runtime::{Container, Error, ProvideImages, Runtime, Target};
use crate::types::SessionId;

/// Progress texts that wait for the runner. Further ones are dropped.
const PROGRESS_QUEUE: usize = 4;
/// How long a runner waits after a report that the owner did not accept: the journal cannot be written, or the daemon
/// is stopping.
const NOT_TAKEN: Duration = Duration::from_secs(5);

/// A report to the owner. The owner answers `taken` with true once it has accepted the report, and with false if it
/// could not.
pub(super) struct Envelope {
    pub(super) session: SessionId,
    pub(super) report: Report,
    pub(super) taken: oneshot::Sender<bool>,
}

/// All runners of this host.
pub(super) struct Runners {
    runtime: Arc<dyn Runtime>,
    images: Arc<dyn ProvideImages>,
    reports: mpsc::Sender<Envelope>,
    links: HashMap<SessionId, Link>,
    tasks: JoinSet<()>,
}

/// The owner's end of a runner.
struct Link {
    work: watch::Sender<Option<Work>>,
    nudge: Arc<Notify>,
}

impl Runners {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn ProvideImages>,
        reports: mpsc::Sender<Envelope>,
    ) -> Self {
        Self { runtime, images, reports, links: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Gives a session's runner its order. Starts a runner if there is none, and ends it if there is no more work.
    pub(super) fn direct(&mut self, order: Order) {
        let Order { session, work, fresh } = order;
        let Some(work) = work else {
            // `None` ends the runner.
            if let Some(link) = self.links.remove(&session) {
                link.work.send_replace(None);
            }
            return;
        };
        if let Some(link) = self.links.get(&session).filter(|link| !link.work.is_closed()) {
            link.work.send_if_modified(|now| {
                let news = now.as_ref() != Some(&work);
                if news {
                    *now = Some(work);
                }
                news
            });
            return;
        }
        let (sender, receiver) = watch::channel(Some(work));
        let nudge = Arc::new(Notify::new());
        let course = Course {
            session,
            runtime: Arc::clone(&self.runtime),
            images: Arc::clone(&self.images),
            reports: self.reports.clone(),
            work: receiver,
            nudge: Arc::clone(&nudge),
            prober: Prober::new(),
        };
        self.tasks.spawn(course.run(fresh.then_some(Container::Absent)));
        self.links.insert(session, Link { work: sender, nudge });
    }

    /// Wakes a session's runner: its container may have changed.
    pub(super) fn nudge(&self, session: &SessionId) {
        if let Some(link) = self.links.get(session) {
            link.nudge.notify_one();
        }
    }

    pub(super) fn nudge_all(&self) {
        self.links.values().for_each(|link| link.nudge.notify_one());
    }

    /// The next runner that ended, and how. `None`: no runner is left.
    pub(super) async fn ended(&mut self) -> Option<Result<(), JoinError>> {
        self.tasks.join_next().await
    }
}

/// One runner's task.
struct Course {
    session: SessionId,
    runtime: Arc<dyn Runtime>,
    images: Arc<dyn ProvideImages>,
    reports: mpsc::Sender<Envelope>,
    /// `None`: there is no more work.
    work: watch::Receiver<Option<Work>>,
    /// The container may have changed.
    nudge: Arc<Notify>,
    prober: Prober,
}

impl Course {
    /// Works until there is no more work.
    async fn run(mut self, known: Option<Container>) {
        let Some(work) = self.newest() else { return };
        let mut runner = Runner::new(work, known);
        let mut action = runner.begin();
        loop {
            let outcome = match action {
                Action::EnsureImage => self.ensure_image(runner.work()).await,
                Action::Do(op) => Outcome::Did(self.act(op, runner.work()).await),
                Action::Tell(report) => Outcome::Told(self.tell(report).await),
                Action::Rest { look } => self.rest(look, runner.work()).await,
                Action::Retry { after } => self.retry(after).await,
            };
            let Some(work) = self.newest() else { return };
            action = runner.next(outcome, work);
        }
    }

    fn newest(&mut self) -> Option<Work> {
        self.work.borrow_and_update().clone()
    }

    fn target(&self, work: &Work) -> Target {
        Target { session: self.session, container_id: work.container_id.clone() }
    }

    async fn act(&self, op: Op, work: &Work) -> Result<Done, Error> {
        let (runtime, target) = (&self.runtime, &self.target(work));
        match op {
            Op::Observe => runtime.observe(target).await.map(Done::Saw),
            Op::Create => runtime.create(&work.launch).await.map(|container_id| Done::Created { container_id }),
            Op::Start => runtime.start(target).await.map(|()| Done::Stepped),
            Op::Verify => runtime.verify(target, &work.launch).await.map(|remark| Done::Verified { remark }),
            Op::Pause => runtime.pause(target).await.map(|()| Done::Stepped),
            Op::Resume => runtime.resume(target).await.map(|()| Done::Stepped),
            Op::Stop => runtime.stop(target, work.launch.stop_grace).await.map(|()| Done::Stepped),
            Op::Remove => runtime.remove(target).await.map(|()| Done::Removed),
        }
    }

    /// Pulls the image, and reports its progress. A change of the wish ends the pull.
    async fn ensure_image(&mut self, work: &Work) -> Outcome {
        let (progress, mut heard) = mpsc::channel(PROGRESS_QUEUE);
        let images = Arc::clone(&self.images);
        let mut image = images.ensure(&work.launch, progress);
        loop {
            tokio::select! {
                fetched = &mut image => return Outcome::Did(fetched.map(Done::ImageIsHere)),
                Some(progress) = heard.recv() => { self.tell(Report::Pulling(progress)).await; }
                changed = self.work.changed() => if changed.is_err() || !self.still_wanted(work) {
                    return Outcome::Interrupted;
                },
            }
        }
    }

    fn still_wanted(&self, work: &Work) -> bool {
        self.work.borrow().as_ref().is_some_and(|now| now.order.wish == work.order.wish)
    }

    /// Waits until there may be something to do.
    async fn rest(&mut self, look: Option<Duration>, work: &Work) -> Outcome {
        let target = self.target(work);
        let address = self.runtime.published_at();
        let probed = async {
            match &work.probe {
                Some(probe) => self.prober.news(work.order.run.as_ref(), probe, address).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.work.changed() => Outcome::Woken,
            () = self.nudge.notified() => Outcome::Woken,
            news = probed => Outcome::Probed(news),
            () = tokio::time::sleep(look.unwrap_or_default()), if look.is_some() => {
                Outcome::Looked(self.runtime.connected(&target, &work.launch.ports).await.ok())
            }
        }
    }

    async fn retry(&mut self, after: Duration) -> Outcome {
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            () = self.nudge.notified() => {}
            _ = self.work.changed() => {}
        }
        Outcome::Woken
    }

    /// Reports to the owner, and waits until the owner has accepted it, since the next order may follow from it.
    async fn tell(&self, report: Report) -> bool {
        let (taken, answer) = oneshot::channel();
        let envelope = Envelope { session: self.session, report, taken };
        let sent = self.reports.send(envelope).await.is_ok();
        let taken = sent && answer.await.unwrap_or(false);
        if !taken {
            tokio::time::sleep(NOT_TAKEN).await;
        }
        taken
    }
}
