//! Placement: which host a session is offered to, and why.
//!
//! While a node leads, every host tells it what it has and holds ([`index`]). [`filter`], [`score`] and
//! [`plan`] make of that an order of candidates, or an explanation; [`offer`] is the way of one session
//! through them. All of these are pure. The owner ([`task`]) holds what the leader knows, and [`placer`]
//! makes the offers. The host decides: a plan is a hint.

pub mod book;
pub mod elsewhere;
pub mod filter;
pub mod flights;
pub mod index;
pub mod offer;
pub mod placer;
pub mod plan;
pub mod score;
pub mod task;

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::sessions::Asked;
use crate::types::{
    Ballot, Invalid, Name, NodeId, NodeProfile, NodeReason, NodeUsage, OnUnknown, Session, SessionId, Strategy,
    Timestamp,
};
use crate::{election, sessions};

pub use index::Fleet;
pub use placer::{Placer, draw_key};
pub use task::Handle;

/// `[placement]`, and what of `[limits]` the leader keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub strategy: Strategy,
    pub on_unknown: OnUnknown,
    /// `limits.max_sessions_per_user`; 0: no limit.
    pub max_sessions_per_user: u32,
}

/// A session that a host has taken, now or before.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Placed {
    pub session: Session,
    /// The key had been used for the same request before: nothing new was made.
    pub replayed: bool,
}

/// Why no session was placed. Nothing was made, except where the variant says that it is not known.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error("no workspace named {0}")]
    NoWorkspace(Name),
    /// No known node could ever fit it.
    #[error("no node is large enough for this session")]
    ExceedsPhysical(Vec<NodeReason>),
    /// It would fit, but not now.
    #[error("no node has room for this session now")]
    NoCapacity(Vec<NodeReason>),
    /// Every node that could take it is disabled or draining.
    #[error("every node that could take this session is disabled or draining")]
    Disabled(Vec<NodeReason>),
    /// The engine of every node that could take it does not answer.
    #[error("the container engine of every node that could take this session does not answer")]
    RuntimeUnavailable(Vec<NodeReason>),
    /// The host that was asked says no for a reason of its own, or did not answer.
    #[error(transparent)]
    Host(sessions::Error),
    /// It may have been placed: the host that was asked did not answer. Asking again with the same key tells.
    #[error("node {node} was offered this session and did not answer: ask again with the same Idempotency-Key")]
    OutcomeUnknown { node: Name },
    /// The leader does not know yet what these hold, so a key that may be theirs is not placed.
    #[error("the leader is new and has not heard yet what every node holds")]
    Indexing { waiting_for: Vec<Name> },
    /// Nobody leads, or who led does no more.
    #[error("{0}")]
    NoLeader(String),
    #[error("{0}")]
    Internal(String),
}

/// What a host tells its leader: how it is, and what changed of what it holds.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HostReport {
    pub profile: NodeProfile,
    /// The images of the catalogue that are there.
    #[serde(default)]
    pub images: BTreeSet<String>,
    /// Of `profile` and `images`: see [`Have::node`].
    pub version: u64,
    pub usage: NodeUsage,
    /// The host's wall clock.
    pub at: Timestamp,
    pub changes: sessions::Changes,
}

/// What a leader has of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Have {
    pub sessions: sessions::Have,
    /// The version of the host's profile and images. It starts anew with each life of the agent, as that of
    /// `sessions` does, whose incarnation tells the lives apart.
    pub node: u64,
}

impl HostReport {
    /// What whoever has read it has.
    pub const fn have(&self) -> Have {
        Have { sessions: self.changes.now, node: self.version }
    }
}

/// How an offer ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Offered {
    Accepted(Box<sessions::Admitted>),
    /// Nothing was made.
    Refused(sessions::Error),
    /// The host follows a higher ballot: who asked leads no more.
    Stale(election::Stale),
    /// It was not delivered: nothing was made.
    Unreachable(String),
    /// It may have been taken: only that host can tell.
    Unknown(String),
}

/// A leader's way to the hosts that it decides for, itself included.
#[async_trait]
pub trait Hosts: Send + Sync + 'static {
    /// What the host holds, as soon as it differs from `have`, or after a while.
    ///
    /// # Errors
    /// It cannot be reached, or follows a higher ballot: for the log.
    async fn report(&self, host: &NodeId, ballot: Ballot, have: Option<Have>) -> Result<HostReport, String>;

    /// Offers a session to `admit.destination`.
    async fn admit(&self, admit: sessions::Admit) -> Offered;

    /// The session of a key that the host knows, with its secret, as when it was made.
    ///
    /// # Errors
    /// The host says no, or (`Err(None)`) cannot be asked.
    async fn find(
        &self,
        host: &NodeId,
        session: &SessionId,
        fingerprint: String,
    ) -> Result<Option<Session>, Option<sessions::Error>>;

    /// Takes charge of a session that the host could not start.
    ///
    /// # Errors
    /// The host says no, cannot be asked, or follows a higher ballot: for the log.
    async fn claim(&self, host: &NodeId, session: &SessionId, ballot: Ballot) -> Result<Asked, String>;

    /// Tells the host that no other takes the session it could not start.
    async fn give_up(&self, host: &NodeId, session: &SessionId);

    /// Asks the host to stop and put away a session of which there is a better one elsewhere.
    ///
    /// # Errors
    /// The host cannot be asked, or says no: for the log.
    async fn drop_duplicate(&self, host: &NodeId, session: &SessionId) -> Result<(), String>;
}
