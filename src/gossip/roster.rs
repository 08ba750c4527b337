//! Every node that was ever known, on disk: `roster.redb` in the data directory, one record per node.
//!
//! With the roster a node finds the others without a seed, and shows the last known state of nodes that are gone.
//! Nothing depends on its last minute, so figures are written seldom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Member;
use super::view::as_seen;
use crate::store::{Change, Error, Records};
use crate::types::{ClusterMode, NodeId, NodeProfile, NodeState, NodeUsage, SessionProfile, Timestamp};

const FILE: &str = "roster.redb";

const ROSTER: &str = "roster/";
const INCARNATION: &str = "incarnation";

/// The open store.
#[derive(Debug)]
pub struct Store(crate::store::Store);

/// What the store had at start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    pub nodes: BTreeMap<NodeId, Arc<Member>>,
    /// The number of the life that begins now. It is on disk already: with a number that is used twice, keys of the
    /// previous life could overwrite keys of this one.
    pub incarnation: u64,
}

/// A node on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    address: SocketAddr,
    incarnation: u64,
    left: bool,
    mode: ClusterMode,
    last_seen: Timestamp,
    profile: Option<Arc<NodeProfile>>,
    usage: NodeUsage,
    sessions: Vec<Arc<SessionProfile>>,
    catalogue: Option<String>,
}

impl Store {
    /// Opens the store in the data directory, or creates it, reads the roster, and begins a new life.
    ///
    /// # Errors
    /// The file is in use, or cannot be reached or written.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, Stored), Error> {
        let (store, stored) = crate::store::Store::open(&data_dir.join(FILE), now, |records| Ok(parse(&records)))?;
        let incarnation = next_incarnation(stored.incarnation, now);
        store.commit_blocking(&[Change::put(INCARNATION, &incarnation)])?;
        Ok((Self(store), Stored { incarnation, ..stored }))
    }

    #[cfg(test)]
    pub(super) fn failing() -> (Self, crate::store::failing::Switch) {
        let (store, switch) = crate::store::failing::store();
        (Self(store), switch)
    }
}

/// The roster as it is on disk, and the store to bring it up to date.
#[derive(Debug)]
pub(super) struct Roster {
    store: Store,
    written: BTreeMap<NodeId, Arc<Member>>,
}

impl Roster {
    pub(super) fn new(store: Store, written: BTreeMap<NodeId, Arc<Member>>) -> Self {
        Self { store, written }
    }

    /// Begins another life of this node, and returns its number, which is on disk then.
    pub(super) async fn begin_life(&mut self, last: u64, now: Timestamp) -> Result<u64, Error> {
        let incarnation = next_incarnation(last, now);
        self.store.0.commit(vec![Change::put(INCARNATION, &incarnation)]).await?;
        Ok(incarnation)
    }

    /// Writes the nodes that joined, moved, left or were forgotten and, if `figures` is set, every node that changed.
    pub(super) async fn keep(&mut self, members: &BTreeMap<NodeId, Arc<Member>>, figures: bool) -> Result<(), Error> {
        let due = due(&self.written, members, figures);
        if due.is_empty() {
            return Ok(());
        }
        let change = |id: &NodeId| members.get(id).map_or_else(|| remove(id), |member| put(id, member));
        self.store.0.commit(due.iter().map(change).collect()).await?;
        for id in due {
            match members.get(&id) {
                Some(member) => self.written.insert(id, Arc::clone(member)),
                None => self.written.remove(&id),
            };
        }
        Ok(())
    }
}

/// The next life's number. It grows even if the clock went backwards, and even if the store was lost.
fn next_incarnation(last: u64, now: Timestamp) -> u64 {
    u64::try_from(now.millis()).unwrap_or(0).max(last.saturating_add(1))
}

/// The nodes whose records must change to bring the disk from one roster to another: changes of membership always,
/// changes of figures only if `figures` is set.
fn due(from: &BTreeMap<NodeId, Arc<Member>>, to: &BTreeMap<NodeId, Arc<Member>>, figures: bool) -> Vec<NodeId> {
    let is_due = |id: &NodeId, member: &Arc<Member>| match from.get(id) {
        Some(written) if Arc::ptr_eq(written, member) => false,
        Some(written) => figures || essentials(written) != essentials(member),
        None => true,
    };
    let removed = from.keys().filter(|id| !to.contains_key(*id));
    let written = to.iter().filter(|(id, member)| is_due(id, member)).map(|(id, _)| id);
    removed.chain(written).copied().collect()
}

/// What a start needs to know of a node, and whether there is a document of it to show.
fn essentials(member: &Member) -> (SocketAddr, u64, bool, ClusterMode, bool) {
    let left = member.state == NodeState::Left;
    (member.address, member.incarnation, left, member.mode, member.profile.is_some())
}

fn put(id: &NodeId, member: &Arc<Member>) -> Change {
    let record = Record {
        address: member.address,
        incarnation: member.incarnation,
        left: member.state == NodeState::Left,
        mode: member.mode,
        last_seen: member.last_seen,
        profile: member.profile.clone(),
        usage: member.usage.clone(),
        sessions: member.sessions.values().map(Arc::clone).collect(),
        catalogue: member.catalogue.clone(),
    };
    Change::put(format!("{ROSTER}{id}"), &record)
}

fn remove(id: &NodeId) -> Change {
    Change::Remove(format!("{ROSTER}{id}"))
}

