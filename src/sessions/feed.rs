//! The changes of this host's sessions since a version. Pure.
//!
//! Every session has the version of its last change. A reader that has seen one version gets what came after it. A
//! reader that is too far behind, or that has a version from an earlier start of the agent, gets everything.

use std::collections::{BTreeMap, VecDeque};

use super::{Changes, Have, Held, Record, Snapshot};
use crate::types::{Ballot, SessionId, SessionProfile};

/// Removed sessions that are kept for readers. A reader that missed more removals gets everything.
const MAX_FORGOTTEN: usize = 1000;

/// The versions of everything on this host.
#[derive(Debug, Clone, Default)]
pub struct Feed {
    incarnation: u64,
    version: u64,
    /// The version of the last change that calls for a report.
    news: u64,
    told: BTreeMap<SessionId, (u64, Standing)>,
    forgotten: VecDeque<(u64, SessionId)>,
    /// `forgotten` holds only the removals after this version.
    complete_since: u64,
}

/// What a report says of a session besides its profile and its activity.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub ballot: Ballot,
    pub gone: bool,
    pub unplaced: bool,
    pub reserved: bool,
}

impl Standing {
    pub fn of(record: &Record) -> Self {
        let unplaced = record.live().is_some_and(|live| live.unplaced.is_some());
        let ballot = record.origin().ballot;
        Self { ballot, gone: record.live().is_none(), unplaced, reserved: record.is_reserved() }
    }
}

impl Feed {
    /// An empty feed, for a new start of the agent.
    pub fn new(incarnation: u64) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// The version that a reader has after it has read everything.
    pub const fn now(&self) -> Have {
        Have { incarnation: self.incarnation, version: self.version }
    }

    /// Whether a reader with this version needs a report.
    pub fn is_news_to(&self, have: Option<Have>) -> bool {
        have.is_none_or(|have| {
            have.incarnation != self.incarnation || !(self.news..=self.version).contains(&have.version)
        })
    }

    /// Notes a session as it is now. `before` is its profile as last published.
    pub fn note(&mut self, before: Option<&SessionProfile>, now: &SessionProfile, standing: Standing) {
        let same = self.told.get(&now.id).is_some_and(|(_, told)| *told == standing);
        if same && before == Some(now) {
            return;
        }
        self.changed();
        self.told.insert(now.id, (self.version, standing));
    }

    /// Notes a change of a session's activity. Activity changes many times a minute, so it is part of the next report
    /// but does not call for one.
    pub fn note_activity(&mut self, session: &SessionId) {
        if let Some((version, _)) = self.told.get_mut(session) {
            self.version += 1;
            *version = self.version;
        }
    }

    const fn changed(&mut self) {
        self.version += 1;
        self.news = self.version;
    }

    /// Notes that a session's record was removed.
    pub fn forget(&mut self, session: &SessionId) {
        if self.told.remove(session).is_none() {
            return;
        }
        self.changed();
        self.forgotten.push_back((self.version, *session));
        while self.forgotten.len() > MAX_FORGOTTEN {
            if let Some((version, _)) = self.forgotten.pop_front() {
                self.complete_since = version;
            }
        }
    }
}

