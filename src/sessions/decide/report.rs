//! Reports of a session's runner.

use super::{Context, Registry};
use crate::runtime::Fault;
use crate::runtime::container::{Exit, Oom, Run};
use crate::sessions::Error;
use crate::sessions::lifecycle::{Sight, Wish};
use crate::sessions::record::{Live, Record};
use crate::types::{Bytes, Deadline, EndReason, HealthStatus, OnHostRestart, Period, SessionId, SessionState};

/// 128 + SIGKILL: how a run ends that did not end within its stop grace.
const KILLED: i64 = 137;
/// Why a session cannot be started again.
pub(super) const CONTAINER_GONE: &str = "its container was removed by another program, and the files in it are gone";

/// News of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Its image is being fetched: progress for people.
    Pulling(String),
    /// Its image is here; the container is being made.
    Starting {
        image_digest: Option<String>,
    },
    Created {
        container_id: String,
    },
    Saw(Sight),
    /// What its user should know of its GPUs while its new run goes on.
    Remark(String),
    /// It could not be started, by the fault of this, as the text says.
    NotStarted(Fault, String),
    /// The engine did not do a step. It is tried again.
    Unreachable(String),
    /// The engine does not say what the container does. Nothing is known, so no state changes.
    Unseen(String),
    /// It can be used.
    Ready,
    /// It cannot be used yet, and its time for that is over, as the text says.
    NotReady(String),
    /// The health check of its image found this; `None`: there is none.
    Health(Option<HealthStatus>),
    /// It is used.
    Active,
    /// It is not used.
    Idle,
}

impl Registry {
    /// Takes a report. A report about an unknown session, or about one whose container is destroyed, changes nothing.
    pub fn report(&mut self, session: &SessionId, report: Report, cx: &Context<'_>) {
        if self.live(session).is_err() {
            return;
        }
        let known = match report {
            Report::Saw(sight) => self.saw(session, sight, cx),
            Report::Unseen(why) => {
                self.unseen(session, why);
                Ok(())
            }
            Report::Ready => self.ready(session, cx),
            Report::Idle => self.idle(session, cx),
            Report::NotStarted(fault, message) => self.not_started(session, &fault, message, cx),
            passing => {
                self.note(session, passing, cx);
                Ok(())
            }
        };
        debug_assert!(known.is_ok(), "the record was there a moment ago");
    }

    fn note(&mut self, session: &SessionId, report: Report, cx: &Context<'_>) {
        match &report {
            Report::Starting { .. } if self.is_pulled(session) => self.troubles.registry = None,
            Report::Created { .. } => self.troubles.network = None,
            _ => {}
        }
        let Some(live) = self.touch(session) else { return };
        let status = &mut live.status;
        let starting = live.wish == Wish::Run && !status.state.has_ended();
        match report {
            Report::Pulling(progress) if starting => {
                status.state = SessionState::Pulling;
                status.message = Some(progress);
            }
            Report::Starting { image_digest } => {
                status.image_digest = image_digest;
                if starting {
                    status.state = SessionState::Starting;
                    status.message = None;
                }
            }
            Report::Created { container_id } => status.container_id = Some(container_id),
            // Written with the sight of the run, which follows.
            Report::Remark(text) if starting => live.remark = Some(text),
            // A running session goes on without the engine; the condition of its node says that the engine is lost.
            Report::Unreachable(message) if !matches!(status.state, SessionState::Running | SessionState::Paused) => {
                status.message = Some(message);
            }
            Report::NotReady(why) if status.state == SessionState::Running && status.ready_at.is_none() => {
                let patience = live.origin.workspace.ready.as_ref().map_or(0, |ready| ready.timeout_seconds);
                status.message = Some(format!("not ready after {}: {why}", Period::secs(patience)));
            }
            Report::Health(health) if !status.state.has_ended() => status.health = health,
            Report::Active => live.note_activity(cx),
            _ => {}
        }
    }

    fn ready(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let status = &self.live(session)?.status;
        if status.state == SessionState::Running && status.ready_at.is_none() {
            let live = self.change(session)?;
            live.note_activity(cx);
            live.status.ready_at = Some(cx.now.wall);
            live.status.message = None;
        }
        Ok(())
    }

