//! Entries with versions, and how the entries of two nodes are merged. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};

use super::{Conflict, Difference, Entry, Key, Snapshot, Value, Version, Versions};
use crate::types::{Ballot, Timestamp};

/// How long a tombstone is kept, 30 days. A node that was away for longer may bring back an entry that was removed.
const TOMBSTONE_MILLIS: i64 = 30 * 24 * 3600 * 1000;
/// Conflicts that are remembered at most; beyond it, the oldest are dropped.
const MAX_CONFLICTS: usize = 100;
/// Bytes of a digest: enough that no two catalogues have the same digest by chance.
const DIGEST_BYTES: usize = 16;

/// A node's copy of the catalogue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contents {
    entries: BTreeMap<Key, Arc<Entry>>,
    conflicts: BTreeMap<Key, Arc<Conflict>>,
}

impl Contents {
    pub fn new(entries: impl IntoIterator<Item = Entry>, conflicts: impl IntoIterator<Item = Conflict>) -> Self {
        let conflicts = conflicts.into_iter().map(|conflict| (conflict.previous.key.clone(), Arc::new(conflict)));
        Self {
            entries: entries.into_iter().map(|entry| (entry.key.clone(), Arc::new(entry))).collect(),
            conflicts: conflicts.collect(),
        }
    }

