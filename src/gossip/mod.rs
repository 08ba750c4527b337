//! Membership and the state of every node, spread by gossip.
//!
//! Each node publishes a few small keys ([`keys`]), which chitchat spreads to every node within a few
//! rounds. Nothing urgent depends on gossip: it serves membership, lists, and the last known state of
//! unreachable nodes. [`view`] builds what the other parts read from the keys. [`roster`] stores it, so
//! that a starting node finds the others without a seed. [`task`] owns all of it.

mod forgotten;
pub mod keys;
mod link;
pub mod roster;
mod seeds;
pub mod task;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::election;
use crate::types::{
    Actor, ClusterMode, Name, NodeId, NodeProfile, NodeState, NodeUsage, SessionId, SessionProfile, Timestamp,
};

/// The configuration of gossip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub me: NodeId,
    /// The cluster's name. Messages of clusters with another name are ignored.
    pub cluster: Name,
    /// The address where other nodes reach this node.
    pub advertise: SocketAddr,
    /// The nodes to contact first, as `host:port`. Names are resolved again at intervals.
    pub seeds: Vec<String>,
    pub mode: ClusterMode,
    /// The time between two rounds of gossip. A node publishes changes at most once per round.
    pub interval: Duration,
}

/// The channels to which the owner publishes. They exist before the owner, so that readers can subscribe first.
#[derive(Debug)]
pub struct Channels {
    pub directory: watch::Sender<Arc<Directory>>,
    pub view: watch::Sender<Arc<ClusterView>>,
    pub members: watch::Sender<Arc<election::Members>>,
}

/// Why gossip does not run, or a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("gossip cannot be started: {0}")]
    Start(String),
    #[error("no node {0} is known")]
    NotFound(NodeId),
    /// Whoever is heard is a member.
    #[error("node {0} is alive: stop its agent first")]
    Alive(NodeId),
    #[error("the roster cannot be written: {0}")]
    Store(String),
    #[error("the daemon is stopping")]
    Stopping,
}

/// Sends requests to the owner. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
enum Request {
    Forget(NodeId, Option<SessionId>, Actor, Reply<()>),
    Leave(Reply<()>),
}

impl Handle {
    /// Announces to other nodes that this node leaves, and ends its gossip.
    pub async fn leave(&self) -> Result<(), Error> {
        self.ask(Request::Leave).await
    }

    /// Removes a node that is not alive, or one of its sessions, from the roster. They return when the node connects
    /// again.
    pub async fn forget(&self, node: NodeId, session: Option<SessionId>, by: Actor) -> Result<(), Error> {
        self.ask(|reply| Request::Forget(node, session, by, reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

/// The last known state of every other node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    pub members: BTreeMap<NodeId, Arc<Member>>,
    /// By node, the sessions that an operator removed with `--forget`, because the node will not return.
    pub forgotten: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// The address of another live node with this node's id.
    pub duplicate: Option<SocketAddr>,
    /// Whether this node has seeds or knows nodes, and none of them has answered since its start.
    pub alone: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The address of its agent.
    pub address: SocketAddr,
    /// The number of the run of its agent; grows with each start.
    pub incarnation: u64,
    pub state: NodeState,
    pub mode: ClusterMode,
    /// When it was last alive, on this node's wall clock.
    pub last_seen: Timestamp,
    /// Its profile. `None` until it arrives by gossip.
    pub profile: Option<Arc<NodeProfile>>,
    /// Its usage, rounded.
    pub usage: NodeUsage,
    /// Its sessions whose containers exist.
    pub sessions: BTreeMap<SessionId, Arc<SessionProfile>>,
    /// The digest of its catalogue.
    pub catalogue: Option<String>,
}

/// The addresses of all known nodes.
pub type Directory = BTreeMap<NodeId, SocketAddr>;

/// One run of a node's agent in chitchat, this node's runs included.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: NodeId,
    pub incarnation: u64,
    pub address: SocketAddr,
    /// Whether its heartbeats arrive.
    pub live: bool,
    pub heard: Arc<keys::Heard>,
}

#[cfg(test)]
mod fixture;