    /// Stops a session that nobody uses, unless its idle time began anew since its runner was told to look.
    fn idle(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.live(session)?;
        let is_due = live.idle.is_some_and(|idle| idle.is_due(cx.now));
        if is_due && live.is_in_use() && matches!(live.wish, Wish::Run | Wish::Pause) {
            self.stop(session, EndReason::IdleExpired)?;
        }
        Ok(())
    }

    fn is_pulled(&self, session: &SessionId) -> bool {
        self.live(session).is_ok_and(|live| live.status.state == SessionState::Pulling)
    }

    fn saw(&mut self, session: &SessionId, sight: Sight, cx: &Context<'_>) -> Result<(), Error> {
        if !answers(self.live(session)?, &sight) {
            return Ok(());
        }
        match sight {
            Sight::Running(run) => self.runs(session, run, cx)?,
            Sight::Paused => {
                let epoch = self.engine_epoch.clone();
                let live = self.change(session)?;
                live.engine_epoch = epoch;
                live.status.state = SessionState::Paused;
            }
            Sight::Ended(exit) => self.ended(session, &exit, cx)?,
            Sight::Stopped(exit) => self.stopped(session, exit.as_ref(), cx)?,
            Sight::Lost => self.lost(session, cx)?,
            Sight::Gone => self.gone(session, cx)?,
        }
        self.back_in_sight(session);
        Ok(())
    }

    fn runs(&mut self, session: &SessionId, run: Run, cx: &Context<'_>) -> Result<(), Error> {
        let known = self.live(session)?;
        let same_run = known.run.as_ref() == Some(&run) && known.engine_epoch == self.engine_epoch;
        if same_run && known.status.state == SessionState::Running {
            // It was out of sight, and goes on.
            return Ok(());
        }
        self.troubles.failing_starts = 0;
        let epoch = self.engine_epoch.clone();
        let live = self.change(session)?;
        live.engine_epoch = epoch;
        if live.run.is_none() {
            live.note_activity(cx);
        }
        if live.run.as_ref() != Some(&run) {
            live.status.ready_at = live.origin.workspace.ready.is_none().then_some(cx.now.wall);
        }
        live.run = Some(run);
        live.boot_id = cx.now.boot_id;
        live.unplaced = None;
        live.status.state = SessionState::Running;
        live.status.message = None;
        Ok(())
    }

    /// It ended without a request. If its host or engine restarted, the session did not end by itself.
    fn ended(&mut self, session: &SessionId, exit: &Exit, cx: &Context<'_>) -> Result<(), Error> {
        // If it starts again, the next run is told apart from this one.
        self.change(session)?.run = Some(exit.run.clone());
        if self.outlived_by_host(session, cx) || self.was_engine_lost_under(session) {
            return self.host_restarted(session, cx);
        }
        if let Some(why) = &exit.never_ran {
            self.change(session)?.status.exit_code = Some(exit.code);
            return self.not_started(session, &Fault::Workspace, format!("cannot run its command: {why}"), cx);
        }
        let reason = if exit.oom == Oom::Main { EndReason::OomKilled } else { EndReason::Exited };
        let live = self.change(session)?;
        live.wish = Wish::Stop;
        live.status.exit_code = Some(exit.code);
        let message = how_it_ended(exit, live.origin.workspace.memory_bytes);
        self.end(session, reason, cx)?.status.message = message;
        Ok(())
    }

    fn stopped(&mut self, session: &SessionId, exit: Option<&Exit>, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.change(session)?;
        if let Some(exit) = exit {
            live.run = Some(exit.run.clone());
            live.status.exit_code = Some(exit.code);
        }
        live.status.message = how_it_stopped(live, exit);
        if live.wish == Wish::Remove {
            live.reserved = false;
            return self.release(session, cx);
        }
        let reason = live.status.end_reason.unwrap_or(EndReason::UserStopped);
        self.end(session, reason, cx)?;
        Ok(())
    }

    fn lost(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.change(session)?;
        live.wish = Wish::Stop;
        let when = if live.run.is_some() { "while it ran" } else { "while it was stopped" };
        live.container_removed = true;
        self.end(session, EndReason::Lost, cx)?.status.message = Some(format!("{CONTAINER_GONE} {when}"));
        Ok(())
    }

