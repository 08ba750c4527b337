use super::*;
use crate::sessions::decide::Report;
use crate::sessions::decide::testing::{
    Host, admit, command, exit, found, id, live, node_id, run, running, saw, state, workspace,
};
use crate::sessions::lifecycle::Sight;
use crate::sessions::{Command, Error};

fn engine(host: &mut Host, up: bool) -> bool {
    let engine = if up { EngineState::Up { epoch: None } } else { EngineState::Down };
    host.decide(|registry, cx| registry.engine_is(&engine, cx))
}

fn lists(host: &mut Host, container: Container) {
    host.decide(|registry, cx| registry.reconcile(vec![found("k", node_id(), container)], cx.now.boot, cx));
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

fn unseen(host: &mut Host, key: &str, why: &str) {
    host.decide(|registry, cx| registry.report(&id(key), Report::Unseen(why.to_owned()), cx));
}

fn why_unseen<'a>(host: &'a Host, key: &str) -> Option<&'a str> {
    host.registry.why_unseen(&id(key))
}

#[test]
fn one_session_that_the_engine_does_not_show_is_unseen_alone_and_keeps_its_reservation() {
    let mut host = running("k", workspace());
    admit(&mut host, "other", workspace()).unwrap();
    unseen(&mut host, "k", "its container is dead");
    assert_eq!(why_unseen(&host, "k"), Some("its container is dead"));
    assert!(!host.registry.is_unseen(&id("other")));
    assert!(live(&host, "k").reserved);
    assert!(live(&host, "k").order(true).unwrap().unseen);
    saw(&mut host, "k", Sight::Running(run(1)));
    assert!(!host.registry.is_unseen(&id("k")));
    // An end that is seen after it was unseen alone is its own: the engine was there.
    unseen(&mut host, "k", "its container is dead");
    saw(&mut host, "k", Sight::Ended(exit(1, 3)));
    assert_eq!(state(&host, "k"), (SessionState::Failed, Some(EndReason::Exited)));
}

#[test]
fn while_the_engine_is_away_no_session_has_a_reason_of_its_own() {
    let mut host = running("k", workspace());
    unseen(&mut host, "k", "a look failed");
    engine(&mut host, false);
    unseen(&mut host, "k", "no answer");
    assert!(host.registry.is_unseen(&id("k")));
    assert_eq!(why_unseen(&host, "k"), None);
    engine(&mut host, true);
    unseen(&mut host, "k", "no answer");
    assert_eq!(why_unseen(&host, "k"), None, "it was lost with its engine");
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    assert_eq!(state(&host, "k").0, SessionState::Starting, "its engine took it down");
}

fn engine_of(host: &mut Host, epoch: &str) -> bool {
    let engine = EngineState::Up { epoch: Some(epoch.to_owned()) };
    host.decide(|registry, cx| registry.engine_is(&engine, cx))
}

#[test]
fn an_engine_that_restarts_unnoticed_is_told_by_its_epoch() {
    let mut host = Host::new();
    engine_of(&mut host, "one");
    admit(&mut host, "k", workspace()).unwrap();
    saw(&mut host, "k", Sight::Running(run(1)));
    assert!(!engine_of(&mut host, "one"));
    assert!(!host.registry.is_unseen(&id("k")));
    assert!(engine_of(&mut host, "two"), "it was never seen down");
    assert!(host.registry.is_unseen(&id("k")));
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    assert_eq!(state(&host, "k").0, SessionState::Starting);
}

#[test]
fn an_engine_that_restarts_while_the_agent_is_stopped_is_told_by_the_records() {
    let ends = |epoch: &str, seen_first: bool| {
        let mut host = Host::new();
        engine_of(&mut host, "one");
        admit(&mut host, "k", workspace()).unwrap();
        saw(&mut host, "k", Sight::Running(run(1)));
        host.restart();
        host.registry.engine_up = false;
        engine_of(&mut host, epoch);
        if seen_first {
            saw(&mut host, "k", Sight::Running(run(1)));
        }
        saw(&mut host, "k", Sight::Ended(exit(1, 0)));
        state(&host, "k").0
    };
    assert_eq!(ends("one", false), SessionState::Stopped, "it ended by itself");
    assert_eq!(ends("two", false), SessionState::Starting, "the engine's restart ended it");
    assert_eq!(ends("two", true), SessionState::Stopped, "it outlived the restart and ended by itself");
}

