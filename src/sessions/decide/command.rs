//! What people ask of a session that is here.

use std::time::Duration;

use super::{Context, Registry};
use crate::sessions::lifecycle::Wish;
use crate::sessions::record::Record;
use crate::sessions::{Command, Error};
use crate::types::{Deadline, EndReason, SessionId, SessionState, User};

impl Registry {
    /// Takes in the wish, or says why it cannot be and changes nothing. What is wished already is fine.
    pub fn command(&mut self, session: &SessionId, command: &Command, cx: &Context<'_>) -> Result<(), Error> {
        let record = self.known(session)?;
        if record.is_gone() {
            return if is_met_by_removal(command) { Ok(()) } else { Err(conflict(record, "has been removed")) };
        }
        if record.wish == Wish::Remove {
            return if is_met_by_removal(command) { Ok(()) } else { Err(conflict(record, "is being removed")) };
        }
        if record.is_claimed() && !matches!(command, Command::Duplicate | Command::GiveUp { .. }) {
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

    /// Wishes a session to stop. Its reservation holds until it does.
    pub(super) fn stop(&mut self, session: &SessionId, reason: EndReason) -> Result<(), Error> {
        let record = self.change(session)?;
        if !record.state.has_ended() && record.wish != Wish::Stop {
            record.wish = Wish::Stop;
            record.state = SessionState::Stopping;
            record.unplaced = None;
            record.end_reason = Some(reason);
        }
        Ok(())
    }

    /// Wishes a session's container to be destroyed. An earlier end keeps its reason.
    pub(super) fn remove(&mut self, session: &SessionId, reason: EndReason) -> Result<(), Error> {
        let record = self.change(session)?;
        record.wish = Wish::Remove;
        record.state = SessionState::Stopping;
        let failed = record.unplaced.take().map(|unplaced| unplaced.reason);
        record.end_reason.get_or_insert(failed.unwrap_or(reason));
        Ok(())
    }

    /// A stopped session is admitted anew, on the same host, with the same ports and GPUs.
    fn start(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let record = self.known(session)?;
        match record.state {
            SessionState::Stopped => {}
            SessionState::Failed => return Err(conflict(record, "has failed; only a stopped one can be started")),
            SessionState::Stopping => return Err(conflict(record, "is still stopping")),
            _ => return Ok(()),
        }
        let (user, resources, gpus) = (record.user.clone(), record.workspace.resources(), record.gpu_uuids.clone());
        self.check_host(&record.workspace, cx)?;
        if self.config.max_sessions_per_user > 0 {
            self.check_quota(&user, self.config.max_sessions_per_user)?;
        }
        self.reserve(session, &user, resources, Some(&gpus), cx)?;
        self.launch_again(session, cx)
    }

    /// Lets a session that ended run once more, under a reservation that it holds.
    pub(super) fn launch_again(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let record = self.change(session)?;
        record.wish = Wish::Run;
        record.state = SessionState::Starting;
        record.reserved = true;
        record.boot_id = cx.now.boot_id;
        record.previous_run = record.run.take().or_else(|| record.previous_run.take());
        record.end_reason = None;
        record.exit_code = None;
        record.message = None;
        record.retention = None;
        record.note_activity(cx);
        Ok(())
    }

    fn pause(&mut self, session: &SessionId) -> Result<(), Error> {
        let record = self.known(session)?;
        if !matches!(record.state, SessionState::Running | SessionState::Paused) {
            return Err(conflict(record, "does not run; only a running one can be paused"));
        }
        self.change(session)?.wish = Wish::Pause;
        Ok(())
    }

    fn resume(&mut self, session: &SessionId) -> Result<(), Error> {
        let record = self.known(session)?;
        if !matches!(record.state, SessionState::Running | SessionState::Paused) {
            return Err(conflict(record, "is not paused"));
        }
        self.change(session)?.wish = Wish::Run;
        Ok(())
    }

    fn keepalive(&mut self, session: &SessionId, by: &User, cx: &Context<'_>) -> Result<(), Error> {
        let record = self.known(session)?;
        if record.state.has_ended() {
            return Err(conflict(record, "has ended"));
        }
        let record = self.change(session)?;
        record.kept_alive_by = Some(by.to_string());
        record.note_activity(cx);
        Ok(())
    }

    /// A session lives at least `ttl` from now. One that never expires stays so.
    fn extend(&mut self, session: &SessionId, ttl: Duration, cx: &Context<'_>) -> Result<(), Error> {
        let record = self.change(session)?;
        if let Some(deadline) = record.ttl
            && deadline.remaining(cx.now) < ttl
        {
            record.ttl = Some(Deadline::after(cx.now, ttl));
        }
        Ok(())
    }
}

impl Record {
    /// Somebody uses it: its idle time begins anew.
    pub(super) fn note_activity(&mut self, cx: &Context<'_>) {
        self.last_activity_at = cx.now.wall;
        if let Some(secs) = self.workspace.idle_timeout_seconds {
            self.idle = Some(Deadline::after(cx.now, Duration::from_secs(secs)));
        }
    }
}

const fn is_met_by_removal(command: &Command) -> bool {
    matches!(command, Command::Remove | Command::Stop | Command::Duplicate | Command::GiveUp { .. })
}

fn conflict(record: &Record, what: &str) -> Error {
    Error::Conflict(format!("session {} {what}", record.id))
}
