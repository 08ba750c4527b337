//! Nodes: the leader lists them, and each node changes itself.

use super::knowledge::find_node;
use super::rpc::Serves;
use super::{Cluster, Error, Host, QUICK, READ_PATIENCE, Routed, SLOW};
use crate::events::Happening;
use crate::gossip;
use crate::types::{Actor, DrainRequest, Name, Node, NodeId, NodeState, Refreshed, Session, SettingsPatch, Volume};
use crate::wire::Call;
use crate::wire::message::{
    Describe, Drain, Forget, ForgetSession, Nodes, Patch, Refresh, RemoveVolume, Undrain, Volumes,
};

impl Cluster {
    /// Every node of the cluster, as the leader sees them. Without a leader, as this node sees them.
    pub async fn nodes(&self) -> Routed<Vec<Node>> {
        let listed = self.on_leader(Nodes, READ_PATIENCE, QUICK).await;
        listed.unwrap_or_else(|_| Routed { answer: self.leader.knowledge().nodes(), by: None })
    }

    /// The node with this name, id or prefix of an id, by its own answer. If it does not answer, as it was last seen.
    pub async fn node(&self, wanted: &Name) -> Result<Routed<Node>, Error> {
        let known = self.known(wanted).await?;
        match self.on_once(&known.id, Describe, None, QUICK).await {
            Ok(described) => Ok(described.map(|node| self.seen(node))),
            Err(_) => Ok(Routed { answer: known, by: None }),
        }
    }

    pub async fn patch(&self, wanted: &Name, patch: SettingsPatch, by: &Actor) -> Result<Routed<Node>, Error> {
        let id = self.resolve(wanted).await?;
        let changed = self.change_on(&id, Patch(patch), by, SLOW).await?;
        self.changed(changed)
    }

    pub async fn drain(&self, wanted: &Name, request: DrainRequest, by: &Actor) -> Result<Routed<Node>, Error> {
        let id = self.resolve(wanted).await?;
        let changed = self.change_on(&id, Drain(request), by, SLOW).await?;
        self.changed(changed)
    }

    pub async fn undrain(&self, wanted: &Name, by: &Actor) -> Result<Routed<Node>, Error> {
        let id = self.resolve(wanted).await?;
        let changed = self.change_on(&id, Undrain, by, SLOW).await?;
        self.changed(changed)
    }

