//! What happens to the sessions of this host.

use super::Happening;
use crate::types::{EventKind, NodeId, SessionProfile, SessionState, Severity, TargetKind};

impl Happening {
    pub fn session_created(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, node, .. } = session;
        of(EventKind::SessionCreated, session, format!("{node} admitted session {id} of {user} ({workspace})"))
            .with("attempt", session.attempt)
    }

    /// `from`: the host that could not start it last.
    pub fn session_moved(session: &SessionProfile, from: Option<&NodeId>) -> Self {
        let SessionProfile { id, user, workspace, node, .. } = session;
        let message =
            format!("{node} took over session {id} of {user} ({workspace}), which another host could not start");
        of(EventKind::SessionMoved, session, message).with("attempt", session.attempt).with("from", from)
    }

    pub fn session_started(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, node, .. } = session;
        of(EventKind::SessionStarted, session, format!("session {id} of {user} ({workspace}) runs on {node}"))
    }

    pub fn session_paused(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, .. } = session;
        of(EventKind::SessionPaused, session, format!("session {id} of {user} ({workspace}) is paused"))
    }

    pub fn session_resumed(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, .. } = session;
        of(EventKind::SessionResumed, session, format!("session {id} of {user} ({workspace}) runs again"))
    }

    pub fn session_extended(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, expires_at, .. } = session;
        let until = expires_at.map(|at| at.to_string()).unwrap_or_default();
        of(EventKind::SessionExtended, session, format!("session {id} of {user} ({workspace}) now ends at {until}"))
            .with("expires_at", expires_at)
    }

    pub fn session_ended(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, state, end_reason, exit_code, message, .. } = session;
        let mut said = format!("session {id} of {user} ({workspace}) {state}");
        if let Some(reason) = end_reason {
            said += &format!(": {reason}");
        }
        if let Some(message) = message {
            said += &format!("; {message}");
        }
        let failed = *state == SessionState::Failed;
        let ended =
            of(EventKind::SessionEnded, session, said).with("end_reason", end_reason).with("exit_code", exit_code);
        if failed { ended.severe(Severity::Warning) } else { ended }
    }

    pub fn session_removed(session: &SessionProfile) -> Self {
        let SessionProfile { id, user, workspace, node, .. } = session;
        of(EventKind::SessionRemoved, session, format!("session {id} of {user} ({workspace}) was removed from {node}"))
    }
}

fn of(kind: EventKind, session: &SessionProfile, message: String) -> Happening {
    Happening::of(kind, message)
        .about(TargetKind::Session, session.id, None)
        .with("user", &session.user)
        .with("workspace", &session.workspace)
}
