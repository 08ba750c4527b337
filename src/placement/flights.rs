//! Sessions in flight: offered to a host that has not reported them yet. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::index::Index;
use super::plan::Candidate;
use crate::types::{Ballot, BootInstant, NodeId, Resources, SessionId, User};

/// How long a session is offered only to the host that did not answer its offer; also how long a host that admitted
/// a session may take to report it.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Reports after which it is certain whether the host has a session that it was offered. The first may have been
/// sent before the offer arrived.
const TOLD_FOR_CERTAIN: u64 = 2;

/// How an offer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Taken,
    NotTaken,
    /// The last host that was asked may have it.
    Uncertain,
}

/// A session that was offered and that its host has not reported yet.
#[derive(Debug)]
pub(super) struct Flight {
    /// The ballot of the offer: the end of an offer under another ballot says nothing about this one.
    pub(super) ballot: Ballot,
    pub(super) user: User,
    pub(super) resources: Resources,
    /// The host that it is offered to now.
    pub(super) host: Option<Candidate>,
    pub(super) state: State,
    /// Set once its host did not answer: until then the session is offered to no other host.
    pub(super) doubted_until: Option<BootInstant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Offered,
    /// The host admitted it, and has not reported it yet.
    Taken {
        until: BootInstant,
    },
    Uncertain {
        /// The number of the host's reports after which it is certain whether the host has the session.
        told: u64,
    },
}

impl Flight {
    fn is_doubted(&self, now: BootInstant) -> bool {
        self.doubted_until.is_some_and(|until| now < until)
    }
}

/// All sessions in flight.
#[derive(Debug, Default)]
pub(super) struct Flights(BTreeMap<SessionId, Flight>);

impl Flights {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn get(&self, session: &SessionId) -> Option<&Flight> {
        self.0.get(session)
    }

    /// Notes that the session is being offered. A new offer to the same host does not extend `doubted_until`.
    pub(super) fn take_off(&mut self, session: SessionId, flight: Flight) {
        let doubted_until = match self.0.get(&session) {
            Some(before) if before.host == flight.host => before.doubted_until,
            _ => None,
        };
        self.0.insert(session, Flight { doubted_until, ..flight });
    }

    /// Notes that the session is now offered to this host.
    pub(super) fn offering(&mut self, session: &SessionId, ballot: &Ballot, host: Candidate) {
        if let Some(flight) = self.by(session, ballot).filter(|flight| flight.host.as_ref() != Some(&host)) {
            (flight.host, flight.doubted_until) = (Some(host), None);
        }
    }

    /// Notes how the offer under this ballot ended.
    pub(super) fn end(&mut self, session: &SessionId, ballot: &Ballot, end: End, index: &Index, now: BootInstant) {
        let Some(flight) = self.by(session, ballot) else { return };
        let until = now.plus(REMEMBERED_FOR);
        match end {
            End::NotTaken => drop(self.0.remove(session)),
            End::Taken => flight.state = State::Taken { until },
            End::Uncertain => {
                let told = flight.host.as_ref().map_or(0, |host| index.told(&host.id) + TOLD_FOR_CERTAIN);
                flight.state = State::Uncertain { told };
                flight.doubted_until.get_or_insert(until);
            }
        }
    }

    fn by(&mut self, session: &SessionId, ballot: &Ballot) -> Option<&mut Flight> {
        self.0.get_mut(session).filter(|flight| flight.ballot == *ballot)
    }

    /// Forgets the flights whose hosts have reported the session. An uncertain flight is forgotten after
    /// [`REMEMBERED_FOR`]; if `waits`, only once its host has reported for certain.
    pub(super) fn settle(&mut self, index: &Index, waits: bool, now: BootInstant) {
        self.0.retain(|session, flight| match flight.state {
            State::Offered => true,
            State::Taken { until } => {
                now < until && !flight.host.as_ref().is_some_and(|host| index.is_on(session, &host.id))
            }
            State::Uncertain { told } => {
                let silent = || flight.host.as_ref().is_some_and(|host| index.told(&host.id) < told);
                index.holder(session).is_none() && (flight.is_doubted(now) || (waits && silent()))
            }
        });
    }

    /// Forgets uncertain flights to hosts that were removed: such a host never reports again.
    pub(super) fn forget_removed(&mut self, is_removed: impl Fn(&NodeId) -> bool, now: BootInstant) {
        self.0.retain(|_, flight| match (flight.state, &flight.host) {
            (State::Uncertain { .. }, Some(host)) => flight.is_doubted(now) || !is_removed(&host.id),
            _ => true,
        });
    }

    /// The number of a user's sessions in flight.
    pub(super) fn of_user(&self, user: &User) -> usize {
        self.0.values().filter(|flight| flight.user == *user).count()
    }

    /// The resources of the sessions in flight, by host.
    pub(super) fn by_host(&self) -> BTreeMap<NodeId, Resources> {
        let mut sums: BTreeMap<NodeId, Resources> = BTreeMap::new();
        for flight in self.0.values() {
            if let Some(host) = &flight.host {
                let sum = sums.entry(host.id).or_default();
                *sum = sum.saturating_add(flight.resources);
            }
        }
        sums
    }
}
