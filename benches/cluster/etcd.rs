//! Members of etcd as one cluster on loopback, called through their HTTP gateway.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::agents::{PATIENCE, POLL};
use crate::http::{Answer, Connection};
use crate::process::Process;

/// How long one request may take.
const LOOK: Duration = Duration::from_secs(5);

/// A cluster of etcd. Dropping it kills all members.
pub(crate) struct Etcd {
    members: Vec<Member>,
    processes: Vec<Option<Process>>,
    /// The members' peer addresses, as `--initial-cluster` takes them.
    initial: String,
    root: TempDir,
}

/// The addresses of a member.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    client: String,
    peer: String,
}

impl Member {
    /// Puts one value. Returns whether the member accepted it.
    pub(crate) async fn put(&self, key: &str) -> Result<bool> {
        let key = data_encoding::BASE64.encode(key.as_bytes());
        let Answer { status, .. } = self.ask("/v3/kv/put", &json!({ "key": key, "value": key })).await?;
        Ok(status.is_success())
    }

    /// The member's own id, and that of the leader that it follows.
    async fn status(&self) -> Result<(String, String)> {
        let Answer { status, body } = timeout(LOOK, self.ask("/v3/maintenance/status", &json!({}))).await??;
        ensure!(status.is_success(), "{status}: {body}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&body["header"]["member_id"]), text(&body["leader"])))
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Answer> {
        let mut connection = Connection::over(TcpStream::connect(&self.client).await?).await?;
        connection.ask("POST", path, &[], Some(body)).await
    }
}

impl Etcd {
    /// Starts `size` members and waits until they follow one leader; `None` if etcd is not installed.
    pub(crate) async fn start(size: usize) -> Result<Option<Self>> {
        let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !quiet(Command::new("etcd").arg("--version")).is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let root = tempfile::tempdir()?;
        let ports = free_ports(2 * size)?;
        let members: Vec<Member> =
            ports.chunks(2).map(|pair| Member { client: pair[0].clone(), peer: pair[1].clone() }).collect();
        let each = members.iter().enumerate().map(|(i, member)| format!("e{i}=http://{}", member.peer));
        let initial = each.collect::<Vec<_>>().join(",");
        let processes = members.iter().map(|_| None).collect();
        let mut etcd = Self { members, processes, initial, root };
        for member in 0..size {
            etcd.spawn(member)?;
        }
        etcd.settled().await?;
        Ok(Some(etcd))
    }

    pub(crate) fn member(&self, member: usize) -> Member {
        self.members[member].clone()
    }

    /// Starts a member with etcd's default heartbeats and timeouts.
    pub(crate) fn spawn(&mut self, member: usize) -> Result<()> {
        let Member { client, peer } = &self.members[member];
        let mut command = Command::new("etcd");
        command.arg("--name").arg(format!("e{member}"));
        command.arg("--data-dir").arg(self.root.path().join(format!("e{member}")));
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.arg(flag).arg(format!("http://{client}"));
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.arg(flag).arg(format!("http://{peer}"));
        }
        command.arg("--initial-cluster").arg(&self.initial);
        self.processes[member] = Some(Process::start(&mut command, &self.root.path().join(format!("log{member}")))?);
        Ok(())
    }

    pub(crate) fn kill(&mut self, member: usize) {
        self.processes[member] = None;
    }

    /// Waits until every member follows the same member, and returns that one.
    pub(crate) async fn settled(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.leader().await {
                Ok(leader) => return Ok(leader),
                Err(why) => ensure!(Instant::now() < deadline, "etcd does not settle: {why:#}"),
            }
            sleep(POLL).await;
        }
    }

    async fn leader(&self) -> Result<usize> {
        let mut ids = Vec::new();
        let mut followed = Vec::new();
        for member in &self.members {
            let (id, leader) = member.status().await?;
            ids.push(id);
            followed.push(leader);
        }
        ensure!(followed.iter().all(|leader| *leader == followed[0]), "the members follow {followed:?}");
        ids.iter().position(|id| *id == followed[0]).context("the members follow no member")
    }
}

/// Distinct TCP addresses on loopback that no process uses now.
fn free_ports(count: usize) -> Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}
