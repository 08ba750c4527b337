//! What deadlines end.

use std::collections::BTreeMap;

use super::{Context, Registry};
use crate::sessions::lifecycle::Wish;
use crate::sessions::record::Record;
use crate::types::{Deadline, EndReason, SessionId};

impl Registry {
    /// Ends every session whose ttl, retention or drain is over, and forgets tombstones that are due. One whose idle
    /// timeout is over gets an order to look whether it is used now. Returns true if a trouble of the host is over.
    pub fn expire(&mut self, cx: &Context<'_>) -> bool {
        let due = |deadline: Option<Deadline>| deadline.is_some_and(|deadline| deadline.is_due(cx.now));
        let mut forgotten: Vec<SessionId> = Vec::new();
        let mut removed = Vec::new();
        let mut stopped = Vec::new();
        let mut given_up = Vec::new();
        let mut idle_due = BTreeMap::new();
        for (id, record) in &self.records {
            let live = match record {
                Record::Live(live) => live,
                Record::Tombstone(tombstone) => {
                    // What is left on a GPU stays known until it has gone.
                    if due(Some(tombstone.forget)) && tombstone.status.gpus_leaving.is_none() {
                        forgotten.push(*id);
                    }
                    continue;
                }
            };
            let not_placed_in_time = due(live.unplaced.as_ref().map(|unplaced| unplaced.until));
            if live.wish == Wish::Remove {
                // It is being removed already.
            } else if live.is_claimed() {
                // Its leader decides about it, until it took too long.
                if not_placed_in_time {
                    given_up.push(*id);
                }
            } else if due(live.ttl) {
                removed.push((*id, EndReason::TtlExpired));
            } else if live.status.state.has_ended() {
                if due(live.retention) {
                    removed.push((*id, live.status.end_reason.unwrap_or(EndReason::UserStopped)));
                }
            } else if live.wish != Wish::Stop {
                if drain_ends_sessions(cx) {
                    stopped.push((*id, EndReason::Drained));
                } else if let Some(idle) = live.idle.filter(|idle| live.is_in_use() && idle.is_due(cx.now)) {
                    idle_due.insert(*id, idle);
                } else if not_placed_in_time {
                    given_up.push(*id);
                }
            }
        }
        self.unpublished
            .extend(idle_due.iter().filter(|(id, idle)| self.idle_due.get(id) != Some(idle)).map(|(id, _)| *id));
        self.idle_due = idle_due;
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
        self.troubles.expire(cx.now.boot)
    }

    /// Counts every deadline from this boot, so that from now on only the boot clock decides. Idle times begin anew:
    /// nobody saw whether the sessions were used while the agent did not run.
    pub fn rebase_deadlines(&mut self, cx: &Context<'_>) {
        for (id, record) in &mut self.records {
            if let Some(leaving) = &mut record.status_mut().gpus_leaving {
                leaving.since = cx.now.boot;
            }
            match record {
                Record::Live(live) => {
                    for deadline in [&mut live.ttl, &mut live.retention] {
                        *deadline = deadline.map(|deadline| deadline.rebased(cx.now));
                    }
                    live.idle = live.origin.workspace.idle_timeout().map(|span| Deadline::after(cx.now, span));
                    if let Some(unplaced) = &mut live.unplaced {
                        unplaced.until = unplaced.until.rebased(cx.now);
                    }
                }
                Record::Tombstone(tombstone) => tombstone.forget = tombstone.forget.rebased(cx.now),
            }
            self.unwritten.insert(*id);
            self.unpublished.insert(*id);
        }
    }
}

fn drain_ends_sessions(cx: &Context<'_>) -> bool {
    let Some(drain) = &cx.node.drain else { return false };
    drain.stop_sessions && drain.deadline.is_none_or(|deadline| deadline.is_due(cx.now))
}

#[cfg(test)]
mod tests;
