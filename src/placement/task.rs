//! The owner of what a leader knows: asks every host what it holds while this node leads, and answers what
//! is to be done about a session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::book::{Again, Begin, Begun, Book, Context};
use super::flights::End;
use super::index::{Duplicate, Fleet};
use super::plan::{Candidate, Offers};
use super::{Config, Error, HostReport, Hosts};
use crate::clock::Clock;
use crate::election::{Leadership, Reign};
use crate::gossip::ClusterView;
use crate::types::{Ballot, BootInstant, NodeId, SessionId, User, Workspace};

/// Requests waiting for the owner. Callers beyond it wait: each is a decision in memory.
const QUEUE: usize = 4096;
/// Requests that wait for a host to tell, or for the same session. Beyond it they are told to come back.
const MAX_PARKED: usize = 4096;
/// How long they wait.
const PARKED_FOR: Duration = Duration::from_secs(4);
/// How often they are looked at where nothing else happens.
const TICK: Duration = Duration::from_millis(100);
/// How often hosts are told again of the duplicates that they have: one that hung may not have heard it.
const REMIND: Duration = Duration::from_secs(3);
/// Between two questions to a host that does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Asks the owner.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    fleet: watch::Receiver<Arc<Fleet>>,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
enum Request {
    Begin(Box<Begin>, Reply<Begun>),
    BeginAgain(Box<Again>, Reply<(Ballot, Offers)>),
    Offering(SessionId, Ballot, Candidate),
    End(SessionId, Ballot, End),
    DryRun(Box<(SessionId, User, Workspace)>, Reply<Offers>),
}

