//! The owner, its runners and its journal together, on an engine in memory: every test may kill the
//! daemon anywhere and start it again on the same disk and engine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::decide::testing::{START, cluster, config, id, node_id, node_state, offer, workspace};
use super::*;
use crate::capacity;
use crate::clock::Clock;
use crate::events::recorder::Recorder;
use crate::node::ClusterSigns;
use crate::runtime::Connected;
use crate::runtime::fake::{FakeEngine, STEPS, When};
use crate::types::{Cores, EndReason, EventKind, Role, SessionState, sample};

/// Longer than anything here takes; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    handle: Handle,
    task: JoinHandle<()>,
    told: Mutex<Recorder>,
    signs: watch::Sender<Arc<ClusterSigns>>,
    _watches: (watch::Sender<Arc<crate::node::State>>, watch::Sender<Arc<capacity::Report>>),
}

struct World {
    engine: Arc<FakeEngine>,
    clock: Clock,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { engine: FakeEngine::new(node_id()), clock: Clock::manual(START), directory }
    }

    /// Starts a daemon, and waits until the engine has listed its containers.
    async fn start(&self) -> Daemon {
        let (journal, records) = Journal::open(self.directory.path(), START.wall).unwrap();
        self.start_with(journal, records).await
    }

    async fn start_with(&self, journal: Journal, records: Vec<Record>) -> Daemon {
        let report = capacity::Report {
            physical: Resources::new(Cores::whole(6), Bytes::gib(6), 0),
            engine: None,
            gpus: Arc::default(),
            gpus_withheld: None,
            utilized: None,
            disks: Vec::new(),
            swap: None,
            load: None,
            pressure: None,
            dev: false,
        };
        let (node, node_watch) = watch::channel(Arc::new(node_state()));
        let (capacity, capacity_watch) = watch::channel(Arc::new(report));
        let (signs, signs_watch) = watch::channel(Arc::default());
        let (events, recorder) = crate::events::recorder::recorder();
        let (handle, task) = task::spawn(task::Parts {
            config: watch::channel(config()).1,
            cluster: cluster(),
            node_id: node_id(),
            journal,
            records,
            fence: None,
            incarnation: 1,
            runtime: self.engine.clone(),
            images: self.engine.clone(),
            node: node_watch,
            capacity: capacity_watch,
            gpus: crate::gpu::Handle::of_nobody(),
            signs: signs_watch,
            events,
            clock: self.clock.clone(),
        });
        tokio::time::timeout(PATIENCE, handle.ready().wait_for(|ready| *ready)).await.unwrap().unwrap();
        Daemon { handle, task, told: Mutex::new(recorder), signs, _watches: (node, capacity) }
    }
}

impl Daemon {
    /// As kill -9 does: nothing gets to clean up.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn until(&self, what: &str, holds: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let mut watch = self.handle.watch();
        let seen = tokio::time::timeout(PATIENCE, watch.wait_for(holds)).await;
        seen.unwrap_or_else(|_| panic!("never {what}: {:?}", self.handle.snapshot())).unwrap().clone()
    }

    async fn until_state(&self, key: &str, state: SessionState) {
        let id = id(key);
        self.until(&format!("{key} {state}"), |s| s.sessions.get(&id).is_some_and(|s| s.state == state)).await;
    }

    async fn until_gone(&self, key: &str) {
        let id = id(key);
        self.until(&format!("{key} gone"), |s| s.gone.contains(&id)).await;
    }

    async fn create(&self, key: &str) -> Result<Admitted, Error> {
        self.handle.admit(offer(key, workspace())).await
    }

    /// What the event log was told since the last call, and who did it.
    fn told(&self) -> Vec<(EventKind, Option<Actor>)> {
        let told = self.told.lock().unwrap().take();
        told.into_iter().map(|(happening, by)| (happening.kind, by)).collect()
    }

    async fn command(&self, key: &str, command: Command) -> Result<Session, Error> {
        self.handle.command(id(key), command, crate::types::sample::root()).await
    }
}

