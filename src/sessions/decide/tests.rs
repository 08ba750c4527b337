use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::testing::{
    Host, admit, command, config, exit, found, id, live, node_id, offer, record, run, running, saw, state, workspace,
};
use super::*;
use crate::node::DrainState;
use crate::runtime::Fault;
use crate::runtime::container::{Container, Exit, Oom};
use crate::sessions::lifecycle::{Sight, Wish};
use crate::sessions::{Admit, Asked, Claimed, Command, Error};
use crate::types::{
    Bytes, Cores, Deadline, Dimension, Disk, Inodes, OnHostRestart, Resources, SessionState, Workspace,
};

fn refusal(result: Result<bool, Error>) -> Reason {
    let Err(Error::Refused(reason)) = result else { panic!("{result:?} is not a refusal") };
    reason.reason
}

#[test]
fn one_key_is_one_session() {
    let mut host = Host::new();
    assert_eq!(admit(&mut host, "k", workspace()), Ok(false));
    assert_eq!(admit(&mut host, "k", workspace()), Ok(true));
    let mut other = offer("k", workspace());
    other.asked.fingerprint = "another".to_owned();
    assert_eq!(host.decide(|registry, cx| registry.admit(&other, cx)), Err(Error::IdempotencyMismatch));
    assert_eq!(host.registry.ledger().allocated().cores, Cores::whole(1));
    assert_eq!(host.registry.endpoint_host(), config().endpoint_host);
}

#[test]
fn an_offer_for_another_host_is_refused() {
    let mut host = Host::new();
    let mut meant_for_another = offer("k", workspace());
    meant_for_another.destination = NodeId::from_bytes([9; 10]);
    let decided = host.decide(|registry, cx| registry.admit(&meant_for_another, cx));
    assert!(matches!(decided, Err(Error::Conflict(_))));
}

#[test]
fn a_host_says_why_it_takes_nothing() {
    let mut host = Host::new();
    host.node.settings.enabled = false;
    assert_eq!(refusal(admit(&mut host, "k", workspace())), Reason::Disabled);
    host.node.settings.enabled = true;
    host.node.drain = Some(DrainState { since: host.now.wall, deadline: None, stop_sessions: false, message: None });
    assert_eq!(refusal(admit(&mut host, "k", workspace())), Reason::Draining);
    host.node.drain = None;
    let elsewhere = Workspace { network: Some("lab".parse().unwrap()), ..workspace() };
    assert_eq!(refusal(admit(&mut host, "k", elsewhere)), Reason::Network);
    let huge = Workspace { cores: Cores::whole(7), ..workspace() };
    assert_eq!(refusal(admit(&mut host, "k", huge)), Reason::ExceedsPhysical);
    assert_eq!(host.registry.records().count(), 0);
}

#[test]
fn limits_of_users_nodes_and_ports_hold() {
    let mut host = Host::with(Config { max_sessions_per_node: 2, ..config() });
    admit(&mut host, "a", workspace()).unwrap();
    admit(&mut host, "b", workspace()).unwrap();
    assert_eq!(refusal(admit(&mut host, "c", workspace())), Reason::SessionLimit);

    let one_port = crate::ledger::PortRange { first: 9, last: 9 };
    let mut host = Host::with(Config { port_range: one_port, ..config() });
    admit(&mut host, "a", workspace()).unwrap();
    assert_eq!(refusal(admit(&mut host, "b", workspace())), Reason::NoPorts);
}

#[test]
fn a_stopped_session_starts_within_its_users_quota() {
    let mut host = Host::with(Config { max_sessions_per_user: 1, ..config() });
    admit(&mut host, "a", workspace()).unwrap();
    saw(&mut host, "a", Sight::Running(run(1)));
    command(&mut host, "a", Command::Stop).unwrap();
    saw(&mut host, "a", Sight::Stopped(Some(exit(1, 0))));
    admit(&mut host, "b", workspace()).unwrap();
    assert!(matches!(command(&mut host, "a", Command::Start), Err(Error::Quota { limit: 1, .. })));
    command(&mut host, "b", Command::Remove).unwrap();
    saw(&mut host, "b", Sight::Gone);
    assert_eq!(command(&mut host, "a", Command::Start), Ok(()));
}

