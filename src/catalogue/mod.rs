//! The catalogue: workspaces and API tokens.
//!
//! Every node has all of it on its own disk and serves it without asking another node. Only the leader changes it, and
//! answers an edit once a majority of nodes has stored it. Each entry has a version, so that nodes can merge their
//! copies after a partition ([`merge`], pure); [`sync`] does so whenever two copies differ.

pub mod merge;
pub mod store;
mod sync;
pub mod task;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, timeout_at};

use crate::election::Leadership;
use crate::retry::Pauses;
use crate::types::{
    Actor, ApiToken, ApiTokenRequest, Ballot, Deadline, Invalid, Moment, Name, NewApiToken, NodeId, Timestamp,
    Workspace,
};

pub use merge::Contents;

/// Workspaces of a catalogue at most.
pub const MAX_WORKSPACES: usize = 10_000;
/// API tokens of a catalogue at most.
pub const MAX_TOKENS: usize = 1_000;
/// How long an edit waits for a majority to store it.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// Why a change was not made. Nothing changed, except where the variant says so.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error("no workspace named {0}")]
    NoWorkspace(Name),
    /// Neither by id nor by name.
    #[error("no API token named {0}")]
    NoToken(String),
    #[error("there is a workspace {0} already")]
    WorkspaceExists(Name),
    #[error("there is an API token {0} already")]
    TokenExists(Name),
    #[error("the catalogue is full: at most {MAX_WORKSPACES} workspaces")]
    TooManyWorkspaces,
    #[error("there are {MAX_TOKENS} API tokens, the most there can be: revoke some")]
    TooManyTokens,
    /// It is stored here, but a majority has not said that it is stored there: it may last, or lose to another.
    #[error("only {acknowledged} of {needed} nodes that are needed have stored it: it may last or not, ask again")]
    OutcomeUnknown { acknowledged: usize, needed: usize },
    /// This node does not lead: the leader writes the catalogue.
    #[error("this node is not the leader, and only the leader changes the catalogue; retry")]
    NoLeader,
    #[error("the catalogue cannot be written: {0}")]
    Store(#[source] crate::store::Cause),
    /// The owner has ended. What became of the change is not known.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Why another node did not keep or compare entries. Whether it did is not known, except where it refused.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The cause is an error of the [way to it](Replicas).
    #[error("{0}")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It kept nothing.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// What everybody may read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub workspaces: BTreeMap<Name, Arc<Workspace>>,
    /// By id.
    pub tokens: BTreeMap<String, Arc<StoredToken>>,
    /// Every entry with its version, tombstones included.
    pub contents: Arc<Contents>,
    /// The same on two nodes if, and only if, they have the same versions of everything.
    pub digest: String,
    /// Since this node started, it has compared its copy with the leader's.
    pub synced: bool,
}

impl Snapshot {
    /// The token with this text, if it is in the catalogue and has not expired.
    pub fn token_of(&self, secret: &str, now: Moment) -> Option<&ApiToken> {
        token::token_of(self, secret, now)
    }
}

/// An API token as it is stored: its hash, never its text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredToken {
    #[serde(flatten)]
    pub token: ApiToken,
    /// SHA-256 of the token's text, in hexadecimal. A random 256-bit token needs no slow hash.
    pub sha256: String,
    /// When it expires; `expires_at` of the token is only for people.
    #[serde(default)]
    pub deadline: Option<Deadline>,
}

/// A change to the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// `create_only` makes an existing workspace a conflict.
    Put {
        workspace: Box<Workspace>,
        create_only: bool,
    },
    Delete(Name),
    CreateToken(ApiTokenRequest),
    /// By id or name.
    RevokeToken(String),
}

/// The result of an [`Edit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edited {
    Put { new: bool },
    Done,
    Token(NewApiToken),
}

/// The version of an entry. Two versions compare by their fields, in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// How often the entry was changed.
    pub edits: u64,
    /// The ballot of the leader that made the change.
    pub ballot: Ballot,
    /// Distinguishes the changes of one ballot.
    pub seq: u64,
}

/// The key of an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    Workspace(Name),
    /// By id.
    Token(String),
}

/// One entry of the catalogue, on disk and between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Key,
    pub version: Version,
    /// For people, and to forget old tombstones.
    pub changed_at: Timestamp,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    Workspace(Box<Workspace>),
    Token(Box<StoredToken>),
    /// The entry was removed. The tombstone tells this to nodes that still have the entry.
    Tombstone,
}

/// The version of every entry of a copy, tombstones included. A list of pairs, because the keys of a JSON map are text.
pub type Versions = Vec<(Key, Version)>;

