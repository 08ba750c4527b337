//! What changed on this host since somebody looked. Pure.
//!
//! Every session has the version of its last change, so whoever has seen one version is told what came
//! after it, and whoever has seen too little, or another life of the agent, is told everything.

use std::collections::{BTreeMap, VecDeque};

use super::{Changes, Have, Held, Record, Snapshot};
use crate::types::{Ballot, Session, SessionId};

/// Sessions that are remembered to be forgotten. Whoever has not looked for so long is told everything.
const MAX_FORGOTTEN: usize = 1000;

/// The versions of everything on this host.
#[derive(Debug, Clone, Default)]
pub struct Feed {
    incarnation: u64,
    version: u64,
    told: BTreeMap<SessionId, (u64, Standing)>,
    forgotten: VecDeque<(u64, SessionId)>,
    /// What was forgotten up to this version is no longer in `forgotten`.
    complete_since: u64,
}

/// What is told of a session besides what everybody sees of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub ballot: Ballot,
    pub gone: bool,
    pub unplaced: bool,
}

impl Standing {
    pub fn of(record: &Record) -> Self {
        Self { ballot: record.ballot, gone: record.is_gone(), unplaced: record.unplaced.is_some() }
    }
}

impl Feed {
    /// Nothing yet, in a new life of the agent.
    pub fn new(incarnation: u64) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// Where whoever has seen all of it is.
    pub const fn now(&self) -> Have {
        Have { incarnation: self.incarnation, version: self.version }
    }

    /// Notes a session as it is now. `before` is what was published of it last.
    pub fn note(&mut self, before: Option<&Session>, now: &Session, standing: Standing) {
        let same = self.told.get(&now.id).is_some_and(|(_, told)| *told == standing);
        if same && before.is_some_and(|before| means_the_same(before, now)) {
            return;
        }
        self.version += 1;
        self.told.insert(now.id, (self.version, standing));
    }

    /// Notes that a session is not remembered any more.
    pub fn forget(&mut self, session: &SessionId) {
        if self.told.remove(session).is_none() {
            return;
        }
        self.version += 1;
        self.forgotten.push_back((self.version, *session));
        while self.forgotten.len() > MAX_FORGOTTEN {
            if let Some((version, _)) = self.forgotten.pop_front() {
                self.complete_since = version;
            }
        }
    }
}

impl Snapshot {
    /// What came after `have`.
    pub fn since(&self, have: Option<Have>) -> Changes {
        let feed = &self.feed;
        let seen = have.filter(|have| have.incarnation == feed.incarnation && have.version <= feed.version);
        let seen = seen.map(|have| have.version).filter(|version| *version >= feed.complete_since);
        let after = |version: u64| seen.is_none_or(|seen| version > seen);
        let held = feed.told.iter().filter(|(_, (version, _))| after(*version)).filter_map(|(id, (_, standing))| {
            let session = (**self.sessions.get(id)?).clone();
            let Standing { ballot, gone, unplaced } = standing.clone();
            Some(Held { session, ballot, gone, unplaced })
        });
        // A key that is free is used again: what is there now is not forgotten.
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

/// Activity alone is no news: it is noted many times a minute.
fn means_the_same(before: &Session, now: &Session) -> bool {
    Session { last_activity_at: now.last_activity_at, expires_at: now.expires_at, ..before.clone() } == *now
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{NodeId, SessionState, Timestamp, sample};

    fn standing(term: u64, gone: bool) -> Standing {
        Standing { ballot: Ballot { term, node: NodeId::from_bytes([1; 10]) }, gone, unplaced: false }
    }

    fn put(snapshot: &mut Snapshot, key: &str, state: SessionState, gone: bool) {
        let session = sample::session(key, "desktop", "alice", state);
        let before = snapshot.sessions.insert(session.id, Arc::new(session.clone()));
        snapshot.feed.note(before.as_deref(), &session, standing(1, gone));
    }

    fn forget(snapshot: &mut Snapshot, key: &str) {
        let id = sample::session_id(key);
        snapshot.sessions.remove(&id);
        snapshot.feed.forget(&id);
    }

    /// Whoever reads changes, as a leader does.
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
        }
    }

    proptest! {
        #[test]
        fn whoever_looks_now_and_then_knows_everything(
            steps in prop::collection::vec((0..6u8, 0..5u8, any::<bool>()), 0..60),
        ) {
            let mut snapshot = Snapshot { feed: Feed::new(7), ..Snapshot::default() };
            let mut reader = Reader::default();
            for (session, what, look) in steps {
                let key = session.to_string();
                match what {
                    0 => forget(&mut snapshot, &key),
                    1 => put(&mut snapshot, &key, SessionState::Stopped, true),
                    2 => put(&mut snapshot, &key, SessionState::Pending, false),
                    _ => put(&mut snapshot, &key, SessionState::Running, false),
                }
                if look {
                    reader.read(&snapshot);
                    prop_assert!(reader.sees(&snapshot));
                }
            }
        }
    }

    #[test]
    fn another_life_and_a_gap_are_told_everything() {
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
    fn activity_alone_is_no_news() {
        let mut snapshot = Snapshot { feed: Feed::new(7), ..Snapshot::default() };
        put(&mut snapshot, "a", SessionState::Running, false);
        let seen = snapshot.feed.now();
        let mut session = sample::session("a", "desktop", "alice", SessionState::Running);
        let before = session.clone();
        session.last_activity_at = Timestamp::from_millis(99);
        snapshot.feed.note(Some(&before), &session, standing(1, false));
        assert_eq!(snapshot.feed.now(), seen);
        snapshot.feed.note(Some(&before), &session, standing(2, false));
        assert_ne!(snapshot.feed.now(), seen, "somebody else decided");
    }
}
