//! The view of the other nodes that all parts read, from chitchat's knowledge and from what was known before; pure.
//!
//! Silence alone proves little: chitchat's verdict on a node is a hint, and leases decide. So a silent node is suspect
//! for a while before it is unknown. If most nodes fall silent together, the fault may be this node's own network, so
//! they stay suspect for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::forgotten::{ECHO, Forgotten};
use super::{ClusterView, Directory, Entry, Member};
use crate::election::Members;
use crate::types::{BootInstant, ClusterMode, Moment, NodeId, NodeState, SessionId, SessionProfile, SessionState};

/// Nodes that are remembered at most. Above it, the nodes that are not alive and were seen longest ago are forgotten.
pub const MAX_MEMBERS: usize = 10_000;

/// How long a silent node is suspect before it is unknown.
const SUSPECT_FOR: Duration = Duration::from_secs(10);
/// The same if more than half of the nodes fell silent together, since the cause may be this node's own network.
const SUSPECT_SELF_FOR: Duration = Duration::from_secs(30);
/// A node that hears no other node for this long after its start is alone.
const ALONE_AFTER: Duration = Duration::from_secs(5);
/// `last_seen` of live nodes advances in these steps, so that time alone seldom changes the view.
const LAST_SEEN_STEP: Duration = Duration::from_secs(5);

/// The state between two looks at the cluster.
#[derive(Debug, Clone)]
pub struct Membership {
    me: NodeId,
    incarnation: u64,
    /// There are seeds, or other nodes were known at the start.
    expects_others: bool,
    started: BootInstant,
    heard_anybody: bool,
    /// The `last_seen` of live nodes.
    stamp: Moment,
    live: BTreeSet<NodeId>,
    suspects: BTreeMap<NodeId, Silence>,
    /// Since when an older life of this node has looked alive.
    twin_since: Option<BootInstant>,
    /// The number of a later life with this node's id that has ended, and since when it is silent.
    outlived: Option<(u64, BootInstant)>,
    forgotten: Forgotten,
    members: BTreeMap<NodeId, Arc<Member>>,
}

/// The silence of a node that was alive.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: BootInstant,
    patience: Duration,
}

