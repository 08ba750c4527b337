//! Doctor: the checks of a node, made by its agent.

use axum::Json as Answer;
use axum::extract::State;

use super::Shared;
use super::error::Refusal;
use super::extract::{NoParameters, Path, Query};
use super::nodes::NodePath;
use super::routed::Served;
use crate::types::{Checkup, ErrorBody};

/// Checks a node, as `ostler doctor` does on its host, and changes nothing.
///
/// The agent of the node makes the checks. A node in order answers within seconds; the limit is 90 s. A node makes one
/// checkup at a time: callers that come meanwhile get the same answer.
#[utoipa::path(get, path = "/v1/nodes/{node}/doctor", tag = "nodes", operation_id = "doctor", params(NodePath), responses(
    (status = 200, description = "the checks; a check that fails is no error of the request", body = Checkup),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`node_unreachable`: the node does not answer, has too many callers, or did not end its checks in time; `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn show(
    State(app): Shared,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Checkup>>, Refusal> {
    Ok(Served(app.api.cluster.doctor(&path.node).await?.map(Answer)))
}
