//! This node as the cluster and the API show it, assembled from what its owners publish.

pub mod conditions;
pub mod drains;
pub mod view;

use std::sync::Arc;

use tokio::sync::watch;

use crate::capacity::Report;
use crate::clock::Clock;
use crate::images::Here;
use crate::node::State;
use crate::runtime::Health;
use crate::sessions::Snapshot;
use crate::types::{Condition, Node, NodeProfile, NodeState, NodeUsage, RuntimeKind, Sighting, Timestamp};

use view::Inputs;

/// What does not change while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where other nodes and people reach this node.
    pub address: String,
    /// The version of the daemon.
    pub version: String,
    pub runtime: RuntimeKind,
}

/// What the owners of this node publish.
#[derive(Debug, Clone)]
pub struct Sources {
    pub node: watch::Receiver<Arc<State>>,
    pub report: watch::Receiver<Arc<Report>>,
    pub sessions: watch::Receiver<Arc<Snapshot>>,
    pub health: watch::Receiver<Health>,
    pub conditions: watch::Receiver<Arc<Vec<Condition>>>,
    /// The images of the catalogue that this node has.
    pub images: watch::Receiver<Arc<Here>>,
}

/// The profile and images of this node. The version starts at 0 with the agent and grows by one with each change.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    pub version: u64,
    pub profile: Arc<NodeProfile>,
    pub images: Arc<Here>,
}

/// Reads the state of this node for every caller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Observer {
    sources: Sources,
    facts: Arc<Facts>,
    clock: Clock,
    /// As last read. Readers update it one at a time, so that no reader overwrites a later state with an earlier one.
    observed: Arc<watch::Sender<Observed>>,
}

impl Observer {
    pub fn new(sources: Sources, facts: Facts, clock: Clock) -> Self {
        let (profile, images) = (Arc::new(profile(&sources, &facts, &clock)), sources.images.borrow().clone());
        let observed = Arc::new(watch::Sender::new(Observed { version: 0, profile, images }));
        Self { sources, facts: Arc::new(facts), clock, observed }
    }

    /// The profile and images of this node now, with their version.
    pub fn observed(&self) -> Observed {
        self.observed.send_if_modified(|last| {
            let (profile, images) = (profile(&self.sources, &self.facts, &self.clock), self.sources.images.borrow());
            let changed = *last.profile != profile || last.images != *images;
            if changed {
                *last = Observed { version: last.version + 1, profile: Arc::new(profile), images: Arc::clone(&images) };
            }
            changed
        });
        self.observed.borrow().clone()
    }

