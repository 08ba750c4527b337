//! What time alone brings about.

use super::{Context, Registry};
use crate::sessions::lifecycle::Wish;
use crate::types::{Deadline, EndReason, SessionId, SessionState};

impl Registry {
    /// Ends what is over: ttl, idle time, retention, a drain's deadline, and the memory of what is gone.
    pub fn expire(&mut self, cx: &Context<'_>) {
        let due = |deadline: Option<Deadline>| deadline.is_some_and(|deadline| deadline.is_due(cx.now));
        let mut forgotten: Vec<SessionId> = Vec::new();
        let mut removed = Vec::new();
        let mut stopped = Vec::new();
        let mut given_up = Vec::new();
        for record in self.records.values() {
            let id = || record.id;
            if record.is_gone() {
                if due(record.forget) {
                    forgotten.push(id());
                }
            } else if record.wish == Wish::Remove {
                // On its way out already.
            } else if record.is_claimed() {
                // Its leader decides about it, until it took too long.
                if due(record.unplaced.as_ref().map(|unplaced| unplaced.until)) {
                    given_up.push(id());
                }
            } else if due(record.ttl) {
                removed.push((id(), EndReason::TtlExpired));
            } else if record.state.has_ended() {
                if due(record.retention) {
                    removed.push((id(), record.end_reason.unwrap_or(EndReason::UserStopped)));
                }
            } else if record.wish != Wish::Stop {
                let idle = due(record.idle) && matches!(record.state, SessionState::Running | SessionState::Paused);
                if drain_ends_sessions(cx) {
                    stopped.push((id(), EndReason::Drained));
                } else if idle {
                    stopped.push((id(), EndReason::IdleExpired));
                } else if due(record.unplaced.as_ref().map(|unplaced| unplaced.until)) {
                    given_up.push(id());
                }
            }
        }
        for id in forgotten {
            self.forget(&id);
        }
        for (id, reason) in removed {
            let known = self.remove(&id, reason);
            debug_assert!(known.is_ok(), "the record was there a moment ago");
        }
        for (id, reason) in stopped {
            let known = self.stop(&id, reason);
            debug_assert!(known.is_ok(), "the record was there a moment ago");
        }
        for id in given_up {
            let known = self.give_up(&id, cx);
            debug_assert!(known.is_ok(), "the record was there a moment ago");
        }
    }

    /// Counts every deadline from this boot, so that from now on the boot clock alone decides.
    pub fn rebase_deadlines(&mut self, cx: &Context<'_>) {
        let ids: Vec<SessionId> = self.records.keys().copied().collect();
        for id in ids {
            let Some(record) = self.touch(&id) else { continue };
            for deadline in [&mut record.ttl, &mut record.idle, &mut record.retention, &mut record.forget] {
                *deadline = deadline.map(|deadline| deadline.rebased(cx.now));
            }
            if let Some(unplaced) = &mut record.unplaced {
                unplaced.until = unplaced.until.rebased(cx.now);
            }
        }
    }
}

fn drain_ends_sessions(cx: &Context<'_>) -> bool {
    let Some(drain) = &cx.node.drain else { return false };
    drain.stop_sessions && drain.deadline.is_none_or(|deadline| deadline.is_due(cx.now))
}
