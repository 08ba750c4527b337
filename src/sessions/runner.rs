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
use crate::runtime::{Connected, Error, Fault, Observed};
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
    ImageIsHere {
        digest: Option<String>,
    },
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
            Done::ImageIsHere { digest } => return self.tell(Report::Starting { image_digest: digest }, Next::Create),
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
mod tests {
    use super::*;
    use crate::runtime::container::Exit;
    use crate::sessions::decide::testing::new_live;
    use crate::sessions::meter;

    fn work(wish: Wish) -> Work {
        let mut live = new_live("k");
        live.wish = wish;
        Work {
            order: live.order(false).unwrap(),
            launch: Arc::new(live.launch()),
            container_id: None,
            watch: Watch::Off,
            probe: None,
        }
    }

    fn saw(container: Container) -> Outcome {
        Outcome::Did(Ok(Done::Saw(container.into())))
    }

    #[test]
    fn a_new_session_is_created_started_and_reported() {
        let run = || Run("1".to_owned());
        let mut runner = Runner::new(work(Wish::Run), Some(Container::Absent));
        assert_eq!(runner.begin(), Action::EnsureImage);
        let mut next = |outcome| runner.next(outcome, work(Wish::Run));
        let digest = Some("sha256:1".to_owned());
        let here = Outcome::Did(Ok(Done::ImageIsHere { digest: digest.clone() }));
        assert_eq!(next(here), Action::Tell(Report::Starting { image_digest: digest }));
        assert_eq!(next(Outcome::Told(true)), Action::Do(Op::Create));
        let created = Outcome::Did(Ok(Done::Created { container_id: "c".to_owned() }));
        assert_eq!(next(created), Action::Tell(Report::Created { container_id: "c".to_owned() }));
        assert_eq!(next(Outcome::Told(true)), Action::Do(Op::Start), "a new container is not observed");
        assert_eq!(next(Outcome::Did(Ok(Done::Stepped))), Action::Do(Op::Observe));
        assert_eq!(next(saw(Container::Running(run()))), Action::Tell(Report::Saw(Sight::Running(run()))));
    }

    fn with_gpu(wish: Wish) -> Work {
        let work = work(wish);
        let launch = Launch { gpu_uuids: vec!["GPU-1".to_owned()], ..(*work.launch).clone() };
        Work { launch: Arc::new(launch), ..work }
    }

    #[test]
    fn a_new_run_with_gpus_is_verified_before_it_counts_as_running() {
        let run = || Run("1".to_owned());
        let mut runner = Runner::new(with_gpu(Wish::Run), None);
        assert_eq!(runner.begin(), Action::Do(Op::Observe));
        let mut next = |outcome| runner.next(outcome, with_gpu(Wish::Run));
        assert_eq!(next(saw(Container::Running(run()))), Action::Do(Op::Verify));
        assert_eq!(
            next(Outcome::Did(Ok(Done::Verified { remark: None }))),
            Action::Tell(Report::Saw(Sight::Running(run())))
        );

        // The engine does not answer: it is verified later, and is not running before.
        let mut runner = Runner::new(with_gpu(Wish::Run), Some(Container::Running(run())));
        assert_eq!(runner.begin(), Action::Do(Op::Verify));
        let lost = Outcome::Did(Err(Error::Unavailable("silence".to_owned())));
        assert!(matches!(runner.next(lost, with_gpu(Wish::Run)), Action::Tell(Report::Unreachable(_))));
        assert!(matches!(runner.next(Outcome::Told(true), with_gpu(Wish::Run)), Action::Retry { .. }));
        runner.next(Outcome::Woken, with_gpu(Wish::Run));
        assert_eq!(runner.next(saw(Container::Running(run())), with_gpu(Wish::Run)), Action::Do(Op::Verify));
    }