impl Handle {
    /// What every host told, while this node leads.
    pub fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }

    /// What is to be done about a session. Waits, for a while, for hosts that have not told what they hold.
    pub async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        self.ask(|reply| Request::Begin(Box::new(begin), reply)).await
    }

    /// Where else a session may go that its host could not start.
    pub async fn begin_again(&self, again: Again) -> Result<(Ballot, Offers), Error> {
        self.ask(|reply| Request::BeginAgain(Box::new(again), reply)).await
    }

    /// The session is offered to this host now.
    pub async fn offering(&self, session: SessionId, ballot: Ballot, host: Candidate) {
        let _ = self.requests.send(Request::Offering(session, ballot, host)).await;
    }

    /// How the offer ended that [`Self::begin`] began by this ballot.
    pub async fn end(&self, session: SessionId, ballot: Ballot, end: End) {
        let _ = self.requests.send(Request::End(session, ballot, end)).await;
    }

    pub async fn dry_run(&self, session: SessionId, user: User, workspace: Workspace) -> Result<Offers, Error> {
        self.ask(|reply| Request::DryRun(Box::new((session, user, workspace)), reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let stopping = || Error::NoLeader("the daemon is stopping".to_owned());
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// What the owner is made of.
pub struct Parts {
    pub config: Config,
    pub leadership: watch::Receiver<Arc<Leadership>>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub hosts: Arc<dyn Hosts>,
    pub clock: Clock,
}

/// Starts the owner. It ends when the last [`Handle`] is gone.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let (requests, queue) = mpsc::channel(QUEUE);
    let (publish, fleet) = watch::channel(Arc::default());
    let Parts { config, leadership, view, hosts, clock } = parts;
    let owner = Owner {
        book: Book::new(config),
        leadership,
        view,
        hosts,
        clock,
        reign: None,
        listeners: BTreeMap::new(),
        tasks: JoinSet::new(),
        parked: Vec::new(),
        publish,
    };
    (Handle { requests, fleet }, tokio::spawn(owner.run(queue)))
}

struct Owner {
    book: Book,
    leadership: watch::Receiver<Arc<Leadership>>,
    view: watch::Receiver<Arc<ClusterView>>,
    hosts: Arc<dyn Hosts>,
    clock: Clock,
    reign: Option<Arc<Reign>>,
    /// One a host, while this node leads.
    listeners: BTreeMap<NodeId, AbortHandle>,
    tasks: JoinSet<()>,
    parked: Vec<Parked>,
    publish: watch::Sender<Arc<Fleet>>,
}

/// A request that waits.
struct Parked {
    begin: Box<Begin>,
    reply: Reply<Begun>,
    until: BootInstant,
}

/// A host's report, and the ballot that it was made for.
struct Heard {
    host: NodeId,
    ballot: Ballot,
    report: HostReport,
    /// Whether it could be taken in; if not, the host must tell everything.
    taken: oneshot::Sender<bool>,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let (told, mut reports) = mpsc::channel(QUEUE);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remind = tokio::time::interval(REMIND);
        remind.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut election_runs = true;
        self.follow_leadership(&told);
        loop {
            tokio::select! {
                request = queue.recv() => match request {
                    Some(request) => {
                        // Whoever asks may have heard of an election that this owner has not taken in yet.
                        if self.leadership.has_changed().unwrap_or(false) {
                            self.follow_leadership(&told);
                        }
                        self.decide(request);
                    }
                    None => return,
                },
                Some(heard) = reports.recv() => {
                    let mut changed = self.take(heard);
                    while let Ok(heard) = reports.try_recv() {
                        changed |= self.take(heard);
                    }
                    if changed {
                        self.publish.send_replace(Arc::new(self.book.index().fleet().clone()));
                        self.unpark();
                    }
                }
                changed = self.leadership.changed(), if election_runs => {
                    election_runs = changed.is_ok();
                    self.follow_leadership(&told);
                    self.unpark();
                }
                _ = tick.tick(), if !self.parked.is_empty() => self.unpark(),
                _ = remind.tick(), if self.reign.is_some() => {
                    if let Ok(left) = self.with_context(|book, _| book.index().all_duplicates()) {
                        self.put_away(left);
                    }
                }
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    fn decide(&mut self, request: Request) {
        match request {
            Request::Begin(begin, reply) => {
                let until = self.clock.now().boot.plus(PARKED_FOR);
                self.begin(Parked { begin, reply, until });
            }
            Request::BeginAgain(again, reply) => {
                let begun = self.with_context(|book, cx| book.begin_again(&again, cx)).and_then(|begun| begun);
                if let Err(Ok((ballot, _))) = reply.send(begun) {
                    self.book.end(&again.session, &ballot, End::NotTaken, self.clock.now().boot);
                }
            }
            Request::Offering(session, ballot, host) => self.book.offering(&session, &ballot, host),
            Request::End(session, ballot, end) => {
                self.book.end(&session, &ballot, end, self.clock.now().boot);
                self.unpark();
            }
            Request::DryRun(wanted, reply) => {
                let (session, user, workspace) = *wanted;
                let offers = self.with_context(|book, cx| book.dry_run(&session, &user, &workspace, cx));
                // Nobody has to wait for the answer.
                let _ = reply.send(offers.and_then(|offers| offers));
            }
        }
    }

    fn begin(&mut self, parked: Parked) {
        let begun = self.with_context(|book, cx| book.begin(&parked.begin, cx)).and_then(|begun| begun);
        // Who has just been elected, or was not heard for a moment, is sure of it with the next answers.
        let unsure = self.reign.as_ref().is_some_and(|reign| self.clock.now().boot >= reign.lease);
        let begun = match begun {
            Err(error @ Error::NoLeader(_)) if unsure => Ok(Begun::Wait(error)),
            begun => begun,
        };
        let answer = match begun {
            Ok(Begun::Wait(_)) if self.clock.now().boot < parked.until && self.parked.len() < MAX_PARKED => {
                return self.parked.push(parked);
            }
            Ok(Begun::Wait(error)) => Err(error),
            answer => answer,
        };
        let offered = match &answer {
            Ok(Begun::Offer { ballot, .. }) => Some(*ballot),
            _ => None,
        };
        if parked.reply.send(answer).is_err()
            && let Some(ballot) = offered
        {
            // Whoever asked has gone: nothing is offered.
            self.book.end(&parked.begin.session, &ballot, End::NotTaken, self.clock.now().boot);
        }
    }

    /// Looks again at what waits.
    fn unpark(&mut self) {
        for parked in std::mem::take(&mut self.parked) {
            self.begin(parked);
        }
    }

    fn with_context<T>(&mut self, decide: impl FnOnce(&mut Book, Context<'_>) -> T) -> Result<T, Error> {
        let now = self.clock.now().boot;
        let no_leader = |why: &str| Err(Error::NoLeader(why.to_owned()));
        let Some(reign) = self.reign.clone() else { return no_leader("this node does not lead") };
        // Another may have been elected since: it is not known, so nothing is decided.
        if now >= reign.lease {
            return no_leader("this node leads, but too few nodes have answered lately to be sure of it");
        }
        let view = self.view.borrow().clone();
        Ok(decide(&mut self.book, Context { now, reign: &reign, view: &view }))
    }

    /// Begins, goes on or ends to listen to hosts, as who leads whom has changed.
    fn follow_leadership(&mut self, told: &mpsc::Sender<Heard>) {
        let reign = self.leadership.borrow_and_update().reign.clone();
        if reign.as_ref().map(|reign| &reign.ballot) != self.reign.as_ref().map(|reign| &reign.ballot) {
            self.listeners.values().for_each(AbortHandle::abort);
            self.listeners.clear();
            self.book.clear();
            self.publish.send_replace(Arc::default());
        }
        self.reign = reign;
        let Some(reign) = &self.reign else { return };
        self.book.note_silence(reign, self.clock.now().boot);
        // Who was forgotten is in none of these; who vanished is in all.
        let view = self.view.borrow().clone();
        let stays = |host: &NodeId| {
            reign.electorate.contains(host) || reign.reached.contains(host) || view.members.contains_key(host)
        };
        let mut forgets = self.book.index_mut().retain(stays);
        for (host, sessions) in view.forgotten.iter().filter(|(host, _)| !reign.reached.contains(*host)) {
            forgets |= self.book.index_mut().forget(host, sessions);
        }
        if forgets {
            self.publish.send_replace(Arc::new(self.book.index().fleet().clone()));
        }
        for host in reign.electorate.union(&reign.reached) {
            if !self.listeners.contains_key(host) {
                let listening = listen(Arc::clone(&self.hosts), *host, reign.ballot, told.clone());
                self.listeners.insert(*host, self.tasks.spawn(listening));
            }
        }
    }

    /// Takes in what a host told. True where something changed.
    fn take(&mut self, heard: Heard) -> bool {
        let Heard { host, ballot, report, taken } = heard;
        if self.reign.as_ref().is_none_or(|reign| reign.ballot != ballot) {
            return false;
        }
        let applied = self.book.index_mut().apply(&host, report);
        let changed = applied.is_some();
        let _ = taken.send(changed);
        self.book.settle(self.clock.now().boot);
        self.put_away(applied.unwrap_or_default());
        changed
    }

    /// Has hosts put away what there is a better one of elsewhere.
    fn put_away(&mut self, duplicates: Vec<Duplicate>) {
        for Duplicate { host, session } in duplicates {
            tracing::warn!(%host, %session, "this session is there twice: the older decision is put away");
            let hosts = Arc::clone(&self.hosts);
            self.tasks.spawn(async move {
                if let Err(error) = hosts.drop_duplicate(&host, &session).await {
                    tracing::debug!(%host, %session, %error, "a duplicate is not put away yet");
                }
            });
        }
    }
}

/// Asks one host again and again what it holds. It is stopped when this node no longer leads.
async fn listen(hosts: Arc<dyn Hosts>, host: NodeId, ballot: Ballot, told: mpsc::Sender<Heard>) {
    let mut have = None;
    loop {
        let report = match hosts.report(&host, ballot, have).await {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(%host, %error, "a host does not tell what it holds");
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
        };
        let now = report.have();
        let (taken, applied) = oneshot::channel();
        if told.send(Heard { host, ballot, report, taken }).await.is_err() {
            return;
        }
        have = applied.await.is_ok_and(|applied| applied).then_some(now);
    }
}
