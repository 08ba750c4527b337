//! The checkups of this node: the agent examines its own host for callers of the API and for other nodes.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::VERSION;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::doctor::collect::{Examiner, Gpus, examine};
use crate::doctor::{Agent, Config, task};
use crate::gpu;
use crate::types::Checkup;

/// What a checkup needs.
pub(super) struct Parts {
    /// What is in force.
    pub config: watch::Receiver<Config>,
    pub cluster: Cluster,
    pub gpus: gpu::Handle,
    pub clock: Clock,
}

/// Starts the owner of the checkups.
pub(super) fn spawn(requests: task::Requests, parts: Parts) -> JoinHandle<()> {
    let parts = Arc::new(parts);
    task::spawn(requests, Box::new(move || Box::pin(checkup(Arc::clone(&parts)))))
}

async fn checkup(parts: Arc<Parts>) -> Checkup {
    let config = parts.config.borrow().clone();
    let by = Examiner {
        version: VERSION.to_owned(),
        gpus: Gpus::Agent(parts.gpus.snapshot()),
        agent_pid: Some(std::process::id()),
        now: parts.clock.now().wall,
    };
    let agent = Agent::Up(Box::new(parts.cluster.told().await));
    examine(&config, &agent, &by).await
}
