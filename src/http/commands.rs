//! Commands to one session. The answer comes once the command is durable; the host executes it in the background.

use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::error::Refusal;
use super::extract::{Json, Path, Query};
use super::routed::Served;
use super::sessions::{SessionPath, find, held};
use super::wait::{WaitFor, WaitQuery};
use super::{App, Shared};
use crate::cluster::Routed;
use crate::sessions::Command;
use crate::types::{Actor, ErrorBody, ExtendRequest, KeepaliveRequest, Session};

type Accepted = Result<Served<(StatusCode, Answer<Session>)>, Refusal>;

/// Stops a session. The host releases its reservation and keeps its container.
#[utoipa::path(post, path = "/v1/sessions/{id}/stop", tag = "sessions", operation_id = "stop_session", params(SessionPath, WaitQuery),
    responses(
    (status = 202, description = "the session; the host makes the change in the background", body = Session),
    (status = 409, description = "`conflict`: the session cannot stop in its present state, or more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the agent cannot write its journal; `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn stop(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
) -> Accepted {
    command(&app, &path, Command::Stop, query, &by).await
}

/// Starts a stopped session again on its node and with its GPUs, if the node has room.
#[utoipa::path(post, path = "/v1/sessions/{id}/start", tag = "sessions", operation_id = "start_session", params(SessionPath, WaitQuery),
    responses(
    (status = 202, description = "the session; the host makes the change in the background", body = Session),
    (status = 409, description = "`conflict`: the session cannot start in its present state, or more than one session id has this prefix", body = ErrorBody),
    (status = 422, description = "`exceeds_physical`: the session requests more than the host has now", body = ErrorBody),
    (status = 429, description = "`quota_exceeded`: the user has `limits.max_sessions_per_user` sessions", body = ErrorBody),
    (status = 503, description = "`no_capacity`, `node_disabled`, `runtime_unavailable`, `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn start(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
) -> Accepted {
    command(&app, &path, Command::Start, query, &by).await
}

/// Pauses a running session: freezes its processes. The session keeps its reservation.
#[utoipa::path(post, path = "/v1/sessions/{id}/pause", tag = "sessions", operation_id = "pause_session", params(SessionPath, WaitQuery),
    responses(
    (status = 202, description = "the session; the host makes the change in the background", body = Session),
    (status = 409, description = "`conflict`: the session is not running, or more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the agent cannot write its journal; `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn pause(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
) -> Accepted {
    command(&app, &path, Command::Pause, query, &by).await
}

/// Resumes a paused session.
#[utoipa::path(post, path = "/v1/sessions/{id}/resume", tag = "sessions", operation_id = "resume_session", params(SessionPath, WaitQuery),
    responses(
    (status = 202, description = "the session; the host makes the change in the background", body = Session),
    (status = 409, description = "`conflict`: the session is not paused, or more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the agent cannot write its journal; `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn resume(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
) -> Accepted {
    command(&app, &path, Command::Resume, query, &by).await
}

/// Reports that a session is in use, which restarts its idle timeout.
#[utoipa::path(post, path = "/v1/sessions/{id}/keepalive", tag = "sessions", operation_id = "keepalive_session", params(SessionPath, WaitQuery),
    request_body = KeepaliveRequest, responses(
    (status = 202, description = "the session; the host makes the change in the background", body = Session),
    (status = 409, description = "`conflict`: the session has ended, or more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the agent cannot write its journal; `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn keepalive(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
    Json(request): Json<KeepaliveRequest>,
) -> Accepted {
    command(&app, &path, Command::Keepalive { by: request.by }, query, &by).await
}

/// Extends a session's life to at least `ttl_seconds` from now.
#[utoipa::path(post, path = "/v1/sessions/{id}/extend", tag = "sessions", operation_id = "extend_session", params(SessionPath, WaitQuery),
    request_body = ExtendRequest, responses(
    (status = 202, description = "the session; the host makes the change in the background", body = Session),
    (status = 409, description = "`conflict`: the session has ended, or more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the agent cannot write its journal; `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn extend(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
    Json(request): Json<ExtendRequest>,
) -> Accepted {
    command(&app, &path, Command::Extend { ttl: Duration::from_secs(request.ttl_seconds) }, query, &by).await
}

async fn command(app: &App, path: &SessionPath, command: Command, query: WaitQuery, by: &Actor) -> Accepted {
    let until = query.timeout.end();
    let known = find(app, path).await?.answer.session;
    let Routed { answer: mut session, by } = app.api.cluster.command(&known, command, by).await?;
    if let Some(WaitFor(wait)) = query.wait {
        session = held(app, session, wait, until).await.session;
    }
    Ok(Served(Routed { answer: (StatusCode::ACCEPTED, Answer(session)), by }))
}
