//! Sessions on this host: the owner of the journal, the ledger and every
//! session's life.
//!
//! [`state`] is all of it, sans-io: it decides ([`decide`]), says what must be on disk, what to publish, what the
//! runners are to do, and what to answer. One task ([`task`]) holds it by `&mut` and carries that out: persist
//! ([`journal`]), publish, set to work, reply. Slow work, pulls and the engine's calls, runs in one [`runner`] a
//! session, which asks [`lifecycle`] for the next step and reports what it saw; [`runners`] are its tasks.

pub mod decide;
mod feed;
mod journal;
pub mod lifecycle;
mod measure;
mod meter;
mod metrics;
mod probe;
mod record;
pub mod runner;
mod runners;
pub mod state;
pub mod task;
#[cfg(test)]
mod tests;
mod told;

pub use crate::runtime::LogsRequest;
pub use decide::{Exceeded, FAILING_STARTS, GpuUse, Gpus, MAX_ATTEMPTS, Oddities, Oddity, Trouble, Troubles, Unplaced};
pub use feed::{Feed, Standing};
pub use journal::Journal;
pub use measure::Measured;
pub use metrics::Metrics;
pub use record::{Live, Origin, Record, Status, Tombstone};
pub use told::Told;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::election;
use crate::ledger::PortRange;
use crate::runtime::{self, LogStream, Runtime, Target};
use crate::store;
use crate::types::{
    Actor, Ballot, Bytes, Explanation, Name, NodeId, NodeReason, NodeVerdict, Period, Platform, Resources, Session,
    SessionActivity, SessionId, SessionProfile, User, Workspace,
};
use state::Request;
use task::Channels;

/// Requests waiting for the owner. Beyond it callers are told that it is busy, and to come back.
const QUEUE: usize = 1024;

/// `[limits]`, and what of `[runtime]` concerns every runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Sessions of one user that hold a reservation; 0: no limit.
    pub max_sessions_per_user: u32,
    /// Sessions that hold a reservation on this node; 0: no limit.
    pub max_sessions_per_node: u32,
    /// How long a session that is gone stays known, so that a retry of its key finds it.
    pub keep_ended: Period,
    /// How long a stopped or failed session keeps its container; 0: until it is removed or its ttl ends.
    pub stopped_retention: Period,
    /// Nothing is admitted while less than this is free where images live.
    pub min_free_disk: Bytes,
    /// `gpu.max_foreign_memory`: a GPU takes no sessions while processes that are not of sessions use more of its memory.
    pub max_foreign_gpu_memory: Bytes,
    /// Host ports to hand out, both ends included.
    pub port_range: PortRange,
    /// The networks, besides ostler's own, that a workspace may name.
    pub networks: Vec<Name>,
    /// The host that endpoints are shown with.
    pub endpoint_host: String,
}

/// A leader's offer of a session to this host.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Admit {
    pub cluster: Name,
    /// Who decided, and in which term.
    pub ballot: Ballot,
    /// The host that is meant. Another refuses.
    pub destination: NodeId,
    pub session: SessionId,
    pub asked: Asked,
    /// What the other nodes said, kept to explain the placement later.
    pub considered: Vec<NodeVerdict>,
}

/// What is asked for: of an offer, what is the same for every host.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Asked {
    pub user: User,
    /// [Of the request](crate::types::SessionRequest::fingerprint): a retry must have the same.
    pub fingerprint: String,
    /// The workspace as the request wants it.
    pub workspace: Workspace,
    /// How often the session has been offered, this time included. Another time is begun only where a host could
    /// not start it.
    pub attempt: u32,
    /// The hosts that could not start it.
    pub tried: Vec<NodeId>,
    /// The platform of its image, if one of them found that it is not its own.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// What the first of them gave it; `None`: the host draws one where the workspace wants one.
    pub secret: Option<String>,
    /// The actor who asked for it; `None` where an older version did not keep that.
    #[serde(default)]
    pub by: Option<Actor>,
}

/// A session that its host could not start, in the hands of the leader that claimed it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Claimed {
    pub asked: Asked,
    /// Which claim of the session this is: an order that belongs to an earlier one comes too late.
    pub claim: u32,
}

