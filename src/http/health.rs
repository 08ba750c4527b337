//! Liveness and readiness of this node.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::Refusal;
use super::extract::{NoParameters, Query};
use super::{App, Shared};
use crate::types::{ErrorBody, ErrorCode};
use crate::{sessions, store};

/// The answer of a healthy node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Json<Health> = Json(Health { status: "ok" });

/// Liveness: the process answers.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, description = "the process is alive", body = Health)))]
pub(super) async fn livez(_: Query<NoParameters>) -> Json<Health> {
    OK
}

/// Readiness: the node has loaded its journal and accepts requests.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "the node accepts requests", body = Health),
    (status = 503, description = "`node_unreachable`: the node is starting or stopping; `runtime_unavailable`: its data directory is full", body = ErrorBody),
))]
pub(super) async fn readyz(State(app): Shared, _: Query<NoParameters>) -> Result<Json<Health>, Refusal> {
    ready(&app)
}

/// An alias of `/readyz`.
#[utoipa::path(get, path = "/healthz", tag = "health", responses(
    (status = 200, description = "the node accepts requests", body = Health),
    (status = 503, description = "`node_unreachable`: the node is starting or stopping; `runtime_unavailable`: its data directory is full", body = ErrorBody),
))]
pub(super) async fn healthz(State(app): Shared, _: Query<NoParameters>) -> Result<Json<Health>, Refusal> {
    ready(&app)
}

fn ready(app: &App) -> Result<Json<Health>, Refusal> {
    if let Some(directory) = &app.api.cluster.host().sessions.snapshot().data_dir_full {
        let error = sessions::Error::Journal(store::Error::Full(directory.clone()).into());
        return Err(error.into());
    }
    if *app.api.ready.borrow() && !*app.stopping.borrow() {
        return Ok(OK);
    }
    Err(Refusal::new(ErrorCode::NodeUnreachable, "this node is starting or stopping"))
}