#[test]
fn nothing_is_admitted_before_the_engine_has_listed_its_containers() {
    let mut host = Host::new();
    host.registry.is_listed = false;
    let Err(Error::Refused(refused)) = admit(&mut host, "k", workspace()) else { panic!("more may run than is known") };
    assert_eq!(refused.reason, crate::types::Reason::RuntimeUnavailable);
    host.decide(|registry, cx| registry.reconcile(Vec::new(), cx.now.boot, cx));
    assert_eq!(admit(&mut host, "k", workspace()), Ok(false));
}

#[test]
fn a_container_that_the_engine_lists_and_does_not_describe_is_adopted_and_counts() {
    let mut host = Host::new();
    let unknown = Found { container: None, ..found("k", node_id(), Container::Created) };
    host.decide(|registry, cx| registry.reconcile(vec![unknown], cx.now.boot, cx));
    assert_eq!((live(&host, "k").wish, live(&host, "k").reserved), (Wish::Run, true));
}

#[test]
fn a_container_that_was_removed_while_its_session_was_stopped_is_noticed() {
    let mut host = running("k", workspace());
    saw(&mut host, "k", Sight::Ended(exit(1, 0)));
    let asked_at = host.now.boot;
    host.decide(|registry, cx| registry.reconcile(Vec::new(), asked_at, cx));
    assert!(!live(&host, "k").container_removed, "the engine was asked before the session ended");
    pass(&mut host, 1);
    host.decide(|registry, cx| registry.reconcile(Vec::new(), cx.now.boot, cx));
    assert!(live(&host, "k").container_removed);
    assert_eq!(state(&host, "k").0, SessionState::Stopped);
    assert!(matches!(command(&mut host, "k", Command::Start), Err(Error::Conflict(why)) if why.contains("files")));
}

/// An engine whose containers other programs rename and copy.
mod whatever_the_engine_lists {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::runtime::container::Renamed;
    use crate::sessions::lifecycle;

    #[derive(Debug, Clone)]
    struct Made {
        session: u8,
        renamed: bool,
        state: Container,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit(u8),
        Command(u8, Command),
        Rename(usize),
        Copy(usize),
        Exit(usize),
        /// The engine's list, in an order made of this number, and without some states.
        List(u64),
        Run(u8),
        LoseJournal,
    }

    fn step() -> impl Strategy<Value = Step> {
        let command = prop_oneof![Just(Command::Stop), Just(Command::Start), Just(Command::Remove)];
        prop_oneof![
            1 => (0..3u8).prop_map(Step::Admit),
            1 => (0..3u8, command).prop_map(|(k, command)| Step::Command(k, command)),
            1 => any::<usize>().prop_map(Step::Rename),
            1 => any::<usize>().prop_map(Step::Copy),
            1 => any::<usize>().prop_map(Step::Exit),
            1 => any::<u64>().prop_map(Step::List),
            4 => (0..3u8).prop_map(Step::Run),
            1 => Just(Step::LoseJournal),
        ]
    }

    #[derive(Default)]
    struct World {
        containers: BTreeMap<String, Made>,
        made: u32,
        runs: u32,
    }

    impl World {
        fn create(&mut self, session: u8, renamed: bool) -> String {
            self.made += 1;
            let id = format!("c{}", self.made);
            self.containers.insert(id.clone(), Made { session, renamed, state: Container::Created });
            id
        }

        fn picked(&mut self, n: usize) -> Option<&mut Made> {
            let n = n.checked_rem(self.containers.len())?;
            self.containers.values_mut().nth(n)
        }

        fn list(&self, seed: u64) -> Vec<Found> {
            let mut listed: Vec<Found> = self.containers.iter().map(|(id, made)| self.found(id, made, seed)).collect();
            let at = usize::try_from(seed % 7).unwrap_or(0).checked_rem(listed.len()).unwrap_or(0);
            listed.rotate_left(at);
            listed
        }

