//! Pulls that meet a full disk.

use super::prune::{HOURS, prune, pulled};
use super::*;
use crate::images::pressure::Watermarks;
use crate::types::Prune;

/// An owner with an image that nothing needs. A pull of `y:1` has met a full disk, and the engine takes its time with the
/// removal.
async fn met() -> (Arc<FakeImages>, Handle, owners::Owners, watch::Receiver<Pull>) {
    // The engine has dropped what it had of the new image, and the disk is below the high mark again. Of any disk more than
    // 0 % is used.
    let config = Config { watermarks: Watermarks { high: 99, low: 0 }, ..Config::default() };
    let (engine, handle, _, owners) = pulled(&["x:1", "w:1"], config).await;
    engine.refuse(refusal(PullCause::DiskFull));
    engine.hold_removals(true);
    let pull = join(&handle, "y:1", Urgency::Demand).await;
    until(&handle, |now| now.removing.contains("id-x:1")).await;
    (engine, handle, owners, pull)
}

#[tokio::test]
async fn a_pull_that_meets_a_full_disk_waits_for_room_and_is_tried_once_more() {
    let (engine, handle, _owners, mut pull) = met().await;
    let mut other = join(&handle, "z:1", Urgency::Demand).await;
    // It lists the images anew, as a pull does before it begins.
    handle.prune(None, true, sample::root()).await.unwrap();
    assert_eq!(*pull.borrow(), Pull::Waiting);
    assert_eq!(engine.pulls(), ["x:1", "w:1", "y:1"], "no pull begins while room is made");
    engine.publish("y:1", "new");
    engine.refuse(None);
    engine.hold_removals(false);
    assert_eq!(reaches(&mut pull, has_ended).await, Pull::Ended(Ok(())));
    reaches(&mut other, has_ended).await;
    assert_eq!(engine.removed(), ["id-x:1"], "a workspace names the other one");
}

#[tokio::test]
async fn room_for_a_pull_is_made_after_the_round_that_runs() {
    let config = Config { watermarks: Watermarks { high: 99, low: 0 }, ..Config::default() };
    let (engine, handle, _, _owners) = pulled(&["x:1", "w:1"], config).await;
    // A newer image leaves the first one without a name, which the round of a person removes, and no other.
    engine.publish("x:1", "newer");
    pull(&handle, "x:1").await.unwrap();
    handle.clock.advance(HOURS);
    engine.hold_removals(true);
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move { prune(&handle, Some(Prune::Normal)).await }
    });
    until(&handle, |now| now.removing.contains("id-x:1")).await;
    engine.refuse(refusal(PullCause::DiskFull));
    let mut met = join(&handle, "y:1", Urgency::Demand).await;
    until(&handle, |_| engine.pulls().len() == 4).await;
    handle.prune(None, true, sample::root()).await.unwrap();
    engine.publish("y:1", "new");
    engine.refuse(None);
    engine.hold_removals(false);
    assert_eq!(timeout(PATIENCE, pruning).await.unwrap().unwrap().removed.len(), 1);
    assert_eq!(reaches(&mut met, has_ended).await, Pull::Ended(Ok(())));
    assert_eq!(engine.removed(), ["id-x:1", "newer"]);
}

#[tokio::test]
async fn a_pull_does_not_wait_for_a_round_that_could_not_begin() {
    let config = Config { watermarks: Watermarks { high: 99, low: 0 }, ..Config::default() };
    let (engine, handle, _, _owners) = pulled(&["x:1"], config).await;
    engine.list_containers(None);
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move { handle.prune(Some(Prune::Normal), false, sample::root()).await }
    });
    engine.refuse(refusal(PullCause::DiskFull));
    let mut met = join(&handle, "y:1", Urgency::Demand).await;
    until(&handle, |_| engine.pulls().len() == 2).await;
    engine.publish("y:1", "new");
    engine.refuse(None);
    engine.list_containers(Some(false));
    assert!(timeout(PATIENCE, pruning).await.unwrap().unwrap().is_err());
    assert_eq!(reaches(&mut met, has_ended).await, Pull::Ended(Ok(())));
}

#[tokio::test]
async fn a_pull_that_meets_a_full_disk_twice_ends_with_that() {
    let (engine, handle, _owners, mut pull) = met().await;
    engine.hold_removals(false);
    assert_eq!(reaches(&mut pull, has_ended).await, Pull::Ended(Err(refusal(PullCause::DiskFull).unwrap())));
    assert_eq!(engine.pulls(), ["x:1", "w:1", "y:1", "y:1"]);
    assert_eq!(engine.removed(), ["id-x:1"]);
    until(&handle, |now| now.pulling.is_empty() && now.records.intents.is_empty()).await;
}