/// A record that cannot be read costs only itself: the node is back when it is heard.
fn parse(records: &Records) -> Stored {
    let mut stored = Stored::default();
    for (name, json) in records {
        if name == INCARNATION {
            stored.incarnation = readable(name, json).unwrap_or_default();
        } else if let Some(id) = name.strip_prefix(ROSTER)
            && let Ok(id) = id.parse()
            && let Some(record) = readable::<Record>(name, json)
        {
            stored.nodes.insert(id, Arc::new(member(record)));
        }
    }
    stored
}

fn member(record: Record) -> Member {
    let state = if record.left { NodeState::Left } else { NodeState::Unknown };
    let sessions = record.sessions.into_iter().map(|session| (session.id, session));
    Member {
        address: record.address,
        incarnation: record.incarnation,
        state,
        mode: record.mode,
        last_seen: record.last_seen,
        profile: record.profile,
        usage: record.usage,
        sessions: as_seen(&sessions.collect(), state),
        catalogue: record.catalogue,
    }
}

fn readable<T: DeserializeOwned>(record: &str, json: &[u8]) -> Option<T> {
    serde_json::from_slice(json)
        .inspect_err(|error| tracing::warn!(record, %error, "cannot parse a record of the roster: it is skipped"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::fixture::{by_id, id, profile, session};

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn alive(n: u8) -> Arc<Member> {
        Arc::new(Member {
            address: format!("127.0.0.1:{}", 1000 + u16::from(n)).parse().unwrap(),
            incarnation: 7,
            state: NodeState::Alive,
            mode: ClusterMode::Available,
            last_seen: NOW,
            profile: Some(Arc::new(profile(n))),
            usage: NodeUsage::default(),
            sessions: by_id(&[session(n, 0)]),
            catalogue: Some("digest".to_owned()),
        })
    }

    fn roster(members: &[(u8, &Arc<Member>)]) -> BTreeMap<NodeId, Arc<Member>> {
        members.iter().map(|(n, member)| (id(*n), Arc::clone(member))).collect()
    }

    #[tokio::test]
    async fn the_roster_survives_a_restart_and_the_number_of_the_life_grows() {
        let directory = tempfile::tempdir().unwrap();
        let (store, stored) = Store::open(directory.path(), NOW).unwrap();
        assert_eq!(stored, Stored { incarnation: 1_000_000, ..Stored::default() });
        let left = Arc::new(Member { state: NodeState::Left, ..(*alive(2)).clone() });
        let members = roster(&[(1, &alive(1)), (2, &left)]);
        Roster::new(store, stored.nodes).keep(&members, false).await.unwrap();

        let earlier = Timestamp::from_millis(5); // the clock went backwards
        let (store, stored) = Store::open(directory.path(), earlier).unwrap();
        assert_eq!(stored.incarnation, 1_000_001);
        assert_eq!(stored.nodes[&id(2)].state, NodeState::Left);
        let sessions = as_seen(&alive(1).sessions, NodeState::Unknown);
        let silent = Member { state: NodeState::Unknown, sessions, ..(*alive(1)).clone() };
        assert_eq!(*stored.nodes[&id(1)], silent);
        Roster::new(store, stored.nodes).keep(&BTreeMap::new(), false).await.unwrap();
        assert!(Store::open(directory.path(), NOW).unwrap().1.nodes.is_empty());
    }

    #[test]
    fn membership_is_written_at_once_and_figures_on_request() {
        let (one, same) = (alive(1), alive(1));
        let busier = Arc::new(Member { sessions: by_id(&[session(1, 0), session(1, 1)]), ..(*one).clone() });
        let moved = Arc::new(Member { address: "127.0.0.1:9".parse().unwrap(), ..(*one).clone() });
        let left = Arc::new(Member { state: NodeState::Left, ..(*one).clone() });
        let only_heard_of = Arc::new(Member { profile: None, ..(*one).clone() });
        let written = roster(&[(1, &one)]);
        for (now, at_once, with_figures) in
            [(&one, 0, 0), (&same, 0, 1), (&busier, 0, 1), (&moved, 1, 1), (&left, 1, 1), (&only_heard_of, 1, 1)]
        {
            let now = roster(&[(1, now)]);
            assert_eq!(due(&written, &now, false).len(), at_once);
            assert_eq!(due(&written, &now, true).len(), with_figures);
        }
        assert_eq!(due(&written, &roster(&[(1, &one), (2, &alive(2))]), false), [id(2)]);
        assert_eq!(due(&written, &BTreeMap::new(), false), [id(1)]);
    }

    #[tokio::test]
    async fn a_failed_write_is_repeated_the_next_time() {
        let (store, switch) = Store::failing();
        let mut kept = Roster::new(store, BTreeMap::new());
        let members = roster(&[(1, &alive(1))]);
        switch.set(true);
        assert!(kept.keep(&members, false).await.is_err());
        assert!(kept.written.is_empty());
        switch.set(false);
        kept.keep(&members, false).await.unwrap();
        assert_eq!(kept.written, members);
    }

    #[test]
    fn a_record_that_cannot_be_parsed_is_skipped() {
        let Change::Put(name, json) = put(&id(1), &alive(1)) else { panic!("a record is put") };
        let record = |name: &str| (name.to_owned(), b"{}".to_vec());
        let broken = format!("{ROSTER}{}", id(2));
        let records = [(name, json), record(&broken), record("roster/x"), record("of_a_newer_version")];
        let stored = parse(&records.into_iter().collect());
        assert_eq!(stored.nodes.into_keys().collect::<Vec<_>>(), [id(1)]);
    }
}
