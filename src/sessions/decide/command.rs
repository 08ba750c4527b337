//! Commands to a session of this host.

use std::time::Duration;

use super::report::CONTAINER_GONE;
use super::{Context, Registry, conflict, removed};
use crate::sessions::lifecycle::Wish;
use crate::sessions::record::{Live, Record};
use crate::sessions::{Command, Error};
use crate::types::{Deadline, EndReason, SessionId, SessionState, User};

impl Registry {
    /// Does the command, or says why not and changes nothing. A command that changes nothing succeeds.
    pub fn command(&mut self, session: &SessionId, command: &Command, cx: &Context<'_>) -> Result<(), Error> {
        let live = match self.record(session).ok_or(Error::NotFound(*session))? {
            Record::Tombstone(_) if is_met_by_removal(command) => return Ok(()),
            Record::Tombstone(_) => return Err(removed(session)),
            Record::Live(live) => live,
        };
        if live.wish == Wish::Remove {
            return if is_met_by_removal(command) { Ok(()) } else { Err(conflict(session, "is being removed")) };
        }
        if live.is_claimed() && !matches!(command, Command::Duplicate | Command::GiveUp { .. }) {
            return Err(Error::Moving(*session));
        }
        match command {
            Command::Stop => self.stop(session, EndReason::UserStopped),
            Command::Start => self.start(session, cx),
            Command::Pause => self.pause(session),
            Command::Resume => self.resume(session),
            Command::Keepalive { by } => self.keepalive(session, by, cx),
            Command::Extend { ttl } => self.extend(session, *ttl, cx),
            Command::Remove => self.remove(session, EndReason::UserStopped),
            Command::Duplicate => self.remove(session, EndReason::Duplicate),
            Command::GiveUp { claim } => self.give_up_claim(session, *claim, cx),
        }
    }

    /// Lets a session stop. It keeps its reservation until it has stopped.
    pub(super) fn stop(&mut self, session: &SessionId, reason: EndReason) -> Result<(), Error> {
        let live = self.change(session)?;
        if !live.status.state.has_ended() && live.wish != Wish::Stop {
            live.wish = Wish::Stop;
            live.unplaced = None;
            live.status.state = SessionState::Stopping;
            live.status.end_reason = Some(reason);
        }
        Ok(())
    }

    /// Lets a session's container be removed. A session that has ended keeps the reason of its end.
    pub(super) fn remove(&mut self, session: &SessionId, reason: EndReason) -> Result<(), Error> {
        let live = self.change(session)?;
        live.wish = Wish::Remove;
        live.status.state = SessionState::Stopping;
        let failed = live.unplaced.take().map(|unplaced| unplaced.reason);
        live.status.end_reason.get_or_insert(failed.unwrap_or(reason));
        Ok(())
    }

    /// Admits a stopped session again, on the same host, with the same ports and GPUs.
    fn start(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.live(session)?;
        match live.status.state {
            SessionState::Stopped => {}
            SessionState::Failed => return Err(conflict(session, "has failed; only a stopped one can be started")),
            SessionState::Stopping => return Err(conflict(session, "is still stopping")),
            _ => return Ok(()),
        }
        if live.container_removed {
            return Err(conflict(session, &format!("cannot be started: {CONTAINER_GONE}; create a new session")));
        }
        if let Some(port) = live.ports.iter().find(|port| !(cx.port_usable)(port.host_port)) {
            return Err(Error::PortInUse { session: *session, port: port.host_port });
        }
        let ended_by = live.status.end_reason.unwrap_or(EndReason::UserStopped);
        self.check_host(&live.origin.workspace, cx)?;
        if self.config.max_sessions_per_user > 0 {
            self.check_quota(&live.origin.user, self.config.max_sessions_per_user)?;
        }
        self.reserve_again(session, cx)?;
        self.launch_again(session, ended_by, cx)
    }

    /// Reserves what a session that ended had, on the same GPUs.
    pub(super) fn reserve_again(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.live(session)?;
        let (user, workspace, gpus) =
            (live.origin.user.clone(), live.origin.workspace.clone(), live.status.gpu_uuids.clone());
        self.reserve(session, &user, &workspace, Some(&gpus), cx)?;
        Ok(())
    }

    /// Lets a session that ended for this reason run again, under a reservation that it holds.
    pub(super) fn launch_again(
        &mut self,
        session: &SessionId,
        ended_by: EndReason,
        cx: &Context<'_>,
    ) -> Result<(), Error> {
        let live = self.change(session)?;
        live.ended_before = Some(ended_by);
        live.wish = Wish::Run;
        live.reserved = true;
        live.status.gpus_leaving = None;
        live.remark = None;
        live.boot_id = cx.now.boot_id;
        live.previous_run = live.run.take().or_else(|| live.previous_run.take());
        live.retention = None;
        live.status.ready_at = None;
        live.status.health = None;
        live.status.state = SessionState::Starting;
        live.status.end_reason = None;
        live.status.exit_code = None;
        live.status.message = None;
        live.note_activity(cx);
        Ok(())
    }

    fn pause(&mut self, session: &SessionId) -> Result<(), Error> {
        if !matches!(self.live(session)?.status.state, SessionState::Running | SessionState::Paused) {
            return Err(conflict(session, "does not run; only a running one can be paused"));
        }
        self.change(session)?.wish = Wish::Pause;
        Ok(())
    }

    fn resume(&mut self, session: &SessionId) -> Result<(), Error> {
        if !matches!(self.live(session)?.status.state, SessionState::Running | SessionState::Paused) {
            return Err(conflict(session, "is not paused"));
        }
        self.change(session)?.wish = Wish::Run;
        Ok(())
    }

    fn keepalive(&mut self, session: &SessionId, by: &User, cx: &Context<'_>) -> Result<(), Error> {
        if self.live(session)?.status.state.has_ended() {
            return Err(conflict(session, "has ended"));
        }
        let live = self.change(session)?;
        live.status.kept_alive_by = Some(by.to_string());
        live.note_activity(cx);
        Ok(())
    }

    /// Lets a session live for at least `ttl` from now. A session that never expires stays so.
    fn extend(&mut self, session: &SessionId, ttl: Duration, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.change(session)?;
        if let Some(deadline) = live.ttl
            && deadline.remaining(cx.now) < ttl
        {
            live.ttl = Some(Deadline::after(cx.now, ttl));
        }
        Ok(())
    }
}

impl Live {
    /// It is used: its idle time starts again.
    pub(super) fn note_activity(&mut self, cx: &Context<'_>) {
        self.status.last_activity_at = cx.now.wall;
        self.idle = self.origin.workspace.idle_timeout().map(|span| Deadline::after(cx.now, span));
    }
}

const fn is_met_by_removal(command: &Command) -> bool {
    matches!(command, Command::Remove | Command::Stop | Command::Duplicate | Command::GiveUp { .. })
}
