//! Placement: which host a session is offered to, and why.
//!
//! While a node leads, every host reports its resources and its sessions to it ([`index`]). [`filter`], [`score`] and
//! [`plan`] turn these reports into an order of candidates, or an explanation; [`offer`] takes one session through
//! them; [`book`] decides what to do about a request. [`state`] is the leader's whole work on placement, sans-io:
//! it asks hosts for reports, offers sessions to them, and places again the sessions that a host could not start.
//! [`limits`] has the registries that limit pulls. All of these are pure; the owner ([`task`]) makes the calls over the
//! mesh. The host decides: a plan is a hint.

pub mod book;
pub mod filter;
pub mod flights;
pub mod index;
pub mod limits;
mod metrics;
pub mod offer;
pub mod placer;
pub mod plan;
pub mod score;
pub mod state;
pub mod task;

use async_trait::async_trait;

use crate::types::{Invalid, Name, NodeId, NodeProfile, NodeReason, NodeUsage, OnUnknown, Strategy, Timestamp};
use crate::{election, images, sessions};

pub use index::Fleet;
pub use metrics::Metrics;
pub use placer::{Placer, draw_key};
pub use state::{HostAnswer, HostCall, Unanswered};
pub use task::Handle;

/// `[placement]`, and the part of `[limits]` that the leader enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub strategy: Strategy,
    pub on_unknown: OnUnknown,
    /// `limits.max_sessions_per_user`; 0: no limit.
    pub max_sessions_per_user: u32,
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
    #[error("this node does not lead")]
    NotLeader,
    /// Another node may have been elected meanwhile.
    #[error("this node leads, but too few nodes have answered lately to be sure of it")]
    LeaseExpired,
    /// The host that was asked follows a higher ballot.
    #[error(transparent)]
    Stale(#[from] election::Stale),
    #[error("the same session is being placed just now")]
    BeingPlaced,
    /// Its last host still has its copy.
    #[error("another host has this session already")]
    PlacedElsewhere,
    /// Hosts answer again and again that they do not have the session that they reported.
    #[error("what the hosts hold is changing just now")]
    Changing,
    /// A host reported the session, and cannot be asked for it.
    #[error("the host of this session does not answer just now")]
    HostSilent,
    /// The session may have been placed. Asking again with the same key tells.
    #[error("the daemon is stopping")]
    Stopping,
    #[error("the operating system has no random bytes for the key of this session")]
    NoRandomBytes,
}

impl Error {
    /// Whether the leader cannot say yet, or no longer, what becomes of the session.
    pub const fn is_undecided(&self) -> bool {
        match self {
            Self::Indexing { .. }
            | Self::NotLeader
            | Self::LeaseExpired
            | Self::Stale(_)
            | Self::BeingPlaced
            | Self::PlacedElsewhere
            | Self::Changing
            | Self::HostSilent
            | Self::Stopping
            | Self::OutcomeUnknown { .. } => true,
            Self::Invalid(_)
            | Self::NoWorkspace(_)
            | Self::ExceedsPhysical(_)
            | Self::NoCapacity(_)
            | Self::Disabled(_)
            | Self::RuntimeUnavailable(_)
            | Self::Host(_)
            | Self::NoRandomBytes => false,
        }
    }
}

/// What a host sends its leader: its profile and usage, and what changed of its sessions.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HostReport {
    pub profile: NodeProfile,
    /// The images of the catalogue that the host has.
    #[serde(default)]
    pub images: images::Here,
    /// The version of `profile` and `images`: see [`Have::node`].
    pub version: u64,
    pub usage: NodeUsage,
    /// The host's wall clock.
    pub at: Timestamp,
    pub changes: sessions::Changes,
}

/// The versions that a leader has of a host's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Have {
    pub sessions: sessions::Have,
    /// The version of the host's profile and images. Like the version of `sessions`, it begins anew with each start of
    /// the agent; the incarnation in `sessions` tells one start from another.
    pub node: u64,
}

impl HostReport {
    /// The versions that a reader of this report has.
    pub const fn have(&self) -> Have {
        Have { sessions: self.changes.now, node: self.version }
    }
}

/// How an offer ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Offered {
    Accepted(Box<sessions::Admitted>),
    /// The host rejected it: nothing was created.
    Refused(sessions::Error),
    /// The host follows a higher ballot: the caller no longer leads.
    Stale(election::Stale),
    /// It was not delivered: nothing was made.
    Unreachable,
    /// It may have been taken: only that host can tell.
    Unknown,
}

/// The leader's calls to hosts, itself included.
#[async_trait]
pub trait Hosts: Send + Sync + 'static {
    /// Calls one host. Each call has its own deadline.
    async fn ask(&self, host: &NodeId, call: HostCall) -> Result<HostAnswer, Unanswered>;
}
