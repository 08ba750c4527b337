//! Reconciles the journal with the engine: after a start, a crash, or missed events.

use std::time::Duration;

use super::{Context, Registry};
use crate::runtime::container::{Container, Found};
use crate::sessions::lifecycle::Wish;
use crate::sessions::record::{Live, Record, Tombstone};
use crate::types::{Ballot, EndReason, Moment, NodeId, SessionId, SessionState};

/// An engine that stops ends its containers first, for up to 15 s, and then its connections: a session that ended this
/// shortly before the engine was lost was ended by the engine.
const ENGINE_STOP_WINDOW: Duration = Duration::from_secs(20);

impl Registry {
    /// Takes the engine's list of containers. Adopts a container without a record from its labels, removes one whose
    /// record is a tombstone, and stops one that has ended and runs again. Runners do the rest.
    ///
    /// Returns the containers of this cluster that another node id made: this host leaves them alone.
    pub fn reconcile(&mut self, found: Vec<Found>, cx: &Context<'_>) -> Vec<(SessionId, NodeId)> {
        let mut foreign = Vec::new();
        for found in found {
            if found.node != self.node {
                foreign.push((found.session, found.node));
                continue;
            }
            match self.records.get(&found.session) {
                None => self.adopt(&found, cx),
                Some(Record::Tombstone(tombstone)) => self.remove_again(&tombstone.clone(), cx),
                Some(Record::Live(live)) if was_started_again(live, &found.container) => {
                    self.stop_again(&found.session);
                }
                Some(_) if self.engine_up && is_alive(&found.container) => self.back_in_sight(&found.session),
                Some(_) => {}
            }
        }
        foreign
    }

    /// Whether it is unknown what the session does: the engine does not answer, or was lost while the session ran
    /// and has not shown it since.
    pub fn is_unseen(&self, session: &SessionId) -> bool {
        !self.engine_up || self.is_out_of_sight(session)
    }

    pub(super) fn is_out_of_sight(&self, session: &SessionId) -> bool {
        self.out_of_sight.contains(session)
    }

    /// Takes whether the engine answers. Returns true if that changed.
    pub fn engine_is(&mut self, up: bool, cx: &Context<'_>) -> bool {
        // An engine that was never up may have been lost before this daemon started.
        let went = !up && self.engine_lost_at.is_none();
        if up == self.engine_up && !went {
            return false;
        }
        self.engine_up = up;
        if !up {
            self.engine_lost_at = Some(cx.now);
            self.engine_went();
        } else if let Some(lost_at) = self.engine_lost_at.take() {
            self.engine_returned(lost_at, cx);
        }
        true
    }

    /// The engine is lost. Sessions that ran may go on or end with it: only a look at each container tells.
    pub(super) fn engine_went(&mut self) {
        let runs = |live: &&Live| !live.status.state.has_ended() && live.run.is_some();
        self.out_of_sight = self.live_sessions().filter(runs).map(|live| live.origin.id).collect();
    }

    pub(super) fn back_in_sight(&mut self, session: &SessionId) {
        if self.out_of_sight.remove(session) {
            self.unpublished.insert(*session);
        }
    }

    fn adopt(&mut self, found: &Found, cx: &Context<'_>) {
        let ballot = Ballot { term: 0, node: self.node };
        let mut live = Live::adopted(found, ballot, cx.now);
        match &found.container {
            Container::Running(_) => {}
            Container::Paused(_) => live.wish = Wish::Pause,
            // It is not known whether it was stopped or still to be started: it stays as it is found.
            Container::Absent | Container::Created | Container::Exited(_) => {
                live.wish = Wish::Stop;
                live.status.end_reason = Some(EndReason::Lost);
            }
        }
        // Its runner reports its state; until then it may run.
        live.status.state = SessionState::Starting;
        tracing::warn!(session = %found.session, user = %found.user, "adopted a container that has no record");
        self.insert(Record::Live(Box::new(live)));
        self.rebuild();
    }

    fn remove_again(&mut self, tombstone: &Tombstone, cx: &Context<'_>) {
        self.insert(Record::Live(Box::new(Live::found_again(tombstone, cx.now))));
    }

    /// Somebody else started it. It holds no reservation, so it may not run.
    fn stop_again(&mut self, session: &SessionId) {
        if let Ok(live) = self.change(session) {
            tracing::warn!(%session, "it has ended and was started by somebody else; it is stopped again");
            live.status.state = SessionState::Stopping;
        }
    }

    /// The engine was lost at `lost_at` and is back. Sessions that ended just before ended because of it: they start
    /// again or stop, as their workspaces say, and stay ended if they no longer fit. A session whose end was not seen
    /// is decided about once its container is seen.
    pub(super) fn engine_returned(&mut self, lost_at: Moment, cx: &Context<'_>) {
        let victims: Vec<SessionId> =
            self.live_sessions().filter(|live| live.was_taken_down(lost_at)).map(|live| live.origin.id).collect();
        for id in victims {
            if self.reserve_again(&id, cx).is_ok() {
                tracing::info!(session = %id, "the container engine restarted under it");
                let known = self.host_restarted(&id, cx);
                debug_assert!(known.is_ok(), "the record was there a moment ago");
            }
        }
    }
}

/// Whether a session that has ended runs again: the engine's answer shows another run than the one that ended.
fn was_started_again(live: &Live, container: &Container) -> bool {
    let (Container::Running(run) | Container::Paused(run)) = container else { return false };
    live.status.state.has_ended() && live.wish == Wish::Stop && live.run.as_ref() != Some(run)
}

const fn is_alive(container: &Container) -> bool {
    matches!(container, Container::Running(_) | Container::Paused(_))
}

impl Live {
    /// Whether it ended, apparently by itself, just before the engine was lost.
    fn was_taken_down(&self, lost_at: Moment) -> bool {
        let Some(ended_at) = self.ended_at else { return false };
        self.wish == Wish::Stop
            && self.status.end_reason == Some(EndReason::Exited)
            && lost_at.boot_id == self.boot_id
            && lost_at.boot.since(ended_at) <= ENGINE_STOP_WINDOW
            && ended_at.since(lost_at.boot) <= ENGINE_STOP_WINDOW
    }
}

#[cfg(test)]
mod tests;
