//! Who decides placements: a leader with a term, elected without a replicated log.
//!
//! [`state`] is the whole protocol, without time, network or disk of its own; [`store`] keeps what a
//! vote promises; [`task`] drives the one with the other. A leader only proposes: each host alone
//! admits, and refuses whoever follows a lower ballot, so that two leaders at once cost efficiency
//! and never correctness.

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

/// How often a leader says that it leads, in a small cluster.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// How an election goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub mode: ClusterMode,
    /// How often a leader says that it leads; stretched in large clusters.
    pub heartbeat: Duration,
}

impl Config {
    pub const fn new(mode: ClusterMode) -> Self {
        Self { mode, heartbeat: HEARTBEAT }
    }
}

/// What an election needs to know of the other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// The nodes that may vote here: known, not left, and of the same [`ClusterMode`]. Without this one.
    pub voters: BTreeSet<NodeId>,
    /// Every node that is known and has not left or been removed, reachable or not, without this one.
    pub known: usize,
    /// Seeds and known nodes that have not been tried yet since the start: while there are, nobody campaigns in haste.
    pub untried: bool,
}

/// Who decides, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// Whom this node follows: itself where it leads, `None` while it knows of nobody who does.
    pub leader: Option<NodeId>,
    /// The highest ballot on this node's disk; `None` before the first.
    pub ballot: Option<Ballot>,
    /// Where this node leads: for whom, and until when it may be sure.
    pub reign: Option<Arc<Reign>>,
}

/// This node's own leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    pub ballot: Ballot,
    /// The nodes a majority is counted of, this one included.
    pub electorate: BTreeSet<NodeId>,
    /// Those of all nodes that answered lately, or have just voted for this one, which is included.
    pub reached: BTreeSet<NodeId>,
    /// How many nodes are a majority.
    pub needed: usize,
    /// Nobody else can have been elected before this.
    pub lease: BootInstant,
}

/// A higher ballot is on this node's disk: who asked does not lead it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("this node follows term {} of node {}", .highest.term, .highest.node)]
pub struct Stale {
    pub highest: Ballot,
}

/// The way to the other nodes' elections.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// The peer's answer, if it comes in time.
    async fn ask(&self, peer: &NodeId, request: Request, within: Duration) -> Option<Answer>;
}

/// What one election asks of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Would you vote for this ballot? Promises nothing.
    PreVote { ballot: Ballot },
    /// Vote for this ballot.
    Vote { ballot: Ballot },
    /// I lead an electorate of this size. `round` comes back in the answer, so that the lease counts from
    /// when this was sent.
    Beat { ballot: Ballot, round: u64, electorate: u32 },
    /// I stop leading: `successor` campaigns at once, and nobody holds on to me.
    Resign { ballot: Ballot, successor: NodeId },
}

impl Request {
    /// The ballot of whoever asks.
    pub const fn ballot(&self) -> &Ballot {
        match self {
            Self::PreVote { ballot }
            | Self::Vote { ballot }
            | Self::Beat { ballot, .. }
            | Self::Resign { ballot, .. } => ballot,
        }
    }
}

/// The answer to a [`Request`]. It leaves once what it promises is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The vote is granted, the leader is followed.
    pub granted: bool,
    /// The highest ballot that the answering node knows.
    pub highest: Option<Ballot>,
    /// Of the [`Request::Beat`] that is answered.
    pub round: u64,
}

/// Why an election does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    #[error("the ballot cannot be written: {0}")]
    Store(String),
    #[error("the daemon is stopping")]
    Stopping,
}

/// Asks the owner of the election.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Ask>,
    leadership: watch::Receiver<Arc<Leadership>>,
}

/// What the owner can be asked.
#[derive(Debug)]
enum Ask {
    Answer(Request, oneshot::Sender<Result<Answer, Error>>),
    Adopt(Ballot, oneshot::Sender<Result<(), Stale>>),
    HandOver(oneshot::Sender<()>),
}

impl Handle {
    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Arc<Leadership>> {
        self.leadership.clone()
    }

    /// Answers another node's election. What the answer promises is on disk.
    pub async fn answer(&self, request: Request) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Ask::Answer(request, reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    /// Makes a ballot this node's highest, on disk: from then on no lower one counts.
    ///
    /// # Errors
    /// A higher one is there already; or it cannot be written, which to whoever asks is the same.
    pub async fn adopt(&self, ballot: &Ballot) -> Result<(), Stale> {
        if self.leadership.borrow().ballot.as_ref() == Some(ballot) {
            return Ok(());
        }
        let refused = || Stale { highest: self.leadership.borrow().ballot.unwrap_or(*ballot) };
        let (reply, answer) = oneshot::channel();
        self.requests.send(Ask::Adopt(*ballot, reply)).await.map_err(|_| refused())?;
        answer.await.unwrap_or_else(|_| Err(refused()))
    }

    /// Stops leading, if this node does, and has the best successor campaign at once.
    pub async fn hand_over(&self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Ask::HandOver(reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}
