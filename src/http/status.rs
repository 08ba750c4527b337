//! A summary of this node and its cluster.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{NoParameters, Query};
use super::{App, Shared};
use crate::types::{ClusterMode, Name, Node, NodeId, NodeState, RuntimeStatus};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
struct Leader {
    id: NodeId,
    name: Name,
}

/// The answer of `/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(super) struct Status {
    node: NodeStatus,
    cluster: ClusterStatus,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
struct NodeStatus {
    id: NodeId,
    name: Name,
    version: String,
    state: NodeState,
    runtime: RuntimeStatus,
    /// Whether the agent runs with `--dev`: `[dev]` may replace its resources, and sessions may run without
    /// containers.
    dev: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
struct ClusterStatus {
    name: Name,
    mode: Mode,
    /// The number of known nodes, including this one.
    nodes: usize,
    leader: Option<Leader>,
    term: u64,
}

/// What a cluster does during a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Each side goes on.
    Available,
    /// Only a side with a majority of the expected nodes goes on.
    Quorum,
}

/// The answer of the status listener, which needs no token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct BriefStatus {
    node: BriefNode,
    cluster: BriefCluster,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct BriefNode {
    name: Name,
    version: String,
    state: NodeState,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct BriefCluster {
    leader: Option<Leader>,
}

/// Shows this node, its cluster, and the cluster's leader and term.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses((status = 200, description = "the status", body = Status)))]
pub(super) async fn status(State(app): Shared, _: Query<NoParameters>) -> Json<Status> {
    let node = app.api.cluster.host().node();
    let leadership = app.api.cluster.leadership();
    let cluster = ClusterStatus {
        name: app.api.name.clone(),
        mode: match app.api.mode {
            ClusterMode::Available => Mode::Available,
            ClusterMode::Quorum { .. } => Mode::Quorum,
        },
        nodes: app.api.cluster.view().members.len() + 1,
        leader: leader(&app),
        term: leadership.ballot.as_ref().map_or(0, |ballot| ballot.term),
    };
    let Node { id, name, version, state, runtime, .. } = node;
    Json(Status { node: NodeStatus { id, name, version, state, runtime, dev: app.api.dev }, cluster })
}

/// The part of the status that load balancers and scrapers need.
pub(super) async fn brief(State(app): Shared) -> Json<BriefStatus> {
    let node = app.api.cluster.host().node();
    let cluster = BriefCluster { leader: leader(&app) };
    Json(BriefStatus { node: BriefNode { name: node.name, version: node.version, state: node.state }, cluster })
}

fn leader(app: &App) -> Option<Leader> {
    let (id, name) = app.api.cluster.leader()?;
    Some(Leader { id, name })
}
