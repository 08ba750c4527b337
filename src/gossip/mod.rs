//! Membership and the state of every node, spread by gossip.
//!
//! Each node publishes a few small keys ([`keys`]), which chitchat brings to every node within some rounds. Nothing
//! that must be fast waits for gossip: it is for membership, for lists, and for the last known state of a node that
//! does not answer. [`view`] turns the keys into what the other parts read. [`roster`] stores it, so that a node that starts
//! finds the others without a seed. [`task`] owns all of it.

mod address;
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

pub use address::Route;

use crate::election;
use crate::types::{
    Actor, ClusterMode, Name, NodeId, NodeProfile, NodeState, NodeUsage, SessionId, SessionProfile, Timestamp,
};

/// What the operator says of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The address at which the other nodes reach this one; `None`: this node finds it, and follows its changes.
    pub advertise: Option<SocketAddr>,
    /// The nodes to contact first, as `host:port`. Names are looked up again regularly.
    pub seeds: Vec<String>,
}

/// The gossip's part of the configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub me: NodeId,
    /// Gossip of clusters with other names is ignored.
    pub cluster: Name,
    /// The address that the mesh's endpoint is bound to.
    pub bound: SocketAddr,
    /// How this node finds the address that it tells the others, if neither `places` nor `bound` says it.
    pub route: Route,
    /// What the operator says of addresses. A change is followed.
    pub places: watch::Receiver<Places>,
    pub mode: ClusterMode,
    /// The time between two rounds of gossip. What a node publishes changes at most once per round.
    pub interval: Duration,
}

/// The channels on which the owner publishes. They exist before the owner, so that their readers can start first.
#[derive(Debug)]
pub struct Channels {
    pub directory: watch::Sender<Arc<Directory>>,
    pub view: watch::Sender<Arc<ClusterView>>,
    pub members: watch::Sender<Arc<election::Members>>,
}

/// Why gossip does not start. Show it with its source.
#[derive(Debug, thiserror::Error)]
#[error("gossip cannot be started")]
pub struct StartError(#[source] Box<dyn std::error::Error + Send + Sync>);

/// Why a request was not done. Nothing changed, except where the variant says so.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("no node {0} is known")]
    NotFound(NodeId),
    /// A node that is alive cannot be removed.
    #[error("node {0} is alive; stop its agent first")]
    Alive(NodeId),
    #[error("the roster cannot be written: {0}")]
    Store(#[source] crate::store::Cause),
    /// The owner has ended. What became of the request is not known.
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
    /// Tells other nodes that this node leaves, and ends its gossip.
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

/// Every other node, as this node last heard from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    pub members: BTreeMap<NodeId, Arc<Member>>,
    /// By node, its sessions that an operator removed because the node will not return.
    pub forgotten: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// The nodes that an operator removed because they will not return.
    pub removed: BTreeSet<NodeId>,
    /// The address of another live node with this node's id.
    pub duplicate: Option<SocketAddr>,
    /// There are seeds or known nodes, and none of them has ever been heard.
    pub alone: bool,
}

impl ClusterView {
    /// Whether an operator removed the node, or only this session of it: nothing is heard of the session any more.
    pub fn has_forgotten(&self, node: &NodeId, session: &SessionId) -> bool {
        self.removed.contains(node) || self.forgotten.get(node).is_some_and(|sessions| sessions.contains(session))
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The address of its agent.
    pub address: SocketAddr,
    /// The life of its agent that was heard. The number grows with each start of the agent.
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

/// The address of every known node.
pub type Directory = BTreeMap<NodeId, SocketAddr>;

/// One life of a node, which may be this node, as chitchat knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: NodeId,
    pub incarnation: u64,
    pub address: SocketAddr,
    /// Whether its heartbeat goes on.
    pub live: bool,
    pub heard: Arc<keys::Heard>,
}

#[cfg(test)]
mod fixture;
