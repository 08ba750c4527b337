//! The known GPUs and the cordons, on disk: `gpus.redb` in the data directory, one record per device.

use std::path::Path;

use super::known::Records;
use crate::store::{Change, Error};
use crate::types::Timestamp;

const FILE: &str = "gpus.redb";

const DEVICE: &str = "device/";

/// The open store, and what is in it.
#[derive(Debug)]
pub struct Store {
    store: crate::store::Store,
    written: Records,
}

impl Store {
    /// Opens the store in the data directory, or creates it.
    ///
    /// # Errors
    /// The file is in use or cannot be reached.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<Self, Error> {
        let (store, written) = crate::store::Store::open(&data_dir.join(FILE), now, |records| Ok(parse(&records)))?;
        Ok(Self { store, written })
    }

    pub(super) const fn written(&self) -> &Records {
        &self.written
    }

    /// Brings the disk up to date. If that fails, nothing changed, and the next call writes all of it.
    pub(super) async fn keep(&mut self, records: Records) -> Result<(), Error> {
        let changes = changes(&self.written, &records);
        if !changes.is_empty() {
            self.store.commit(changes).await?;
            self.written = records;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self { store, written: Records::new() }, switch)
    }
}

fn changes(from: &Records, to: &Records) -> Vec<Change> {
    let removed = from.keys().filter(|uuid| !to.contains_key(*uuid));
    let written = to.iter().filter(|(uuid, record)| from.get(*uuid) != Some(record));
    removed
        .map(|uuid| Change::Remove(format!("{DEVICE}{uuid}")))
        .chain(written.map(|(uuid, record)| Change::put(format!("{DEVICE}{uuid}"), record)))
        .collect()
}

/// A record that cannot be read costs only itself: the device is known again once it is seen.
fn parse(records: &crate::store::Records) -> Records {
    let devices = records.iter().filter_map(|(name, json)| Some((name, name.strip_prefix(DEVICE)?, json)));
    let parsed = devices.filter_map(|(name, uuid, json)| {
        serde_json::from_slice(json)
            .inspect_err(
                |error| tracing::warn!(record = %name, %error, "cannot parse the record of a GPU: it is skipped"),
            )
            .ok()
            .map(|record| (uuid.to_owned(), record))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Command;
    use crate::gpu::answer::Found;
    use crate::gpu::known::Known;

    const NOW: Timestamp = Timestamp::from_millis(1);

    fn known(uuids: &[&str]) -> Known {
        let found = |uuid: &&str| Found { uuid: Some((*uuid).to_owned()), ..Found::default() };
        let mut known = Known::restore(Records::new(), Some(1));
        known.see(&uuids.iter().map(found).collect::<Vec<_>>(), NOW);
        known
    }

    #[tokio::test]
    async fn what_is_kept_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), NOW).unwrap();
        assert!(store.written().is_empty());
        let mut known = known(&["a", "b"]);
        known.command("a", Command::Cordon).unwrap();
        store.keep(known.records()).await.unwrap();
        drop(store);

        let mut store = Store::open(directory.path(), NOW).unwrap();
        assert_eq!(store.written(), &known.records());
        known.see(&[], NOW);
        known.command("b", Command::Forget).unwrap();
        store.keep(known.records()).await.unwrap();
        drop(store);
        let store = Store::open(directory.path(), NOW).unwrap();
        assert_eq!(store.written().keys().collect::<Vec<_>>(), ["a"]);
    }

    #[tokio::test]
    async fn only_what_changed_is_written_and_a_failed_write_is_repeated() {
        let (mut store, switch) = Store::failing();
        let known = known(&["a", "b"]);
        switch.set(true);
        assert!(store.keep(known.records()).await.is_err());
        assert!(store.written().is_empty());
        switch.set(false);
        store.keep(known.records()).await.unwrap();
        switch.set(true);
        assert_eq!(store.keep(known.records()).await, Ok(()), "there is nothing to write");
        assert_eq!(changes(&Records::new(), store.written()).len(), 2);
    }

    #[test]
    fn a_record_that_cannot_be_parsed_is_skipped() {
        let json = serde_json::to_vec(&known(&["a"]).records()["a"]).unwrap();
        let records =
            [("device/a".to_owned(), json), ("device/b".to_owned(), b"{}".to_vec()), ("x".to_owned(), vec![])];
        assert_eq!(parse(&records.into()), known(&["a"]).records());
    }
}
