//! The owner of this node's knowledge of the other nodes.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chitchat::transport::Transport;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::address::{Told, advertised};
use super::keys::{self, LEFT, LOAD, Published};
use super::link::Link;
use super::roster::{self, Roster, Stored};
use super::seeds::Seeds;
use super::view::{self, Membership};
use super::{Channels, Config, Error, Handle, Reply, Request, StartError};
use crate::clock::Clock;
use crate::types::{Actor, NodeId, NodeState, SessionId};

/// Requests that wait for the owner at most. Further callers wait for a place.
const QUEUE: usize = 16;

/// Rounds between two publications of the measured figures.
const LOAD_ROUNDS: u64 = 10;
/// Rounds between two tries to reach the nodes that are not alive. The tries never end.
const DIAL_ROUNDS: u64 = 5;
/// Addresses that are tried at once; the others follow at the next tries.
const DIALS: usize = 64;
/// Looks per round at most, if other nodes change.
const LOOKS: u32 = 4;
/// How often figures of other nodes are written to disk.
const FIGURES_EVERY: Duration = Duration::from_secs(60);
/// Nodes that this node tells that it leaves. They tell the others.
const GOODBYES: usize = 5;
/// How often each of them is told, so that one lost message does not matter.
const GOODBYE_TRIES: u32 = 3;
/// How long leaving may take, in rounds and at most.
const GOODBYE_ROUNDS: u32 = 10;
const MAX_GOODBYE: Duration = Duration::from_secs(1);

/// How long after a move the last view of the other nodes stays, unless one of them is heard before: gossip begins
/// again, and no node is silent because this one has moved.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// Returns what this node publishes now.
pub type Source = Arc<dyn Fn() -> Published + Send + Sync>;

/// Starts the gossip, and its owner. The owner ends when the last [`Handle`] is gone, after [`Handle::leave`], or when
/// chitchat ends.
///
/// # Errors
/// The transport does not open.
pub async fn spawn(
    mut config: Config,
    transport: Arc<dyn Transport>,
    source: Source,
    (store, stored): (roster::Store, Stored),
    channels: Channels,
    clock: Clock,
) -> Result<(Handle, JoinHandle<()>), StartError> {
    let places = config.places.borrow_and_update().clone();
    let seeds = Seeds::new(&places.seeds);
    let known: Vec<SocketAddr> = stored.nodes.values().map(|member| member.address).collect();
    // Without any network, the loopback address stands for this node until there is one.
    let address = advertised(&places, config.bound, &seeds.addresses(), &known, config.route)
        .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, config.bound.port())));
    let link = Link::start(&config, address, stored.incarnation, keys::write(&source()), &*transport).await?;
    let (requests, queue) = mpsc::channel(QUEUE);
    let owner = Owner {
        told: Told::new(address),
        incarnation: stored.incarnation,
        settles_until: None,
        seeds,
        membership: Membership::new(
            config.me,
            stored.incarnation,
            !places.seeds.is_empty(),
            stored.nodes.clone(),
            clock.now(),
        ),
        roster: Roster::new(store, stored.nodes),
        config,
        transport,
        link,
        source,
        channels,
        clock,
        rounds: 0,
        dialled: 0,
        looked: Instant::now(),
        figures_kept: Instant::now(),
        store_fails: false,
    };
    Ok((Handle { requests }, tokio::spawn(owner.run(queue))))
}