    fn gone(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        self.release(session, cx)?;
        self.ports.release(session);
        let forget = Deadline::after(cx.now, self.config.keep_ended.0);
        let tombstone = self.live(session)?.to_tombstone(forget);
        self.insert(Record::Tombstone(Box::new(tombstone)));
        Ok(())
    }

    /// It could not be started. A session that never ran may run on another host, unless no host can start it.
    fn not_started(
        &mut self,
        session: &SessionId,
        fault: &Fault,
        message: String,
        cx: &Context<'_>,
    ) -> Result<(), Error> {
        let live = self.live(session)?;
        if matches!(live.wish, Wish::Remove | Wish::Stop) {
            // A caller ended it meanwhile: stopping or removing goes on.
            return Ok(());
        }
        let may_go_elsewhere = fault.is_local() && live.may_go_elsewhere();
        let ended_before = live.ended_before.filter(|_| fault.is_for_now());
        self.troubles.note(fault, &message, cx.now.boot);
        if may_go_elsewhere {
            return self.set_aside(session, fault, message, cx);
        }
        let live = self.change(session)?;
        live.wish = Wish::Stop;
        if ended_before == Some(EndReason::Exited) {
            // Only a session that ended well is started again.
            live.status.exit_code = Some(0);
        }
        // One that ran before stays as it was: once the host is mended, it can be started.
        let reason = ended_before.unwrap_or(fault.end_reason());
        self.end(session, reason, cx)?.status.message = Some(message);
        Ok(())
    }

    /// Whether the host rebooted since the session last ran or was to start, even if that start was not seen.
    fn outlived_by_host(&self, session: &SessionId, cx: &Context<'_>) -> bool {
        self.live(session).is_ok_and(|live| live.boot_id != cx.now.boot_id)
    }

    /// Its host or engine restarted: it starts again and keeps its reservation, or it stops.
    pub(super) fn host_restarted(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let live = self.change(session)?;
        if live.origin.workspace.on_host_restart == OnHostRestart::Start {
            self.launch_again(session, EndReason::HostRebooted, cx)?;
            self.change(session)?.status.message = Some("starting again after its host restarted".to_owned());
            return Ok(());
        }
        live.wish = Wish::Stop;
        self.end(session, EndReason::HostRebooted, cx)?.status.message = Some("its host restarted".to_owned());
        Ok(())
    }
}

/// How a run ended by itself, for people; `None`: well.
fn how_it_ended(exit: &Exit, memory: Bytes) -> Option<String> {
    let ended = match (exit.oom, exit.code) {
        (Oom::Main, _) => return Some(format!("killed: it used more than its {memory} of memory")),
        (Oom::Nothing, 0) => return None,
        (_, code) => format!("ended with exit code {code}"),
    };
    let child =
        format!("; the kernel had killed one of its processes, because it used more than its {memory} of memory");
    Some(if exit.oom == Oom::Child { ended + &child } else { ended })
}

/// How a run ended that was asked to, for people; `None`: well, and as a person wanted.
fn how_it_stopped(live: &Live, exit: Option<&Exit>) -> Option<String> {
    let workspace = &live.origin.workspace;
    let idle = live.status.end_reason == Some(EndReason::IdleExpired);
    let idle = workspace
        .idle_timeout()
        .filter(|_| idle)
        .map(|span| format!("idle for {}: nobody used its published ports, and nobody kept it alive", Period(span)));
    let killed = exit.is_some_and(|exit| exit.code == KILLED);
    let killed =
        killed.then(|| format!("killed: it did not end within its {} s of stop grace", workspace.stop_grace_seconds));
    let parts: Vec<String> = idle.into_iter().chain(killed).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Whether the sight answers the present wish. A sight that was sent before the wish changed is out of date: the runner
/// looks again under its new order.
const fn answers(live: &Live, sight: &Sight) -> bool {
    match (live.wish, sight) {
        (Wish::Run | Wish::Pause, Sight::Running(_) | Sight::Ended(_) | Sight::Lost) => true,
        (Wish::Pause, Sight::Paused) => true,
        (Wish::Stop, Sight::Stopped(_)) => !live.status.state.has_ended(),
        (Wish::Remove, Sight::Stopped(_)) => live.reserved,
        (Wish::Remove, Sight::Gone) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
