//! A client of one node's HTTP API.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes as Chunk;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::{Choice, Target};
use super::failure::{Failure, Refusal};
use super::output::Body;
use super::route::Route;
use super::transport;

/// Timeout of a request that does not ask the node to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Added to the wait that a request asks the node for, to get the request's timeout.
const WAIT_MARGIN: Duration = Duration::from_secs(10);
/// Larger than any page of a list: a larger answer does not come from ostler.
const MAX_BODY: usize = 64 << 20;
/// Most pages of one list. At 100 items each this is more than any cluster has; a server that sends more is broken.
const MAX_PAGES: usize = 1000;

/// One node's API.
pub(super) struct Client {
    target: Target,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

/// One request.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    route: Route,
    body: Option<Vec<u8>>,
    idempotency_key: Option<String>,
    accept: Option<&'static str>,
    last_event_id: Option<String>,
    timeout: Duration,
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Body,
}

impl Client {
    /// Reads the token and the CA. Does not connect yet.
    pub(super) fn new(choice: &Choice) -> Result<Self, Failure> {
        let token = choice.token.as_ref().map(|source| source.read_token()).transpose()?;
        let tls = match &choice.ca {
            Some(ca) => Some(transport::trust(&ca.read_ca()?)?),
            None => None,
        };
        Ok(Self { target: choice.target.clone(), token, tls })
    }

    pub(super) async fn get(&self, route: Route) -> Result<Body, Failure> {
        Ok(self.send(Call::new(Method::GET, route)).await?.body)
    }

    /// Every page of a list as one body, in the shape of a single page.
    pub(super) async fn list(&self, route: Route) -> Result<Body, Failure> {
        let mut whole = self.get(route.clone()).await?;
        for _ in 1..MAX_PAGES {
            let Some(cursor) = whole.next_cursor()? else { return Ok(whole) };
            whole = whole.followed_by(&self.get(route.clone().with("cursor", cursor)).await?)?;
        }
        Err(Failure::Failed(format!("the list does not end after {MAX_PAGES} pages")))
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// [`Failure::Unreachable`]: nothing was sent. [`Failure::Lost`]: the request was sent, and no full answer arrived.
    /// [`Failure::Api`]: the API answered with an error.
    pub(super) async fn send(&self, call: Call) -> Result<Answer, Failure> {
        let lost = call.lost();
        let deadline = tokio::time::Instant::now() + call.timeout;
        let response = self.open(call).await?;
        let status = response.status();
        let body = tokio::time::timeout_at(deadline, collect(response)).await.map_err(|_| lost("timed out"))??;
        Ok(Answer { status, body })
    }

    /// Sends a request whose answer is an open-ended stream. Only the head of the answer has a deadline.
    pub(super) async fn stream(&self, route: Route) -> Result<Incoming, Failure> {
        Ok(self.open(Call::new(Method::GET, route)).await?.into_body())
    }

    /// Sends a request whose answer is a stream of server-sent events. `last`: the id of the last one that was seen.
    pub(super) async fn events(&self, route: Route, last: Option<String>) -> Result<Incoming, Failure> {
        let call = Call { accept: Some("text/event-stream"), last_event_id: last, ..Call::new(Method::GET, route) };
        Ok(self.open(call).await?.into_body())
    }

    /// Sends a request and waits for the head of its answer.
    async fn open(&self, call: Call) -> Result<Response<Incoming>, Failure> {
        let stream = transport::dial(&self.target, self.tls.as_ref()).await?;
        let lost = call.lost();
        let timeout = call.timeout;
        let request = self.request(call)?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // The task ends with the exchange: when the answer is read or dropped.
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let late = || lost(&format!("no answer within {} s", timeout.as_secs()));
        let response = tokio::time::timeout(timeout, exchange).await.map_err(|_| late())?;
        let response = response.map_err(|e| lost(&format!("the connection was lost: {e}")))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response, timeout).await) }
    }

    fn request(&self, call: Call) -> Result<Request<Full<Chunk>>, Failure> {
        let host = match &self.target {
            Target::Socket(_) => "localhost".to_owned(),
            Target::Url(url) => url.authority(),
        };
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.route.to_string())
            .header(HOST, host)
            .header(USER_AGENT, concat!("ostler/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(accept) = call.accept {
            request = request.header("accept", accept);
        }
        if let Some(id) = call.last_event_id {
            request = request.header("last-event-id", id);
        }
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::from(call.body.unwrap_or_default()))
            .map_err(|e| Failure::Usage(format!("the request cannot be sent: {e}")))
    }
}

