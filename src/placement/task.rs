//! The owner of placement: makes the calls that [`Placement`] decides on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::sleep;

use super::index::Fleet;
use super::limits::Limits;
use super::metrics::Metrics;
use super::plan::Offers;
use super::state::{HostAnswer, HostCall, Output, Place, Placement, Unanswered};
use super::{Config, Error, Hosts};
use crate::clock::Clock;
use crate::election::Leadership;
use crate::gossip::ClusterView;
use crate::sessions::Admitted;
use crate::types::{Name, SessionId, User, Workspace};

/// Requests waiting for the owner. Further callers wait for room in the queue, briefly: each request is a decision in
/// memory.
const QUEUE: usize = 4096;

/// Sends requests to the owner.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    fleet: watch::Receiver<Arc<Fleet>>,
    metrics: Metrics,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
enum Request {
    Place(Box<Place>, Reply<Admitted>),
    DryRun(Box<(SessionId, User, Workspace)>, Reply<Offers>),
    /// A host leaves a registry alone for so long.
    Limited(String, Duration),
    /// How long a registry is to be left alone.
    AskLimit(String, Reply<Option<Duration>>),
}

impl Handle {
    /// What every host reported, while this node leads.
    pub fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }

    /// Places a session. Dropping the future does not stop the placement: hosts may have been asked already.
    pub async fn place(&self, place: Place) -> Result<Admitted, Error> {
        let began = Instant::now();
        let placed = self.ask(|reply| Request::Place(Box::new(place), reply)).await;
        self.metrics.placed(&placed, began.elapsed());
        placed
    }

    /// Says where the session would go, and changes nothing.
    pub async fn dry_run(&self, session: SessionId, user: User, workspace: Workspace) -> Result<Offers, Error> {
        self.ask(|reply| Request::DryRun(Box::new((session, user, workspace)), reply)).await
    }

    /// A host leaves a registry alone for so long, because it limits pulls.
    pub async fn limited(&self, registry: String, pause: Duration) {
        // The owner ends with the daemon.
        let _ = self.requests.send(Request::Limited(registry, pause)).await;
    }

    /// How long a registry is to be left alone, by what hosts told; `None`: not at all.
    pub async fn ask_limit(&self, registry: String) -> Option<Duration> {
        self.ask(|reply| Request::AskLimit(registry, reply)).await.ok().flatten()
    }

    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

/// What the owner is made of.
pub struct Parts {
    pub cluster: Name,
    /// Its changes are followed.
    pub config: watch::Receiver<Config>,
    pub leadership: watch::Receiver<Arc<Leadership>>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub hosts: Arc<dyn Hosts>,
    pub clock: Clock,
}

/// Starts the owner. It ends when the last [`Handle`] is gone.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let (requests, queue) = mpsc::channel(QUEUE);
    let (publish, fleet) = watch::channel(Arc::default());
    let Parts { cluster, mut config, leadership, view, hosts, clock } = parts;
    let metrics = Metrics::default();
    let placement = Placement::new(cluster, *config.borrow_and_update());
    let owner = Owner {
        placement,
        limits: Limits::default(),
        config,
        leadership,
        view,
        hosts,
        metrics: metrics.clone(),
        clock,
        calls: JoinSet::new(),
        numbers: HashMap::new(),
        publish,
    };
    (Handle { requests, fleet, metrics }, tokio::spawn(owner.run(queue)))
}

struct Owner {
    placement: Placement<Reply<Admitted>>,
    /// The registries that limit pulls, as hosts told.
    limits: Limits,
    config: watch::Receiver<Config>,
    leadership: watch::Receiver<Arc<Leadership>>,
    view: watch::Receiver<Arc<ClusterView>>,
    hosts: Arc<dyn Hosts>,
    metrics: Metrics,
    clock: Clock,
    /// Calls to hosts, each a task.
    calls: JoinSet<Result<HostAnswer, Unanswered>>,
    /// The number of each task's call.
    numbers: HashMap<Id, u64>,
    publish: watch::Sender<Arc<Fleet>>,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut election_runs = true;
        self.follow_leadership();
        loop {
            self.carry_out();
            let now = self.clock.now().boot;
            let wait = self.placement.poll_timeout().map(|due| due.since(now));
            tokio::select! {
                request = queue.recv() => match request {
                    Some(request) => {
                        // The caller may know of an election that this owner has not applied yet.
                        if self.leadership.has_changed().unwrap_or(false) {
                            self.follow_leadership();
                        }
                        self.decide(request);
                    }
                    None => return,
                },
                Some(ended) = self.calls.join_next_with_id() => {
                    self.answered(ended);
                    // Many hosts report at once: their reports are published together.
                    while let Some(ended) = self.calls.try_join_next_with_id() {
                        self.answered(ended);
                    }
                }
                Ok(()) = self.config.changed() => {
                    let config = *self.config.borrow_and_update();
                    self.placement.set_config(config);
                }
                changed = self.leadership.changed(), if election_runs => {
                    election_runs = changed.is_ok();
                    self.follow_leadership();
                }
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {
                    self.look_around();
                    self.placement.tick(self.clock.now().boot);
                }
            }
        }
    }

    /// Reads the newest view of gossip.
    fn look_around(&mut self) {
        self.placement.set_view(self.view.borrow().clone());
    }

    fn follow_leadership(&mut self) {
        self.look_around();
        let reign = self.leadership.borrow_and_update().reign.clone();
        self.placement.follow(reign, self.clock.now().boot);
    }

    fn decide(&mut self, request: Request) {
        self.look_around();
        let now = self.clock.now().boot;
        match request {
            Request::Place(place, reply) => self.placement.place(place, reply, now),
            Request::DryRun(wanted, reply) => {
                let (session, user, workspace) = *wanted;
                // The caller may have stopped waiting.
                let _ = reply.send(self.placement.dry_run(&session, &user, &workspace, now));
            }
            Request::Limited(registry, pause) => self.limits.tell(&registry, pause, now),
            Request::AskLimit(registry, reply) => drop(reply.send(Ok(self.limits.ask(&registry, now)))),
        }
    }

    fn answered(&mut self, ended: Result<(Id, Result<HostAnswer, Unanswered>), JoinError>) {
        self.look_around();
        let now = self.clock.now().boot;
        let (task, answer) = ended.unwrap_or_else(|failure| {
            tracing::error!(%failure, "a call to a host has failed");
            (failure.id(), Err(Unanswered::NoAnswer(failure.into())))
        });
        let Some(call) = self.numbers.remove(&task) else { return };
        match answer {
            Ok(answer) => self.placement.answered(call, answer, now),
            Err(why) => self.placement.unanswered(call, why, now),
        }
    }

    /// Publishes what hosts reported, then makes the calls and sends the answers that were decided. The next call for a
    /// report tells the host what the leader has: who hears that a change is known must find it published.
    fn carry_out(&mut self) {
        if let Some(fleet) = self.placement.take_news() {
            self.publish.send_replace(fleet);
        }
        while let Some(output) = self.placement.poll() {
            match output {
                Output::Ask { call, host, what } => {
                    let (hosts, metrics) = (Arc::clone(&self.hosts), self.metrics.clone());
                    let is_offer = matches!(what, HostCall::Admit(_));
                    let task = self.calls.spawn(async move {
                        let answered = hosts.ask(&host, what).await;
                        if is_offer {
                            metrics.offered(&answered);
                        }
                        answered
                    });
                    self.numbers.insert(task.id(), call);
                }
                // The caller may have stopped waiting. That changes nothing about the session.
                Output::Answer { to, placed } => drop(to.send(*placed)),
            }
        }
    }
}