        fn found(&self, id: &str, made: &Made, seed: u64) -> Found {
            let key = made.session.to_string();
            let renamed = made.renamed.then(|| Renamed { name: id.to_owned(), expected: key.clone() });
            let described = !(seed + u64::try_from(id.len()).unwrap_or(0)).is_multiple_of(3);
            let container = described.then(|| made.state.clone());
            Found { container_id: id.to_owned(), renamed, container, ..found(&key, node_id(), Container::Created) }
        }

        /// The session's container, as a runtime finds it.
        fn of(&self, session: u8, recorded: Option<&String>) -> Option<String> {
            match recorded {
                Some(id) => self.containers.contains_key(id).then(|| id.clone()),
                None => {
                    let ours = self.containers.iter().filter(|(_, made)| made.session == session);
                    ours.map(|(id, made)| self.found(id, made, 1))
                        .min_by_key(Found::rank)
                        .map(|found| found.container_id)
                }
            }
        }

        /// One step of a session's runner.
        fn step(&mut self, host: &mut Host, session: u8) {
            let key = session.to_string();
            let Some(live) = host.registry.record(&id(&key)).and_then(Record::live) else { return };
            let Some(order) = live.order(host.registry.is_out_of_sight(&id(&key))) else { return };
            let container = self.of(session, live.status.container_id.as_ref());
            let state = container.as_ref().map_or(Container::Absent, |id| self.containers[id].state.clone());
            let is =
                |world: &mut Self, state| world.containers.get_mut(container.as_ref().unwrap()).unwrap().state = state;
            match lifecycle::next(&order, &state) {
                lifecycle::Step::Prepare => {
                    let container_id = self.create(session, false);
                    let report = Report::Created { container_id };
                    host.decide(|registry, cx| registry.report(&id(&key), report, cx));
                }
                lifecycle::Step::Start => {
                    self.runs += 1;
                    is(self, Container::Running(run(self.runs)));
                }
                lifecycle::Step::Stop => {
                    let (Container::Running(run) | Container::Paused(run)) = state else { unreachable!() };
                    is(self, Container::Exited(crate::runtime::Exit::new(run, 143)));
                }
                lifecycle::Step::Remove => drop(self.containers.remove(container.as_ref().unwrap())),
                lifecycle::Step::Tell(sight) => saw(host, &key, sight),
                _ => {}
            }
        }
    }

    proptest! {
        /// I7: every container with our labels has a record. I8: no reservation is freed while its process runs.
        #[test]
        fn no_container_is_without_a_record_and_none_runs_without_its_reservation(
            steps in proptest::collection::vec(step(), 1..80)
        ) {
            let (mut host, mut world) = (Host::new(), World::default());
            for step in steps {
                match step {
                    Step::Admit(k) => drop(admit(&mut host, &k.to_string(), workspace())),
                    Step::Command(k, what) => drop(command(&mut host, &k.to_string(), what)),
                    Step::Rename(n) => world.picked(n).into_iter().for_each(|made| made.renamed = true),
                    Step::Copy(n) => {
                        if let Some(session) = world.picked(n).map(|made| made.session) {
                            world.create(session, true);
                        }
                    }
                    Step::Exit(n) => {
                        if let Some(made) = world.picked(n) && let Container::Running(run) = made.state.clone() {
                            made.state = Container::Exited(crate::runtime::Exit::new(run, 3));
                        }
                    }
                    Step::List(seed) => host.decide(|registry, cx| registry.reconcile(world.list(seed), cx.now.boot, cx)),
                    Step::Run(k) => world.step(&mut host, k),
                    Step::LoseJournal => {
                        host = Host::new();
                        host.decide(|registry, cx| registry.reconcile(world.list(1), cx.now.boot, cx));
                    }
                }
                let held = |made: &Made| host.registry.record(&id(&made.session.to_string()));
                for (id, made) in &world.containers {
                    let Some(Record::Live(live)) = held(made) else { continue };
                    let runs = matches!(made.state, Container::Running(_));
                    let is_its = live.status.container_id.as_ref() == Some(id);
                    prop_assert!(!(runs && is_its) || live.reserved, "{id} runs without its reservation");
                }
            }
            host.decide(|registry, cx| registry.reconcile(world.list(1), cx.now.boot, cx));
            for made in world.containers.values() {
                prop_assert!(host.registry.record(&id(&made.session.to_string())).is_some(), "{made:?} has no record");
            }
        }
    }
}