    pub fn entry(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// The conflicts of entries that were changed on two sides of a partition.
    pub fn conflicts(&self) -> impl Iterator<Item = &Arc<Conflict>> {
        self.conflicts.values()
    }

    pub fn conflict(&self, key: &Key) -> Option<&Arc<Conflict>> {
        self.conflicts.get(key)
    }

    /// The version of the entry's next change.
    pub fn next_version(&self, key: &Key, ballot: Ballot, seq: u64) -> Version {
        let edits = self.entries.get(key).map_or(0, |entry| entry.version.edits) + 1;
        Version { edits, ballot, seq }
    }

    /// Stores an entry if it is newer than this copy's. Returns false if this copy's entry is as new or newer.
    ///
    /// Two different entries with the same number of edits were written without knowledge of each other. The higher
    /// version wins on every node, and the other entry is remembered as a conflict.
    pub fn merge(&mut self, entry: Entry) -> bool {
        let known = self.entries.get(&entry.key);
        if let Some(known) = known
            && known.version.edits == entry.version.edits
            && known.version != entry.version
            // If the values are equal, no change is lost.
            && known.value != entry.value
        {
            let entry_wins = entry.version > known.version;
            let (won, previous) = if entry_wins { (&entry, (**known).clone()) } else { (&**known, entry.clone()) };
            let conflict = Conflict { won: won.version.clone(), previous };
            self.remember(conflict);
        }
        if self.entries.get(&entry.key).is_some_and(|known| known.version >= entry.version) {
            return false;
        }
        // A later edit was made with knowledge of the entry that won, so it settles the conflict.
        if self.conflicts.get(&entry.key).is_some_and(|conflict| conflict.won.edits < entry.version.edits) {
            self.conflicts.remove(&entry.key);
        }
        self.entries.insert(entry.key.clone(), Arc::new(entry));
        true
    }

    fn remember(&mut self, conflict: Conflict) {
        let key = conflict.previous.key.clone();
        self.conflicts.insert(key, Arc::new(conflict));
        while self.conflicts.len() > MAX_CONFLICTS {
            let oldest = self.conflicts.iter().min_by_key(|(_, conflict)| conflict.previous.changed_at);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            self.conflicts.remove(&oldest);
        }
    }

    /// Replaces the value of an entry without a new version. This is for values that differ only in how this node
    /// counts a deadline.
    pub fn restate(&mut self, entry: Entry) {
        self.entries.insert(entry.key.clone(), Arc::new(entry));
    }

    /// Forgets the tombstones that are older than 30 days, and returns their keys.
    pub fn forget_old(&mut self, now: Timestamp) -> Vec<Key> {
        let old = |entry: &Entry| {
            entry.value == Value::Tombstone && now.millis() - entry.changed_at.millis() > TOMBSTONE_MILLIS
        };
        let forgotten: Vec<Key> = self.entries.values().filter(|entry| old(entry)).map(|e| e.key.clone()).collect();
        for key in &forgotten {
            self.entries.remove(key);
        }
        forgotten
    }

    pub fn versions(&self) -> Versions {
        self.entries.iter().map(|(key, entry)| (key.clone(), entry.version.clone())).collect()
    }

    /// Compares with another copy's versions: the entries that are newer here, and the keys of the entries that are
    /// newer there or lost there to an entry of this copy.
    pub fn difference(&self, theirs: &Versions) -> Difference {
        let theirs: BTreeMap<&Key, &Version> = theirs.iter().map(|(key, version)| (key, version)).collect();
        let newer_here = |entry: &&Arc<Entry>| theirs.get(&entry.key).is_none_or(|version| **version < entry.version);
        let worth_having = |(key, version): &(&&Key, &&Version)| match self.entries.get(**key) {
            Some(ours) => {
                ours.version < ***version || (ours.version > ***version && ours.version.edits == version.edits)
            }
            None => true,
        };
        Difference {
            newer: self.entries.values().filter(newer_here).map(|entry| (**entry).clone()).collect(),
            wanted: theirs.iter().filter(worth_having).map(|(key, _)| (*key).clone()).collect(),
        }
    }

    /// The entries of these keys.
    pub fn of_keys(&self, keys: &[Key]) -> Vec<Entry> {
        keys.iter().filter_map(|key| self.entries.get(key)).map(|entry| (**entry).clone()).collect()
    }

    /// Short text that is equal for two contents if, and only if, their versions are.
    pub fn digest(&self) -> String {
        let mut hash = Context::new(&SHA256);
        for (key, version) in self.versions() {
            let line = serde_json::to_vec(&(key, version)).expect("names and numbers always serialise");
            hash.update(&line);
        }
        HEXLOWER.encode(&hash.finish().as_ref()[..DIGEST_BYTES])
    }

    /// The snapshot to publish.
    pub fn snapshot(self: &Arc<Self>, synced: bool) -> Snapshot {
        let mut snapshot =
            Snapshot { contents: Arc::clone(self), digest: self.digest(), synced, ..Snapshot::default() };
        for entry in self.entries.values() {
            match &entry.value {
                Value::Workspace(workspace) => {
                    snapshot.workspaces.insert(workspace.name.clone(), Arc::new((**workspace).clone()));
                }
                Value::Token(token) => {
                    snapshot.tokens.insert(token.token.id.clone(), Arc::new((**token).clone()));
                }
                Value::Tombstone => {}
            }
        }
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Bytes, Cores, NodeId, Workspace};

    fn entry(name: u8, edits: u64, term: u64, seq: u64) -> Entry {
        let name: crate::types::Name = format!("w{name}").parse().unwrap();
        let mut workspace = Workspace::new(name.clone(), Cores::whole(1), Bytes::gib(1));
        workspace.description = format!("{edits} {term} {seq}");
        let ballot = Ballot { term, node: NodeId::from_bytes([u8::try_from(term).unwrap(); 10]) };
        Entry {
            key: Key::Workspace(name),
            version: Version { edits, ballot, seq },
            changed_at: Timestamp::from_millis(0),
            value: if seq % 5 == 4 { Value::Tombstone } else { Value::Workspace(Box::new(workspace)) },
        }
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        prop::collection::vec((0..4u8, 1..4u64, 1..4u64, 0..6u64), 0..20)
            .prop_map(|all| all.into_iter().map(|(name, edits, term, seq)| entry(name, edits, term, seq)).collect())
    }

    fn contents(entries: &[Entry]) -> Contents {
        let mut contents = Contents::default();
        for entry in entries {
            contents.merge(entry.clone());
        }
        contents
    }

    proptest! {
        #[test]
        fn the_order_of_merging_does_not_matter(a in entries(), b in entries()) {
            let one = contents(&[a.clone(), b.clone()].concat());
            let other = contents(&[b, a.clone()].concat());
            prop_assert_eq!(&one.entries, &other.entries);
            prop_assert_eq!(one.digest(), other.digest());
            let mut again = one.clone();
            for entry in a {
                prop_assert!(!again.merge(entry), "no entry is newer the second time");
            }
            prop_assert_eq!(again.entries, one.entries);
        }

        #[test]
        fn two_contents_that_tell_each_other_their_difference_are_equal(a in entries(), b in entries()) {
            let (mut one, mut other) = (contents(&a), contents(&b));
            prop_assert_eq!(one.digest() == other.digest(), one.versions() == other.versions());
            let difference = other.difference(&one.versions());
            for entry in one.of_keys(&difference.wanted) {
                other.merge(entry);
            }
            for entry in difference.newer {
                one.merge(entry);
            }
            prop_assert_eq!(&one.entries, &other.entries);
            let nothing = one.difference(&other.versions());
            prop_assert!(nothing.newer.is_empty() && nothing.wanted.is_empty());
        }
    }

    #[test]
    fn what_lost_is_remembered_until_somebody_edits_again() {
        let mut ours = contents(&[entry(0, 1, 1, 0), entry(0, 2, 1, 1)]);
        assert!(ours.merge(entry(0, 2, 2, 0)), "the higher ballot wins");
        let conflict = ours.conflicts().next().unwrap();
        assert_eq!((&conflict.previous, &conflict.won), (&entry(0, 2, 1, 1), &entry(0, 2, 2, 0).version));
        let mut theirs = contents(&[entry(0, 2, 2, 0)]);
        assert!(!theirs.merge(entry(0, 2, 1, 1)));
        assert_eq!(theirs.conflicts().next(), ours.conflicts().next(), "both sides remember the same conflict");
        ours.merge(entry(0, 3, 2, 1));
        assert_eq!(ours.conflicts().count(), 0);
    }

    #[test]
    fn only_different_entries_with_the_same_number_of_edits_are_a_conflict() {
        let (known, other) = (entry(0, 2, 1, 1), entry(0, 2, 2, 0));
        for (what, merged, conflicts) in [
            ("an earlier edit", entry(0, 1, 1, 0), 0),
            ("a later edit", entry(0, 3, 1, 0), 0),
            ("the same version", Entry { value: other.value.clone(), ..known.clone() }, 0),
            ("the same value", Entry { version: other.version.clone(), ..known.clone() }, 0),
            ("another edit", other, 1),
        ] {
            assert_eq!(contents(&[known.clone(), merged]).conflicts().count(), conflicts, "{what}");
        }
    }

    #[test]
    fn tombstones_are_forgotten_after_a_month() {
        let mut contents = contents(&[entry(0, 1, 1, 4), entry(1, 1, 1, 0)]);
        assert!(contents.forget_old(Timestamp::from_millis(TOMBSTONE_MILLIS)).is_empty());
        assert_eq!(contents.forget_old(Timestamp::from_millis(TOMBSTONE_MILLIS + 1)), [entry(0, 1, 1, 4).key]);
        assert_eq!(contents.entries().count(), 1);
    }

    #[test]
    fn a_tombstone_is_kept_for_a_month_from_its_change() {
        let month = 30 * 86_400_000;
        let changed_at = Timestamp::from_millis(10 * month);
        let mut contents = contents(&[Entry { changed_at, ..entry(0, 1, 1, 4) }]);
        let after = |millis| Timestamp::from_millis(changed_at.millis() + millis);
        assert!(contents.forget_old(after(month)).is_empty());
        assert_eq!(contents.forget_old(after(month + 1)).len(), 1);
    }

    #[test]
    fn above_the_bound_the_oldest_conflicts_are_dropped() {
        let mut contents = Contents::default();
        for n in 0..=MAX_CONFLICTS {
            let name: crate::types::Name = format!("c{n}").parse().unwrap();
            let changed_at = Timestamp::from_millis(i64::try_from(n).unwrap());
            for term in [1, 2] {
                let entry = entry(0, 1, term, 0);
                contents.merge(Entry { key: Key::Workspace(name.clone()), changed_at, ..entry });
            }
        }
        assert_eq!(contents.conflicts().count(), MAX_CONFLICTS);
        let oldest = contents.conflicts().map(|conflict| conflict.previous.changed_at).min();
        assert_eq!(oldest, Some(Timestamp::from_millis(1)));
    }
}
