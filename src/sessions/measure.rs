//! What the changes of sessions count, and how long their starts take.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{BootInstant, EndReason, SessionId, SessionProfile, SessionState};

/// Something to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// A session is new in the cluster. One that another host could not start is not.
    Created,
    /// A session runs for the first time, or again after its end.
    Started {
        /// Since this host was to run it.
        took: Duration,
        /// It waited for its image.
        pulled: bool,
    },
    Ended {
        reason: Option<EndReason>,
        failed: bool,
    },
}

/// A session that is to run and does not run yet.
#[derive(Debug)]
struct Start {
    since: BootInstant,
    pulled: bool,
}

/// Compares sessions before and after each turn.
#[derive(Debug, Default)]
pub(super) struct Measure {
    starts: BTreeMap<SessionId, Start>,
    /// The sessions of the journal are known. When their starts began is not.
    begun: bool,
    measured: Vec<Measured>,
}

impl Measure {
    /// Takes a session after a turn. `before`: as it was published.
    pub(super) fn see(&mut self, before: Option<&SessionProfile>, now: &SessionProfile, at: BootInstant) {
        use SessionState::{Failed, Paused, Pending, Pulling, Running, Starting, Stopped, Stopping, Unknown};
        if !self.begun {
            return;
        }
        if before.is_none() && now.attempt <= 1 {
            self.measured.push(Measured::Created);
        }
        match now.state {
            Pending | Pulling | Starting => {
                let was_starting = before.is_some_and(|before| matches!(before.state, Pending | Pulling | Starting));
                if !was_starting {
                    self.starts.insert(now.id, Start { since: at, pulled: false });
                }
                if let Some(start) = self.starts.get_mut(&now.id) {
                    start.pulled |= now.state == Pulling;
                }
            }
            Running => {
                if let Some(Start { since, pulled }) = self.starts.remove(&now.id) {
                    self.measured.push(Measured::Started { took: at.since(since), pulled });
                }
            }
            Stopped | Failed => {
                self.starts.remove(&now.id);
                if before.is_none_or(|before| !before.state.has_ended()) {
                    let failed = now.state == Failed;
                    self.measured.push(Measured::Ended { reason: now.end_reason, failed });
                }
            }
            Paused | Stopping => drop(self.starts.remove(&now.id)),
            // The engine does not answer: the start may go on.
            Unknown => {}
        }
    }

    /// The session is not known any more.
    pub(super) fn forget(&mut self, session: &SessionId) {
        self.starts.remove(session);
    }

    /// What the turn counts.
    pub(super) fn take(&mut self) -> Vec<Measured> {
        self.begun = true;
        std::mem::take(&mut self.measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::sample;
    use SessionState::{Failed, Paused, Pending, Pulling, Running, Starting, Stopped, Stopping, Unknown};

    fn at(seconds: u64) -> BootInstant {
        BootInstant::default().plus(Duration::from_secs(seconds))
    }

    fn profile(state: SessionState) -> SessionProfile {
        sample::session_profile("k", "desktop", "alice", state)
    }

    /// What one session counts that is in these states, one a second.
    fn measured(states: &[SessionState]) -> Vec<Measured> {
        let mut measure = Measure::default();
        assert_eq!(measure.take(), []);
        let mut before = None;
        for (second, state) in (1..).zip(states) {
            let mut now = profile(*state);
            now.end_reason = state.has_ended().then_some(EndReason::Exited);
            measure.see(before.as_ref(), &now, at(second));
            before = Some(now);
        }
        measure.take()
    }

    fn started(seconds: u64, pulled: bool) -> Measured {
        Measured::Started { took: Duration::from_secs(seconds), pulled }
    }

    const fn ended(failed: bool) -> Measured {
        Measured::Ended { reason: Some(EndReason::Exited), failed }
    }

    #[test]
    fn a_start_lasts_from_the_order_until_the_session_runs() {
        assert_eq!(measured(&[Pending, Starting, Running, Running]), [Measured::Created, started(2, false)]);
        assert_eq!(measured(&[Pending, Pulling, Starting, Running]), [Measured::Created, started(3, true)]);
        assert_eq!(measured(&[Pending, Unknown, Starting, Running]), [Measured::Created, started(1, false)]);
    }

    #[test]
    fn a_session_that_runs_again_is_started_again_and_not_created_again() {
        let again = measured(&[Pending, Pulling, Running, Stopped, Pending, Running]);
        assert_eq!(again, [Measured::Created, started(2, true), ended(false), started(1, false)]);
        assert_eq!(measured(&[Pending, Running, Paused, Running, Unknown, Running]).len(), 2);
    }

    #[test]
    fn an_end_is_counted_once_and_ends_the_start() {
        assert_eq!(measured(&[Pending, Failed, Stopped, Failed]), [Measured::Created, ended(true)]);
        assert_eq!(measured(&[Pending, Stopping, Running]), [Measured::Created]);
        assert_eq!(measured(&[Running, Stopped]), [Measured::Created, ended(false)]);
    }

    #[test]
    fn sessions_of_the_journal_and_of_another_host_are_not_created_here() {
        let mut measure = Measure::default();
        measure.see(None, &profile(Starting), at(1));
        measure.take();
        measure.see(Some(&profile(Starting)), &profile(Running), at(2));
        let moved = SessionProfile { attempt: 2, ..profile(Pending) };
        measure.see(None, &moved, at(3));
        assert_eq!(measure.take(), []);
        measure.see(Some(&moved), &profile(Running), at(5));
        assert_eq!(measure.take(), [started(2, false)]);
        measure.see(None, &profile(Pending), at(6));
        measure.forget(&profile(Pending).id);
        measure.see(Some(&profile(Pending)), &profile(Running), at(7));
        assert_eq!(measure.take(), [Measured::Created]);
    }
}
