//! What every host told its leader. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Have, HostReport};
use crate::sessions::Held;
use crate::types::{NodeId, NodeProfile, NodeUsage, SessionId, SessionState, Timestamp, User};

/// Everything that the leader was told, for whoever reads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    pub hosts: BTreeMap<NodeId, Arc<HostView>>,
    /// Sessions that could not be started on the host they are on, and wait to be placed elsewhere.
    pub unplaced: BTreeMap<SessionId, NodeId>,
}

/// What one host told.
#[derive(Debug, Clone, PartialEq)]
pub struct HostView {
    pub profile: Arc<NodeProfile>,
    pub usage: NodeUsage,
    /// When it told, on its own wall clock.
    pub last_seen: Timestamp,
    /// Every session that it remembers.
    pub sessions: BTreeMap<SessionId, Arc<Held>>,
    /// The images of the catalogue that are there.
    pub images: BTreeSet<String>,
    /// What builds on this is understood. `None` where some of it was forgotten: the host must tell everything.
    pub have: Option<Have>,
}

/// The leader's own copy, with its ways to find things.
#[derive(Debug, Default)]
pub struct Index {
    fleet: Fleet,
    /// The hosts that remember a session: one, but for what a partition left.
    by_session: BTreeMap<SessionId, Vec<NodeId>>,
    /// How often each host has told.
    told: BTreeMap<NodeId, u64>,
}

/// A session that a host is to put away: there is a better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    pub host: NodeId,
    pub session: SessionId,
}

impl Index {
    pub const fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Whether the host has told what it holds.
    pub fn knows(&self, host: &NodeId) -> bool {
        self.fleet.hosts.contains_key(host)
    }

    /// How often the host has told.
    pub fn told(&self, host: &NodeId) -> u64 {
        self.told.get(host).copied().unwrap_or_default()
    }

    /// Takes in a report, and answers which sessions of it, or because of it, are there twice. A report that
    /// builds on something that is not here is left out: `None`, and the host must tell everything.
    pub fn apply(&mut self, host: &NodeId, report: HostReport) -> Option<Vec<Duplicate>> {
        let have = report.have();
        let same_life = |before: Have| before.sessions.incarnation == have.sessions.incarnation;
        let before = self.fleet.hosts.get(host).filter(|view| view.have.is_some_and(same_life));
        let mut sessions = match before {
            _ if report.changes.whole => BTreeMap::new(),
            Some(view) => view.sessions.clone(),
            None => return None,
        };
        let changed: Vec<SessionId> = report.changes.held.iter().map(|held| held.session.id).collect();
        for held in report.changes.held {
            sessions.insert(held.session.id, Arc::new(held));
        }
        for session in &report.changes.forgotten {
            sessions.remove(session);
        }
        self.find_again(host, &sessions);
        *self.told.entry(*host).or_default() += 1;
        let view = HostView {
            profile: Arc::new(report.profile),
            usage: report.usage,
            last_seen: report.at,
            sessions,
            images: report.images,
            have: Some(have),
        };
        let before = self.fleet.hosts.insert(*host, Arc::new(view));
        if let Some(before) = before.filter(|_| report.changes.whole) {
            before.sessions.keys().for_each(|session| self.note_unplaced(session));
        }
        changed.iter().chain(&report.changes.forgotten).for_each(|session| self.note_unplaced(session));
        Some(changed.iter().flat_map(|session| self.duplicates(session)).collect())
    }

    /// Notes which sessions are found on this host from now on.
    fn find_again(&mut self, host: &NodeId, now: &BTreeMap<SessionId, Arc<Held>>) {
        if let Some(view) = self.fleet.hosts.get(host) {
            for session in view.sessions.keys().filter(|session| !now.contains_key(*session)) {
                if let Some(hosts) = self.by_session.get_mut(session) {
                    hosts.retain(|known| known != host);
                    if hosts.is_empty() {
                        self.by_session.remove(session);
                    }
                }
            }
        }
        for session in now.keys() {
            let hosts = self.by_session.entry(*session).or_default();
            if !hosts.contains(host) {
                hosts.push(*host);
            }
        }
    }

    /// Notes whether the copy of the session that counts waits to be placed elsewhere.
    fn note_unplaced(&mut self, session: &SessionId) {
        let holder = self.holder(session).filter(|(_, held)| held.unplaced && !held.gone);
        match holder.map(|(host, _)| *host) {
            Some(host) => self.fleet.unplaced.insert(*session, host),
            None => self.fleet.unplaced.remove(session),
        };
    }

    /// Forgets the hosts that do not stay, and all that they told. True where there were any.
    pub fn retain(&mut self, stays: impl Fn(&NodeId) -> bool) -> bool {
        let gone: Vec<NodeId> = self.fleet.hosts.keys().filter(|host| !stays(host)).copied().collect();
        for host in &gone {
            self.find_again(host, &BTreeMap::new());
            self.fleet.hosts.remove(host);
            self.fleet.unplaced.retain(|_, on| on != host);
        }
        !gone.is_empty()
    }

