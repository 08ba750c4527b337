//! Named volumes of a node.

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::Shared;
use super::error::Refusal;
use super::extract::{NoParameters, Path, Query};
use super::nodes::NodePath;
use super::routed::Served;
use crate::types::{Actor, ErrorBody, List, Name, Volume, is_printable, schema};

/// Characters of a volume's name at most. A template of 128 may contain a user of 256 characters 21 times.
const MAX_NAME: usize = 5400;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct VolumePath {
    /// The node's name, its id, a unique prefix of its id, or `self`.
    node: Name,
    /// The volume's name in the list of volumes.
    name: VolumeName,
}

/// A volume's name, which comes from the template of its workspace.
#[derive(Debug, Clone)]
pub(super) struct VolumeName(String);

impl<'de> Deserialize<'de> for VolumeName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if (1..=MAX_NAME).contains(&text.chars().count()) && text.chars().all(is_printable) {
            return Ok(Self(text));
        }
        let expected = format!("not a volume name; expected 1 to {MAX_NAME} printable characters");
        Err(serde::de::Error::custom(expected))
    }
}

impl PartialSchema for VolumeName {
    fn schema() -> RefOr<Schema> {
        schema::volume_name(MAX_NAME).into()
    }
}
impl ToSchema for VolumeName {}

/// Lists the named volumes on a node, and the sessions that use them.
#[utoipa::path(get, path = "/v1/nodes/{node}/volumes", tag = "volumes", operation_id = "list_volumes", params(NodePath), responses(
    (status = 200, description = "the volumes", body = List<Volume>),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the container engine does not answer", body = ErrorBody),
))]
pub(super) async fn list(
    State(app): Shared,
    Path(path): Path<NodePath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<List<Volume>>>, Refusal> {
    let listed = app.api.cluster.volumes(&path.node).await?;
    Ok(Served(listed.map(|items| Answer(List { items, next_cursor: None }))))
}

/// Removes a named volume and its data.
#[utoipa::path(delete, path = "/v1/nodes/{node}/volumes/{name}", tag = "volumes", operation_id = "remove_volume", params(VolumePath), responses(
    (status = 204, description = "the volume is removed"),
    (status = 409, description = "`conflict`: a session uses the volume, or more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the container engine does not answer", body = ErrorBody),
))]
pub(super) async fn remove(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Path(VolumePath { node: wanted, name: VolumeName(name) }): Path<VolumePath>,
    _: Query<NoParameters>,
) -> Result<Served<StatusCode>, Refusal> {
    let removed = app.api.cluster.remove_volume(&wanted, name, &by).await?;
    Ok(Served(removed.map(|()| StatusCode::NO_CONTENT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_name_is_printable() {
        let name = |text: &str| serde_json::from_value::<VolumeName>(text.into()).is_ok();
        assert!(name("home-alice@example.com") && name(r"home-CORP\alice") && name("home-auth0|Jörg Müller"));
        assert!(!name("") && !name("a\n") && !name("a\u{200b}") && !name(&"a".repeat(MAX_NAME + 1)));
    }
}
