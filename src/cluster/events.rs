//! The events of the cluster: each node has its own log, and they are merged when they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::copies::{connected, may_answer};
use super::rpc::Serves;
use super::{Cluster, Error, Host, MAX_HOLD, QUICK, Routed};
use crate::clock::Clock;
use crate::events::merge::{Merger, newest};
use crate::events::{self, FollowFrom, Following, MAX_PAGE, Page, Paged};
use crate::types::{Actor, Event, EventFilter, EventGap, EventPlace, Name, NodeId, NodeState, Timestamp, WhoKind};
use crate::wire::message::{FollowEvents, ListEvents};

/// Nodes that are asked at once at most.
const AT_ONCE: usize = 32;
/// How long a node that has no news keeps a call of somebody who follows.
const HOLD: Duration = Duration::from_millis(HOLD_MILLIS);
const HOLD_MILLIS: u64 = 20_000;
/// The pause before a node that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// Events that wait for the merge at most: the nodes' calls wait for a place.
const QUEUE: usize = 1024;
/// Events that a reader may be behind the others. One that is slower is cut off, and resumes where it was.
const BEHIND: usize = 1024;
/// How often the nodes that are followed are compared with those of the cluster, and whether anybody reads.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Events that are told again to a reader that resumes the stream of all nodes: the clocks of nodes differ, and events
/// may have come late.
pub const REPLAY: Duration = Duration::from_secs(120);

/// An item of a stream of events.
#[derive(Debug, Clone)]
pub enum Told {
    Event(Arc<Event>),
    /// The events of a node are missing from now on. They come, marked late, once the node answers.
    Gap(EventGap),
}

/// The one stream of all nodes, which every reader of this node shares. There is none while nobody reads.
#[derive(Debug, Default)]
pub(super) struct Hub {
    /// Held for a look and a subscription only, and across no await.
    stream: Mutex<Option<broadcast::Sender<Told>>>,
}

impl Cluster {
    /// The newest events, the newest first. `nodes`: whose; empty: all nodes'.
    ///
    /// # Errors
    /// One of `nodes` is not known, or the only one does not answer.
    pub async fn events(
        &self,
        nodes: &[Name],
        filter: EventFilter,
        before: Option<EventPlace>,
        limit: usize,
    ) -> Result<(Vec<Event>, bool, Vec<EventGap>), Error> {
        let page = Page { filter, before, limit };
        if let [node] = nodes {
            let node = self.resolve(node).await?;
            let Paged { events, more } = self.on(&node, ListEvents(page), QUICK).await?.answer?;
            return Ok((self.named(events), more, Vec::new()));
        }
        let (asked, mut gaps) = self.whose(nodes).await?;
        let answers = stream::iter(asked)
            .map(async |node| (node, self.on_once(&node, ListEvents(page.clone()), None, QUICK).await))
            .buffer_unordered(AT_ONCE);
        let mut pages = Vec::new();
        for (node, answer) in answers.collect::<Vec<_>>().await {
            match answer.and_then(|Routed { answer, .. }| Ok(answer?)) {
                Ok(page) => pages.push(page),
                Err(error) => gaps.push(self.gap(&node, &why(&error))),
            }
        }
        let (events, more) = newest(pages, limit);
        Ok((self.named(events), more, gaps))
    }

    /// The events of all nodes since a time, in their order: for a reader that resumes. [`MAX_PAGE`] at most, the newest.
    ///
    /// # Errors
    /// As for [`Self::events`].
    pub async fn events_since(&self, nodes: &[Name], since: Timestamp) -> Result<(Vec<Event>, Vec<EventGap>), Error> {
        let filter = EventFilter { since: Some(since), ..EventFilter::default() };
        let (mut events, _, gaps) = self.events(nodes, filter, None, MAX_PAGE).await?;
        events.reverse();
        Ok((events, gaps))
    }

