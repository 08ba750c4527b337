use super::*;
use crate::images::pressure::Watermarks;
use crate::runtime::images::DiskUsage;
use crate::types::{Bytes, KeptBecause, Prune, PruneReason, PruneReport, PullPolicy};

pub(super) const HOURS: Duration = Duration::from_secs(2 * 3600);

/// The owner after pulls of these names, each of an image `id-NAME`, two hours ago.
pub(super) async fn pulled(names: &[&str], config: Config) -> (Arc<FakeImages>, Handle, Switch, Owners) {
    let engine = FakeImages::new();
    let (handle, disk, owners) = start_beside(&engine, Owners::new(), config, clock()).await;
    for name in names {
        engine.publish(name, &format!("id-{name}"));
        pull(&handle, name).await.unwrap();
    }
    handle.clock.advance(HOURS);
    (engine, handle, disk, owners)
}

pub(super) async fn prune(handle: &Handle, mode: Option<Prune>) -> PruneReport {
    timeout(PATIENCE, handle.prune(mode, false, sample::root())).await.unwrap().unwrap()
}

pub(super) fn removed(report: &PruneReport) -> Vec<(&str, PruneReason)> {
    report.removed.iter().map(|image| (image.id.as_str(), image.reason)).collect()
}

pub(super) fn kept(report: &PruneReport, id: &str) -> KeptBecause {
    report.kept.iter().find(|image| image.id == id).unwrap().reason
}

/// As a session does before its container is made.
async fn ensure(handle: &Handle, image: &str) -> Result<String, runtime::Error> {
    let reference = ImageReference::parse(image).unwrap();
    let progress = mpsc::channel(1).0;
    handle.make_available(&reference, PullPolicy::Missing, &progress).await.map(|image| image.id)
}

#[tokio::test]
async fn a_prune_removes_our_dangling_image_and_forgets_it() {
    let (engine, handle, ..) = pulled(&["x:1"], Config::default()).await;
    engine.bring("foreign", &[]);
    engine.publish("x:1", "newer");
    pull(&handle, "x:1").await.unwrap();
    let dry = handle.prune(None, true, sample::root()).await.unwrap();
    assert_eq!(removed(&dry), [("id-x:1", PruneReason::Dangling)]);
    assert!(dry.dry_run && dry.reclaimed_bytes.is_none() && !dry.up_to_bytes.is_zero());
    assert_eq!(engine.removed(), [""; 0]);
    let report = prune(&handle, None).await;
    assert_eq!(removed(&report), removed(&dry), "as the dry run said");
    assert_eq!((report.mode, report.node.as_str()), (Prune::Normal, "n1"));
    assert_eq!(kept(&report, "foreign"), KeptBecause::Foreign);
    assert_eq!(kept(&report, "newer"), KeptBecause::Young);
    assert_eq!(engine.removed(), ["id-x:1"]);
    let now = handle.snapshot();
    assert!(now.removing.is_empty() && now.records.record(&place(), "id-x:1").is_none());
    // It comes back by a pull, and is ours again.
    engine.publish("x:2", "id-x:1");
    pull(&handle, "x:2").await.unwrap();
    assert!(handle.snapshot().records.is_ours(&place(), "id-x:1", &["x:2".to_owned()]));
}

#[tokio::test]
async fn a_mode_counts_for_one_prune_and_the_setting_for_the_others() {
    let (engine, handle, _, owners) = pulled(&["x:1", "w:1"], Config::default()).await;
    assert_eq!(removed(&prune(&handle, None).await), []);
    let report = prune(&handle, Some(Prune::Aggressive)).await;
    assert_eq!(removed(&report), [("id-x:1", PruneReason::Unnamed)]);
    assert_eq!(kept(&report, "id-w:1"), KeptBecause::Workspace);
    owners.set_mode(Prune::Off);
    let report = prune(&handle, None).await;
    assert_eq!((report.mode, removed(&report).len()), (Prune::Off, 0));
    assert_eq!(engine.removed(), ["id-x:1"]);
}

#[tokio::test]
async fn a_node_without_a_leader_removes_only_dangling_images_and_says_so() {
    let (engine, handle, _, owners) = pulled(&["x:1"], Config::default()).await;
    owners.lose_leader();
    let report = prune(&handle, Some(Prune::Aggressive)).await;
    assert_eq!(kept(&report, "id-x:1"), KeptBecause::CatalogueUnknown);
    assert!(report.notes[0].contains("cut off from its leader"), "{:?}", report.notes);
    assert_eq!(engine.removed(), [""; 0]);
}

#[tokio::test]
async fn a_session_that_came_after_the_plan_keeps_its_image() {
    let (engine, handle, _, owners) = pulled(&["x:1", "x:2"], Config::default()).await;
    engine.hold_removals(true);
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move { prune(&handle, Some(Prune::Aggressive)).await }
    });
    let going = until(&handle, |now| !now.removing.is_empty()).await.removing.first().cloned().unwrap();
    let other = if going == "id-x:1" { "x:2" } else { "x:1" };
    owners.admit(other);
    engine.hold_removals(false);
    let report = timeout(PATIENCE, pruning).await.unwrap().unwrap();
    assert_eq!(removed(&report), [(going.as_str(), PruneReason::Unnamed)]);
    assert_eq!(kept(&report, &format!("id-{other}")), KeptBecause::Session);
}

