//! Images of a node: list them, pull one, say whose they are, and prune them.

use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::Shared;
use super::error::Refusal;
use super::extract::{Json, NoParameters, Path, Query};
use super::nodes::NodePath;
use super::page::{Cursor, Limit};
use super::routed::Served;
use super::wait::Timeout;
use crate::images::Command;
use crate::types::{
    Actor, ErrorBody, Image, ImageFilter, ImageOwner, ImagePull, ImagePullState, ImageRequest, NodeImages, PruneReport,
    PruneRequest,
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only images of this owner.
    owner: Option<ImageOwner>,
    /// The start of the page: the `next_cursor` of the previous page.
    cursor: Option<Cursor>,
    /// The maximum number of items in the page.
    #[serde(default)]
    limit: Limit,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PullQuery {
    /// Delay the answer until the pull is done, or `timeout` has passed.
    #[serde(default)]
    wait: bool,
    /// How long to delay the answer, counted from the request, for example `90s` or `2m`. Longer values count as ten
    /// minutes. The default is below the 60 s after which most reverse proxies give up.
    #[serde(default)]
    timeout: Timeout,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PruneQuery {
    /// Only answer what would be removed, without removing it. Needs no more than role `read` if the query is nothing but
    /// `dry_run=true`.
    #[serde(default)]
    dry_run: bool,
}

/// Lists the images of a node, by id, as it last listed them, with those who use them and the pulls that run.
#[utoipa::path(get, path = "/v1/nodes/{node}/images", tag = "images", operation_id = "list_images", params(NodePath, ListQuery), responses(
    (status = 200, description = "the images", body = NodeImages),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn list(
    State(app): Shared,
    Path(path): Path<NodePath>,
    Query(query): Query<ListQuery>,
) -> Result<Served<Answer<NodeImages>>, Refusal> {
    let after = query.cursor.as_ref().map(Cursor::key);
    let filter = ImageFilter { owner: query.owner, after, limit: query.limit.get() };
    Ok(Served(app.api.cluster.images(&path.node, filter).await?.map(Answer)))
}

/// Pulls an image on a node, or joins its pull. The pull goes on when nobody waits for it.
#[utoipa::path(post, path = "/v1/nodes/{node}/images/pull", tag = "images", operation_id = "pull_image", params(NodePath, PullQuery),
    request_body = ImageRequest, responses(
    (status = 200, description = "the pull is done", body = ImagePull),
    (status = 202, description = "the pull waits or runs", body = ImagePull),
    (status = 404, description = "`not_found`: no such node, or the registry has no such image", body = ErrorBody),
    (status = 409, description = "`conflict`: the image that has the name came from no registry, the registry denies the image, the node has no images, or more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the engine or the registry does not answer, or the disk is full; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn pull(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    Query(query): Query<PullQuery>,
    Json(request): Json<ImageRequest>,
) -> Result<Served<(StatusCode, Answer<ImagePull>)>, Refusal> {
    let end = query.timeout.end();
    let hold = if query.wait { end.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
    let pull = app.api.cluster.pull_image(&path.node, request.reference()?, hold, &by).await?;
    let status = |pull: &ImagePull| match pull.state {
        ImagePullState::Done => StatusCode::OK,
        ImagePullState::Waiting | ImagePullState::Limited | ImagePullState::Running => StatusCode::ACCEPTED,
    };
    Ok(Served(pull.map(|pull| (status(&pull), Answer(pull)))))
}

/// Makes an image ostler's, with the names that it has: pulls may replace it, and prunes may remove it.
#[utoipa::path(post, path = "/v1/nodes/{node}/images/adopt", tag = "images", operation_id = "adopt_image", params(NodePath),
    request_body = ImageRequest, responses(
    (status = 200, description = "the image after the change", body = Image),
    (status = 404, description = "`not_found`: no such node, or the node has no such image", body = ErrorBody),
    (status = 409, description = "`conflict`: more than one image id or node id has this prefix, or the node has no images", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the engine does not answer, or the node cannot write its store; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn adopt(
    app: Shared,
    by: Extension<Actor>,
    path: Path<NodePath>,
    _: Query<NoParameters>,
    request: Json<ImageRequest>,
) -> Changed {
    change(app, by, path, request, Command::Adopt).await
}

/// Pins an image: no prune removes it.
#[utoipa::path(post, path = "/v1/nodes/{node}/images/pin", tag = "images", operation_id = "pin_image", params(NodePath),
    request_body = ImageRequest, responses(
    (status = 200, description = "the image after the change", body = Image),
    (status = 404, description = "`not_found`: no such node, or the node has no such image", body = ErrorBody),
    (status = 409, description = "`conflict`: more than one image id or node id has this prefix, or the node has no images", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the engine does not answer, or the node cannot write its store; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn pin(
    app: Shared,
    by: Extension<Actor>,
    path: Path<NodePath>,
    _: Query<NoParameters>,
    request: Json<ImageRequest>,
) -> Changed {
    change(app, by, path, request, Command::Pin).await
}

/// Unpins an image: prunes may remove it again, if it is ostler's.
#[utoipa::path(post, path = "/v1/nodes/{node}/images/unpin", tag = "images", operation_id = "unpin_image", params(NodePath),
    request_body = ImageRequest, responses(
    (status = 200, description = "the image after the change", body = Image),
    (status = 404, description = "`not_found`: no such node, or the node has no such image", body = ErrorBody),
    (status = 409, description = "`conflict`: more than one image id or node id has this prefix, or the node has no images", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the engine does not answer, or the node cannot write its store; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn unpin(
    app: Shared,
    by: Extension<Actor>,
    path: Path<NodePath>,
    _: Query<NoParameters>,
    request: Json<ImageRequest>,
) -> Changed {
    change(app, by, path, request, Command::Unpin).await
}

type Changed = Result<Served<Answer<Image>>, Refusal>;

async fn change(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    Json(ImageRequest { image }): Json<ImageRequest>,
    command: Command,
) -> Changed {
    Ok(Served(app.api.cluster.change_image(&path.node, image, command, &by).await?.map(Answer)))
}

/// Prunes the images of a node: removes those of ostler's that nothing needs, as the mode says.
///
/// The answer comes once the prune has ended, at most ten minutes later; the prune goes on also if the caller does not
/// wait. An image that came from another program, that a container uses, that a session needs or that is younger than
/// `images.min_age` is never removed.
#[utoipa::path(post, path = "/v1/nodes/{node}/images/prune", tag = "images", operation_id = "prune_images",
    params(NodePath, PruneQuery), request_body = Option<PruneRequest>, responses(
    (status = 200, description = "what was removed and what is kept, each with the reason", body = PruneReport),
    (status = 409, description = "`conflict`: a prune of this node runs already, the node has no images, or more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the container engine does not answer; `node_unreachable`, `outcome_unknown`", body = ErrorBody),
))]
pub(super) async fn prune(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(path): Path<NodePath>,
    Query(query): Query<PruneQuery>,
    request: Option<Json<PruneRequest>>,
) -> Result<Served<Answer<PruneReport>>, Refusal> {
    let request = request.map(|Json(request)| request).unwrap_or_default();
    let cluster = &app.api.cluster;
    let report = if query.dry_run {
        cluster.preview_prune(&path.node, request).await?
    } else {
        cluster.prune_images(&path.node, request, &by).await?
    };
    Ok(Served(report.map(Answer)))
}
