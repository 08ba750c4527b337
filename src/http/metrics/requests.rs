//! How long requests take, and which streams are open.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::Shared;
use crate::http::access::operation;
use crate::metrics::{LevelBy, Raised, Registry, Source, TimesBy};
use crate::types::words;

/// Seconds. Few, since each operation has its own: a reading takes a millisecond, a change some tens.
const DURATION: &[f64] = &[0.01, 0.1, 1.0];

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Streaming {
    Events,
    Logs,
}
words!(Streaming { Events => "events", Logs => "logs" });

/// What the API counts.
#[derive(Debug)]
pub(in crate::http) struct Requests {
    durations: TimesBy,
    streams: LevelBy,
}

impl Default for Requests {
    fn default() -> Self {
        let streams = LevelBy::new("kind", Streaming::ALL.iter().map(|kind| kind.as_str()));
        Self { durations: TimesBy::new(DURATION), streams }
    }
}

impl Requests {
    /// Counts a stream until the answer is dropped.
    pub(in crate::http) fn open(&self, kind: Streaming) -> Raised {
        self.streams.of(kind.as_str()).raise()
    }

    pub(super) fn answered(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let class = format!("{}xx", status.as_u16() / 100);
        let labels = vec![("method", method.to_string()), ("route", route.to_owned()), ("class", class)];
        self.durations.observe(&labels, took);
    }
}

impl Source for Requests {
    fn register(&self, registry: &mut Registry<'_>) {
        let help = "From the head of a request until the head of its answer; without streams and answers that wait";
        registry.times_by("http_request_duration_seconds", help, &self.durations);
        registry.level_by("http_streams", "Open streams of the API, by what they carry", &self.streams);
    }
}

/// Measures a request for an operation that exists: whatever else a client asks for must not become a label.
pub(in crate::http) async fn measure(State(app): Shared, route: MatchedPath, request: Request, next: Next) -> Response {
    match operation(request.method(), route.as_str()) {
        Some((method, path, _)) => measured(&app.requests, (method, path), request, next).await,
        None => next.run(request).await,
    }
}

async fn measured(requests: &Requests, (method, path): (&Method, &str), request: Request, next: Next) -> Response {
    let may_wait = may_wait(request.uri().query());
    let began = Instant::now();
    let response = next.run(request).await;
    if !may_wait && !is_stream(&response) {
        requests.answered(method, path, response.status(), began.elapsed());
    }
    response
}

/// Whether the answer is held until something happens, or goes on while it happens.
fn may_wait(query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or_default().split('&');
    parameters.any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        ["wait", "follow"].contains(&name) && value != "false"
    })
}

fn is_stream(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::scrape;
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use std::sync::Arc;
    use tower::ServiceExt;

    async fn ask(router: &Router, path: &str) {
        let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
        let _ = router.clone().oneshot(request).await.unwrap();
    }

    #[tokio::test]
    async fn requests_are_measured_by_route_and_class_but_not_those_that_wait() {
        let requests: Arc<Requests> = Arc::default();
        let shared = Arc::clone(&requests);
        let layer = from_fn(move |route: MatchedPath, request: Request, next: Next| {
            let requests = Arc::clone(&shared);
            async move { measured(&requests, (&Method::GET, route.as_str()), request, next).await }
        });
        let router = Router::new()
            .route("/sessions/{id}", get(|| async { "here" }))
            .route("/busy", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route("/events", get(|| async { ([(header::CONTENT_TYPE, "text/event-stream")], "").into_response() }))
            .route_layer(layer);
        for path in ["/sessions/a", "/sessions/b?wait=false", "/sessions/c?timeout=1s&wait=running", "/busy", "/events"]
        {
            ask(&router, path).await;
        }
        ask(&router, "/sessions/a?follow=true").await;
        ask(&router, "/nothing").await;
        let text = scrape(&*requests);
        let counted: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("http_request_duration_seconds_count")).collect();
        assert_eq!(counted.len(), 2, "{text}");
        assert!(counted.contains(&"{method=\"GET\",route=\"/sessions/{id}\",class=\"2xx\"} 2"), "{text}");
        assert!(counted.contains(&"{method=\"GET\",route=\"/busy\",class=\"5xx\"} 1"), "{text}");
    }

    #[test]
    fn a_stream_counts_until_it_ends() {
        let requests = Requests::default();
        let (one, _two) = (requests.open(Streaming::Logs), requests.open(Streaming::Logs));
        assert!(scrape(&requests).contains("http_streams{kind=\"logs\"} 2\n"));
        drop(one);
        let text = scrape(&requests);
        assert!(text.contains("http_streams{kind=\"logs\"} 1\n") && text.contains("{kind=\"events\"} 0\n"), "{text}");
    }
}