#[tokio::test]
async fn a_session_whose_image_is_being_removed_waits_and_gets_it_by_a_pull_after_that() {
    let (engine, handle, ..) = pulled(&["x:1"], Config::default()).await;
    engine.hold_removals(true);
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move { prune(&handle, Some(Prune::Aggressive)).await }
    });
    until(&handle, |now| now.removing.contains("id-x:1")).await;
    let again = handle.prune(None, false, sample::root()).await;
    assert!(matches!(&again, Err(Error::Conflict(why)) if why.contains("runs already")), "{again:?}");
    assert!(handle.prune(None, true, sample::root()).await.unwrap().dry_run, "a dry run goes beside it");

    let ensuring = tokio::spawn({
        let handle = handle.clone();
        async move { ensure(&handle, "x:1").await }
    });
    // A pull that someone else asks for waits too: it would find the image, and lose it.
    let pulling = tokio::spawn({
        let handle = handle.clone();
        async move { pull(&handle, "x:1").await }
    });
    until(&handle, |now| !now.pulling.is_empty()).await;
    assert_eq!(engine.pulls().len(), 1, "only the first pull");
    engine.hold_removals(false);
    assert_eq!(timeout(PATIENCE, ensuring).await.unwrap().unwrap().unwrap(), "id-x:1");
    timeout(PATIENCE, pulling).await.unwrap().unwrap().unwrap();
    assert_eq!(removed(&timeout(PATIENCE, pruning).await.unwrap().unwrap()).len(), 1);
    // Two, if the session found no image before the other pull ended, and asks after it.
    let again = engine.pulls().len() - 1;
    assert!((1..=2).contains(&again), "it is pulled again: {again}");
    assert!(handle.snapshot().records.is_ours(&place(), "id-x:1", &["x:1".to_owned()]));
}

#[tokio::test]
async fn an_image_that_the_engine_does_not_remove_is_told_and_the_round_goes_on() {
    let (engine, handle, ..) = pulled(&["x:1", "x:2"], Config::default()).await;
    engine.hold_removals(true);
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move { prune(&handle, Some(Prune::Aggressive)).await }
    });
    let first = until(&handle, |now| !now.removing.is_empty()).await.removing.first().cloned().unwrap();
    engine.run(&first);
    engine.hold_removals(false);
    let report = timeout(PATIENCE, pruning).await.unwrap().unwrap();
    assert_eq!(report.skipped.len(), 1);
    assert_eq!((report.skipped[0].id.as_str(), report.skipped[0].reason.as_str()), (&*first, "a container uses it"));
    assert_eq!(report.removed.len(), 1);
    let report = prune(&handle, Some(Prune::Aggressive)).await;
    assert_eq!(kept(&report, &first), KeptBecause::Container);
}

#[tokio::test]
async fn a_deletion_needs_no_write_and_is_recorded_once_the_disk_has_room() {
    let (engine, handle, disk, _) = pulled(&["x:1"], Config::default()).await;
    disk.set(true);
    assert_eq!(removed(&prune(&handle, Some(Prune::Aggressive)).await).len(), 1);
    assert_eq!(engine.removed(), ["id-x:1"]);
    disk.set(false);
    engine.publish("y:1", "y");
    pull(&handle, "y:1").await.unwrap();
    assert!(handle.snapshot().records.record(&place(), "id-x:1").is_none());
}

#[tokio::test]
async fn a_node_prunes_on_its_schedule() {
    let config = Config { prune_interval: Duration::from_millis(50), ..Config::default() };
    let (engine, handle, _, owners) = pulled(&["x:1"], config).await;
    owners.set_mode(Prune::Aggressive);
    until(&handle, |_| engine.removed() == ["id-x:1"]).await;
}

#[tokio::test]
async fn a_disk_that_is_too_full_is_freed_of_what_no_workspace_names() {
    // Of any disk more than 0 % is used, and no disk is ever as empty as that.
    let config = Config { watermarks: Watermarks { high: 0, low: 0 }, ..Config::default() };
    let (engine, handle, _, owners) = pulled(&["x:1", "w:1"], config).await;
    let dry = handle.prune(None, true, sample::root()).await.unwrap();
    assert_eq!(removed(&dry), [("id-x:1", PruneReason::Pressure)]);
    assert_eq!(
        removed(&handle.prune(Some(Prune::Normal), true, sample::root()).await.unwrap()),
        [],
        "a mode is meant as it is"
    );
    owners.measure("/", 50);
    until(&handle, |_| engine.removed() == ["id-x:1"]).await;
    assert!(handle.snapshot().images.as_ref().unwrap().iter().any(|image| image.id == "id-w:1"));
}