/// The answer of one node to the versions of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The entries that are newer on the answering node, or that only it has.
    pub newer: Vec<Entry>,
    /// The entries that the answering node asks for: they are newer on the asking node, or lost to its own.
    pub wanted: Vec<Key>,
}

/// Two leaders changed one entry without knowledge of each other. The higher version won.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The entry that lost.
    pub previous: Entry,
    pub won: Version,
}

/// Calls to the catalogues of other nodes.
#[async_trait]
pub trait Replicas: Send + Sync + 'static {
    /// Returns once the entries, or newer ones, are on the disk of `node`.
    ///
    /// # Errors
    /// It refused, or whether they are is not known.
    async fn keep(&self, node: &NodeId, entries: Vec<Entry>) -> Result<(), ReplicaError>;

    /// Compares the versions with the catalogue of `node`.
    ///
    /// # Errors
    /// The node cannot be asked.
    async fn compare(&self, node: &NodeId, versions: Versions) -> Result<Difference, ReplicaError>;
}

/// Sends requests to the owner of the catalogue.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    leadership: watch::Receiver<Arc<Leadership>>,
    replicas: Arc<dyn Replicas>,
    me: NodeId,
}

/// A handle that does not keep the owner running.
struct Weak {
    requests: mpsc::WeakSender<Request>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    leadership: watch::Receiver<Arc<Leadership>>,
    replicas: Arc<dyn Replicas>,
    me: NodeId,
}

impl Weak {
    fn upgrade(&self) -> Option<Handle> {
        Some(Handle {
            requests: self.requests.upgrade()?,
            snapshot: self.snapshot.clone(),
            leadership: self.leadership.clone(),
            replicas: Arc::clone(&self.replicas),
            me: self.me,
        })
    }
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A request to the owner.
#[derive(Debug)]
enum Request {
    /// The answer has the result and, if there is one, the entry to replicate.
    Edit(Box<Edit>, Actor, Reply<(Edited, Option<Entry>)>),
    Keep(Vec<Entry>, Reply<()>),
    Synced,
}

impl Handle {
    fn weak(&self) -> Weak {
        let Self { requests, snapshot, leadership, replicas, me } = self.clone();
        Weak { requests: requests.downgrade(), snapshot, leadership, replicas, me }
    }

    /// Makes a change. Only the leader may. When this returns, a majority has the change on disk.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`]: this node's disk has the change, but not a majority yet.
    pub async fn edit(&self, edit: Edit, by: Actor) -> Result<Edited, Error> {
        let (edited, entry) = self.ask(|reply| Request::Edit(Box::new(edit), by, reply)).await?;
        if let Some(entry) = entry {
            self.replicate(entry).await?;
        }
        Ok(edited)
    }

    /// Stores the entries that are newer than this node's. When this returns, they are on disk.
    pub async fn keep(&self, entries: Vec<Entry>) -> Result<(), Error> {
        self.ask(|reply| Request::Keep(entries, reply)).await
    }

    /// The difference between this node's entries and another node's versions.
    pub fn compare(&self, versions: &Versions) -> Difference {
        self.snapshot.borrow().contents.difference(versions)
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Sends the entry to every node of the electorate, and waits until enough of them have stored it.
    async fn replicate(&self, entry: Entry) -> Result<(), Error> {
        let Some(reign) = self.leadership.borrow().reign.clone() else { return Err(Error::NoLeader) };
        let mut asked = JoinSet::new();
        let deadline = Instant::now() + ACKNOWLEDGED_WITHIN;
        for node in reign.electorate.iter().filter(|node| **node != self.me) {
            asked.spawn(keep_on(Arc::clone(&self.replicas), *node, entry.clone(), deadline));
        }
        let mut acknowledged = 1; // this node's own disk
        while acknowledged < reign.needed
            && let Ok(Some(kept)) = timeout_at(deadline, asked.join_next()).await
        {
            acknowledged += usize::from(kept.unwrap_or(false));
        }
        // The calls to the slower nodes go on; a node that misses the entry gets it when catalogues are compared.
        asked.detach_all();
        if acknowledged < reign.needed {
            return Err(Error::OutcomeUnknown { acknowledged, needed: reign.needed });
        }
        Ok(())
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

/// Sends the entry to one node, and again until the deadline if the node does not store it: it may not be connected
/// yet, or restarts. Returns whether the entry is on its disk.
async fn keep_on(replicas: Arc<dyn Replicas>, node: NodeId, entry: Entry, deadline: Instant) -> bool {
    let mut pauses = Pauses::until(deadline);
    loop {
        match replicas.keep(&node, vec![entry.clone()]).await {
            Ok(()) => return true,
            Err(error) => tracing::debug!(%node, %error, "a node has not stored an entry"),
        }
        if !pauses.pass().await {
            return false;
        }
    }
}
