//! Strict decoding of requests: every error names the field, and unknown fields are errors.

use std::error::Error as _;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::error::Refusal;
use super::unique::Unique;
use crate::types::{
    self, ApiTokenRequest, DrainRequest, ErrorCode, ExtendRequest, ImageRequest, Invalid, KeepaliveRequest,
    PruneRequest, SessionRequest, SettingsPatch, Workspace,
};

/// Bytes of a body at most. A typical workspace has a few KiB.
pub(super) const MAX_BODY: usize = 1 << 20;
/// How long a caller may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A body that is decoded and checked against every bound of its type.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

/// A body of the API.
pub(super) trait Checked: DeserializeOwned + ToSchema {
    /// Checks the bounds that decoding does not check.
    fn check(&self) -> Result<(), Invalid>;
}

macro_rules! checked {
    ($($validated:ty),*; $($as_decoded:ty),*) => {
        $(impl Checked for $validated {
            fn check(&self) -> Result<(), Invalid> {
                self.validate()
            }
        })*
        $(impl Checked for $as_decoded {
            fn check(&self) -> Result<(), Invalid> {
                Ok(())
            }
        })*
    };
}
checked!(Workspace, SessionRequest, SettingsPatch, DrainRequest, ExtendRequest, ImageRequest, PruneRequest; KeepaliveRequest, ApiTokenRequest);

impl<T: Checked, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        check_content_type(request.headers())?;
        let body = read(request.into_body()).await?;
        decode(&body).map(Self)
    }
}

impl<T: Checked, S: Send + Sync> OptionalFromRequest<S> for Json<T> {
    type Rejection = Refusal;

    /// `None` for a request without a body, and for `null`.
    async fn from_request(request: Request, _: &S) -> Result<Option<Self>, Refusal> {
        if request.body().is_end_stream() && !request.headers().contains_key(header::CONTENT_TYPE) {
            return Ok(None);
        }
        check_content_type(request.headers())?;
        let body = read(request.into_body()).await?;
        if body.trim_ascii() == b"null" { Ok(None) } else { decode(&body).map(|value| Some(Self(value))) }
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("Content-Type is `{given}`; expected application/json");
    Err(Refusal::malformed(message).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

async fn read(body: Body) -> Result<Bytes, Refusal> {
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect());
    match whole.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {MAX_BODY} bytes");
            Err(Refusal::malformed(message).with_status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Ok(Err(error)) => Err(Refusal::malformed(format!("cannot read the body: {error}"))),
        Err(_) => Err(Refusal::malformed(format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()))),
    }
}

/// A body that is not JSON is malformed (400). JSON of the wrong type or with an invalid value is invalid (422).
fn decode<T: Checked>(body: &[u8]) -> Result<T, Refusal> {
    let Unique(json) =
        serde_json::from_slice(body).map_err(|error| Refusal::malformed(format!("the body is not JSON: {error}")))?;
    let value: T = types::decode(json)?;
    value.check()?;
    Ok(value)
}

/// The query string. All types of queries deny unknown fields, so that an unknown parameter is an error.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

/// The query of an operation without parameters.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParameters {}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let detail = rejection.source().map_or_else(|| rejection.body_text(), ToString::to_string);
                Err(Refusal::malformed(format!("query parameter {}", in_words(detail))))
            }
        }
    }
}

/// What the libraries say of a text that is not a value, in words of the API.
const WORDS: [(&str, &str); 8] = [
    ("invalid digit found in string", "expected a whole number"),
    ("cannot parse integer from empty string", "expected a whole number"),
    ("number too large to fit in target type", "too large a number"),
    ("number too small to fit in target type", "too small a number"),
    ("provided string was not `true` or `false`", "expected true or false"),
    ("unknown variant", "unknown value"),
    ("unknown field", "unknown parameter"),
    ("duplicate field", "given twice:"),
];

fn in_words(detail: String) -> String {
    WORDS.iter().fold(detail, |detail, (theirs, ours)| detail.replacen(theirs, ours, 1))
}

