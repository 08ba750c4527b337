//! What everybody reads of the other nodes, made of what chitchat knows and of what was known before; pure.
//!
//! That a node is silent says little: chitchat's verdict is a hint, and leases decide. So a silent node is
//! suspect for a while before it is unknown, and where most of them fall silent together, this node
//! suspects itself first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::forgotten::{ECHO, Forgotten};
use super::{ClusterView, Directory, Entry, Member};
use crate::election::Members;
use crate::types::{BootInstant, ClusterMode, Moment, Node, NodeId, NodeState, Session, SessionId, SessionState};

/// Nodes that are remembered. Above it, those that are not alive and were seen longest ago are forgotten.
pub const MAX_MEMBERS: usize = 10_000;

/// How long a silent node is suspect before it is unknown.
const SUSPECT_FOR: Duration = Duration::from_secs(10);
/// The same, where more than half of the nodes fell silent together: it may well be this one's own network.
const SUSPECT_SELF_FOR: Duration = Duration::from_secs(30);
/// Without a sound from anybody for so long after the start, this node is alone.
const ALONE_AFTER: Duration = Duration::from_secs(5);
/// The time when a live node was last seen moves on in these steps, so that time alone changes little.
const LAST_SEEN_STEP: Duration = Duration::from_secs(5);

/// What is remembered between two looks at the cluster.
#[derive(Debug, Clone)]
pub struct Membership {
    me: NodeId,
    incarnation: u64,
    /// There are seeds, or there were known nodes at the start.
    expects_others: bool,
    started: BootInstant,
    heard_anybody: bool,
    /// When live nodes were last seen.
    stamp: Moment,
    live: BTreeSet<NodeId>,
    suspects: BTreeMap<NodeId, Silence>,
    /// Since when an older life of this node has seemed alive.
    twin_since: Option<BootInstant>,
    forgotten: Forgotten,
    members: BTreeMap<NodeId, Arc<Member>>,
}

/// Of a node that was live.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: BootInstant,
    patience: Duration,
}

impl Membership {
    /// Begins with the nodes that were known when the agent last ran.
    pub fn new(
        me: NodeId,
        incarnation: u64,
        has_seeds: bool,
        known: BTreeMap<NodeId, Arc<Member>>,
        now: Moment,
    ) -> Self {
        Self {
            me,
            incarnation,
            expects_others: has_seeds || !known.is_empty(),
            started: now.boot,
            heard_anybody: false,
            stamp: now,
            live: BTreeSet::new(),
            suspects: BTreeMap::new(),
            twin_since: None,
            forgotten: Forgotten::default(),
            members: known,
        }
    }

    /// The nodes as of the last look.
    pub fn members(&self) -> &BTreeMap<NodeId, Arc<Member>> {
        &self.members
    }

    /// Looks at every life that chitchat knows, this one excepted.
    pub fn look(&mut self, entries: &[Entry], now: Moment) -> ClusterView {
        if now.boot.since(self.stamp.boot) >= LAST_SEEN_STEP {
            self.stamp = now;
        }
        let newest = self.newest(entries, now.boot);
        self.heard_anybody |= !newest.is_empty();
        self.note_silence(&newest, now);
        let ids: BTreeSet<&NodeId> = newest.keys().copied().chain(self.members.keys()).collect();
        let look = |id: &NodeId| Some((id.clone(), self.member(id, newest.get(id).copied())?));
        self.members = ids.into_iter().filter_map(look).collect();
        self.evict();
        let duplicate = self.duplicate(entries, now).map(|twin| twin.address);
        let forgotten = self.forgotten.sessions().map(|(id, sessions)| (id.clone(), sessions.clone())).collect();
        ClusterView { members: self.members.clone(), forgotten, duplicate, alone: self.is_alone(now) }
    }

    /// Whether there are nodes that may still answer for the first time.
    pub fn is_untried(&self, now: Moment) -> bool {
        self.expects_others && !self.heard_anybody && !self.is_alone(now)
    }

