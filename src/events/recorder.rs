//! Handles for the tests of other parts.

use super::{Actor, Arc, AtomicU64, Counts, Handle, Happening, Published, QUEUE, Recorded, Request};
use tokio::sync::{mpsc, watch};

/// What was recorded.
pub(crate) struct Recorder(mpsc::Receiver<Request>);

/// A handle without a log, and what is recorded with it.
pub(crate) fn recorder() -> (Handle, Recorder) {
    let (requests, recorded) = mpsc::channel(QUEUE);
    let handle = Handle {
        requests,
        handed: Arc::new(AtomicU64::new(0)),
        taken: watch::channel(u64::MAX).1,
        counts: Counts::default(),
        published: watch::channel(Arc::new(Published::default())).1,
        trouble: watch::channel(None).1,
    };
    (handle, Recorder(recorded))
}

/// A handle that drops everything.
pub(crate) fn nowhere() -> Handle {
    recorder().0
}

impl Recorder {
    /// What was recorded since the last call, and who did it.
    pub(crate) fn take(&mut self) -> Vec<(Happening, Option<Actor>)> {
        let mut taken = Vec::new();
        while let Ok(request) = self.0.try_recv() {
            if let Request::Record(recorded) = request {
                let Recorded { happening, by } = *recorded;
                taken.push((happening, by));
            }
        }
        taken
    }
}
