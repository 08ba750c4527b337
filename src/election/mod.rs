//! Elects the leader, which decides placements: a leader with a term, without a replicated log.
//!
//! [`state`] is the whole protocol, without time, network or disk of its own; [`store`] keeps the promises
//! of votes on disk; [`task`] drives the protocol with time, network and disk. A leader only proposes: each host
//! alone admits sessions, and rejects offers under a lower ballot than its highest. So two leaders at once
//! cost efficiency and never correctness.

mod metrics;
pub mod state;
pub mod store;
pub mod task;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::types::{Ballot, BootInstant, ClusterMode, NodeId};
pub use metrics::Metrics;

/// How often a leader sends heartbeats, in a small cluster.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// The configuration of the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub mode: ClusterMode,
    /// How often a leader sends heartbeats; less often in large clusters.
    pub heartbeat: Duration,
}

impl Config {
    pub const fn new(mode: ClusterMode) -> Self {
        Self { mode, heartbeat: HEARTBEAT }
    }
}

/// What an election needs to know about the other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// The nodes that may vote here: known, not left, and of the same [`ClusterMode`]. Without this one.
    pub voters: BTreeSet<NodeId>,
    /// How many nodes are known and have not left or been removed, reachable or not. Without this one.
    pub known: usize,
    /// Whether this node has not yet tried all seeds and known nodes since its start. Until it has, it waits longer
    /// before it campaigns.
    pub untried: bool,
}

/// Which node leads, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// The leader that this node follows: itself if it leads, `None` while it knows no leader.
    pub leader: Option<NodeId>,
    /// The highest ballot on this node's disk; `None` before the first.
    pub ballot: Option<Ballot>,
    /// This node's reign, if it leads.
    pub reign: Option<Arc<Reign>>,
}

/// This node's own reign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    pub ballot: Ballot,
    /// The nodes that a majority is counted of, including this one.
    pub electorate: BTreeSet<NodeId>,
    /// The nodes that answered lately or have just voted for this one, and this node itself.
    pub reached: BTreeSet<NodeId>,
    /// How many nodes are a majority.
    pub needed: usize,
    /// No other node can have been elected before this instant.
    pub lease: BootInstant,
}

/// This node has a higher ballot on disk: the caller does not lead this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("this node follows term {} of node {}", .highest.term, .highest.node)]
pub struct Stale {
    pub highest: Ballot,
}

/// Calls to the elections of other nodes.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// The peer's answer; `None` if none comes in time.
    async fn ask(&self, peer: &NodeId, request: Request, within: Duration) -> Option<Answer>;
}

/// A request from one node's election to another's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Asks whether the node would vote for this ballot. The answer promises nothing.
    PreVote { ballot: Ballot },
    /// Asks for a vote for this ballot.
    Vote { ballot: Ballot },
    /// A heartbeat of the leader of an electorate of this size. The answer repeats `round`, so that the lease
    /// counts from the time when this was sent.
    Beat { ballot: Ballot, round: u64, electorate: u32 },
    /// The leader stops leading: `successor` campaigns at once, and followers no longer hold on to the leader.
    Resign { ballot: Ballot, successor: NodeId },
}

impl Request {
    /// The caller's ballot.
    pub const fn ballot(&self) -> &Ballot {
        match self {
            Self::PreVote { ballot }
            | Self::Vote { ballot }
            | Self::Beat { ballot, .. }
            | Self::Resign { ballot, .. } => ballot,
        }
    }
}

/// The answer to a [`Request`]. It is sent once its promise is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The node grants the vote, or follows the leader.
    pub granted: bool,
    /// The highest ballot that the answering node knows.
    pub highest: Option<Ballot>,
    /// The round of the [`Request::Beat`] that this answers; 0 for other requests.
    pub round: u64,
}

/// Why an election does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    #[error("cannot write the ballot: {0}")]
    Store(String),
    #[error("the daemon is stopping")]
    Stopping,
}

/// Sends requests to the owner of the election.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Ask>,
    leadership: watch::Receiver<Arc<Leadership>>,
    metrics: Metrics,
}

/// The owner's requests.
#[derive(Debug)]
enum Ask {
    Answer(Request, oneshot::Sender<Result<Answer, Error>>),
    Adopt(Ballot, oneshot::Sender<Result<(), Stale>>),
    HandOver(oneshot::Sender<()>),
}

impl Handle {
    /// Receives which node leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Arc<Leadership>> {
        self.leadership.clone()
    }

    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Answers a request of another node's election. The answer's promise is on disk when this returns.
    pub async fn answer(&self, request: Request) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Ask::Answer(request, reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    /// Makes a ballot this node's highest, on disk: from then on this node rejects lower ones.
    ///
    /// # Errors
    /// This node has a higher ballot, or cannot write this one. To the caller both mean the same.
    pub async fn adopt(&self, ballot: &Ballot) -> Result<(), Stale> {
        if self.leadership.borrow().ballot.as_ref() == Some(ballot) {
            return Ok(());
        }
        let refused = || Stale { highest: self.leadership.borrow().ballot.unwrap_or(*ballot) };
        let (reply, answer) = oneshot::channel();
        self.requests.send(Ask::Adopt(*ballot, reply)).await.map_err(|_| refused())?;
        answer.await.unwrap_or_else(|_| Err(refused()))
    }

    /// Stops leading, if this node leads, and makes the best successor campaign at once.
    pub async fn hand_over(&self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Ask::HandOver(reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}
