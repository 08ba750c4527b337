//! This node as everybody sees it: what its owners publish, brought together.

pub mod conditions;
pub mod view;

use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::runtime::Health;
use crate::sessions::Snapshot;
use crate::types::{Condition, Node, RuntimeKind};
use crate::{capacity, node};

use view::{Seen, describe};

/// What does not change while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where the other nodes and people reach this one.
    pub address: String,
    /// Of the daemon.
    pub version: String,
    pub runtime: RuntimeKind,
}

/// Looks at this node for whoever asks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Observer {
    node: node::Handle,
    capacity: capacity::Handle,
    sessions: watch::Receiver<Arc<Snapshot>>,
    health: watch::Receiver<Health>,
    conditions: watch::Receiver<Arc<Vec<Condition>>>,
    facts: Arc<Facts>,
    clock: Clock,
}

impl Observer {
    pub fn new(
        node: node::Handle,
        capacity: capacity::Handle,
        sessions: watch::Receiver<Arc<Snapshot>>,
        health: watch::Receiver<Health>,
        conditions: watch::Receiver<Arc<Vec<Condition>>>,
        facts: Facts,
        clock: Clock,
    ) -> Self {
        Self { node, capacity, sessions, health, conditions, facts: Arc::new(facts), clock }
    }

    /// What the operator should know, whenever that changes.
    pub fn watch_conditions(&self) -> watch::Receiver<Arc<Vec<Condition>>> {
        self.conditions.clone()
    }

    /// The node as it is now.
    pub fn node(&self) -> Node {
        describe(Seen {
            state: &self.node.state(),
            report: &self.capacity.report(),
            sessions: &self.sessions.borrow().clone(),
            health: &self.health.borrow().clone(),
            conditions: &self.conditions.borrow().clone(),
            facts: &self.facts,
            now: self.clock.now(),
        })
    }
}
