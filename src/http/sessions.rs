//! Sessions: create, list, show, explain and remove. The other commands are in `commands`.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use futures_util::StreamExt;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::error::Refusal;
use super::extract::{Json, NoParameters, Path, Query};
use super::metrics::Streaming;
use super::page::{Cursor, Limit};
use super::routed::Served;
use super::wait::{Timeout, WaitFor, WaitQuery};
use super::{App, Shared};
use crate::cluster::Routed;
use crate::sessions::{Command, LogsRequest};
use crate::types::{
    Actor, ErrorBody, Explanation, List, Name, Plan, Remembered, Session, SessionFilter, SessionRequest, SessionState,
    User, Wait,
};

/// Characters of an idempotency key at most.
const MAX_KEY: usize = 256;

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Makes nginx, and proxies that follow it, pass an answer on as it comes. Otherwise they collect it until a buffer is
/// full, and a followed log stays empty meanwhile.
pub(super) const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SessionPath {
    /// The session's id or a unique prefix of it.
    pub(super) id: SessionPrefix,
}

/// A session's id or a prefix of one.
#[derive(Debug, Clone, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z2-7]{1,26}$", max_length = 26)]
pub(super) struct SessionPrefix(String);

impl<'de> Deserialize<'de> for SessionPrefix {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if (1..=26).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')) {
            return Ok(Self(text));
        }
        Err(serde::de::Error::custom("not a session id; expected 1 to 26 characters of a-z and 2-7"))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only this user's sessions.
    user: Option<User>,
    /// Only sessions in this state.
    state: Option<SessionState>,
    /// Only sessions on this node: its name, its id, a unique prefix of its id, or `self`.
    node: Option<Name>,
    /// Only sessions of this workspace.
    workspace: Option<Name>,
    /// Include sessions whose containers are destroyed.
    #[serde(default)]
    all: bool,
    /// The start of the page: the `next_cursor` of the previous page.
    cursor: Option<Cursor>,
    /// The maximum number of sessions in the page.
    #[serde(default)]
    limit: Limit,
}

impl From<ListQuery> for SessionFilter {
    fn from(query: ListQuery) -> Self {
        let ListQuery { user, state, node, workspace, all, cursor, limit } = query;
        Self { user, state, node, workspace, all, after: cursor.map(|cursor| cursor.key()), limit: limit.get() }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateQuery {
    /// Only answer where the session would be placed, without creating it.
    #[serde(default)]
    dry_run: bool,
    /// Delay the answer until the session is in this state, or can be used (`ready`), or has ended, or `timeout` has
    /// passed.
    wait: Option<WaitFor>,
    /// How long to delay the answer, counted from the request, for example `90s` or `2m`. Longer values count as ten
    /// minutes. The default is below the 60 s after which most reverse proxies give up.
    #[serde(default)]
    timeout: Timeout,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    /// Delay the answer until the session's container is destroyed, or `timeout` has passed.
    #[serde(default)]
    wait: bool,
    /// How long to delay the answer, counted from the request, for example `90s` or `2m`. Longer values count as ten
    /// minutes. The default is below the 60 s after which most reverse proxies give up.
    #[serde(default)]
    timeout: Timeout,
    /// Only remove the session from the records of all other nodes. For a host that is not alive and will not return.
    #[serde(default)]
    forget: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    /// Stream new output until the session ends. The answer has the header `X-Accel-Buffering: no`, so that a reverse
    /// proxy passes the output on as it comes.
    #[serde(default)]
    follow: bool,
    /// The number of last lines to show. Default: all lines that the engine has.
    #[param(maximum = 4294967295u32)]
    tail: Option<u32>,
}

/// A session, or the plan of a dry run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Created {
    Session(Box<Session>),
    Plan(Plan),
}

/// A session's random secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Secret {
    /// `null` if the workspace uses no secret.
    secret: Option<String>,
}

/// Lists sessions, oldest first. Without `all`, the list omits sessions whose containers are destroyed.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", operation_id = "list_sessions", params(ListQuery), responses(
    (status = 200, description = "the sessions", body = List<Session>),
))]
pub(super) async fn list(State(app): Shared, Query(query): Query<ListQuery>) -> Served<Answer<List<Session>>> {
    Served(app.api.cluster.sessions(query.into()).await.map(Answer))
}

