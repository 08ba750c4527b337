//! Combines everything that one node knows of nodes and sessions. Pure.
//!
//! The sources, freshest first: this node itself, the reports of hosts while this node leads, and gossip with the
//! roster.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Error;
use crate::election::Leadership;
use crate::gossip::{ClusterView, Member};
use crate::placement::Fleet;
use crate::placement::index::HostView;
use crate::sessions::Snapshot;
use crate::types::{
    List, Node, NodeId, NodeProfile, NodeState, NodeUsage, Remembered, Session, SessionActivity, SessionFilter,
    SessionId, SessionProfile, SessionState, Sighting, Timestamp,
};

/// The sources.
pub(super) struct Knowledge {
    /// This node.
    pub(super) own: Node,
    /// This node's sessions.
    pub(super) sessions: Arc<Snapshot>,
    /// What hosts reported, while this node leads.
    pub(super) fleet: Arc<Fleet>,
    pub(super) view: Arc<ClusterView>,
    pub(super) leadership: Arc<Leadership>,
}

/// A session in a list, without a copy of it.
struct Listed<'a> {
    session: &'a SessionProfile,
    /// `None`: the session is known only from gossip.
    activity: Option<&'a SessionActivity>,
    gone: bool,
    /// Its host does not answer, so its state is not known.
    unknown: bool,
}

impl Knowledge {
    /// Every node, by name.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let own = Node { is_leader: self.leads(&self.own.id), ..self.own.clone() };
        let others = self.view.members.iter().filter_map(|(id, member)| self.other(id, member));
        // A host may report to its leader before gossip knows the host.
        let told =
            self.fleet.hosts.iter().filter(|(id, _)| !self.view.members.contains_key(*id) && **id != self.own.id);
        let told = told.map(|(_, host)| self.told(host, NodeState::Alive));
        let mut nodes: Vec<Node> = std::iter::once(own).chain(others).chain(told).collect();
        nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        nodes
    }

    fn other(&self, id: &NodeId, member: &Member) -> Option<Node> {
        let state = self.state_of(id, member);
        let told = self.fleet.hosts.get(id);
        match (told, &member.profile) {
            (Some(fresh), _) if state == NodeState::Alive => Some(self.told(fresh, state)),
            (_, Some(profile)) => Some(self.seen(profile, &member.usage, state, member.last_seen)),
            // The host may have failed after its report, before gossip had its profile.
            (told, None) => Some(self.told(told?, state)),
        }
    }

    fn told(&self, host: &HostView, state: NodeState) -> Node {
        self.seen(&host.profile, &host.usage, state, host.last_seen)
    }

    fn seen(&self, profile: &NodeProfile, usage: &NodeUsage, state: NodeState, last_seen: Timestamp) -> Node {
        Node::of(profile, usage, Sighting { state, is_leader: self.leads(&profile.id), last_seen })
    }

    fn leads(&self, id: &NodeId) -> bool {
        self.leadership.leader.as_ref() == Some(id)
    }

    /// A leader gets answers from every node several times a second, so it knows before gossip which nodes are silent
    /// and which are back.
    fn state_of(&self, id: &NodeId, member: &Member) -> NodeState {
        match &self.leadership.reign {
            Some(reign) if reign.reached.contains(id) => NodeState::Alive,
            Some(_) if member.state == NodeState::Alive => NodeState::Suspect,
            _ => member.state,
        }
    }

    /// Every session, each once. Where two hosts have one id, the one that is there counts before what is
    /// gone, then the later attempt.
    fn sessions(&self) -> BTreeMap<&SessionId, Listed<'_>> {
        let own = self.sessions.sessions.values();
        let own = own.map(|session| Listed {
            session,
            activity: self.sessions.activities.get(&session.id),
            gone: self.sessions.gone.contains(&session.id),
            unknown: false,
        });
        let away =
            |id: &NodeId| self.view.members.get(id).is_some_and(|member| self.state_of(id, member) != NodeState::Alive);
        let told = self.fleet.hosts.iter().filter(|(id, _)| **id != self.own.id).flat_map(|(id, host)| {
            let unknown = away(id);
            host.sessions.values().map(move |held| {
                let activity = Some(&held.activity);
                Listed { session: &held.session, activity, gone: held.gone, unknown }
            })
        });
        let heard = self.view.members.iter().filter(|(id, _)| !self.fleet.hosts.contains_key(*id));
        let heard = heard.flat_map(|(id, member)| {
            let unknown = away(id);
            member.sessions.values().map(move |session| Listed { session, activity: None, gone: false, unknown })
        });
        let rank = |seen: &Listed<'_>| (!seen.gone, seen.session.attempt);
        let mut all: BTreeMap<&SessionId, Listed<'_>> = BTreeMap::new();
        for seen in own.chain(told).chain(heard) {
            if all.get(&seen.session.id).is_none_or(|known| rank(known) < rank(&seen)) {
                all.insert(&seen.session.id, seen);
            }
        }
        all
    }

    /// The sessions that `filter` selects, oldest first.
    pub(super) fn list(&self, filter: &SessionFilter) -> List<Session> {
        let mut selected: Vec<(String, Listed<'_>)> = self
            .sessions()
            .into_iter()
            .filter(|(_, seen)| selects(filter, seen))
            .map(|(id, seen)| (format!("{:016x}{id}", seen.session.created_at.millis().max(0)), seen))
            .collect();
        selected.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let page = List::page(selected, filter.after.as_deref(), filter.limit);
        List { items: page.items.iter().map(Listed::shown).collect(), next_cursor: page.next_cursor }
    }

    /// The sessions whose id begins with `prefix`, two at most. Sessions that are gone count only if there is no other:
    /// their ids are kept for retries, not for people.
    pub(super) fn locate(&self, prefix: &str) -> Vec<Remembered> {
        let mut found: Vec<Listed<'_>> =
            self.sessions().into_values().filter(|seen| seen.session.id.as_str().starts_with(prefix)).collect();
        if found.iter().any(|seen| !seen.gone) {
            found.retain(|seen| !seen.gone);
        }
        found.iter().take(2).map(|seen| Remembered { session: seen.shown(), gone: seen.gone }).collect()
    }
}

