use super::*;
use crate::sessions::Command;
use crate::sessions::decide::testing::{Host, admit, command, exit, id, live, run, running, saw, state, workspace};
use crate::types::{Platform, Port, Protocol, Ready, Workspace};

fn tell(host: &mut Host, report: Report) {
    host.decide(|registry, cx| registry.report(&id("k"), report, cx));
}

#[test]
fn a_start_shows_its_progress() {
    let mut host = Host::new();
    admit(&mut host, "k", workspace()).unwrap();
    let shown = |host: &Host| (live(host, "k").status.state, live(host, "k").status.message.clone());
    tell(&mut host, Report::Unreachable("no answer".to_owned()));
    assert_eq!(shown(&host), (SessionState::Pending, Some("no answer".to_owned())));
    tell(&mut host, Report::Pulling("43 %".to_owned()));
    assert_eq!(shown(&host), (SessionState::Pulling, Some("43 %".to_owned())));
    tell(&mut host, Report::Starting { image_digest: Some("sha256:1".to_owned()) });
    assert_eq!(shown(&host), (SessionState::Starting, None));
    tell(&mut host, Report::Created { container_id: "c1".to_owned() });
    let status = &live(&host, "k").status;
    assert_eq!((status.image_digest.as_deref(), status.container_id.as_deref()), (Some("sha256:1"), Some("c1")));
}

#[test]
fn a_running_session_does_not_show_that_the_engine_is_lost() {
    let mut host = running("k", workspace());
    tell(&mut host, Report::Unreachable("no answer".to_owned()));
    assert_eq!(live(&host, "k").status.message, None);
}

#[test]
fn a_session_that_is_used_is_active() {
    let mut host = running("k", workspace());
    host.now = host.now.plus(std::time::Duration::from_secs(5));
    tell(&mut host, Report::Active);
    assert_eq!(live(&host, "k").status.last_activity_at, host.now.wall);
}

#[test]
fn a_session_is_ready_when_it_runs_unless_its_workspace_probes_it() {
    let host = running("k", workspace());
    assert_eq!(live(&host, "k").status.ready_at, Some(host.now.wall));
    assert_eq!(live(&host, "k").probe(), None);

    let ports = vec![Port { container_port: 8080, protocol: Protocol::Tcp }];
    let mut host = running("k", Workspace { ports, ready: Some(Ready::on(8080)), ..workspace() });
    let probe = live(&host, "k").probe().unwrap();
    assert_eq!((probe.container_port, probe.host_port), (8080, live(&host, "k").ports[0].host_port));
    tell(&mut host, Report::NotReady("nothing listens".to_owned()));
    let status = &live(&host, "k").status;
    assert_eq!((status.message.as_deref(), status.ready_at), (Some("not ready after 1m: nothing listens"), None));
    tell(&mut host, Report::Ready);
    let status = &live(&host, "k").status;
    assert_eq!((status.message.as_deref(), status.ready_at), (None, Some(host.now.wall)));
    assert_eq!(live(&host, "k").probe(), None);
}

#[test]
fn readiness_and_health_end_with_the_run() {
    let mut host = running("k", workspace());
    tell(&mut host, Report::Health(Some(HealthStatus::Unhealthy)));
    assert_eq!(live(&host, "k").status.health, Some(HealthStatus::Unhealthy));
    tell(&mut host, Report::Saw(Sight::Ended(Exit::new(Run("1".to_owned()), 0))));
    let status = &live(&host, "k").status;
    assert!(status.state.has_ended());
    assert_eq!((status.ready_at, status.health), (None, None));
}

