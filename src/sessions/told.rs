//! What the changes of sessions tell the event log.

use std::collections::{BTreeMap, BTreeSet};

use super::Command;
use super::record::Record;
use crate::events::Happening;
use crate::types::{Actor, EndReason, SessionId, SessionProfile, SessionState};

/// A happening, and who did it.
pub type Told = (Happening, Option<Actor>);

/// Compares sessions before and after each turn.
#[derive(Debug, Default)]
pub(super) struct Teller {
    /// Who asked for what goes on with a session: until it runs, has ended or is removed.
    acting: BTreeMap<SessionId, Acting>,
    /// The sessions that have not been removed.
    here: BTreeSet<SessionId>,
    /// The sessions of the journal are known. What comes after them is new.
    begun: bool,
    told: Vec<Told>,
}

#[derive(Debug)]
struct Acting {
    by: Actor,
    until: Until,
}

/// How long what somebody asked for goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Until this turn ends.
    Now,
    /// Until the session is in another state and stays in it.
    Settled,
    Removed,
}

impl Teller {
    /// Somebody asked for a session, which is new.
    pub(super) fn created(&mut self, session: SessionId, by: Actor) {
        self.acting.insert(session, Acting { by, until: Until::Settled });
    }

    /// Somebody asked for a change of a session in this state. What is so already changes nothing.
    pub(super) fn asked(&mut self, session: SessionId, state: SessionState, command: &Command, by: Actor) {
        let until = match command {
            Command::Stop if !state.has_ended() => Until::Settled,
            Command::Start if state.has_ended() => Until::Settled,
            Command::Pause if state != SessionState::Paused => Until::Settled,
            Command::Resume if state == SessionState::Paused => Until::Settled,
            Command::Extend { .. } => Until::Now,
            Command::Remove | Command::Duplicate => Until::Removed,
            _ => return,
        };
        self.acting.insert(session, Acting { by, until });
    }

    /// What was asked was not done.
    pub(super) fn not_done(&mut self, session: &SessionId) {
        self.acting.remove(session);
    }

    /// Takes a session after a turn. `before`: as it was published.
    pub(super) fn see(&mut self, before: Option<&SessionProfile>, now: &SessionProfile, record: &Record) {
        let was_here = self.here.contains(&now.id);
        let is_here = record.live().is_some();
        let mut is_told = false;
        if self.begun {
            let by = self.acting.get(&now.id).map(|acting| acting.by.clone());
            let created = (before.is_none() && is_here).then(|| created(now, record));
            let changed = before.and_then(|before| changed(before, now, by.is_some()));
            let removed = (was_here && !is_here).then(|| Happening::session_removed(now));
            is_told = changed.is_some();
            self.told.extend([created, changed, removed].into_iter().flatten().map(|told| (told, by.clone())));
        }
        if is_here {
            self.here.insert(now.id);
        } else {
            self.here.remove(&now.id);
        }
        let settled = matches!(now.state, SessionState::Running | SessionState::Paused) || now.state.has_ended();
        let is_over = |acting: &Acting| match acting.until {
            Until::Now => true,
            Until::Settled => settled && is_told,
            Until::Removed => false,
        };
        if !is_here || self.acting.get(&now.id).is_some_and(is_over) {
            self.acting.remove(&now.id);
        }
    }

    /// The session is not known any more.
    pub(super) fn forget(&mut self, session: &SessionId) {
        self.here.remove(session);
        self.acting.remove(session);
    }

    /// What the turn told.
    pub(super) fn take(&mut self) -> Vec<Told> {
        self.begun = true;
        std::mem::take(&mut self.told)
    }
}

fn created(session: &SessionProfile, record: &Record) -> Happening {
    if session.attempt > 1 {
        return Happening::session_moved(session, record.origin().tried.last());
    }
    Happening::session_created(session)
}

/// `asked`: somebody asked for a change.
fn changed(before: &SessionProfile, now: &SessionProfile, asked: bool) -> Option<Happening> {
    use SessionState::{Failed, Paused, Pending, Pulling, Running, Starting, Stopped, Stopping, Unknown};
    match (before.state, now.state) {
        (Paused, Running) => Some(Happening::session_resumed(now)),
        (Pending | Pulling | Starting | Stopped | Failed, Running) => Some(Happening::session_started(now)),
        (Running | Starting, Paused) => Some(Happening::session_paused(now)),
        (Stopped | Failed, Stopped | Failed) => None,
        (_, Stopped | Failed) if now.end_reason == Some(EndReason::Duplicate) => {
            Some(Happening::session_duplicate(&now.id, now.node.as_str(), None))
        }
        (_, Stopped | Failed) => Some(Happening::session_ended(now)),
        // The engine answers again, or does not: conditions tell that.
        (Unknown | Stopping, _) | (_, Unknown) => None,
        (before_state, state) if before_state == state && asked && now.expires_at > before.expires_at => {
            Some(Happening::session_extended(now))
        }
        _ => None,
    }
}