#[test]
fn a_refused_session_holds_no_port() {
    let mut host = Host::with(Config { port_range: crate::ledger::PortRange { first: 9, last: 9 }, ..config() });
    let huge = Workspace { cores: Cores::whole(7), ..workspace() };
    assert_eq!(refusal(admit(&mut host, "a", huge)), Reason::ExceedsPhysical);
    assert_eq!(admit(&mut host, "b", workspace()), Ok(false));
}

#[test]
fn a_stop_holds_the_reservation_until_the_runtime_confirms_it() {
    let mut host = running("k", workspace());
    command(&mut host, "k", Command::Stop).unwrap();
    assert_eq!(state(&host, "k").0, SessionState::Stopping);
    assert_eq!(host.registry.ledger().len(), 1);
    saw(&mut host, "k", Sight::Stopped(Some(exit(1, 143))));
    assert_eq!(state(&host, "k"), (SessionState::Stopped, Some(EndReason::UserStopped)));
    assert!(host.registry.ledger().is_empty());
}

#[test]
fn a_start_is_a_new_admission_and_keeps_the_ports() {
    let mut host = running("k", Workspace { cores: Cores::whole(4), ..workspace() });
    let ports = live(&host, "k").ports.clone();
    command(&mut host, "k", Command::Stop).unwrap();
    assert!(matches!(command(&mut host, "k", Command::Start), Err(Error::Conflict(_))), "it is still stopping");
    saw(&mut host, "k", Sight::Stopped(Some(exit(1, 0))));
    admit(&mut host, "other", Workspace { cores: Cores::whole(4), ..workspace() }).unwrap();
    let Err(Error::Refused(reason)) = command(&mut host, "k", Command::Start) else { panic!("there is no room") };
    assert_eq!(reason.reason, Reason::NoCapacity);
    command(&mut host, "other", Command::Remove).unwrap();
    saw(&mut host, "other", Sight::Gone);
    command(&mut host, "k", Command::Start).unwrap();
    assert_eq!(state(&host, "k"), (SessionState::Starting, None));
    let live = live(&host, "k");
    assert_eq!((&live.ports, &live.previous_run, &live.run), (&ports, &Some(run(1)), &None));
    assert_eq!(host.registry.ledger().len(), 1);
}

#[test]
fn a_natural_end_is_stopped_or_failed() {
    for (ended, expected) in [
        (exit(1, 0), (SessionState::Stopped, Some(EndReason::Exited))),
        (exit(1, 3), (SessionState::Failed, Some(EndReason::Exited))),
        (Exit { oom: Oom::Main, ..exit(1, 137) }, (SessionState::Failed, Some(EndReason::OomKilled))),
    ] {
        let mut host = running("k", workspace());
        saw(&mut host, "k", Sight::Ended(ended));
        assert_eq!(state(&host, "k"), expected);
        assert!(host.registry.ledger().is_empty());
    }
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Lost);
    assert_eq!(state(&host, "k"), (SessionState::Failed, Some(EndReason::Lost)));
    assert!(matches!(command(&mut host, "k", Command::Start), Err(Error::Conflict(_))));
}

fn fail_start(host: &mut Host, key: &str) {
    host.decide(|registry, cx| {
        registry.report(&id(key), Report::NotStarted(Fault::Host, "no such file".to_owned()), cx)
    });
}

fn claim(host: &mut Host, key: &str) -> Result<Claimed, Error> {
    let ballot = offer(key, workspace()).ballot;
    host.decide(|registry, cx| registry.claim(&ballot, &id(key), cx))
}

#[test]
fn what_could_not_be_started_waits_for_another_host() {
    let mut host = Host::new();
    let secret = Workspace { env: [("PW".to_owned(), "{secret}".to_owned())].into(), ..workspace() };
    admit(&mut host, "k", secret).unwrap();
    assert!(matches!(claim(&mut host, "k"), Err(Error::Conflict(_))), "it may start yet");
    fail_start(&mut host, "k");
    assert_eq!(state(&host, "k"), (SessionState::Pending, None));
    assert_eq!(live(&host, "k").order(false), None, "nothing more is tried here");
    assert_eq!(host.registry.ledger().len(), 1, "a session that is to run holds its reservation");

    host.restart();
    let Claimed { asked, .. } = claim(&mut host, "k").unwrap();
    assert_eq!((asked.attempt, asked.tried, asked.secret.as_deref()), (2, vec![node_id()], Some("s3cret")));
    let busy = command(&mut host, "k", Command::Remove);
    assert!(matches!(busy, Err(Error::Moving(_))), "it is never ended here and begun there");
    claim(&mut host, "k").expect("the next leader goes on");
    command(&mut host, "k", Command::Duplicate).unwrap();
    saw(&mut host, "k", Sight::Gone);
    assert_eq!(record(&host, "k").status().end_reason, Some(EndReason::StartFailed));
    assert!(host.registry.ledger().is_empty());
}

