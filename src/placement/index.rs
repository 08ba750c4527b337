//! What every host reported to its leader. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Have, HostReport};
use crate::images::Here;
use crate::sessions::Held;
use crate::types::{NodeId, NodeProfile, NodeUsage, SessionId, Timestamp, User};

/// Everything that hosts reported to the leader, as it is published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    pub hosts: BTreeMap<NodeId, Arc<HostView>>,
    /// Sessions that their host could not start and that wait to be placed on another.
    pub unplaced: BTreeMap<SessionId, NodeId>,
}

/// What one host reported.
#[derive(Debug, Clone, PartialEq)]
pub struct HostView {
    pub profile: Arc<NodeProfile>,
    pub usage: NodeUsage,
    /// When it reported, by its own wall clock.
    pub last_seen: Timestamp,
    /// Every session that it has a record of.
    pub sessions: BTreeMap<SessionId, Arc<Held>>,
    /// The images of the catalogue that it has.
    pub images: Here,
    /// The version that the next report may build on. `None` where some of it was forgotten: the host must report
    /// everything.
    pub have: Option<Have>,
}

/// The reports, with an index of sessions by id.
#[derive(Debug, Default)]
pub struct Index {
    fleet: Fleet,
    /// The hosts that have a record of a session: one, except after a partition.
    by_session: BTreeMap<SessionId, Vec<NodeId>>,
    /// The number of reports of each host.
    told: BTreeMap<NodeId, u64>,
}

/// A copy of a session that its host must remove, since the copy on another host counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    pub host: NodeId,
    pub session: SessionId,
}

impl Index {
    pub const fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Whether the host has reported.
    pub fn knows(&self, host: &NodeId) -> bool {
        self.fleet.hosts.contains_key(host)
    }

    /// The number of the host's reports.
    pub fn told(&self, host: &NodeId) -> u64 {
        self.told.get(host).copied().unwrap_or_default()
    }

    /// Applies a report and returns the duplicates among the sessions that it changed. `None`: the report builds on a
    /// version that is not here and is ignored; the host must report everything.
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

    /// Updates `by_session` to the sessions that this host has now.
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

    /// Notes whether the copy of the session that counts waits to be placed on another host.
    fn note_unplaced(&mut self, session: &SessionId) {
        let holder = self.holder(session).filter(|(_, held)| held.unplaced && !held.gone);
        match holder.map(|(host, _)| *host) {
            Some(host) => self.fleet.unplaced.insert(*session, host),
            None => self.fleet.unplaced.remove(session),
        };
    }

    /// Forgets the hosts for which `stays` is false, and their reports. Returns whether there were any.
    pub fn retain(&mut self, stays: impl Fn(&NodeId) -> bool) -> bool {
        let gone: Vec<NodeId> = self.fleet.hosts.keys().filter(|host| !stays(host)).copied().collect();
        for host in &gone {
            self.find_again(host, &BTreeMap::new());
            self.fleet.hosts.remove(host);
            self.fleet.unplaced.retain(|_, on| on != host);
        }
        !gone.is_empty()
    }

    /// Forgets sessions of a host that were removed for good. Returns whether there were any.
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

    /// The host of a session, and what it reported of it. Of several copies, the one that counts.
    pub fn holder(&self, session: &SessionId) -> Option<(&NodeId, &Arc<Held>)> {
        let hosts = self.by_session.get(session)?;
        let held = hosts.iter().filter_map(|host| Some((host, self.fleet.hosts.get(host)?.sessions.get(session)?)));
        held.max_by_key(|(host, held)| (worth(held), *host))
    }

    /// Whether this host has reported the session.
    pub fn is_on(&self, session: &SessionId, host: &NodeId) -> bool {
        self.by_session.get(session).is_some_and(|hosts| hosts.contains(host))
    }

    /// The copies of all sessions that their hosts must remove.
    pub fn all_duplicates(&self) -> Vec<Duplicate> {
        let twice = self.by_session.iter().filter(|(_, hosts)| hosts.len() > 1);
        twice.flat_map(|(session, _)| self.duplicates(session)).collect()
    }

    /// The copies of a session that their hosts must remove.
    fn duplicates(&self, session: &SessionId) -> Vec<Duplicate> {
        let Some((best, counts)) = self.holder(session) else { return Vec::new() };
        let others = self.by_session.get(session).into_iter().flatten().filter(|host| *host != best);
        let live = others.filter(|host| {
            let view = self.fleet.hosts.get(*host);
            // An ended copy is no reason to remove another copy, unless that one only waits to be placed again.
            let loses = |held: &Held| !held.gone && (!counts.gone || held.unplaced);
            view.and_then(|view| view.sessions.get(session)).is_some_and(|held| loses(held))
        });
        live.map(|host| Duplicate { host: *host, session: *session }).collect()
    }

    /// The number of a user's sessions that hold a reservation on hosts that count.
    pub fn sessions_of(&self, user: &User, counts: impl Fn(&NodeId) -> bool) -> usize {
        let hosts = self.fleet.hosts.iter().filter(|(host, _)| counts(host));
        let held = hosts.flat_map(|(_, view)| view.sessions.values());
        held.filter(|held| held.session.user == *user && held.reserved).count()
    }
}

