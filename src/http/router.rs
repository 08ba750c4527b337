//! Every route, and the middleware before it.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::{Gate, TokenOf, authorise};
use super::error::Refusal;
use super::metrics::measure;
use super::origin::{AllowedHosts, same_site};
use super::{
    App, Shared, commands, doctor, events, gpus, health, history, images, metrics, nodes, openapi, sessions, status,
    tokens, volumes, workspaces,
};
use crate::types::{Actor, ErrorCode};

/// The header with the leader's name, on every response to an authorised caller.
const LEADER: &str = "x-ostler-leader";

/// Every operation of the API with its description.
pub(super) fn operations() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::healthz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(openapi::openapi))
        .routes(routes!(status::status))
        .routes(routes!(events::list))
        .routes(routes!(gpus::list))
        .routes(routes!(gpus::show, gpus::forget))
        .routes(routes!(gpus::cordon, gpus::uncordon))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::set, nodes::remove))
        .routes(routes!(nodes::drain, nodes::undrain))
        .routes(routes!(nodes::refresh))
        .routes(routes!(doctor::show))
        .routes(routes!(history::node))
        .routes(routes!(history::cluster))
        .routes(routes!(images::list))
        .routes(routes!(images::pull))
        .routes(routes!(images::adopt))
        .routes(routes!(images::pin))
        .routes(routes!(images::unpin))
        .routes(routes!(images::prune))
        .routes(routes!(volumes::list))
        .routes(routes!(volumes::remove))
        .routes(routes!(workspaces::list, workspaces::add))
        .routes(routes!(workspaces::show, workspaces::set, workspaces::remove))
        .routes(routes!(workspaces::digests))
        .routes(routes!(sessions::list, sessions::create))
        .routes(routes!(sessions::show, sessions::remove))
        .routes(routes!(sessions::explain))
        .routes(routes!(sessions::secret))
        .routes(routes!(sessions::logs))
        .routes(routes!(commands::stop))
        .routes(routes!(commands::start))
        .routes(routes!(commands::pause))
        .routes(routes!(commands::resume))
        .routes(routes!(commands::keepalive))
        .routes(routes!(commands::extend))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
}

/// The API as its listeners serve it.
pub(super) fn api(app: Arc<App>, allowed: AllowedHosts) -> Router {
    let (cluster, clock) = (app.api.cluster.clone(), app.api.clock.clone());
    let (node, events) = (cluster.host().settings.state().name.clone(), cluster.host().events.clone());
    let token_of: TokenOf = Arc::new(move |text| cluster.catalogue().token_of(text, clock.now()).cloned());
    let router = Router::from(operations()).layer(from_fn_with_state(app.clone(), name_leader)).with_state(app.clone());
    guarded(router, Gate { node, token_of, events }, allowed).route_layer(from_fn_with_state(app, measure))
}

/// What the status listener serves without a token. It does not check the host name: everyone who reaches
/// the port may read what it serves.
pub(super) fn status_only(app: Arc<App>) -> Router {
    let router = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/healthz", get(health::healthz))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/status", get(status::brief))
        .with_state(app.clone());
    dressed(with_fallbacks(router.route_layer(from_fn_with_state(app, measure))))
}

/// The checks in this order: host and origin, then whether the operation exists, then the caller's role.
fn guarded(router: Router, gate: Gate, allowed: AllowedHosts) -> Router {
    let router = with_fallbacks(router.route_layer(from_fn_with_state(gate, authorise)));
    dressed(router.layer(from_fn_with_state(allowed, same_site)))
}

fn with_fallbacks(router: Router) -> Router {
    router.fallback(no_path).method_not_allowed_fallback(no_method)
}

/// Gives every response the form of the API, including the response after a panic.
fn dressed(router: Router) -> Router {
    router.layer(CatchPanicLayer::custom(panicked)).layer(map_response(sealed))
}

async fn no_path(request: Request) -> Refusal {
    Refusal::not_found(format!("no such path: {}", request.uri().path()))
}

async fn no_method(request: Request) -> Refusal {
    let message = format!("method {} is not allowed for {}", request.method(), request.uri().path());
    Refusal::new(ErrorCode::Invalid, message).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// Adds the leader that this node knows to every response to an authorised caller. Open operations reveal nothing.
async fn name_leader(State(app): Shared, request: Request, next: Next) -> Response {
    let is_authorised = request.extensions().get::<Actor>().is_some();
    let mut response = next.run(request).await;
    let leader = app.api.cluster.leader().filter(|_| is_authorised);
    if let Some(name) = leader.and_then(|(_, name)| HeaderValue::from_str(name.as_str()).ok()) {
        response.headers_mut().insert(LEADER, name);
    }
    response
}

/// The panic's message goes to the log only: it may contain what a caller must not know.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Refusal::new(ErrorCode::Internal, "internal error of the agent; see its log").into_response()
}

