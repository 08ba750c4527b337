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
use super::events::{EventCursor, SearchText};
use super::extract::{NoParameters, Query};
use super::gpus::GpuPrefix;
use super::listed::{EventKinds, NodeNames};
use super::page::{Cursor, Limit};
use super::router;
use super::sessions::SessionPrefix;
use super::volumes::VolumeName;
use super::wait::{Timeout, WaitFor};
use crate::types::{ErrorBody, QueryTime};

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
    components(schemas(
        ErrorBody,
        Cursor,
        EventCursor,
        EventKinds,
        NodeNames,
        SearchText,
        QueryTime,
        GpuPrefix,
        Limit,
        SessionPrefix,
        Timeout,
        VolumeName,
        WaitFor
    ))
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
    use crate::http::extract::Checked;
    use crate::types::{
        self, ApiTokenRequest, DrainRequest, ExtendRequest, ImageRequest, KeepaliveRequest, PruneRequest,
        SessionRequest, SettingsPatch, Workspace,
    };
    use serde_json::{Value, json};
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

    /// Decodes and checks a body as its operation does.
    fn refusal_of<T: Checked>(json: &Value) -> Option<String> {
        types::decode::<T>(json.clone()).and_then(|body| body.check()).err().map(|invalid| invalid.to_string())
    }

    type RefusalOf = fn(&Value) -> Option<String>;

    /// Every body of the API: its name, how it is decoded, and one with every field.
    fn bodies() -> Vec<(&'static str, RefusalOf, Value)> {
        let session = json!({
            "workspace": "desktop", "user": "alice", "cores": 1, "memory_bytes": "1GiB", "gpus": 0, "env": {"A": "1"},
            "ttl_seconds": 60, "idle_timeout_seconds": 60, "constraints": {"rack": "3"},
        });
        let workspace = json!({
            "name": "desktop", "description": "d", "image": "busybox", "command": ["sh", "-c"], "cores": 1,
            "image_digest": format!("sha256:{}", "0".repeat(64)),
            "memory_bytes": "1GiB", "gpus": 0, "ports": [{"container_port": 80, "protocol": "tcp"}], "env": {"A": "1"},
            "volumes": [{"name": "home", "path": "/home", "read_only": false, "roam": false}],
            "constraints": {"rack": "3"}, "network": "lan", "gpu_capabilities": ["compute"],
            "gpu_memory_bytes": "8GiB", "gpu_class": "nvidia.com/gpu", "shm_bytes": "64M",
            "pull": "daily", "prepull": false, "ttl_seconds": 60, "idle_timeout_seconds": 60,
            "on_host_restart": "start", "entrypoint": ["/init"], "run_as": "1000", "init": "auto", "read_only": false,
            "tmpfs": ["/run"], "stop_grace_seconds": 10,
            "ready": {"port": 80, "path": "/health", "timeout_seconds": 30},
        });
        let settings = json!({
            "enabled": true, "prune": "off", "cores_override": 1, "memory_override_bytes": "1GiB", "gpus_override": 0,
            "gpu_sharing": "any", "labels": {"rack": "3"},
        });
        let drain = json!({"deadline_seconds": 60, "stop_sessions": false, "message": "m"});
        let token = json!({"role": "read", "name": "ci", "expires_in_seconds": 60});
        vec![
            ("ApiTokenRequest", refusal_of::<ApiTokenRequest>, token),
            ("DrainRequest", refusal_of::<DrainRequest>, drain),
            ("ExtendRequest", refusal_of::<ExtendRequest>, json!({"ttl_seconds": 60})),
            ("ImageRequest", refusal_of::<ImageRequest>, json!({"image": "busybox:1.36"})),
            ("KeepaliveRequest", refusal_of::<KeepaliveRequest>, json!({"by": "alice"})),
            ("PruneRequest", refusal_of::<PruneRequest>, json!({"mode": "aggressive"})),
            ("SessionRequest", refusal_of::<SessionRequest>, session),
            ("SettingsPatch", refusal_of::<SettingsPatch>, settings),
            ("Workspace", refusal_of::<Workspace>, workspace),
        ]
    }

    /// The places of a value and of everything in it: as a JSON pointer, and as an error writes it.
    fn places(value: &Value, pointer: &str, place: &str, all: &mut Vec<(String, String)>) {
        all.push((pointer.to_owned(), place.to_owned()));
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            places(item, &format!("{pointer}/{index}"), &format!("{place}[{index}]"), all);
        }
        for (key, field) in value.as_object().into_iter().flatten() {
            let dot = if place.is_empty() { "" } else { "." };
            places(field, &format!("{pointer}/{key}"), &format!("{place}{dot}{key}"), all);
        }
    }

    /// The message in words that a user of the API knows, at this place or in the value there.
    fn assert_plain(message: &str, place: &str) {
        const RUST: [&str; 28] = [
            "u8",
            "u16",
            "u32",
            "u64",
            "usize",
            "i8",
            "i16",
            "i32",
            "i64",
            "f32",
            "f64",
            "bool",
            "str",
            "struct",
            "enum",
            "variant",
            "map",
            "sequence",
            "tuple",
            "newtype",
            "unit",
            "Option",
            "Some",
            "None",
            "serde",
            "identifier",
            "key",
            "parse",
        ];
        // `ready` names one of the ports: without them, its own port is the wrong one.
        let named =
            if message.starts_with("ready.port: ") && place.starts_with("ports") { "ready.port" } else { place };
        assert!(message.starts_with(if named.is_empty() { "the body is " } else { named }), "{place}: {message}");
        let mut words = message.split(|c: char| !c.is_alphanumeric() && c != '_');
        assert!(words.all(|word| !RUST.contains(&word)), "{place}: {message}");
        assert!(!message.contains("invalid type") && !message.contains("invalid value"), "{place}: {message}");
    }

    #[test]
    fn an_error_of_any_field_of_any_body_names_it_in_words_of_the_api() {
        let wrong = json!([
            null, true, -1, 0, 1.5, 1e300, u64::MAX, "", "\u{0}", "a b", [], [null], [[]], {}, {"": null},
            {"x": {"y": []}}
        ]);
        for (name, refusal_of, sample) in bodies() {
            assert_eq!(refusal_of(&sample), None, "{name}");
            let mut all = Vec::new();
            places(&sample, "", "", &mut all);
            for (pointer, place) in all {
                let mut refusals = 0;
                for value in wrong.as_array().unwrap() {
                    let mut body = sample.clone();
                    *body.pointer_mut(&pointer).unwrap() = value.clone();
                    if let Some(message) = refusal_of(&body).filter(|_| !value.is_object() || !place.is_empty()) {
                        assert_plain(&message, &place);
                        refusals += 1;
                    }
                }
                assert!(refusals >= 5, "{name} {place}: only {refusals} wrong values are refused");
                let mut body = sample.clone();
                if let Some(Value::Object(fields)) = body.pointer_mut(&pointer) {
                    fields.insert("bogus".to_owned(), json!([1]));
                    let dot = if place.is_empty() { "" } else { "." };
                    assert_plain(&refusal_of(&body).unwrap(), &format!("{place}{dot}bogus"));
                }
            }
        }
    }

    #[test]
    fn every_body_has_a_sample_with_all_its_fields() {
        let json: Value = serde_json::from_slice(&DOCUMENT).unwrap();
        let mut described = BTreeSet::new();
        for operation in json["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values())
        {
            let schema = operation["requestBody"]["content"]["application/json"]["schema"].to_string();
            described.extend(
                schema.split("#/components/schemas/").nth(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
            );
        }
        assert_eq!(described, bodies().into_iter().map(|(name, ..)| name.to_owned()).collect());
        for (name, _, sample) in bodies() {
            let schema = &json["components"]["schemas"][name];
            let fields = schema["properties"].as_object().or_else(|| schema["allOf"][0]["properties"].as_object());
            let fields: Vec<&String> = fields.unwrap().keys().collect();
            assert_eq!(sample.as_object().unwrap().keys().collect::<Vec<_>>(), fields, "{name}");
        }
    }
}
