//! Requests that the client library cannot make: a pull, whose answer is read message by message, and a `GET`.
//!
//! For a pull, the library writes credentials in another alphabet than the engine reads, and the engine ignores what it
//! cannot read: the pull would go on as anybody's. Of some answers, the library knows only the newest layout.

use std::fmt;
use std::time::Duration;

use bollard::errors;
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::http::request;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::progress::Message;
use crate::runtime::docker::engine::{Engine, Failure, LOOK};
use crate::runtime::images::{Identity, Login};
use crate::types::{ImageReference, Platform};

/// The pull in errors.
const PULL: &str = "pull";
/// Bytes of the longest message. An error may quote what a registry answered.
const MAX_MESSAGE: usize = 256 << 10;
/// The engine reads credentials from this header: JSON in the URL-safe alphabet of base64, with padding.
const CREDENTIALS: &str = "X-Registry-Auth";

/// The engine's answer to one pull. Dropping it ends the pull, unless another client waits for the same one.
pub(super) struct Messages {
    socket: String,
    body: Incoming,
    /// What came of a message that is not complete.
    buffer: BytesMut,
    /// Reads from and writes to the socket.
    _connection: JoinSet<()>,
}

impl Messages {
    /// Asks the engine to pull. `within`: until its answer begins, which it does once the registry has answered.
    pub(super) async fn open(
        engine: &Engine,
        image: &ImageReference,
        login: Option<&Login>,
        platform: Option<&Platform>,
        within: Duration,
    ) -> Result<Self, Failure> {
        let request = to_engine(engine, Method::POST, &path(image, platform)).await?;
        let request = match login {
            Some(login) => request.header(CREDENTIALS, credentials(login)),
            None => request,
        };
        let request = request.body(Empty::new()).map_err(|error| lost(engine, &error))?;
        let (mut sender, connection) = connect(engine, PULL).await?;
        let answered = timeout(within, sender.send_request(request)).await;
        let response = answered.map_err(|_| silent(engine, PULL, within))?.map_err(|error| lost(engine, &error))?;
        if !response.status().is_success() {
            return Err(said(engine, response).await);
        }
        let body = response.into_body();
        Ok(Self { socket: engine.socket().to_owned(), body, buffer: BytesMut::new(), _connection: connection })
    }

    /// The next message; `None`: the engine has done what it was asked to.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            if let Some(message) = take_message(&mut self.buffer).map_err(|odd| self.lost(&odd))? {
                return told(message).map(Some);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
                Some(Err(error)) => return Err(self.lost(&error.to_string())),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => return Err(self.lost("its answer ended within a message")),
            }
        }
    }

    fn lost(&self, why: &str) -> Failure {
        Failure::Lost(format!("{}: {why}", self.socket))
    }
}

/// The body of the engine's answer to `GET path`. `what` names the request in errors. An answer that does not come
/// within this time, or that has more bytes than `max`, is an error.
pub(super) async fn get(
    engine: &Engine,
    what: &str,
    path: &str,
    within: Duration,
    max: usize,
) -> Result<Bytes, Failure> {
    let answer = async {
        let request = to_engine(engine, Method::GET, path).await?;
        let request = request.body(Empty::new()).map_err(|error| lost(engine, &error))?;
        let (mut sender, _connection) = connect(engine, what).await?;
        let response = sender.send_request(request).await.map_err(|error| lost(engine, &error))?;
        if !response.status().is_success() {
            return Err(said(engine, response).await);
        }
        let body = Limited::new(response.into_body(), max).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| lost(engine, &error))
    };
    timeout(within, answer).await.unwrap_or_else(|_| Err(no_answer(engine, what, within)))
}

/// The head of a request, in the version of the API that both sides speak.
async fn to_engine(engine: &Engine, method: Method, path: &str) -> Result<request::Builder, Failure> {
    let version = engine.connection().await?.docker.client_version();
    Ok(Request::builder().method(method).uri(format!("/v{version}{path}")).header("Host", "docker"))
}

/// All characters of a reference and of a platform may stand in a query as they are.
fn path(image: &ImageReference, platform: Option<&Platform>) -> String {
    let tag = image.digest().or(image.tag()).unwrap_or_default();
    let platform = platform.map(|platform| format!("&platform={platform}")).unwrap_or_default();
    format!("/images/create?fromImage={}&tag={tag}{platform}", image.repository())
}

fn credentials(login: &Login) -> String {
    let server = &login.server;
    let said = match &login.identity {
        Identity::Password { user, password } => {
            serde_json::json!({"username": user, "password": password.reveal(), "serveraddress": server})
        }
        Identity::Token(token) => serde_json::json!({"identitytoken": token.reveal(), "serveraddress": server}),
    };
    BASE64URL.encode(said.to_string().as_bytes())
}

type Sender = http1::SendRequest<Empty<Bytes>>;

