//! The steps of a runner, one report after another.

use super::*;
use crate::runtime::Provided;
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
    let here = Outcome::Did(Ok(Done::ImageIsHere(Provided { digest: digest.clone(), id: None })));
    assert_eq!(next(here), Action::Tell(Report::Starting { image_digest: digest }));
    assert_eq!(next(Outcome::Told(true)), Action::Do(Op::Create));
    let created = Outcome::Did(Ok(Done::Created { container_id: "c".to_owned() }));
    assert_eq!(next(created), Action::Tell(Report::Created { container_id: "c".to_owned() }));
    assert_eq!(next(Outcome::Told(true)), Action::Do(Op::Start), "a new container is not observed");
    assert_eq!(next(Outcome::Did(Ok(Done::Stepped))), Action::Do(Op::Observe));
    assert_eq!(next(saw(Container::Running(run()))), Action::Tell(Report::Saw(Sight::Running(run()))));
}

#[test]
fn a_container_is_created_from_the_id_of_an_image_that_the_engine_does_not_know_by_its_name() {
    let mut runner = Runner::new(work(Wish::Run), Some(Container::Absent));
    runner.begin();
    let provided = Provided { digest: Some("sha256:1".to_owned()), id: Some("sha256:2".to_owned()) };
    runner.next(Outcome::Did(Ok(Done::ImageIsHere(provided))), work(Wish::Run));
    assert_eq!(runner.next(Outcome::Told(true), work(Wish::Run)), Action::Do(Op::Create));
    assert_eq!(runner.work().launch.image.as_deref(), Some("sha256:2"));
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
    assert_eq!(runner.next(refused(), work(Wish::Run)), Action::Tell(Report::NotStarted(Fault::Host, "no".to_owned())));
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