#[test]
fn what_nobody_else_starts_has_failed() {
    let failed = (SessionState::Failed, Some(EndReason::StartFailed));
    let mut host = Host::new();
    for key in ["given up", "never claimed", "claimed in vain", "removed", "last"] {
        let attempt = if key == "last" { MAX_ATTEMPTS } else { 1 };
        let offer = offer(key, workspace());
        let offer = Admit { asked: Asked { attempt, ..offer.asked.clone() }, ..offer };
        host.decide(|registry, cx| registry.admit(&offer, cx)).unwrap();
        fail_start(&mut host, key);
    }
    assert_eq!(state(&host, "last"), failed, "it was offered often enough");
    let Claimed { claim: earlier, .. } = claim(&mut host, "given up").unwrap();
    let Claimed { claim: number, .. } = claim(&mut host, "given up").unwrap();
    command(&mut host, "given up", Command::GiveUp { claim: earlier }).unwrap();
    assert_eq!(state(&host, "given up").0, SessionState::Pending, "an order of before the last claim");
    command(&mut host, "given up", Command::GiveUp { claim: number }).unwrap();
    assert_eq!(state(&host, "given up"), failed);
    assert_eq!(record(&host, "given up").status().message.as_deref(), Some("no such file"));
    command(&mut host, "removed", Command::Remove).unwrap();
    assert!(matches!(claim(&mut host, "removed"), Err(Error::Conflict(_))));
    claim(&mut host, "claimed in vain").unwrap();
    host.now = host.now.plus(Duration::from_secs(20));
    host.decide(|registry, cx| registry.expire(cx));
    assert_eq!(state(&host, "never claimed"), failed);
    assert_eq!(state(&host, "claimed in vain").0, SessionState::Pending);
    host.now = host.now.plus(Duration::from_secs(20));
    host.decide(|registry, cx| registry.expire(cx));
    assert_eq!(state(&host, "claimed in vain"), failed);
}

#[test]
fn what_was_put_away_comes_back_as_the_next_attempt_only() {
    let mut host = running("k", workspace());
    command(&mut host, "k", Command::Duplicate).unwrap();
    saw(&mut host, "k", Sight::Gone);
    assert_eq!(admit(&mut host, "k", workspace()), Ok(true), "a retry finds what was");
    assert!(record(&host, "k").live().is_none());
    let offer = offer("k", workspace());
    let next = Admit { asked: Asked { attempt: 2, ..offer.asked.clone() }, ..offer };
    assert_eq!(host.decide_unwritten(|registry, cx| registry.admit(&next, cx)), Ok(false));
    host.registry.roll_back();
    assert!(record(&host, "k").live().is_none(), "what was not written never was");
    assert_eq!(host.decide(|registry, cx| registry.admit(&next, cx)), Ok(false));
    assert_eq!((state(&host, "k").0, host.registry.ledger().len()), (SessionState::Pending, 1));
}

#[test]
fn what_ran_once_stays_where_it_is() {
    let mut host = running("k", workspace());
    command(&mut host, "k", Command::Stop).unwrap();
    saw(&mut host, "k", Sight::Stopped(Some(exit(1, 0))));
    command(&mut host, "k", Command::Start).unwrap();
    fail_start(&mut host, "k");
    assert_eq!(state(&host, "k"), (SessionState::Stopped, Some(EndReason::UserStopped)));
}

