//! Takes one session through its lifecycle, sans-io: outcomes go in, the next action comes out.
//!
//! A runner holds no state that matters: each step follows from the wish and from the container, so a runner may be
//! dropped at any point and started again. [`runners`](super::runners) executes its actions on the engine.

use std::sync::Arc;
use std::time::Duration;

use super::decide::Report;
use super::lifecycle::{self, Order, Sight, Step, Wish};
use super::meter::Meter;
use crate::runtime::container::{Container, Launch, Run};
use crate::runtime::{Connected, Error, Fault, Observed, Provided};
use crate::types::HealthStatus;

/// The first and the longest wait before a failed step is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// How often a session with an idle timeout is looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How often in a row the engine may answer that it cannot do a step of a start, before the start has failed: about 6 s.
const MAX_FAILURES: u32 = 6;

/// What a runner is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    pub order: Order,
    pub launch: Arc<Launch>,
    /// The recorded id of its container; `None` where none was recorded.
    pub container_id: Option<String>,
    pub watch: Watch,
    /// What to probe until the session can be used.
    pub probe: Option<Probe>,
}

/// How to find out that a session can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub container_port: u16,
    pub host_port: u16,
    /// `None`: a connection is enough.
    pub path: Option<String>,
    /// How long it may take before the session is late.
    pub patience: Duration,
}

/// Whether its runner looks if the session is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It has no idle timeout, or does not run.
    Off,
    /// At intervals.
    On,
    /// At once as well: its idle timeout is over unless it is used now.
    IdleIsDue,
}

/// One operation of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Look at the container.
    Observe,
    Create,
    Start,
    /// Check that it has the GPUs of its session, and no others.
    Verify,
    Pause,
    Resume,
    Stop,
    Remove,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Have the engine do this, and return [`Outcome::Did`].
    Do(Op),
    /// Have the engine pull the image, and return [`Outcome::Did`], or [`Outcome::Interrupted`] if the wish changes
    /// first.
    EnsureImage,
    /// Report this to the owner, and return whether the owner accepted it: [`Outcome::Told`].
    Tell(Report),
    /// Wait for new work or a nudge, and return [`Outcome::Woken`]. After `look`, if that comes first, ask whether
    /// anybody is connected, and return [`Outcome::Looked`]. If the work has a probe, return [`Outcome::Probed`] as soon
    /// as it has news.
    Rest { look: Option<Duration> },
    /// Wait for new work or a nudge, at most for `after`, and return [`Outcome::Woken`].
    Retry { after: Duration },
}

/// The outcome of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Did(Result<Done, Error>),
    /// The wish changed during the pull of the image.
    Interrupted,
    /// Whether the owner has accepted the report.
    Told(bool),
    Woken,
    /// Whether anybody is connected; `None`: the engine does not answer.
    Looked(Option<Connected>),
    /// The session can be used; or it cannot yet, and is late.
    Probed(Result<(), String>),
}

/// What the engine did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Saw(Observed),
    ImageIsHere(Provided),
    Created {
        container_id: String,
    },
    /// It has the GPUs of its session, and no others, as far as that can be seen.
    Verified {
        /// What its user should know of them.
        remark: Option<String>,
    },
    /// Started, paused, resumed or stopped: observe the container to see its new state.
    Stepped,
    Removed,
}

/// One session's runner.
#[derive(Debug)]
pub struct Runner {
    work: Work,
    at: At,
    /// The container, if it is known without observing it again.
    known: Option<Container>,
    retry: Duration,
    /// Steps that failed since the last one that did not.
    failures: u32,
    /// The run whose GPUs are verified.
    verified: Option<Run>,
    /// What its network carried, where connections cannot be seen.
    meter: Meter,
    /// What the health check of its image found, as last seen.
    health: Option<HealthStatus>,
    /// The same, as last reported.
    reported_health: Option<HealthStatus>,
}

