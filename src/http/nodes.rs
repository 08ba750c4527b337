//! Nodes: their resources, settings and drains.

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Shared;
use super::error::Refusal;
use super::extract::{Json, NoParameters, Path, Query};
use super::routed::Served;
use crate::types::{Actor, DrainRequest, ErrorBody, List, Name, Node, Refreshed, SettingsPatch};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct NodePath {
    /// The node's name, its id, a unique prefix of its id, or `self`.
    pub(super) node: Name,
}

/// Lists the nodes of the cluster.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", operation_id = "list_nodes", responses(
    (status = 200, description = "the nodes", body = List<Node>),
))]
pub(super) async fn list(State(app): Shared, _: Query<NoParameters>) -> Served<Answer<List<Node>>> {
    Served(app.api.cluster.nodes().await.map(|items| Answer(List { items, next_cursor: None })))
}

/// Shows a node.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "show_node", params(NodePath), responses(
    (status = 200, description = "the node", body = Node),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
))]
pub(super) async fn show(
    State(app): Shared,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Node>>, Refusal> {
    Ok(Served(app.api.cluster.node(&path.node).await?.map(Answer)))
}

/// Changes settings of a node. The change is durable and in force when the answer arrives.
#[utoipa::path(patch, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "set_node", params(NodePath),
    request_body = SettingsPatch, responses(
    (status = 200, description = "the node after the change", body = Node),
    (status = 409, description = "`declared_setting`: the node's configuration file declares the setting; `conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the node cannot write its store; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn set(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
    Json(patch): Json<SettingsPatch>,
) -> Result<Served<Answer<Node>>, Refusal> {
    Ok(Served(app.api.cluster.patch(&path.node, patch, &by).await?.map(Answer)))
}

/// Removes a node that is gone permanently, together with its sessions, from all live nodes.
///
/// The node returns if its agent connects again.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "remove_node", params(NodePath), responses(
    (status = 204, description = "the node is removed"),
    (status = 409, description = "`conflict`: the node is alive, or more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "not every live node confirmed the removal, retry: `runtime_unavailable`, `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn remove(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
) -> Result<StatusCode, Refusal> {
    app.api.cluster.forget(&path.node, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a drain: the node admits no new sessions until the drain ends. Its existing sessions go on, unless
/// `stop_sessions` is set.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes", operation_id = "drain_node", params(NodePath),
    request_body = Option<DrainRequest>, responses(
    (status = 200, description = "the node after the change", body = Node),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the node cannot write its store; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn drain(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
    request: Option<Json<DrainRequest>>,
) -> Result<Served<Answer<Node>>, Refusal> {
    let request = request.map(|Json(request)| request).unwrap_or_default();
    Ok(Served(app.api.cluster.drain(&path.node, request, &by).await?.map(Answer)))
}

/// Ends a node's drain. Without a drain, nothing changes.
#[utoipa::path(delete, path = "/v1/nodes/{node}/drain", tag = "nodes", operation_id = "undrain_node", params(NodePath), responses(
    (status = 200, description = "the node after the change", body = Node),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the node cannot write its store; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn undrain(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Node>>, Refusal> {
    Ok(Served(app.api.cluster.undrain(&path.node, &by).await?.map(Answer)))
}

/// Reads a node's configuration and the files that it names again, as SIGHUP does.
///
/// The answer names every key: what was applied, what needs a restart of the agent, and what is unchanged.
#[utoipa::path(post, path = "/v1/nodes/{node}/refresh", tag = "nodes", operation_id = "refresh_node", params(NodePath), responses(
    (status = 200, description = "what was done", body = Refreshed),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 422, description = "`invalid`: the configuration or one of its files is not valid, and nothing changed", body = ErrorBody),
    (status = 503, description = "`node_unreachable`", body = ErrorBody),
))]
pub(super) async fn refresh(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Refreshed>>, Refusal> {
    Ok(Served(app.api.cluster.refresh(&path.node, &by).await?.map(Answer)))
}
