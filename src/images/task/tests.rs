use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::images::fake::{FakeImages, place};
use crate::images::pulls::Urgency;
use crate::images::store::Store;
use crate::images::{Fetch, Fetching};
use crate::runtime::images::{PullCause, PullError};
use crate::store::failing::Switch;
use crate::types::{BootInstant, Platform, PullPolicy, Timestamp, sample};
use owners::Owners;

mod full_disk;
pub(super) mod owners;
mod prune;
mod second_look;

const PATIENCE: Duration = Duration::from_secs(10);

fn clock() -> Clock {
    let boot = BootInstant::from_millis(1000);
    Clock::manual(Moment { wall: Timestamp::from_millis(1000), boot, boot_id: 1 })
}

/// The owner on an engine in memory, once it has listed the images.
async fn start(engine: &Arc<FakeImages>) -> (Handle, Switch) {
    start_at(engine, clock()).await
}

async fn start_at(engine: &Arc<FakeImages>, clock: Clock) -> (Handle, Switch) {
    let (handle, switch, _) = start_beside(engine, Owners::new(), Config::default(), clock).await;
    (handle, switch)
}

async fn start_beside(
    engine: &Arc<FakeImages>,
    owners: Owners,
    config: Config,
    clock: Clock,
) -> (Handle, Switch, Owners) {
    let (store, switch) = Store::failing();
    let parts = Parts {
        config: watch::channel(config).1,
        store,
        engine: engine.clone(),
        health: engine.health.subscribe(),
        neighbours: engine.clone(),
        events: crate::events::recorder::nowhere(),
        clock,
        others: Others::none(),
    };
    let (handle, made) = make(parts);
    made.start(owners.around());
    until(&handle, |now| now.images.is_some()).await;
    (handle, switch, owners)
}

async fn until(handle: &Handle, is: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
    let mut snapshot = handle.watch();
    timeout(PATIENCE, snapshot.wait_for(is)).await.expect("in time").unwrap().clone()
}

async fn pull(handle: &Handle, name: &str) -> Result<(), PullError> {
    let reference = ImageReference::parse(name).unwrap();
    let mut pull = handle.pull(&reference, Urgency::Demand).await.unwrap();
    let ended = timeout(PATIENCE, pull.wait_for(|pull| matches!(pull, Pull::Ended(_)))).await.unwrap().unwrap();
    let Pull::Ended(result) = ended.clone() else { unreachable!() };
    result
}

#[tokio::test]
async fn what_a_pull_brings_is_ours_once_the_pull_has_ended() {
    let engine = FakeImages::new();
    engine.bring("foreign", &["y:1"]);
    engine.publish("x:1", "new");
    let (handle, _) = start(&engine).await;
    pull(&handle, "x:1").await.unwrap();
    let now = handle.snapshot();
    assert!(now.records.is_ours(&place(), "new", &["x:1".to_owned()]), "the records are published before the end");
    assert!(!now.records.is_ours(&place(), "foreign", &["y:1".to_owned()]));
    assert!(now.records.intents.is_empty() && now.pulling.is_empty());
    until(&handle, |now| now.meant(&ImageReference::parse("x:1").unwrap()).is_some()).await;
}

#[tokio::test]
async fn an_image_that_came_between_the_last_list_and_the_pull_is_foreign() {
    let engine = FakeImages::new();
    let (handle, _) = start(&engine).await;
    engine.publish("x:1", "built");
    engine.bring("built", &[]);
    pull(&handle, "x:1").await.unwrap();
    assert!(!handle.snapshot().records.is_ours(&place(), "built", &["x:1".to_owned()]));
}

#[tokio::test]
async fn a_pull_that_cannot_be_recorded_does_not_begin() {
    let engine = FakeImages::new();
    engine.publish("x:1", "new");
    let (handle, disk) = start(&engine).await;
    disk.set(true);
    let refused = pull(&handle, "x:1").await.unwrap_err();
    assert!(refused.message.starts_with("cannot record the pull of x:1: "), "{refused}");
    assert_eq!(engine.pulls(), [""; 0]);
    disk.set(false);
    pull(&handle, "x:1").await.unwrap();
}