    /// Forgets a node, until it is heard again. Returns what was known of it.
    pub fn forget(&mut self, id: &NodeId) -> Option<Arc<Member>> {
        let member = self.members.remove(id)?;
        self.suspects.remove(id);
        self.live.remove(id);
        self.forgotten.add_node(id, member.incarnation);
        Some(member)
    }

    /// Forgets a session of a node, until the node is heard again. Returns what was known of the node.
    pub fn forget_session(&mut self, id: &NodeId, session: &SessionId) -> Option<Arc<Member>> {
        let member = self.members.get_mut(id)?;
        let before = Arc::clone(member);
        Arc::make_mut(member).sessions.remove(session);
        self.forgotten.add_session(id, before.incarnation, session);
        Some(before)
    }

    fn is_alone(&self, now: Moment) -> bool {
        self.expects_others && !self.heard_anybody && now.boot.since(self.started) >= ALONE_AFTER
    }

    /// Of each other node the latest life, unless a later one is remembered, or it was to be forgotten.
    fn newest<'a>(&mut self, entries: &'a [Entry], now: BootInstant) -> BTreeMap<&'a NodeId, &'a Entry> {
        let mut newest: BTreeMap<&NodeId, &Entry> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.id != self.me) {
            let best = newest.entry(&entry.id).or_insert(entry);
            if (entry.incarnation, entry.live) > (best.incarnation, best.live) {
                *best = entry;
            }
        }
        self.forgotten.look(&newest, now);
        newest.retain(|id, entry| {
            let outdated = self.members.get(*id).is_some_and(|known| known.incarnation > entry.incarnation);
            !self.forgotten.has_node(id) && (entry.live || !outdated)
        });
        newest
    }

    fn note_silence(&mut self, newest: &BTreeMap<&NodeId, &Entry>, now: Moment) {
        let here = |entry: &&Entry| entry.live && !entry.heard.left;
        let live: BTreeSet<NodeId> = newest.values().copied().filter(here).map(|entry| entry.id.clone()).collect();
        let has_left = |id: &NodeId| newest.get(id).is_some_and(|entry| entry.heard.left);
        for id in self.live.difference(&live).filter(|id| !has_left(id)) {
            self.suspects.insert(id.clone(), Silence { since: now.boot, patience: SUSPECT_FOR });
        }
        self.suspects.retain(|id, silence| {
            !live.contains(id) && !has_left(id) && now.boot.since(silence.since) < silence.patience
        });
        // The detector notices one after another, within some rounds.
        let fresh = |silence: &Silence| now.boot.since(silence.since) < SUSPECT_FOR;
        let together = self.suspects.values().filter(|silence| fresh(silence)).count();
        if together > live.len() {
            self.suspects.values_mut().filter(|s| fresh(s)).for_each(|s| s.patience = SUSPECT_SELF_FOR);
        }
        self.live = live;
    }

    fn state(&self, id: &NodeId, entry: Option<&Entry>) -> NodeState {
        let has_left = match entry {
            Some(entry) => entry.heard.left,
            None => self.members.get(id).is_some_and(|known| known.state == NodeState::Left),
        };
        if has_left {
            NodeState::Left
        } else if self.live.contains(id) {
            NodeState::Alive
        } else if self.suspects.contains_key(id) {
            NodeState::Suspect
        } else {
            NodeState::Unknown
        }
    }

    /// The node as it is now: what is heard of it, else what was known before.
    fn member(&self, id: &NodeId, entry: Option<&Entry>) -> Option<Arc<Member>> {
        let state = self.state(id, entry);
        let before = self.members.get(id);
        let member = match (entry, before) {
            (Some(entry), before) => self.heard_member(entry, before.map(Arc::as_ref), state),
            (None, Some(before)) if before.state == state => return Some(Arc::clone(before)),
            (None, Some(before)) => Member {
                state,
                node: before.node.as_ref().map(|node| Arc::new(Node { state, ..(**node).clone() })),
                sessions: as_seen(&before.sessions, state),
                ..(**before).clone()
            },
            (None, None) => return None,
        };
        Some(match before {
            Some(before) if **before == member => Arc::clone(before),
            _ => Arc::new(member),
        })
    }

    fn heard_member(&self, entry: &Entry, before: Option<&Member>, state: NodeState) -> Member {
        let heard = &entry.heard;
        let known = before.and_then(|before| before.node.as_deref());
        let last_seen = match known {
            Some(known) if state != NodeState::Alive => known.last_seen,
            _ => self.stamp.wall,
        };
        let node = heard.node.as_ref().or(known);
        // The node's own document comes first, so where it is missing nothing of this life has come yet.
        let sessions = match before {
            Some(before) if heard.node.is_none() => &before.sessions,
            _ => &heard.sessions,
        };
        let mut sessions = as_seen(sessions, state);
        if let Some(forgotten) = self.forgotten.sessions_of(&entry.id) {
            sessions.retain(|session, _| !forgotten.contains(session));
        }
        Member {
            address: entry.address,
            incarnation: entry.incarnation,
            state,
            mode: heard.mode.or(before.map(|before| before.mode)).unwrap_or_default(),
            node: node.map(|node| Arc::new(Node { state, last_seen, ..node.clone() })),
            sessions,
            catalogue: heard.catalogue.clone().or_else(|| before.and_then(|before| before.catalogue.clone())),
        }
    }

    /// Another live node with this node's id.
    fn duplicate<'a>(&mut self, entries: &'a [Entry], now: Moment) -> Option<&'a Entry> {
        let twins = || entries.iter().filter(|entry| entry.id == self.me && entry.live && !entry.heard.left);
        let Some(twin) = twins().max_by_key(|entry| entry.incarnation) else {
            self.twin_since = None;
            return None;
        };
        let since = *self.twin_since.get_or_insert(now.boot);
        let certain = twin.incarnation >= self.incarnation || now.boot.since(since) >= ECHO;
        certain.then_some(twin)
    }

    fn evict(&mut self) {
        let excess = self.members.len().saturating_sub(MAX_MEMBERS);
        if excess == 0 {
            return;
        }
        let last_seen = |member: &Member| member.node.as_ref().map(|node| node.last_seen);
        let mut silent: Vec<_> = self.members.iter().filter(|(_, member)| member.state != NodeState::Alive).collect();
        silent.sort_by_key(|(_, member)| last_seen(member));
        let evicted: Vec<NodeId> = silent.into_iter().take(excess).map(|(id, _)| id.clone()).collect();
        for id in evicted {
            self.members.remove(&id);
        }
    }
}

