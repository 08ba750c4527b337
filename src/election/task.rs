//! The owner of the election: drives the protocol with time, network and disk.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::metrics::Metrics;
use super::state::{Election, Stored};
use super::store::Store;
use super::{Answer, Ask, Config, Error, Handle, Leadership, Members, Peers, Request, Stale};
use crate::clock::Clock;
use crate::types::NodeId;

/// Requests of other nodes that wait at most. Each is answered at once, or after one write to disk.
const QUEUE: usize = 1024;
/// Requests that share one write at most.
const TURN: usize = 128;

/// What the owner needs.
pub struct Parts {
    pub config: Config,
    pub me: NodeId,
    pub store: Store,
    pub stored: Stored,
    pub members: watch::Receiver<Arc<Members>>,
    pub peers: Arc<dyn Peers>,
    pub clock: Clock,
    /// Different on every node and at every start.
    pub seed: u64,
}

/// Starts the owner. It ends when the last [`Handle`] is dropped.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let (requests, queue) = mpsc::channel(QUEUE);
    let Parts { config, me, store, stored, members, peers, clock, seed } = parts;
    let metrics = Metrics::default();
    let now = clock.now().boot;
    let election = Election::new(config, me, stored, now, seed);
    let (publish, leadership) = watch::channel(Arc::new(election.leadership(now)));
    let owner = Owner {
        election,
        store,
        members,
        peers,
        metrics: metrics.clone(),
        clock,
        patience: config.heartbeat * 4,
        calls: JoinSet::new(),
        called: HashSet::new(),
        publish,
    };
    (Handle { requests, leadership, metrics }, tokio::spawn(owner.run(queue)))
}

struct Owner {
    election: Election,
    store: Store,
    members: watch::Receiver<Arc<Members>>,
    peers: Arc<dyn Peers>,
    metrics: Metrics,
    clock: Clock,
    /// How long a call waits for a peer's answer.
    patience: Duration,
    calls: JoinSet<(NodeId, Request, Option<Answer>)>,
    /// Peers whose answer to a heartbeat is outstanding. They get no second heartbeat meanwhile.
    called: HashSet<NodeId>,
    publish: watch::Sender<Arc<Leadership>>,
}

/// An answer that waits for the write to disk.
enum Waiting {
    Answer(Answer, oneshot::Sender<Result<Answer, Error>>),
    Adopted(Result<(), Stale>, oneshot::Sender<Result<(), Stale>>),
    HandedOver(oneshot::Sender<()>),
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Ask>) {
        self.take_members();
        let mut peers_known = true;
        loop {
            let due = self.election.poll_timeout().since(self.clock.now().boot);
            let mut waiting = Vec::new();
            tokio::select! {
                ask = queue.recv() => {
                    let Some(ask) = ask else { return };
                    waiting.push(self.decide(ask));
                    while waiting.len() < TURN && let Ok(ask) = queue.try_recv() {
                        waiting.push(self.decide(ask));
                    }
                }
                Some(called) = self.calls.join_next() => self.take_answer(called),
                changed = self.members.changed(), if peers_known => {
                    peers_known = changed.is_ok();
                    self.take_members();
                }
                () = tokio::time::sleep(due) => {}
            }
            self.election.tick(self.clock.now().boot);
            self.election.take_outcomes().into_iter().for_each(|outcome| self.metrics.ended(outcome));
            self.finish_turn(waiting).await;
        }
    }

    fn decide(&mut self, ask: Ask) -> Waiting {
        let now = self.clock.now().boot;
        match ask {
            Ask::Answer(request, reply) => Waiting::Answer(self.election.request(request, now), reply),
            Ask::Adopt(ballot, reply) => Waiting::Adopted(self.election.adopt(&ballot, now), reply),
            Ask::HandOver(reply) => {
                self.election.hand_over(now);
                Waiting::HandedOver(reply)
            }
        }
    }

    fn take_members(&mut self) {
        let members = (**self.members.borrow_and_update()).clone();
        self.election.members(members, self.clock.now().boot);
    }

    fn take_answer(&mut self, called: Result<(NodeId, Request, Option<Answer>), tokio::task::JoinError>) {
        let Ok((peer, request, answer)) = called else { return };
        if matches!(request, Request::Beat { .. }) {
            self.called.remove(&peer);
        }
        if let Some(answer) = answer {
            self.election.answer(&peer, &request, &answer, self.clock.now().boot);
        }
    }

    /// Persists, publishes, replies, sends: in this order.
    async fn finish_turn(&mut self, waiting: Vec<Waiting>) {
        let mut written = Ok(());
        if let Some(ballot) = self.election.poll_persist() {
            match self.store.keep(&ballot).await {
                Ok(()) => self.election.persisted(ballot),
                Err(error) => {
                    tracing::error!(%error, "cannot write the ballot: this node takes no part in elections");
                    self.election.persist_failed(self.clock.now().boot);
                    written = Err(Error::Store(error.to_string()));
                }
            }
        }
        self.publish();
        let mut handed_over = Vec::new();
        for answer in waiting {
            // A send fails if the caller has given up, which is no error.
            match answer {
                Waiting::Answer(answer, reply) => drop(reply.send(written.clone().map(|()| answer))),
                Waiting::Adopted(adopted, reply) => drop(written.is_ok().then(|| reply.send(adopted))),
                Waiting::HandedOver(reply) => handed_over.push(reply),
            }
        }
        self.send();
        if !handed_over.is_empty() {
            // The daemon's stop waits for this: the successor has the message, or is unreachable.
            while let Some(called) = self.calls.join_next().await {
                self.take_answer(called);
            }
            for reply in handed_over {
                let _ = reply.send(());
            }
        }
    }

    fn send(&mut self) {
        while let Some((peer, request)) = self.election.poll_send() {
            if matches!(request, Request::Beat { .. }) && !self.called.insert(peer) {
                continue;
            }
            let (peers, patience) = (Arc::clone(&self.peers), self.patience);
            self.calls.spawn(async move {
                let answer = peers.ask(&peer, request.clone(), patience).await;
                (peer, request, answer)
            });
        }
    }

    fn publish(&self) {
        let now = self.election.leadership(self.clock.now().boot);
        self.publish.send_if_modified(|before| {
            if **before == now {
                return false;
            }
            if before.leader != now.leader {
                let term = now.ballot.as_ref().map_or(0, |ballot| ballot.term);
                tracing::info!(leader = now.leader.as_ref().map(tracing::field::display), term, "leadership changed");
            }
            *before = Arc::new(now);
            true
        });
    }
}

#[cfg(test)]
mod tests;