    #[test]
    fn what_is_to_be_known_of_the_gpus_of_a_run_is_told_before_it_counts_as_running() {
        let (run, remark) = (|| Run("1".to_owned()), || Some("not verified".to_owned()));
        let mut runner = Runner::new(with_gpu(Wish::Run), Some(Container::Running(run())));
        assert_eq!(runner.begin(), Action::Do(Op::Verify));
        let mut next = |outcome| runner.next(outcome, with_gpu(Wish::Run));
        let verified = || Outcome::Did(Ok(Done::Verified { remark: remark() }));
        let told = Action::Tell(Report::Remark("not verified".to_owned()));
        assert_eq!(next(verified()), told);
        assert_eq!(next(Outcome::Told(false)), Action::Do(Op::Observe), "it was not accepted");
        assert_eq!(next(saw(Container::Running(run()))), Action::Do(Op::Verify));
        assert_eq!(next(verified()), told);
        assert_eq!(next(Outcome::Told(true)), Action::Tell(Report::Saw(Sight::Running(run()))));
    }

    #[test]
    fn a_run_with_wrong_gpus_is_a_start_that_failed() {
        let mut runner = Runner::new(with_gpu(Wish::Run), Some(Container::Running(Run("1".to_owned()))));
        assert_eq!(runner.begin(), Action::Do(Op::Verify));
        let wrong = Outcome::Did(Err(Error::start(Fault::Host, "it has /dev/nvidia1")));
        let failed = Action::Tell(Report::NotStarted(Fault::Host, "it has /dev/nvidia1".to_owned()));
        assert_eq!(runner.next(wrong, with_gpu(Wish::Run)), failed);
    }

    #[test]
    fn a_run_that_was_reported_before_is_not_verified_again() {
        let run = || Run("1".to_owned());
        let mut known = with_gpu(Wish::Run);
        (known.order.run, known.order.unseen) = (Some(run()), true);
        let mut runner = Runner::new(known, Some(Container::Running(run())));
        assert_eq!(runner.begin(), Action::Tell(Report::Saw(Sight::Running(run()))));
    }

    #[test]
    fn after_a_report_that_was_not_accepted_the_container_is_observed_again() {
        let exited = || Container::Exited(Exit::new(Run("1".to_owned()), 0));
        let mut runner = Runner::new(work(Wish::Stop), Some(exited()));
        assert!(matches!(runner.begin(), Action::Tell(Report::Saw(Sight::Stopped(Some(_))))));
        assert_eq!(runner.next(Outcome::Told(false), work(Wish::Stop)), Action::Do(Op::Observe));
        assert!(matches!(runner.next(saw(exited()), work(Wish::Stop)), Action::Tell(_)));
        // After an accepted report the runner acts on the next wish without another observation.
        let mut removal = work(Wish::Remove);
        removal.order.reserved = false;
        assert_eq!(runner.next(Outcome::Told(true), removal), Action::Do(Op::Remove));
        assert_eq!(
            runner.next(Outcome::Did(Ok(Done::Removed)), work(Wish::Remove)),
            Action::Tell(Report::Saw(Sight::Gone))
        );
    }

    #[test]
    fn a_wish_that_changes_during_the_pull_is_followed_at_once() {
        let mut runner = Runner::new(work(Wish::Run), Some(Container::Absent));
        runner.begin();
        assert_eq!(runner.next(Outcome::Interrupted, work(Wish::Remove)), Action::Do(Op::Observe));
        assert_eq!(runner.next(saw(Container::Absent), work(Wish::Remove)), Action::Tell(Report::Saw(Sight::Gone)));
    }

