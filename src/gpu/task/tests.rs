use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::gpu::answer::{Closed, Found, Inventory, Measured, Readings};
use crate::gpu::known::{Known, Records};
use crate::gpu::listed::Listed;
use crate::gpu::{Driver, Processes, Reading};
use crate::types::{Timestamp, sample};

/// Far above what a loaded machine takes for a few processes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program in the place of the agent's, which answers with the files `inventory`, `readings` and `processes` of its
/// directory, and hangs while there is a file `hang`. It appends a line to `started` at each start.
const CHILD: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 1
echo "$$ $*" >> started
while read -r ask; do
    while [ -e hang ]; do sleep 0.05; done
    ask=${ask#\"}
    cat "${ask%\"}" || exit 1
done
"#;

struct Fixture {
    directory: tempfile::TempDir,
    config: watch::Sender<Config>,
    listed: watch::Sender<List>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("child");
        // Another process writes it: this one could fork while it holds the file, which could not be executed then.
        let write = "printf '%s' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let written = std::process::Command::new("sh").args(["-c", write, "sh", CHILD]).arg(&program).status().unwrap();
        assert!(written.success());
        let fixture = Self { directory, config: watch::channel(Config::default()).0, listed: watch::channel(None).0 };
        fixture.devices(&["b", "a"]);
        fixture
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn says(&self, ask: &str, answer: &Answer) {
        let mut line = serde_json::to_vec(answer).unwrap();
        line.push(b'\n');
        // A child that reads meanwhile finds the one or the other.
        std::fs::write(self.path().join("new"), line).unwrap();
        std::fs::rename(self.path().join("new"), self.path().join(ask)).unwrap();
    }

    fn devices(&self, uuids: &[&str]) {
        let found = |uuid: &&str| Found { uuid: Some((*uuid).to_owned()), ..Found::default() };
        let devices = uuids.iter().map(found).collect();
        self.says("inventory", &Answer::Inventory(Inventory { devices, ..Inventory::default() }));
        let read = |uuid: &&str| ((*uuid).to_owned(), Measured::Read(Box::default()));
        let readings = Readings { devices: uuids.iter().map(read).collect(), xids: Vec::new() };
        self.says("readings", &Answer::Readings(readings));
        let listed = |uuid: &&str| ((*uuid).to_owned(), (*uuid == "a").then(Processes::default));
        self.says("processes", &Answer::Processes(uuids.iter().map(listed).collect()));
    }

    fn spawn_with(&self, store: Store, fictitious: Option<u32>) -> (Handle, JoinHandle<()>) {
        let (config, listed, clock) = (self.config.subscribe(), self.listed.subscribe(), Clock::system().unwrap());
        let node = "k3f7q2m5x6a4b7c2".parse().unwrap();
        let (program, events) = (self.path().join("child"), crate::events::recorder::nowhere());
        spawn(Parts { config, store, node, listed, program, fictitious, events, clock })
    }

    fn spawn(&self) -> (Handle, JoinHandle<()>) {
        self.spawn_with(Store::open(self.path(), Timestamp::from_millis(1)).unwrap(), None)
    }

    fn started(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path().join("started")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

async fn until(handle: &Handle, is_so: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
    timeout(PATIENCE, handle.watch().wait_for(is_so)).await.unwrap().unwrap().clone()
}

fn is_up(snapshot: &Arc<Snapshot>) -> bool {
    matches!(snapshot.driver, Driver::Up(_)) && snapshot.processes_at.is_some()
}

#[tokio::test]
async fn the_devices_are_read_and_the_owner_ends_with_its_readers() {
    let fixture = Fixture::new();
    fixture.config.send_replace(Config { nvml_library: Some("/lib/x.so".into()), ..Config::default() });
    let (handle, task) = fixture.spawn();
    let snapshot = until(&handle, is_up).await;
    assert_eq!(snapshot.devices.iter().map(|device| &*device.uuid).collect::<Vec<_>>(), ["a", "b"]);
    assert!(snapshot.devices.iter().all(|device| device.read_at.is_some()));
    assert_eq!(snapshot.device("a").unwrap().processes, Some(Processes::default()));
    assert_eq!(snapshot.device("b").unwrap().processes, None);
    let started = fixture.started();
    assert!(started.len() == 1 && started[0].ends_with("/lib/x.so"), "{started:?}");

    let watch = handle.watch();
    drop(handle);
    assert!(!task.is_finished(), "it is watched");
    drop(watch);
    timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_look_sees_the_processes_at_once() {
    let fixture = Fixture::new();
    let (handle, _task) = fixture.spawn();
    let first = until(&handle, is_up).await.processes_at;
    handle.look();
    // The rhythm alone would take 10 s.
    let looked = |snapshot: &Arc<Snapshot>| snapshot.processes_at > first;
    timeout(Duration::from_secs(8), handle.watch().wait_for(looked)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cordon_is_on_disk_before_the_answer_and_there_after_a_restart() {
    let fixture = Fixture::new();
    let (handle, task) = fixture.spawn();
    until(&handle, is_up).await;
    handle.command("a", Command::Cordon, sample::root()).await.unwrap();
    assert!(handle.snapshot().device("a").unwrap().cordoned);
    assert_eq!(handle.command("x", Command::Cordon, sample::root()).await, Err(Error::NotFound("x".to_owned())));
    assert_eq!(handle.command("a", Command::Forget, sample::root()).await, Err(Error::Present("a".to_owned())));
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(handle.command("a", Command::Uncordon, sample::root()).await, Err(Error::Stopping));

    fixture.devices(&["b"]);
    let (handle, _task) = fixture.spawn();
    let known = handle.snapshot();
    assert!(known.device("a").unwrap().cordoned, "the first snapshot has it");
    assert!(known.withheld.is_some(), "no session is admitted on what is not read");
    until(&handle, |snapshot| snapshot.device("a").is_some_and(|device| !device.is_present())).await;
    handle.command("a", Command::Forget, sample::root()).await.unwrap();
    assert_eq!(handle.snapshot().devices.len(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_stored_is_not_made() {
    let fixture = Fixture::new();
    let (store, switch) = Store::failing();
    let (handle, _task) = fixture.spawn_with(store, None);
    until(&handle, is_up).await;
    switch.set(true);
    assert!(matches!(handle.command("a", Command::Cordon, sample::root()).await, Err(Error::Store(_))));
    assert!(!handle.snapshot().device("a").unwrap().cordoned);
    assert_eq!(
        handle.command("a", Command::Uncordon, sample::root()).await,
        Ok(()),
        "nothing to change, and nothing to write"
    );
    switch.set(false);
    handle.command("a", Command::Cordon, sample::root()).await.unwrap();
    assert!(handle.snapshot().device("a").unwrap().cordoned);
}

#[tokio::test]
async fn commands_are_answered_while_the_child_hangs() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path().join("hang"), "").unwrap();
    // The device is known from before.
    let mut store = Store::open(fixture.path(), Timestamp::from_millis(1)).unwrap();
    let mut known = Known::restore(Records::new(), Some(Clock::system().unwrap().now().boot_id));
    known.see(&[Found { uuid: Some("a".to_owned()), ..Found::default() }], Timestamp::from_millis(1));
    store.keep(known.records()).await.unwrap();
    let (handle, task) = fixture.spawn_with(store, None);
    timeout(Duration::from_secs(4), handle.command("a", Command::Cordon, sample::root())).await.unwrap().unwrap();
    assert!(handle.snapshot().device("a").unwrap().is_present());
    task.abort();
}

#[tokio::test]
async fn a_child_that_dies_is_followed_by_another() {
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.path().join("readings")).unwrap(); // the child exits
    let (handle, _task) = fixture.spawn();
    // The next one is asked for an inventory again, so the first has died of the readings.
    let followed = async {
        while fixture.started().len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, followed).await.expect("another is started");
    assert!(!handle.snapshot().devices.is_empty());
    fixture.devices(&["a"]);
    until(&handle, is_up).await;
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_a_driver_that_fails() {
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.path().join("child")).unwrap();
    let (handle, _task) = fixture.spawn();
    let snapshot = until(&handle, |snapshot| matches!(snapshot.driver, Driver::Failed { .. })).await;
    assert!(snapshot.driver.trouble().unwrap().contains("cannot start"));
}

#[tokio::test]
async fn a_host_without_a_driver_has_no_devices_and_no_trouble() {
    let fixture = Fixture::new();
    let closed = Closed::Absent { why: "no library".to_owned() };
    fixture.says("inventory", &Answer::Closed(closed));
    let (handle, _task) = fixture.spawn();
    let snapshot = until(&handle, |snapshot| snapshot.driver != Driver::Unknown).await;
    assert_eq!((snapshot.driver.trouble(), &snapshot.withheld, snapshot.devices.len()), (None, &None, 0));
}

#[tokio::test]
async fn made_up_devices_are_cordoned_and_no_child_is_started() {
    let fixture = Fixture::new();
    let store = Store::open(fixture.path(), Timestamp::from_millis(1)).unwrap();
    let (handle, _task) = fixture.spawn_with(store, Some(2));
    handle.command("GPU-dev-0000", Command::Cordon, sample::root()).await.unwrap();
    assert_eq!(handle.snapshot().devices.iter().filter(|device| device.cordoned).count(), 1);
    assert_eq!(fixture.started(), Vec::<String>::new());
}

#[tokio::test]
async fn another_limit_of_temperature_is_in_force_at_once() {
    let fixture = Fixture::new();
    let reading = Reading { temperature_celsius: Some(85.0), ..Reading::default() };
    let devices = [("a".to_owned(), Measured::Read(Box::new(reading)))].into();
    fixture.says("readings", &Answer::Readings(Readings { devices, xids: Vec::new() }));
    let (handle, _task) = fixture.spawn();
    let snapshot = until(&handle, is_up).await;
    assert!(!snapshot.device("a").unwrap().hot);
    fixture.config.send_replace(Config { max_temperature_celsius: Some(80.0), ..Config::default() });
    timeout(Duration::from_secs(4), handle.watch().wait_for(|snapshot| snapshot.device("a").unwrap().hot))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_owner_follows_the_engines_list_of_another_class_and_remembers_it() {
    let fixture = Fixture::new();
    fixture.config.send_replace(Config { class: "amd.com/gpu".to_owned(), ..Config::default() });
    let lists = |names: &[&str]| {
        let listed = |name: &&str| Listed { name: format!("amd.com/gpu={name}"), pci_address: None };
        fixture.listed.send_replace(Some(names.iter().map(listed).collect()));
    };
    let (handle, task) = fixture.spawn();
    assert_eq!(*handle.snapshot(), Snapshot::default(), "the engine has not answered");
    lists(&["0", "1"]);
    let one = "1-k3f7q2m5x6a4b7c2";
    until(&handle, |snapshot| snapshot.devices.len() == 2).await;
    handle.command(one, Command::Cordon, sample::root()).await.unwrap();
    lists(&["0"]);
    until(&handle, |snapshot| snapshot.device(one).is_some_and(|device| !device.is_present())).await;
    drop(handle);
    timeout(PATIENCE, task).await.unwrap().unwrap();

    // The list is there before this owner starts, as it may be.
    let (handle, _) = fixture.spawn();
    let snapshot = until(&handle, |snapshot| snapshot.driver == Driver::NotAsked).await;
    let states: Vec<_> = snapshot.devices.iter().map(|device| (device.is_present(), device.cordoned)).collect();
    assert_eq!(states, [(true, false), (false, true)]);
    handle.command(one, Command::Forget, sample::root()).await.unwrap();
    lists(&["0", "1"]);
    until(&handle, |snapshot| snapshot.device(one).is_some_and(|device| device.is_present() && device.cordoned)).await;
    assert_eq!(fixture.started(), Vec::<String>::new(), "NVML is not asked");
}
