use std::time::Duration;

use super::*;
use crate::sessions::Command;
use crate::sessions::decide::Report;
use crate::sessions::decide::testing::{Host, admit, command, exit, id, live, record, running, saw, state, workspace};
use crate::sessions::lifecycle::Sight;
use crate::types::{SessionState, Workspace};

#[test]
fn time_ends_sessions() {
    let brief = Workspace { ttl_seconds: Some(60), idle_timeout_seconds: Some(30), ..workspace() };
    let mut host = running("k", brief);
    let pass = |host: &mut Host, secs| {
        host.now = host.now.plus(Duration::from_secs(secs));
        host.decide(|registry, cx| registry.expire(cx));
    };
    pass(&mut host, 29);
    command(&mut host, "k", Command::Keepalive { by: "bob".parse().unwrap() }).unwrap();
    pass(&mut host, 29);
    assert_eq!(state(&host, "k").0, SessionState::Running, "a keepalive begins the idle time anew");
    pass(&mut host, 1);
    assert_eq!(state(&host, "k").0, SessionState::Running, "it may be used now: its runner looks first");
    host.decide(|registry, cx| registry.report(&id("k"), Report::Idle, cx));
    assert_eq!(state(&host, "k"), (SessionState::Stopping, Some(EndReason::IdleExpired)));
    saw(&mut host, "k", Sight::Stopped(Some(exit(1, 143))));
    let message = live(&host, "k").status.message.clone().unwrap();
    assert!(message.starts_with("idle for 30s: "), "{message}");
    pass(&mut host, 1);
    assert_eq!(live(&host, "k").wish, Wish::Remove, "the ttl ends a stopped one too");
    assert_eq!(state(&host, "k").1, Some(EndReason::IdleExpired));
}

#[test]
fn a_session_that_stops_already_keeps_the_reason() {
    let mut host = running("k", Workspace { idle_timeout_seconds: Some(30), ..workspace() });
    host.now = host.now.plus(Duration::from_secs(30));
    host.decide(|registry, cx| registry.report(&id("k"), Report::Idle, cx));
    command(&mut host, "k", Command::Stop).unwrap();
    assert_eq!(state(&host, "k"), (SessionState::Stopping, Some(EndReason::IdleExpired)));
}

#[test]
fn an_idle_timeout_ends_only_what_is_still_due() {
    let idle = |host: &mut Host| host.decide(|registry, cx| registry.report(&id("k"), Report::Idle, cx));
    let mut host = running("k", Workspace { idle_timeout_seconds: Some(30), ..workspace() });
    host.now = host.now.plus(Duration::from_secs(30));
    command(&mut host, "k", Command::Keepalive { by: "bob".parse().unwrap() }).unwrap();
    idle(&mut host);
    assert_eq!(state(&host, "k").0, SessionState::Running, "kept alive while the runner looked");

    host.now = host.now.plus(Duration::from_secs(3600));
    host.decide(|registry, cx| registry.rebase_deadlines(cx));
    idle(&mut host);
    assert_eq!(state(&host, "k").0, SessionState::Running, "nobody saw whether it was used while the agent was away");
    host.now = host.now.plus(Duration::from_secs(30));
    idle(&mut host);
    assert_eq!(state(&host, "k"), (SessionState::Stopping, Some(EndReason::IdleExpired)));
}

#[test]
fn a_session_whose_idle_timeout_is_over_is_told_to_look_once() {
    let mut host = running("k", Workspace { idle_timeout_seconds: Some(30), ..workspace() });
    let due = |host: &mut Host, secs| {
        host.now = host.now.plus(Duration::from_secs(secs));
        host.registry.take_unpublished();
        host.decide(|registry, cx| registry.expire(cx));
        host.registry.take_unpublished().contains(&id("k"))
    };
    assert!(!due(&mut host, 29));
    assert!(due(&mut host, 1));
    assert!(!due(&mut host, 1), "its order is the same");
    host.decide(|registry, cx| registry.report(&id("k"), Report::Active, cx));
    assert!(!due(&mut host, 29));
    assert!(due(&mut host, 1));
}

#[test]
fn the_idle_end_is_shown_before_it_comes() {
    let mut host = running("k", Workspace { ttl_seconds: Some(3600), idle_timeout_seconds: Some(30), ..workspace() });
    let shown = |host: &Host| host.registry.record(&id("k")).unwrap().activity(host.now).idle_ends_at;
    assert_eq!(shown(&host), Some(host.now.wall.plus(Duration::from_secs(30))));
    host.now = host.now.plus(Duration::from_secs(10));
    host.decide(|registry, cx| registry.report(&id("k"), Report::Active, cx));
    assert_eq!(shown(&host), Some(host.now.wall.plus(Duration::from_secs(30))));
    command(&mut host, "k", Command::Stop).unwrap();
    assert_eq!(shown(&host), None);
}

#[test]
fn after_a_start_only_the_boot_clock_decides_about_deadlines() {
    let mut host = running("k", Workspace { ttl_seconds: Some(60), ..workspace() });
    admit(&mut host, "gone", workspace()).unwrap();
    command(&mut host, "gone", Command::Remove).unwrap();
    saw(&mut host, "gone", Sight::Gone);
    let reboot = host.now.plus(Duration::from_secs(10));
    host.now = crate::types::Moment { boot: crate::types::BootInstant::from_millis(5), boot_id: 2, ..reboot };
    host.decide_unwritten(|registry, cx| registry.rebase_deadlines(cx));
    assert_eq!(host.registry.changes().count(), 2, "both are written with the next change");
    // The wall clock jumps by a day.
    host.now.wall = host.now.wall.plus(Duration::from_secs(86_400));
    assert_eq!(live(&host, "k").ttl.unwrap().remaining(host.now), Duration::from_secs(50));
    let Record::Tombstone(gone) = record(&host, "gone") else { panic!("its container is destroyed") };
    assert_eq!(gone.forget.remaining(host.now), Duration::from_secs(3590));
}