#[test]
fn failed_starts_are_counted_until_one_works() {
    let mut host = Host::new();
    for key in ["a", "b"] {
        admit(&mut host, key, workspace()).unwrap();
        fail_start(&mut host, key);
        let Claimed { claim, .. } = claim(&mut host, key).unwrap();
        command(&mut host, key, Command::GiveUp { claim }).unwrap();
        assert_eq!(state(&host, key), (SessionState::Failed, Some(EndReason::StartFailed)));
    }
    assert_eq!((host.registry.failing_starts(), host.registry.ledger().len()), (2, 0));
    admit(&mut host, "c", workspace()).unwrap();
    saw(&mut host, "c", Sight::Running(run(1)));
    assert_eq!(host.registry.failing_starts(), 0);
}

#[test]
fn pause_and_resume_keep_the_reservation_and_need_a_running_session() {
    let mut host = Host::new();
    admit(&mut host, "k", workspace()).unwrap();
    assert!(matches!(command(&mut host, "k", Command::Pause), Err(Error::Conflict(_))));
    saw(&mut host, "k", Sight::Running(run(1)));
    command(&mut host, "k", Command::Pause).unwrap();
    saw(&mut host, "k", Sight::Paused);
    assert_eq!((state(&host, "k").0, host.registry.ledger().len()), (SessionState::Paused, 1));
    command(&mut host, "k", Command::Resume).unwrap();
    saw(&mut host, "k", Sight::Running(run(1)));
    assert_eq!(state(&host, "k").0, SessionState::Running);
}

#[test]
fn a_removed_session_is_remembered_for_its_key_and_then_forgotten() {
    let mut host = running("k", Workspace { env: BTreeMap::from([("P".into(), "{secret}".into())]), ..workspace() });
    assert_eq!(live(&host, "k").launch().env["P"], "s3cret");
    command(&mut host, "k", Command::Remove).unwrap();
    saw(&mut host, "k", Sight::Gone);
    let record = record(&host, "k").clone();
    assert!(record.live().is_none());
    assert!(!serde_json::to_string(&record).unwrap().contains("s3cret"), "its secret is not remembered");
    assert_eq!(host.registry.ledger().allocated(), Resources::ZERO);
    assert_eq!(
        admit(&mut host, "k", offer("k", record.origin().workspace.clone()).asked.workspace),
        Ok(true),
        "a retry finds it"
    );
    assert_eq!(command(&mut host, "k", Command::Remove), Ok(()));
    assert!(matches!(command(&mut host, "k", Command::Start), Err(Error::Conflict(_))));
    host.now = host.now.plus(Duration::from_secs(3601));
    host.decide(|registry, cx| registry.expire(cx));
    assert!(host.registry.record(&id("k")).is_none());
}

#[test]
fn a_host_admits_only_while_enough_of_its_disk_is_free() {
    let least = Bytes::gib(10);
    let admitted = |disks: Vec<Disk>| {
        let mut host = Host::with(Config { min_free_disk: least, ..config() });
        host.report.disks = disks;
        admit(&mut host, "k", workspace())
    };
    let disk = |free_bytes: Bytes, free: u64| Disk {
        path: "/d".to_owned(),
        total_bytes: Bytes::gib(100),
        free_bytes,
        inodes: Some(Inodes { total: 1000, free }),
    };
    assert_eq!(admitted(Vec::new()), Ok(false), "what is not known is not short");
    assert_eq!(admitted(vec![disk(least, 20)]), Ok(false));
    for (short, dimension) in
        [(disk(Bytes::new(least.get() - 1), 1000), Dimension::DiskBytes), (disk(least, 19), Dimension::DiskInodes)]
    {
        let Err(Error::Refused(reason)) = admitted(vec![disk(least, 1000), short]) else { panic!("it is refused") };
        assert_eq!((reason.reason, reason.dimension), (Reason::LowDisk, Some(dimension)));
    }
}

#[test]
fn a_workspace_may_name_a_network_of_the_configuration() {
    let mut host = Host::with(Config { networks: vec!["lan".parse().unwrap()], ..config() });
    let in_network = |name: &str| Workspace { network: Some(name.parse().unwrap()), ..workspace() };
    assert_eq!(admit(&mut host, "k", in_network("lan")), Ok(false));
    assert_eq!(refusal(admit(&mut host, "l", in_network("wan"))), Reason::Network);
}

