//! The owner of the images on a real engine, with a registry on loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ostler::clock::Clock;
use ostler::images::{self, Command, Handle, NoNeighbours, store::Store, task};
use ostler::runtime::docker::{Config, DockerRuntime};
use ostler::runtime::images::PullOptions;
use ostler::runtime::{Error, Images, Launch, ProvideImages, Runtime};
use ostler::types::{Actor, ImageReference, Prune, PullPolicy, Resources, Settings, Timestamp};
use ostler::{capacity, election, events, node};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::docker::{Lab, NODE, PATIENCE, Registry, config, docker, no_gpus, quietly};

/// The owner of the images of one agent, with its own link to the engine.
pub(super) struct Keeper {
    pub(super) images: Handle,
    clock: Clock,
    tasks: [JoinHandle<()>; 2],
}

impl Keeper {
    /// Returns once the images are listed.
    async fn start(lab: &Lab, data_dir: &Path, clock: Clock) -> Self {
        Self::start_on(config(&lab.cluster), data_dir, clock).await
    }

    /// The same on an engine of its own.
    pub(super) async fn start_on(engine: Config, data_dir: &Path, clock: Clock) -> Self {
        let runtime = DockerRuntime::new(engine, no_gpus()).unwrap();
        let link = tokio::spawn({
            let runtime = Arc::clone(&runtime);
            async move {
                let (events, mut nobody) = mpsc::channel(16);
                tokio::join!(runtime.run(events), async { while nobody.recv().await.is_some() {} });
            }
        });
        let store = Store::open(data_dir, Timestamp::default()).unwrap();
        let (images, made) = task::make(task::Parts {
            config: watch::channel(images::Config::default()).1,
            store,
            health: runtime.health(),
            engine: runtime,
            neighbours: Arc::new(NoNeighbours),
            events: event_log(data_dir, &clock),
            clock: clock.clone(),
            others: task::Others::none(),
        });
        let owner = made.start(alone());
        let mut listed = images.watch();
        timeout(PATIENCE, listed.wait_for(|now| now.images.is_some())).await.unwrap().unwrap();
        Self { images, clock, tasks: [link, owner] }
    }

    /// As kill -9 does, once the store can be opened again.
    pub(super) async fn kill(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }

    pub(super) async fn ensure(&self, launch: &Launch, pull: PullPolicy) -> Result<String, Error> {
        let launch = Launch { pull, ..launch.clone() };
        Ok(self.images.ensure(&launch, mpsc::channel(1).0).await?.digest.unwrap())
    }

    /// Waits until the image has exactly these names, as listed, and returns whether it is ostler's.
    pub(super) async fn is_ours(&self, id: &str, names: &[&str]) -> bool {
        let mut snapshot = self.images.watch();
        let listed = snapshot.wait_for(|now| {
            now.images.iter().flat_map(|images| images.iter()).any(|image| image.id == id && image.names == names)
        });
        let now = timeout(PATIENCE, listed).await.expect("the image is listed with these names").unwrap();
        let image = now.images.iter().flat_map(|images| images.iter()).find(|image| image.id == id).unwrap().clone();
        now.is_ours(&image)
    }
}