#[tokio::test]
async fn a_session_lives_its_whole_life() {
    let world = World::new();
    let daemon = world.start().await;
    let admitted = daemon.create("k").await.unwrap();
    assert!(!admitted.replayed);
    daemon.until_state("k", SessionState::Running).await;
    assert!(daemon.create("k").await.unwrap().replayed);
    for (command, state) in [
        (Command::Pause, SessionState::Paused),
        (Command::Resume, SessionState::Running),
        (Command::Stop, SessionState::Stopped),
        (Command::Start, SessionState::Running),
    ] {
        daemon.command("k", command).await.unwrap();
        daemon.until_state("k", state).await;
    }
    world.engine.exit(&id("k"), 0).await;
    daemon.until_state("k", SessionState::Stopped).await;
    daemon.command("k", Command::Remove).await.unwrap();
    daemon.until_gone("k").await;
    assert!(world.engine.containers().is_empty());
    assert_eq!(daemon.handle.snapshot().allocated, Resources::ZERO);
    assert_eq!(world.engine.calls("create"), 1);
}

/// I6 and I7: killed before or after any step took effect, the next daemon brings it to its end, once.
#[tokio::test]
async fn a_crash_at_any_step_loses_nothing_and_makes_nothing_twice() {
    for step in STEPS {
        for when in [When::Before, When::After] {
            let world = World::new();
            let daemon = world.start().await;
            let at = format!("{step} {when:?}");
            let prepared = !matches!(step, "image" | "create" | "start");
            if !prepared {
                world.engine.hold(step, when);
            }
            daemon.create("k").await.unwrap();
            if prepared {
                daemon.until_state("k", SessionState::Running).await;
                if step == "resume" {
                    daemon.command("k", Command::Pause).await.unwrap();
                    daemon.until_state("k", SessionState::Paused).await;
                }
                world.engine.hold(step, when);
                let command = match step {
                    "pause" => Command::Pause,
                    "resume" => Command::Resume,
                    "stop" => Command::Stop,
                    _ => Command::Remove,
                };
                daemon.command("k", command).await.unwrap();
            }
            tokio::time::timeout(PATIENCE, world.engine.until_held()).await.expect(&at);
            daemon.kill().await;
            world.engine.let_go();

            let daemon = world.start().await;
            match step {
                "pause" => daemon.until_state("k", SessionState::Paused).await,
                "stop" => daemon.until_state("k", SessionState::Stopped).await,
                "remove" => daemon.until_gone("k").await,
                _ => daemon.until_state("k", SessionState::Running).await,
            }
            let containers = usize::from(step != "remove");
            assert_eq!(world.engine.containers().len(), containers, "{at}");
            let reserved = usize::from(!matches!(step, "stop" | "remove"));
            assert_eq!(daemon.handle.snapshot().reserved.len(), reserved, "{at}");
            assert!(daemon.create("k").await.unwrap().replayed, "{at}: its key still means it");
            daemon.kill().await;
        }
    }
}

#[tokio::test]
async fn sessions_that_cannot_start_fail_and_free_what_they_held() {
    let world = World::new();
    let daemon = world.start().await;
    let refuse = runtime::Error::Refused("no such program".to_owned());
    let image = runtime::Error::start(runtime::Fault::Registry, "no such image");
    for (key, step, error, reason) in
        [("a", "start", refuse, EndReason::StartFailed), ("b", "image", image, EndReason::ImageFailed)]
    {
        world.engine.refuse(step, error);
        daemon.create(key).await.unwrap();
        let unplaced = id(key);
        daemon
            .until("it waits for another host", |s| {
                s.since(None).held.iter().any(|h| h.unplaced && h.session.id == unplaced)
            })
            .await;
        let ballot = Ballot { term: 1, node: node_id() };
        let Claimed { claim, .. } = daemon.handle.claim(ballot, id(key)).await.unwrap();
        daemon.command(key, Command::GiveUp { claim }).await.unwrap();
        daemon.until_state(key, SessionState::Failed).await;
        let session = daemon.handle.snapshot().sessions[&id(key)].clone();
        assert_eq!(session.end_reason, Some(reason));
        assert!(session.message.as_ref().unwrap().contains("no such"));
    }
    assert_eq!(daemon.handle.snapshot().allocated, Resources::ZERO);
    assert_eq!(daemon.handle.snapshot().failing_starts, 2);
}

#[tokio::test]
async fn a_container_removed_behind_our_back_is_lost() {
    let world = World::new();
    let daemon = world.start().await;
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    world.engine.vanish(&id("k")).await;
    daemon.until_state("k", SessionState::Failed).await;
    assert_eq!(daemon.handle.snapshot().sessions[&id("k")].end_reason, Some(EndReason::Lost));
}

