//! What the owner of sessions counts.

use std::time::Duration;

use super::measure::Measured;
use crate::metrics::{Count, CountBy, Registry, Source, Times, TimesBy};
use crate::types::EndReason;

/// Seconds. A start without a pull takes a second or two, one with a pull minutes.
const START: &[f64] = &[0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Seconds. A commit is one `fdatasync`: a millisecond on flash, tens on a disk that turns.
const COMMIT: [f64; 7] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];
/// The reason of an end that has none.
const NO_REASON: &str = "unknown";

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    created: Count,
    ended: CountBy,
    failed: Count,
    starts: TimesBy,
    commit: Times,
}

impl Default for Metrics {
    fn default() -> Self {
        let reasons = EndReason::ALL.iter().map(|reason| reason.as_str());
        Self {
            created: Count::default(),
            ended: CountBy::new("reason", reasons.chain([NO_REASON])),
            failed: Count::default(),
            starts: TimesBy::new(START),
            commit: Times::new(&COMMIT),
        }
    }
}

impl Metrics {
    /// Sessions that were created on this host, since the agent started.
    pub fn created(&self) -> u64 {
        self.created.get()
    }

    /// Sessions that ended on this host.
    pub fn ended(&self) -> u64 {
        self.ended.total()
    }

    /// Those of them that failed.
    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    pub fn count(&self, measured: Measured) {
        match measured {
            Measured::Created => self.created.inc(),
            Measured::Started { took, pulled } => {
                self.starts.observe(&vec![("pulled", pulled.to_string())], took);
            }
            Measured::Ended { reason, failed } => {
                self.ended.of(reason.map_or(NO_REASON, EndReason::as_str)).inc();
                if failed {
                    self.failed.inc();
                }
            }
        }
    }

    pub(super) fn committed(&self, took: Duration) {
        self.commit.observe(took);
    }
}

impl Source for Metrics {
    fn register(&self, registry: &mut Registry<'_>) {
        registry.count("sessions_created", "Sessions that were created on this host", &self.created);
        registry.count_by("sessions_ended", "Sessions that ended on this host, by reason", &self.ended);
        registry.count("sessions_failed", "Sessions that ended on this host as failed", &self.failed);
        let help = "From the order to run a session until it runs, by whether it waited for a pull";
        registry.times_by("session_start_duration_seconds", help, &self.starts);
        let help = "How long the journal of sessions takes to write a change to the disk";
        registry.times("journal_commit_duration_seconds", help, &self.commit);
    }
}