/// Responses contain secrets and change all the time: forbids caches, and forbids browsers to guess the type.
async fn sealed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::access::{Admin, Peer};
    use crate::types::{ErrorBody, sample};
    use axum::Extension;
    use axum::body::Body;
    use axum::routing::post;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use tower::ServiceExt;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const TCP: Peer = Peer::Tcp { remote: SocketAddr::new(LOOPBACK, 5), local: SocketAddr::new(LOOPBACK, 7481) };

    /// The real middleware around operations that do nothing, at paths of the access table.
    fn router() -> Router {
        let routes = Router::new()
            .route("/livez", get(|| async { "lives" }))
            .route("/v1/status", get(|| async { "status" }))
            .route("/v1/tokens", get(|| async { "tokens" }).post(|| async { "token" }))
            .route("/v1/nodes/{node}/drain", post(async |Extension(by): Extension<Actor>| by.to_string()))
            .route("/v1/nodes", get(panics));
        let token_of: TokenOf = Arc::new(|text| text.parse().ok().map(sample::api_token));
        let gate = Gate { node: "host-a".parse().unwrap(), token_of, events: crate::events::recorder::nowhere() };
        let allowed = Arc::from(["ostler.example.com".to_owned()]);
        guarded(routes, gate, tokio::sync::watch::channel(allowed).1)
    }

    async fn panics() -> &'static str {
        panic!("in a handler")
    }

    async fn send(method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        send_as(TCP, method, path, headers).await
    }

    async fn send_as(peer: Peer, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path).extension(peer);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost:7481");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn code(response: Response) -> (u16, ErrorCode) {
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice::<ErrorBody>(&body).unwrap().error.code)
    }

    #[tokio::test]
    async fn an_operation_requires_its_role() {
        let token = |role: &'static str| [("authorization", role)];
        assert_eq!(send("GET", "/livez", &[]).await.status(), 200);
        assert_eq!(code(send("GET", "/v1/status", &[]).await).await, (401, ErrorCode::Unauthorized));
        assert_eq!(send("GET", "/v1/status", &token("Bearer read")).await.status(), 200);
        assert_eq!(send("HEAD", "/v1/status", &token("Bearer read")).await.status(), 200);
        assert_eq!(code(send("POST", "/v1/tokens", &token("Bearer operate")).await).await, (403, ErrorCode::Forbidden));
        assert_eq!(send("POST", "/v1/tokens", &token("Bearer admin")).await.status(), 200);
    }

    #[tokio::test]
    async fn an_operation_gets_its_actor() {
        let body = async |response: Response| {
            assert_eq!(response.status(), 200);
            axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap()
        };
        let drain = "/v1/nodes/self/drain";
        let root = Peer::Socket { admin: Some(Admin { uid: 0, name: Some("root".into()) }) };
        assert_eq!(body(send_as(root, "POST", drain, &[]).await).await, "root (uid 0)");
        let token = send("POST", drain, &[("authorization", "Bearer admin")]).await;
        assert_eq!(body(token).await, "token ci (abcdefgh)");
    }

    #[tokio::test]
    async fn unknown_paths_and_methods_are_errors_of_the_api() {
        assert_eq!(code(send("GET", "/nowhere", &[]).await).await, (404, ErrorCode::NotFound));
        let response = send("DELETE", "/v1/tokens", &[]).await;
        assert_eq!(response.headers()["allow"], "GET,HEAD,POST");
        assert_eq!(code(response).await, (405, ErrorCode::Invalid));
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let response = send("GET", "/v1/nodes", &[("authorization", "Bearer read")]).await;
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(code(response).await, (500, ErrorCode::Internal));
    }

    #[tokio::test]
    async fn health_answers_to_every_host_and_to_none() {
        for method in ["GET", "HEAD"] {
            for headers in [&[("host", "evil.example")][..], &[("host", "a b")], &[("host", "a"), ("host", "b")]] {
                assert_eq!(send(method, "/livez", headers).await.status(), 200, "{method} {headers:?}");
            }
            let request = Request::builder().method(method).uri("/livez").extension(TCP).body(Body::empty()).unwrap();
            assert_eq!(router().oneshot(request).await.unwrap().status(), 200, "{method} without Host");
        }
    }

    #[tokio::test]
    async fn foreign_hosts_and_origins_are_rejected_first() {
        let read = ("authorization", "Bearer read");
        for path in ["/v1/status", "/nowhere", "/livez/x"] {
            assert_eq!(code(send("GET", path, &[read, ("host", "evil.example")]).await).await.0, 403, "{path}");
        }
        assert_eq!(code(send("POST", "/livez", &[("host", "evil.example")]).await).await.0, 403);
        assert_eq!(send("GET", "/v1/status", &[read, ("host", "ostler.example.com")]).await.status(), 200);
        let foreign = [("authorization", "Bearer admin"), ("origin", "https://evil.example")];
        assert_eq!(code(send("POST", "/v1/tokens", &foreign).await).await.0, 403);
        let own = [("authorization", "Bearer admin"), ("origin", "http://localhost:7481")];
        assert_eq!(send("POST", "/v1/tokens", &own).await.status(), 200);
    }
}