/// A node without workspaces, sessions and leader, which prunes nothing.
fn alone() -> task::Around {
    let state = node::State {
        id: NODE.parse().unwrap(),
        name: "n1".parse().unwrap(),
        settings: Settings { prune: Prune::Off, ..Settings::default() },
        declared: Vec::new(),
        drain: None,
    };
    let report = capacity::Report {
        physical: Resources::ZERO,
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
    let leadership = election::Leadership { leader: None, ballot: None, reign: None };
    task::Around {
        sessions: watch::channel(Arc::default()).1,
        sessions_ready: watch::channel(true).1,
        catalogue: watch::channel(Arc::default()).1,
        node: watch::channel(Arc::new(state)).1,
        leadership: watch::channel(Arc::new(leadership)).1,
        members: watch::channel(Arc::default()).1,
        report: watch::channel(Arc::new(report)).1,
    }
}

fn id_of(image: &str) -> String {
    docker(&["inspect", "--format", "{{.Id}}", image])
}

#[tokio::test]
async fn images_come_from_a_registry() {
    const TEST: &str = "images_come_from_a_registry";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 24 << 20);
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(&lab, directory.path(), Clock::manual(Clock::system().unwrap().now())).await;
    let mut launch = lab.launch("pull", "true");
    launch.image = Some(image.clone());

    // Two sessions share one pull: both get its progress and the same image.
    let (progress, mut told) = mpsc::channel(64);
    let (also, mut told_too) = mpsc::channel(64);
    let (first, second) = tokio::join!(keeper.images.ensure(&launch, progress), keeper.images.ensure(&launch, also));
    let digest = first.unwrap().digest.unwrap();
    assert_eq!(second.unwrap().digest.as_ref(), Some(&digest));
    assert!(docker(&["inspect", "--format", "{{index .RepoDigests 0}}", &image]).ends_with(&digest));
    assert!(told.recv().await.is_some() && told_too.recv().await.is_some());
    let old = id_of(&image);
    assert!(keeper.is_ours(&old, &[&image]).await);

    let missing = Launch { image: Some(image.replace(":1", ":no-such-tag")), ..launch.clone() };
    let failed = keeper.ensure(&missing, PullPolicy::Daily).await;
    assert!(matches!(&failed, Err(Error::Start { message, .. }) if message.contains("no-such-tag")), "{failed:?}");

    // The tag names another image in the registry now.
    registry.publish_newer(&lab.cluster, 1 << 20);
    assert_eq!(keeper.ensure(&launch, PullPolicy::Missing).await.unwrap(), digest);
    keeper.clock.advance(Duration::from_secs(25 * 3600));
    assert_eq!(keeper.ensure(&launch, PullPolicy::Daily).await.unwrap(), digest, "the leader may yet have it checked");
    keeper.clock.advance(Duration::from_secs(2 * 3600));
    assert_eq!(keeper.ensure(&launch, PullPolicy::Daily).await.unwrap(), digest, "a start does not wait for the pull");
    let refreshed = async {
        while keeper.ensure(&launch, PullPolicy::Missing).await.unwrap() == digest {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, refreshed).await.expect("the daily refresh runs in the background");
    assert!(keeper.is_ours(&old, &[]).await, "our old image is left without a name, and stays ours");
    let newer = keeper.ensure(&launch, PullPolicy::Always).await.unwrap();
    assert!(keeper.is_ours(&id_of(&image), &[&image]).await);
    drop(registry);
    let local = keeper.ensure(&launch, PullPolicy::Always).await;
    assert_eq!(local.unwrap(), newer, "the local image is used when the registry does not answer");
    keeper.kill().await;
    quietly(&["rmi", &image, &old]);
}

#[tokio::test]
async fn a_name_that_came_from_no_registry_is_never_asked_for_there() {
    const TEST: &str = "a_name_that_came_from_no_registry_is_never_asked_for_there";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 1 << 20);
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(&lab, directory.path(), Clock::system().unwrap()).await;
    let mut launch = lab.launch("named", "true");

    // Somebody pulls a stranger's image and gives it a name that the registry has for another image.
    docker(&["pull", "--quiet", &image]);
    let (foreign, mine) = (id_of(&image), image.replace(":1", ":mine"));
    docker(&["tag", &lab.image, &mine]);
    let built = id_of(&mine);
    docker(&["push", "--quiet", &mine]);
    docker(&["tag", &image, &mine]);
    launch.image = Some(mine.clone());
    for policy in [PullPolicy::Missing, PullPolicy::Daily, PullPolicy::Always] {
        keeper.ensure(&launch, policy).await.unwrap();
        assert_eq!(id_of(&mine), foreign, "{policy}: the registry's {built} did not replace it");
    }
    assert!(!keeper.is_ours(&foreign, &[&image, &mine]).await);

    // An operator's pull of the other name asks the registry, which has the same image: it stays foreign.
    let reference = ImageReference::parse(&image).unwrap();
    let mut pull = keeper.images.pull(&reference, images::pulls::Urgency::Demand).await.unwrap();
    let ended = pull.wait_for(|pull| matches!(pull, images::Pull::Ended(_)));
    assert_eq!(*timeout(PATIENCE, ended).await.unwrap().unwrap(), images::Pull::Ended(Ok(())));
    assert!(!keeper.is_ours(&foreign, &[&image, &mine]).await);
    assert!(keeper.images.snapshot().fetched(&foreign, &reference).is_some());

    let by = Actor::Socket { uid: 0, name: None, via: "n1".parse().unwrap() };
    let adopted = keeper.images.command(&foreign[..20], Command::Adopt, by.clone()).await.unwrap();
    assert_eq!(adopted.id, foreign);
    assert!(keeper.is_ours(&foreign, &[&image, &mine]).await);
    let unknown = keeper.images.command("no-such-image", Command::Adopt, by).await;
    assert_eq!(unknown, Err(images::Error::NotFound("no-such-image".to_owned())));
    keeper.kill().await;

    let keeper = Keeper::start(&lab, directory.path(), Clock::system().unwrap()).await;
    assert!(keeper.is_ours(&foreign, &[&image, &mine]).await, "the records outlive the agent");
    keeper.kill().await;
    quietly(&["rmi", &image, &mine]);
}

#[tokio::test]
async fn a_pull_that_the_agents_end_cut_off_is_found_out_by_the_next_agent() {
    const TEST: &str = "a_pull_that_the_agents_end_cut_off_is_found_out_by_the_next_agent";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 1 << 20);
    let reference = ImageReference::parse(&image).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let runtime = DockerRuntime::new(config(&lab.cluster), no_gpus()).unwrap();

    // The agent ends after the pull began, and the engine pulls it all the same.
    let keeper = Keeper::start(&lab, directory.path(), Clock::system().unwrap()).await;
    let present = keeper.images.snapshot();
    let place = present.store.as_ref().unwrap().store.clone();
    let mut records = (*present.records).clone();
    records.begin(&reference, &place, present.images.as_ref().unwrap());
    keeper.kill().await;
    Store::open(directory.path(), Timestamp::default()).unwrap().keep(&records).await.unwrap();
    runtime.pull(&reference, &PullOptions::default(), mpsc::channel(1).0).await.unwrap();

    let keeper = Keeper::start(&lab, directory.path(), Clock::system().unwrap()).await;
    let id = id_of(&image);
    let mut snapshot = keeper.images.watch();
    let resolved = snapshot.wait_for(|now| now.records.record(&place, &id).is_some());
    timeout(PATIENCE, resolved).await.expect("the pull is found out").unwrap();
    assert!(keeper.is_ours(&id, &[&image]).await);
    assert!(keeper.images.snapshot().records.intents.is_empty());
    keeper.kill().await;
    quietly(&["rmi", &image]);
}

fn event_log(data_dir: &Path, clock: &Clock) -> events::Handle {
    let parts = events::task::Parts {
        directory: data_dir.join("events"),
        me: "aaaaaaaaaaaaaaaa".parse().unwrap(),
        name: "n1".parse().unwrap(),
        version: "0".to_owned(),
        config: watch::channel(events::Config::default()).1,
        clock: clock.clone(),
    };
    events::task::spawn(parts).0
}
