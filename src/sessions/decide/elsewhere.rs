//! Sessions that this host could not start, and that another host may start.
//!
//! Such a session, if it never ran, waits for its leader to place it on another host, and keeps its reservation. Once
//! the leader has claimed it, only that leader decides about it, so that it never ends here while it starts there. If
//! no host admits it, or no leader claims it in time, it fails.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Context, Registry, conflict};
use crate::runtime::Fault;
use crate::sessions::lifecycle::Wish;
use crate::sessions::record::{Live, Origin};
use crate::sessions::{Asked, Claimed, Error};
use crate::types::{Ballot, Deadline, EndReason, Platform, SessionId, SessionState};

/// How often a session is offered to a host at most, the first time included.
pub const MAX_ATTEMPTS: u32 = 3;
/// How long a leader may take to claim it: longer than an election.
const CLAIMED_WITHIN: Duration = Duration::from_secs(15);
/// How long a leader that has claimed it may take to place it: longer than it offers a session around.
const PLACED_WITHIN: Duration = Duration::from_secs(30);

/// A session that waits for another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// Why it could not be started here.
    pub reason: EndReason,
    /// The same for people.
    pub message: String,
    /// It fails if it still waits then.
    pub until: Deadline,
    /// How often leaders have claimed it; 0: no leader places it.
    pub claim: u32,
    /// The platform of its image, if it is not that of this host.
    #[serde(default)]
    pub platform: Option<Platform>,
}

impl Registry {
    /// It could not be started, by this fault, and waits for another host.
    pub(super) fn set_aside(
        &mut self,
        session: &SessionId,
        fault: &Fault,
        message: String,
        cx: &Context<'_>,
    ) -> Result<(), Error> {
        let until = Deadline::after(cx.now, CLAIMED_WITHIN);
        let looking = format!("could not be started on {}, looking for another node: {message}", cx.node.name);
        let live = self.change(session)?;
        live.status.state = SessionState::Pending;
        live.status.message = Some(looking);
        let platform = match fault {
            Fault::Platform { image } => Some(image.clone()),
            _ => None,
        };
        live.unplaced = Some(Unplaced { reason: fault.end_reason(), message, until, claim: 0, platform });
        Ok(())
    }

    /// The leader takes over the session, to place it on another host: until it gives up or that host has the session,
    /// nothing else ends it. If the leader dies meanwhile, the next leader claims it again.
    pub fn claim(&mut self, ballot: &Ballot, session: &SessionId, cx: &Context<'_>) -> Result<Claimed, Error> {
        self.fence(ballot).map_err(Error::Stale)?;
        let live = self.live(session)?;
        let Origin { user, workspace, fingerprint, created_by, attempt, tried, platform, .. } = live.origin.clone();
        let (Some(unplaced), Some(fingerprint)) = (live.unplaced.clone(), fingerprint) else {
            return Err(conflict(session, "waits for no other host"));
        };
        let asked = Asked {
            user,
            fingerprint,
            workspace,
            secret: live.secret.clone(),
            by: created_by,
            attempt: attempt + 1,
            tried: tried.into_iter().chain([self.node]).collect(),
            platform: unplaced.platform.clone().or(platform),
        };
        let (claim, until) = (unplaced.claim.saturating_add(1), Deadline::after(cx.now, PLACED_WITHIN));
        self.change(session)?.unplaced = Some(Unplaced { claim, until, ..unplaced });
        Ok(Claimed { asked, claim })
    }

    /// The leader that made this claim finds no other host. If there is a later claim, this order has no effect.
    pub(super) fn give_up_claim(&mut self, session: &SessionId, claim: u32, cx: &Context<'_>) -> Result<(), Error> {
        let current = self.live(session)?.unplaced.as_ref().is_some_and(|unplaced| unplaced.claim == claim);
        if current { self.give_up(session, cx) } else { Ok(()) }
    }

    /// No other host admits it: it fails, for the reason that it could not be started here.
    pub(super) fn give_up(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let Some(Unplaced { reason, message, .. }) = self.live(session)?.unplaced.clone() else { return Ok(()) };
        self.change(session)?.wish = Wish::Stop;
        self.end(session, reason, cx)?.status.message = Some(message);
        Ok(())
    }
}

impl Live {
    /// Whether another host may start it: it never ran, and its request is known.
    pub(super) fn may_go_elsewhere(&self) -> bool {
        self.origin.attempt < MAX_ATTEMPTS
            && self.origin.fingerprint.is_some()
            && self.run.is_none()
            && self.previous_run.is_none()
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.unplaced.as_ref().is_some_and(|unplaced| unplaced.claim > 0)
    }
}
