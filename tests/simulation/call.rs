//! The calls between hosts, and their answers and failures.

use ostler::gossip::Member;
use ostler::placement::{self, Have, HostAnswer};
use ostler::sessions::{Admit, Admitted, Command};
use ostler::types::{Ballot, NodeId, SessionId, SessionRequest};

/// A caller that waits for an answer: one call of one life of a host's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Caller {
    pub(crate) host: usize,
    pub(crate) life: u64,
    pub(crate) call: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Call {
    Report {
        ballot: Ballot,
        have: Option<Have>,
    },
    Admit(Box<Admit>),
    Find {
        session: SessionId,
        fingerprint: String,
    },
    Claim {
        ballot: Ballot,
        session: SessionId,
    },
    Command {
        session: SessionId,
        command: Command,
    },
    Place(Box<Place>),
    /// The sender's own state.
    Gossip(NodeId, Box<Member>),
}

/// A session to place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) session: SessionId,
    pub(crate) drawn: bool,
    pub(crate) request: SessionRequest,
}

pub(crate) enum Answer {
    /// To a leader's call.
    Host(Box<HostAnswer>),
    Command,
    /// The host does not lead; the leader that it follows, if it knows one.
    NotLeader(Option<NodeId>),
    Place(Box<Result<Admitted, placement::Error>>),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The call was not delivered.
    Unreachable,
    /// The host may have executed the call.
    NoAnswer,
}

/// What the caller does with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Then {
    Nothing,
    /// Passes it to placement, which numbered the call.
    Host {
        call: u64,
    },
    Entry {
        entry: u64,
    },
}