impl Membership {
    /// Begins with the nodes that were known when the agent ran last.
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
            outlived: None,
            forgotten: Forgotten::default(),
            members: known,
        }
    }

    /// This node begins another life.
    pub fn begin_life(&mut self, incarnation: u64) {
        (self.incarnation, self.outlived) = (incarnation, None);
    }

    /// The number of a later life with this node's id that has ended: of a copy of this host that was stopped. Others
    /// hear this node again only if its life is later still.
    pub fn outlived(&self, now: Moment) -> Option<u64> {
        self.outlived.filter(|(_, since)| now.boot.since(*since) >= ECHO).map(|(incarnation, _)| incarnation)
    }

    /// Whether other nodes are expected, because there are seeds or nodes that were met.
    pub fn expect(&mut self, has_seeds: bool) {
        self.expects_others = has_seeds || !self.members.is_empty();
    }

    /// The nodes as of the last look.
    pub fn members(&self) -> &BTreeMap<NodeId, Arc<Member>> {
        &self.members
    }

    /// Looks at every life that chitchat knows, except this one.
    pub fn look(&mut self, entries: &[Entry], now: Moment) -> ClusterView {
        if now.boot.since(self.stamp.boot) >= LAST_SEEN_STEP {
            self.stamp = now;
        }
        let newest = self.newest(entries, now.boot);
        self.heard_anybody |= !newest.is_empty();
        self.note_silence(entries, &newest, now);
        let ids: BTreeSet<&NodeId> = newest.keys().copied().chain(self.members.keys()).collect();
        let look = |id: &NodeId| Some((*id, self.member(id, newest.get(id).copied())?));
        self.members = ids.into_iter().filter_map(look).collect();
        self.evict();
        let duplicate = self.duplicate(entries, now).map(|twin| twin.address);
        self.note_outlived(entries, now.boot);
        let forgotten = self.forgotten.sessions().map(|(id, sessions)| (*id, sessions.clone())).collect();
        let removed = self.forgotten.nodes().copied().collect();
        ClusterView { members: self.members.clone(), forgotten, removed, duplicate, alone: self.is_alone(now) }
    }

    /// Whether other nodes are expected, none has answered yet, and it is too early to count as alone.
    pub fn is_untried(&self, now: Moment) -> bool {
        self.expects_others && !self.heard_anybody && !self.is_alone(now)
    }

    /// Forgets a node until it is heard again. Returns what was known of it.
    pub fn forget(&mut self, id: &NodeId) -> Option<Arc<Member>> {
        let member = self.members.remove(id)?;
        self.suspects.remove(id);
        self.live.remove(id);
        self.forgotten.add_node(id, member.incarnation);
        Some(member)
    }

    /// Forgets a session of a node until the node is heard again. Returns what was known of the node.
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

    /// The latest life of each other node, except lives that are older than a remembered one and nodes that were
    /// removed.
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

    fn note_silence(&mut self, entries: &[Entry], newest: &BTreeMap<&NodeId, &Entry>, now: Moment) {
        // A node that has just begun another life, as after a move, is alive by the last one until its new heartbeat is
        // known.
        let lives = |entry: &&Entry| entry.live && !entry.heard.left;
        let stays = |entry: &&Entry| newest.get(&entry.id).is_some_and(|newest| !newest.heard.left);
        let live: BTreeSet<NodeId> = entries.iter().filter(lives).filter(stays).map(|entry| entry.id).collect();
        let has_left = |id: &NodeId| newest.get(id).is_some_and(|entry| entry.heard.left);
        for id in self.live.difference(&live).filter(|id| !has_left(id)) {
            self.suspects.insert(*id, Silence { since: now.boot, patience: SUSPECT_FOR });
        }
        self.suspects.retain(|id, silence| {
            !live.contains(id) && !has_left(id) && now.boot.since(silence.since) < silence.patience
        });
        // The failure detector notices nodes one after another, within some rounds.
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

    /// The present state of the node: from its entry, else from the previous view.
    fn member(&self, id: &NodeId, entry: Option<&Entry>) -> Option<Arc<Member>> {
        let state = self.state(id, entry);
        let before = self.members.get(id);
        let member = match (entry, before) {
            (Some(entry), before) => self.heard_member(entry, before.map(Arc::as_ref), state),
            (None, Some(before)) if before.state == state => return Some(Arc::clone(before)),
            (None, Some(before)) => Member { state, sessions: as_seen(&before.sessions, state), ..(**before).clone() },
            (None, None) => return None,
        };
        Some(match before {
            Some(before) if **before == member => Arc::clone(before),
            _ => Arc::new(member),
        })
    }

    fn heard_member(&self, entry: &Entry, before: Option<&Member>, state: NodeState) -> Member {
        let heard = &entry.heard;
        let last_seen = match before {
            Some(before) if state != NodeState::Alive => before.last_seen,
            _ => self.stamp.wall,
        };
        // A node publishes its profile first: without it, no session of this run has arrived yet either.
        let sessions = match before {
            Some(before) if heard.profile.is_none() => &before.sessions,
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
            last_seen,
            profile: heard.profile.clone().or_else(|| before.and_then(|before| before.profile.clone())),
            usage: heard.usage.clone().or_else(|| before.map(|before| before.usage.clone())).unwrap_or_default(),
            sessions,
            catalogue: heard.catalogue.clone().or_else(|| before.and_then(|before| before.catalogue.clone())),
        }
    }

    /// Another live node with this node's id, once it cannot be an earlier life of this one.
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

    fn note_outlived(&mut self, entries: &[Entry], now: BootInstant) {
        let later = entries.iter().filter(|entry| entry.id == self.me && entry.incarnation > self.incarnation);
        self.outlived = match later.max_by_key(|entry| entry.incarnation) {
            Some(later) if later.heard.left || !later.live => match self.outlived {
                Some((incarnation, since)) if incarnation == later.incarnation => Some((incarnation, since)),
                _ => Some((later.incarnation, now)),
            },
            _ => None,
        };
    }

    fn evict(&mut self) {
        let excess = self.members.len().saturating_sub(MAX_MEMBERS);
        if excess == 0 {
            return;
        }
        let last_seen = |member: &Member| member.profile.as_ref().map(|_| member.last_seen);
        let mut silent: Vec<_> = self.members.iter().filter(|(_, member)| member.state != NodeState::Alive).collect();
        silent.sort_by_key(|(_, member)| last_seen(member));
        let evicted: Vec<NodeId> = silent.into_iter().take(excess).map(|(id, _)| *id).collect();
        for id in evicted {
            self.members.remove(&id);
        }
    }
}

/// The sessions of a node in this state: if it is not alive, sessions that had not ended are `unknown`.
pub(super) fn as_seen(
    sessions: &BTreeMap<SessionId, Arc<SessionProfile>>,
    state: NodeState,
) -> BTreeMap<SessionId, Arc<SessionProfile>> {
    let mut seen = sessions.clone();
    if state != NodeState::Alive {
        let uncertain =
            |session: &&mut Arc<SessionProfile>| !session.state.has_ended() && session.state != SessionState::Unknown;
        for session in seen.values_mut().filter(uncertain) {
            *session = Arc::new(SessionProfile { state: SessionState::Unknown, ..(**session).clone() });
        }
    }
    seen
}

/// The address of every known node.
pub fn directory(view: &ClusterView) -> Directory {
    view.members.iter().map(|(id, member)| (*id, member.address)).collect()
}

/// What the election of a node with this mode needs to know.
pub fn members(view: &ClusterView, mode: ClusterMode, untried: bool) -> Members {
    let staying = || view.members.iter().filter(|(_, member)| member.state != NodeState::Left);
    let voters = staying().filter(|(_, member)| member.mode == mode).map(|(id, _)| *id).collect();
    Members { voters, known: staying().count(), untried }
}

#[cfg(test)]
mod tests;