    /// Forgets sessions of a host that will not return. True where there were any.
    pub fn forget(&mut self, host: &NodeId, gone: &BTreeSet<SessionId>) -> bool {
        let Some(view) = self.fleet.hosts.get(host) else { return false };
        let left = view.sessions.iter().filter(|(id, _)| !gone.contains(*id));
        let left: BTreeMap<SessionId, Arc<Held>> = left.map(|(id, held)| (*id, Arc::clone(held))).collect();
        if left.len() == view.sessions.len() {
            return false;
        }
        self.find_again(host, &left);
        if let Some(view) = self.fleet.hosts.get_mut(host) {
            let view = Arc::make_mut(view);
            (view.sessions, view.have) = (left, None);
        }
        gone.iter().for_each(|session| self.note_unplaced(session));
        true
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The host of a session, and what it says of it: the copy that counts, where there are more.
    pub fn holder(&self, session: &SessionId) -> Option<(&NodeId, &Arc<Held>)> {
        let hosts = self.by_session.get(session)?;
        let held = hosts.iter().filter_map(|host| Some((host, self.fleet.hosts.get(host)?.sessions.get(session)?)));
        held.max_by_key(|(host, held)| (worth(held), *host))
    }

    /// Whether this host has told of the session.
    pub fn is_on(&self, session: &SessionId, host: &NodeId) -> bool {
        self.by_session.get(session).is_some_and(|hosts| hosts.contains(host))
    }

    /// The copies of all sessions that lose to another.
    pub fn all_duplicates(&self) -> Vec<Duplicate> {
        let twice = self.by_session.iter().filter(|(_, hosts)| hosts.len() > 1);
        twice.flat_map(|(session, _)| self.duplicates(session)).collect()
    }

    /// The copies of a session that lose to another.
    fn duplicates(&self, session: &SessionId) -> Vec<Duplicate> {
        let Some((best, counts)) = self.holder(session) else { return Vec::new() };
        let others = self.by_session.get(session).into_iter().flatten().filter(|host| *host != best);
        let live = others.filter(|host| {
            let view = self.fleet.hosts.get(*host);
            // One that ended is no reason to end another copy, except one that only waits to be placed again.
            let loses = |held: &Held| !held.gone && (!counts.gone || held.unplaced);
            view.and_then(|view| view.sessions.get(session)).is_some_and(|held| loses(held))
        });
        live.map(|host| Duplicate { host: *host, session: *session }).collect()
    }

    /// How many sessions of a user hold a reservation on hosts that count.
    pub fn sessions_of(&self, user: &User, counts: impl Fn(&NodeId) -> bool) -> usize {
        let hosts = self.fleet.hosts.iter().filter(|(host, _)| counts(host));
        let held = hosts.flat_map(|(_, view)| view.sessions.values());
        held.filter(|held| held.session.user == *user && is_live(held)).count()
    }
}

/// Whether the session holds a reservation.
pub fn is_live(held: &Held) -> bool {
    !held.gone && !matches!(held.session.state, SessionState::Stopped | SessionState::Failed)
}

/// Of two copies of one session, one that is there counts before one that is gone, then the later decision. A copy
/// that waits to be placed again is not there: what it was placed as since may have run and ended.
fn worth(held: &Held) -> (bool, &crate::types::Ballot, u32) {
    (!held.gone && !held.unplaced, &held.ballot, held.session.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::Changes;
    use crate::types::{Ballot, sample};

    const HOST: &str = "aabb222222222222";

    fn held(key: &str) -> Held {
        let session = sample::session_profile(key, "desktop", "alice", SessionState::Running);
        let (activity, ballot) = (sample::activity(), Ballot { term: 1, node: id() });
        Held { session, activity, ballot, gone: false, unplaced: false }
    }

    fn id() -> NodeId {
        HOST.parse().unwrap()
    }

    fn report(whole: bool, version: u64, held: Vec<Held>) -> HostReport {
        let now = crate::sessions::Have { incarnation: 1, version };
        let changes = Changes { now, whole, held, forgotten: Vec::new() };
        HostReport {
            profile: sample::profile("a", HOST),
            images: BTreeSet::new(),
            version: 0,
            usage: sample::usage(),
            at: Timestamp::default(),
            changes,
        }
    }

    #[test]
    fn a_session_that_ended_after_it_was_placed_again_is_not_placed_a_third_time() {
        let other = NodeId::from_bytes([1; 10]);
        let mut index = Index::default();
        let waits = Held { unplaced: true, ..held("k") };
        index.apply(&id(), report(true, 1, vec![waits.clone()]));
        let session = waits.session.id;
        assert_eq!(index.fleet().unplaced.get(&session), Some(&id()));
        let mut ended = Held { gone: true, ..held("k") };
        ended.session.attempt += 1;
        let duplicates = index.apply(&other, report(true, 1, vec![ended]));
        assert_eq!(index.fleet().unplaced.get(&session), None);
        assert_eq!(duplicates, Some(vec![Duplicate { host: id(), session }]));
    }

    #[test]
    fn of_a_host_of_which_something_was_forgotten_everything_is_heard_anew() {
        let mut index = Index::default();
        index.apply(&id(), report(true, 1, vec![held("one"), held("two")]));
        let one = sample::session_id("one");
        assert!(index.forget(&id(), &[one].into()) && !index.forget(&id(), &[one].into()));
        assert!(index.holder(&one).is_none() && index.holder(&sample::session_id("two")).is_some());
        assert_eq!(index.apply(&id(), report(false, 2, vec![held("three")])), None);
        index.apply(&id(), report(true, 2, vec![held("one"), held("two"), held("three")]));
        assert_eq!(index.holder(&one).map(|(host, _)| host), Some(&id()));
        assert!(index.apply(&id(), report(false, 3, vec![held("four")])).is_some());
    }
}
