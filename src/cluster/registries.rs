//! What hosts tell one another of registries, by way of their leader.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;

use super::Cluster;
use crate::images::Neighbours;
use crate::wire::message::{AskLimit, TellLimit};

/// How long the leader may take for an answer from memory. The pull that waits for it goes on without one.
const WITHIN: Duration = Duration::from_secs(1);

/// The neighbours of a host. The owner of the images starts before the cluster, so it has none until
/// [`Registries::join`].
#[derive(Clone, Default)]
pub struct Registries(Arc<OnceLock<Cluster>>);

impl Registries {
    pub fn join(&self, cluster: &Cluster) {
        // It is set this once.
        let _ = self.0.set(cluster.clone());
    }
}

#[async_trait]
impl Neighbours for Registries {
    async fn tell(&self, registry: &str, pause: Duration) {
        let Some(cluster) = self.0.get() else { return };
        let Some(leader) = cluster.leadership().leader else { return };
        let pause_millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let call = TellLimit { registry: registry.to_owned(), pause_millis };
        if let Err(error) = cluster.ask_as_leader(&leader, call, None, WITHIN).await {
            tracing::debug!(%leader, registry, %error, "cannot tell the leader that the registry limits pulls");
        }
    }

    async fn ask(&self, registry: &str) -> Option<Duration> {
        let cluster = self.0.get()?;
        let leader = cluster.leadership().leader?;
        let answer = cluster.ask_as_leader(&leader, AskLimit(registry.to_owned()), None, WITHIN).await;
        answer.ok()?.ok()?.map(Duration::from_millis)
    }
}