/// Of a node that is not alive, nobody can tell how its sessions are that had not ended.
pub(super) fn as_seen(
    sessions: &BTreeMap<SessionId, Arc<Session>>,
    state: NodeState,
) -> BTreeMap<SessionId, Arc<Session>> {
    let mut seen = sessions.clone();
    if state != NodeState::Alive {
        let uncertain =
            |session: &&mut Arc<Session>| !session.state.has_ended() && session.state != SessionState::Unknown;
        for session in seen.values_mut().filter(uncertain) {
            *session = Arc::new(Session { state: SessionState::Unknown, ..(**session).clone() });
        }
    }
    seen
}

/// Where every known node is reached.
pub fn directory(view: &ClusterView) -> Directory {
    view.members.iter().map(|(id, member)| (id.clone(), member.address)).collect()
}

/// What an election needs to know, for a node of this mode.
pub fn members(view: &ClusterView, mode: ClusterMode, untried: bool) -> Members {
    let staying = || view.members.iter().filter(|(_, member)| member.state != NodeState::Left);
    let voters = staying().filter(|(_, member)| member.mode == mode).map(|(id, _)| id.clone()).collect();
    Members { voters, known: staying().count(), untried }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::fixture::{by_id, id, node, session};
    use crate::gossip::keys::Heard;
    use crate::types::Timestamp;

    const SECOND: Duration = Duration::from_secs(1);

    fn moment(secs: u64) -> Moment {
        let start = Moment { wall: Timestamp::from_millis(1_000_000), boot: BootInstant::from_millis(0), boot_id: 1 };
        start.plus(SECOND * u32::try_from(secs).unwrap())
    }

    fn entry(n: u8, live: bool) -> Entry {
        let mut ended = (*session(n, 1)).clone();
        ended.state = SessionState::Stopped;
        let heard = Heard {
            node: Some(node(n)),
            sessions: by_id(&[session(n, 0), Arc::new(ended)]),
            mode: Some(ClusterMode::Available),
            ..Heard::default()
        };
        let address = format!("127.0.0.1:{}", 1000 + u16::from(n)).parse().unwrap();
        Entry { id: id(n), incarnation: 5, address, live, heard: Arc::new(heard) }
    }

    fn left(n: u8) -> Entry {
        let entry = entry(n, true);
        Entry { heard: Arc::new(Heard { left: true, ..(*entry.heard).clone() }), ..entry }
    }

    fn membership() -> Membership {
        Membership::new(id(0), 5, true, BTreeMap::new(), moment(0))
    }

    fn state(view: &ClusterView, n: u8) -> NodeState {
        view.members[&id(n)].state
    }

    fn session_states(view: &ClusterView, n: u8) -> BTreeSet<SessionState> {
        view.members[&id(n)].sessions.values().map(|session| session.state).collect()
    }

    #[test]
    fn a_silent_node_is_suspect_then_unknown_and_comes_back() {
        let mut membership = membership();
        let (all, one_silent) = ([1, 2, 3].map(|n| entry(n, true)), [1, 2, 3].map(|n| entry(n, n != 2)));
        let view = membership.look(&all, moment(0));
        assert_eq!([1, 2, 3].map(|n| state(&view, n)), [NodeState::Alive; 3]);
        assert_eq!(session_states(&view, 2), [SessionState::Running, SessionState::Stopped].into());
        for (at, expected) in [(1, NodeState::Suspect), (10, NodeState::Suspect), (11, NodeState::Unknown)] {
            let view = membership.look(&one_silent, moment(at));
            assert_eq!((state(&view, 2), state(&view, 1)), (expected, NodeState::Alive), "after {at} s");
            assert_eq!(view.members[&id(2)].node.as_ref().unwrap().state, expected);
            assert_eq!(session_states(&view, 2), [SessionState::Unknown, SessionState::Stopped].into());
        }
        let view = membership.look(&all, moment(12));
        assert_eq!(state(&view, 2), NodeState::Alive);
        assert_eq!(session_states(&view, 2), [SessionState::Running, SessionState::Stopped].into());
    }

    #[test]
    fn where_most_fall_silent_together_they_stay_suspect_for_longer() {
        let mut membership = membership();
        membership.look(&[1, 2, 3].map(|n| entry(n, true)), moment(0));
        membership.look(&[1, 2, 3].map(|n| entry(n, n != 1)), moment(1));
        let most = [1, 2, 3].map(|n| entry(n, n == 3));
        membership.look(&most, moment(3)); // the detector notices one after the other
        for (at, expected) in [(12, NodeState::Suspect), (30, NodeState::Suspect), (33, NodeState::Unknown)] {
            let view = membership.look(&most, moment(at));
            assert_eq!([1, 2].map(|n| state(&view, n)), [expected; 2], "after {at} s");
        }
    }

    #[test]
    fn who_says_goodbye_has_left_and_stays_left_when_chitchat_forgets_it() {
        let mut membership = membership();
        membership.look(&[entry(1, true), entry(2, true)], moment(0));
        let view = membership.look(&[left(1), entry(2, true)], moment(1));
        assert_eq!(state(&view, 1), NodeState::Left);
        assert_eq!(session_states(&view, 1), [SessionState::Unknown, SessionState::Stopped].into());
        let view = membership.look(&[entry(2, true)], moment(1000));
        assert_eq!(state(&view, 1), NodeState::Left);
        let back = Entry { incarnation: 6, ..entry(1, true) };
        let view = membership.look(&[left(1), back], moment(1001));
        assert_eq!((state(&view, 1), view.members[&id(1)].incarnation), (NodeState::Alive, 6));
    }

    #[test]
    fn the_latest_life_counts() {
        let mut membership = membership();
        let later = Entry {
            incarnation: 6,
            address: "127.0.0.1:9".parse().unwrap(),
            heard: Arc::new(Heard::default()),
            ..entry(1, false)
        };
        membership.look(&[entry(1, true)], moment(0));
        let view = membership.look(&[later.clone(), entry(1, true)], moment(1));
        let member = &view.members[&id(1)];
        assert_eq!((member.incarnation, member.address, member.state), (6, later.address, NodeState::Suspect));
        assert!(member.node.is_some(), "what was known stays until more is heard");
        assert_eq!(member.sessions.len(), 2);
        let view = membership.look(&[entry(1, false)], moment(2));
        assert_eq!(view.members[&id(1)].incarnation, 6, "an older life is not taken up again");
    }

    #[test]
    fn a_twin_is_noticed_and_a_previous_life_is_not_taken_for_one() {
        let twin = |incarnation, live| Entry { incarnation, ..entry(0, live) };
        let mut membership = membership();
        assert_eq!(membership.look(&[twin(9, false)], moment(0)).duplicate, None);
        let view = membership.look(&[twin(9, true)], moment(1));
        assert_eq!(view.duplicate, Some(twin(9, true).address));
        assert!(view.members.is_empty(), "this node is not its own peer");
        membership.look(&[], moment(2));
        assert_eq!(membership.look(&[twin(4, true)], moment(3)).duplicate, None);
        assert_eq!(membership.look(&[twin(4, true)], moment(20)).duplicate, None);
        assert!(membership.look(&[twin(4, true)], moment(33)).duplicate.is_some());
    }

    #[test]
    fn without_a_sound_from_anybody_a_node_is_alone() {
        let mut membership = membership();
        assert!(!membership.look(&[], moment(4)).alone && membership.is_untried(moment(4)));
        assert!(membership.look(&[], moment(5)).alone && !membership.is_untried(moment(5)));
        assert!(!membership.look(&[entry(1, false)], moment(6)).alone);
        assert!(!membership.look(&[], moment(60)).alone, "it was heard once");
        let mut unexpecting = Membership::new(id(0), 5, false, BTreeMap::new(), moment(0));
        assert!(!unexpecting.look(&[], moment(60)).alone && !unexpecting.is_untried(moment(0)));
    }

    #[test]
    fn what_was_known_before_the_start_is_unknown_until_it_is_heard() {
        let known = membership().look(&[entry(1, true), left(2)], moment(0)).members;
        let mut membership = Membership::new(id(0), 6, false, known, moment(100));
        assert!(membership.is_untried(moment(100)));
        let view = membership.look(&[], moment(100));
        assert_eq!([1, 2].map(|n| state(&view, n)), [NodeState::Unknown, NodeState::Left]);
        assert_eq!(view.members[&id(1)].node.as_ref().unwrap().last_seen, moment(0).wall);
        assert_eq!(session_states(&view, 1), [SessionState::Unknown, SessionState::Stopped].into());
        assert_eq!(state(&membership.look(&[entry(1, true)], moment(101)), 1), NodeState::Alive);
    }

    #[test]
    fn what_is_forgotten_is_not_back_before_it_is_heard() {
        let mut membership = membership();
        membership.look(&[entry(1, true)], moment(0));
        membership.look(&[entry(1, false)], moment(1));
        assert!(membership.forget(&id(1)).is_some() && membership.forget(&id(1)).is_none());
        assert!(membership.look(&[entry(1, false)], moment(2)).members.is_empty());
        for second in 3..33 {
            let view = membership.look(&[entry(1, true)], moment(second));
            assert!(view.members.is_empty(), "after {second} s it may be what others heard before");
        }
        assert_eq!(state(&membership.look(&[entry(1, true)], moment(33)), 1), NodeState::Alive);
    }

    #[test]
    fn what_others_heard_last_of_a_forgotten_node_does_not_bring_it_back() {
        let mut membership = membership();
        membership.look(&[entry(1, true)], moment(0));
        membership.forget(&id(1));
        for second in 1..100 {
            let echo = entry(1, second % 20 < 15);
            assert!(membership.look(&[echo], moment(second)).members.is_empty());
        }
    }

    #[test]
    fn a_session_that_is_forgotten_is_back_with_its_host() {
        let mut membership = membership();
        let first = membership.look(&[entry(1, true)], moment(0));
        let sessions: Vec<SessionId> = first.members[&id(1)].sessions.keys().cloned().collect();
        membership.look(&[entry(1, false)], moment(1));
        assert!(membership.forget_session(&id(1), &sessions[0]).is_some());
        assert!(membership.forget_session(&id(2), &sessions[0]).is_none());
        for second in 2..100 {
            let view = membership.look(&[entry(1, second % 20 < 15)], moment(second));
            assert!(view.members[&id(1)].sessions.keys().eq(&sessions[1..]), "after {second} s");
            assert_eq!(view.forgotten, [(id(1), [sessions[0].clone()].into())].into());
        }
        let next = Entry { incarnation: 6, ..entry(1, true) };
        let view = membership.look(&[next], moment(100));
        assert!(view.members[&id(1)].sessions.keys().eq(&sessions));
        assert!(view.forgotten.is_empty());
    }

    #[test]
    fn a_forgotten_node_that_starts_again_is_back_at_once() {
        let mut membership = membership();
        membership.look(&[entry(1, true)], moment(0));
        membership.forget(&id(1));
        let next = Entry { incarnation: 6, ..entry(1, false) };
        assert_eq!(state(&membership.look(&[next], moment(4)), 1), NodeState::Unknown);
    }

    #[test]
    fn time_alone_changes_the_view_every_five_seconds() {
        let mut membership = membership();
        let first = membership.look(&[entry(1, true)], moment(0));
        let same = membership.look(&[entry(1, true)], moment(4));
        assert!(Arc::ptr_eq(&first.members[&id(1)], &same.members[&id(1)]));
        let later = membership.look(&[entry(1, true)], moment(5));
        assert_eq!(later.members[&id(1)].node.as_ref().unwrap().last_seen, moment(5).wall);
    }

    #[test]
    fn voters_are_of_the_same_mode_and_have_not_left() {
        let quorum = ClusterMode::Quorum { expected_nodes: 3 };
        let other = entry(2, true);
        let other = Entry { heard: Arc::new(Heard { mode: Some(quorum), ..(*other.heard).clone() }), ..other };
        let view = membership().look(&[entry(1, false), other, left(3)], moment(0));
        assert_eq!(directory(&view).len(), 3);
        let of_mode = |mode| members(&view, mode, true);
        let expected = |n| Members { voters: [id(n)].into(), known: 2, untried: true };
        assert_eq!(of_mode(ClusterMode::Available), expected(1));
        assert_eq!(of_mode(quorum), expected(2));
    }

    #[test]
    fn above_the_bound_those_seen_longest_ago_are_forgotten() {
        let one = membership().look(&[entry(1, true)], moment(0)).members[&id(1)].clone();
        let numbered = |n: usize| {
            let mut bytes = [0xff; 10];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            let seen = Timestamp::from_millis(i64::try_from(n).unwrap());
            let node = Node { last_seen: seen, ..node(1) };
            let member = Member { state: NodeState::Unknown, node: Some(Arc::new(node)), ..(*one).clone() };
            (NodeId::from_bytes(bytes), Arc::new(member))
        };
        let known: BTreeMap<_, _> = (0..MAX_MEMBERS + 1).map(numbered).collect();
        let view = Membership::new(id(0), 5, true, known, moment(0)).look(&[entry(1, true)], moment(0));
        assert_eq!(view.members.len(), MAX_MEMBERS);
        assert!(!view.members.contains_key(&numbered(0).0) && !view.members.contains_key(&numbered(1).0));
        assert!(view.members.contains_key(&numbered(2).0) && view.members.contains_key(&id(1)));
    }
}
