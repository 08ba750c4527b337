//! The runners of a host's sessions, and its engine's part in their steps.

use std::sync::Arc;

use ostler::runtime::Container;
use ostler::sessions::decide::Report;
use ostler::sessions::lifecycle::{Step, Wish, next};
use ostler::types::SessionId;

use crate::cluster::Cluster;
use crate::engine::{Op, container_id};
use crate::event::{At, Event};
use crate::host::{Input, Runner};

/// How long a runner waits whose report could not be taken in.
pub(crate) const RETRY: u64 = 5000;

impl Cluster {
    /// Lets a session's runner take its next step, unless it is at one.
    pub(crate) fn advance(&mut self, i: usize, session: &SessionId) {
        let at = self.at(i);
        let host = &mut self.hosts[i];
        let Some(runner) = host.life.as_mut().unwrap().runners.get_mut(session).filter(|runner| !runner.busy) else {
            return;
        };
        let container = runner.known.take().unwrap_or_else(|| host.engine.observe(session));
        let serial = runner.serial;
        let step = next(&runner.order, &container);
        runner.busy = step != Step::Wait;
        let op = match step {
            Step::Wait => return,
            Step::Tell(sight) => {
                let report = Input::Report(*session, serial, Report::Saw(sight), Some(container));
                return self.tell_owner(i, report);
            }
            Step::Prepare => Op::Create(Arc::clone(&runner.launch)),
            Step::Start => Op::Start,
            Step::Pause => Op::Pause,
            Step::Resume => Op::Resume,
            Step::Stop => Op::Stop,
            Step::Remove => Op::Remove,
        };
        self.witness.check_durable(&self.hosts[i], session);
        let wait = 5 + self.random.below(300);
        let starts = matches!(op, Op::Create(_) | Op::Start);
        if starts && self.random.chance(self.hosts[i].failing) {
            let failure = match op {
                Op::Create(_) => Report::ImageFailed("no such image".to_owned()),
                _ => Report::StartFailed("it does not start".to_owned()),
            };
            return self.put_in(wait, Event::Stepped(at, *session, serial, Err(failure)));
        }
        self.put_in(wait, Event::Did(at, *session, serial, op));
    }

    pub(crate) fn did(&mut self, at: At, session: SessionId, serial: u64, op: &Op) {
        let known = self.hosts[at.host].engine.take(&session, op);
        self.put_in(0, Event::Stepped(at, session, serial, Ok(known)));
    }

    pub(crate) fn stepped(
        &mut self,
        i: usize,
        session: &SessionId,
        serial: u64,
        outcome: Result<Option<Container>, Report>,
    ) {
        let Some(runner) = self.runner(i, session, serial) else { return };
        let starting = runner.order.wish == Wish::Run && runner.order.run.is_none();
        match outcome {
            Ok(Some(Container::Created)) => {
                let report = Report::Created { container_id: container_id(session) };
                let created = Input::Report(*session, serial, report, Some(Container::Created));
                self.tell_owner(i, created);
            }
            Ok(known) => self.go_on(i, session, serial, known),
            Err(failure) if starting => {
                self.tell_owner(i, Input::Report(*session, serial, failure, None));
            }
            Err(_) => {
                let at = self.at(i);
                self.put_in(RETRY, Event::Retry(at, *session, serial));
            }
        }
    }

    /// The runner's step is over.
    pub(crate) fn go_on(&mut self, i: usize, session: &SessionId, serial: u64, known: Option<Container>) {
        let Some(runner) = self.runner(i, session, serial) else { return };
        runner.busy = false;
        runner.known = known;
        self.advance(i, session);
    }

    fn runner(&mut self, i: usize, session: &SessionId, serial: u64) -> Option<&mut Runner> {
        let runner = self.hosts[i].life.as_mut()?.runners.get_mut(session)?;
        (runner.serial == serial).then_some(runner)
    }

    /// A container's process ends by itself, and the engine says so.
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
            self.advance(i, &session);
        }
    }
}