    #[test]
    fn only_a_start_fails_a_session_and_every_other_step_is_retried_with_growing_pauses() {
        let refused = || Outcome::Did(Err(Error::Refused("no".to_owned())));
        let mut runner = Runner::new(work(Wish::Run), Some(Container::Created));
        assert_eq!(runner.begin(), Action::Do(Op::Start));
        assert_eq!(
            runner.next(refused(), work(Wish::Run)),
            Action::Tell(Report::NotStarted(Fault::Host, "no".to_owned()))
        );
        assert_eq!(runner.next(Outcome::Told(true), work(Wish::Run)), Action::Do(Op::Observe));
        assert_eq!(runner.next(saw(Container::Absent), work(Wish::Run)), Action::EnsureImage);
        let image = Outcome::Did(Err(Error::start(Fault::Image, "gone")));
        let failed = Action::Tell(Report::NotStarted(Fault::Image, "gone".to_owned()));
        assert_eq!(runner.next(image, work(Wish::Run)), failed);

        let running = || Container::Running(Run("1".to_owned()));
        let mut runner = Runner::new(work(Wish::Stop), Some(running()));
        assert_eq!(runner.begin(), Action::Do(Op::Stop));
        let mut waits = Vec::new();
        for _ in 0..7 {
            assert_eq!(runner.next(refused(), work(Wish::Stop)), Action::Tell(Report::Unreachable("no".to_owned())));
            let Action::Retry { after } = runner.next(Outcome::Told(true), work(Wish::Stop)) else { panic!() };
            waits.push(after.as_millis());
            assert_eq!(runner.next(Outcome::Woken, work(Wish::Stop)), Action::Do(Op::Observe));
            assert_eq!(runner.next(saw(running()), work(Wish::Stop)), Action::Do(Op::Stop));
        }
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        // A successful step resets the pause.
        runner.next(Outcome::Did(Ok(Done::Stepped)), work(Wish::Stop));
        runner.next(saw(running()), work(Wish::Stop));
        runner.next(refused(), work(Wish::Stop));
        assert_eq!(runner.next(Outcome::Told(true), work(Wish::Stop)), Action::Retry { after: FIRST_RETRY });
    }

    #[test]
    fn a_container_that_cannot_be_observed_is_reported_and_observed_again() {
        let mut runner = Runner::new(work(Wish::Run), None);
        assert_eq!(runner.begin(), Action::Do(Op::Observe));
        // Even an answer that would end a start says nothing of the session while it only looks.
        let refused = Outcome::Did(Err(Error::Refused("no".to_owned())));
        assert_eq!(runner.next(refused, work(Wish::Run)), Action::Tell(Report::Unseen("no".to_owned())));
        assert_eq!(runner.next(Outcome::Told(true), work(Wish::Run)), Action::Retry { after: FIRST_RETRY });
        assert_eq!(runner.next(Outcome::Woken, work(Wish::Run)), Action::Do(Op::Observe));
        let dead = saw(Container::Removing("dead".to_owned()));
        assert_eq!(runner.next(dead, work(Wish::Run)), Action::Tell(Report::Unseen("dead".to_owned())));
        assert_eq!(runner.next(Outcome::Told(true), work(Wish::Run)), Action::Retry { after: FIRST_RETRY * 2 });
    }

    #[test]
    fn an_engine_that_keeps_answering_that_it_cannot_fails_a_start() {
        let broken = || Outcome::Did(Err(Error::Failed("broken".to_owned())));
        let told = |report| Action::Tell(report);
        let mut runner = Runner::new(work(Wish::Run), Some(Container::Created));
        assert_eq!(runner.begin(), Action::Do(Op::Start));
        for _ in 1..MAX_FAILURES {
            assert_eq!(runner.next(broken(), work(Wish::Run)), told(Report::Unreachable("broken".to_owned())));
            assert!(matches!(runner.next(Outcome::Told(true), work(Wish::Run)), Action::Retry { .. }));
            runner.next(Outcome::Woken, work(Wish::Run));
            assert_eq!(runner.next(saw(Container::Created), work(Wish::Run)), Action::Do(Op::Start));
        }
        let failed = told(Report::NotStarted(Fault::Host, "broken".to_owned()));
        assert_eq!(runner.next(broken(), work(Wish::Run)), failed);
    }

    /// A session that runs, and its work.
    fn at_rest(watch: Watch) -> (Runner, Work) {
        let run = Run("1".to_owned());
        let mut running = work(Wish::Run);
        running.order.run = Some(run.clone());
        running.watch = watch;
        (Runner::new(running.clone(), Some(Container::Running(run))), running)
    }

    const LOOKS_LATER: Action = Action::Rest { look: Some(LOOK_INTERVAL) };
    const LOOKS_NOW: Action = Action::Rest { look: Some(Duration::ZERO) };

