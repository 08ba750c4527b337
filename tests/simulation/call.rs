//! What hosts ask each other, and what becomes of it on the way.

use ostler::gossip::Member;
use ostler::placement::{self, Have, HostAnswer};
use ostler::sessions::{Admit, Admitted, Command};
use ostler::types::{Ballot, NodeId, SessionId, SessionRequest};

/// Who waits for an answer: a call of one life of a host.
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
    /// What one host says of itself.
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
    /// Whoever was asked does not lead: who does, as far as it knows.
    NotLeader(Option<NodeId>),
    Place(Box<Result<Admitted, placement::Error>>),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was not delivered.
    Unreachable,
    /// It may have been done.
    NoAnswer,
}

/// What the caller does with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Then {
    Nothing,
    /// It is for the leader's part, which numbered the call.
    Host {
        call: u64,
    },
    Entry {
        entry: u64,
    },
}