#[tokio::test]
async fn while_the_engine_is_down_sessions_are_unknown_and_nothing_is_admitted() {
    let world = World::new();
    let daemon = world.start().await;
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    world.engine.go_down();
    daemon.until_state("k", SessionState::Unknown).await;
    let Err(Error::Refused(refused)) = daemon.create("l").await else { panic!("the engine is down") };
    assert_eq!(refused.reason, crate::types::Reason::RuntimeUnavailable);
    assert_eq!(world.engine.calls("stop"), 0, "never a death sentence");
}

#[tokio::test]
async fn a_pull_is_given_up_when_nobody_wants_the_session_any_more() {
    let world = World::new();
    let daemon = world.start().await;
    world.engine.hold("image", When::Before);
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Pulling).await;
    daemon.command("k", Command::Remove).await.unwrap();
    daemon.until_gone("k").await;
    assert_eq!(world.engine.calls("create"), 0);
}

#[tokio::test]
async fn without_a_journal_sessions_are_adopted_from_labels() {
    let world = World::new();
    let daemon = world.start().await;
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    daemon.kill().await;
    std::fs::write(world.directory.path().join("sessions.redb"), b"not a database").unwrap();
    let daemon = world.start().await;
    daemon.until_state("k", SessionState::Running).await;
    let snapshot = daemon.handle.snapshot();
    assert_eq!(snapshot.allocated.cores, Cores::whole(1));
    assert!(snapshot.journal_rebuilt.is_some());
    daemon.command("k", Command::Remove).await.unwrap();
    daemon.until_gone("k").await;
}

