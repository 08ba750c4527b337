//! A caller of the agent's API that keeps its one connection open, as a server that makes sessions would.

use std::path::PathBuf;

use anyhow::{Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

pub(crate) struct Api {
    socket: PathBuf,
    connection: SendRequest<Full<Bytes>>,
}

impl Api {
    pub(crate) async fn connect(socket: PathBuf) -> Result<Self> {
        let connection = open(&socket).await?;
        Ok(Self { socket, connection })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await
    }

    /// Adds the workspace that every session is made from.
    pub(crate) async fn add_workspace(&mut self, workspace: &Value) -> Result<()> {
        self.ask("POST", "/v1/workspaces", Some(workspace)).await.map(drop)
    }

    /// Makes a session and answers its id once it runs.
    pub(crate) async fn create(&mut self, workspace: &str) -> Result<String> {
        let request = json!({ "workspace": workspace, "user": "bench" });
        let session = self.ask("POST", "/v1/sessions?wait=running", Some(&request)).await?;
        match (&session["state"], &session["id"]) {
            (Value::String(state), Value::String(id)) if state == "running" => Ok(id.clone()),
            _ => bail!("the session does not run: {session}"),
        }
    }

    /// Stops the session and answers once its container is gone.
    pub(crate) async fn remove(&mut self, session: &str) -> Result<()> {
        self.ask("DELETE", &format!("/v1/sessions/{session}?wait=true"), None).await.map(drop)
    }

    async fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        if self.connection.ready().await.is_err() {
            self.connection = open(&self.socket).await?; // the agent closes one that idles
        }
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = match body {
            Some(body) => request.header(CONTENT_TYPE, "application/json").body(Full::from(body.to_string()))?,
            None => request.body(Full::default())?,
        };
        let response = self.connection.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
    }
}

async fn open(socket: &PathBuf) -> Result<SendRequest<Full<Bytes>>> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
