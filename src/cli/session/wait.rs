//! Waits until a session can be used or has ended.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::output::Body;
use crate::cli::progress::Progress;
use crate::cli::route::Route;
use crate::cli::table::one_line;
use crate::types::{EndReason, Period, Session, SessionState};

/// The pause between two looks at the session, short enough for progress to move.
pub(super) const POLL: Duration = Duration::from_millis(300);

/// The state to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// It can be used.
    Ready,
    /// Its reservation is released.
    Ended,
}

/// The result of a look at the session.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Not reached yet. The text says what the session does now.
    Wait(String),
    Reached,
    /// The session will not reach the goal. The text says why.
    Failed(String),
}

/// Waits until the session reaches the goal, and shows what it does meanwhile.
///
/// # Errors
/// [`Failure::Failed`] if the session will not reach the goal, or after the timeout; it continues in the latter case.
pub(super) async fn until(
    goal: Goal,
    client: &Client,
    id: &str,
    timeout: Period,
    progress: &Progress,
) -> Result<(Session, Body), Failure> {
    let begun = Instant::now();
    loop {
        let doing = match look(client, id).await {
            Ok((session, body)) => match judge(goal, &session) {
                Verdict::Reached => return Ok((session, body)),
                Verdict::Failed(why) => return Err(Failure::Failed(why)),
                Verdict::Wait(doing) => doing,
            },
            // The session may be fine: its node or the connection to it failed.
            Err(failure) if failure.is_unreachable() => one_line(&failure.to_string()),
            Err(failure) => return Err(failure),
        };
        if begun.elapsed() >= timeout.0 {
            return Err(not_in_time(id, timeout, &doing));
        }
        progress.show(&doing);
        sleep(POLL).await;
    }
}

/// The failure after the timeout. The session continues.
pub(super) fn not_in_time(id: &str, timeout: Period, doing: &str) -> Failure {
    Failure::Failed(format!(
        "session {id} is not done after {timeout} ({doing}); it continues; see: ostler session show {id}"
    ))
}

async fn look(client: &Client, id: &str) -> Result<(Session, Body), Failure> {
    let body = client.get(Route::new(&["sessions", id])).await?;
    Ok((body.read()?, body))
}

fn judge(goal: Goal, session: &Session) -> Verdict {
    let Session { id, state, message, end_reason, .. } = session;
    let message = message.as_deref().map(|message| format!(": {}", one_line(message))).unwrap_or_default();
    match (goal, state) {
        (Goal::Ready, SessionState::Running | SessionState::Paused) if session.ready_at.is_some() => Verdict::Reached,
        (Goal::Ready, SessionState::Running) => {
            Verdict::Wait(format!("running on {}, not ready{message}", session.node))
        }
        // A command that has exited already did run.
        (Goal::Ready, SessionState::Stopped) if *end_reason == Some(EndReason::Exited) => Verdict::Reached,
        (Goal::Ready, SessionState::Stopped | SessionState::Failed) => {
            let reason = end_reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            Verdict::Failed(format!("session {id} {state}{reason}{message}"))
        }
        (Goal::Ended, SessionState::Stopped | SessionState::Failed) => Verdict::Reached,
        _ => Verdict::Wait(format!("{state} on {}{message}", session.node)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::session::example;

    fn at(goal: Goal, state: SessionState, end_reason: Option<EndReason>, message: Option<&str>) -> Verdict {
        judge(goal, &Session { state, end_reason, message: message.map(str::to_owned), ..example() })
    }

    #[test]
    fn a_wait_for_ready_ends_when_the_session_can_be_used_or_cannot_run() {
        let at = |state, end_reason, message| at(Goal::Ready, state, end_reason, message);
        assert_eq!(at(SessionState::Running, None, None), Verdict::Reached);
        assert_eq!(at(SessionState::Stopped, Some(EndReason::Exited), None), Verdict::Reached);
        let starting = Session { ready_at: None, ..example() };
        assert_eq!(judge(Goal::Ready, &starting), Verdict::Wait("running on host-a, not ready".into()));
        assert_eq!(
            at(SessionState::Pulling, None, Some("3 of 9\n")),
            Verdict::Wait("pulling on host-a: 3 of 9".into())
        );
        assert_eq!(at(SessionState::Unknown, None, None), Verdict::Wait("unknown on host-a".into()));
        let failed = "session mfrggzdfmztwq2lknnwg23tpob failed (image_failed): no such image";
        let verdict = at(SessionState::Failed, Some(EndReason::ImageFailed), Some("no such image"));
        assert_eq!(verdict, Verdict::Failed(failed.to_owned()));
        assert!(matches!(at(SessionState::Stopped, Some(EndReason::UserStopped), None), Verdict::Failed(_)));
    }

    #[test]
    fn a_wait_for_a_stop_ends_when_nothing_is_reserved() {
        let at = |state| at(Goal::Ended, state, None, None);
        assert_eq!(at(SessionState::Stopped), Verdict::Reached);
        assert_eq!(at(SessionState::Failed), Verdict::Reached);
        for state in [SessionState::Running, SessionState::Stopping, SessionState::Unknown] {
            assert!(matches!(at(state), Verdict::Wait(_)), "{state}");
        }
    }
}
