//! Notices when shims end, including those that an earlier agent started.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;

use super::processes::Process;
use crate::types::SessionId;

/// Ends that wait for the reader. A reader that is further behind lists every session instead.
const UNREAD: usize = 1024;
/// The pause before the next attempt to watch a shim after the kernel gave no handle: open files have run out.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(super) struct Watcher {
    ends: broadcast::Sender<SessionId>,
    /// Any call may be the first to see a shim, and a task per shim sees its end. Both hold the lock for
    /// one look-up, and never across an await.
    watched: Arc<Mutex<BTreeMap<SessionId, Process>>>,
}

impl Watcher {
    pub(super) fn new() -> Self {
        Self { ends: broadcast::Sender::new(UNREAD), watched: Arc::default() }
    }

    /// Receives the sessions whose shims end from now on.
    pub(super) fn ends(&self) -> broadcast::Receiver<SessionId> {
        self.ends.subscribe()
    }

    /// Watches a session's shim, once.
    pub(super) fn watch(&self, session: &SessionId, shim: Process) {
        if self.lock().insert(*session, shim) == Some(shim) {
            return;
        }
        let (watcher, session) = (self.clone(), *session);
        tokio::spawn(async move {
            while let Err(e) = shim.ended().await {
                tracing::warn!(%session, "cannot watch the session's shim, trying again: {e}");
                tokio::time::sleep(RETRY).await;
            }
            watcher.forget(&session, shim);
            // Fails only if there is no receiver; then no task needs the end.
            let _ = watcher.ends.send(session);
        });
    }

    fn forget(&self, session: &SessionId, shim: Process) {
        let mut watched = self.lock();
        if watched.get(session) == Some(&shim) {
            watched.remove(session);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionId, Process>> {
        // Each change is one call: a panic elsewhere leaves no change half done.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_sent_once_and_then_forgotten() {
        let mut sleeper = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let shim = Process::of_pid(i32::try_from(sleeper.id().unwrap()).unwrap()).unwrap();
        let session = SessionId::of_key(&"c".parse().unwrap(), "k");
        let watcher = Watcher::new();
        let mut ends = watcher.ends();
        watcher.watch(&session, shim);
        watcher.watch(&session, shim);
        sleeper.kill().await.unwrap();
        assert_eq!(ends.recv().await.unwrap(), session);
        assert!(watcher.lock().is_empty());
        watcher.watch(&session, shim);
        assert_eq!(ends.recv().await.unwrap(), session, "the end of a shim that is already gone is sent too");
        assert!(ends.try_recv().is_err(), "each end is sent once");
    }
}
