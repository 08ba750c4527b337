//! The OpenAPI document, generated from the handlers, the types and the table of access.

use std::sync::LazyLock;

use axum::http::{HeaderValue, Method, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, PathItem, Ref, RefOr, ResponseBuilder};

use super::access::{Access, access};
use super::extract::{NoParameters, Query};
use super::page::{Cursor, Limit};
use super::router;
use super::sessions::SessionPrefix;
use super::volumes::VolumeName;
use super::wait::Timeout;
use crate::types::ErrorBody;

/// The name of the only security scheme.
const BEARER: &str = "bearer";

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    Bytes::from(document().to_json().expect("a document of strings, lists and maps always serialises"))
});

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "ostler",
        description = "Containerised workspaces on a fleet of hosts. Every node answers requests for the whole cluster."
    ),
    components(schemas(ErrorBody, Cursor, Limit, SessionPrefix, Timeout, VolumeName))
)]
struct Frame;

/// Shows this document.
#[utoipa::path(get, path = "/openapi.json", tag = "status", operation_id = "openapi", responses(
    (status = 200, description = "the OpenAPI document of the API", content_type = "application/json", body = serde_json::Value),
))]
pub(super) async fn openapi(_: Query<NoParameters>) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT.clone())
}

/// The document without operations. The router adds them.
pub(super) fn frame() -> OpenApi {
    Frame::openapi()
}

fn document() -> OpenApi {
    let (_, mut document) = router::operations().split_for_parts();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API token. Its role determines which operations it may call."))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    components.schemas.entry("Workspace".to_owned()).and_modify(needs_image_or_command);
    components.schemas.iter_mut().filter(|(name, _)| name.starts_with("Figures_")).for_each(|(_, s)| may_be_unknown(s));
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations_of(item) {
            complete(operation, access(&method, path), path.contains('{'));
        }
    }
    document
}

/// Makes `utilized` nullable: the derive does not do so for an `Option` of a type parameter.
fn may_be_unknown(figures: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(figures)) = figures else { return };
    figures.properties.entry("utilized".to_owned()).and_modify(|utilized| {
        let known = std::mem::replace(utilized, RefOr::T(Schema::default()));
        let unknown = ObjectBuilder::new().schema_type(Type::Null);
        *utilized = RefOr::T(OneOfBuilder::new().item(known).item(unknown).into());
    });
}

/// Adds the rule that a workspace needs an image or, for the process runtime, a command.
fn needs_image_or_command(workspace: &mut RefOr<Schema>) {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let image = ObjectBuilder::new().required("image").property("image", text());
    let command = ArrayBuilder::new().items(text()).min_items(Some(1));
    let command = ObjectBuilder::new().required("command").property("command", command);
    let either = AnyOfBuilder::new().item(image).item(command);
    let fields = std::mem::replace(workspace, RefOr::T(Schema::default()));
    *workspace = RefOr::T(AllOfBuilder::new().item(fields).item(either).into());
}

fn operations_of(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    [
        (Method::GET, item.get.as_mut()),
        (Method::PUT, item.put.as_mut()),
        (Method::POST, item.post.as_mut()),
        (Method::DELETE, item.delete.as_mut()),
        (Method::PATCH, item.patch.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

/// Adds the common error responses and the required role to an operation.
fn complete(operation: &mut Operation, access: Access, has_path_parameters: bool) {
    refusal(operation, 400, "`invalid`: the path, the query, a header or the body is malformed");
    refusal(operation, 500, "`internal`: internal error of the agent; see its log");
    if has_path_parameters {
        refusal(operation, 404, "`not_found`");
    }
    if operation.request_body.is_some() {
        refusal(operation, 413, "`invalid`: the body is too large");
        refusal(operation, 415, "`invalid`: the content type is not application/json");
        refusal(operation, 422, "`invalid`: a value is invalid; the message names the field");
    }
    let requirement = match access {
        Access::Open => SecurityRequirement::default(),
        Access::Needs(role) => {
            refusal(operation, 401, "`unauthorized`: the token is missing, unknown, revoked or expired");
            refusal(
                operation,
                403,
                "`forbidden`: the operation requires a higher role, or the host or origin of the request is not allowed",
            );
            let needs = format!("Requires role `{role}`.");
            let said = operation.description.take();
            operation.description = Some(said.map_or(needs.clone(), |said| format!("{said}\n\n{needs}")));
            SecurityRequirement::new(BEARER, Vec::<String>::new())
        }
    };
    operation.security = Some(vec![requirement]);
}

/// Declares an error response, unless the handler declares it with more detail.
fn refusal(operation: &mut Operation, status: u16, description: &str) {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    let response: Response = ResponseBuilder::new().description(description).content("application/json", body).build();
    operation.responses.responses.entry(status.to_string()).or_insert(RefOr::T(response));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::access::OPERATIONS;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_and_the_table_of_access_have_the_same_operations() {
        let mut document = document();
        let mut described = BTreeSet::new();
        for (path, item) in &mut document.paths.paths {
            described.extend(operations_of(item).map(|(method, _)| format!("{method} {path}")));
        }
        let listed: BTreeSet<String> = OPERATIONS.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
        assert_eq!(described, listed);
    }

    #[test]
    fn every_operation_declares_its_responses() {
        let mut document = document();
        let mut ids = BTreeSet::new();
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations_of(item) {
                let answers = &operation.responses.responses;
                assert!(answers.keys().any(|status| status.starts_with('2')), "{method} {path}");
                for of_the_guarded in ["401", "403"] {
                    assert_eq!(answers.contains_key(of_the_guarded), !path.ends_with('z'), "{method} {path}");
                }
                assert_eq!(answers.contains_key("415"), operation.request_body.is_some(), "{method} {path}");
                assert!(ids.insert(operation.operation_id.clone().unwrap()), "{method} {path}");
            }
        }
    }

    #[test]
    fn utilized_is_nullable() {
        let json: serde_json::Value = serde_json::from_slice(&DOCUMENT).unwrap();
        for figures in ["Figures_Cores", "Figures_Bytes", "Figures_u32"] {
            let utilized = &json["components"]["schemas"][figures]["properties"]["utilized"];
            assert_eq!(utilized["oneOf"][1]["type"], "null", "{figures}: {utilized}");
        }
    }

    #[test]
    fn every_reference_has_a_target() {
        let json: serde_json::Value = serde_json::from_slice(&DOCUMENT).unwrap();
        let mut waiting = vec![&json];
        while let Some(value) = waiting.pop() {
            match value {
                serde_json::Value::Object(map) => {
                    if let Some(target) = map.get("$ref").and_then(|v| v.as_str()) {
                        assert!(json.pointer(target.trim_start_matches('#')).is_some(), "{target}");
                    }
                    waiting.extend(map.values());
                }
                serde_json::Value::Array(items) => waiting.extend(items),
                _ => {}
            }
        }
    }
}