/// Creates a session. The answer comes once a host has admitted it; the host pulls and starts in the background.
///
/// Every request with the same `Idempotency-Key` and body returns the same session.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", operation_id = "create_session",
    params(CreateQuery, ("Idempotency-Key" = Option<String>, Header, description = "identifies the session across retries of the request",
        pattern = "^[!-~]([ -~]{0,254}[!-~])?$", min_length = 1, max_length = 256)),
    request_body = SessionRequest, responses(
    (status = 200, description = "the session that an earlier request with this key created, or the plan of a dry run", body = Created),
    (status = 202, description = "the session, which its host has admitted", body = Session, headers(("Location" = String, description = "the session's path"))),
    (status = 422, description = "`exceeds_physical`: the session requests more than any node has; `idempotency_mismatch`; `invalid`", body = ErrorBody),
    (status = 404, description = "`not_found`: no such workspace", body = ErrorBody),
    (status = 429, description = "`quota_exceeded`: the user has `limits.max_sessions_per_user` sessions", body = ErrorBody),
    (status = 503, description = "`no_capacity`, `node_disabled`, `runtime_unavailable`, `outcome_unknown`, `node_unreachable`, `no_leader`", body = ErrorBody),
))]
pub(super) async fn create(
    State(app): Shared,
    Extension(by): Extension<Actor>,
    Query(query): Query<CreateQuery>,
    headers: HeaderMap,
    Json(request): Json<SessionRequest>,
) -> Result<Response, Refusal> {
    let until = query.timeout.end();
    let key = idempotency_key(&headers)?;
    if query.dry_run {
        let plan = app.api.cluster.dry_run(request).await?;
        return Ok(Served(plan.map(|plan| Answer(Created::Plan(plan)))).into_response());
    }
    let Routed { answer: placed, by } = app.api.cluster.place(request, key, &by).await?;
    let status = if placed.replayed { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut session = placed.session;
    if let Some(WaitFor(wait)) = query.wait {
        let secret = session.secret.take();
        session = Session { secret, ..held(&app, session, wait, until).await.session };
    }
    let path = HeaderValue::try_from(format!("/v1/sessions/{}", session.id)).expect("an id is ASCII");
    let answer = (status, [(header::LOCATION, path)], Answer(Created::Session(Box::new(session))));
    Ok(Served(Routed { answer, by }).into_response())
}

/// Shows a session.
#[utoipa::path(get, path = "/v1/sessions/{id}", tag = "sessions", operation_id = "show_session", params(SessionPath, WaitQuery), responses(
    (status = 200, description = "the session", body = Session),
    (status = 409, description = "`conflict`: more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`node_unreachable`: the session may be on a node that does not answer", body = ErrorBody),
))]
pub(super) async fn show(
    State(app): Shared,
    Path(path): Path<SessionPath>,
    Query(query): Query<WaitQuery>,
) -> Result<Served<Answer<Session>>, Refusal> {
    let until = query.timeout.end();
    let Routed { answer: Remembered { mut session, .. }, by } = find(&app, &path).await?;
    if let Some(WaitFor(wait)) = query.wait {
        session = held(&app, session, wait, until).await.session;
    }
    Ok(Served(Routed { answer: Answer(session), by }))
}

