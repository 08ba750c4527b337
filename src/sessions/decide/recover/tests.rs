use super::*;
use crate::sessions::Command;
use crate::sessions::decide::testing::{
    Host, admit, command, exit, found, id, live, node_id, run, running, saw, state, workspace,
};
use crate::sessions::lifecycle::Sight;

fn engine(host: &mut Host, up: bool) -> bool {
    host.decide(|registry, cx| registry.engine_is(up, cx))
}

fn lists(host: &mut Host, container: Container) {
    host.decide(|registry, cx| registry.reconcile(vec![found("k", node_id(), container)], cx));
}

fn pass(host: &mut Host, secs: u64) {
    host.now = host.now.plus(Duration::from_secs(secs));
}

#[test]
fn only_a_change_of_the_engine_is_news() {
    let mut host = Host::new();
    host.registry.engine_up = false;
    let news = [false, false, true, true, false].map(|up| engine(&mut host, up));
    assert_eq!(news, [true, false, true, false, true], "one that was never up is news once");
}

#[test]
fn a_session_is_seen_again_once_an_engine_that_is_up_lists_it_alive() {
    let mut host = running("k", workspace());
    admit(&mut host, "never ran", workspace()).unwrap();
    assert!(!host.registry.is_unseen(&id("k")));
    engine(&mut host, false);
    assert!(host.registry.is_unseen(&id("never ran")));
    lists(&mut host, Container::Running(run(1)));
    engine(&mut host, true);
    assert!(host.registry.is_unseen(&id("k")), "that list was older than the engine's return");
    assert!(!host.registry.is_unseen(&id("never ran")), "it had no container to lose");
    lists(&mut host, Container::Exited(exit(1, 0)));
    assert!(host.registry.is_unseen(&id("k")));
    lists(&mut host, Container::Running(run(1)));
    assert!(!host.registry.is_unseen(&id("k")));
}

#[test]
fn an_old_list_does_not_stop_a_session_that_has_ended() {
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    lists(&mut host, Container::Running(run(1)));
    assert_eq!(state(&host, "k").0, SessionState::Stopped);
    lists(&mut host, Container::Running(run(2)));
    assert_eq!(state(&host, "k").0, SessionState::Stopping, "somebody else started it");
}

#[test]
fn an_engine_that_returns_starts_the_sessions_that_it_took_down_and_no_others() {
    let starts = |ends: fn(&mut Host)| {
        let mut host = running("k", workspace());
        ends(&mut host);
        engine(&mut host, false);
        pass(&mut host, 5);
        engine(&mut host, true);
        state(&host, "k").0 == SessionState::Starting
    };
    let exits = |host: &mut Host| saw(host, "k", Sight::Ended(exit(1, 137)));
    assert!(starts(exits), "it ended just before");
    assert!(!starts(|host| {
        saw(host, "k", Sight::Ended(exit(1, 137)));
        pass(host, 21);
    }));
    assert!(!starts(|host| {
        command(host, "k", Command::Stop).unwrap();
        saw(host, "k", Sight::Stopped(Some(exit(1, 143))));
    }));
    assert!(!starts(|host| {
        saw(host, "k", Sight::Ended(exit(1, 137)));
        host.registry.change(&id("k")).unwrap().boot_id = 0;
    }));
}

#[test]
fn a_session_that_has_ended_is_not_unseen_when_the_engine_returns() {
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    pass(&mut host, 60);
    engine(&mut host, false);
    engine(&mut host, true);
    assert!(!host.registry.is_unseen(&id("k")));
    assert_eq!(live(&host, "k").wish, Wish::Stop);
}
