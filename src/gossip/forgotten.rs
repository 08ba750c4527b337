//! Nodes and sessions that the operator removed because they will not return. Pure.
//!
//! Other nodes still spread their state for a while. So this node remembers what was removed, and does not list it
//! again until the node itself is back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Entry;
use crate::types::{BootInstant, NodeId, SessionId};

/// How long a dead life of a node can still look alive: until the failure detectors of all nodes have noticed its
/// death, they spread heartbeats that they received at different times, and each later one makes it look alive again.
pub(super) const ECHO: Duration = Duration::from_secs(30);
/// Removed nodes, and nodes with removed sessions, that are remembered at most. Above it, some are listed again if
/// other nodes still spread their state.
const MAX_NODES: usize = 1000;

/// By node, the life of which something is not to be listed again.
#[derive(Debug, Clone, Default)]
pub(super) struct Forgotten(BTreeMap<NodeId, Life>);

#[derive(Debug, Clone)]
struct Life {
    incarnation: u64,
    /// Since when it has looked alive again.
    heard_since: Option<BootInstant>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    All,
    Sessions(BTreeSet<SessionId>),
}

impl Forgotten {
    pub(super) fn add_node(&mut self, id: &NodeId, incarnation: u64) {
        self.0.insert(*id, Life { incarnation, heard_since: None, what: What::All });
        self.bound();
    }

    pub(super) fn add_session(&mut self, id: &NodeId, incarnation: u64, session: &SessionId) {
        let nothing = || Life { incarnation, heard_since: None, what: What::Sessions(BTreeSet::new()) };
        if let What::Sessions(sessions) = &mut self.0.entry(*id).or_insert_with(nothing).what {
            sessions.insert(*session);
        }
        self.bound();
    }

    fn bound(&mut self) {
        while self.0.len() > MAX_NODES {
            self.0.pop_first();
        }
    }

    /// Compares with the newest life of every node. Nodes that are back are no longer forgotten, nor their sessions.
    pub(super) fn look(&mut self, newest: &BTreeMap<&NodeId, &Entry>, now: BootInstant) {
        self.0.retain(|id, life| newest.get(id).is_none_or(|entry| life.is_over(entry, now)));
    }

    /// Whether the whole node is removed.
    pub(super) fn has_node(&self, id: &NodeId) -> bool {
        self.0.get(id).is_some_and(|life| matches!(life.what, What::All))
    }

    /// The nodes that are removed as a whole.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.0.keys().filter(|id| self.has_node(id))
    }

    /// The removed sessions of a node.
    pub(super) fn sessions_of(&self, id: &NodeId) -> Option<&BTreeSet<SessionId>> {
        match &self.0.get(id)?.what {
            What::All => None,
            What::Sessions(sessions) => Some(sessions),
        }
    }

    /// The sessions that are not to be listed, of all nodes.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (&NodeId, &BTreeSet<SessionId>)> {
        self.0.keys().filter_map(|id| Some((id, self.sessions_of(id)?)))
    }
}

impl Life {
    /// Whether the node's newest life is still this one, and is over.
    fn is_over(&mut self, newest: &Entry, now: BootInstant) -> bool {
        if newest.incarnation > self.incarnation {
            return false;
        }
        self.heard_since = newest.live.then(|| self.heard_since.unwrap_or(now));
        self.heard_since.is_none_or(|since| now.since(since) < ECHO)
    }
}