/// The action in progress.
#[derive(Debug)]
enum At {
    /// No action: the next one follows from the work and from the known container.
    Deciding,
    Observing,
    Doing,
    /// Verifying the GPUs of this container's run.
    Verifying(Container, Run),
    /// Reporting what its user should know of the GPUs of this container's run.
    TellingRemark(Container, Run),
    /// Reporting what it saw of this container.
    TellingSight(Container),
    /// Reporting progress; this comes next.
    TellingProgress(Next),
    Resting,
    Retrying,
}

/// What comes after a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Create,
    Look,
    Rest,
    Retry,
}

impl Runner {
    /// `known`: the container, if it is known; this saves the first observation of a new session.
    pub const fn new(work: Work, known: Option<Container>) -> Self {
        Self {
            work,
            at: At::Deciding,
            known,
            retry: FIRST_RETRY,
            failures: 0,
            verified: None,
            meter: Meter::new(),
            health: None,
            reported_health: None,
        }
    }

    /// The first action.
    pub fn begin(&mut self) -> Action {
        self.decide()
    }

    /// Its current work. An action in progress continues under the work that it was started with.
    pub const fn work(&self) -> &Work {
        &self.work
    }

    /// Takes the outcome of the last action and returns the next action, under the newest work.
    pub fn next(&mut self, outcome: Outcome, work: Work) -> Action {
        match (std::mem::replace(&mut self.at, At::Deciding), outcome) {
            (At::Observing, Outcome::Did(Err(error))) => self.tell(Report::Unseen(error.to_string()), Next::Retry),
            (At::Doing, Outcome::Did(Err(error))) => self.failed(error),
            (At::Verifying(..), Outcome::Did(Err(error))) => self.failed(error),
            (At::Verifying(container, run), Outcome::Did(Ok(Done::Verified { remark: Some(remark) }))) => {
                self.at = At::TellingRemark(container, run);
                Action::Tell(Report::Remark(remark))
            }
            (At::Verifying(container, run), Outcome::Did(Ok(_)))
            | (At::TellingRemark(container, run), Outcome::Told(true)) => {
                (self.known, self.verified) = (Some(container), Some(run));
                self.decide_on(work)
            }
            (At::Observing | At::Doing, Outcome::Did(Ok(done))) => self.done(done, work),
            (At::TellingSight(container), Outcome::Told(taken)) => {
                self.known = taken.then_some(container);
                self.retry = FIRST_RETRY;
                self.decide_on(work)
            }
            (At::TellingProgress(Next::Create), _) => self.act(Op::Create),
            (At::TellingProgress(Next::Rest), _) if work == self.work => self.rest_for(LOOK_INTERVAL),
            (At::TellingProgress(Next::Retry), _) => {
                let after = self.retry;
                self.retry = (self.retry * 2).min(LONGEST_RETRY);
                self.at = At::Retrying;
                Action::Retry { after }
            }
            (At::Resting, Outcome::Looked(connected)) if work == self.work => self.looked(connected),
            (At::Resting, Outcome::Probed(outcome)) if work == self.work => {
                self.tell(outcome.map_or_else(Report::NotReady, |()| Report::Ready), Next::Rest)
            }
            _ => self.decide_on(work),
        }
    }

    fn decide_on(&mut self, work: Work) -> Action {
        self.work = work;
        self.decide()
    }

    fn decide(&mut self) -> Action {
        let Some(container) = self.known.take() else { return self.act(Op::Observe) };
        match lifecycle::next(&self.work.order, &container) {
            Step::Prepare => {
                self.at = At::Doing;
                Action::EnsureImage
            }
            Step::Start => self.act(Op::Start),
            Step::Pause => self.act(Op::Pause),
            Step::Resume => self.act(Op::Resume),
            Step::Stop => self.act(Op::Stop),
            Step::Remove => self.act(Op::Remove),
            Step::Tell(Sight::Running(run)) if self.is_unverified(&run) => {
                self.at = At::Verifying(container, run);
                Action::Do(Op::Verify)
            }
            Step::Tell(sight) => {
                self.at = At::TellingSight(container);
                Action::Tell(Report::Saw(sight))
            }
            Step::LookAgain(why) => self.tell(Report::Unseen(why), Next::Retry),
            Step::Wait if self.health != self.reported_health => {
                self.reported_health = self.health;
                self.known = Some(container);
                self.tell(Report::Health(self.health), Next::Look)
            }
            Step::Wait => {
                self.retry = FIRST_RETRY;
                let idle_is_due = self.work.watch == Watch::IdleIsDue;
                self.rest_for(if idle_is_due { Duration::ZERO } else { LOOK_INTERVAL })
            }
        }
    }

