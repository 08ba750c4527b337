//! Any node takes any request: where each one goes, and who answers it.
//!
//! What a node can be asked is one table, [`wire::message`](crate::wire::message). [`host`] and [`leader`]
//! answer it, each call in one place, wherever it comes from: a person who is on this node, or a peer over the
//! mesh ([`rpc`]). [`Cluster`] sends a person's request to the node it is for: the one that has the
//! session, the one that is named, or the leader. The actor goes with every change to the owner that makes it.

mod catalogue;
mod host;
pub mod images;
mod knowledge;
mod leader;
mod mesh;
mod nodes;
mod rpc;
mod sessions;
pub mod signs;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::election::Leadership;
use crate::gossip::ClusterView;
use crate::types::{Actor, Name, NodeId, NodeState, SessionId};
use crate::wire::message::{Led, NotPassed, Pass, Passed};
use crate::wire::{Call, Envelope};
use crate::{gossip, net, node, placement};

pub use host::{Host, MAX_HOLD};
pub use leader::Leader;
pub use mesh::{Mesh, Peers};
pub use rpc::Rpc;

use rpc::Serves;

/// How long a request that changes something waits for somebody to lead: longer than an election takes.
const LEADER_PATIENCE: Duration = Duration::from_secs(6);
/// How long a request that only reads waits for it, before it is answered from what this node knows.
const READ_PATIENCE: Duration = Duration::from_secs(1);
/// How long a peer may take over what it has in memory.
const QUICK: Duration = Duration::from_secs(2);
/// How long a peer may take over what it must write or ask others for.
const SLOW: Duration = Duration::from_secs(15);
/// After so long without an answer of the leader's, other nodes are asked to pass the request on to theirs.
const HEARD_WITHIN: Duration = Duration::from_millis(1500);
/// How many nodes are asked for that at most, in one round.
const MAX_PASSES: usize = 8;
/// Between two tries of a leader that does not answer, where no news of another one comes before.
const AGAIN: Duration = Duration::from_millis(50);

/// Why a request was not done. Nothing changed, except where the variant says so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Placement(#[from] placement::Error),
    #[error(transparent)]
    Sessions(#[from] crate::sessions::Error),
    #[error(transparent)]
    Node(#[from] node::Error),
    #[error(transparent)]
    Catalogue(#[from] crate::catalogue::Error),
    #[error("no session {0}")]
    NoSession(String),
    #[error("the id of more than one session begins with {prefix}: {first} and {second}")]
    AmbiguousSession { prefix: String, first: String, second: String },
    #[error("no node {0}")]
    NoNode(String),
    #[error("more than one node has this name, or an id that begins so: {0}")]
    AmbiguousNode(String),
    #[error("node {node} cannot be reached: {cause}")]
    Unreachable {
        node: String,
        #[source]
        cause: net::Cause,
    },
    /// No node that answers knows the session, and this one does not answer.
    #[error("node {node} cannot be reached: it may have session {session}, which no other node knows")]
    HostUnknown { node: Name, session: SessionId },
    /// It may have been done.
    #[error("node {node} did not answer, and may have done it or not: {cause}")]
    NoAnswer {
        node: String,
        #[source]
        cause: Silence,
    },
    #[error("node {0} is alive: stop its agent first, or it would be back at once")]
    Alive(String),
    #[error("node {0} is alive and has the session: remove it without --forget")]
    HostAlive(String),
    /// Nodes that were asked before have forgotten it.
    #[error("node {node} is not forgotten everywhere: {cause}")]
    NotForgotten {
        node: String,
        #[source]
        cause: gossip::Error,
    },
    #[error("nobody leads the cluster now, or whoever does cannot be reached")]
    NoLeader,
}

/// Why it is not known what became of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    #[error(transparent)]
    Call(#[from] net::Cause),
    /// It was the leader when it was asked, and is not any more.
    #[error("it leads no more")]
    Deposed,
    /// The leader did not answer the node that passed the request on to it. That node tells the cause as text: the
    /// error itself cannot cross the wire.
    #[error("{0}")]
    Passed(String),
}

/// An answer, and who gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Routed<T> {
    pub answer: T,
    /// The other node that answered; `None`: this one did.
    pub by: Option<Name>,
}

impl<T> Routed<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Routed<U> {
        Routed { answer: change(self.answer), by: self.by }
    }
}

/// Sends each request to the node that it is for. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    mesh: Mesh,
    leader: Leader,
}