/// Stops a session and destroys its container. Named volumes stay.
///
/// A session removed with `forget` returns when its host connects again, unless its key was used again meanwhile.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "sessions", operation_id = "remove_session", params(SessionPath, RemoveQuery), responses(
    (status = 200, description = "the session, whose container is destroyed; with `forget`, the last known state of the session", body = Session),
    (status = 202, description = "the session, which its host removes in the background", body = Session),
    (status = 409, description = "`conflict`: more than one session id has this prefix, or `forget` is set and the session's host is alive", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the agent cannot write its journal; `outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn remove(
    State(app): Shared,
    Extension(actor): Extension<Actor>,
    Path(path): Path<SessionPath>,
    Query(query): Query<RemoveQuery>,
) -> Result<Served<(StatusCode, Answer<Session>)>, Refusal> {
    let until = query.timeout.end();
    let Routed { answer: Remembered { session, gone }, by } = find(&app, &path).await?;
    if gone {
        return Ok(Served(Routed { answer: (StatusCode::OK, Answer(session)), by }));
    }
    if query.forget {
        app.api.cluster.forget_session(&session, &actor).await?;
        return Ok(Served(Routed { answer: (StatusCode::OK, Answer(session)), by }));
    }
    let Routed { answer: session, by } = app.api.cluster.command(&session, Command::Remove, &actor).await?;
    let mut removed = Remembered { session, gone: false };
    if query.wait {
        removed = held(&app, removed.session, Wait::UntilGone, until).await;
    }
    let status = if removed.gone { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(Served(Routed { answer: (status, Answer(removed.session)), by }))
}

/// Explains why the session is on its node, with the verdict on each node.
#[utoipa::path(get, path = "/v1/sessions/{id}/explain", tag = "sessions", operation_id = "explain_session", params(SessionPath), responses(
    (status = 200, description = "the explanation", body = Explanation),
    (status = 409, description = "`conflict`: more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn explain(
    State(app): Shared,
    Path(path): Path<SessionPath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Explanation>>, Refusal> {
    let session = find(&app, &path).await?.answer.session;
    Ok(Served(app.api.cluster.explain(&session).await?.map(Answer)))
}

/// Shows the session's random secret, such as the password of its desktop.
#[utoipa::path(get, path = "/v1/sessions/{id}/secret", tag = "sessions", operation_id = "show_session_secret", params(SessionPath), responses(
    (status = 200, description = "the secret", body = Secret),
    (status = 409, description = "`conflict`: more than one session id has this prefix", body = ErrorBody),
    (status = 503, description = "`outcome_unknown`, `node_unreachable`", body = ErrorBody),
))]
pub(super) async fn secret(
    State(app): Shared,
    Path(path): Path<SessionPath>,
    _: Query<NoParameters>,
) -> Result<Served<Answer<Secret>>, Refusal> {
    let session = find(&app, &path).await?.answer.session;
    Ok(Served(app.api.cluster.secret(&session).await?.map(|secret| Answer(Secret { secret }))))
}

/// Shows the session's output, oldest first.
#[utoipa::path(get, path = "/v1/sessions/{id}/logs", tag = "sessions", operation_id = "read_session_logs", params(SessionPath, LogsQuery), responses(
    (status = 200, description = "the unmodified output", content_type = "text/plain", body = String),
    (status = 409, description = "`conflict`: more than one session id has this prefix, or the engine keeps no log", body = ErrorBody),
    (status = 503, description = "`runtime_unavailable`: the container engine does not answer", body = ErrorBody),
))]
pub(super) async fn logs(
    State(app): Shared,
    Path(path): Path<SessionPath>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refusal> {
    let session = find(&app, &path).await?.answer.session;
    let request = LogsRequest { follow: query.follow, tail: query.tail };
    let Routed { answer: lines, by } = app.api.cluster.logs(&session, request).await?;
    let mut stopping = app.stopping.clone();
    // A caller that follows the log must not delay the stop of the daemon.
    let lines = lines.take_until(async move { stopping.wait_for(|stopping| *stopping).await.is_ok() });
    let open = query.follow.then(|| app.requests.open(Streaming::Logs));
    // Counted as long as the stream is there.
    let lines = lines.inspect(move |_| _ = &open);
    let text = [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))];
    let passed_on = AppendHeaders(query.follow.then_some(UNBUFFERED));
    Ok(Served(Routed { answer: (text, passed_on, Body::from_stream(lines)), by }).into_response())
}

/// The session of a path.
pub(super) async fn find(app: &App, path: &SessionPath) -> Result<Routed<Remembered>, Refusal> {
    Ok(app.api.cluster.session(&path.id.0).await?)
}

/// The session once it is in the wanted state, at `until`, or once the daemon stops.
pub(super) async fn held(app: &App, session: Session, wait: Wait, until: Instant) -> Remembered {
    let mut stopping = app.stopping.clone();
    let now = session.clone();
    let left = until.saturating_duration_since(Instant::now());
    tokio::select! {
        remembered = app.api.cluster.hold(session, wait, left) => remembered,
        _ = stopping.wait_for(|stopping| *stopping) => Remembered { session: now, gone: false },
    }
}

/// The idempotency key, if the request has one: printable ASCII. HTTP strips spaces at its ends.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Ok(Some(key.to_owned()));
    }
    Err(Refusal::malformed(format!("header Idempotency-Key: expected 1 to {MAX_KEY} printable ASCII characters")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_are_bounded_printable_text() {
        let key = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            idempotency_key(&headers).map_err(|refusal| refusal.status)
        };
        assert_eq!(key(b"order 17"), Ok(Some("order 17".to_owned())));
        assert_eq!(key(&[b'k'; 256]).unwrap().unwrap().len(), 256);
        for bad in [&b""[..], &[b'k'; 257], b"a\tb", "ä".as_bytes()] {
            assert_eq!(key(bad), Err(StatusCode::BAD_REQUEST), "{bad:?}");
        }
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
    }
}
