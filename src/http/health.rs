//! Whether this node lives, and whether it is worth sending requests to.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::Refusal;
use super::extract::{NoParameters, Query};
use super::{App, Shared};
use crate::types::{ErrorBody, ErrorCode};

/// The answer of a healthy node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Json<Health> = Json(Health { status: "ok" });

/// The process answers.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, description = "it lives", body = Health)))]
pub(super) async fn livez(_: Query<NoParameters>) -> Json<Health> {
    OK
}

/// The node has loaded its journal and takes requests.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "it takes requests", body = Health),
    (status = 503, description = "`node_unreachable`: it is starting or stopping", body = ErrorBody),
))]
pub(super) async fn readyz(State(app): Shared, _: Query<NoParameters>) -> Result<Json<Health>, Refusal> {
    ready(&app)
}

/// The same as `/readyz`, for those who look here.
#[utoipa::path(get, path = "/healthz", tag = "health", responses(
    (status = 200, description = "it takes requests", body = Health),
    (status = 503, description = "`node_unreachable`: it is starting or stopping", body = ErrorBody),
))]
pub(super) async fn healthz(State(app): Shared, _: Query<NoParameters>) -> Result<Json<Health>, Refusal> {
    ready(&app)
}

fn ready(app: &App) -> Result<Json<Health>, Refusal> {
    if *app.api.ready.borrow() && !*app.stopping.borrow() {
        return Ok(OK);
    }
    Err(Refusal::new(ErrorCode::NodeUnreachable, "this node is starting or stopping"))
}
