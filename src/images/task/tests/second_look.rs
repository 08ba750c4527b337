//! What happens between the moment in which a prune publishes that an image is going and its second look.

use std::pin::Pin;
use std::sync::{Mutex, TryLockError};
use std::task::{Context, Wake, Waker};

use futures_util::FutureExt;
use tokio::task::unconstrained;

use super::prune::{kept, prune, pulled, removed};
use super::*;
use crate::types::{KeptBecause, Prune, PruneReason};

/// A future that goes on within the call that wakes it: what it awaits is followed before its cause goes on.
struct AtOnce(Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl AtOnce {
    /// Polls it as far as it goes now.
    fn begin(future: impl Future<Output = ()> + Send + 'static) {
        // Without an allowance of its task, which would wake it while it is polled.
        let future = unconstrained(future).fuse();
        Arc::new(Self(Mutex::new(Box::pin(future)))).wake();
    }
}

impl Wake for AtOnce {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        match self.0.try_lock() {
            Ok(mut future) => drop(future.as_mut().poll(&mut Context::from_waker(&waker))),
            Err(TryLockError::WouldBlock) => panic!("woken while it is polled"),
            Err(TryLockError::Poisoned(_)) => {}
        }
    }
}

#[tokio::test]
async fn a_session_that_found_the_image_just_before_it_was_published_as_going_keeps_it() {
    let (engine, handle, _, owners) = pulled(&["x:1", "x:2"], Config::default()).await;
    let (mut snapshot, owners) = (handle.watch(), Arc::new(owners));
    let sessions = Arc::clone(&owners);
    AtOnce::begin(async move {
        snapshot.wait_for(|now| now.removing.contains("id-x:1")).await.unwrap();
        sessions.admit("x:1");
    });
    let report = prune(&handle, Some(Prune::Aggressive)).await;
    assert_eq!(kept(&report, "id-x:1"), KeptBecause::Session);
    assert_eq!(removed(&report), [("id-x:2", PruneReason::Unnamed)], "the round goes on");
    assert_eq!(engine.removed(), ["id-x:2"]);
    until(&handle, |now| now.removing.is_empty()).await;
    assert!(handle.snapshot().records.is_ours(&place(), "id-x:1", &["x:1".to_owned()]));
}