/// A session that the host has taken, now or before.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Admitted {
    pub session: Session,
    /// The key had been used for the same request before: nothing new was made.
    pub replayed: bool,
}

/// Why a request to the owner was not done. Nothing changed, except where the variant says so.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("no session {0} here")]
    NotFound(SessionId),
    /// The session is not in a state for it, or the key was used otherwise.
    #[error("{0}")]
    Conflict(String),
    #[error("this idempotency key was used for another request")]
    IdempotencyMismatch,
    /// The host does not take the session.
    #[error("the host refuses: {:?}", .0.reason)]
    Refused(Box<NodeReason>),
    #[error("user {user} has {limit} sessions, as many as limits.max_sessions_per_user allows")]
    Quota { user: User, limit: u32 },
    /// Whoever offers it leads no more.
    #[error(transparent)]
    Stale(election::Stale),
    /// Too many requests are waiting.
    #[error("too many requests are waiting")]
    Busy,
    /// Its leader places it on another host just now.
    #[error("session {0} is being placed on another node: try again")]
    Moving(SessionId),
    /// Another program on its host listens on one of its ports.
    #[error("port {port} of session {session} is in use by another program on its host; try again once it is free")]
    PortInUse { session: SessionId, port: u16 },
    #[error("the journal cannot be written: {0}")]
    Journal(#[source] store::Cause),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The owner has ended: the daemon is stopping. What became of the request is not known.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Why the journal was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    pub message: String,
    /// Where the journal that could not be read is now.
    pub moved_to: std::path::PathBuf,
}

/// What everybody may read: every session of this host, and what they reserve.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every session that is remembered, ended ones included.
    pub sessions: BTreeMap<SessionId, Arc<SessionProfile>>,
    /// What goes on in each of them.
    pub activities: BTreeMap<SessionId, SessionActivity>,
    /// Those of them whose container is destroyed: kept so that a retry of their key finds them.
    pub gone: std::collections::BTreeSet<SessionId>,
    /// The sessions that hold a reservation.
    pub reserved: std::collections::BTreeSet<SessionId>,
    pub allocated: Resources,
    /// What sessions do on the GPUs.
    pub gpus: Gpus,
    /// The journal could not be read at start and was rebuilt from labels.
    pub journal_rebuilt: Option<Rebuilt>,
    /// The journal cannot be written since this directory, the agent's data directory, is full.
    pub data_dir_full: Option<PathBuf>,
    /// Starts in a row that failed on this host.
    pub failing_starts: u32,
    /// Containers of the engine that the operator should know of.
    pub oddities: Oddities,
    /// What kept sessions from starting lately.
    pub troubles: Troubles,
    /// What changed when.
    pub feed: Feed,
}

impl Snapshot {
    /// The session as everybody sees it.
    pub fn document(&self, session: &SessionId) -> Option<Session> {
        Some(Session::of(self.sessions.get(session)?, self.activities.get(session)))
    }
}

/// Up to where somebody knows what this host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Have {
    /// Which life of the agent counts the versions.
    pub incarnation: u64,
    /// Grows with every change.
    pub version: u64,
}

/// What changed on this host since somebody looked.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Changes {
    /// Where this brings who reads it.
    pub now: Have,
    /// This is all there is, and what is not in it is not here.
    pub whole: bool,
    pub held: Vec<Held>,
    /// Sessions that are not remembered any more.
    pub forgotten: Vec<SessionId>,
}

/// A session as its host tells its leader.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    pub session: SessionProfile,
    /// As of its last change, or of a later report.
    pub activity: SessionActivity,
    /// Whose decision brought it here.
    pub ballot: Ballot,
    /// Its container is destroyed: only the memory of it is left.
    pub gone: bool,
    /// It could not be started there, and waits to be placed elsewhere.
    #[serde(default)]
    pub unplaced: bool,
    /// It holds a reservation there.
    #[serde(default)]
    pub reserved: bool,
}