#[tokio::test]
async fn a_pull_whose_end_is_not_known_is_found_out_by_the_next_list() {
    let engine = FakeImages::new();
    let (handle, _) = start(&engine).await;
    let lost = PullError { cause: PullCause::Engine, message: "no answer".to_owned() };
    engine.refuse(Some(lost.clone()));
    assert_eq!(pull(&handle, "x:1").await, Err(lost));
    assert_eq!(handle.snapshot().records.intents.len(), 1);
    engine.bring("late", &["x:1"]);
    let now = until(&handle, |now| now.records.intents.is_empty()).await;
    assert!(now.records.is_ours(&place(), "late", &["x:1".to_owned()]));
}

#[tokio::test]
async fn a_person_pulls_no_image_in_place_of_a_foreign_one_until_it_is_adopted() {
    let engine = FakeImages::new();
    engine.bring("foreign", &["y:1"]);
    engine.publish("y:1", "new");
    let (handle, _) = start(&engine).await;
    let (image, node, by) = (ImageReference::parse("y:1").unwrap(), "a".parse().unwrap(), sample::root());
    let refused = handle.pull_for(&image, &node, &by).await.unwrap_err();
    let told = "image y:1 on node a was not pulled by ostler, and a pull could replace it: adopt it first: ostler image \
                adopt y:1 a";
    assert_eq!((refused.to_string().as_str(), engine.pulls().len()), (told, 0));
    handle.command("y:1", Command::Adopt, by.clone()).await.unwrap();
    let (mut pull, before) = handle.pull_for(&image, &node, &by).await.unwrap();
    assert_eq!(before.as_deref(), Some("foreign"));
    timeout(PATIENCE, pull.wait_for(|pull| *pull == Pull::Ended(Ok(())))).await.unwrap().unwrap();
    assert_eq!(handle.id_of(&image).await.unwrap().as_deref(), Some("new"));
    let absent = ImageReference::parse("z@sha256:ab").unwrap();
    assert!(handle.snapshot().may_replace("foreign", &absent), "a digest means one image for ever");
}

#[tokio::test]
async fn people_see_a_use_before_it_is_on_disk_and_when_the_images_were_listed() {
    let engine = FakeImages::new();
    engine.bring("x", &["x:1"]);
    let (handle, _) = start(&engine).await;
    handle.send(Request::Used("x".to_owned())).unwrap();
    until(&handle, |now| now.used.contains_key("x")).await;
    let (catalogue, sessions) = (crate::catalogue::Snapshot::default(), crate::sessions::Snapshot::default());
    let listed = handle.inventory(&"a".parse().unwrap(), &catalogue, &sessions);
    assert_eq!(listed.listed_at, Some(Timestamp::from_millis(1000)));
    assert_eq!(listed.items[0].last_used_at, Some(Timestamp::from_millis(1000)));
    assert_eq!(listed.items[0].containers, Some(0));
}

#[tokio::test]
async fn an_image_is_found_by_a_name_or_by_the_beginning_of_its_id() {
    let images = [("sha256:aab1", "x:1"), ("sha256:aac2", "y:1"), ("sha256:ff00", "aab:latest")];
    let listed = images.map(|(id, name)| ListedImage {
        id: id.to_owned(),
        names: vec![name.to_owned()],
        ..ListedImage::default()
    });
    let snapshot = Snapshot { images: Some(listed.to_vec().into()), ..Snapshot::default() };
    let found = |wanted: &str| find(&snapshot, wanted);
    for (wanted, id) in
        [("x:1", "sha256:aab1"), ("aab1", "sha256:aab1"), ("sha256:aac", "sha256:aac2"), ("aab", "sha256:ff00")]
    {
        assert_eq!(found(wanted), Ok(id.to_owned()), "{wanted}");
    }
    assert!(matches!(found("aa"), Err(Error::Conflict(_))));
    for unknown in ["x:2", "sha256:", "", "bb"] {
        assert_eq!(found(unknown), Err(Error::NotFound(unknown.to_owned())), "{unknown}");
    }
}

fn refusal(cause: PullCause) -> Option<PullError> {
    Some(PullError { cause, message: "no".to_owned() })
}

async fn join(handle: &Handle, name: &str, urgency: Urgency) -> watch::Receiver<Pull> {
    handle.pull(&ImageReference::parse(name).unwrap(), urgency).await.unwrap()
}

