//! What was seen of containers a moment ago.
//!
//! A session's runner looks at a container and takes the step that follows from it. The step needs the
//! container's id, which that look has shown: without it, half of what the engine is asked would be
//! asked twice.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::steps::Own;
use crate::types::SessionId;

/// A look and the step that follows it are less than a millisecond apart. An older look shows what may
/// have changed, and the step takes another.
const FRESH: Duration = Duration::from_millis(20);

/// The latest looks, each good for one step.
#[derive(Default)]
pub(super) struct Sights {
    /// The lock is held to insert or to take out, and spans no await.
    seen: Mutex<HashMap<SessionId, (Instant, Own)>>,
}

impl Sights {
    pub(super) fn keep(&self, session: &SessionId, own: Own, now: Instant) {
        let mut seen = self.lock();
        // What nobody took up goes here, so that no more is kept than was seen within that time.
        seen.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        seen.insert(*session, (now, own));
    }

    /// The session's container, if it was seen just now.
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
        Own { id: id.to_owned(), state: Container::Created, network: None }
    }

    #[test]
    fn a_look_is_good_for_one_step_and_for_a_moment() {
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
    fn what_nobody_takes_up_is_not_kept() {
        let (sights, now) = (Sights::default(), Instant::now());
        sights.keep(&session("a"), own("1"), now);
        sights.keep(&session("b"), own("2"), now + FRESH);
        assert_eq!(sights.lock().len(), 1);
    }
}
