//! The journal on disk: `sessions.redb` in the data directory, with one record for each session.

use std::path::Path;

use super::Rebuilt;
use super::record::Record;
use crate::store::{Change, Error, Records, Store};
use crate::types::{SessionId, Timestamp};

const FILE: &str = "sessions.redb";

/// The open journal.
#[derive(Debug)]
pub struct Journal(Store);

impl Journal {
    /// Opens or creates the journal in the data directory, and reads every record. A journal that cannot be read is
    /// moved aside, never deleted; its sessions are then adopted from the labels of their containers.
    ///
    /// # Errors
    /// The file is in use or cannot be opened.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, Vec<Record>), Error> {
        let (store, records) = Store::open(&data_dir.join(FILE), now, parse)?;
        Ok((Self(store), records))
    }

    /// Why the journal was created anew, if it was.
    pub(super) fn rebuilt(&self) -> Option<Rebuilt> {
        let moved = self.0.begun_anew()?;
        let to = moved.to.display();
        let message = format!(
            "{}; the file was moved to {to}, and sessions are rebuilt from the labels of containers; check the \
             sessions, then remove that file",
            moved.reason
        );
        Some(Rebuilt { message, moved_to: moved.to.clone() })
    }

    /// Writes changed records, and removes those that are `None`, in one durable transaction.
    pub(super) async fn commit(
        &self,
        changes: impl IntoIterator<Item = (&SessionId, Option<&Record>)>,
    ) -> Result<(), Error> {
        let change = |(id, record): (&SessionId, Option<&Record>)| match record {
            Some(record) => Change::put(id.as_str(), record),
            None => Change::Remove(id.to_string()),
        };
        let changes = changes.into_iter().map(change).collect();
        self.0.commit(changes).await
    }

    /// Whether the disk has room again for a commit.
    pub(super) async fn has_room(&self) -> bool {
        self.0.has_room().await
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self(store), switch)
    }
}

/// One unreadable record fails the whole journal: its session may be running, and adoption finds it.
fn parse(records: Records) -> Result<Vec<Record>, String> {
    let parse_one =
        |(id, json): (String, Vec<u8>)| serde_json::from_slice(&json).map_err(|e| format!("session {id}: {e}"));
    records.into_iter().map(parse_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::decide::testing::{START, id, new_live};

    fn stored(key: &str) -> Record {
        Record::Live(Box::new(new_live(key)))
    }

    #[tokio::test]
    async fn committed_records_are_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, forgotten) = (stored("a"), stored("b"));
        {
            let (journal, records) = Journal::open(directory.path(), START.wall).unwrap();
            assert_eq!((records, journal.rebuilt()), (vec![], None));
            journal.commit([(&id("a"), Some(&kept)), (&id("b"), Some(&forgotten))]).await.unwrap();
            journal.commit([(&id("b"), None)]).await.unwrap();
        }
        assert_eq!(Journal::open(directory.path(), START.wall).unwrap().1, vec![kept]);
    }

    #[tokio::test]
    async fn a_journal_with_an_unreadable_record_is_moved_aside_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path(), START.wall).unwrap();
        journal.0.commit(vec![Change::put("a", &1)]).await.unwrap();
        drop(journal);
        let (journal, records) = Journal::open(directory.path(), START.wall).unwrap();
        assert!(records.is_empty());
        assert!(journal.rebuilt().unwrap().message.contains("session a"));
    }
}
