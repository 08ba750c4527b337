//! The catalogue: every node reads its own, whoever leads writes it.

use super::{Cluster, Error, LEADER_PATIENCE, QUICK, Routed, SLOW};
use crate::catalogue::{Edit, Edited, Snapshot};
use crate::wire::Document;
use crate::wire::message::{self, Compare};

impl Cluster {
    pub fn catalogue(&self) -> std::sync::Arc<Snapshot> {
        self.host().catalogue.snapshot()
    }

    /// Makes a change. Once it is answered, a majority has it on disk, and this node shows it.
    pub async fn edit(&self, edit: Edit) -> Result<Routed<Edited>, Error> {
        let Routed { answer, by } = self.on_leader(message::Edit(Document(edit)), false, LEADER_PATIENCE, SLOW).await?;
        let Document(edited) = answer.map_err(|Document(error)| error)?;
        if by.is_some() {
            self.catch_up().await;
        }
        Ok(Routed { answer: edited, by })
    }

    /// Takes over what is newer at the leader, so that whoever changed it here reads it here. A majority has
    /// it whether or not this succeeds.
    async fn catch_up(&self) {
        let Some(leader) = self.leadership().leader else { return };
        let versions = self.host().catalogue.snapshot().book.versions();
        if let Ok(Document(difference)) = self.mesh.call(&leader, Compare(Document(versions)), QUICK).await
            && let Err(error) = self.host().catalogue.keep(difference.newer).await
        {
            tracing::warn!(%error, "what was changed at the leader is not stored here yet");
        }
    }
}