impl Cluster {
    pub const fn new(mesh: Mesh, leader: Leader) -> Self {
        Self { mesh, leader }
    }

    /// Who leads, as far as this node knows.
    pub fn leadership(&self) -> Arc<Leadership> {
        self.leader.leadership.borrow().clone()
    }

    /// The leader's id and name, where this node knows of one.
    pub fn leader(&self) -> Option<(NodeId, Name)> {
        let id = self.leadership().leader?;
        let name =
            if id == *self.mesh.me() { Some(self.host().settings.state().name.clone()) } else { self.known_name(&id) };
        // A node that has not told its name yet is called by its id.
        Some((id, name.unwrap_or_else(|| id.into())))
    }

    /// Every other node, as it was last heard of.
    pub fn view(&self) -> Arc<ClusterView> {
        self.leader.view.borrow().clone()
    }

    /// This node's own part: what it does when it is asked.
    pub const fn host(&self) -> &Host {
        self.mesh.host()
    }

    /// The node's name, or its id where it never said one.
    fn name_of(&self, node: &NodeId) -> String {
        if node == self.mesh.me() {
            return self.host().settings.state().name.to_string();
        }
        self.known_name(node).map_or_else(|| node.to_string(), |name| name.to_string())
    }

    /// What gossip says of it; until that has come, what it said when it was connected.
    fn known_name(&self, node: &NodeId) -> Option<Name> {
        let gossiped = self.leader.view.borrow().members.get(node).and_then(|member| member.profile.clone());
        let named = gossiped.map(|profile| profile.name.clone());
        named.or_else(|| Some(self.mesh.net()?.hello_of(node)?.name.clone()))
    }

    /// Asks one node, this one included, for what changes nothing.
    async fn on<C: Call>(&self, node: &NodeId, call: C, within: Duration) -> Result<Routed<C::Answer>, Error>
    where
        Host: Serves<C>,
    {
        const { assert!(!C::CHANGES, "a change has an actor") };
        let answer = self.mesh.ask(node, call, None, within).await.map_err(|error| self.unanswered(error))?;
        Ok(self.routed(node, answer))
    }

