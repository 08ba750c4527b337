//! The events of a history, in a queue by virtual time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use ostler::sessions::runner::Outcome;
use ostler::types::SessionId;

use crate::call::{Answer, Call, Caller, Failure};
use crate::client::Told;
use crate::engine::Step;
use crate::host::Input;

/// The events to come, in order.
#[derive(Default)]
pub(crate) struct Queue {
    due: BinaryHeap<Reverse<Due>>,
    put: u64,
}

impl Queue {
    pub(crate) fn put(&mut self, at: u64, event: Event) {
        self.put += 1;
        self.due.push(Reverse(Due { at, order: self.put, event }));
    }

    /// When the next event is due.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.due.peek().map(|Reverse(due)| due.at)
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.due.pop().map(|Reverse(due)| due.event)
    }
}

struct Due {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One life of a host's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) host: usize,
    pub(crate) life: u64,
}

/// One event.
pub(crate) enum Event {
    Arrive {
        from: Caller,
        to: usize,
        call: Call,
    },
    Return {
        caller: Caller,
        answer: Result<Answer, Failure>,
    },
    /// The input reaches the owner of sessions.
    Inbox(At, Input),
    Turn(At),
    Tick(At),
    Relist(At),
    Gossip(At),
    /// A report's wait for a change is over.
    Patience(At),
    /// The engine executes a step, even if the agent that requested it has died.
    Did(At, SessionId, u64, Step),
    /// A runner gets the outcome of its action.
    Outcome(At, SessionId, u64, Outcome),
    /// A timer of placement is due.
    Lead(At),
    Enter(At, u64),
    Client(usize),
    Told(usize, u64, Told),
}

impl Event {
    /// The agent that must be up for it, and in which life. Life 0 stands for any life.
    pub(crate) const fn whose(&self) -> Option<At> {
        match self {
            Self::Arrive { to, .. } => Some(At { host: *to, life: 0 }),
            Self::Return { caller, .. } => Some(At { host: caller.host, life: caller.life }),
            Self::Inbox(at, _)
            | Self::Turn(at)
            | Self::Tick(at)
            | Self::Relist(at)
            | Self::Gossip(at)
            | Self::Patience(at)
            | Self::Outcome(at, ..)
            | Self::Lead(at)
            | Self::Enter(at, _) => Some(*at),
            Self::Did(..) | Self::Client(_) | Self::Told(..) => None,
        }
    }
}