    #[test]
    fn a_connection_is_use_and_without_an_idle_timeout_nobody_looks() {
        let (mut runner, _) = at_rest(Watch::Off);
        assert_eq!(runner.begin(), Action::Rest { look: None });

        let (mut runner, running) = at_rest(Watch::On);
        assert_eq!(runner.begin(), LOOKS_LATER);
        let mut looked = |connected| runner.next(Outcome::Looked(connected), running.clone());
        assert_eq!(looked(Some(Connected::No)), LOOKS_LATER);
        assert_eq!(looked(None), LOOKS_LATER);
        assert_eq!(looked(Some(Connected::Yes)), Action::Tell(Report::Active));
        assert_eq!(runner.next(Outcome::Told(true), running.clone()), LOOKS_LATER);
        assert_eq!(runner.next(Outcome::Woken, running), Action::Do(Op::Observe));
    }

    #[test]
    fn an_idle_timeout_ends_a_session_only_after_a_look_that_found_nobody() {
        let (mut runner, due) = at_rest(Watch::IdleIsDue);
        assert_eq!(runner.begin(), LOOKS_NOW);
        let mut next = |outcome| runner.next(outcome, due.clone());
        assert_eq!(next(Outcome::Looked(None)), LOOKS_LATER, "an engine that does not answer says nothing");
        let bytes = |bytes| Outcome::Looked(Some(Connected::Unknown { bytes: Some(bytes) }));
        assert_eq!(next(bytes(0)), LOOKS_LATER, "not counted for long enough");
        assert_eq!(next(bytes(meter::USE_BYTES)), Action::Tell(Report::Active));
        assert_eq!(next(Outcome::Told(true)), LOOKS_LATER);
        assert_eq!(next(Outcome::Looked(Some(Connected::No))), Action::Tell(Report::Idle));
        assert_eq!(next(Outcome::Told(true)), LOOKS_LATER);
        assert_eq!(next(Outcome::Looked(Some(Connected::Unknown { bytes: None }))), Action::Tell(Report::Idle));
    }

    #[test]
    fn news_of_readiness_and_health_are_told_once() {
        let (mut runner, resting) = at_rest(Watch::Off);
        assert_eq!(runner.begin(), Action::Rest { look: None });
        let mut next = |outcome| runner.next(outcome, resting.clone());
        let why = || "refused".to_owned();
        assert_eq!(next(Outcome::Probed(Err(why()))), Action::Tell(Report::NotReady(why())));
        assert_eq!(next(Outcome::Told(true)), Action::Rest { look: None });
        assert_eq!(next(Outcome::Probed(Ok(()))), Action::Tell(Report::Ready));
        assert_eq!(next(Outcome::Told(true)), Action::Rest { look: None });

        let mut seen = |health| {
            assert_eq!(next(Outcome::Woken), Action::Do(Op::Observe));
            let container = Container::Running(Run("1".to_owned()));
            next(Outcome::Did(Ok(Done::Saw(Observed { container, health }))))
        };
        assert_eq!(seen(None), Action::Rest { look: None });
        let sick = Some(HealthStatus::Unhealthy);
        assert_eq!(seen(sick), Action::Tell(Report::Health(sick)));
        assert_eq!(next(Outcome::Told(true)), Action::Rest { look: None });
    }

    #[test]
    fn work_that_changes_during_a_look_or_its_report_is_not_lost() {
        let stop = || Work { watch: Watch::Off, ..work(Wish::Stop) };
        let (mut runner, _) = at_rest(Watch::On);
        runner.begin();
        assert_eq!(runner.next(Outcome::Looked(Some(Connected::Yes)), stop()), Action::Do(Op::Observe));

        let (mut runner, due) = at_rest(Watch::IdleIsDue);
        runner.begin();
        assert_eq!(runner.next(Outcome::Looked(Some(Connected::No)), due), Action::Tell(Report::Idle));
        assert_eq!(runner.next(Outcome::Told(true), stop()), Action::Do(Op::Observe));
        let running = saw(Container::Running(Run("1".to_owned())));
        assert_eq!(runner.next(running, stop()), Action::Do(Op::Stop));
    }
}