    /// Has one node, this one included, change something.
    async fn change_on<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: &Actor,
        within: Duration,
    ) -> Result<Routed<C::Answer>, Error>
    where
        Host: Serves<C>,
    {
        let answer = self.mesh.ask(node, call, Some(by), within).await.map_err(|error| self.unanswered(error))?;
        Ok(self.routed(node, answer))
    }

    /// Asks the leader, this node included, for what changes nothing. Waits for a leader where there is none.
    async fn on_leader<C, T>(&self, call: C, patience: Duration, within: Duration) -> Result<Routed<T>, Error>
    where
        C: Call<Answer = Led<T>> + Clone,
        Leader: Serves<C>,
        T: DeserializeOwned,
    {
        const { assert!(!C::CHANGES, "a change has an actor") };
        self.ask_leader(call, None, true, patience, within).await
    }

    /// Has the leader, this node included, change something. Waits for a leader where there is none. `again`: as of
    /// [`Self::ask_leader`].
    async fn change_on_leader<C, T>(&self, call: C, by: &Actor, again: bool) -> Result<Routed<T>, Error>
    where
        C: Call<Answer = Led<T>> + Clone,
        Leader: Serves<C>,
        T: DeserializeOwned,
    {
        self.ask_leader(call, Some(by), again, LEADER_PATIENCE, SLOW).await
    }

    /// A leader that did not get the request is asked again, or the next one is. `again` says whether that is right,
    /// too, where the leader may have got it and did not answer.
    async fn ask_leader<C, T>(
        &self,
        call: C,
        by: Option<&Actor>,
        again: bool,
        patience: Duration,
        within: Duration,
    ) -> Result<Routed<T>, Error>
    where
        C: Call<Answer = Led<T>> + Clone,
        Leader: Serves<C>,
        T: DeserializeOwned,
    {
        let (begun, mut leadership) = (Instant::now(), self.leader.leadership.clone());
        let deadline = begun + patience;
        let mut named = None;
        loop {
            let known = leadership.borrow_and_update().leader;
            let last = match named.take().or(known) {
                Some(leader) => match self.ask_while_leader(&leader, call.clone(), by, within).await {
                    Ok(Ok(answer)) => return Ok(self.routed(&leader, answer)),
                    // Whoever was asked may know better, once.
                    Ok(Err(other)) => {
                        named = other.leader.filter(|other| *other != leader);
                        Error::NoLeader
                    }
                    Err(error @ Error::NoAnswer { .. }) if !again => return Err(error),
                    Err(error) => error,
                },
                None => Error::NoLeader,
            };
            // An election is over by then: others may hear a leader whom this node does not.
            if named.is_none() && begun.elapsed() >= HEARD_WITHIN {
                match self.ask_through_others(&call, by, within).await {
                    Some(Err(error @ Error::NoAnswer { .. })) if !again => return Err(error),
                    Some(Ok(answered)) => return Ok(answered),
                    Some(Err(_)) | None => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(match last {
                    Error::Unreachable { .. } => Error::NoLeader,
                    error => error,
                });
            }
            if named.is_none() {
                let news = async { leadership.changed().await.is_ok() };
                let _ = tokio::time::timeout_at(deadline.min(Instant::now() + AGAIN), news).await;
            }
        }
    }

    /// Has the nodes that can be reached pass a request on to the leader that they follow, one after the other.
    /// `None` where none of them could.
    async fn ask_through_others<C, T>(
        &self,
        call: &C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Option<Result<Routed<T>, Error>>
    where
        C: Call<Answer = Led<T>> + Clone,
        T: DeserializeOwned,
    {
        let request = Envelope::encode(by, call).ok()?;
        let view = self.view();
        let alive = view.members.iter().filter(|(_, member)| member.state == NodeState::Alive);
        let mut peers: Vec<&NodeId> = alive.map(|(peer, _)| peer).collect();
        // Dialling one that cannot be reached takes longer than asking one that is connected.
        peers.sort_by_key(|peer| self.mesh.net().is_none_or(|net| net.hello_of(peer).is_none()));
        for peer in peers.into_iter().take(MAX_PASSES) {
            let (leader, answer) = match self.mesh.call(peer, Pass(request.clone()), None, within).await {
                Ok(Ok(Passed { leader, answer })) => (leader, answer),
                Ok(Err(NotPassed::Undelivered)) | Err(net::Error::Unreachable { .. }) => continue,
                Ok(Err(NotPassed::NoAnswer(reason))) => {
                    return Some(Err(Error::NoAnswer { node: self.name_of(peer), cause: Silence::Passed(reason) }));
                }
                Err(error @ net::Error::NoAnswer { .. }) => return Some(Err(self.unanswered(error))),
            };
            if let Ok(Ok(answer)) = C::FORMAT.decode::<C::Answer>(&answer) {
                return Some(Ok(self.routed(&leader, answer)));
            }
        }
        None
    }

    /// Asks a node for as long as it is the leader: one that died does not even say that it did.
    async fn ask_while_leader<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, Error>
    where
        Leader: Serves<C>,
    {
        let mut leadership = self.leader.leadership.clone();
        let led = leadership.borrow_and_update().leader.as_ref() == Some(node);
        let deposed = async {
            // Whom another node named may lead though this one has not heard of it.
            if !led || leadership.wait_for(|known| known.leader.as_ref() != Some(node)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            answer = self.ask_as_leader(node, call, by, within) => answer.map_err(|error| self.unanswered(error)),
            () = deposed => Err(Error::NoAnswer { node: self.name_of(node), cause: Silence::Deposed }),
        }
    }

    async fn ask_as_leader<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, net::Error>
    where
        Leader: Serves<C>,
    {
        if node == self.mesh.me() {
            Ok(self.leader.serve(call, by.unwrap_or(&self.mesh.myself())).await)
        } else {
            self.mesh.call(node, call, by, within).await
        }
    }

    fn routed<T>(&self, node: &NodeId, answer: T) -> Routed<T> {
        let by = if node == self.mesh.me() { None } else { self.known_name(node) };
        Routed { answer, by }
    }

    fn unanswered(&self, error: net::Error) -> Error {
        match error {
            net::Error::Unreachable { node, cause } => Error::Unreachable { node: self.name_of(&node), cause },
            net::Error::NoAnswer { node, cause } => {
                Error::NoAnswer { node: self.name_of(&node), cause: Silence::Call(cause) }
            }
        }
    }
}

/// What [`Cluster`] and its parts read of who leads and who is there.
pub(crate) type LeadershipWatch = watch::Receiver<Arc<Leadership>>;
pub(crate) type ViewWatch = watch::Receiver<Arc<ClusterView>>;
