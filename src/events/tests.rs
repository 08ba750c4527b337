use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::task::{Parts, spawn};
use super::*;
use crate::clock::Clock;
use crate::types::{EventId, Name, NodeId, Severity, Timestamp, Who, WhoKind, sample};

const PATIENCE: Duration = Duration::from_secs(20);

fn me() -> NodeId {
    NodeId::from_bytes([1; 10])
}

fn start(directory: &Path, config: Config) -> (Handle, JoinHandle<()>) {
    spawn(Parts {
        directory: directory.join("events"),
        me: me(),
        name: "host-a".parse().unwrap(),
        version: "1.0.0".to_owned(),
        config: watch::channel(config).1,
        clock: Clock::system().unwrap(),
    })
}

fn volume(name: &str) -> Happening {
    Happening::volume_removed(name)
}

async fn all(handle: &Handle) -> Vec<Event> {
    handle.flush().await;
    handle.page(Page { limit: MAX_PAGE, ..Page::default() }).await.unwrap().events
}

fn kinds(events: &[Event]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn what_was_recorded_is_read_back_with_who_did_it_and_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, task) = start(dir.path(), Config::default());
    handle.record(volume("home"), Some(&sample::root()));
    handle.record(Happening::gpu_cordoned("GPU-1"), None);
    let events = all(&handle).await;
    assert_eq!(kinds(&events), [EventKind::GpuCordoned, EventKind::VolumeRemoved, EventKind::AgentStarted]);
    let removed = &events[1];
    assert_eq!((removed.id, removed.node.as_str()), (EventId { node: me(), seq: 2 }, "host-a"));
    assert_eq!(
        (&removed.who, removed.via.as_ref().map(Name::as_str)),
        (&Who::of(&sample::root(), &me()), Some("host-a"))
    );
    assert_eq!((events[0].who.kind, &events[0].via), (WhoKind::System, &None));
    assert_eq!(handle.counts().of(EventKind::VolumeRemoved), 1);
    handle.close().await;
    handle.record(volume("home"), None);
    handle.close().await;
    task.abort();

    let (handle, task) = start(dir.path(), Config::default());
    let events = all(&handle).await;
    assert_eq!(kinds(&events)[..2], [EventKind::AgentStarted, EventKind::AgentStopped]);
    assert_eq!(events[0].data["unclean"], false);
    assert_eq!(events.iter().map(|event| event.id.seq).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
    task.abort();
    let (handle, _task) = start(dir.path(), Config::default());
    let events = all(&handle).await;
    assert_eq!((events[0].kind, &events[0].data["unclean"]), (EventKind::AgentStarted, &true.into()), "it was killed");
}

#[tokio::test]
async fn the_files_are_scanned_without_their_owner_also_with_a_torn_line_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("events");
    let filter = EventFilter { kinds: [EventKind::AgentStarted].into(), ..EventFilter::default() };
    assert_eq!(scan(&files, &filter).unwrap(), [], "there is no directory");
    for _ in 0..2 {
        let (handle, task) = start(dir.path(), Config::default());
        handle.record(volume("home"), None);
        handle.flush().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    let file = std::fs::read_dir(&files).unwrap().next().unwrap().unwrap().path();
    let torn = std::fs::read(&file).unwrap();
    std::fs::write(&file, &torn[..torn.len() - 5]).unwrap();
    std::fs::write(files.join("notes.txt"), "of a person").unwrap();
    let found = scan(&files, &filter).unwrap();
    assert_eq!(found.iter().map(|event| event.id.seq).collect::<Vec<_>>(), [3, 1]);
    let everything = scan(&files, &EventFilter::default()).unwrap();
    assert_eq!(everything.len(), 3, "the last line is torn");
    let later = EventFilter { since: Some(Timestamp::from_millis(i64::MAX)), ..filter };
    assert_eq!(scan(&files, &later).unwrap(), []);
    assert_eq!(std::fs::read(&file).unwrap().len(), torn.len() - 5, "it only reads");
}

#[tokio::test]
async fn a_page_goes_on_before_the_place_where_the_last_one_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _task) = start(dir.path(), Config::default());
    for n in 0..10 {
        handle.record(volume(&n.to_string()), None);
    }
    handle.flush().await;
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let filter = EventFilter { kinds: [EventKind::VolumeRemoved].into(), ..EventFilter::default() };
        let page = handle.page(Page { filter, before, limit: 3 }).await.unwrap().events;
        let Some(last) = page.last() else { break };
        before = Some(last.place());
        seen.extend(page.into_iter().map(|event| event.id.seq));
    }
    assert_eq!(seen, (2..=11).rev().collect::<Vec<u64>>());
    let later = EventFilter { since: Some(Timestamp::from_millis(i64::MAX)), ..EventFilter::default() };
    assert_eq!(handle.page(Page { filter: later, before: None, limit: 3 }).await.unwrap().events, []);
}

