//! A short-lived cache of inspected containers.
//!
//! A session's runner inspects a container and takes the step that follows from its state. The step needs the
//! container's id, which the inspection has returned. Without the cache, every step would inspect again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::steps::Own;
use crate::types::SessionId;

/// How long an inspection is used. The step follows it within a millisecond; after a longer time the container
/// may have changed, and the step inspects it again.
const FRESH: Duration = Duration::from_millis(20);

/// The latest inspections, each used for one step at most.
#[derive(Default)]
pub(super) struct Sights {
    /// The lock is held for an insertion or a removal, and spans no await.
    seen: Mutex<HashMap<SessionId, (Instant, Own)>>,
}

impl Sights {
    pub(super) fn keep(&self, session: &SessionId, own: Own, now: Instant) {
        let mut seen = self.lock();
        // Drops the inspections that no step used, so that only those of the last 20 ms are kept.
        seen.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        seen.insert(*session, (now, own));
    }

    /// The session's container, if it was inspected within [`FRESH`].
    pub(super) fn take(&self, session: &SessionId, now: Instant) -> Option<Own> {
        self.lock().remove(session).filter(|(at, _)| now.duration_since(*at) < FRESH).map(|(_, own)| own)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, (Instant, Own)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Container;

    fn session(key: &str) -> SessionId {
        SessionId::of_key(&"lab".parse().unwrap(), key)
    }

    fn own(id: &str) -> Own {
        Own { id: id.to_owned(), state: Container::Created, health: None, network: None }
    }

    #[test]
    fn an_inspection_serves_one_step_for_a_short_time() {
        let (sights, now) = (Sights::default(), Instant::now());
        sights.keep(&session("a"), own("1"), now);
        sights.keep(&session("a"), own("2"), now);
        let taken = |key, at| sights.take(&session(key), at).map(|own| own.id);
        assert_eq!(taken("b", now), None);
        assert_eq!(taken("a", now), Some("2".to_owned()));
        assert_eq!(taken("a", now), None);

        sights.keep(&session("a"), own("1"), now);
        assert_eq!(taken("a", now + FRESH), None);
    }

    #[test]
    fn unused_inspections_are_dropped() {
        let (sights, now) = (Sights::default(), Instant::now());
        sights.keep(&session("a"), own("1"), now);
        sights.keep(&session("b"), own("2"), now + FRESH);
        assert_eq!(sights.lock().len(), 1);
    }
}
