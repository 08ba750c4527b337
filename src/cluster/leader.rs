//! The calls that this node answers as the leader: placements, lists of the whole cluster, edits of the catalogue.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::digests;
use super::host::KNOWN_WITHIN;
use super::knowledge::Knowledge;
use super::rpc::Serves;
use super::{Host, LeadershipWatch, ViewWatch};
use crate::catalogue;
use crate::events::Happening;
use crate::placement::{self, Fleet, Placer};
use crate::sessions;
use crate::types::{Actor, DigestInUse, List, Name, Node, NodeReason, Plan, Remembered, Session};
use crate::wire::message::{
    AskLimit, Digests, DryRun, Edit, Led, Locate, Nodes, NotLeader, Place, Sessions, TellLimit,
};

/// What a leader answers with. Every node has it, and uses it while it leads. Cheap to clone.
#[derive(Clone)]
pub struct Leader {
    pub host: Host,
    pub placer: Placer,
    /// What hosts reported to this node, while it leads.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub leadership: LeadershipWatch,
    pub view: ViewWatch,
}

impl Leader {
    /// Everything that this node knows of nodes and sessions.
    pub(super) fn knowledge(&self) -> Knowledge {
        Knowledge {
            own: self.host.node(),
            sessions: self.host.sessions.snapshot(),
            fleet: self.fleet.borrow().clone(),
            view: self.view.borrow().clone(),
            leadership: self.leadership.borrow().clone(),
        }
    }

    /// Returns once the session's host has reported it, or after [`KNOWN_WITHIN`]. The caller may look for its new
    /// session on any node, and the leader answers.
    async fn has_heard_of(&self, session: &Session) {
        let mut fleet = self.fleet.clone();
        let told = |fleet: &Fleet| fleet.hosts.get(&session.node_id)?.sessions.contains_key(&session.id).then_some(());
        let heard = fleet.wait_for(|fleet| told(fleet).is_some());
        let _ = tokio::time::timeout(KNOWN_WITHIN, heard).await;
    }

    fn reigns(&self) -> Result<(), NotLeader> {
        let leadership = self.leadership.borrow();
        if leadership.reign.is_some() {
            return Ok(());
        }
        Err(NotLeader { leader: leadership.leader.filter(|leader| *leader != self.host.settings.state().id) })
    }
}

#[async_trait]
impl Serves<Place> for Leader {
    async fn serve(
        &self,
        Place { session, drawn, request }: Place,
        by: &Actor,
    ) -> Led<Result<sessions::Admitted, placement::Error>> {
        self.reigns()?;
        let workspace = request.workspace.clone();
        let placed = self.placer.place_here(session, drawn, request, by.clone()).await;
        match &placed {
            Ok(placed) if !placed.replayed => self.has_heard_of(&placed.session).await,
            Ok(_) => {}
            Err(error) => self.host.events.record_some(refused(&workspace, error), None),
        }
        Ok(placed)
    }
}

#[async_trait]
impl Serves<DryRun> for Leader {
    async fn serve(&self, DryRun(request): DryRun, _: &Actor) -> Led<Result<Plan, placement::Error>> {
        self.reigns()?;
        Ok(self.placer.dry_run_here(request).await)
    }
}

#[async_trait]
impl Serves<Nodes> for Leader {
    async fn serve(&self, Nodes: Nodes, _: &Actor) -> Led<Vec<Node>> {
        self.reigns()?;
        Ok(self.knowledge().nodes())
    }
}

#[async_trait]
impl Serves<Sessions> for Leader {
    async fn serve(&self, Sessions(filter): Sessions, _: &Actor) -> Led<List<Session>> {
        self.reigns()?;
        Ok(self.knowledge().list(&filter))
    }
}

#[async_trait]
impl Serves<Locate> for Leader {
    async fn serve(&self, Locate(prefix): Locate, _: &Actor) -> Led<Vec<Remembered>> {
        self.reigns()?;
        Ok(self.knowledge().locate(&prefix))
    }
}

#[async_trait]
impl Serves<TellLimit> for Leader {
    async fn serve(&self, TellLimit { registry, pause_millis }: TellLimit, _: &Actor) -> Led<()> {
        self.reigns()?;
        self.placer.limited(registry, Duration::from_millis(pause_millis)).await;
        Ok(())
    }
}

#[async_trait]
impl Serves<AskLimit> for Leader {
    async fn serve(&self, AskLimit(registry): AskLimit, _: &Actor) -> Led<Option<u64>> {
        self.reigns()?;
        let left = self.placer.ask_limit(registry).await;
        Ok(left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
    }
}

#[async_trait]
impl Serves<Edit> for Leader {
    async fn serve(&self, Edit(edit): Edit, by: &Actor) -> Led<Result<catalogue::Edited, catalogue::Error>> {
        self.reigns()?;
        Ok(self.host.catalogue.edit(edit, by.clone()).await)
    }
}

#[async_trait]
impl Serves<Digests> for Leader {
    async fn serve(&self, Digests(workspace): Digests, _: &Actor) -> Led<Option<Vec<DigestInUse>>> {
        self.reigns()?;
        let catalogue = self.host.catalogue.snapshot();
        Ok(catalogue.workspaces.get(&workspace).map(|workspace| digests::in_use(workspace, &self.fleet.borrow())))
    }
}

/// What the event log is told of a request that no host admits; `None` where the request itself is wrong, or it is not
/// decided yet.
fn refused(workspace: &Name, error: &placement::Error) -> Option<Happening> {
    use placement::Error::{Disabled, ExceedsPhysical, NoCapacity, RuntimeUnavailable};
    let reason = error.refusal()?;
    let nodes: &[NodeReason] = match error {
        ExceedsPhysical(nodes) | NoCapacity(nodes) | Disabled(nodes) | RuntimeUnavailable(nodes) => nodes,
        _ => &[],
    };
    let dimension = nodes.iter().find_map(|node| node.dimension);
    Some(Happening::refused(workspace, reason, dimension, &error.to_string()))
}
