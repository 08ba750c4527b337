//! The runners of a host's sessions. The shipped [`Runner`] decides; the simulated engine answers with a delay.

use std::sync::Arc;

use ostler::runtime::{Container, Error, Fault};
use ostler::sessions::runner::{Action, Op, Outcome, Runner, Work};
use ostler::sessions::state::{Input, Order};
use ostler::types::SessionId;

use crate::cluster::Cluster;
use crate::engine::Step;
use crate::event::{At, Event};
use crate::host::Back;

/// How long a runner waits after a report that the owner did not accept, as in `sessions/runners.rs`.
const NOT_TAKEN: u64 = 5000;

/// The runner of one session.
pub(crate) struct Running {
    serial: u64,
    runner: Runner,
    /// The newest work.
    work: Work,
    at: Doing,
}

/// What a runner is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It waits for the engine or the owner.
    Busy,
    /// It pulls the image, until the wish changes.
    Fetching,
    /// It waits for new work or a nudge.
    Resting,
}

impl Cluster {
    /// Gives a session's runner its order. Starts a runner if there is none, and ends it if there is no more work.
    pub(crate) fn direct_runner(&mut self, i: usize, order: Order) {
        let Order { session, work, fresh } = order;
        let life = self.hosts[i].life.as_mut().unwrap();
        let Some(work) = work else {
            life.runners.remove(&session);
            return;
        };
        let Some(running) = life.runners.get_mut(&session) else {
            life.begun_runners += 1;
            let mut runner = Runner::new(work.clone(), fresh.then_some(Container::Absent));
            let action = runner.begin();
            let running = Running { serial: life.begun_runners, runner, work, at: Doing::Busy };
            life.runners.insert(session, running);
            return self.perform(i, session, action);
        };
        if running.work == work {
            return;
        }
        let changes_its_mind = running.runner.work().order.wish != work.order.wish;
        running.work = work;
        match running.at {
            Doing::Resting => self.go_on(i, session, Outcome::Woken),
            Doing::Fetching if changes_its_mind => self.go_on(i, session, Outcome::Interrupted),
            Doing::Busy | Doing::Fetching => {}
        }
    }

    /// Wakes a resting runner, which observes its container again.
    pub(crate) fn nudge(&mut self, i: usize, session: &SessionId) {
        let running = self.hosts[i].life.as_ref().and_then(|life| life.runners.get(session));
        if running.is_some_and(|running| running.at == Doing::Resting) {
            self.go_on(i, *session, Outcome::Woken);
        }
    }

    pub(crate) fn nudge_all(&mut self, i: usize) {
        let sessions: Vec<SessionId> = self.hosts[i].life.as_ref().unwrap().runners.keys().copied().collect();
        sessions.iter().for_each(|session| self.nudge(i, session));
    }

    /// The runner's action has ended.
    fn go_on(&mut self, i: usize, session: SessionId, outcome: Outcome) {
        let life = self.hosts[i].life.as_mut().unwrap();
        let Some(running) = life.runners.get_mut(&session) else { return };
        // A new serial number makes the outcomes of earlier actions void.
        life.begun_runners += 1;
        running.serial = life.begun_runners;
        let action = running.runner.next(outcome, running.work.clone());
        self.perform(i, session, action);
    }

    fn perform(&mut self, i: usize, session: SessionId, action: Action) {
        let at = self.at(i);
        let running = self.hosts[i].life.as_mut().unwrap().runners.get_mut(&session).unwrap();
        let (serial, launch) = (running.serial, Arc::clone(&running.runner.work().launch));
        running.at = match action {
            Action::EnsureImage => Doing::Fetching,
            Action::Rest { .. } | Action::Retry { .. } => Doing::Resting,
            Action::Do(_) | Action::Tell(_) => Doing::Busy,
        };
        match action {
            Action::Tell(report) => {
                self.note(i, "saw", &session, || format!("{report:?}"));
                self.tell_owner(i, Input::Report(session, report, Back::Runner(session, serial)));
            }
            Action::Rest { .. } => {}
            Action::Retry { after } => {
                let wait = u64::try_from(after.as_millis()).unwrap();
                self.put_in(wait, Event::Outcome(at, session, serial, Outcome::Woken));
            }
            Action::Do(Op::Observe) => {
                let wait = self.random.below(10);
                self.put_in(wait, Event::Did(at, session, serial, Step::Op(Op::Observe, launch)));
            }
            Action::Do(_) | Action::EnsureImage => {
                self.witness.check_durable(&self.hosts[i], &session);
                let fails = self.random.chance(self.hosts[i].failing);
                let step = match action {
                    Action::EnsureImage if fails => Step::Fail(Error::start(Fault::Registry, "no such image")),
                    Action::Do(Op::Start) if fails => Step::Fail(Error::Refused("it does not start".to_owned())),
                    Action::Do(op) => Step::Op(op, launch),
                    _ => Step::EnsureImage,
                };
                let wait = 5 + self.random.below(300);
                self.put_in(wait, Event::Did(at, session, serial, step));
            }
        }
    }

    /// The engine executes a step. Its agent gets the outcome, if it is still running.
    pub(crate) fn did(&mut self, at: At, session: SessionId, serial: u64, step: &Step) {
        let outcome = Outcome::Did(self.hosts[at.host].engine.take(&session, step));
        self.put_in(0, Event::Outcome(at, session, serial, outcome));
    }

    pub(crate) fn outcome(&mut self, i: usize, session: SessionId, serial: u64, outcome: Outcome) {
        let running = self.hosts[i].life.as_ref().and_then(|life| life.runners.get(&session));
        if running.is_some_and(|running| running.serial == serial) {
            self.go_on(i, session, outcome);
        }
    }

    /// The owner has accepted a report, or could not.
    pub(crate) fn report_taken(&mut self, i: usize, session: SessionId, serial: u64, taken: bool) {
        if taken {
            return self.outcome(i, session, serial, Outcome::Told(true));
        }
        let at = self.at(i);
        self.put_in(NOT_TAKEN, Event::Outcome(at, session, serial, Outcome::Told(false)));
    }

    /// A container's process ends by itself, and the engine sends an event.
    pub(crate) fn end_by_itself(&mut self, i: usize, code: i64) {
        let alive: Vec<SessionId> = self.hosts[i].engine.alive().copied().collect();
        if alive.is_empty() {
            return;
        }
        let session = alive[self.random.pick(alive.len())];
        self.note(i, "ends", &session, || format!("with {code}"));
        self.witness.ended_by_itself.insert(session);
        self.hosts[i].engine.end(&session, code);
        if self.is_up(i) && self.world.hosts[i].frozen_until <= self.world.now {
            self.nudge(i, &session);
        }
    }
}