impl Call {
    pub(super) fn new(method: Method, route: Route) -> Self {
        Self {
            method,
            route,
            body: None,
            idempotency_key: None,
            accept: None,
            last_event_id: None,
            timeout: ANSWER_TIMEOUT,
        }
    }

    pub(super) fn post(route: Route) -> Self {
        Self::new(Method::POST, route)
    }

    pub(super) fn delete(route: Route) -> Self {
        Self::new(Method::DELETE, route)
    }

    pub(super) fn json(self, body: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::Failed(format!("cannot encode the request: {e}")))?;
        Ok(Self { body: Some(body), ..self })
    }

    pub(super) fn idempotency_key(self, key: &str) -> Self {
        Self { idempotency_key: Some(key.to_owned()), ..self }
    }

    /// For a request that asks the node to wait this long.
    pub(super) fn waiting(self, wait: Duration) -> Self {
        Self { timeout: wait.saturating_add(WAIT_MARGIN), ..self }
    }

    /// Returns a function that makes the failure of a request that was sent and not answered.
    fn lost(&self) -> impl Fn(&str) -> Failure + use<> {
        let doubt = if self.method == Method::GET { "" } else { "; the outcome of the request is unknown" };
        move |what| Failure::Lost(format!("{what}{doubt}"))
    }
}

async fn collect(response: Response<Incoming>) -> Result<Body, Failure> {
    let whole = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let whole =
        whole.map_err(|e| Failure::Lost(format!("the connection was lost before the end of the answer: {e}")))?;
    Ok(Body::new(whole.to_bytes()))
}

async fn refusal(response: Response<Incoming>, timeout: Duration) -> Failure {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    // The body only adds detail: it is worth a wait, but a failure to read it is no error of its own.
    let body = tokio::time::timeout(timeout, collect(response)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    Failure::Api(Box::new(Refusal::read(status, retry_after, body.as_bytes())))
}

impl Answer {
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.body.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::connection::Url;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each connection with the next of these texts; returns the requests.
    async fn serve(answers: Vec<&'static str>) -> (Client, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                asked.push(String::from_utf8_lossy(&head[..read]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        let target = Target::Url(Url::parse(&url).unwrap());
        (Client { target, token: Some("tok".to_owned()), tls: None }, server)
    }

    #[tokio::test]
    async fn a_request_carries_token_key_and_host() {
        let (client, server) = serve(vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]).await;
        let call = Call::post(Route::new(&["sessions"])).json(&1).unwrap().idempotency_key("k");
        assert_eq!(client.send(call).await.unwrap().status, 200);
        let asked = server.await.unwrap().remove(0).to_lowercase();
        for line in
            ["post /v1/sessions http/1.1", "authorization: bearer tok", "idempotency-key: k", "host: 127.0.0.1:"]
        {
            assert!(asked.contains(line), "{line} in {asked}");
        }
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_end() {
        let (client, server) = serve(vec![
            "HTTP/1.1 200 OK\r\ncontent-length: 35\r\n\r\n{\"items\":[1,2],\"next_cursor\":\"a b\"}",
            "HTTP/1.1 200 OK\r\ncontent-length: 33\r\n\r\n{\"items\":[3],\"next_cursor\":null} ",
        ])
        .await;
        let body = client.list(Route::new(&["nodes"])).await.unwrap();
        assert_eq!(body.as_bytes(), br#"{"items":[1,2,3],"next_cursor":null}"#);
        assert!(server.await.unwrap()[1].starts_with("GET /v1/nodes?cursor=a%20b "));
    }

    #[tokio::test]
    async fn a_connection_that_ends_before_the_answer_leaves_the_outcome_unknown() {
        let (client, _server) = serve(vec![""]).await;
        let failure = client.send(Call::post(Route::new(&["sessions"]))).await.unwrap_err();
        assert!(failure.is_outcome_unknown(), "{failure:?}");
        assert!(failure.to_string().contains("the outcome of the request is unknown"));
    }

    #[tokio::test]
    async fn an_error_is_read_with_its_body_and_retry_after() {
        let (client, _server) = serve(vec![concat!(
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\ncontent-length: 73\r\n\r\n",
            r#"{"error":{"code":"no_capacity","message":"full","retryable":true}}       "#
        )])
        .await;
        let Failure::Api(refusal) = client.get(Route::new(&["nodes"])).await.unwrap_err() else {
            panic!("not an error of the API");
        };
        assert_eq!((refusal.message.as_str(), refusal.retry_after_seconds), ("full", Some(7)));
    }
}
