//! This node on disk: `node.redb` in the data directory.

use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::DrainState;
use crate::store::{Change, Error, Records};
use crate::types::{NodeId, Settings, Timestamp};

const FILE: &str = "node.redb";

const IDENTITY: &str = "identity";
const SETTINGS: &str = "settings";
const DRAIN: &str = "drain";

/// What the store had at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub id: NodeId,
    /// The settings chosen over the API, without those that the configuration file declares.
    pub chosen: Settings,
    pub drain: Option<DrainState>,
}

/// The open store.
#[derive(Debug)]
pub struct Store(crate::store::Store);

impl Store {
    /// Opens the store in the data directory, or creates it with a new node id.
    ///
    /// The id is bound to the host's `machine_id` (see [`machine_id`]): if the directory was copied to another
    /// machine, the node gets a new id, so that no two nodes share one. The settings stay.
    ///
    /// # Errors
    /// The file is in use or cannot be reached, or no id can be written.
    pub fn open(data_dir: &Path, machine_id: Option<&str>, now: Timestamp) -> Result<(Self, Stored), Error> {
        let (store, (identity, chosen, drain)) = crate::store::Store::open(&data_dir.join(FILE), now, parse)?;
        let (identity, changed) = match identity {
            Some(found) => bind(found, machine_id),
            None => (Identity::new(machine_id), true),
        };
        if changed {
            store.commit_blocking(&[Change::put(IDENTITY, &identity)])?;
        }
        Ok((Self(store), Stored { id: identity.id, chosen, drain }))
    }

    pub(super) async fn keep_settings(&self, chosen: &Settings) -> Result<(), Error> {
        self.0.commit(vec![Change::put(SETTINGS, chosen)]).await
    }

    pub(super) async fn keep_drain(&self, drain: Option<&DrainState>) -> Result<(), Error> {
        let change = drain.map_or_else(|| Change::Remove(DRAIN.to_owned()), |drain| Change::put(DRAIN, drain));
        self.0.commit(vec![change]).await
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self(store), switch)
    }
}

/// The machine's id, which distinguishes it from another with a copy of its disk. `None` if the machine has none.
pub fn machine_id() -> Option<String> {
    parse_machine_id(&std::fs::read_to_string("/etc/machine-id").ok()?)
}

fn parse_machine_id(text: &str) -> Option<String> {
    let id = text.trim();
    // systemd writes `uninitialized` into images that have not been booted yet.
    (!id.is_empty() && id != "uninitialized").then(|| id.to_owned())
}

/// The node id and the machine that it was created on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    id: NodeId,
    #[serde(default)]
    machine_id: Option<String>,
}

impl Identity {
    fn new(machine_id: Option<&str>) -> Self {
        let mut random = [0; 10];
        SystemRandom::new().fill(&mut random).expect("the kernel has randomness once it runs processes");
        Self { id: NodeId::from_bytes(random), machine_id: machine_id.map(str::to_owned) }
    }
}

/// The identity on this machine, and whether it differs from the stored one. Without a machine id nothing proves that
/// the machine is another one, so the stored identity stays.
fn bind(found: Identity, machine_id: Option<&str>) -> (Identity, bool) {
    match (&found.machine_id, machine_id) {
        (Some(bound), Some(here)) if bound != here => {
            let new = Identity::new(machine_id);
            tracing::warn!(old = %found.id, new = %new.id,
                "the data directory comes from another machine: this node gets a new id");
            (new, true)
        }
        (None, Some(here)) => (Identity { machine_id: Some(here.to_owned()), ..found }, true),
        _ => (found, false),
    }
}

type Parsed = (Option<Identity>, Settings, Option<DrainState>);

/// An unreadable identity is an error. Unreadable settings or an unreadable drain get their default.
fn parse(records: Records) -> Result<Parsed, String> {
    let identity = records.get(IDENTITY).map(|json| serde_json::from_slice(json)).transpose();
    let settings = records.get(SETTINGS).and_then(|json| readable(SETTINGS, json, settings_of(json)));
    let drain = records.get(DRAIN).and_then(|json| readable(DRAIN, json, serde_json::from_slice(json)));
    Ok((identity.map_err(|e| format!("cannot read the node's identity: {e}"))?, settings.unwrap_or_default(), drain))
}

fn readable<T>(what: &str, json: &[u8], parsed: Result<T, serde_json::Error>) -> Option<T> {
    parsed
        .inspect_err(|error| {
            let record = String::from_utf8_lossy(json);
            tracing::error!(what, %error, %record, "cannot parse a record: its default is used");
        })
        .ok()
}

/// Settings that an older version did not write get their default; settings of a newer version are ignored.
fn settings_of(json: &[u8]) -> Result<Settings, serde_json::Error> {
    let mut settings = serde_json::to_value(Settings::default())?;
    if let (Value::Object(known), Value::Object(stored)) = (&mut settings, serde_json::from_slice(json)?) {
        known.extend(stored);
    }
    serde_json::from_value(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Cores;

    const NOW: Timestamp = Timestamp::from_millis(1);

    fn id(directory: &Path, machine_id: Option<&str>) -> NodeId {
        Store::open(directory, machine_id, NOW).unwrap().1.id
    }

    #[test]
    fn a_node_keeps_its_id_on_its_machine_only() {
        let directory = tempfile::tempdir().unwrap();
        let first = id(directory.path(), None);
        assert_eq!(id(directory.path(), Some("a")), first, "now it is bound");
        assert_eq!(id(directory.path(), Some("a")), first);
        assert_eq!(id(directory.path(), None), first, "without a machine id the node keeps its id");
        let copy = id(directory.path(), Some("b"));
        assert_ne!(copy, first);
        assert_eq!(id(directory.path(), Some("b")), copy);
    }

    #[tokio::test]
    async fn settings_survive_a_restart_and_a_new_id() {
        let directory = tempfile::tempdir().unwrap();
        let (store, stored) = Store::open(directory.path(), Some("a"), NOW).unwrap();
        assert_eq!(stored.chosen, Settings::default());
        let chosen = Settings { cores_override: Cores::whole(12), ..Settings::default() };
        store.keep_settings(&chosen).await.unwrap();
        drop(store);
        assert_eq!(Store::open(directory.path(), Some("b"), NOW).unwrap().1.chosen, chosen);
    }

    #[test]
    fn an_unreadable_identity_is_an_error() {
        assert!(parse(Records::from([(IDENTITY.to_owned(), b"{}".to_vec())])).is_err());
    }

    #[test]
    fn settings_of_other_versions_are_read() {
        let settings = |json: &str| parse(Records::from([(SETTINGS.to_owned(), json.as_bytes().to_vec())])).unwrap().1;
        let older = settings(r#"{"cores_override":12,"of_a_newer_version":true}"#);
        assert_eq!(older, Settings { cores_override: Cores::whole(12), ..Settings::default() });
        assert_eq!(settings(r#"{"prune":"of_a_newer_version"}"#), Settings::default());
        assert_eq!(settings("garbage"), Settings::default());
    }

    #[test]
    fn an_uninitialized_machine_id_counts_as_missing() {
        assert_eq!(parse_machine_id("3d1219c7c4c5404a\n"), Some("3d1219c7c4c5404a".to_owned()));
        assert_eq!((parse_machine_id("uninitialized\n"), parse_machine_id("\n")), (None, None));
    }
}
