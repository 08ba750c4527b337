//! Pulls that meet a full disk.

use super::prune::{BY, pulled};
use super::*;
use crate::images::pressure::Watermarks;

/// An owner with an image that nothing needs, on a disk that is too full. A pull of `y:1` has met that, and the engine
/// takes its time with the removal.
async fn met() -> (Arc<FakeImages>, Handle, owners::Owners, watch::Receiver<Pull>) {
    // Of any disk more than 0 % is used.
    let config = Config { watermarks: Watermarks { high: 0, low: 0 }, ..Config::default() };
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
    handle.prune(None, true, BY).await.unwrap();
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
async fn a_pull_that_meets_a_full_disk_twice_ends_with_that() {
    let (engine, handle, _owners, mut pull) = met().await;
    engine.hold_removals(false);
    assert_eq!(reaches(&mut pull, has_ended).await, Pull::Ended(Err(refusal(PullCause::DiskFull).unwrap())));
    assert_eq!(engine.pulls(), ["x:1", "w:1", "y:1", "y:1"]);
    assert_eq!(engine.removed(), ["id-x:1"]);
    until(&handle, |now| now.pulling.is_empty() && now.records.intents.is_empty()).await;
}
