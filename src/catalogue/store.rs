//! The catalogue on disk: `catalogue.redb` in the data directory, one record per entry.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{Book, Conflict, Entry, Key, StoredToken, Value, Version};
use crate::store::{Change, Error, Records};
use crate::types::{Ballot, NodeId, Timestamp, Workspace};

const FILE: &str = "catalogue.redb";

const ENTRY: &str = "entry/";
const CONFLICT: &str = "conflict/";
/// The prefix of records from before entries had versions, like [`TOKEN`]. The record is the workspace itself.
const WORKSPACE: &str = "workspace/";
const TOKEN: &str = "token/";

/// The open store.
#[derive(Debug)]
pub struct Store(crate::store::Store);

impl Store {
    /// Opens or creates the store in the data directory, and reads the catalogue. Records without a version count as
    /// written by `me`.
    ///
    /// # Errors
    /// The file is in use or not accessible.
    pub fn open(data_dir: &Path, me: &NodeId, now: Timestamp) -> Result<(Self, Book), Error> {
        let (store, book) = crate::store::Store::open(&data_dir.join(FILE), now, |records| Ok(parse(&records, me)))?;
        Ok((Self(store), book))
    }

    pub(super) async fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.0.commit(changes).await
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self(store), switch)
    }
}

/// The changes that bring the records of a key in line with the book: its entry and its conflict.
pub(super) fn write(book: &Book, key: &Key) -> Vec<Change> {
    let name = name(key);
    let entry = match book.entry(key) {
        Some(entry) => Change::put(format!("{ENTRY}{name}"), &**entry),
        None => Change::Remove(format!("{ENTRY}{name}")),
    };
    let conflict = match book.conflict(key) {
        Some(conflict) => Change::put(format!("{CONFLICT}{name}"), &**conflict),
        None => Change::Remove(format!("{CONFLICT}{name}")),
    };
    // The entry supersedes the record of an older version.
    vec![entry, conflict, Change::Remove(name)]
}

fn name(key: &Key) -> String {
    match key {
        Key::Workspace(name) => format!("{WORKSPACE}{name}"),
        Key::Token(id) => format!("{TOKEN}{id}"),
    }
}

/// Ignores unreadable records. They stay on disk for the version that wrote them.
fn parse(records: &Records, me: &NodeId) -> Book {
    let (mut entries, mut conflicts) = (Vec::new(), Vec::new());
    // Names sort `entry/` before the prefixes of older versions, whose records the entries supersede.
    for (name, json) in records {
        if name.starts_with(ENTRY) {
            entries.extend(readable::<Entry>(name, json));
        } else if name.starts_with(CONFLICT) {
            conflicts.extend(readable::<Conflict>(name, json));
        } else if name.starts_with(WORKSPACE) {
            entries.extend(readable::<Workspace>(name, json).map(|workspace| {
                unversioned(Key::Workspace(workspace.name.clone()), Value::Workspace(Box::new(workspace)), me)
            }));
        } else if name.starts_with(TOKEN) {
            entries.extend(
                readable::<StoredToken>(name, json)
                    .map(|token| unversioned(Key::Token(token.token.id.clone()), Value::Token(Box::new(token)), me)),
            );
        }
    }
    Book::new(entries, conflicts)
}

/// The version of a record from before entries had versions: lower than the versions of every leader, and different
/// on each node.
fn unversioned(key: Key, value: Value, me: &NodeId) -> Entry {
    let version = Version { edits: 1, ballot: Ballot { term: 0, node: *me }, seq: 0 };
    Entry { key, version, changed_at: Timestamp::from_millis(0), value }
}

fn readable<T: DeserializeOwned>(name: &str, json: &[u8]) -> Option<T> {
    serde_json::from_slice(json)
        .inspect_err(
            |error| tracing::warn!(record = name, %error, "cannot read a record of the catalogue: ignoring it"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Cores};

    #[test]
    fn records_without_versions_are_read() {
        let me = NodeId::from_bytes([1; 10]);
        let workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        let token = r#"{"id":"abcdefgh","name":"ci","role":"read","created_at":"2026-01-01T00:00:00Z",
            "expires_at":null,"sha256":"00"}"#;
        let records = Records::from([
            ("workspace/desktop".to_owned(), serde_json::to_vec(&workspace).unwrap()),
            ("token/abcdefgh".to_owned(), token.as_bytes().to_vec()),
            ("token/broken".to_owned(), b"{".to_vec()),
        ]);
        let book = std::sync::Arc::new(parse(&records, &me));
        let snapshot = book.snapshot(false);
        assert_eq!(snapshot.workspaces.values().map(|w| (**w).clone()).collect::<Vec<_>>(), [workspace]);
        assert_eq!(snapshot.tokens.keys().collect::<Vec<_>>(), ["abcdefgh"]);
        assert!(book.entries().all(|entry| entry.version.ballot == Ballot { term: 0, node: me }));
    }

    #[test]
    fn an_entry_supersedes_the_record_of_an_older_version() {
        let me = NodeId::from_bytes([1; 10]);
        let old = Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        let key = Key::Workspace(old.name.clone());
        let mut book = Book::new([unversioned(key.clone(), Value::Workspace(Box::new(old)), &me)], []);
        let ballot = Ballot { term: 3, node: me };
        let version = book.next_version(&key, ballot, 0);
        assert_eq!(version.edits, 2);
        book.merge(Entry { key: key.clone(), version, changed_at: Timestamp::default(), value: Value::Tombstone });
        let changes = write(&book, &key);
        assert!(matches!(&changes[0], Change::Put(name, _) if name == "entry/workspace/desktop"));
        assert!(changes.contains(&Change::Remove("workspace/desktop".to_owned())));
    }
}