async fn connect(engine: &Engine, what: &str) -> Result<(Sender, JoinSet<()>), Failure> {
    let connected = timeout(LOOK, UnixStream::connect(engine.socket())).await;
    let connected = connected.map_err(|_| silent(engine, what, LOOK))?;
    let stream = connected.map_err(|err| engine.failure(&errors::Error::IOError { err }))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(engine, &error))?;
    let mut runs = JoinSet::new();
    // Its errors reach the reader of the answer, too.
    runs.spawn(async move { drop(connection.await) });
    Ok((sender, runs))
}

fn lost(engine: &Engine, error: &dyn fmt::Display) -> Failure {
    Failure::Lost(format!("{}: {error}", engine.socket()))
}

/// Perhaps the engine hangs.
fn silent(engine: &Engine, what: &str, within: Duration) -> Failure {
    engine.suspect.notify_one();
    no_answer(engine, what, within)
}

fn no_answer(engine: &Engine, what: &str, within: Duration) -> Failure {
    Failure::Lost(format!("no answer to `{what}` at {} within {} s", engine.socket(), within.as_secs()))
}

/// The engine's error in place of messages.
async fn said(engine: &Engine, response: Response<Incoming>) -> Failure {
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    let status = response.status();
    let body = timeout(LOOK, Limited::new(response.into_body(), MAX_MESSAGE).collect()).await;
    let Ok(Ok(body)) = body else {
        return Failure::Lost(format!("{}: status {status}, and no error that can be read", engine.socket()));
    };
    let body = body.to_bytes();
    let message = serde_json::from_slice::<Said>(&body).map(|said| said.message);
    let message = message.unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned());
    Failure::Said { status: status.as_u16(), message }
}

/// The first complete message of the buffer, taken out of it; `None`: more must come.
fn take_message(buffer: &mut BytesMut) -> Result<Option<Message>, String> {
    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
        let line = buffer.split_to(end + 1);
        let line = line.trim_ascii();
        if !line.is_empty() {
            return serde_json::from_slice(line).map(Some).map_err(|_| "a message cannot be read".to_owned());
        }
    }
    if buffer.len() > MAX_MESSAGE {
        return Err(format!("a message has more than {} KiB", MAX_MESSAGE >> 10));
    }
    Ok(None)
}

/// The message, unless it is an error.
fn told(mut message: Message) -> Result<Message, Failure> {
    /// Of an error that comes without a status.
    const INTERNAL: u16 = 500;
    match message.error() {
        Some((status, message)) => {
            Err(Failure::Said { status: status.unwrap_or(INTERNAL), message: message.trim().to_owned() })
        }
        None => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::images::Secret;

    #[test]
    fn credentials_are_in_the_alphabet_that_the_engine_reads() {
        let identity = Identity::Password { user: "alice".to_owned(), password: Secret::new("?>~".to_owned()) };
        let login = Login { server: "registry:5000".to_owned(), identity };
        let header = credentials(&login);
        assert!(!header.contains(['+', '/']) && header.len().is_multiple_of(4), "{header}");
        let read: serde_json::Value = serde_json::from_slice(&BASE64URL.decode(header.as_bytes()).unwrap()).unwrap();
        assert_eq!(read, serde_json::json!({"username": "alice", "password": "?>~", "serveraddress": "registry:5000"}));
        assert!(!format!("{login:?}").contains("?>~"), "{login:?}");
    }

    #[test]
    fn an_image_is_asked_for_by_tag_or_by_digest() {
        let path = |text: &str| path(&ImageReference::parse(text).unwrap(), None);
        assert_eq!(path("busybox"), "/images/create?fromImage=busybox&tag=latest");
        assert_eq!(path("r:5000/team/x:2"), "/images/create?fromImage=r:5000/team/x&tag=2");
        assert_eq!(path("x:2@sha256:ab"), "/images/create?fromImage=x&tag=sha256:ab");
        let arm = super::path(&ImageReference::parse("x:2").unwrap(), Some(&Platform::new("linux", "aarch64")));
        assert_eq!(arm, "/images/create?fromImage=x&tag=2&platform=linux/arm64");
    }

    #[test]
    fn messages_are_lines_however_they_arrive() {
        let mut buffer = BytesMut::new();
        let mut status = |bytes: &[u8]| {
            buffer.extend_from_slice(bytes);
            take_message(&mut buffer).map(|message| message.and_then(|message| message.status))
        };
        assert_eq!(status(b"\r\n{\"status\":"), Ok(None));
        assert_eq!(status(b"\"a\"}\r\n{\"status\":\"b\"}\n"), Ok(Some("a".to_owned())));
        assert_eq!(status(b""), Ok(Some("b".to_owned())));
        assert!(status(b"<html>\n").is_err());
        assert_eq!(status(&[b'x'; MAX_MESSAGE]), Ok(None));
        assert!(status(b"x").is_err(), "a line without end");
    }
}
