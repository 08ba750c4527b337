//! Reconciles the journal with the engine: after a start, a crash, or missed events.

use std::time::Duration;

use super::listing::{self, Listing};
use super::report::CONTAINER_GONE;
use super::{Context, Registry};
use crate::runtime::container::{Container, Found};
use crate::sessions::lifecycle::Wish;
use crate::sessions::record::{Live, Record, Tombstone};
use crate::types::{Ballot, BootInstant, EndReason, Moment, SessionId, SessionState};

/// An engine that stops ends its containers first, for up to 15 s, and then its connections: a session that ended this
/// shortly before the engine was lost was ended by the engine.
const ENGINE_STOP_WINDOW: Duration = Duration::from_secs(20);

/// Whether the engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    Down,
    Up {
        /// Which start of the engine answers; `None` if it cannot be told.
        epoch: Option<String>,
    },
}

/// Why it is not known what a session does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unseen {
    /// The engine was lost while the session ran, and has not shown it since.
    EngineWasLost,
    /// The engine answers, but not about this session's container.
    Alone(String),
}

impl Registry {
    /// Takes the engine's list of containers. Adopts a container without a record from its labels, removes one whose
    /// record is a tombstone, and stops one that has ended and runs again. Runners do the rest.
    ///
    /// `since`: when the engine was asked. Of what happened later, the list says nothing.
    pub fn reconcile(&mut self, found: Vec<Found>, since: BootInstant, cx: &Context<'_>) {
        let recorded = |session: &SessionId| self.records.get(session)?.status().container_id.as_deref();
        let Listing { sessions, oddities } = listing::sort(found, &self.node, recorded);
        self.oddities = oddities;
        self.is_listed = true;
        for (session, found) in &sessions {
            self.found(session, found, cx);
        }
        let was_removed = |live: &&Live| {
            let ended = live.wish == Wish::Stop && live.status.state.has_ended() && !live.container_removed;
            let before = live.boot_id != cx.now.boot_id || live.ended_at.is_some_and(|ended_at| ended_at < since);
            ended && before && live.run.is_some() && !sessions.contains_key(&live.origin.id)
        };
        let removed: Vec<SessionId> = self.live_sessions().filter(was_removed).map(|live| live.origin.id).collect();
        for session in removed {
            self.container_removed(&session);
        }
    }

    /// Another program removed the container of a session that has ended: it cannot be started again.
    fn container_removed(&mut self, session: &SessionId) {
        if let Ok(live) = self.change(session) {
            tracing::warn!(%session, "the container of a stopped session was removed by another program");
            live.container_removed = true;
            live.status.message = Some(CONTAINER_GONE.to_owned());
        }
    }

    fn found(&mut self, session: &SessionId, found: &Found, cx: &Context<'_>) {
        let live = match self.records.get(session) {
            None => return self.adopt(found, cx),
            Some(Record::Tombstone(tombstone)) => return self.remove_again(&tombstone.clone(), found, cx),
            Some(Record::Live(live)) => live,
        };
        let is_recorded = live.status.container_id.as_ref() == Some(&found.container_id);
        let was_started_again = found.container.as_ref().is_some_and(|container| was_started_again(live, container));
        if !is_recorded && let Some(live) = self.touch(session) {
            live.status.container_id = Some(found.container_id.clone());
        }
        let Some(container) = &found.container else { return };
        if was_started_again {
            self.stop_again(session);
        } else if self.engine_up && is_alive(container) {
            self.back_in_sight(session);
        }
    }

    /// Whether it is unknown what the session does: the engine does not answer, or does not show the session.
    pub fn is_unseen(&self, session: &SessionId) -> bool {
        !self.engine_up || self.is_out_of_sight(session)
    }

    /// Whether the engine answers and does not show the session.
    pub fn is_out_of_sight(&self, session: &SessionId) -> bool {
        self.out_of_sight.contains_key(session)
    }