    /// A new run with GPUs is verified before it counts as running, also if the agent was restarted in between. A run
    /// that was reported is not: what runs goes on, even if the driver has renumbered its devices.
    fn is_unverified(&self, run: &Run) -> bool {
        let is_new = self.work.order.run.is_none();
        is_new && !self.work.launch.gpu_uuids.is_empty() && self.verified.as_ref() != Some(run)
    }

    fn act(&mut self, op: Op) -> Action {
        self.at = if op == Op::Observe { At::Observing } else { At::Doing };
        Action::Do(op)
    }

    fn tell(&mut self, report: Report, next: Next) -> Action {
        self.at = At::TellingProgress(next);
        Action::Tell(report)
    }

    /// Rests, and looks whether the session is used after this time.
    fn rest_for(&mut self, pause: Duration) -> Action {
        self.at = At::Resting;
        Action::Rest { look: (self.work.watch != Watch::Off).then_some(pause) }
    }

    fn done(&mut self, done: Done, work: Work) -> Action {
        // An observation is no progress: a step that keeps failing is preceded by one each time.
        if !matches!(done, Done::Saw(_)) {
            self.retry = FIRST_RETRY;
            self.failures = 0;
        }
        match done {
            Done::Saw(Observed { container, health }) => {
                self.known = Some(container);
                self.health = health;
            }
            // The old work stays until the container is created: a change of the wish is seen before it starts.
            Done::ImageIsHere(Provided { digest, id }) => {
                if id.is_some() {
                    self.work.launch = Arc::new(Launch { image: id, ..(*self.work.launch).clone() });
                }
                return self.tell(Report::Starting { image_digest: digest }, Next::Create);
            }
            Done::Created { container_id } => {
                self.known = Some(Container::Created);
                return self.tell(Report::Created { container_id }, Next::Look);
            }
            Done::Stepped | Done::Verified { .. } => {}
            Done::Removed => self.known = Some(Container::Absent),
        }
        self.decide_on(work)
    }

    /// A step failed: either the session has failed, or the step is tried again later.
    fn failed(&mut self, error: Error) -> Action {
        let order = &self.work.order;
        let starting = order.wish == Wish::Run && order.run.is_none();
        self.failures = self.failures.saturating_add(1);
        match error {
            Error::Start { fault, message } if starting => self.tell(Report::NotStarted(fault, message), Next::Look),
            Error::Refused(message) if starting => self.tell(Report::NotStarted(Fault::Host, message), Next::Look),
            // An engine that answers, and each time that it cannot, is no reason to wait for it.
            Error::Failed(message) if starting && self.failures >= MAX_FAILURES => {
                self.tell(Report::NotStarted(Fault::Host, message), Next::Look)
            }
            error => self.tell(Report::Unreachable(error.to_string()), Next::Retry),
        }
    }

    fn looked(&mut self, connected: Option<Connected>) -> Action {
        let used = match connected {
            Some(Connected::Yes) => Some(true),
            // Only a keepalive tells of the use of a session whose bytes are not counted.
            Some(Connected::No | Connected::Unknown { bytes: None }) => Some(false),
            Some(Connected::Unknown { bytes: Some(bytes) }) => self.meter.read(bytes),
            None => None,
        };
        match used {
            Some(true) => self.tell(Report::Active, Next::Rest),
            Some(false) if self.work.watch == Watch::IdleIsDue => self.tell(Report::Idle, Next::Rest),
            _ => self.rest_for(LOOK_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests;
