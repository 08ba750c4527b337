//! The nodes and sessions that an operator removed because a node will not return. Pure.
//!
//! Gossip still spreads their keys for a while. This list keeps them out of the view until the node itself connects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Entry;
use crate::types::{BootInstant, NodeId, SessionId};

/// How long a dead run can seem alive. Other nodes received its last heartbeat at different times, and each later
/// heartbeat makes it seem alive again, until the failure detectors of all nodes have noticed.
pub(super) const ECHO: Duration = Duration::from_secs(30);
/// Nodes in the list at most. Above it, some are dropped from the list, and return if gossip still spreads their keys.
const MAX_NODES: usize = 1000;

/// By node, the run that stays removed.
#[derive(Debug, Clone, Default)]
pub(super) struct Forgotten(BTreeMap<NodeId, Life>);

#[derive(Debug, Clone)]
struct Life {
    incarnation: u64,
    /// Since when the run has seemed alive again.
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

    /// Drops the nodes from the list that have connected again, judged by the newest run of every node.
    pub(super) fn look(&mut self, newest: &BTreeMap<&NodeId, &Entry>, now: BootInstant) {
        self.0.retain(|id, life| newest.get(id).is_none_or(|entry| life.is_over(entry, now)));
    }

    /// Whether the whole node is removed.
    pub(super) fn has_node(&self, id: &NodeId) -> bool {
        self.0.get(id).is_some_and(|life| matches!(life.what, What::All))
    }

    /// The removed sessions of a node.
    pub(super) fn sessions_of(&self, id: &NodeId) -> Option<&BTreeSet<SessionId>> {
        match &self.0.get(id)?.what {
            What::All => None,
            What::Sessions(sessions) => Some(sessions),
        }
    }

    /// The removed sessions of all nodes.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (&NodeId, &BTreeSet<SessionId>)> {
        self.0.keys().filter_map(|id| Some((id, self.sessions_of(id)?)))
    }
}

impl Life {
    /// Whether the newest run of the node is still this one, and dead.
    fn is_over(&mut self, newest: &Entry, now: BootInstant) -> bool {
        if newest.incarnation > self.incarnation {
            return false;
        }
        self.heard_since = newest.live.then(|| self.heard_since.unwrap_or(now));
        self.heard_since.is_none_or(|since| now.since(since) < ECHO)
    }
}