    /// The nodes to ask, and those that are known not to answer.
    async fn whose(&self, nodes: &[Name]) -> Result<(Vec<NodeId>, Vec<EventGap>), Error> {
        if !nodes.is_empty() {
            return Ok((self.node_ids(nodes).await?.into_iter().collect(), Vec::new()));
        }
        let (view, answering) = (self.view(), self.answering());
        let away = view.members.iter().filter(|(id, _)| !answering.contains(id));
        let gaps = away.map(|(id, member)| match member.state {
            NodeState::Left => self.gap(id, "its agent is stopped"),
            _ => self.gap(id, "it does not answer"),
        });
        Ok((answering.iter().copied().collect(), gaps.collect()))
    }

    /// This node, and those that may answer.
    fn answering(&self) -> BTreeSet<NodeId> {
        let connected = self.mesh.net().map(connected).unwrap_or_default();
        let others = may_answer(&self.view(), &connected);
        others.into_iter().map(|(node, _)| node).chain([*self.mesh.me()]).collect()
    }

    fn gap(&self, node: &NodeId, message: &str) -> EventGap {
        let name = self.name_of(node).parse().unwrap_or_else(|_| (*node).into());
        EventGap { node: name, message: message.to_owned() }
    }

    /// Adds the names of nodes that did something: a node knows another one by its id only.
    fn named(&self, mut events: Vec<Event>) -> Vec<Event> {
        for who in events.iter_mut().map(|event| &mut event.who).filter(|who| who.kind == WhoKind::Node) {
            let id = who.id.as_ref().and_then(|id| id.parse::<NodeId>().ok());
            who.name = id.and_then(|id| self.known_name(&id)).map(|name| name.to_string());
        }
        events
    }

    /// The ids of nodes.
    ///
    /// # Errors
    /// One is not known.
    pub async fn node_ids(&self, nodes: &[Name]) -> Result<BTreeSet<NodeId>, Error> {
        let mut ids = BTreeSet::new();
        for node in nodes {
            ids.insert(self.resolve(node).await?);
        }
        Ok(ids)
    }

    /// The events of one node from a place on, without a gap: the stream waits while the node does not answer.
    ///
    /// # Errors
    /// The node is not known.
    pub async fn follow_node(&self, node: &Name, from: FollowFrom) -> Result<mpsc::Receiver<Told>, Error> {
        let node = self.resolve(node).await?;
        let (tell, told) = mpsc::channel(1);
        let feeder = Feeder { cluster: self.clone(), node, from, tell };
        tokio::spawn(feeder.run());
        Ok(told)
    }

    /// The events of all nodes from now on, in the order in which they come.
    pub fn follow(&self, clock: &Clock) -> broadcast::Receiver<Told> {
        let mut stream = self.hub.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &*stream {
            return stream.subscribe();
        }
        let (tell, told) = broadcast::channel(BEHIND);
        *stream = Some(tell.clone());
        tokio::spawn(Merging::new(self.clone(), clock.clone()).run(tell));
        told
    }

    /// Ends the stream if nobody reads it.
    fn nobody_reads(&self, tell: &broadcast::Sender<Told>) -> bool {
        // A reader that comes now waits for the lock, and begins another stream.
        let mut stream = self.hub.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let nobody = tell.receiver_count() == 0;
        if nobody {
            *stream = None;
        }
        nobody
    }
}

/// Follows the log of one node.
struct Feeder {
    cluster: Cluster,
    node: NodeId,
    from: FollowFrom,
    tell: mpsc::Sender<Told>,
}

