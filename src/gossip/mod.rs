//! Membership and the state of every node, spread by gossip.
//!
//! Each node publishes a few small keys ([`keys`]); chitchat brings them to everybody within some
//! rounds. What must be fast does not wait for it: gossip is for who is there, for lists, and for what
//! is left of a node that cannot be asked any more. [`view`] makes of the keys what the other parts
//! read; [`roster`] keeps it, so that a node that starts finds the others without a seed; [`task`] owns
//! it all.

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

/// What the gossip of this node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub me: NodeId,
    /// Clusters of other names are not heard.
    pub cluster: Name,
    /// Where the others reach this node.
    pub advertise: SocketAddr,
    /// Where to begin, as `host:port`. A name is looked up again and again.
    pub seeds: Vec<String>,
    pub mode: ClusterMode,
    /// Between two rounds of gossip. What a node publishes changes at most once in it.
    pub interval: Duration,
}

/// Where the owner says what it knows. Each is made before, for those who read it.
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
    /// Whoever is heard is a member.
    #[error("node {0} is alive: stop its agent first")]
    Alive(NodeId),
    #[error("the roster cannot be written: {0}")]
    Store(#[source] crate::store::Cause),
    /// The owner has ended. What became of the request is not known.
    #[error("the daemon is stopping")]
    Stopping,
}

/// The way to the owner. Cheap to clone.
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
    /// Says goodbye to the others, and ends the gossip of this node.
    pub async fn leave(&self) -> Result<(), Error> {
        self.ask(Request::Leave).await
    }

    /// Takes a node that is not alive out of the roster, or one of its sessions. They are back as soon as it is heard
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

/// Every other node, as it was last heard of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    pub members: BTreeMap<NodeId, Arc<Member>>,
    /// By member, its sessions that somebody had forgotten: it will not return.
    pub forgotten: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// Another live node has this node's id.
    pub duplicate: Option<SocketAddr>,
    /// There are seeds or known nodes, and none of them was ever heard.
    pub alone: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Where its agent is reached.
    pub address: SocketAddr,
    /// Which life of its agent was heard; grows.
    pub incarnation: u64,
    pub state: NodeState,
    pub mode: ClusterMode,
    /// When it was seen alive last, on this node's wall clock.
    pub last_seen: Timestamp,
    /// What it says of itself. `None` where it was only heard of so far.
    pub profile: Option<Arc<NodeProfile>>,
    /// What was measured of it, rounded.
    pub usage: NodeUsage,
    /// Its sessions that are not gone.
    pub sessions: BTreeMap<SessionId, Arc<SessionProfile>>,
    /// The digest of its catalogue.
    pub catalogue: Option<String>,
}

/// Where every known node is reached.
pub type Directory = BTreeMap<NodeId, SocketAddr>;

/// One life of a node, this one's included, as chitchat knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: NodeId,
    pub incarnation: u64,
    pub address: SocketAddr,
    /// Its heartbeat goes on.
    pub live: bool,
    pub heard: Arc<keys::Heard>,
}

#[cfg(test)]
mod fixture;