#[test]
fn a_secret_is_drawn_only_for_a_session_that_wants_one_and_has_none() {
    let wants = Workspace { env: BTreeMap::from([("P".into(), "{secret}".into())]), ..workspace() };
    for (workspace, given, expected) in [
        (workspace(), None, None),
        (wants.clone(), None, Some("s3cret")),
        (wants, Some("of the first host"), Some("of the first host")),
    ] {
        let mut host = Host::new();
        let mut offer = offer("k", workspace);
        offer.asked.secret = given.map(str::to_owned);
        host.decide(|registry, cx| registry.admit(&offer, cx)).unwrap();
        assert_eq!(live(&host, "k").secret.as_deref(), expected);
    }
}

#[test]
fn extend_never_shortens() {
    let mut host = running("k", Workspace { ttl_seconds: Some(60), ..workspace() });
    let remaining = |host: &Host| live(host, "k").ttl.unwrap().remaining(host.now).as_secs();
    command(&mut host, "k", Command::Extend { ttl: Duration::from_secs(10) }).unwrap();
    assert_eq!(remaining(&host), 60);
    command(&mut host, "k", Command::Extend { ttl: Duration::from_secs(100) }).unwrap();
    assert_eq!(remaining(&host), 100);
}

#[test]
fn a_stopped_session_is_removed_after_its_retention() {
    let mut host = running("k", workspace());
    command(&mut host, "k", Command::Stop).unwrap();
    saw(&mut host, "k", Sight::Stopped(None));
    host.now = host.now.plus(Duration::from_secs(600));
    host.decide(|registry, cx| registry.expire(cx));
    assert_eq!(live(&host, "k").wish, Wish::Remove);
}

#[test]
fn a_drain_stops_sessions_only_at_its_deadline_and_only_if_told_to() {
    let mut host = running("k", workspace());
    let deadline = Some(Deadline::after(host.now, Duration::from_secs(10)));
    host.node.drain = Some(DrainState { since: host.now.wall, deadline, stop_sessions: true, message: None });
    host.decide(|registry, cx| registry.expire(cx));
    assert_eq!(state(&host, "k").0, SessionState::Running);
    host.now = host.now.plus(Duration::from_secs(10));
    host.decide(|registry, cx| registry.expire(cx));
    assert_eq!(state(&host, "k"), (SessionState::Stopping, Some(EndReason::Drained)));
}

#[test]
fn after_a_reboot_a_session_starts_again_or_stops_as_its_workspace_says() {
    for (wanted, expected) in [
        (OnHostRestart::Start, (SessionState::Starting, None)),
        (OnHostRestart::Stop, (SessionState::Stopped, Some(EndReason::HostRebooted))),
    ] {
        let mut host = running("k", Workspace { on_host_restart: wanted, ..workspace() });
        host.now.boot_id = 2;
        host.restart();
        saw(&mut host, "k", Sight::Ended(exit(1, 137)));
        assert_eq!(state(&host, "k"), expected);
        assert_eq!(host.registry.ledger().len(), usize::from(wanted == OnHostRestart::Start));
    }
}

#[test]
fn a_start_that_a_reboot_ended_before_it_was_seen_is_made_again() {
    let mut host = Host::new();
    admit(&mut host, "k", workspace()).unwrap();
    host.now.boot_id = 2;
    host.restart();
    saw(&mut host, "k", Sight::Ended(exit(1, 137)));
    assert_eq!(state(&host, "k"), (SessionState::Starting, None));
    assert_eq!(live(&host, "k").previous_run, Some(run(1)), "seeing it is no news");
    saw(&mut host, "k", Sight::Ended(exit(2, 1)));
    assert_eq!(state(&host, "k"), (SessionState::Failed, Some(EndReason::Exited)), "that was its own end");
}

#[test]
fn an_engine_that_restarts_takes_sessions_down_and_they_come_back() {
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Ended(exit(1, 137)));
    let mut long_before = running("old", workspace());
    saw(&mut long_before, "old", Sight::Ended(exit(1, 137)));
    for host in [&mut host, &mut long_before] {
        host.now = host.now.plus(Duration::from_secs(3));
    }
    let lost_at = host.now;
    host.decide(|registry, cx| registry.engine_returned(lost_at, cx));
    assert_eq!(state(&host, "k"), (SessionState::Starting, None));
    let lost_at = lost_at.plus(Duration::from_secs(60));
    long_before.decide(|registry, cx| registry.engine_returned(lost_at, cx));
    assert_eq!(state(&long_before, "old").0, SessionState::Failed, "that was its own end");
}