#[tokio::test]
async fn who_follows_gets_every_event_after_its_number_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _task) = start(dir.path(), Config::default());
    for n in 0..20 {
        handle.record(volume(&n.to_string()), None);
    }
    handle.flush().await;
    for limit in [1, 3, 7, 100] {
        let (mut at, mut seen) = (0, Vec::new());
        while let Following { events, last: 21 } = handle.after(at, limit).await.unwrap()
            && let Some(last) = events.last()
        {
            assert!(events.len() <= limit);
            at = last.id.seq;
            seen.extend(events.iter().map(|event| event.id.seq));
        }
        assert_eq!(seen, (1..=21).collect::<Vec<u64>>(), "limit {limit}");
    }
    assert_eq!(handle.after(99, 5).await.unwrap(), Following { events: Vec::new(), last: 21 });
}

#[tokio::test]
async fn a_storm_is_cut_off_and_how_much_of_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _task) = start(dir.path(), Config::default());
    for n in 0..2000 {
        handle.record(volume(&n.to_string()), None);
    }
    let told = async {
        loop {
            let events = all(&handle).await;
            if let Some(dropped) = events.iter().find(|event| event.kind == EventKind::EventsDropped) {
                return (dropped.data["count"].as_u64().unwrap(), events.len());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (dropped, written) = timeout(PATIENCE, told).await.unwrap();
    assert!((500..600).contains(&written), "{written}");
    assert!(dropped >= 1400 && dropped <= handle.counts().dropped(), "{dropped}");
    assert_eq!(handle.counts().of(EventKind::VolumeRemoved), 2000, "dropped ones are counted");
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_stops_nobody_and_gets_its_events_later() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("events"), "a file where the directory belongs").unwrap();
    let (handle, _task) = start(dir.path(), Config::default());
    handle.record(volume("home"), None);
    assert_eq!(all(&handle).await, []);
    let (mut watch, mut trouble) = (handle.watch(), handle.trouble());
    timeout(PATIENCE, trouble.wait_for(Option::is_some)).await.unwrap().unwrap();
    std::fs::remove_file(dir.path().join("events")).unwrap();
    timeout(PATIENCE, watch.wait_for(|published| published.last == 2)).await.unwrap().unwrap();
    timeout(PATIENCE, trouble.wait_for(Option::is_none)).await.unwrap().unwrap();
    assert_eq!(kinds(&all(&handle).await), [EventKind::VolumeRemoved, EventKind::AgentStarted]);
}

fn program(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("hook");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn the_hook_gets_each_event_of_its_kinds_as_json_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let hook = program(dir.path(), "#!/bin/sh\ncat >> \"$(dirname \"$0\")/got\"\n");
    let config = Config { hook: Some(hook), hook_kinds: vec![EventKind::VolumeRemoved] };
    let (handle, _task) = start(dir.path(), config);
    for name in ["one", "two"] {
        handle.record(volume(name), Some(&sample::root()));
        handle.record(Happening::gpu_cordoned("GPU-1"), None);
    }
    let got = || std::fs::read_to_string(dir.path().join("got")).unwrap_or_default();
    until("both events", || got().lines().count() == 2).await;
    let events: Vec<Event> = got().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.iter().map(|event| event.id.seq).collect::<Vec<_>>(), [2, 4]);
    assert_eq!((events[0].who.to_string(), events[0].severity), ("root".to_owned(), Severity::Notice));
    assert_eq!(handle.counts().hook_failures(), 0);
}

#[tokio::test]
async fn a_hook_that_fails_or_is_missing_is_counted_and_one_that_does_not_read_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let hook = program(dir.path(), "#!/bin/sh\nexit 3\n");
    let config = Config { hook: Some(hook), hook_kinds: Vec::new() };
    let (handle, _task) = start(dir.path(), config);
    until("the failure", || handle.counts().hook_failures() == 1).await;
    let config = Config { hook: Some(dir.path().join("missing")), hook_kinds: Vec::new() };
    let (handle, _task) = start(dir.path(), config);
    until("the failure", || handle.counts().hook_failures() == 1).await;
    let hook = program(dir.path(), "#!/bin/sh\necho run >> \"$(dirname \"$0\")/runs\"\n");
    let config = Config { hook: Some(hook), hook_kinds: vec![EventKind::AgentStarted] };
    let (handle, _task) = start(dir.path(), config);
    until("the run", || dir.path().join("runs").exists()).await;
    assert_eq!(handle.counts().hook_failures(), 0);
}
