//! One session on this host: its observed state, and the steps that block and so run on a blocking thread.

use std::fs::File;
use std::io;

use rustix::process::Signal;

use super::cgroup::Group;
use super::directory::{Ending, Identity, Plan, SessionDirectory, State};
use super::environment;
use super::processes::{self, Process};
use crate::runtime::{Container, Fault};
use crate::types::Timestamp;

/// The exit code of a run whose shim was killed before it wrote one: as shells count an end by SIGKILL.
pub(super) const KILLED: i64 = 128 + 9;
/// The codes of a run whose command could not be executed, as shells count: not found, and not executable.
pub(super) const NOT_FOUND: i64 = 127;
pub(super) const NOT_EXECUTABLE: i64 = 126;
/// How often the processes that a dead shim left are killed and listed again, and the pause between.
const LEFTOVER_TRIES: u32 = 200;
const LEFTOVER_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

#[derive(Debug, Clone)]
pub(super) struct Session {
    pub directory: SessionDirectory,
    /// This boot. Processes of another boot are gone, even if their pids are in use again.
    pub boot_id: u64,
}

/// The state of a session according to its files and `/proc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Is(Container),
    /// A run whose shim lives.
    Lives(State, Container),
    /// A shim lives that has not yet written its state.
    Starting,
    /// The shim is gone and wrote no ending. With a state, the command had started.
    Abandoned(Option<State>),
}

/// What [`judge`] decides from.
struct Facts {
    exists: bool,
    planned: bool,
    state: Option<State>,
    ending: Option<Ending>,
    shim_alive: bool,
    locked: bool,
    paused: bool,
}

fn judge(facts: Facts) -> Seen {
    if !facts.exists {
        return Seen::Is(Container::Absent);
    }
    if let Some(ending) = facts.ending {
        return Seen::Is(Container::Exited(ending.into()));
    }
    match facts.state {
        Some(state) if facts.shim_alive && facts.paused => Seen::Lives(state, Container::Paused(state.run())),
        Some(state) if facts.shim_alive => Seen::Lives(state, Container::Running(state.run())),
        Some(state) => Seen::Abandoned(Some(state)),
        None if facts.locked => Seen::Starting,
        None if facts.planned => Seen::Abandoned(None),
        None => Seen::Is(Container::Created),
    }
}

impl Session {
    pub(super) fn look(&self) -> io::Result<Seen> {
        if !self.directory.exists() {
            return Ok(Seen::Is(Container::Absent));
        }
        let state = self.directory.state()?;
        let shim_alive = state.is_some_and(|state| self.is_alive(&state));
        let plan = self.directory.plan()?;
        let locked = state.is_none() && self.directory.try_lock()?.is_none();
        Ok(judge(Facts {
            planned: plan.is_some(),
            paused: self.directory.is_paused() || plan.is_some_and(|plan| plan.group.is_frozen()),
            state,
            shim_alive,
            locked,
            // Read last, because the shim writes it last: once the shim is seen dead, it writes nothing more.
            ending: self.directory.ending()?,
            exists: self.directory.exists(),
        }))
    }

    /// The state of a run whose shim lives.
    pub(super) fn live_state(&self) -> io::Result<Option<State>> {
        Ok(self.directory.state()?.filter(|state| self.is_alive(state)))
    }

    /// Whether the command was started, or why not; `None` until the shim has written it.
    pub(super) fn start_outcome(&self) -> io::Result<Option<Result<(), (Fault, String)>>> {
        if let Some(ending) = self.directory.ending()? {
            // Whether a program that is there may be executed depends on this host's `runtime.process_user`.
            let fault = if ending.code == NOT_FOUND { Fault::Workspace } else { Fault::Host };
            return Ok(Some(ending.never_ran.map_or(Ok(()), |why| Err((fault, why)))));
        }
        Ok(self.directory.state()?.map(|_| Ok(())))
    }

    fn is_alive(&self, state: &State) -> bool {
        state.boot_id == self.boot_id && state.shim.is_alive()
    }

    /// Ends the processes of a run whose shim wrote no ending, then writes the ending. Returns false if
    /// another task or a shim holds the lock.
    ///
    /// # Errors
    /// An I/O error, or processes that do not end.
    pub(super) fn settle(&self, now: Timestamp) -> io::Result<bool> {
        let Some(_lock) = self.directory.try_lock()? else { return Ok(false) };
        let Seen::Abandoned(state) = self.look_unlocked()? else { return Ok(true) };
        let plan = self.directory.plan()?;
        self.end_leftovers(plan.as_ref())?;
        let group = plan.map(|plan| plan.group).unwrap_or_default();
        let oom_killed = group.oom_kills() > 0;
        group.remove();
        let Some(state) = state else { return self.directory.forget_run().map(|()| true) };
        // The time of an end before this boot is not known.
        let finished_at = (state.boot_id == self.boot_id).then_some(now);
        let ending = Ending { run: state.run(), code: KILLED, oom_killed, finished_at, never_ran: None };
        self.directory.write_ending(&ending).map(|()| true)
    }

    /// Like [`Self::look`], for the holder of the lock.
    fn look_unlocked(&self) -> io::Result<Seen> {
        Ok(match self.look()? {
            Seen::Starting => Seen::Abandoned(None),
            seen => seen,
        })
    }

