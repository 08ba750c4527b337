//! GPUs: list them, keep sessions off them, and forget lost ones.

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::error::Refusal;
use super::extract::{NoParameters, Path, Query};
use super::routed::Served;
use crate::cluster::GpuFilter;
use crate::types::{Actor, ErrorBody, Gpu, GpuState, List, Name};

/// Characters of a UUID at most. Those of NVIDIA have 40, of MIG instances under old drivers about 55; with CDI, the
/// name of the device in its file stands for it.
const MAX_UUID: usize = 128;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct GpuPath {
    /// The GPU's UUID or a unique prefix of it.
    uuid: GpuPrefix,
}

/// A GPU's UUID or a prefix of one.
#[derive(Debug, Clone, ToSchema)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$", max_length = 128)]
pub(super) struct GpuPrefix(String);

impl<'de> Deserialize<'de> for GpuPrefix {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-');
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= MAX_UUID && text.chars().all(fine) {
            return Ok(Self(text));
        }
        let expected =
            format!("not the UUID of a GPU; expected 1 to {MAX_UUID} letters, digits, `.`, `_`, `:`, `/` and `-`");
        Err(serde::de::Error::custom(expected))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only GPUs of this node: its name, its id, a unique prefix of its id, or `self`.
    node: Option<Name>,
    /// Only GPUs in this state.
    state: Option<GpuState>,
}

/// Lists the GPUs of the cluster.
#[utoipa::path(get, path = "/v1/gpus", tag = "gpus", operation_id = "list_gpus", params(ListQuery), responses(
    (status = 200, description = "the GPUs", body = List<Gpu>),
))]
pub(super) async fn list(State(app): Shared, Query(query): Query<ListQuery>) -> Served<Answer<List<Gpu>>> {
    let filter = GpuFilter { node: query.node, state: query.state };
    let listed = app.api.cluster.gpus(&filter).await;
    Served(listed.map(|items| Answer(List { items, next_cursor: None })))
}

/// Shows a GPU.
#[utoipa::path(get, path = "/v1/gpus/{uuid}", tag = "gpus", operation_id = "show_gpu", params(GpuPath), responses(
    (status = 200, description = "the GPU", body = Gpu),
    (status = 409, description = "`conflict`: more than one UUID has this prefix", body = ErrorBody),
))]
pub(super) async fn show(
    State(app): Shared,
    Path(path): Path<GpuPath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Gpu>>, Refusal> {
    Ok(Served(app.api.cluster.gpu(&path.uuid.0).await?.map(Answer)))
}

/// Makes its node forget a GPU that is lost, so that the GPU's slots are not kept for it any more.
///
/// If the GPU is found again, it is back.
#[utoipa::path(delete, path = "/v1/gpus/{uuid}", tag = "gpus", operation_id = "forget_gpu", params(GpuPath), responses(
    (status = 204, description = "the GPU is forgotten"),
    (status = 409, description = "`conflict`: the GPU is not lost, or more than one UUID has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the node cannot write its store; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn forget(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<GpuPath>,
    _: Query<NoParameters>,
) -> Result<Served<StatusCode>, Refusal> {
    let forgotten = app.api.cluster.forget_gpu(&path.uuid.0, &by).await?;
    Ok(Served(forgotten.map(|()| StatusCode::NO_CONTENT)))
}

/// Cordons a GPU: no new session gets it. Sessions that have it go on.
///
/// The cordon is durable. A cordoned GPU stays cordoned.
#[utoipa::path(post, path = "/v1/gpus/{uuid}/cordon", tag = "gpus", operation_id = "cordon_gpu", params(GpuPath), responses(
    (status = 200, description = "the GPU after the change", body = Gpu),
    (status = 409, description = "`conflict`: more than one UUID has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the node cannot write its store; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn cordon(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<GpuPath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Gpu>>, Refusal> {
    Ok(Served(app.api.cluster.cordon_gpu(&path.uuid.0, true, &by).await?.map(Answer)))
}

/// Uncordons a GPU: new sessions may get it again. A GPU that was failing gets another chance.
#[utoipa::path(delete, path = "/v1/gpus/{uuid}/cordon", tag = "gpus", operation_id = "uncordon_gpu", params(GpuPath), responses(
    (status = 200, description = "the GPU after the change", body = Gpu),
    (status = 409, description = "`conflict`: more than one UUID has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the node cannot write its store; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn uncordon(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<GpuPath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Gpu>>, Refusal> {
    Ok(Served(app.api.cluster.cordon_gpu(&path.uuid.0, false, &by).await?.map(Answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_the_characters_that_drivers_and_cdi_use() {
        let prefix = |text: &str| serde_json::from_value::<GpuPrefix>(text.into()).is_ok();
        for fine in ["GPU-b5a0a1f6-0aeb-4b7e-9ba1-9d1e4c5f6a7b", "MIG-GPU-b5a0/1/0", "0000:1a:00.0", "card_1", "G"] {
            assert!(prefix(fine), "{fine}");
        }
        for wrong in ["", "..", "-1", "GPU 1", "GPU-\n", "GPU-\u{e9}", &"G".repeat(MAX_UUID + 1)] {
            assert!(!prefix(wrong), "{wrong}");
        }
    }
}