#[test]
fn what_is_to_be_known_of_the_gpus_is_shown_while_the_run_goes_on() {
    let remark = || Some("not verified".to_owned());
    let message = |host: &Host| {
        let record = host.registry.record(&id("k")).unwrap();
        record.profile(&"one".parse().unwrap(), &crate::types::NodeId::from_bytes([1; 10]), "host", host.now).message
    };
    let mut host = Host::new();
    let ports = vec![Port { container_port: 8080, protocol: Protocol::Tcp }];
    admit(&mut host, "k", Workspace { ports, ready: Some(Ready::on(8080)), ..workspace() }).unwrap();
    tell(&mut host, Report::Remark("not verified".to_owned()));
    assert_eq!(message(&host), None, "it does not run yet");
    saw(&mut host, "k", Sight::Running(run(1)));
    assert_eq!(message(&host), remark());
    tell(&mut host, Report::NotReady("nothing listens".to_owned()));
    assert!(message(&host).unwrap().starts_with("not ready"), "what went wrong comes first");
    tell(&mut host, Report::Ready);
    assert_eq!(message(&host), remark());
    command(&mut host, "k", Command::Pause).unwrap();
    saw(&mut host, "k", Sight::Paused);
    assert_eq!(message(&host), remark());
    command(&mut host, "k", Command::Resume).unwrap();
    host.restart();
    saw(&mut host, "k", Sight::Running(run(1)));
    assert_eq!(message(&host), remark(), "it outlives the agent");

    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    assert_eq!(message(&host), None, "the run is over");
    tell(&mut host, Report::Remark("late".to_owned()));
    command(&mut host, "k", Command::Start).unwrap();
    saw(&mut host, "k", Sight::Running(run(2)));
    assert_eq!(message(&host), None, "another run, of which nothing is to be known");
}

fn not_started(host: &mut Host, key: &str, fault: Fault) {
    host.decide(|registry, cx| registry.report(&id(key), Report::NotStarted(fault, "no".to_owned()), cx));
}

#[test]
fn what_no_host_can_start_fails_at_once_and_counts_on_no_host() {
    let mut host = Host::new();
    admit(&mut host, "k", workspace()).unwrap();
    not_started(&mut host, "k", Fault::Workspace);
    assert_eq!(state(&host, "k"), (SessionState::Failed, Some(EndReason::StartFailed)));
    assert_eq!(host.registry.failing_starts(), 0);
    let never_ran = Exit { never_ran: Some("exec nope failed".to_owned()), ..exit(1, 127) };
    admit(&mut host, "l", workspace()).unwrap();
    saw(&mut host, "l", Sight::Ended(never_ran));
    assert_eq!(state(&host, "l"), (SessionState::Failed, Some(EndReason::StartFailed)));
    assert_eq!(live(&host, "l").status.message.as_deref(), Some("cannot run its command: exec nope failed"));
}

#[test]
fn an_image_of_another_platform_goes_to_a_host_that_fits() {
    let mut host = Host::new();
    admit(&mut host, "k", workspace()).unwrap();
    let image = Platform::new("linux", "arm64");
    not_started(&mut host, "k", Fault::Platform { image: image.clone() });
    let ballot = host.registry.live(&id("k")).unwrap().origin.ballot;
    let claimed = host.decide(|registry, cx| registry.claim(&ballot, &id("k"), cx)).unwrap();
    assert_eq!((claimed.asked.platform, host.registry.failing_starts()), (Some(image), 0));
}

#[test]
fn a_session_that_ran_before_stays_as_it_was_when_its_host_cannot_start_it_again() {
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    command(&mut host, "k", Command::Start).unwrap();
    not_started(&mut host, "k", Fault::Host);
    assert_eq!(state(&host, "k").0, SessionState::Stopped);
    assert_eq!(live(&host, "k").status.message.as_deref(), Some("no"));
    command(&mut host, "k", Command::Start).expect("it can be tried again");
    not_started(&mut host, "k", Fault::Workspace);
    assert_eq!(state(&host, "k").0, SessionState::Failed);
}

#[test]
fn a_trouble_ends_with_the_first_start_that_has_none() {
    let mut host = Host::new();
    for key in ["k", "l"] {
        admit(&mut host, key, workspace()).unwrap();
    }
    not_started(&mut host, "k", Fault::Network);
    assert!(host.registry.troubles().network.is_some());
    let created = Report::Created { container_id: "c".to_owned() };
    host.decide(|registry, cx| registry.report(&id("l"), created, cx));
    assert!(host.registry.troubles().network.is_none());
    not_started(&mut host, "k", Fault::Registry);
    let mut reports = |report| {
        host.decide(|registry, cx| registry.report(&id("l"), report, cx));
        host.registry.troubles().registry.is_some()
    };
    assert!(reports(Report::Starting { image_digest: None }), "it pulled nothing");
    assert!(reports(Report::Pulling("1 %".to_owned())));
    assert!(!reports(Report::Starting { image_digest: None }));
}
