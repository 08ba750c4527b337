//! Sessions on their way: offered to a host, until it tells that it has them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::index::Index;
use super::plan::Candidate;
use crate::types::{Ballot, BootInstant, NodeId, Resources, SessionId, User};

/// How long a host that did not answer an offer is the only one that the session is offered to, and how long
/// one that took it may take to tell.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Reports after which a host has told whether it has what it was offered: the first may have been on its
/// way before the offer was.
const TOLD_FOR_CERTAIN: u64 = 2;

/// How an offer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Taken,
    NotTaken,
    /// The host that was asked last may have it.
    Uncertain,
}

/// A session that was offered, until its host tells that it has it.
#[derive(Debug)]
pub(super) struct Flight {
    /// By which it is offered: an offer of an earlier reign that ends says nothing of one of this.
    pub(super) ballot: Ballot,
    pub(super) user: User,
    pub(super) resources: Resources,
    /// Where it is offered now.
    pub(super) host: Option<Candidate>,
    pub(super) state: State,
    /// Once its host did not answer: so long it is offered to no other.
    pub(super) doubted_until: Option<BootInstant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Offered,
    /// The host has it, and has not told of it yet.
    Taken {
        until: BootInstant,
    },
    Uncertain {
        /// How often its host will have told once it has told for certain.
        told: u64,
    },
}

impl Flight {
    fn is_doubted(&self, now: BootInstant) -> bool {
        self.doubted_until.is_some_and(|until| now < until)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Flights(BTreeMap<SessionId, Flight>);

impl Flights {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn get(&self, session: &SessionId) -> Option<&Flight> {
        self.0.get(session)
    }

    /// The session is offered around from now on. The host that may have it already is not waited for anew.
    pub(super) fn take_off(&mut self, session: SessionId, flight: Flight) {
        let doubted_until = match self.0.get(&session) {
            Some(before) if before.host == flight.host => before.doubted_until,
            _ => None,
        };
        self.0.insert(session, Flight { doubted_until, ..flight });
    }

    /// The session is offered to this host now.
    pub(super) fn offering(&mut self, session: &SessionId, ballot: &Ballot, host: Candidate) {
        if let Some(flight) = self.by(session, ballot).filter(|flight| flight.host.as_ref() != Some(&host)) {
            (flight.host, flight.doubted_until) = (Some(host), None);
        }
    }

    /// How the offer ended that was made by this ballot.
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

    /// Forgets those that have landed: their host tells of them by now. One that may be on a host is forgotten in
    /// time, unless the host is to be waited for (`waits`) and has not told.
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

    /// Forgets what may be on hosts that were removed: nobody waits for them.
    pub(super) fn forget_removed(&mut self, is_removed: impl Fn(&NodeId) -> bool, now: BootInstant) {
        self.0.retain(|_, flight| match (flight.state, &flight.host) {
            (State::Uncertain { .. }, Some(host)) => flight.is_doubted(now) || !is_removed(&host.id),
            _ => true,
        });
    }

    /// How many are a user's.
    pub(super) fn of_user(&self, user: &User) -> usize {
        self.0.values().filter(|flight| flight.user == *user).count()
    }

    /// What they would take, by host.
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
