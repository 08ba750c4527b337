//! Offers one session to its candidates in turn. Pure.
//!
//! Only a rejection moves on to the next host. A host that did not answer may have admitted the session: only that
//! host is asked again, until it answers or `PATIENCE` is over, and no other.

use std::collections::VecDeque;
use std::time::Duration;

use super::plan::{Candidate, Offers, nobody};
use super::{Error, Offered};
use crate::sessions::{self, Admitted};
use crate::types::{BootInstant, NodeReason, NodeVerdict, Reason};

/// How long one request offers a session to hosts.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause before a host that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// An offer on its way.
#[derive(Debug)]
pub struct Offer {
    candidates: VecDeque<Candidate>,
    considered: Vec<NodeVerdict>,
    refusals: Vec<NodeReason>,
    deadline: BootInstant,
    /// The last host that was asked may have admitted it.
    unknown: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Ask this host, after a pause.
    Ask {
        host: Candidate,
        after: Duration,
        considered: Vec<NodeVerdict>,
    },
    Done(Box<Result<Admitted, Error>>),
}

impl Offer {
    pub fn new(offers: Offers, now: BootInstant) -> Self {
        Self {
            considered: offers.verdicts(),
            candidates: offers.candidates.into(),
            refusals: offers.refusals,
            deadline: now.plus(PATIENCE),
            unknown: offers.uncertain,
        }
    }

    /// The first step.
    pub fn begin(&mut self) -> Step {
        self.ask_next()
    }

    /// Takes the outcome of the last [`Step::Ask`] and returns the next step.
    pub fn offered(&mut self, outcome: Offered, now: BootInstant) -> Step {
        match outcome {
            Offered::Accepted(admitted) => Step::Done(Box::new(Ok(*admitted))),
            // The host may have admitted it from this leader before it followed another one.
            Offered::Stale(_) if self.unknown => self.give_up(),
            Offered::Stale(stale) => Step::Done(Box::new(Err(Error::Stale(stale)))),
            Offered::Unknown => {
                self.unknown = true;
                self.ask_again(now)
            }
            // Whether it got the question before is not known, and it cannot be asked.
            Offered::Unreachable if self.unknown => self.ask_again(now),
            Offered::Unreachable => self.refused(Reason::Unreachable),
            // It was too busy even to look whether it has it, or could write nothing down at that moment.
            Offered::Refused(sessions::Error::Busy | sessions::Error::Journal(_)) if self.unknown => {
                self.ask_again(now)
            }
            Offered::Refused(error) => self.judge(error),
        }
    }

    fn judge(&mut self, error: sessions::Error) -> Step {
        match error {
            sessions::Error::Refused(reason) => {
                self.note(&reason);
                self.refusals.push(*reason);
                self.move_on()
            }
            // The host cannot write its journal, its engine fails, or it is busy: another host may admit it.
            sessions::Error::Journal(cause) => self.refused_since(Reason::Journal, Some(cause.to_string())),
            sessions::Error::Runtime(_) => self.refused(Reason::RuntimeUnavailable),
            sessions::Error::Busy => self.refused(Reason::Unreachable),
            error => Step::Done(Box::new(Err(Error::Host(error)))),
        }
    }

    fn refused(&mut self, reason: Reason) -> Step {
        self.refused_since(reason, None)
    }

    /// `message`: what the host says.
    fn refused_since(&mut self, reason: Reason, message: Option<String>) -> Step {
        if let Some(host) = self.candidates.front() {
            let reason = NodeReason { message, ..NodeReason::plain(host.name.clone(), reason) };
            self.note(&reason);
            self.refusals.push(reason);
        }
        self.move_on()
    }

    fn move_on(&mut self) -> Step {
        self.unknown = false;
        self.candidates.pop_front();
        self.ask_next()
    }

    fn ask_next(&self) -> Step {
        match self.candidates.front() {
            Some(host) => self.ask(host, Duration::ZERO),
            None => Step::Done(Box::new(Err(nobody(self.refusals.clone())))),
        }
    }

    fn ask_again(&self, now: BootInstant) -> Step {
        match self.candidates.front() {
            Some(host) if now < self.deadline => self.ask(host, AGAIN),
            _ => self.give_up(),
        }
    }

    /// Ends the offer: it is not known whether the last host that was asked has admitted the session.
    fn give_up(&self) -> Step {
        match self.candidates.front() {
            Some(host) => Step::Done(Box::new(Err(Error::OutcomeUnknown { node: host.name.clone() }))),
            None => self.ask_next(),
        }
    }

    fn ask(&self, host: &Candidate, after: Duration) -> Step {
        Step::Ask { host: host.clone(), after, considered: self.considered.clone() }
    }