#[test]
fn a_session_that_ended_while_its_engine_was_away_was_taken_down_with_it() {
    let mut stays = workspace();
    stays.on_host_restart = OnHostRestart::Stop;
    for (workspace, ended) in
        [(workspace(), (SessionState::Starting, None)), (stays, (SessionState::Stopped, Some(EndReason::HostRebooted)))]
    {
        let mut host = running("k", workspace);
        host.decide(|registry, _| registry.engine_went());
        assert!(host.registry.is_out_of_sight(&id("k")));
        let lost_at = host.now;
        host.now = host.now.plus(Duration::from_secs(600));
        host.decide(|registry, cx| registry.engine_returned(lost_at, cx));
        saw(&mut host, "k", Sight::Ended(exit(1, 0)));
        assert_eq!(state(&host, "k"), ended);
        assert!(!host.registry.is_out_of_sight(&id("k")));
    }
}

#[test]
fn a_session_that_ran_on_without_its_engine_ends_by_itself_later() {
    let mut host = running("k", workspace());
    host.decide(|registry, _| registry.engine_went());
    let seen = found("k", testing::node_id(), Container::Running(run(1)));
    host.decide(|registry, cx| registry.reconcile(vec![seen], cx.now.boot, cx));
    assert!(!host.registry.is_out_of_sight(&id("k")));
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    assert_eq!(state(&host, "k"), (SessionState::Stopped, Some(EndReason::Exited)));
}

#[test]
fn a_session_that_has_ended_and_runs_all_the_same_is_stopped() {
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    let seen = |n| found("k", testing::node_id(), Container::Running(run(n)));
    host.decide(|registry, cx| registry.reconcile(vec![seen(1)], cx.now.boot, cx));
    assert_eq!(state(&host, "k").0, SessionState::Stopped, "an answer from before its end is no news");
    host.decide(|registry, cx| registry.reconcile(vec![seen(2)], cx.now.boot, cx));
    assert_eq!(state(&host, "k").0, SessionState::Stopping);
    assert_eq!(live(&host, "k").order(false).unwrap().wish, Wish::Stop);
    saw(&mut host, "k", Sight::Stopped(Some(exit(2, 0))));
    assert_eq!(state(&host, "k"), (SessionState::Stopped, Some(EndReason::Exited)));
    assert_eq!(host.registry.ledger().allocated(), Resources::ZERO);
}

#[test]
fn containers_without_a_record_are_adopted_and_foreign_ones_left_alone() {
    let mut host = Host::new();
    let other = NodeId::from_bytes([9; 10]);
    let containers =
        vec![found("a", testing::node_id(), Container::Running(run(1))), found("b", other, Container::Running(run(1)))];
    host.decide(|registry, cx| registry.reconcile(containers, cx.now.boot, cx));
    let [foreign] = &host.registry.oddities().foreign[..] else { panic!("the other is foreign") };
    assert_eq!((foreign.session, foreign.node), (id("b"), other));
    assert_eq!(host.registry.ledger().allocated().cores, Cores::whole(2));
    saw(&mut host, "a", Sight::Running(run(1)));
    assert_eq!(state(&host, "a").0, SessionState::Running);
    assert_eq!(admit(&mut host, "a", workspace()), Ok(true), "its key still means it");
}

#[test]
fn a_container_that_should_be_gone_is_removed_again() {
    let mut host = running("k", workspace());
    command(&mut host, "k", Command::Remove).unwrap();
    saw(&mut host, "k", Sight::Gone);
    host.decide(|registry, cx| {
        registry.reconcile(vec![found("k", testing::node_id(), Container::Created)], cx.now.boot, cx)
    });
    assert_eq!(live(&host, "k").order(false).unwrap().wish, Wish::Remove);
}