    /// Why the engine does not show this one session, if it answers otherwise.
    pub fn why_unseen(&self, session: &SessionId) -> Option<&str> {
        match self.out_of_sight.get(session)? {
            Unseen::Alone(why) if self.engine_up => Some(why),
            Unseen::Alone(_) | Unseen::EngineWasLost => None,
        }
    }

    /// The engine was lost under the session, and has not shown it since.
    pub(super) fn was_engine_lost_under(&self, session: &SessionId) -> bool {
        self.out_of_sight.get(session) == Some(&Unseen::EngineWasLost)
    }

    /// The engine does not say what the session's container does. While the engine is away that is known already.
    pub(super) fn unseen(&mut self, session: &SessionId, why: String) {
        let seen_before = !self.was_engine_lost_under(session);
        if self.engine_up && seen_before && self.why_unseen(session) != Some(&why) {
            self.out_of_sight.insert(*session, Unseen::Alone(why));
            self.unpublished.insert(*session);
        }
    }

    /// Takes whether the engine answers. Returns true if that changed, or if the engine restarted.
    pub fn engine_is(&mut self, engine: &EngineState, cx: &Context<'_>) -> bool {
        let EngineState::Up { epoch } = engine else { return self.engine_answers(false, cx) };
        // One that was not seen before may have restarted while the agent was stopped: the records tell.
        let restarted = self.engine_up && self.engine_epoch != *epoch;
        self.engine_epoch.clone_from(epoch);
        if restarted {
            self.engine_answers(false, cx);
        }
        let news = self.engine_answers(true, cx);
        self.outlived_by_engine();
        news
    }

    /// Sessions that last ran under another start of the engine: whether they outlived it, only a look tells.
    fn outlived_by_engine(&mut self) {
        let Some(epoch) = &self.engine_epoch else { return };
        let outlived = |live: &&Live| {
            let other = live.engine_epoch.as_ref().is_some_and(|then| then != epoch);
            other && live.run.is_some() && !live.status.state.has_ended()
        };
        let sessions: Vec<SessionId> = self.live_sessions().filter(outlived).map(|live| live.origin.id).collect();
        self.unpublished.extend(sessions.iter().copied());
        self.out_of_sight.extend(sessions.into_iter().map(|session| (session, Unseen::EngineWasLost)));
    }

    fn engine_answers(&mut self, up: bool, cx: &Context<'_>) -> bool {
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
        let lost: Vec<SessionId> = self.live_sessions().filter(runs).map(|live| live.origin.id).collect();
        self.out_of_sight.extend(lost.into_iter().map(|session| (session, Unseen::EngineWasLost)));
    }

    pub(super) fn back_in_sight(&mut self, session: &SessionId) {
        if self.out_of_sight.remove(session).is_some() {
            self.unpublished.insert(*session);
        }
    }

    fn adopt(&mut self, found: &Found, cx: &Context<'_>) {
        let ballot = Ballot { term: 0, node: self.node };
        let mut live = Live::adopted(found, ballot, cx.now);
        match &found.container {
            // One that the engine cannot describe may run.
            Some(Container::Running(_)) | None => {}
            Some(Container::Paused(_)) => live.wish = Wish::Pause,
            // It is not known whether it was stopped or still to be started: it stays as it is found.
            Some(_) => {
                live.wish = Wish::Stop;
                live.status.end_reason = Some(EndReason::Lost);
            }
        }
        // Its runner reports its state; until then it may run.
        live.status.state = SessionState::Starting;
        tracing::warn!(session = %found.session, user = found.user.as_str(), "adopted a container that has no record");
        self.insert(Record::Live(Box::new(live)));
        self.rebuild();
    }

    fn remove_again(&mut self, tombstone: &Tombstone, found: &Found, cx: &Context<'_>) {
        let mut live = Live::found_again(tombstone, cx.now);
        live.status.container_id = Some(found.container_id.clone());
        self.insert(Record::Live(Box::new(live)));
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