    /// Returns once [`Observed::version`] is not `version`.
    pub async fn differs_from(&self, version: Option<u64>) {
        let Sources { mut node, mut report, mut sessions, mut health, mut conditions, mut images } =
            self.sources.clone();
        node.mark_unchanged();
        report.mark_unchanged();
        sessions.mark_unchanged();
        health.mark_unchanged();
        conditions.mark_unchanged();
        images.mark_unchanged();
        while version == Some(self.observed().version) {
            tokio::select! {
                // The pattern does not match a closed channel, so that one whose sender is dropped is ignored.
                Ok(()) = node.changed() => {}
                Ok(()) = report.changed() => {}
                Ok(()) = sessions.changed() => {}
                Ok(()) = health.changed() => {}
                Ok(()) = conditions.changed() => {}
                Ok(()) = images.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// The last measurement of this node.
    pub fn usage(&self) -> NodeUsage {
        view::usage(&self.sources.report.borrow(), &self.sources.sessions.borrow())
    }

    /// The time of this host's wall clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now().wall
    }

    /// The node now, as it sees itself: alive, and never as the leader, which the observer does not know.
    pub fn node(&self) -> Node {
        let seen = Sighting { state: NodeState::Alive, is_leader: false, last_seen: self.now() };
        Node::of(&self.observed().profile, &self.usage(), seen)
    }
}

fn profile(sources: &Sources, facts: &Facts, clock: &Clock) -> NodeProfile {
    view::profile(Inputs {
        state: &sources.node.borrow().clone(),
        report: &sources.report.borrow().clone(),
        sessions: &sources.sessions.borrow().clone(),
        health: &sources.health.borrow().clone(),
        conditions: &sources.conditions.borrow().clone(),
        facts,
        now: clock.now(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capacity::Utilized;
    use crate::node::{DrainState, fixture};
    use crate::types::{Bytes, Cores, Deadline, Disk};

    /// The owners whose state an observer reads.
    struct Owners {
        node: watch::Sender<Arc<State>>,
        report: watch::Sender<Arc<Report>>,
        images: watch::Sender<Arc<Here>>,
        clock: Clock,
    }

    fn draining() -> (Owners, Observer) {
        let deadline = Some(Deadline::after(fixture::moment(), Duration::from_secs(3600)));
        let since = fixture::moment().wall;
        let drain = Some(DrainState { since, deadline, stop_sessions: true, message: None });
        let owners = Owners {
            node: watch::Sender::new(Arc::new(State { drain, ..fixture::state() })),
            report: watch::Sender::new(Arc::new(fixture::report())),
            images: watch::Sender::default(),
            clock: Clock::manual(fixture::moment()),
        };
        let sources = Sources {
            node: owners.node.subscribe(),
            report: owners.report.subscribe(),
            sessions: watch::channel(Arc::default()).1,
            health: watch::channel(Health::Unknown).1,
            conditions: watch::channel(Arc::default()).1,
            images: owners.images.subscribe(),
        };
        let facts = Facts { address: "h:1".to_owned(), version: "0".to_owned(), runtime: RuntimeKind::Docker };
        let observer = Observer::new(sources, facts, owners.clock.clone());
        (owners, observer)
    }

    /// Advances the clock and publishes new measurements, which differ for each `reading`.
    fn measure_again(owners: &Owners, reading: u32) {
        owners.clock.advance(Duration::from_millis(5003));
        let utilized =
            Utilized { cores: Some(Cores::from_milli(reading.into())), memory: None, at: owners.clock.now().wall };
        owners.report.send_modify(|report| {
            let free_bytes = Bytes::new(reading.into());
            let disks = vec![Disk { path: "/".to_owned(), total_bytes: Bytes::gib(100), free_bytes, inodes: None }];
            let load = Some([f64::from(reading); 3]);
            *report = Arc::new(Report { utilized: Some(utilized), disks, load, ..fixture::report() });
        });
    }

    #[test]
    fn measurements_do_not_change_the_version_of_a_draining_node() {
        let (owners, observer) = draining();
        let first = observer.observed();
        // 1000 readings of 5 s last longer than the deadline of one hour.
        for reading in 0..1000 {
            measure_again(&owners, reading);
            assert_eq!(observer.observed(), first);
            assert_eq!(observer.usage().cores, Some(Cores::from_milli(reading.into())));
        }
    }

    #[test]
    fn each_change_increases_the_version() {
        let (owners, observer) = draining();
        owners.node.send_modify(|state| *state = Arc::new(fixture::state()));
        assert_eq!(observer.observed().version, 1);
        assert!(observer.observed().profile.drain.is_none());
        owners.report.send_modify(|report| Arc::make_mut(report).physical.gpus += 1);
        assert_eq!(observer.observed().version, 2);
        owners.images.send_replace(Arc::new([("busybox".to_owned(), None)].into()));
        assert_eq!((observer.observed().version, observer.observed().version), (3, 3));
    }

    #[tokio::test]
    async fn measurements_do_not_wake_a_waiter_and_a_change_does() {
        let (owners, observer) = draining();
        let version = Some(observer.observed().version);
        let waiting = tokio::spawn({
            let observer = observer.clone();
            async move { observer.differs_from(version).await }
        });
        for reading in 0..100 {
            measure_again(&owners, reading);
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
        }
        owners.node.send_modify(|state| *state = Arc::new(fixture::state()));
        waiting.await.unwrap();
        observer.differs_from(None).await;
    }
}