impl Held {
    /// The session as everybody sees it.
    pub fn document(&self) -> Session {
        Session::of(&self.session, Some(&self.activity))
    }
}

/// Asks the owner of sessions.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request<Channels>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    ready: watch::Receiver<bool>,
    runtime: Arc<dyn Runtime>,
    metrics: Metrics,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What can be asked of one session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Command {
    Stop,
    Start,
    Pause,
    Resume,
    Keepalive {
        by: User,
    },
    Extend {
        ttl: Duration,
    },
    Remove,
    /// It is removed, for there is a better one of the same id on another host.
    Duplicate,
    /// It could not be started here, and no other host admits it, says the leader that made this claim.
    GiveUp {
        claim: u32,
    },
}

impl Handle {
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Offers a session. Where it answers, the session is durable.
    pub async fn admit(&self, admit: Admit) -> Result<Admitted, Error> {
        self.ask(|reply| Request::Admit(Box::new(admit), reply)).await
    }

    /// The session of a key that was used before, for the same request: with its secret, as when it was made.
    pub async fn find(&self, session: &SessionId, fingerprint: String) -> Result<Option<Session>, Error> {
        // What is not published was not acknowledged either, so nobody retries it; admission looks again.
        if !self.snapshot.borrow().sessions.contains_key(session) {
            return Ok(None);
        }
        self.ask(|reply| Request::Find(*session, fingerprint, reply)).await
    }

    /// Asks one session to change. It answers once the wish is durable; the session follows behind.
    pub async fn command(&self, session: SessionId, command: Command, by: Actor) -> Result<Session, Error> {
        self.ask(|reply| Request::Command(session, command, by, reply)).await
    }

    /// Takes charge of a session that could not be started here, to place it elsewhere.
    pub async fn claim(&self, ballot: Ballot, session: SessionId) -> Result<Claimed, Error> {
        self.ask(|reply| Request::Claim(ballot, session, reply)).await
    }

    /// The session's random secret, if its workspace uses one.
    pub async fn secret(&self, session: SessionId) -> Result<Option<String>, Error> {
        self.ask(|reply| Request::Secret(session, reply)).await
    }

    /// Why the session is here.
    pub async fn explain(&self, session: SessionId) -> Result<Explanation, Error> {
        self.ask(|reply| Request::Explain(session, reply)).await
    }

    /// From its answer on nothing is admitted under a lower ballot, and what was admitted before is in the
    /// [snapshot](Self::snapshot).
    ///
    /// # Errors
    /// A higher one came before.
    pub async fn fence(&self, ballot: Ballot) -> Result<(), election::Stale> {
        let stale = election::Stale { highest: ballot };
        let (reply, answer) = oneshot::channel();
        // A queue that is full empties soon: unlike a person, a leader is not told to come back.
        self.requests.send(Request::Fence(ballot, reply)).await.map_err(|_| stale.clone())?;
        answer.await.unwrap_or(Err(stale))
    }

    /// What changed after `have`, as soon as something did or `patience` is over. See [`Self::fence`].
    pub async fn changes(
        &self,
        ballot: Ballot,
        have: Option<Have>,
        patience: Duration,
    ) -> Result<Changes, election::Stale> {
        self.fence(ballot).await?;
        let mut snapshot = self.snapshot.clone();
        let news = snapshot.wait_for(|snapshot| snapshot.feed.is_news_to(have));
        let _ = tokio::time::timeout(patience, news).await;
        Ok(snapshot.borrow().since(have))
    }

    pub async fn logs(&self, session: &SessionId, request: LogsRequest) -> Result<LogStream, Error> {
        let snapshot = self.snapshot();
        let profile = snapshot.sessions.get(session).ok_or(Error::NotFound(*session))?;
        if snapshot.gone.contains(session) {
            return Err(Error::Conflict(format!("session {session} has been removed, and its logs with it")));
        }
        let target = Target { session: *session, container_id: profile.container_id.clone() };
        Ok(self.runtime.logs(&target, request).await?)
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// To wait for a session to change.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Whether the journal was loaded and brought together with the engine once, as far as it answered.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request<Channels>) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Stopping,
        })?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}