    /// Replaces what the plan expected of the host by the host's own answer.
    fn note(&mut self, reason: &NodeReason) {
        for verdict in self.considered.iter_mut().filter(|verdict| verdict.node == reason.node) {
            verdict.refusal = Some(reason.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::election::Stale;
    use crate::types::{Ballot, NodeId, SessionState, sample};

    const NOW: BootInstant = BootInstant::from_millis(1000);

    fn offers(hosts: u8) -> Offers {
        let candidate = |i: u8| Candidate { id: NodeId::from_bytes([i; 10]), name: format!("n{i}").parse().unwrap() };
        Offers { candidates: (0..hosts).map(candidate).collect(), refusals: Vec::new(), uncertain: false }
    }

    fn accepted() -> Offered {
        let session = sample::session("k", "desktop", "alice", SessionState::Pending);
        Offered::Accepted(Box::new(Admitted { session, replayed: false }))
    }

    fn refused(host: &Candidate) -> Offered {
        let reason = NodeReason::plain(host.name.clone(), Reason::NoCapacity);
        Offered::Refused(sessions::Error::Refused(Box::new(reason)))
    }

    fn stale() -> Offered {
        Offered::Stale(Stale { highest: Ballot { term: 9, node: NodeId::from_bytes([9; 10]) } })
    }

    fn asked(step: &Step) -> Candidate {
        match step {
            Step::Ask { host, .. } => host.clone(),
            Step::Done(done) => panic!("no host is asked: {done:?}"),
        }
    }

    #[test]
    fn after_a_rejection_the_next_host_is_asked_and_the_reason_is_kept() {
        let mut offer = Offer::new(offers(2), NOW);
        let first = asked(&offer.begin());
        let next = offer.offered(refused(&first), NOW);
        let Step::Ask { host, considered, .. } = &next else { panic!("the second is asked") };
        assert_eq!(host.name.as_str(), "n1");
        assert_eq!(considered[0].refusal.as_ref().unwrap().reason, Reason::NoCapacity);
        let end = offer.offered(refused(host), NOW);
        assert!(
            matches!(end, Step::Done(done) if matches!(&*done, Err(Error::NoCapacity(reasons)) if reasons.len() == 2))
        );
    }

    #[test]
    fn a_host_that_certainly_does_not_have_the_session_is_not_asked_twice() {
        let mut offer = Offer::new(offers(4), NOW);
        offer.begin();
        let (busy, journal) = (sessions::Error::Busy, sessions::Error::Journal(String::new().into()));
        let outcomes = [Offered::Unreachable, Offered::Refused(busy), Offered::Refused(journal)];
        let asked = outcomes.map(|outcome| asked(&offer.offered(outcome, NOW)).name.to_string());
        assert_eq!(asked, ["n1", "n2", "n3"]);
    }

    #[test]
    fn a_leader_that_was_replaced_stops_offering() {
        let mut offer = Offer::new(offers(2), NOW);
        offer.begin();
        let end = offer.offered(stale(), NOW);
        assert!(matches!(end, Step::Done(done) if matches!(*done, Err(Error::Stale(_)))));
    }

    #[test]
    fn a_host_that_follows_another_leader_may_have_admitted_the_session_before() {
        let mut offer = Offer::new(offers(2), NOW);
        offer.begin();
        offer.offered(Offered::Unknown, NOW);
        let end = offer.offered(stale(), NOW);
        assert!(matches!(end, Step::Done(done) if matches!(*done, Err(Error::OutcomeUnknown { .. }))));
    }

    #[test]
    fn a_host_that_may_have_the_session_is_asked_until_the_time_is_up() {
        let mut offer = Offer::new(Offers { uncertain: true, ..offers(1) }, NOW);
        let host = asked(&offer.begin());
        for outcome in
            [Offered::Unreachable, Offered::Refused(sessions::Error::Journal(String::new().into())), Offered::Unknown]
        {
            assert_eq!(asked(&offer.offered(outcome, NOW)), host);
        }
        let end = offer.offered(Offered::Unreachable, NOW.plus(PATIENCE));
        assert!(matches!(end, Step::Done(done) if matches!(*done, Err(Error::OutcomeUnknown { .. }))));
    }

    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Accept,
        Refuse,
        Silent,
        Away,
    }

    proptest! {
        /// The host that may have admitted it is asked until it answers or the time is up, and no other host is.
        #[test]
        fn no_second_host_is_asked_while_the_first_may_have_it(
            hosts in 1..5u8,
            fates in prop::collection::vec(
                prop_oneof![Just(Fate::Accept), Just(Fate::Refuse), Just(Fate::Silent), Just(Fate::Away)], 200..201),
        ) {
            let mut offer = Offer::new(offers(hosts), NOW);
            let mut now = NOW;
            let mut step = offer.begin();
            let mut may_have_it: Option<Candidate> = None;
            for fate in fates {
                let Step::Ask { host, after, .. } = &step else { break };
                let host = host.clone();
                if let Some(holder) = &may_have_it {
                    prop_assert_eq!(holder, &host);
                }
                now = now.plus(*after).plus(Duration::from_millis(10));
                let outcome = match fate {
                    Fate::Accept => accepted(),
                    Fate::Refuse => {
                        may_have_it = None;
                        refused(&host)
                    }
                    Fate::Silent => {
                        may_have_it = Some(host);
                        Offered::Unknown
                    }
                    Fate::Away => Offered::Unreachable,
                };
                step = offer.offered(outcome, now);
            }
            let Step::Done(done) = step else { panic!("it ends") };
            if may_have_it.is_some() {
                prop_assert!(matches!(*done, Ok(_) | Err(Error::OutcomeUnknown { .. })), "{done:?}");
            }
        }
    }
}
