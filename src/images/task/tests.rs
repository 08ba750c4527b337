use super::*;
use crate::images::fake::{FakeImages, place};
use crate::images::pulls::Urgency;
use crate::images::store::Store;
use crate::store::failing::Switch;
use crate::types::{BootInstant, Timestamp};

const PATIENCE: Duration = Duration::from_secs(10);

fn clock() -> Clock {
    let boot = BootInstant::from_millis(1000);
    Clock::manual(Moment { wall: Timestamp::from_millis(1000), boot, boot_id: 1 })
}

/// The owner on an engine in memory, once it has listed the images.
async fn start(engine: &Arc<FakeImages>) -> (Handle, Switch) {
    let (store, switch) = Store::failing();
    let parts = Parts {
        config: watch::channel(Config::default()).1,
        store,
        engine: engine.clone(),
        health: engine.health.subscribe(),
        clock: clock(),
    };
    let (handle, _) = spawn(parts);
    until(&handle, |now| now.images.is_some()).await;
    (handle, switch)
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
    let (image, node, by) = (ImageReference::parse("y:1").unwrap(), "a".parse().unwrap(), Actor::Socket { uid: 0 });
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