    /// Has a node read its configuration again.
    pub async fn refresh(&self, wanted: &Name, by: &Actor) -> Result<Routed<Refreshed>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.change_on(&id, Refresh, by, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// Makes every node forget a node that will not return, with the records of its sessions. If the node answers
    /// again, it is back.
    ///
    /// # Errors
    /// The node is alive. Or not every node could be asked: the others have forgotten it, and a retry is safe.
    pub async fn forget(&self, wanted: &Name, by: &Actor) -> Result<(), Error> {
        let node = self.resolve(wanted).await?;
        let name = self.name_of(&node);
        let forgotten = self.forget_everywhere(&node, Forget(node), by).await;
        forgotten.map_err(|error| error.about(name.clone(), Error::Alive))?;
        let name = name.parse().unwrap_or_else(|_| node.into());
        self.host().events.record(Happening::node_forgotten(&node, &name), Some(by));
        Ok(())
    }

    /// Makes every node forget one session, whose host will not return.
    ///
    /// # Errors
    /// As for [`Self::forget`].
    pub async fn forget_session(&self, session: &Session, by: &Actor) -> Result<(), Error> {
        let forget = ForgetSession { node: session.node_id, session: session.id };
        let name = session.node.to_string();
        let forgotten = self.forget_everywhere(&session.node_id, forget, by).await;
        forgotten.map_err(|error| error.about(name.clone(), Error::HostAlive))?;
        self.host().events.record(Happening::session_forgotten(&session.id, &name), Some(by));
        Ok(())
    }

    /// Asks every node to forget `node`, or one of its sessions.
    async fn forget_everywhere<C>(&self, node: &NodeId, forget: C, by: &Actor) -> Result<(), NotForgotten>
    where
        C: Call<Answer = Result<(), gossip::Error>> + Clone + Sync,
        Host: Serves<C>,
    {
        // A node that answers is alive, whatever gossip says.
        if self.on_once::<Describe>(node, Describe, None, QUICK).await.is_ok() {
            return Err(NotForgotten::Alive);
        }
        let (view, leader) = (self.view(), self.leadership().leader);
        let me = self.mesh.me();
        // A retry looks the node up at the leader or here. That node forgets last, so that a retry finds the node as
        // long as any other node has refused.
        let last = leader.filter(|leader| leader != node).unwrap_or(*me);
        let away = |peer: &NodeId| view.members.get(peer).is_some_and(|member| member.state != NodeState::Alive);
        let left = |peer: &NodeId| view.members.get(peer).is_some_and(|member| member.state == NodeState::Left);
        let others = view.members.keys().chain([me]).filter(|peer| *peer != node && **peer != last && !left(peer));
        let told = others.map(async |peer| match self.change_on(peer, forget.clone(), by, QUICK).await {
            // A node that gossip does not see is asked all the same, but need not answer.
            Err(_) if away(peer) => Ok(()),
            told => NotForgotten::unless(told),
        });
        futures_util::future::join_all(told).await.into_iter().collect::<Result<(), NotForgotten>>()?;
        NotForgotten::unless(self.change_on(&last, forget, by, QUICK).await)
    }

    /// The named volumes on a node.
    pub async fn volumes(&self, wanted: &Name) -> Result<Routed<Vec<Volume>>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.on(&id, Volumes, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    pub async fn remove_volume(&self, wanted: &Name, name: String, by: &Actor) -> Result<Routed<()>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.change_on(&id, RemoveVolume(name), by, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// The id of the node that a path or a filter names.
    pub(super) async fn resolve(&self, wanted: &Name) -> Result<NodeId, Error> {
        Ok(self.known(wanted).await?.id)
    }

    /// Looks the node up here, and asks the leader only if this node does not know it.
    async fn known(&self, wanted: &Name) -> Result<Node, Error> {
        let find = |mut nodes: Vec<Node>| {
            find_node(&nodes, self.mesh.me(), wanted.as_str()).map(|found| nodes.swap_remove(found))
        };
        match find(self.leader.knowledge().nodes()) {
            Err(Error::NoNode(_)) => find(self.nodes().await.answer),
            found => found,
        }
    }

    fn changed(&self, changed: Routed<Result<Node, crate::node::Error>>) -> Result<Routed<Node>, Error> {
        let Routed { answer, by } = changed;
        Ok(Routed { answer: self.seen(answer?), by })
    }

    /// Adds whether the node leads, which its own answer does not say.
    fn seen(&self, node: Node) -> Node {
        let is_leader = self.leadership().leader.as_ref() == Some(&node.id);
        Node { is_leader, ..node }
    }
}

/// Why not every node has forgotten a node or a session.
enum NotForgotten {
    Alive,
    Unanswered(Error),
    Failed(gossip::Error),
}

impl NotForgotten {
    fn unless(told: Result<Routed<Result<(), gossip::Error>>, Error>) -> Result<(), Self> {
        match told.map_err(Self::Unanswered)?.answer {
            Ok(()) | Err(gossip::Error::NotFound(_)) => Ok(()),
            Err(gossip::Error::Alive(_)) => Err(Self::Alive),
            Err(error) => Err(Self::Failed(error)),
        }
    }

    fn about(self, node: String, alive: impl FnOnce(String) -> Error) -> Error {
        match self {
            Self::Alive => alive(node),
            Self::Unanswered(error) => error,
            Self::Failed(error) => Error::NotForgotten { node, cause: error },
        }
    }
}