async fn reaches(pull: &mut watch::Receiver<Pull>, is: impl FnMut(&Pull) -> bool) -> Pull {
    timeout(PATIENCE, pull.wait_for(is)).await.expect("in time").unwrap().clone()
}

const fn is_limited(pull: &Pull) -> bool {
    matches!(pull, Pull::Limited { .. })
}

const fn has_ended(pull: &Pull) -> bool {
    matches!(pull, Pull::Ended(_))
}

#[tokio::test]
async fn what_a_session_waits_for_is_pulled_once_the_limit_is_over() {
    let engine = FakeImages::new();
    engine.publish("x:1", "new");
    engine.refuse(refusal(PullCause::Limited));
    let clock = clock();
    let (handle, _) = start_at(&engine, clock.clone()).await;
    let mut first = join(&handle, "x:1", Urgency::Demand).await;
    let Pull::Limited { registry, until: over } = reaches(&mut first, is_limited).await else { unreachable!() };
    let pause = over.since(clock.now().boot);
    assert!(registry == "docker.io" && (60..=75).contains(&pause.as_secs()), "{registry} {pause:?}");
    let told = timeout(PATIENCE, engine.told().wait_for(|told| !told.is_empty())).await.unwrap().unwrap().clone();
    assert_eq!(told, [("docker.io".to_owned(), pause)]);
    let now = until(&handle, |now| !now.limited.is_empty()).await;
    let shown = now.limited["docker.io"].millis();
    assert!(shown % 60_000 == 0 && shown > clock.now().wall.plus(pause).millis(), "{shown}");

    // Others wait for the registry too, without asking it.
    let mut second = join(&handle, "y:1", Urgency::Demand).await;
    reaches(&mut second, is_limited).await;
    assert_eq!(engine.pulls(), ["x:1"]);
    engine.refuse(None);
    clock.advance(pause);
    let mut other = join(&handle, "r.example/z:1", Urgency::Demand).await;
    reaches(&mut other, has_ended).await;
    assert_eq!(reaches(&mut first, has_ended).await, Pull::Ended(Ok(())));
    reaches(&mut second, has_ended).await;
    until(&handle, |now| now.limited.is_empty()).await;
    assert_eq!(engine.pulls().len(), 4);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_ends_at_a_limit() {
    let engine = FakeImages::new();
    engine.refuse(refusal(PullCause::Limited));
    let (handle, _) = start(&engine).await;
    let mut ahead = join(&handle, "x:1", Urgency::Ahead).await;
    assert!(
        matches!(reaches(&mut ahead, has_ended).await, Pull::Ended(Err(error)) if error.cause == PullCause::Limited)
    );
    until(&handle, |now| now.pulling.is_empty() && !now.limited.is_empty()).await;
}

#[tokio::test]
async fn a_limit_that_another_host_met_holds_here() {
    let engine = FakeImages::new();
    engine.publish("x:1", "new");
    engine.limit(Some(Duration::from_secs(40)));
    let clock = clock();
    let (handle, _) = start_at(&engine, clock.clone()).await;
    let mut waits = join(&handle, "x:1", Urgency::Demand).await;
    let told = reaches(&mut waits, is_limited).await;
    assert_eq!(
        told,
        Pull::Limited { registry: "docker.io".to_owned(), until: clock.now().boot.plus(Duration::from_secs(40)) }
    );
    assert_eq!(engine.pulls(), [""; 0], "the registry was not asked");
    assert!(handle.snapshot().records.intents.is_empty());
}

#[tokio::test]
async fn a_session_whose_image_is_here_does_not_wait_for_a_limited_registry() {
    let engine = FakeImages::new();
    engine.publish("x:1", "new");
    let (handle, _) = start(&engine).await;
    pull(&handle, "x:1").await.unwrap();
    engine.refuse(refusal(PullCause::Limited));
    let reference = ImageReference::parse("x:1").unwrap();
    let progress = mpsc::channel(8).0;
    for _ in 0..2 {
        let here = handle.make_available(&reference, PullPolicy::Always, &progress);
        assert_eq!(timeout(PATIENCE, here).await.unwrap().unwrap().id, "new");
    }
    assert_eq!(engine.pulls(), ["x:1", "x:1"], "it was asked once more, and then left alone");
}

#[tokio::test]
async fn a_full_disk_is_tried_once_more() {
    let engine = FakeImages::new();
    engine.refuse(refusal(PullCause::DiskFull));
    let (handle, _) = start(&engine).await;
    for tries in [2, 4] {
        assert_eq!(pull(&handle, "x:1").await, Err(refusal(PullCause::DiskFull).unwrap()));
        assert_eq!(engine.pulls().len(), tries);
    }
}

#[tokio::test]
async fn an_image_for_another_platform_is_pulled_for_that_of_the_host() {
    let engine = FakeImages::new();
    engine.publish("x:1", "arm");
    let (handle, _) = start(&engine).await;
    pull(&handle, "x:1").await.unwrap();
    assert_eq!(engine.options().platform, None);
    let (amd64, arm64) = (Platform::new("linux", "amd64"), Platform::new("linux", "arm64"));
    engine.is_for("arm", &arm64);
    engine.health.send_modify(|health| {
        if let Health::Up(info) = health {
            info.platform = Some(amd64.clone());
        }
    });
    engine.publish("x:1", "amd");
    let reference = ImageReference::parse("x:1").unwrap();
    let progress = mpsc::channel(8).0;
    let ensured = handle.make_available(&reference, PullPolicy::Missing, &progress);
    assert_eq!(timeout(PATIENCE, ensured).await.unwrap().unwrap().id, "amd");
    assert_eq!(engine.options().platform, Some(amd64));
}

#[tokio::test]
async fn the_leader_has_an_image_pulled_once_and_then_it_is_there() {
    let engine = FakeImages::new();
    engine.publish("x:1", "one");
    let (handle, _) = start(&engine).await;
    let image = ImageReference::parse("x:1").unwrap();
    assert_eq!(handle.fetch(&image, Fetch::Refresh).await, Ok(Fetching::Done), "it is not here: nothing to refresh");
    assert_eq!(engine.pulls(), [""; 0]);
    assert_eq!(handle.fetch(&image, Fetch::Missing).await, Ok(Fetching::Done));
    until(&handle, |now| now.meant(&image).is_some()).await;
    assert_eq!(handle.fetch(&image, Fetch::Missing).await, Ok(Fetching::Done));
    assert_eq!(engine.pulls(), ["x:1"]);
    engine.publish("x:1", "two");
    assert_eq!(handle.fetch(&image, Fetch::Refresh).await, Ok(Fetching::Done));
    until(&handle, |now| now.meant(&image).is_some_and(|listed| listed.id == "two")).await;
    let absent = ImageReference::parse("absent:1").unwrap();
    let refused = handle.fetch(&absent, Fetch::Missing).await.unwrap_err();
    assert!(matches!(refused, Error::Pull(PullError { cause: PullCause::Absent, .. })), "{refused}");
}

#[tokio::test]
async fn what_came_from_no_registry_is_not_refreshed_from_one() {
    let engine = FakeImages::new();
    engine.bring("built", &["x:1"]);
    engine.publish("x:1", "strange");
    let (handle, _) = start(&engine).await;
    let image = ImageReference::parse("x:1").unwrap();
    assert_eq!(handle.fetch(&image, Fetch::Refresh).await, Ok(Fetching::Done));
    assert_eq!(engine.pulls(), [""; 0]);
}

#[tokio::test]
async fn a_check_by_another_node_counts_as_one_and_pulls_nothing() {
    let engine = FakeImages::new();
    engine.publish("x:1", "one");
    let (handle, _) = start(&engine).await;
    let image = ImageReference::parse("x:1").unwrap();
    pull(&handle, "x:1").await.unwrap();
    let now = until(&handle, |now| now.meant(&image).is_some()).await;
    let before = now.fetched("one", &image).unwrap().clone();
    engine.refuse(refusal(PullCause::Other));
    pull(&handle, "x:1").await.unwrap_err();
    let failed = until(&handle, |now| now.fetched("one", &image).is_some_and(|fetched| fetched.failed.is_some())).await;
    assert_eq!(failed.fetched("one", &image).unwrap().at, before.at);
    let (pulls, digest) = (engine.pulls(), before.digest.unwrap());
    assert_eq!(handle.fetch(&image, Fetch::Checked { digest }).await, Ok(Fetching::Done));
    until(&handle, |now| now.fetched("one", &image).is_some_and(|fetched| fetched.failed.is_none())).await;
    assert_eq!(engine.pulls(), pulls);
}
