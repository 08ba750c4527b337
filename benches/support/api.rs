//! A client of the agent's API that keeps one connection open, like a server that creates sessions.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::http::{Answer, Connection};

pub(crate) struct Api {
    socket: PathBuf,
    connection: Connection,
}

impl Api {
    pub(crate) async fn connect(socket: PathBuf) -> Result<Self> {
        let connection = open(&socket).await?;
        Ok(Self { socket, connection })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await
    }

    /// Adds the workspace that every session is created from.
    pub(crate) async fn add_workspace(&mut self, workspace: &Value) -> Result<()> {
        self.ask("POST", "/v1/workspaces", Some(workspace)).await.map(drop)
    }

    /// Creates a session and returns its id once it runs.
    pub(crate) async fn create(&mut self, workspace: &str) -> Result<String> {
        let request = json!({ "workspace": workspace, "user": "bench" });
        let session = self.ask("POST", "/v1/sessions?wait=running", Some(&request)).await?;
        match (&session["state"], &session["id"]) {
            (Value::String(state), Value::String(id)) if state == "running" => Ok(id.clone()),
            _ => bail!("the session is not running: {session}"),
        }
    }

    /// Stops and removes the session, and returns once its container is gone.
    pub(crate) async fn remove(&mut self, session: &str) -> Result<()> {
        self.ask("DELETE", &format!("/v1/sessions/{session}?wait=true"), None).await.map(drop)
    }

    async fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        if !self.connection.is_open().await {
            self.connection = open(&self.socket).await?; // the agent closes idle connections
        }
        match self.connection.ask(method, path, &[], body).await? {
            Answer { status, body } if status.is_success() => Ok(body),
            Answer { status, body } => bail!("{method} {path}: {status}: {body}"),
        }
    }
}

async fn open(socket: &PathBuf) -> Result<Connection> {
    Connection::over(UnixStream::connect(socket).await?).await
}