/// Of any disk more than 0 % is used, so that no prune frees enough.
fn never_enough() -> Config {
    Config { watermarks: Watermarks { high: 0, low: 0 }, ..Config::default() }
}

#[tokio::test]
async fn a_prune_that_does_not_free_enough_asks_once_what_else_is_on_the_disk() {
    let (engine, handle, ..) = pulled(&["w:1"], never_enough()).await;
    let asked = engine.disk_usage_asked();
    engine.tell_disk_usage(Some(Ok(DiskUsage { volumes: Some(Bytes::gib(3)), ..DiskUsage::default() })));
    for _ in 0..2 {
        let dry = handle.prune(None, true, sample::root()).await.unwrap();
        assert!(dry.notes[0].contains("would not free enough") && dry.notes[0].contains("volumes 3 GiB"), "{dry:?}");
    }
    assert_eq!(
        handle.snapshot().disk_pressure,
        None,
        "a dry run changes nothing, and it was published before the second"
    );
    let report = prune(&handle, None).await;
    assert!(report.notes[0].contains("cannot free more") && report.notes[0].contains("volumes 3 GiB"), "{report:?}");
    assert_eq!(until(&handle, |now| now.disk_pressure.is_some()).await.disk_pressure.as_ref(), report.notes.first());
    assert_eq!(*asked.borrow(), 3);
}

#[tokio::test]
async fn a_round_for_pressure_asks_what_else_is_on_the_disk() {
    let (engine, handle, _, owners) = pulled(&["w:1"], never_enough()).await;
    engine.tell_disk_usage(Some(Ok(DiskUsage { build_cache: Some(Bytes::gib(3)), ..DiskUsage::default() })));
    owners.measure("/", 50);
    let now = until(&handle, |now| now.disk_pressure.is_some()).await;
    assert!(now.disk_pressure.as_ref().unwrap().contains("the build cache 3 GiB"), "{:?}", now.disk_pressure);
    owners.measure("/", 51);
    prune(&handle, Some(Prune::Normal)).await;
    assert_eq!(*engine.disk_usage_asked().borrow(), 2, "once by the round for pressure, and once by the prune");
}

#[tokio::test]
async fn a_prune_of_a_disk_that_has_room_does_not_ask_what_else_is_on_it() {
    let config = Config { watermarks: Watermarks { high: 100, low: 100 }, ..Config::default() };
    let (engine, handle, ..) = pulled(&["x:1"], config).await;
    assert_eq!(removed(&prune(&handle, Some(Prune::Aggressive)).await).len(), 1);
    assert_eq!(*engine.disk_usage_asked().borrow(), 0);
}

#[tokio::test]
async fn an_engine_that_does_not_tell_what_is_on_its_disk_delays_only_the_answer() {
    let (engine, handle, ..) = pulled(&["x:1"], never_enough()).await;
    let mut asked = engine.disk_usage_asked();
    engine.tell_disk_usage(None);
    let start = || {
        let handle = handle.clone();
        tokio::spawn(async move { prune(&handle, Some(Prune::Aggressive)).await })
    };
    let first = start();
    timeout(PATIENCE, asked.wait_for(|asked| *asked == 1)).await.unwrap().unwrap();
    assert_eq!(engine.removed(), ["id-x:1"]);
    engine.publish("y:1", "y");
    pull(&handle, "y:1").await.unwrap();
    handle.clock.advance(HOURS);
    let second = start();
    until(&handle, |_| engine.removed() == ["id-x:1", "y"]).await;
    // It waits for the removal, after which the round is over.
    pull(&handle, "y:1").await.unwrap();
    assert!(!first.is_finished() && handle.snapshot().disk_pressure.is_none());
    engine.tell_disk_usage(Some(Err(runtime::Error::Unavailable("it hangs".to_owned()))));
    for answer in [first, second] {
        let report = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert!(report.notes[0].contains("volumes, the build cache, files of containers and logs"), "{report:?}");
        assert_eq!(report.removed.len(), 1);
    }
    until(&handle, |now| now.disk_pressure.is_some()).await;
    assert_eq!(*asked.borrow(), 1, "one answer is for both");
}

#[tokio::test]
async fn a_disk_that_has_room_by_the_time_the_engine_answers_is_no_condition() {
    let (engine, handle, _, owners) = pulled(&["w:1"], never_enough()).await;
    prune(&handle, None).await;
    until(&handle, |now| now.disk_pressure.is_some()).await;
    engine.tell_disk_usage(None);
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move { prune(&handle, None).await }
    });
    timeout(PATIENCE, engine.disk_usage_asked().wait_for(|asked| *asked == 2)).await.unwrap().unwrap();
    owners.measure("/", 0);
    until(&handle, |now| now.disk_pressure.is_none()).await;
    engine.tell_disk_usage(Some(Ok(DiskUsage::default())));
    assert!(timeout(PATIENCE, pruning).await.unwrap().unwrap().notes[0].contains("cannot free more"));
    handle.prune(None, true, sample::root()).await.unwrap();
    assert_eq!(handle.snapshot().disk_pressure, None, "what the answer changed was published before the dry run");
}