struct Owner {
    config: Config,
    transport: Arc<dyn Transport>,
    link: Link,
    told: Told,
    /// The number of this life of the node for gossip: it grows with each start and each move.
    incarnation: u64,
    /// After a move, until when the last view stays.
    settles_until: Option<Instant>,
    seeds: Seeds,
    source: Source,
    membership: Membership,
    roster: Roster,
    channels: Channels,
    clock: Clock,
    rounds: u64,
    /// The place of the next address to try.
    dialled: usize,
    looked: Instant,
    figures_kept: Instant,
    /// The roster cannot be written, and the log says so already.
    store_fails: bool,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let ended = self.link.ended();
        tokio::pin!(ended);
        let mut changes = self.link.changes().await;
        let mut changed = false;
        let mut round = tokio::time::interval(self.config.interval);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_look = self.looked + self.config.interval / LOOKS;
            tokio::select! {
                reason = &mut ended => {
                    tracing::error!(%reason, "gossip ended");
                    return;
                }
                request = queue.recv() => match request {
                    // A failed send is ignored: the caller may stop waiting, and the request is handled all the same.
                    Some(Request::Forget(node, session, by, reply)) => {
                        drop(reply.send(self.forget(&node, session.as_ref(), &by).await));
                    }
                    Some(Request::Leave(reply)) => return self.leave(reply).await,
                    None => return,
                },
                _ = round.tick() => {
                    match self.follow().await {
                        Ok(false) => {}
                        Ok(true) => {
                            ended.set(self.link.ended());
                            changes = self.link.changes().await;
                        }
                        Err(error) => {
                            let reason = error.source().map(ToString::to_string);
                            tracing::error!(reason, "gossip cannot begin again under the new address");
                            return;
                        }
                    }
                    self.round().await;
                    changed = false;
                }
                _ = changes.changed(), if !changed => changed = true,
                () = tokio::time::sleep_until(next_look), if changed => {
                    self.look().await;
                    changed = false;
                }
            }
        }
    }

    /// Follows the operator's changes of addresses, and the host's. True if this node has moved, with a new link.
    async fn follow(&mut self) -> Result<bool, StartError> {
        if self.config.places.has_changed().unwrap_or(false) {
            let places = self.config.places.borrow_and_update().clone();
            self.seeds = Seeds::new(&places.seeds);
            self.membership.expect(!places.seeds.is_empty());
        }
        let places = self.config.places.borrow().clone();
        let nodes: Vec<SocketAddr> = self.membership.members().values().map(|member| member.address).collect();
        let found = advertised(&places, self.config.bound, &self.seeds.addresses(), &nodes, self.config.route);
        if let Some(address) = self.told.found(found) {
            let from = self.told.address;
            let moved = self.begin_life(address, self.incarnation).await?;
            if moved {
                tracing::info!(%from, to = %address, "the address of this node for other nodes has changed");
            }
            return Ok(moved);
        }
        if let Some(later) = self.membership.outlived(self.clock.now()) {
            let began = self.begin_life(self.told.address, later).await?;
            if began {
                tracing::info!("the other agent with this node's id is gone: this node makes itself known again");
            }
            return Ok(began);
        }
        Ok(false)
    }

    /// Begins another life, as after a restart of the agent: others know a node's address by its life, and hear only
    /// the latest one. `last`: the latest so far. False if that cannot be written to disk; the next round tries again.
    async fn begin_life(&mut self, address: SocketAddr, last: u64) -> Result<bool, StartError> {
        let now = self.clock.now().wall;
        let Ok(incarnation) = self.roster.begin_life(last, now).await else { return Ok(false) };
        // The transport carries one gossip at a time.
        self.link.end().await;
        self.link =
            Link::start(&self.config, address, incarnation, keys::write(&(self.source)()), &*self.transport).await?;
        self.incarnation = incarnation;
        self.membership.begin_life(incarnation);
        self.told = Told::new(address);
        self.settles_until = Some(Instant::now() + SETTLES_WITHIN);
        // Others hear of it now, and not when it is their turn.
        let live = self.live();
        let all = live.into_iter().chain(self.seeds.addresses()).filter(|other| *other != address);
        all.take(DIALS).for_each(|other| self.link.dial(other));
        Ok(true)
    }

    async fn round(&mut self) {
        self.say().await;
        self.look().await;
        if self.rounds.is_multiple_of(DIAL_ROUNDS) || self.live().is_empty() {
            self.dial();
        }
        self.rounds += 1;
    }

    /// Publishes the changes of this node.
    async fn say(&mut self) {
        let mut keys = keys::write(&(self.source)());
        if !self.rounds.is_multiple_of(LOAD_ROUNDS)
            && let (Some(load), Some(said)) = (keys.get_mut(LOAD), self.link.said().get(LOAD))
        {
            load.clone_from(said);
        }
        self.link.say(keys).await;
    }

    /// Looks at the other nodes, then stores and publishes the changes.
    async fn look(&mut self) {
        let entries = self.link.entries().await;
        self.looked = Instant::now();
        let hears = entries.iter().any(|entry| entry.live && entry.id != self.config.me);
        if self.settles_until.is_some_and(|until| !hears && self.looked < until) {
            return;
        }
        self.settles_until = None;
        let now = self.clock.now();
        let view = self.membership.look(&entries, now);
        self.keep().await;
        let members = view::members(&view, self.config.mode, self.membership.is_untried(now));
        publish(&self.channels.directory, view::directory(&view));
        // Published before the members, so that a reader that wakes for new members finds them in the view.
        publish(&self.channels.view, view);
        publish(&self.channels.members, members);
    }

    /// Stores the roster. If that fails, the next look tries again: only a start needs the roster.
    async fn keep(&mut self) {
        let figures = self.figures_kept.elapsed() >= FIGURES_EVERY;
        if figures {
            self.figures_kept = Instant::now();
        }
        match self.roster.keep(self.membership.members(), figures).await {
            Ok(()) => self.store_fails = false,
            Err(_) if self.store_fails => {}
            Err(error) => {
                tracing::warn!(%error, "cannot write the roster: after a restart this node may not know new nodes");
                self.store_fails = true;
            }
        }
    }

    /// Gossips with seeds and known nodes that are not alive. This is how the end of a partition is noticed.
    fn dial(&mut self) {
        let mut addresses: BTreeSet<SocketAddr> = self.seeds.addresses().into_iter().collect();
        let silent = |state| matches!(state, NodeState::Suspect | NodeState::Unknown);
        let members = self.membership.members().values();
        addresses.extend(members.filter(|member| silent(member.state)).map(|member| member.address));
        let live = self.live();
        addresses.retain(|address| !live.contains(address) && *address != self.told.address);
        let (all, tries) = (addresses.len(), addresses.len().min(DIALS));
        if all > 0 {
            addresses.iter().cycle().skip(self.dialled % all).take(tries).for_each(|address| self.link.dial(*address));
            self.dialled = (self.dialled + tries) % all;
        }
    }

    fn live(&self) -> BTreeSet<SocketAddr> {
        let members = self.membership.members().values();
        members.filter(|member| member.state == NodeState::Alive).map(|member| member.address).collect()
    }

    async fn forget(&mut self, node: &NodeId, session: Option<&SessionId>, by: &Actor) -> Result<(), Error> {
        let mut next = self.membership.clone();
        let known = match session {
            Some(session) => next.forget_session(node, session),
            None => next.forget(node),
        };
        let known = known.ok_or(Error::NotFound(*node))?;
        if known.state == NodeState::Alive {
            return Err(Error::Alive(*node));
        }
        self.roster.keep(next.members(), true).await.map_err(|error| Error::Store(error.into()))?;
        tracing::debug!(%node, session = session.map(tracing::field::display), %by, "forgotten");
        self.membership = next;
        self.look().await;
        Ok(())
    }

    async fn leave(mut self, reply: Reply<()>) {
        let mut keys = self.link.said().clone();
        keys.insert(LEFT.to_owned(), "true".to_owned());
        self.link.say(keys).await;
        let listeners = self.listeners();
        if !listeners.is_empty() {
            let goodbye = self.config.interval.saturating_mul(GOODBYE_ROUNDS).min(MAX_GOODBYE);
            for _ in 0..GOODBYE_TRIES {
                listeners.iter().for_each(|address| self.link.dial(*address));
                tokio::time::sleep(goodbye / GOODBYE_TRIES).await;
            }
        }
        self.link.end().await;
        drop(reply.send(Ok(())));
    }

    /// The nodes to tell that this node leaves. Live nodes come first; a node that stops right after its start has seen
    /// none yet, so known nodes and seeds follow.
    fn listeners(&self) -> Vec<SocketAddr> {
        let live = self.live();
        let known = self.membership.members().values();
        let known = known.filter(|member| member.state != NodeState::Left).map(|member| member.address);
        let others: BTreeSet<SocketAddr> = known.chain(self.seeds.addresses()).collect();
        let others = others.difference(&live).copied();
        let all = live.iter().copied().chain(others).filter(|address| *address != self.told.address);
        all.take(GOODBYES).collect()
    }
}

/// Publishes a value if it has changed, so that readers wake only for changes.
fn publish<T: PartialEq>(to: &watch::Sender<Arc<T>>, value: T) {
    to.send_if_modified(|published| {
        let differs = **published != value;
        if differs {
            *published = Arc::new(value);
        }
        differs
    });
}

#[cfg(test)]
mod tests;
