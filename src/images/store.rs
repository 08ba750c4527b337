//! The records of images, on disk: `images.redb` in the data directory, one record for each image and each open pull.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ownership::{ImageKey, Intent, Record, Records};
use super::reserve::Reserve;
use crate::store::{Change, Error, MovedAside};
use crate::types::{ImageReference, Timestamp};

const FILE: &str = "images.redb";

const IMAGE: &str = "image/";
const PULL: &str = "pull/";

/// The open store, and what is in it.
#[derive(Debug)]
pub struct Store {
    store: crate::store::Store,
    written: Records,
    /// `None`: in memory.
    reserve: Option<Reserve>,
}

/// A record with its key, whose parts may hold any character.
#[derive(Serialize, Deserialize)]
struct Entry<K, V> {
    key: K,
    #[serde(flatten)]
    value: V,
}

impl Store {
    /// Opens the store in the data directory, or creates it.
    ///
    /// # Errors
    /// The file is in use or cannot be reached.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<Self, Error> {
        let (store, written) = crate::store::Store::open(&data_dir.join(FILE), now, |records| Ok(parse(&records)))?;
        let reserve = Reserve::in_directory(data_dir);
        reserve.hold();
        Ok(Self { store, written, reserve: Some(reserve) })
    }

    pub(super) const fn written(&self) -> &Records {
        &self.written
    }

    /// The file could not be read and was moved aside.
    pub(super) fn lost(&self) -> Option<MovedAside> {
        self.store.begun_anew().cloned()
    }

    /// Brings the disk up to date, on a full one with the room that is held back. If that fails, nothing changed, and the
    /// next call writes all of it.
    pub async fn keep(&mut self, records: &Records) -> Result<(), Error> {
        let changes = changes(&self.written, records);
        if !changes.is_empty() {
            match self.store.commit(changes.clone()).await {
                Err(Error::Full(_)) if self.give_up_reserve().await => self.store.commit(changes).await?,
                written => written?,
            }
            self.written = records.clone();
        }
        Ok(())
    }

    /// Holds room back again, once there is enough.
    pub(super) async fn hold_reserve(&self) {
        let Some(reserve) = self.reserve.clone() else { return };
        // If the task fails, the next call tries again.
        let _ = tokio::task::spawn_blocking(move || reserve.hold()).await;
    }

    async fn give_up_reserve(&self) -> bool {
        let Some(reserve) = self.reserve.clone() else { return false };
        tokio::task::spawn_blocking(move || reserve.give_up()).await.unwrap_or(false)
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self { store, written: Records::default(), reserve: None }, switch)
    }
}

fn changes(from: &Records, to: &Records) -> Vec<Change> {
    let images = differing(&from.images, &to.images, image_name);
    images.chain(differing(&from.intents, &to.intents, pull_name)).collect()
}

fn differing<'a, K: Ord + Clone + Serialize, V: PartialEq + Clone + Serialize>(
    from: &'a std::collections::BTreeMap<K, V>,
    to: &'a std::collections::BTreeMap<K, V>,
    name: fn(&K) -> String,
) -> impl Iterator<Item = Change> + 'a {
    let removed = from.keys().filter(|key| !to.contains_key(*key)).map(move |key| Change::Remove(name(key)));
    let written = to.iter().filter(|(key, value)| from.get(*key) != Some(*value));
    removed.chain(
        written.map(move |(key, value)| Change::put(name(key), &Entry { key: key.clone(), value: value.clone() })),
    )
}

fn image_name(ImageKey { store, id }: &ImageKey) -> String {
    format!("{IMAGE}{}/{:?}/{id}", store.engine, store.kind)
}

fn pull_name(image: &ImageReference) -> String {
    format!("{PULL}{image}")
}

/// A record that cannot be read costs only itself: its image counts as foreign.
fn parse(records: &crate::store::Records) -> Records {
    let mut parsed = Records::default();
    for (name, json) in records {
        let read = if name.starts_with(IMAGE) {
            serde_json::from_slice(json).map(|Entry { key, value }: Entry<ImageKey, Record>| {
                parsed.images.insert(key, value);
            })
        } else if name.starts_with(PULL) {
            serde_json::from_slice(json).map(|Entry { key, value }: Entry<ImageReference, Intent>| {
                parsed.intents.insert(key, value);
            })
        } else {
            Ok(())
        };
        if let Err(error) = read {
            tracing::warn!(record = %name, %error, "cannot parse the record of an image: the image counts as foreign");
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ownership::Origin;
    use crate::runtime::images::{ImageDetails, ImageStore, ImageStoreKind};
    use crate::types::{BootInstant, Moment};

    const NOW: Moment = Moment { wall: Timestamp::from_millis(1), boot: BootInstant::from_millis(1), boot_id: 1 };

    #[tokio::test]
    async fn what_is_kept_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), NOW.wall).unwrap();
        assert_eq!(*store.written(), Records::default());
        let (mut records, place) =
            (Records::default(), ImageStore { engine: "A:B/C".to_owned(), kind: ImageStoreKind::Containerd });
        let (one, two) = (ImageReference::parse("r:5000/x:1").unwrap(), ImageReference::parse("y").unwrap());
        records.begin(&one, &place, &[]);
        records.begin(&two, &place, &[]);
        store.keep(&records).await.unwrap();
        let image = ImageDetails { id: "sha256:1".to_owned(), names: vec![one.to_string()], ..ImageDetails::default() };
        records.pulled(&one, &image, Some("sha256:d".to_owned()), Origin::Registry, NOW);
        store.keep(&records).await.unwrap();
        drop(store);

        let store = Store::open(directory.path(), NOW.wall).unwrap();
        assert_eq!(*store.written(), records);
        assert_eq!((records.images.len(), records.intents.len()), (1, 1));
        assert!(store.lost().is_none());
    }

    #[test]
    fn a_record_that_cannot_be_read_costs_only_itself() {
        let records = [
            ("image/e/GraphDriver/sha256:1".to_owned(), b"nonsense".to_vec()),
            (
                "pull/x".to_owned(),
                br#"{"key":"x","store":{"engine":"e","kind":"containerd"},"present":[],"named":null}"#.to_vec(),
            ),
            ("of a newer version".to_owned(), b"1".to_vec()),
        ];
        let parsed = parse(&records.into_iter().collect());
        assert_eq!((parsed.images.len(), parsed.intents.len()), (0, 1));
    }
}
