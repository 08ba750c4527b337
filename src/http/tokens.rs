//! API tokens. Only the answer to the creation of a token contains its text.

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
use crate::cluster::Routed;
use crate::types::{Actor, ApiToken, ApiTokenRequest, ErrorBody, ErrorCode, List, Name, NewApiToken};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TokenPath {
    /// The token's id or name.
    id: Name,
}

/// Lists the API tokens without their text.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", operation_id = "list_tokens", params(PageQuery), responses(
    (status = 200, description = "the tokens", body = List<ApiToken>),
))]
pub(super) async fn list(State(app): Shared, Query(query): Query<PageQuery>) -> Answer<List<ApiToken>> {
    let catalogue = app.api.cluster.catalogue();
    let by_id = catalogue.tokens.iter().map(|(id, stored)| (id.clone(), stored));
    let shown = page(by_id, query.cursor.as_ref(), query.limit);
    let items = shown.items.into_iter().map(|stored| stored.token.clone()).collect();
    Answer(List { items, next_cursor: shown.next_cursor })
}

/// Creates an API token. Only this answer contains its text.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token", request_body = ApiTokenRequest, responses(
    (status = 201, description = "the token and its text", body = NewApiToken),
    (status = 409, description = "`conflict`: the name is in use, or the catalogue has the maximum number of tokens", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the leader cannot write the catalogue; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn create(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    _: Query<NoParameters>,
    Json(request): Json<ApiTokenRequest>,
) -> Result<Served<(StatusCode, Answer<NewApiToken>)>, Refusal> {
    let Routed { answer, by } = app.api.cluster.edit(Edit::CreateToken(request), &by).await?;
    let Edited::Token(token) = answer else {
        return Err(Refusal::new(ErrorCode::Internal, "the leader answered with something other than a token"));
    };
    Ok(Served(Routed { answer: (StatusCode::CREATED, Answer(token)), by }))
}

/// Revokes an API token at once.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", operation_id = "revoke_token", params(TokenPath), responses(
    (status = 204, description = "the token is revoked"),
    (status = 503, description = "`runtime_unavailable`: the leader cannot write the catalogue; `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn revoke(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(TokenPath { id }): Path<TokenPath>,
    _: Query<NoParameters>,
) -> Result<Served<StatusCode>, Refusal> {
    let edited = app.api.cluster.edit(Edit::RevokeToken(id.to_string()), &by).await?;
    Ok(Served(edited.map(|_| StatusCode::NO_CONTENT)))
}
