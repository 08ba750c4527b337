//! What the leader tells the event log of the cluster: nodes that come and go, and who leads.
//!
//! In a partition the leader of each side tells what its side sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{LeadershipWatch, ViewWatch};
use crate::clock::Clock;
use crate::election::Leadership;
use crate::events::{self, Happening};
use crate::gossip::{ClusterView, Member};
use crate::types::{Name, NodeId, NodeState, Timestamp};

/// Starts the owner. It ends with the election or with gossip.
pub fn spawn(
    me: (NodeId, Name),
    leadership: LeadershipWatch,
    view: ViewWatch,
    events: events::Handle,
    clock: Clock,
) -> JoinHandle<()> {
    tokio::spawn(run(me, leadership, view, events, clock))
}

async fn run(
    (me, name): (NodeId, Name),
    mut leadership: LeadershipWatch,
    mut view: ViewWatch,
    events: events::Handle,
    clock: Clock,
) {
    let mut news = News::new(me, name, &view.borrow());
    loop {
        let (leads, seen) = (leadership.borrow_and_update().clone(), view.borrow_and_update().clone());
        news.see(&leads, &seen, clock.now().wall).into_iter().for_each(|happening| events.record(happening, None));
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            // Without a mesh the view never changes.
            Ok(()) = view.changed() => {}
        }
    }
}

/// What was told, by which the next look is compared.
struct News {
    me: NodeId,
    name: Name,
    /// The last leader that was known.
    leader: Option<NodeId>,
    /// The term that this node leads in.
    term: Option<u64>,
    nodes: BTreeMap<NodeId, Known>,
}

struct Known {
    name: Option<Name>,
    /// Alive, unknown or left: a node that is suspect is what it was before.
    state: NodeState,
    /// It was alive in this life of the agent, or is known from an earlier one. Gossip hears of a new node from others, so
    /// that it is unknown at first.
    has_joined: bool,
}

impl News {
    /// The nodes that are known from the last life of this agent are no news.
    fn new(me: NodeId, name: Name, view: &ClusterView) -> Self {
        let known = |member: &Arc<Member>| Known { name: name_of(member), state: member.state, has_joined: true };
        let nodes = view.members.iter().map(|(id, member)| (*id, known(member)));
        Self { me, name, leader: None, term: None, nodes: nodes.collect() }
    }

    fn see(&mut self, leadership: &Leadership, view: &ClusterView, now: Timestamp) -> Vec<Happening> {
        let mut told = self.see_leader(leadership);
        if leadership.leader.is_some() {
            // While there is no leader nothing is compared: the next one tells what happened meanwhile.
            let changes = self.see_nodes(view, now);
            told.extend(changes.into_iter().filter(|_| leadership.reign.is_some()));
        }
        told
    }

    fn see_leader(&mut self, leadership: &Leadership) -> Vec<Happening> {
        let term = leadership.reign.as_ref().map(|reign| reign.ballot.term);
        let mut told = Vec::new();
        if let Some(ended) = self.term.filter(|_| term != self.term) {
            told.push(Happening::leader_lost(&self.me, &self.name, ended));
        }
        if let Some(begun) = term.filter(|_| term != self.term) {
            let previous = self.leader.filter(|leader| *leader != self.me).map(|leader| self.shown(&leader));
            told.push(Happening::leader_elected(&self.me, &self.name, begun, previous.as_deref()));
        }
        self.term = term;
        self.leader = leadership.leader.or(self.leader);
        told
    }

    fn see_nodes(&mut self, view: &ClusterView, now: Timestamp) -> Vec<Happening> {
        // A node that was forgotten is told where it was forgotten.
        self.nodes.retain(|id, _| view.members.contains_key(id));
        view.members.iter().filter_map(|(id, member)| self.see_node(id, member, now)).collect()
    }

    fn see_node(&mut self, id: &NodeId, member: &Arc<Member>, now: Timestamp) -> Option<Happening> {
        use NodeState::{Alive, Left, Suspect, Unknown};
        // Nothing can be said of a node whose name has not arrived.
        let name = name_of(member).or_else(|| self.nodes.get(id)?.name.clone())?;
        if member.state == Suspect {
            return None;
        }
        let address = member.address.ip().to_string();
        let had_joined = self.nodes.get(id).is_some_and(|known| known.has_joined);
        let has_joined = had_joined || member.state == Alive;
        let before = self.nodes.insert(*id, Known { name: Some(name.clone()), state: member.state, has_joined });
        match (before.map(|known| known.state), member.state) {
            (_, Alive) if !had_joined => Some(Happening::node_joined(id, &name, &address)),
            (Some(Left | Unknown), Alive) => Some(Happening::node_back(id, &name, &address)),
            (Some(Alive | Suspect), Unknown) => Some(Happening::node_lost(id, &name, now.since(member.last_seen))),
            (Some(Alive | Suspect), Left) => Some(Happening::node_left(id, &name)),
            _ => None,
        }
    }

    fn shown(&self, node: &NodeId) -> String {
        let name = self.nodes.get(node).and_then(|known| known.name.as_ref());
        name.map_or_else(|| node.to_string(), Name::to_string)
    }
}

fn name_of(member: &Arc<Member>) -> Option<Name> {
    member.profile.as_ref().map(|profile| profile.name.clone())
}

#[cfg(test)]
mod tests;