impl Snapshot {
    /// The changes after `have`.
    pub fn since(&self, have: Option<Have>) -> Changes {
        let feed = &self.feed;
        let seen = have.filter(|have| have.incarnation == feed.incarnation && have.version <= feed.version);
        let seen = seen.map(|have| have.version).filter(|version| *version >= feed.complete_since);
        let after = |version: u64| seen.is_none_or(|seen| version > seen);
        let held = feed.told.iter().filter(|(_, (version, _))| after(*version)).filter_map(|(id, (_, standing))| {
            let session = (**self.sessions.get(id)?).clone();
            let activity = self.activities.get(id)?.clone();
            let Standing { ballot, gone, unplaced, reserved } = standing.clone();
            Some(Held { session, activity, ballot, gone, unplaced, reserved })
        });
        // A key may be used again after its session was forgotten: a session that exists now is not forgotten.
        let is_gone = |id: &SessionId| !feed.told.contains_key(id);
        let forgotten = feed.forgotten.iter().filter(|(version, id)| seen.is_some() && after(*version) && is_gone(id));
        Changes {
            now: feed.now(),
            whole: seen.is_none(),
            held: held.collect(),
            forgotten: forgotten.map(|(_, id)| *id).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{NodeId, SessionState, Timestamp, sample};

    fn standing(term: u64, gone: bool) -> Standing {
        Standing { ballot: Ballot { term, node: NodeId::from_bytes([1; 10]) }, gone, unplaced: false, reserved: !gone }
    }

    fn put(snapshot: &mut Snapshot, key: &str, state: SessionState, gone: bool) {
        let session = sample::session_profile(key, "desktop", "alice", state);
        snapshot.activities.entry(session.id).or_insert_with(sample::activity);
        let before = snapshot.sessions.insert(session.id, Arc::new(session.clone()));
        snapshot.feed.note(before.as_deref(), &session, standing(1, gone));
    }

    fn forget(snapshot: &mut Snapshot, key: &str) {
        let id = sample::session_id(key);
        snapshot.sessions.remove(&id);
        snapshot.activities.remove(&id);
        snapshot.feed.forget(&id);
    }

    fn use_again(snapshot: &mut Snapshot, key: &str, at: i64) {
        if let Some(activity) = snapshot.activities.get_mut(&sample::session_id(key)) {
            activity.last_activity_at = Timestamp::from_millis(at);
            snapshot.feed.note_activity(&sample::session_id(key));
        }
    }

    /// A reader of changes, as a leader is.
    #[derive(Default)]
    struct Reader {
        have: Option<Have>,
        sessions: BTreeMap<SessionId, Held>,
    }

    impl Reader {
        fn read(&mut self, snapshot: &Snapshot) {
            let changes = snapshot.since(self.have);
            if changes.whole {
                self.sessions.clear();
            }
            for held in changes.held {
                self.sessions.insert(held.session.id, held);
            }
            for id in changes.forgotten {
                self.sessions.remove(&id);
            }
            self.have = Some(changes.now);
        }

        fn sees(&self, snapshot: &Snapshot) -> bool {
            self.sessions.len() == snapshot.sessions.len()
                && snapshot.sessions.iter().all(|(id, session)| self.sessions[id].session == **session)
                && snapshot.activities.iter().all(|(id, activity)| self.sessions[id].activity == *activity)
        }
    }

    proptest! {
        #[test]
        fn a_reader_that_reads_at_any_times_misses_nothing(
            steps in prop::collection::vec((0..6u8, 0..6u8, any::<bool>()), 0..60),
        ) {
            let mut snapshot = Snapshot { feed: Feed::new(7), ..Snapshot::default() };
            let mut reader = Reader::default();
            for (at, (session, what, look)) in (0..).zip(steps) {
                let key = session.to_string();
                match what {
                    0 => forget(&mut snapshot, &key),
                    1 => put(&mut snapshot, &key, SessionState::Stopped, true),
                    2 => put(&mut snapshot, &key, SessionState::Pending, false),
                    3 => use_again(&mut snapshot, &key, at),
                    _ => put(&mut snapshot, &key, SessionState::Running, false),
                }
                if look {
                    reader.read(&snapshot);
                    prop_assert!(reader.sees(&snapshot));
                    prop_assert!(!snapshot.feed.is_news_to(reader.have));
                }
            }
        }
    }

    #[test]
    fn a_reader_with_a_gap_or_of_an_earlier_start_gets_everything() {
        let mut snapshot = Snapshot { feed: Feed::new(7), ..Snapshot::default() };
        put(&mut snapshot, "a", SessionState::Running, false);
        let seen = snapshot.feed.now();
        assert!(!snapshot.since(Some(seen)).whole);
        assert!(snapshot.since(Some(seen)).held.is_empty());
        assert!(snapshot.since(Some(Have { incarnation: 6, ..seen })).whole);
        assert!(snapshot.since(Some(Have { version: seen.version + 1, ..seen })).whole);
        for _ in 0..=MAX_FORGOTTEN {
            put(&mut snapshot, "b", SessionState::Running, false);
            forget(&mut snapshot, "b");
        }
        assert!(snapshot.since(Some(seen)).whole, "it may have missed something");
    }

    #[test]
    fn activity_alone_calls_for_no_report() {
        let mut snapshot = Snapshot { feed: Feed::new(7), ..Snapshot::default() };
        put(&mut snapshot, "a", SessionState::Running, false);
        let seen = snapshot.feed.now();
        use_again(&mut snapshot, "a", 99);
        assert!(!snapshot.feed.is_news_to(Some(seen)));
        let along = snapshot.since(Some(seen)).held;
        assert_eq!(along[0].activity.last_activity_at, Timestamp::from_millis(99), "the next report has it");
        let session = sample::session_profile("a", "desktop", "alice", SessionState::Running);
        snapshot.feed.note(Some(&session), &session, standing(1, false));
        assert!(!snapshot.feed.is_news_to(Some(seen)), "nothing changed");
        snapshot.feed.note(Some(&session), &session, standing(2, false));
        assert!(snapshot.feed.is_news_to(Some(seen)), "another leader decided");
    }
}