#[tokio::test]
async fn a_thousand_creates_at_once_are_all_answered() {
    let world = World::new();
    let daemon = world.start().await;
    let creates = (0..1000).map(|n| {
        let handle = daemon.handle.clone();
        tokio::spawn(async move { handle.admit(offer(&n.to_string(), workspace())).await })
    });
    let mut admitted = 0;
    for create in creates.collect::<Vec<_>>() {
        match create.await.unwrap() {
            Ok(_) => admitted += 1,
            Err(Error::Refused(_) | Error::Busy) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(admitted, 6, "the host has six cores");
    assert_eq!(daemon.handle.snapshot().allocated.cores, Cores::whole(6));
}

/// I9: what cannot be written was never asked.
#[tokio::test]
async fn a_disk_that_is_full_makes_no_session() {
    let world = World::new();
    let (journal, switch) = Journal::failing();
    let daemon = world.start_with(journal, Vec::new()).await;
    switch.set(true);
    let refused = daemon.create("k").await.unwrap_err();
    assert!(refused.to_string().contains("data directory /data is full"), "{refused}");
    assert!(daemon.handle.snapshot().sessions.is_empty());
    assert_eq!(world.engine.calls("image"), 0);
    let mut snapshot = daemon.handle.watch();
    assert!(snapshot.borrow_and_update().data_dir_full.is_some());
    switch.set(false);
    snapshot.wait_for(|snapshot| snapshot.data_dir_full.is_none()).await.unwrap();
    assert!(!daemon.create("k").await.unwrap().replayed);
    daemon.until_state("k", SessionState::Running).await;
}

#[tokio::test]
async fn a_runner_that_panics_is_replaced() {
    let world = World::new();
    let daemon = world.start().await;
    world.engine.panic_once("create");
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    assert_eq!(world.engine.calls("create"), 2);
}

#[tokio::test]
async fn a_host_whose_id_is_there_twice_admits_nothing() {
    let world = World::new();
    let daemon = world.start().await;
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    daemon.signs.send_modify(|signs| Arc::make_mut(signs).duplicate = Some("192.0.2.1:7482".to_owned()));
    let Err(Error::Refused(refused)) = daemon.create("l").await else { panic!("it is not the only one") };
    assert_eq!(refused.reason, crate::types::Reason::DuplicateNodeId);
    assert_eq!(daemon.handle.snapshot().sessions[&id("k")].state, SessionState::Running, "what is there goes on");
    daemon.signs.send_modify(|signs| Arc::make_mut(signs).duplicate = None);
    assert!(!daemon.create("l").await.unwrap().replayed);
}

/// I3: whoever led before is not listened to any more.
#[tokio::test]
async fn a_host_admits_nothing_under_a_lower_ballot() {
    let world = World::new();
    let daemon = world.start().await;
    let of_term = |key: &str, term| {
        let offer = offer(key, workspace());
        Admit { ballot: crate::types::Ballot { term, ..offer.ballot }, ..offer }
    };
    daemon.handle.fence(of_term("k", 5).ballot).await.unwrap();
    assert!(matches!(daemon.handle.admit(of_term("k", 4)).await, Err(Error::Stale(stale)) if stale.highest.term == 5));
    assert!(daemon.handle.fence(of_term("k", 4).ballot).await.is_err());
    assert!(daemon.handle.admit(of_term("k", 5)).await.is_ok());
    assert!(daemon.handle.admit(of_term("l", 6)).await.is_ok(), "a higher one raises the fence");
    assert!(daemon.handle.admit(of_term("m", 5)).await.is_err());
}

#[tokio::test]
async fn the_event_log_is_told_of_a_life_and_of_who_did_what() {
    use EventKind::{
        SessionCreated, SessionEnded, SessionExtended, SessionPaused, SessionRemoved, SessionResumed, SessionStarted,
    };
    let world = World::new();
    let daemon = world.start().await;
    let (ci, root) = (sample::token_actor(Role::Operate), sample::root());
    let mut with_an_end = workspace();
    with_an_end.ttl_seconds = Some(60);
    let mut asked = offer("k", with_an_end);
    asked.asked.by = Some(ci.clone());
    daemon.handle.admit(asked).await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    assert_eq!(daemon.told(), [(SessionCreated, Some(ci.clone())), (SessionStarted, Some(ci))]);
    for (command, state, told) in [
        (Command::Pause, SessionState::Paused, SessionPaused),
        (Command::Resume, SessionState::Running, SessionResumed),
        (Command::Extend { ttl: Duration::from_secs(3600) }, SessionState::Running, SessionExtended),
        (Command::Stop, SessionState::Stopped, SessionEnded),
        (Command::Start, SessionState::Running, SessionStarted),
    ] {
        daemon.command("k", command).await.unwrap();
        daemon.until_state("k", state).await;
        assert_eq!(daemon.told(), [(told, Some(root.clone()))]);
    }
    daemon.kill().await;

    let daemon = world.start().await;
    assert_eq!(daemon.told(), [], "what is known from before the start is no news");
    daemon.command("k", Command::Remove).await.unwrap();
    daemon.until_gone("k").await;
    assert_eq!(daemon.told(), [(SessionEnded, Some(root.clone())), (SessionRemoved, Some(root))]);
}

#[tokio::test]
async fn an_end_that_nobody_asked_for_is_of_the_node() {
    let world = World::new();
    let daemon = world.start().await;
    daemon.create("k").await.unwrap();
    daemon.until_state("k", SessionState::Running).await;
    daemon.told();
    world.engine.exit(&id("k"), 0).await;
    daemon.until_state("k", SessionState::Stopped).await;
    assert_eq!(daemon.told(), [(EventKind::SessionEnded, None)]);
}

#[tokio::test]
async fn a_session_keeps_the_actor_who_asked_for_it() {
    let world = World::new();
    let daemon = world.start().await;
    let ci = crate::types::sample::token_actor(crate::types::Role::Operate);
    let mut asked = offer("k", workspace());
    asked.asked.by = Some(ci.clone());
    daemon.handle.admit(asked).await.unwrap();
    daemon.command("k", Command::Stop).await.unwrap();
    daemon.until_state("k", SessionState::Stopped).await;
    daemon.kill().await;
    let (_journal, records) = Journal::open(world.directory.path(), START.wall).unwrap();
    assert_eq!(records[0].origin().created_by, Some(ci), "the actor that stopped it did not create it");
}

#[tokio::test]
async fn an_idle_session_is_stopped_and_one_that_is_used_is_not() {
    let world = World::new();
    let daemon = world.start().await;
    let workspace = Workspace { idle_timeout_seconds: Some(30), ..workspace() };
    daemon.handle.admit(offer("k", workspace)).await.unwrap();
    daemon.until_state("k", SessionState::Running).await;

    world.engine.set_connected(Connected::Yes);
    world.clock.advance(Duration::from_secs(31));
    let (id, used) = (id("k"), world.clock.now().wall);
    let snapshot = daemon.until("used", |s| s.activities.get(&id).is_some_and(|a| a.last_activity_at == used)).await;
    assert_eq!(snapshot.sessions[&id].state, SessionState::Running);
    assert_eq!(snapshot.document(&id).unwrap().expires_at, Some(used.plus(Duration::from_secs(30))));

    world.engine.set_connected(Connected::No);
    world.clock.advance(Duration::from_secs(31));
    daemon.until_state("k", SessionState::Stopped).await;
    let ended = daemon.handle.snapshot().document(&id).unwrap();
    assert_eq!((ended.end_reason, ended.expires_at), (Some(EndReason::IdleExpired), None));
}