/// The order of copies of one session; the highest counts. A live copy counts before one that is gone, then the later
/// decision counts. A copy that waits to be placed again is not live: the session may since have run on another host
/// and ended.
fn worth(held: &Held) -> (bool, &crate::types::Ballot, u32) {
    (!held.gone && !held.unplaced, &held.ballot, held.session.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::Changes;
    use crate::types::{Ballot, SessionState, sample};

    const HOST: &str = "aabb222222222222";

    fn held(key: &str) -> Held {
        let session = sample::session_profile(key, "desktop", "alice", SessionState::Running);
        let (activity, ballot) = (sample::activity(), Ballot { term: 1, node: id() });
        Held { session, activity, ballot, gone: false, unplaced: false, reserved: true }
    }

    fn id() -> NodeId {
        HOST.parse().unwrap()
    }

    fn report(whole: bool, version: u64, held: Vec<Held>) -> HostReport {
        let now = crate::sessions::Have { incarnation: 1, version };
        let changes = Changes { now, whole, held, forgotten: Vec::new() };
        HostReport {
            profile: sample::profile("a", HOST),
            images: Here::new(),
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
    fn a_host_must_report_everything_after_some_of_its_sessions_were_forgotten() {
        let mut index = Index::default();
        index.apply(&id(), report(true, 1, vec![held("one"), held("two")]));
        let one = sample::session_id("one");
        assert!(index.forget(&id(), &[one].into()) && !index.forget(&id(), &[one].into()));
        assert!(index.holder(&one).is_none() && index.holder(&sample::session_id("two")).is_some());
        assert!(!index.is_on(&one, &id()) && index.is_on(&sample::session_id("two"), &id()));
        assert_eq!(index.apply(&id(), report(false, 2, vec![held("three")])), None);
        index.apply(&id(), report(true, 2, vec![held("one"), held("two"), held("three")]));
        assert_eq!(index.holder(&one).map(|(host, _)| host), Some(&id()));
        assert!(index.apply(&id(), report(false, 3, vec![held("four")])).is_some());
    }
    #[test]
    fn of_two_live_copies_the_later_decision_counts_and_the_other_is_a_duplicate() {
        let other = NodeId::from_bytes([1; 10]);
        for (terms, best, worse) in [((1, 2), other, id()), ((2, 1), id(), other)] {
            let copy = |term| Held { ballot: Ballot { term, node: id() }, ..held("k") };
            let mut index = Index::default();
            index.apply(&id(), report(true, 1, vec![copy(terms.0), held("once")]));
            let duplicates = vec![Duplicate { host: worse, session: sample::session_id("k") }];
            assert_eq!(index.apply(&other, report(true, 1, vec![copy(terms.1)])).as_ref(), Some(&duplicates));
            assert_eq!(index.all_duplicates(), duplicates);
            assert_eq!(index.holder(&sample::session_id("k")).map(|(host, _)| *host), Some(best));
        }
    }

    #[test]
    fn a_live_copy_counts_before_a_later_one_that_is_gone_and_neither_is_removed() {
        let mut index = Index::default();
        index.apply(&id(), report(true, 1, vec![held("k")]));
        let gone = Held { gone: true, ballot: Ballot { term: 2, node: id() }, ..held("k") };
        assert_eq!(index.apply(&NodeId::from_bytes([1; 10]), report(true, 1, vec![gone])), Some(Vec::new()));
        assert_eq!(index.all_duplicates(), []);
        assert_eq!(index.holder(&sample::session_id("k")).map(|(host, _)| *host), Some(id()));
    }

    #[test]
    fn only_reserved_sessions_of_the_user_on_hosts_that_count_are_counted() {
        let mut stuck = Held { reserved: false, ..held("stuck") };
        stuck.session.state = SessionState::Stopping;
        let gone = Held { gone: true, reserved: false, ..held("gone") };
        let mut of_bob = held("bob");
        of_bob.session.user = "bob".parse().unwrap();
        let mut index = Index::default();
        index.apply(&id(), report(true, 1, vec![held("one"), held("two"), stuck, gone, of_bob]));
        let alice = "alice".parse().unwrap();
        assert_eq!((index.sessions_of(&alice, |_| true), index.sessions_of(&alice, |_| false)), (2, 0));
    }

    #[test]
    fn a_host_that_does_not_stay_is_forgotten_with_its_sessions() {
        let other = NodeId::from_bytes([1; 10]);
        let waits = |key: &str| Held { unplaced: true, ..held(key) };
        let mut index = Index::default();
        index.apply(&id(), report(true, 1, vec![waits("one")]));
        index.apply(&other, report(true, 1, vec![waits("two")]));
        assert!(!index.retain(|_| true));
        assert!(index.retain(|host| *host == other));
        assert!(!index.knows(&id()) && index.knows(&other));
        let (one, two) = (sample::session_id("one"), sample::session_id("two"));
        assert!(!index.is_on(&one, &id()) && index.is_on(&two, &other));
        assert_eq!(index.fleet().unplaced, [(two, other)].into());
    }
}
