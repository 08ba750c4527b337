//! What the leader counts of its placements.

use std::time::Duration;

use super::state::{HostAnswer, Unanswered};
use super::{Error, Offered};
use crate::metrics::{CountBy, Registry, Source, Times};
use crate::sessions::{self, Admitted};
use crate::types::{ErrorCode, words};

/// Seconds. A placement is a call to one host, which makes the session durable; each host that rejects it adds a call.
const PLACEMENT: [f64; 7] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The outcomes of a request for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A host admitted it.
    Placed,
    /// The session of the same key was found.
    Found,
    /// No host admits it: `refusals` says why.
    Refused,
    /// A host may have admitted it.
    Unknown,
    /// Anything else: the request is wrong, or the node does not lead.
    Failed,
}
words!(Outcome {
    Placed => "placed",
    Found => "found",
    Refused => "refused",
    Unknown => "unknown",
    Failed => "failed",
});

/// The answers of a host to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Accepted,
    Rejected,
    /// The host follows a newer leader.
    Stale,
    Unreachable,
    Unknown,
}
words!(Answer {
    Accepted => "accepted",
    Rejected => "rejected",
    Stale => "stale",
    Unreachable => "unreachable",
    Unknown => "unknown",
});

/// Why no host admits a session.
const REASONS: [ErrorCode; 5] = [
    ErrorCode::ExceedsPhysical,
    ErrorCode::NoCapacity,
    ErrorCode::NodeDisabled,
    ErrorCode::RuntimeUnavailable,
    ErrorCode::QuotaExceeded,
];

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    placements: CountBy,
    refusals: CountBy,
    offers: CountBy,
    took: Times,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            placements: CountBy::new("outcome", Outcome::ALL.iter().map(|word| word.as_str())),
            refusals: CountBy::new("reason", REASONS.map(ErrorCode::as_str)),
            offers: CountBy::new("outcome", Answer::ALL.iter().map(|word| word.as_str())),
            took: Times::new(&PLACEMENT),
        }
    }
}

impl Metrics {
    pub(super) fn placed(&self, placed: &Result<Admitted, Error>, took: Duration) {
        let outcome = match placed {
            Ok(admitted) if admitted.replayed => Outcome::Found,
            Ok(_) => {
                self.took.observe(took);
                Outcome::Placed
            }
            Err(error) => match error.refusal() {
                Some(reason) => {
                    self.refusals.of(reason.as_str()).inc();
                    Outcome::Refused
                }
                None if matches!(error, Error::OutcomeUnknown { .. }) => Outcome::Unknown,
                None => Outcome::Failed,
            },
        };
        self.placements.of(outcome.as_str()).inc();
    }

    /// A host was offered a session.
    pub(super) fn offered(&self, answered: &Result<HostAnswer, Unanswered>) {
        let answer = match answered {
            Ok(HostAnswer::Admit(Offered::Accepted(_))) => Answer::Accepted,
            Ok(HostAnswer::Admit(Offered::Refused(_))) => Answer::Rejected,
            Ok(HostAnswer::Admit(Offered::Stale(_))) => Answer::Stale,
            Ok(HostAnswer::Admit(Offered::Unreachable)) | Err(Unanswered::Undelivered(_)) => Answer::Unreachable,
            Ok(_) | Err(Unanswered::NoAnswer(_)) => Answer::Unknown,
        };
        self.offers.of(answer.as_str()).inc();
    }
}

impl Error {
    /// Why no host admits the session; `None` where the request itself is wrong, or it is not decided yet.
    pub const fn refusal(&self) -> Option<ErrorCode> {
        match self {
            Self::ExceedsPhysical(_) => Some(ErrorCode::ExceedsPhysical),
            Self::NoCapacity(_) => Some(ErrorCode::NoCapacity),
            Self::Disabled(_) => Some(ErrorCode::NodeDisabled),
            Self::RuntimeUnavailable(_) => Some(ErrorCode::RuntimeUnavailable),
            Self::Host(sessions::Error::Quota { .. }) => Some(ErrorCode::QuotaExceeded),
            _ => None,
        }
    }
}

