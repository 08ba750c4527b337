//! Any node takes any request and sends it to the node that answers it.
//!
//! One table, [`wire::message`](crate::wire::message), lists every call to a node. [`host`] and [`leader`] answer each
//! call in one place, whether it comes from a client of this node or from a peer over the mesh ([`rpc`]). [`Cluster`]
//! sends a client's request to the node that answers it: the session's host, the node that the request names, or the
//! leader. The actor goes with every change to the owner that makes it.

mod catalogue;
mod copies;
mod digests;
mod doctor;
mod events;
mod gpus;
mod history;
mod host;
mod images;
mod knowledge;
mod leader;
mod mesh;
pub mod news;
mod nodes;
mod registries;
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
use crate::retry::Pauses;
use crate::types::{Actor, Name, NodeId, NodeState, SessionId};
use crate::wire::message::{Led, NotPassed, Pass, Passed};
use crate::wire::{Call, Envelope};
use crate::{gossip, gpu, net, node, placement};

pub use copies::Copies;
pub use events::{REPLAY, Told};
pub use gpus::GpuFilter;
pub use host::{Host, MAX_HOLD};
pub use leader::Leader;
pub use mesh::{Mesh, Peers};
pub use registries::Registries;
pub use rpc::Rpc;

use rpc::Serves;

