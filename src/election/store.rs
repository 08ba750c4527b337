//! What a node promised in elections, on disk: one record in `election.redb` in the data directory.
//!
//! It has its own file, so that a vote never waits for another write.

use std::path::Path;

use super::state::Stored;
use crate::store::{Change, Error, Records};
use crate::types::{Ballot, Timestamp};

const FILE: &str = "election.redb";
const HIGHEST: &str = "highest";

/// The open store.
#[derive(Debug)]
pub struct Store(crate::store::Store);

impl Store {
    /// # Errors
    /// The file is in use or cannot be reached.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, Stored), Error> {
        let (store, highest) = crate::store::Store::open(&data_dir.join(FILE), now, parse)?;
        let lost = store.begun_anew().is_some();
        Ok((Self(store), Stored { highest, lost }))
    }

    pub(super) async fn keep(&self, highest: &Ballot) -> Result<(), Error> {
        self.0.commit(vec![Change::put(HIGHEST, highest)]).await
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self(store), switch)
    }
}

fn parse(records: Records) -> Result<Option<Ballot>, String> {
    let Some(record) = records.get(HIGHEST) else { return Ok(None) };
    serde_json::from_slice(record).map(Some).map_err(|e| format!("record {HIGHEST}: {e}"))
}
