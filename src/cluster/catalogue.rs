//! The catalogue: every node reads its own copy, and the leader writes it.

use tokio::time::Instant;

use super::{Cluster, Error, QUICK, Routed};
use crate::catalogue::{Edit, Edited, Snapshot};
use crate::retry::Pauses;
use crate::types::Actor;
use crate::wire::message::{self, Compare};

impl Cluster {
    pub fn catalogue(&self) -> std::sync::Arc<Snapshot> {
        self.host().catalogue.snapshot()
    }

    /// Makes a change. When this returns, a majority has the change on disk, and this node shows it.
    pub async fn edit(&self, edit: Edit, by: &Actor) -> Result<Routed<Edited>, Error> {
        let Routed { answer, by } = self.change_on_leader(message::Edit(edit), by, false).await?;
        let edited = answer?;
        if by.is_some() {
            self.catch_up().await;
        }
        Ok(Routed { answer: edited, by })
    }

    /// Copies newer entries from the leader, so that a caller reads its own change on this node. A majority has the
    /// change whether or not this succeeds.
    async fn catch_up(&self) {
        let mut pauses = Pauses::until(Instant::now() + QUICK);
        let difference = loop {
            let versions = self.host().catalogue.snapshot().contents.versions();
            if let Some(leader) = self.leadership().leader
                && let Ok(difference) = self.mesh.call(&leader, Compare(versions), None, QUICK).await
            {
                break difference;
            }
            if !pauses.pass().await {
                return;
            }
        };
        if let Err(error) = self.host().catalogue.keep(difference.newer).await {
            tracing::warn!(%error, "a change of the catalogue is not stored on this node yet");
        }
    }
}