/// How long a request that changes something waits for a leader: longer than an election takes.
const LEADER_PATIENCE: Duration = Duration::from_secs(6);
/// How long a request that only reads waits for a leader. After that this node answers from what it knows.
const READ_PATIENCE: Duration = Duration::from_secs(1);
/// How long a peer may take for an answer from memory.
const QUICK: Duration = Duration::from_secs(2);
/// How long a peer may take for an answer that needs a write or calls to other nodes.
const SLOW: Duration = Duration::from_secs(15);
/// After this time without an answer from the leader, this node asks other nodes to pass the request on to the leader
/// that they follow.
const HEARD_WITHIN: Duration = Duration::from_millis(1500);
/// Nodes that are asked to pass a request on, in one round at most.
const MAX_PASSES: usize = 8;
/// How long a request waits for a connection to a host that gossip does not know to be silent: longer than the nodes of
/// a new cluster take to connect, and shorter than a person waits for a host that has just died.
const HOST_PATIENCE: Duration = Duration::from_secs(2);

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
    /// The ids are sorted.
    #[error(
        "`{wanted}` is {} nodes, with the ids {}; name one by its id or a unique prefix of it",
        ids.len(),
        listed(ids)
    )]
    AmbiguousNode { wanted: String, ids: Vec<NodeId> },
    #[error("no GPU of the cluster has the UUID {0} or one that begins with it; run: ostler gpu ls")]
    NoGpu(String),
    /// `found`: each GPU and its node.
    #[error("`{wanted}` is {} GPUs: {}; name one by its whole UUID", found.len(), listed(found))]
    AmbiguousGpu { wanted: String, found: Vec<String> },
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
    #[error(transparent)]
    Images(#[from] crate::images::Error),
    #[error(transparent)]
    Events(#[from] crate::events::Error),
    #[error(transparent)]
    History(#[from] crate::history::Error),
    #[error(transparent)]
    Doctor(#[from] crate::types::NoCheckup),
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
    #[error("the cluster has no leader now, or its leader cannot be reached")]
    NoLeader,
}

/// Ids that an error lists at most: an id in a long list is found with `ostler node ls` or `ostler gpu ls` rather than
/// here.
const MAX_LISTED: usize = 8;

/// `a, b and c`, or the first ones and how many more there are.
fn listed(ids: &[impl ToString]) -> String {
    let mut words: Vec<String> = ids.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    if let Some(more) = ids.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    let last = words.pop().unwrap_or_default();
    if words.is_empty() { last } else { format!("{} and {last}", words.join(", ")) }
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
    hub: Arc<events::Hub>,
}

impl Cluster {
    pub fn new(mesh: Mesh, leader: Leader) -> Self {
        Self { mesh, leader, hub: Arc::default() }
    }

    /// The leader, as far as this node knows.
    pub fn leadership(&self) -> Arc<Leadership> {
        self.leader.leadership.borrow().clone()
    }

    /// The leader's id and name, if this node knows of one.
    pub fn leader(&self) -> Option<(NodeId, Name)> {
        let id = self.leadership().leader?;
        let name =
            if id == *self.mesh.me() { Some(self.host().settings.state().name.clone()) } else { self.known_name(&id) };
        // The id stands for a name that is not known yet.
        Some((id, name.unwrap_or_else(|| id.into())))
    }

    /// Every other node, by gossip.
    pub fn view(&self) -> Arc<ClusterView> {
        self.leader.view.borrow().clone()
    }

    /// This node as a host.
    pub const fn host(&self) -> &Host {
        self.mesh.host()
    }

    /// The node's name, or its id if its name is not known.
    fn name_of(&self, node: &NodeId) -> String {
        if node == self.mesh.me() {
            return self.host().settings.state().name.to_string();
        }
        self.known_name(node).map_or_else(|| node.to_string(), |name| name.to_string())
    }

    /// The node's name by gossip or, until gossip has it, by the hello of its connection.
    fn known_name(&self, node: &NodeId) -> Option<Name> {
        let gossiped = self.leader.view.borrow().members.get(node).and_then(|member| member.profile.clone());
        let named = gossiped.map(|profile| profile.name.clone());
        named.or_else(|| Some(self.mesh.net()?.hello_of(node)?.name.clone()))
    }

    /// Calls one node, this one included. The call changes nothing. Waits up to [`HOST_PATIENCE`] for a connection.
    async fn on<C: Call + Clone>(&self, node: &NodeId, call: C, within: Duration) -> Result<Routed<C::Answer>, Error>
    where
        Host: Serves<C>,
    {
        const { assert!(!C::CHANGES, "a change has an actor") };
        delivered(|| self.on_once(node, call.clone(), None, within), || self.is_silent(node)).await
    }

    /// Calls one node, this one included. The call changes something. Waits up to [`HOST_PATIENCE`] for a connection.
    async fn change_on<C: Call + Clone>(
        &self,
        node: &NodeId,
        call: C,
        by: &Actor,
        within: Duration,
    ) -> Result<Routed<C::Answer>, Error>
    where
        Host: Serves<C>,
    {
        delivered(|| self.on_once(node, call.clone(), Some(by), within), || self.is_silent(node)).await
    }

    /// Calls one node, this one included, once: for callers that have another answer, or ask again themselves.
    async fn on_once<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<Routed<C::Answer>, Error>
    where
        Host: Serves<C>,
    {
        let answer = self.mesh.ask(node, call, by, within).await.map_err(|error| self.unanswered(error))?;
        Ok(self.routed(node, answer))
    }

    /// Whether gossip has noticed that the node does not answer any more.
    fn is_silent(&self, node: &NodeId) -> bool {
        self.leader.view.borrow().members.get(node).is_some_and(|member| member.state != NodeState::Alive)
    }

    /// Calls the leader, which may be this node. The call changes nothing. Waits up to `patience` for a leader.
    async fn on_leader<C, T>(&self, call: C, patience: Duration, within: Duration) -> Result<Routed<T>, Error>
    where
        C: Call<Answer = Led<T>> + Clone,
        Leader: Serves<C>,
        T: DeserializeOwned,
    {
        const { assert!(!C::CHANGES, "a change has an actor") };
        self.ask_leader(call, None, true, patience, within).await
    }

    /// Calls the leader, which may be this node. The call changes something. Waits up to [`LEADER_PATIENCE`] for a
    /// leader. `again`: see [`Self::ask_leader`].
    async fn change_on_leader<C, T>(&self, call: C, by: &Actor, again: bool) -> Result<Routed<T>, Error>
    where
        C: Call<Answer = Led<T>> + Clone,
        Leader: Serves<C>,
        T: DeserializeOwned,
    {
        self.ask_leader(call, Some(by), again, LEADER_PATIENCE, SLOW).await
    }

    /// Calls the leader, and retries with it or with the next leader if the request was not delivered. `again`: also
    /// retry if the leader may have received the request and did not answer.
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
        let mut pauses = Pauses::until(begun + patience);
        let mut named = None;
        loop {
            let known = leadership.borrow_and_update().leader;
            let last = match named.take().or(known) {
                Some(leader) => match self.ask_while_leader(&leader, call.clone(), by, within).await {
                    Ok(Ok(answer)) => return Ok(self.routed(&leader, answer)),
                    // A node that does not lead may name the leader that it follows: ask that one, once.
                    Ok(Err(other)) => {
                        named = other.leader.filter(|other| *other != leader);
                        Error::NoLeader
                    }
                    Err(error @ Error::NoAnswer { .. }) if !again => return Err(error),
                    Err(error) => error,
                },
                None => Error::NoLeader,
            };
            // By then an election is over: other nodes may reach a leader that this node does not.
            if named.is_none() && begun.elapsed() >= HEARD_WITHIN {
                match self.ask_through_others(&call, by, within).await {
                    Some(Err(error @ Error::NoAnswer { .. })) if !again => return Err(error),
                    Some(Ok(answered)) => return Ok(answered),
                    Some(Err(_)) | None => {}
                }
            }
            if pauses.left().is_zero() {
                return Err(match last {
                    Error::Unreachable { .. } => Error::NoLeader,
                    error => error,
                });
            }
            if named.is_none() {
                // News of a leader end the pause.
                tokio::select! {
                    _ = pauses.pass() => {}
                    Ok(()) = leadership.changed() => {}
                }
            }
        }
    }

    /// Asks reachable nodes, one after the other, to pass a request on to the leader that they follow. `None`: none of
    /// them could.
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
        // Connected nodes come first: dialling a node that is unreachable takes longer.
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

    /// Calls the leader, and gives up once it no longer leads: a dead leader never answers.
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
            // This node may not know yet that a leader named by another node leads.
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

/// Repeats a call that was not delivered for up to [`HOST_PATIENCE`], as long as its node may only be not connected yet.
/// A call that may have been delivered is never repeated.
async fn delivered<T, F>(mut call: impl FnMut() -> F, is_silent: impl Fn() -> bool) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pauses = Pauses::until(Instant::now() + HOST_PATIENCE);
    loop {
        let answered = call().await;
        let is_final = !matches!(answered, Err(Error::Unreachable { .. })) || is_silent();
        if is_final || !pauses.pass().await {
            return answered;
        }
    }
}

/// The leader and the nodes, as [`Cluster`] and its parts read them.
pub(crate) type LeadershipWatch = watch::Receiver<Arc<Leadership>>;
pub(crate) type ViewWatch = watch::Receiver<Arc<ClusterView>>;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn unreachable() -> Result<(), Error> {
        Err(Error::Unreachable { node: "n1".to_owned(), cause: net::Cause::NoAddress })
    }

    fn no_answer() -> Result<(), Error> {
        Err(Error::NoAnswer { node: "n1".to_owned(), cause: Silence::Deposed })
    }

    /// The answer to the caller, if the node answers like this, and how many answers were not asked for.
    async fn answered<const N: usize>(answers: [Result<(), Error>; N], silent: bool) -> (Result<(), Error>, usize) {
        let mut answers = VecDeque::from(answers);
        let answer = delivered(|| std::future::ready(answers.pop_front().unwrap()), || silent).await;
        (answer, answers.len())
    }

    #[tokio::test]
    async fn a_call_to_a_node_that_is_not_connected_yet_is_repeated() {
        assert_eq!(answered([unreachable(), unreachable(), Ok(())], false).await, (Ok(()), 0));
        assert_eq!(answered([unreachable(), no_answer(), Ok(())], false).await, (no_answer(), 1), "it may be done");
        assert_eq!(answered([unreachable(), Ok(())], true).await, (unreachable(), 1), "the node is known to be silent");
    }

    #[tokio::test]
    async fn a_call_is_not_repeated_for_ever() {
        let begun = Instant::now();
        assert_eq!(delivered(|| std::future::ready(unreachable()), || false).await, unreachable());
        assert!(begun.elapsed() >= HOST_PATIENCE, "after {:?}", begun.elapsed());
    }
}