impl Listed<'_> {
    fn state(&self) -> SessionState {
        let ended = self.gone || self.session.state.has_ended();
        if self.unknown && !ended { SessionState::Unknown } else { self.session.state }
    }

    fn shown(&self) -> Session {
        Session { state: self.state(), ..Session::of(self.session, self.activity) }
    }
}

fn selects(filter: &SessionFilter, seen: &Listed<'_>) -> bool {
    let session = seen.session;
    let on_node = |node: &crate::types::Name| session.node == *node || session.node_id.as_str() == node.as_str();
    (filter.all || !seen.gone)
        && filter.user.as_ref().is_none_or(|user| session.user == *user)
        && filter.state.is_none_or(|state| seen.state() == state)
        && filter.node.as_ref().is_none_or(on_node)
        && filter.workspace.as_ref().is_none_or(|workspace| session.workspace == *workspace)
}

/// The index of the node that `wanted` names. A name comes before "self" and ids, so that no id can hide a name.
pub(super) fn find_node(nodes: &[Node], this: &NodeId, wanted: &str) -> Result<usize, Error> {
    let ambiguous = |found: &[usize]| {
        let mut ids: Vec<NodeId> = found.iter().map(|&i| nodes[i].id).collect();
        ids.sort_unstable_by_key(NodeId::to_string);
        Error::AmbiguousNode { wanted: wanted.to_owned(), ids }
    };
    let by_name: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].name.as_str() == wanted).collect();
    match by_name.as_slice() {
        [found] => return Ok(*found),
        [] => {}
        several => return Err(ambiguous(several)),
    }
    if let Some(found) = nodes.iter().position(|node| node.id == *this).filter(|_| wanted == "self") {
        return Ok(found);
    }
    let by_id: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].id.as_str().starts_with(wanted)).collect();
    match by_id.as_slice() {
        [found] => Ok(*found),
        [] => Err(Error::NoNode(wanted.to_owned())),
        several => Err(ambiguous(several)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::election::Reign;
    use crate::types::{Ballot, BootInstant, ClusterMode, sample};

    const OWN: &str = "aabb222222222222";
    const OTHER: &str = "aacc222222222222";

    fn knowledge() -> Knowledge {
        let leadership = Leadership { leader: None, ballot: None, reign: None };
        Knowledge {
            own: sample::node("one", OWN),
            sessions: Arc::new(snapshot()),
            fleet: Arc::default(),
            view: Arc::default(),
            leadership: Arc::new(leadership),
        }
    }

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (i, (user, state)) in
            [("alice", "running"), ("bob", "running"), ("alice", "stopped"), ("alice", "stopped")].iter().enumerate()
        {
            let mut session = sample::session_profile(&i.to_string(), "desktop", user, state.parse().unwrap());
            session.created_at = Timestamp::from_millis(1000 - i64::try_from(i).unwrap());
            snapshot.sessions.insert(session.id, Arc::new(session));
        }
        snapshot.gone.insert(sample::session_id("3"));
        snapshot
    }

    /// Another node, known from gossip, with one session.
    fn with_another(state: NodeState) -> Knowledge {
        let mut session = sample::session_profile("far", "desktop", "carol", SessionState::Running);
        session.node = "two".parse().unwrap();
        session.node_id = OTHER.parse().unwrap();
        let member = Member {
            address: "127.0.0.1:1".parse().unwrap(),
            incarnation: 1,
            state,
            mode: ClusterMode::Available,
            last_seen: Timestamp::default(),
            profile: Some(Arc::new(sample::profile("two", OTHER))),
            usage: NodeUsage::default(),
            sessions: [(session.id, Arc::new(session))].into(),
            catalogue: None,
        };
        let view =
            ClusterView { members: [(OTHER.parse().unwrap(), Arc::new(member))].into(), ..ClusterView::default() };
        Knowledge { view: Arc::new(view), ..knowledge() }
    }

    fn all() -> SessionFilter {
        SessionFilter { limit: 100, ..SessionFilter::default() }
    }

    fn listed(filter: &SessionFilter) -> Vec<SessionId> {
        knowledge().list(filter).items.into_iter().map(|session| session.id).collect()
    }

    fn ids(keys: &[&str]) -> Vec<SessionId> {
        keys.iter().map(|key| sample::session_id(key)).collect()
    }

    #[test]
    fn sessions_are_listed_oldest_first_and_filtered() {
        let alice = || Some("alice".parse().unwrap());
        assert_eq!(listed(&all()), ids(&["2", "1", "0"]));
        assert_eq!(listed(&SessionFilter { all: true, ..all() }), ids(&["3", "2", "1", "0"]));
        assert_eq!(listed(&SessionFilter { user: alice(), ..all() }), ids(&["2", "0"]));
        let running = SessionFilter { user: alice(), state: Some(SessionState::Running), ..all() };
        assert_eq!(listed(&running), ids(&["0"]));
        assert_eq!(listed(&SessionFilter { workspace: Some("other".parse().unwrap()), ..all() }), ids(&[]));
        assert_eq!(listed(&SessionFilter { node: Some("one".parse().unwrap()), ..all() }), ids(&["2", "1", "0"]));
        assert_eq!(listed(&SessionFilter { node: Some("two".parse().unwrap()), ..all() }), ids(&[]));
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let first = knowledge().list(&SessionFilter { limit: 2, ..all() });
        assert_eq!(first.items.len(), 2);
        let cursor = data_encoding::HEXLOWER.decode(first.next_cursor.unwrap().as_bytes()).unwrap();
        let after = Some(String::from_utf8(cursor).unwrap());
        assert_eq!(listed(&SessionFilter { limit: 2, after, ..all() }), ids(&["0"]));
    }

    #[test]
    fn a_session_is_located_by_the_beginning_of_its_id() {
        let known = knowledge();
        for id in snapshot().sessions.keys() {
            let found = known.locate(id.as_str());
            assert_eq!(found.iter().map(|found| &found.session.id).collect::<Vec<_>>(), [id]);
            assert_eq!(found[0].gone, *id == sample::session_id("3"));
        }
        assert_eq!(known.locate("").len(), 2, "two are enough to see that the prefix is ambiguous");
        assert!(known.locate("").iter().all(|found| !found.gone), "other sessions hide those that are gone");
        assert!(known.locate(&"a".repeat(26)).is_empty());
    }

    #[test]
    fn sessions_of_a_silent_node_are_unknown() {
        let state = |node: NodeState| {
            let known = with_another(node);
            let sessions = known.list(&all()).items;
            let far = sessions.iter().find(|session| session.user.as_str() == "carol").unwrap();
            (known.nodes()[1].state, far.state)
        };
        assert_eq!(state(NodeState::Alive), (NodeState::Alive, SessionState::Running));
        assert_eq!(state(NodeState::Unknown), (NodeState::Unknown, SessionState::Unknown));
        assert_eq!(state(NodeState::Left), (NodeState::Left, SessionState::Unknown));
    }

    #[test]
    fn a_leader_goes_by_its_own_answers_before_gossip() {
        let reign = |reached: &[&str]| {
            let reached: BTreeSet<NodeId> = reached.iter().map(|id| id.parse().unwrap()).collect();
            let ballot = Ballot { term: 1, node: OWN.parse().unwrap() };
            let (electorate, lease) = (reached.clone(), BootInstant::default());
            let reign = Reign { ballot, electorate, reached, needed: 1, lease };
            let reign = Some(Arc::new(reign));
            Arc::new(Leadership { leader: OWN.parse().ok(), ballot: Some(ballot), reign })
        };
        let seen = |node: NodeState, reached: &[&str]| {
            let known = Knowledge { leadership: reign(reached), ..with_another(node) };
            known.nodes().into_iter().map(|node| (node.state, node.is_leader)).collect::<Vec<_>>()
        };
        let (alive, suspect) = (NodeState::Alive, NodeState::Suspect);
        assert_eq!(seen(alive, &[OWN]), [(alive, true), (suspect, false)]);
        assert_eq!(seen(NodeState::Unknown, &[OWN, OTHER]), [(alive, true), (alive, false)]);
    }

    #[test]
    fn a_host_that_reported_and_failed_before_gossip_had_its_profile_is_listed() {
        let mut known = with_another(NodeState::Unknown);
        let id: NodeId = OTHER.parse().unwrap();
        let unnamed = Member { profile: None, ..(*known.view.members[&id]).clone() };
        known.view = Arc::new(ClusterView { members: [(id, Arc::new(unnamed))].into(), ..ClusterView::default() });
        assert_eq!(known.nodes().len(), 1, "nothing is known of it");
        let told = HostView {
            profile: Arc::new(sample::profile("two", OTHER)),
            usage: sample::usage(),
            last_seen: Timestamp::default(),
            sessions: BTreeMap::new(),
            images: BTreeMap::new(),
            have: None,
        };
        known.fleet = Arc::new(Fleet { hosts: [(id, Arc::new(told))].into(), ..Fleet::default() });
        let listed: Vec<_> = known.nodes().into_iter().map(|node| (node.name.to_string(), node.state)).collect();
        assert_eq!(listed[1], ("two".to_owned(), NodeState::Unknown));
    }

    fn found(nodes: &[Node], wanted: &str) -> Result<String, Error> {
        find_node(nodes, &OWN.parse().unwrap(), wanted).map(|i| nodes[i].name.to_string())
    }

    #[test]
    fn a_node_is_found_by_name_id_and_unique_prefix() {
        let nodes = [sample::node("one", OWN), sample::node("two", OTHER)];
        for (wanted, name) in [("one", "one"), (OWN, "one"), ("aac", "two"), ("self", "one")] {
            assert_eq!(found(&nodes, wanted), Ok(name.to_owned()), "{wanted}");
        }
        let ambiguous = |wanted: &str, ids: &[&str]| {
            let ids = ids.iter().map(|id| id.parse().unwrap()).collect();
            Err(Error::AmbiguousNode { wanted: wanted.to_owned(), ids })
        };
        assert_eq!(found(&nodes, "aa"), ambiguous("aa", &[OWN, OTHER]));
        assert_eq!(found(&nodes, "three"), Err(Error::NoNode("three".to_owned())));
        let twins = [sample::node("one", OWN), sample::node("one", OTHER)];
        assert_eq!(found(&twins, "one"), ambiguous("one", &[OWN, OTHER]));
        let told = found(&twins, "one").unwrap_err().to_string();
        let ids =
            format!("`one` is 2 nodes, with the ids {OWN} and {OTHER}; name one by its id or a unique prefix of it");
        assert_eq!(told, ids);
        assert_eq!(found(&twins, OTHER), Ok("one".to_owned()), "their ids tell them apart");
        let many: Vec<Node> = (0..20).map(|n| Node { id: NodeId::from_bytes([n; 10]), ..twins[0].clone() }).collect();
        let told = found(&many, "one").unwrap_err().to_string();
        assert!(told.starts_with("`one` is 20 nodes") && told.contains(" and 12 more; name one by its id"), "{told}");
    }

    #[test]
    fn a_name_is_not_hidden_by_an_id_or_by_self() {
        let nodes = [sample::node("one", "two2222222222222"), sample::node("two", OTHER)];
        assert_eq!(found(&nodes, "two"), Ok("two".to_owned()));
        let nodes = [sample::node("one", OWN), sample::node("self", OTHER)];
        assert_eq!(found(&nodes, "self"), Ok("self".to_owned()));
    }
}