#[derive(Debug, Clone)]
enum Op {
    Admit(u8, u32),
    Command(u8, Command),
    Report(u8, Report),
    Cores(u32),
    Restart,
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let command = prop_oneof![
        Just(Command::Stop),
        Just(Command::Start),
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Remove),
        Just(Command::Extend { ttl: Duration::from_secs(5) }),
    ];
    let report = prop_oneof![
        4 => (1..4u32).prop_map(|n| Report::Saw(Sight::Running(run(n)))),
        1 => Just(Report::Saw(Sight::Paused)),
        2 => (1..4u32, 0..2i64).prop_map(|(n, code)| Report::Saw(Sight::Ended(exit(n, code)))),
        2 => Just(Report::Saw(Sight::Stopped(None))),
        2 => Just(Report::Saw(Sight::Gone)),
        1 => Just(Report::Saw(Sight::Lost)),
        1 => Just(Report::NotStarted(Fault::Host, "x".to_owned())),
        1 => Just(Report::Pulling("x".to_owned())),
    ];
    prop_oneof![
        4 => (0..8u8, 1..4u32).prop_map(|(key, cores)| Op::Admit(key, cores)),
        4 => (0..8u8, command).prop_map(|(key, command)| Op::Command(key, command)),
        6 => (0..8u8, report).prop_map(|(key, report)| Op::Report(key, report)),
        1 => (0..12u32).prop_map(Op::Cores),
        1 => Just(Op::Restart),
        1 => (1..500u64).prop_map(Op::Pass),
    ]
}

proptest! {
    /// Under any interleaving, written or rolled back: admissions keep within what is offered, the
    /// ledger is the sum of what sessions are shown to reserve, and no live session is without its reservation.
    #[test]
    fn what_is_shown_is_what_was_admitted(ops in proptest::collection::vec((op(), proptest::bool::weighted(0.85)), 1..100)) {
        let mut host = Host::new();
        for (op, written) in ops {
            let before: Vec<_> = host.registry.records().cloned().collect();
            let allocated_before = host.registry.ledger().allocated();
            let mut admitted = false;
            match op {
                Op::Admit(key, cores) => {
                    let offer = offer(&key.to_string(), Workspace { cores: Cores::whole(cores), ttl_seconds: Some(900), ..workspace() });
                    let new = host.registry.record(&offer.session).is_none();
                    admitted = host.decide_unwritten(|registry, cx| registry.admit(&offer, cx)).is_ok() && new;
                }
                Op::Command(key, command) => {
                    let id = id(&key.to_string());
                    let start = command == Command::Start && host.registry.record(&id).is_some_and(|r| !r.is_reserved());
                    admitted = host.decide_unwritten(|registry, cx| registry.command(&id, &command, cx)).is_ok() && start;
                }
                Op::Report(key, report) => host.decide_unwritten(|registry, cx| registry.report(&id(&key.to_string()), report, cx)),
                Op::Cores(cores) => host.node.settings.cores_override = Cores::whole(cores),
                Op::Restart => host.restart(),
                Op::Pass(secs) => {
                    host.now = host.now.plus(Duration::from_secs(secs));
                    host.decide_unwritten(|registry, cx| registry.expire(cx));
                }
            }
            let offered = if host.node.settings.cores_override.is_zero() { Cores::whole(6) } else { host.node.settings.cores_override };
            if admitted {
                prop_assert!(host.registry.ledger().allocated().cores <= offered, "I1");
            }
            if written || !host.registry.must_commit() {
                host.registry.committed();
            } else {
                host.registry.roll_back();
                host.registry.committed();
                let after: Vec<_> = host.registry.records().cloned().collect();
                prop_assert_eq!(before, after, "a turn that was not written never was");
                prop_assert_eq!(host.registry.ledger().allocated(), allocated_before);
            }
            let reserved = host.registry.records().filter(|r| r.is_reserved());
            let sum = reserved.fold(Resources::ZERO, |sum, r| sum.saturating_add(r.origin().workspace.resources()));
            prop_assert_eq!(host.registry.ledger().allocated(), sum);
            for record in host.registry.records() {
                let state = record.status().state;
                prop_assert!(!record.is_reserved() || !state.has_ended(), "{state:?} holds a reservation");
                let live = matches!(state, SessionState::Running | SessionState::Paused | SessionState::Starting | SessionState::Pulling | SessionState::Pending);
                prop_assert!(!live || record.is_reserved(), "{state:?} runs without a reservation");
                prop_assert!(record.live().is_some() || state.has_ended(), "{state:?} and its container is destroyed");
            }
            let mut ports: Vec<u16> = host.registry.live_sessions().flat_map(|live| &live.ports).map(|p| p.host_port).collect();
            let all = ports.len();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(ports.len(), all, "no port is held twice");
        }
    }
}