    /// Removes the processes and files of the last run, before a new one. The caller holds the lock.
    ///
    /// # Errors
    /// An I/O error, or processes that do not end.
    pub(super) fn clear(&self, _lock: &File) -> io::Result<()> {
        let Some(plan) = self.directory.plan()? else { return self.directory.forget_run() };
        if self.directory.ending()?.is_none() {
            self.end_leftovers(Some(&plan))?;
        }
        plan.group.remove();
        self.directory.forget_run()
    }

    /// Kills the processes that a dead shim left, and returns once they are gone.
    fn end_leftovers(&self, plan: Option<&Plan>) -> io::Result<()> {
        let Some(identity) = self.directory.identity()? else { return Ok(()) };
        let leftovers = || leftovers(&identity, plan.map(|plan| &plan.group));
        for _ in 0..LEFTOVER_TRIES {
            if leftovers().is_empty() {
                return Ok(());
            }
            processes::kill_all(leftovers);
            plan.map_or(Ok(()), |plan| plan.group.freeze(false))?;
            std::thread::sleep(LEFTOVER_PAUSE);
        }
        let pids: Vec<i32> = leftovers().iter().map(|process| process.pid).collect();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the session's processes {pids:?} survive SIGKILL")))
    }

    /// Sends SIGTERM to the command's process group, and resumes it if it was paused, so that it can end.
    pub(super) fn terminate(&self, state: &State) -> io::Result<()> {
        for seen in processes::all().iter().filter(|seen| seen.group == state.command.pid) {
            seen.process.signal(Signal::TERM);
        }
        self.resume(state)
    }

    /// Kills every process of a live session except the shim, which cleans up and ends by itself.
    pub(super) fn kill(&self, state: &State) -> io::Result<()> {
        let group = self.group()?;
        processes::kill_all(|| members(&group, state));
        group.freeze(false)
    }

    pub(super) fn pause(&self, state: &State) -> io::Result<()> {
        let group = self.group()?;
        if group.can_freeze() {
            return group.freeze(true);
        }
        processes::stop_all(|| members(&group, state));
        self.directory.set_paused(true)
    }

    pub(super) fn resume(&self, state: &State) -> io::Result<()> {
        let group = self.group()?;
        if group.can_freeze() {
            return group.freeze(false);
        }
        // Even without the `paused` file: a crash in the middle of a pause leaves processes stopped without it.
        for process in members(&group, state) {
            process.signal(Signal::CONT);
        }
        self.directory.set_paused(false)
    }

    fn group(&self) -> io::Result<Group> {
        Ok(self.directory.plan()?.map(|plan| plan.group).unwrap_or_default())
    }
}

/// The processes of a session whose shim lives: its descendants, and those in the group.
fn members(group: &Group, state: &State) -> Vec<Process> {
    let mut members = processes::descendants(&processes::all(), state.shim.pid);
    members.extend(group.members().into_iter().filter(|process| *process != state.shim));
    members
}

/// The processes of a session without a shim: those in its group, those with its marks in their environment,
/// and their descendants. Without a group, it misses a process that dropped its environment and its parents.
fn leftovers(identity: &Identity, group: Option<&Group>) -> Vec<Process> {
    let marks =
        environment::marks(&identity.node, &identity.launch.session).map(|(name, value)| format!("{name}={value}"));
    let table = processes::all();
    let mut found = group.map(Group::members).unwrap_or_default();
    found.extend(table.iter().map(|seen| seen.process).filter(|process| processes::has_environment(process, &marks)));
    let more: Vec<_> = found.iter().flat_map(|process| processes::descendants(&table, process.pid)).collect();
    found.extend(more);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Exit, Run};

    const STATE: State =
        State { boot_id: 1, shim: Process { pid: 2, start: 3 }, command: Process { pid: 4, start: 5 } };

    fn facts() -> Facts {
        Facts {
            exists: true,
            planned: true,
            state: Some(STATE),
            ending: None,
            shim_alive: true,
            locked: true,
            paused: false,
        }
    }

    fn ending() -> Ending {
        Ending { run: STATE.run(), code: 3, oom_killed: false, finished_at: None, never_ran: None }
    }

    #[test]
    fn a_run_is_named_by_boot_pid_and_start() {
        assert_eq!(STATE.run(), Run("0000000000000001-2-3".to_owned()));
    }

    #[test]
    fn each_stage_of_a_session_is_recognised() {
        let is = |facts| match judge(facts) {
            Seen::Is(container) | Seen::Lives(STATE, container) => container,
            other => panic!("{other:?}"),
        };
        assert_eq!(is(Facts { exists: false, ..facts() }), Container::Absent);
        assert_eq!(is(Facts { planned: false, state: None, locked: false, ..facts() }), Container::Created);
        assert_eq!(is(facts()), Container::Running(STATE.run()));
        assert_eq!(is(Facts { paused: true, ..facts() }), Container::Paused(STATE.run()));
        let exit = Exit::new(STATE.run(), 3);
        assert_eq!(is(Facts { ending: Some(ending()), shim_alive: false, ..facts() }), Container::Exited(exit));
    }

    #[test]
    fn a_run_without_a_shim_or_an_ending_is_abandoned() {
        assert_eq!(judge(Facts { shim_alive: false, ..facts() }), Seen::Abandoned(Some(STATE)));
        assert_eq!(judge(Facts { state: None, ..facts() }), Seen::Starting);
        assert_eq!(judge(Facts { state: None, locked: false, ..facts() }), Seen::Abandoned(None));
    }
}
