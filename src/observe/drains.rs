//! What the event log is told of a drain after it was started: that no session is left, or that its time is up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::events::{self, Happening};
use crate::node::State;
use crate::sessions::Snapshot;
use crate::types::{Moment, SessionId, Timestamp};

/// A drain that began longer ago was known before.
const NEWS: Duration = Duration::from_secs(10);

/// Starts the owner. It ends with the owner of the settings or of the sessions.
pub fn spawn(
    node: watch::Receiver<Arc<State>>,
    sessions: watch::Receiver<Arc<Snapshot>>,
    events: events::Handle,
    clock: Clock,
) -> JoinHandle<()> {
    tokio::spawn(run(node, sessions, events, clock))
}

async fn run(
    mut node: watch::Receiver<Arc<State>>,
    mut sessions: watch::Receiver<Arc<Snapshot>>,
    events: events::Handle,
    clock: Clock,
) {
    let mut drains = Drains::default();
    loop {
        let state = node.borrow_and_update().clone();
        let happening = drains.see(&state, &sessions.borrow_and_update().reserved, clock.now());
        events.record_some(happening, None);
        let until_deadline = left(&state, clock.now());
        tokio::select! {
            changed = node.changed() => if changed.is_err() { return },
            changed = sessions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(until_deadline.unwrap_or_default()), if until_deadline.is_some() => {}
        }
    }
}

/// What was told of the drain.
#[derive(Debug, Default)]
struct Drains {
    /// Since when the node has drained.
    since: Option<Timestamp>,
    /// There were sessions, so their end is news.
    has_sessions: bool,
    overdue: bool,
}

impl Drains {
    fn see(&mut self, node: &State, reserved: &BTreeSet<SessionId>, now: Moment) -> Option<Happening> {
        let Some(drain) = &node.drain else {
            *self = Self { has_sessions: !reserved.is_empty(), ..Self::default() };
            return None;
        };
        if self.since != Some(drain.since) {
            // A drain of an empty node is done at once; one that was known before the agent started is no news.
            let begins = now.wall.since(drain.since) < NEWS;
            *self = Self { since: Some(drain.since), has_sessions: begins || self.has_sessions, overdue: !begins };
        }
        let is_due = drain.deadline.is_some_and(|deadline| deadline.is_due(now));
        if !is_due {
            self.overdue = false;
        }
        if reserved.is_empty() {
            return std::mem::take(&mut self.has_sessions).then(|| Happening::drain_done(&node.id, &node.name));
        }
        self.has_sessions = true;
        if is_due && !std::mem::replace(&mut self.overdue, true) {
            let blockers: Vec<SessionId> = reserved.iter().copied().collect();
            return Some(Happening::drain_overdue(&node.id, &node.name, &blockers));
        }
        None
    }
}

/// Until the deadline, if it is still to come.
fn left(node: &State, now: Moment) -> Option<Duration> {
    let left = node.drain.as_ref()?.deadline?.remaining(now);
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{DrainState, fixture};
    use crate::types::{Deadline, EventKind, sample};

    fn at(seconds: u64) -> Moment {
        fixture::moment().plus(Duration::from_secs(seconds))
    }

    fn draining(deadline_seconds: Option<u64>) -> State {
        let deadline = deadline_seconds.map(|seconds| Deadline::after(at(0), Duration::from_secs(seconds)));
        let drain = DrainState { since: at(0).wall, deadline, stop_sessions: false, message: None };
        State { drain: Some(drain), ..fixture::state() }
    }

    fn told(drains: &mut Drains, node: &State, sessions: u8, seconds: u64) -> Option<EventKind> {
        let reserved = (0..sessions).map(|n| sample::session_id(&n.to_string())).collect();
        drains.see(node, &reserved, at(seconds)).map(|happening| happening.kind)
    }

    #[test]
    fn a_drain_is_done_once_and_overdue_once() {
        let (mut drains, node) = (Drains::default(), draining(Some(60)));
        assert_eq!(told(&mut drains, &fixture::state(), 2, 0), None);
        assert_eq!(told(&mut drains, &node, 2, 1), None);
        assert_eq!(left(&node, at(1)), Some(Duration::from_secs(59)));
        assert_eq!(told(&mut drains, &node, 2, 60), Some(EventKind::DrainOverdue));
        assert_eq!(told(&mut drains, &node, 1, 61), None);
        assert_eq!(left(&node, at(61)), None);
        assert_eq!(told(&mut drains, &node, 0, 62), Some(EventKind::DrainDone));
        assert_eq!(told(&mut drains, &node, 0, 63), None);
        assert_eq!(told(&mut drains, &fixture::state(), 0, 64), None);
    }

    #[test]
    fn a_drain_of_an_empty_node_is_done_at_once_and_one_from_before_the_start_is_no_news() {
        let node = draining(Some(60));
        assert_eq!(told(&mut Drains::default(), &node, 0, 1), Some(EventKind::DrainDone));
        let mut drains = Drains::default();
        assert_eq!(told(&mut drains, &node, 0, 100), None);
        assert_eq!(told(&mut drains, &node, 2, 101), None, "it was overdue before");
        assert_eq!(told(&mut drains, &node, 0, 102), Some(EventKind::DrainDone));
    }
}