impl Feeder {
    /// Ends with the reader.
    async fn run(mut self) {
        let mut is_gap = false;
        loop {
            let call = FollowEvents { from: self.from, hold_millis: HOLD_MILLIS };
            let answer = tokio::select! {
                () = self.tell.closed() => return,
                answer = self.cluster.on_once(&self.node, call, None, HOLD + QUICK) => answer,
            };
            let told = match answer.and_then(|Routed { answer, .. }| Ok(answer?)) {
                Ok(Following { events, last }) => {
                    is_gap = false;
                    let last = events.last().map_or(last, |event| event.id.seq);
                    self.from = match self.from {
                        // A log that begins anew has lower numbers than were read.
                        FollowFrom::After(seq) if events.is_empty() => FollowFrom::After(seq.min(last)),
                        _ => FollowFrom::After(last),
                    };
                    self.cluster.named(events).into_iter().map(|event| Told::Event(Arc::new(event))).collect()
                }
                Err(error) => {
                    let first = !std::mem::replace(&mut is_gap, true);
                    sleep(AGAIN).await;
                    Vec::from_iter(first.then(|| Told::Gap(self.cluster.gap(&self.node, &why(&error)))))
                }
            };
            for told in told {
                if self.tell.send(told).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Merges the logs of all nodes into one stream.
struct Merging {
    cluster: Cluster,
    clock: Clock,
    since: Timestamp,
    merger: Merger,
    feeders: JoinSet<NodeId>,
    followed: BTreeMap<NodeId, tokio::task::AbortHandle>,
    feed: mpsc::Sender<Told>,
    fed: mpsc::Receiver<Told>,
}

impl Merging {
    fn new(cluster: Cluster, clock: Clock) -> Self {
        let (feed, fed) = mpsc::channel(QUEUE);
        let since = clock.now().wall;
        let (merger, feeders, followed) = (Merger::default(), JoinSet::new(), BTreeMap::new());
        Self { cluster, clock, since, merger, feeders, followed, feed, fed }
    }

    /// Ends once nobody reads.
    async fn run(mut self, tell: broadcast::Sender<Told>) {
        let mut looks = interval(LOOK_EVERY);
        loop {
            let next = self.merger.next(self.clock.now().boot);
            tokio::select! {
                _ = looks.tick() => {
                    if self.cluster.nobody_reads(&tell) {
                        return;
                    }
                    self.follow_all();
                }
                Some(told) = self.fed.recv() => match told {
                    Told::Event(event) => self.merger.push(Event::clone(&event), self.clock.now().boot),
                    // It fails if nobody reads, which the next look finds.
                    gap @ Told::Gap(_) => drop(tell.send(gap)),
                },
                () = sleep(next.unwrap_or_default()), if next.is_some() => {
                    for event in self.merger.due(self.clock.now().boot) {
                        let _ = tell.send(Told::Event(Arc::new(event)));
                    }
                }
            }
        }
    }

    /// Follows the nodes that are known now, and no others.
    fn follow_all(&mut self) {
        let (view, answering) = (self.cluster.view(), self.cluster.answering());
        self.followed.retain(|node, feeder| {
            let stays = view.members.contains_key(node) || answering.contains(node);
            if !stays {
                feeder.abort();
            }
            stays
        });
        for node in answering.iter().chain(view.members.keys()) {
            if !self.followed.contains_key(node) {
                let (cluster, node, tell) = (self.cluster.clone(), *node, self.feed.clone());
                let feeder = Feeder { cluster, node, from: FollowFrom::Since(self.since), tell };
                let task = self.feeders.spawn(async move {
                    feeder.run().await;
                    node
                });
                self.followed.insert(node, task);
            }
        }
    }
}

#[async_trait]
impl Serves<ListEvents> for Host {
    async fn serve(&self, ListEvents(page): ListEvents, _: &Actor) -> Result<Paged, events::Error> {
        self.events.page(page).await
    }
}

#[async_trait]
impl Serves<FollowEvents> for Host {
    async fn serve(
        &self,
        FollowEvents { from, hold_millis }: FollowEvents,
        _: &Actor,
    ) -> Result<Following, events::Error> {
        self.events.follow(from, Duration::from_millis(hold_millis).min(MAX_HOLD)).await
    }
}

/// Why a node's events are missing. Reading changes nothing, so that a lost answer leaves nothing in doubt.
fn why(error: &Error) -> String {
    match error {
        Error::NoAnswer { node, cause } => format!("node {node} does not answer: {cause}"),
        error => error.to_string(),
    }
}