/// The parameters in the path.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => match error.into_kind() {
                ErrorKind::DeserializeError { key, message, .. } => {
                    Err(Refusal::malformed(format!("{key}: {message}")))
                }
                other => Err(Refusal::malformed(other.to_string())),
            },
            Err(other) => Err(Refusal::new(ErrorCode::Internal, other.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use axum::routing::{get, post};
    use axum::{Router, response::Response};
    use tower::ServiceExt;

    use crate::types::{ErrorBody, ErrorDetail, Name};

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Parameters {
        #[serde(default)]
        limit: Option<u16>,
        #[serde(default)]
        all: bool,
        state: Option<crate::types::SessionState>,
    }

    fn router() -> Router {
        Router::new()
            .route("/drain", post(|body: Option<Json<DrainRequest>>| async move { body.is_some().to_string() }))
            .route("/workspace", post(|Json(w): Json<Workspace>| async move { w.name.to_string() }))
            .route(
                "/query",
                get(|Query(q): Query<Parameters>| async move { format!("{:?}", (q.limit, q.all, q.state)) }),
            )
            .route("/path/{name}", get(|Path(name): Path<Name>| async move { name.to_string() }))
    }

    async fn send(request: axum::http::request::Builder, body: impl Into<Body>) -> Response {
        router().oneshot(request.body(body.into()).unwrap()).await.unwrap().into_response()
    }

    async fn post_json(body: impl Into<Body>) -> (u16, ErrorDetail) {
        let request = Request::post("/workspace").header("content-type", "application/json; charset=utf-8");
        refused(send(request, body).await).await
    }

    async fn refused(response: Response) -> (u16, ErrorDetail) {
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice::<ErrorBody>(&body).unwrap().error)
    }

    #[tokio::test]
    async fn a_body_that_is_not_json_is_malformed() {
        for body in ["", "{", "{\"name\":}", r#"{"by":"a"} 2"#, "\u{0}"] {
            let (status, error) = post_json(body).await;
            assert_eq!((status, error.code), (400, ErrorCode::Invalid), "{body:?}: {}", error.message);
        }
    }

    #[tokio::test]
    async fn an_invalid_field_is_named() {
        for (body, told) in [
            (r#"{"name":"A","cores":1,"memory_bytes":1}"#, "name: `A` is not a name"),
            (r#"{"name":"a","cores":-1,"memory_bytes":1}"#, "cores: -1 is not"),
            (
                r#"{"name":"a","image":"b","cores":1,"memory_bytes":"64M","ports":[{"container_port":70000}]}"#,
                "ports[0].container_port",
            ),
            (
                r#"{"name":"a","image":"b","cores":1,"memory_bytes":"64M","ports":[{"container_port":0}]}"#,
                "ports[0].container_port: 0 is not a port",
            ),
            (r#"{"name":"a","cores":1}"#, "memory_bytes: missing; expected a whole number of at least 6291456, or "),
            (r#"{"name":"a","privileged":true}"#, "privileged: unknown field; expected one of command, constraints, "),
            (r#"["a"]"#, "the body is a list; expected an object {command, constraints, "),
            ("null", "the body is null; expected an object {command, "),
        ] {
            let (status, error) = post_json(body).await;
            assert_eq!((status, error.code), (422, ErrorCode::Invalid), "{body}");
            assert!(error.message.contains(told), "{body}: {}", error.message);
        }
    }

    #[tokio::test]
    async fn content_type_and_size_of_a_body_are_checked() {
        assert_eq!(refused(send(Request::post("/workspace"), "{}").await).await.0, 415);
        let form = Request::post("/workspace").header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(refused(send(form, "a=b").await).await.0, 415);
        assert_eq!(post_json(vec![b' '; MAX_BODY + 1]).await.0, 413);
        assert_eq!(post_json(vec![b' '; MAX_BODY]).await.0, 400);
    }

    #[tokio::test]
    async fn an_optional_body_may_be_missing() {
        assert_eq!(send(Request::post("/drain"), Body::empty()).await.status(), 200);
        assert_eq!(send(Request::post("/drain"), "{}").await.status(), 415);
        let json = Request::post("/drain").header("content-type", "application/json");
        assert_eq!(send(json, r#"{"deadline_seconds":0}"#).await.status(), 422);
        let json = Request::post("/drain").header("content-type", "application/json");
        assert_eq!(send(json, " null").await.status(), 200);
    }

    #[tokio::test]
    async fn queries_and_paths_are_checked() {
        let get = async |uri: &str| send(Request::get(uri), Body::empty()).await;
        assert_eq!(get("/query?limit=3").await.status(), 200);
        for (uri, told) in [
            ("/query?limit=x", "limit: expected a whole number"),
            ("/query?limit=-1", "limit: expected a whole number"),
            ("/query?limit=", "limit: expected a whole number"),
            ("/query?limit=99999999", "limit: too large a number"),
            ("/query?all=x", "all: expected true or false"),
            ("/query?state=x", "state: unknown value `x`, expected one of `pending`, "),
            ("/query?limits=1", "unknown parameter `limits`, expected one of `limit`, "),
            ("/query?limit=1&limit=2", "given twice: `limit`"),
            ("/path/A", "`A` is not a name"),
            ("/path/%FF", "UTF-8"),
        ] {
            let (status, error) = refused(get(uri).await).await;
            assert_eq!((status, error.code), (400, ErrorCode::Invalid), "{uri}");
            assert!(error.message.contains(told), "{uri}: {}", error.message);
        }
    }
}