impl Source for Metrics {
    fn register(&self, registry: &mut Registry<'_>) {
        let help = "Requests for sessions that this node answered as the leader, by outcome";
        registry.count_by("placements", help, &self.placements);
        let help = "Requests for sessions that no node admits, by reason; counted by the leader, once a request";
        registry.count_by("refusals", help, &self.refusals);
        registry.count_by("offers", "Sessions that the leader offered to nodes, by the node's answer", &self.offers);
        let help = "From a request for a session until a node has admitted it, at the leader";
        registry.times("placement_duration_seconds", help, &self.took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::scrape;
    use crate::types::{SessionState, sample};

    #[track_caller]
    fn expect(metrics: &Metrics, lines: &[&str]) {
        let text = scrape(metrics);
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_session_that_was_found_is_not_placed_again() {
        let metrics = Metrics::default();
        for replayed in [false, true, true] {
            let session = sample::session("k", "desktop", "alice", SessionState::Pending);
            metrics.placed(&Ok(Admitted { session, replayed }), Duration::from_millis(20));
        }
        expect(
            &metrics,
            &[
                "placements_total{outcome=\"placed\"} 1",
                "placements_total{outcome=\"found\"} 2",
                "placement_duration_seconds_count 1",
            ],
        );
    }

    #[test]
    fn a_request_that_is_refused_is_counted_once_and_by_its_reason() {
        let metrics = Metrics::default();
        let quota = sessions::Error::Quota { user: "alice".parse().unwrap(), limit: 1 };
        for (count, error) in [
            Error::ExceedsPhysical(Vec::new()),
            Error::NoCapacity(Vec::new()),
            Error::Disabled(Vec::new()),
            Error::RuntimeUnavailable(Vec::new()),
            Error::Host(quota),
        ]
        .into_iter()
        .enumerate()
        {
            (0..=count).for_each(|_| metrics.placed(&Err(error.clone()), Duration::ZERO));
        }
        metrics.placed(&Err(Error::NotLeader), Duration::ZERO);
        metrics.placed(&Err(Error::Host(sessions::Error::Stopping)), Duration::ZERO);
        metrics.placed(&Err(Error::OutcomeUnknown { node: "one".parse().unwrap() }), Duration::ZERO);
        expect(
            &metrics,
            &[
                "refusals_total{reason=\"exceeds_physical\"} 1",
                "refusals_total{reason=\"no_capacity\"} 2",
                "refusals_total{reason=\"node_disabled\"} 3",
                "refusals_total{reason=\"runtime_unavailable\"} 4",
                "refusals_total{reason=\"quota_exceeded\"} 5",
                "placements_total{outcome=\"refused\"} 15",
                "placements_total{outcome=\"failed\"} 2",
                "placements_total{outcome=\"unknown\"} 1",
                "placements_total{outcome=\"placed\"} 0",
                "placement_duration_seconds_count 0",
            ],
        );
    }

    #[test]
    fn an_offer_that_may_have_arrived_is_not_one_that_did_not() {
        let metrics = Metrics::default();
        metrics.offered(&Err(Unanswered::Undelivered("no route".into())));
        metrics.offered(&Ok(HostAnswer::Admit(Offered::Unreachable)));
        metrics.offered(&Err(Unanswered::NoAnswer("broken".into())));
        metrics.offered(&Ok(HostAnswer::Admit(Offered::Unknown)));
        metrics.offered(&Ok(HostAnswer::Admit(Offered::Refused(sessions::Error::Stopping))));
        for (answer, count) in [("unreachable", 2), ("unknown", 2), ("rejected", 1), ("accepted", 0), ("stale", 0)] {
            expect(&metrics, &[&format!("offers_total{{outcome=\"{answer}\"}} {count}")]);
        }
    }
}
