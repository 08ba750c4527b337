//! Checkups: each node examines itself.

use std::time::Duration;

use async_trait::async_trait;

use super::rpc::Serves;
use super::{Cluster, Error, Host, Routed};
use crate::doctor::{Told, task};
use crate::types::{Actor, Checkup, Name, NoCheckup};
use crate::wire::message::Doctor;

/// How long a node may take for its checkup and the way back: the node itself gives up before.
const CHECKUP: Duration = task::LIMIT.saturating_add(Duration::from_secs(5));

impl Cluster {
    /// The checks of a node, made by its agent.
    ///
    /// # Errors
    /// The node cannot be reached, or its checks did not end in time.
    pub async fn doctor(&self, wanted: &Name) -> Result<Routed<Checkup>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.on(&id, Doctor, CHECKUP).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// What this node tells a checkup of itself.
    pub async fn told(&self) -> Told {
        let (host, sessions) = (self.host(), self.host().sessions.snapshot());
        let here = sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        let endpoints = here.flat_map(|(_, session)| &session.endpoints);
        Told {
            ports: endpoints.map(|endpoint| endpoint.host_port).collect(),
            here: host.node(),
            nodes: self.nodes().await.answer,
        }
    }
}

#[async_trait]
impl Serves<Doctor> for Host {
    async fn serve(&self, Doctor: Doctor, _: &Actor) -> Result<Checkup, NoCheckup> {
        self.doctor.checkup().await
    }
}
