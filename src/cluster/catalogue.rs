//! The catalogue: every node reads its own, whoever leads writes it.

use super::{Cluster, Error, QUICK, Routed};
use crate::catalogue::{Edit, Edited, Snapshot};
use crate::types::Actor;
use crate::wire::message::{self, Compare};

impl Cluster {
    pub fn catalogue(&self) -> std::sync::Arc<Snapshot> {
        self.host().catalogue.snapshot()
    }

    /// Makes a change. Once it is answered, a majority has it on disk, and this node shows it.
    pub async fn edit(&self, edit: Edit, by: &Actor) -> Result<Routed<Edited>, Error> {
        let Routed { answer, by } = self.change_on_leader(message::Edit(edit), by, false).await?;
        let edited = answer?;
        if by.is_some() {
            self.catch_up().await;
        }
        Ok(Routed { answer: edited, by })
    }

    /// Takes over what is newer at the leader, so that whoever changed it here reads it here. A majority has
    /// it whether or not this succeeds.
    async fn catch_up(&self) {
        let Some(leader) = self.leadership().leader else { return };
        let versions = self.host().catalogue.snapshot().contents.versions();
        if let Ok(difference) = self.mesh.call(&leader, Compare(versions), None, QUICK).await
            && let Err(error) = self.host().catalogue.keep(difference.newer).await
        {
            tracing::warn!(%error, "what was changed at the leader is not stored here yet");
        }
    }
}
