//! The catalogue of workspaces.

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Shared;
use super::error::Refusal;
use super::extract::{Json, NoParameters, Path, Query};
use super::page::{PageQuery, page};
use super::routed::Served;
use crate::catalogue::{Edit, Edited};
use crate::types::{Actor, DigestInUse, ErrorBody, Invalid, List, Name, Workspace};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct WorkspacePath {
    /// The workspace's name.
    name: Name,
}

/// Lists the workspaces by name.
#[utoipa::path(get, path = "/v1/workspaces", tag = "workspaces", operation_id = "list_workspaces", params(PageQuery), responses(
    (status = 200, description = "the workspaces", body = List<Workspace>),
))]
pub(super) async fn list(State(app): Shared, Query(query): Query<PageQuery>) -> Answer<List<Workspace>> {
    let catalogue = app.api.cluster.catalogue();
    let by_name = catalogue.workspaces.values().map(|workspace| (workspace.name.to_string(), workspace));
    let shown = page(by_name, query.cursor.as_ref(), query.limit);
    let items = shown.items.into_iter().map(|workspace| Workspace::clone(workspace)).collect();
    Answer(List { items, next_cursor: shown.next_cursor })
}

/// Adds a workspace.
#[utoipa::path(post, path = "/v1/workspaces", tag = "workspaces", operation_id = "add_workspace", request_body = Workspace, responses(
    (status = 201, description = "the stored workspace", body = Workspace),
    (status = 409, description = "`conflict`: the name is in use, or the catalogue is full", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the leader cannot write the catalogue; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn add(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    _: Query<NoParameters>,
    Json(workspace): Json<Workspace>,
) -> Result<Served<(StatusCode, Answer<Workspace>)>, Refusal> {
    let edit = Edit::Put { workspace: Box::new(workspace.clone()), create_only: true };
    let edited = app.api.cluster.edit(edit, &by).await?;
    Ok(Served(edited.map(|_| (StatusCode::CREATED, Answer(workspace)))))
}

/// Shows a workspace.
#[utoipa::path(get, path = "/v1/workspaces/{name}", tag = "workspaces", operation_id = "show_workspace", params(WorkspacePath), responses(
    (status = 200, description = "the workspace", body = Workspace),
))]
pub(super) async fn show(
    State(app): Shared,
    Path(WorkspacePath { name }): Path<WorkspacePath>,
    _: Query<NoParameters>,
) -> Result<Answer<Workspace>, Refusal> {
    let catalogue = app.api.cluster.catalogue();
    let workspace = catalogue.workspaces.get(&name);
    workspace
        .map(|workspace| Answer(Workspace::clone(workspace)))
        .ok_or_else(|| Refusal::not_found(format!("no workspace named {name}")))
}

/// Adds or replaces a workspace. Existing sessions of the workspace do not change.
#[utoipa::path(put, path = "/v1/workspaces/{name}", tag = "workspaces", operation_id = "set_workspace", params(WorkspacePath),
    request_body = Workspace, responses(
    (status = 200, description = "the stored workspace, which replaces an earlier one", body = Workspace),
    (status = 201, description = "the stored workspace, which is new", body = Workspace),
    (status = 409, description = "`conflict`: the catalogue is full", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the leader cannot write the catalogue; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn set(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(WorkspacePath { name }): Path<WorkspacePath>,
    _: Query<NoParameters>,
    Json(workspace): Json<Workspace>,
) -> Result<Served<(StatusCode, Answer<Workspace>)>, Refusal> {
    if workspace.name != name {
        return Err(Invalid::new(
            "name",
            format!("`{}` differs from the name in the path; expected `{name}`", workspace.name),
        )
        .into());
    }
    let edit = Edit::Put { workspace: Box::new(workspace.clone()), create_only: false };
    let edited = app.api.cluster.edit(edit, &by).await?;
    Ok(Served(edited.map(|edited| {
        let new = edited == Edited::Put { new: true };
        (if new { StatusCode::CREATED } else { StatusCode::OK }, Answer(workspace))
    })))
}

/// Removes a workspace. Its sessions go on.
#[utoipa::path(delete, path = "/v1/workspaces/{name}", tag = "workspaces", operation_id = "remove_workspace", params(WorkspacePath), responses(
    (status = 204, description = "the workspace is removed"),
    (status = 503, description = "`runtime_unavailable`: the leader cannot write the catalogue; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn remove(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(WorkspacePath { name }): Path<WorkspacePath>,
    _: Query<NoParameters>,
) -> Result<Served<StatusCode>, Refusal> {
    let edited = app.api.cluster.edit(Edit::Delete(name), &by).await?;
    Ok(Served(edited.map(|_| StatusCode::NO_CONTENT)))
}

/// Lists the digests of a workspace's image that are in use: by node, and by running session. `ostler workspace pin`
/// chooses among them.
#[utoipa::path(get, path = "/v1/workspaces/{name}/digests", tag = "workspaces", operation_id = "list_workspace_digests",
    params(WorkspacePath), responses(
    (status = 200, description = "the digests", body = List<DigestInUse>),
    (status = 503, description = "`no_leader`; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn digests(
    State(app): Shared,
    Path(WorkspacePath { name }): Path<WorkspacePath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<List<DigestInUse>>>, Refusal> {
    let listed = app.api.cluster.digests(&name).await?;
    Ok(Served(listed.map(|items| Answer(List { items, next_cursor: None }))))
}
