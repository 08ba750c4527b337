//! Several agents of this build as one cluster on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::http::{Answer, Connection};
use crate::process::Process;

/// A token for clusters that last minutes. It follows the rules for tokens.
const TOKEN: &str = "q3ZbJ0rTn8wVx5LkPy2sHd7fGm4cAe9uXo1iKt6vRjM";
/// How long an expected event may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is checked.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// How long one request may take: a frozen node never answers.
const LOOK: Duration = Duration::from_secs(5);
/// Host ports of sessions, below the kernel's range of ephemeral ports: the first one, and the number for each node.
const FIRST_PORT: usize = 10_000;
const PORTS_EACH: usize = 100;

/// A node, reached through its agent's socket.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

impl Node {
    /// Sends a request on a new connection, like a client that has none yet.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        self.connect().await?.ask(method, path, headers, body).await
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        Connection::over(UnixStream::connect(self.folder.join("agent.sock")).await?).await
    }

    /// The body of an answer. Fails if it is no success or takes longer than [`LOOK`].
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let Answer { status, body } = timeout(LOOK, self.ask("GET", path, &[], None)).await??;
        ensure!(status.is_success(), "GET {path} at {}: {status}: {body}", self.name);
        Ok(body)
    }

    /// Makes a change. Fails if the answer is no success or takes longer than [`LOOK`].
    pub(crate) async fn put(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let Answer { status, body } = timeout(LOOK, self.ask(method, path, &[], Some(body))).await??;
        ensure!(status.is_success(), "{method} {path} at {}: {status}: {body}", self.name);
        Ok(body)
    }

    /// The leader that it follows, the term, and how many nodes it knows.
    pub(crate) async fn follows(&self) -> Result<(Option<String>, u64, usize)> {
        let status = self.get("/v1/status").await?;
        let cluster = &status["cluster"];
        let nodes = usize::try_from(cluster["nodes"].as_u64().unwrap_or_default())?;
        let leader = cluster["leader"]["name"].as_str().map(str::to_owned);
        Ok((leader, cluster["term"].as_u64().unwrap_or_default(), nodes))
    }

    /// How many nodes this one itself sees alive. It reads the metrics, because `/v1/nodes` is the leader's view.
    pub(crate) async fn alive_seen(&self) -> Result<usize> {
        let metrics = self.get("/metrics").await?;
        let text = metrics.as_str().context("metrics are text")?;
        let line = text.lines().find(|line| line.starts_with("ostler_nodes{") && line.contains("state=\"alive\""));
        let count = line.and_then(|line| line.rsplit(' ').next()).context("no count of nodes")?;
        Ok(count.trim_end_matches(".0").parse()?)
    }

    /// The sessions of the process runtime on this host: each has a directory.
    pub(crate) fn kept_sessions(&self) -> BTreeSet<String> {
        const ID: usize = 26;
        let entries = fs::read_dir(self.folder.join("data/process")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.len() == ID).collect()
    }
}

/// Agents of one cluster. Dropping it kills them all.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    processes: Vec<Option<Process>>,
    root: TempDir,
}

/// The seeds of each node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seeds {
    Everybody,
    /// The first node; the second for the first node itself.
    One,
}

impl Cluster {
    /// Prepares nodes `n0`, `n1`, … without starting them. Their configuration is `extra` and each node's own sections.
    pub(crate) fn prepare(size: usize, seeds: Seeds, extra: &str) -> Result<Self> {
        let root = tempfile::tempdir()?;
        // Under root, sessions run as another user, which must be able to enter the directory.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
        let token = root.path().join("token");
        fs::write(&token, TOKEN)?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        let name = format!("bench-{}", std::process::id());
        let mesh = free_ports(size)?;
        let mut nodes = Vec::new();
        for (i, listen) in mesh.iter().enumerate() {
            let folder = root.path().join(format!("n{i}"));
            fs::create_dir(&folder)?;
            let asked: Vec<String> = match seeds {
                Seeds::Everybody => mesh.iter().filter(|other| *other != listen).map(|o| format!("\"{o}\"")).collect(),
                Seeds::One => vec![format!("\"{}\"", mesh[usize::from(i == 0)])],
            };
            let (at, first) = (folder.display(), FIRST_PORT + i * PORTS_EACH);
            let config = format!(
                "{extra}\n\
                 [node]\nname = \"n{i}\"\ndata_dir = \"{at}/data\"\n\
                 [cluster]\nname = \"{name}\"\ntoken_file = \"{}\"\nlisten = \"{listen}\"\nseeds = [{}]\n\
                 [http]\nlisten = \"127.0.0.1:0\"\nsocket = \"{at}/agent.sock\"\n\
                 [runtime]\nkind = \"process\"\nport_range = \"{first}-{}\"\n\
                 [limits]\nmin_free_disk = 0\n",
                token.display(),
                asked.join(", "),
                first + PORTS_EACH - 1
            );
            fs::write(folder.join("ostler.toml"), config)?;
            nodes.push(Node { name: format!("n{i}"), folder });
        }
        let processes = nodes.iter().map(|_| None).collect();
        Ok(Self { nodes, processes, root })
    }

    /// Prepares the nodes, starts them, and waits until they follow one leader.
    pub(crate) async fn start(size: usize, extra: &str) -> Result<Self> {
        let mut cluster = Self::prepare(size, Seeds::Everybody, extra)?;
        for node in 0..size {
            cluster.spawn(node)?;
        }
        cluster.settled().await?;
        Ok(cluster)
    }

    /// Starts a node's agent without waiting for it.
    pub(crate) fn spawn(&mut self, node: usize) -> Result<()> {
        let folder = &self.nodes[node].folder;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
        command.args(["agent", "--dev", "--config"]).arg(folder.join("ostler.toml"));
        self.processes[node] = Some(Process::start(&mut command, &folder.join("log"))?);
        Ok(())
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.processes[node] = None;
    }

    /// Freezes the agent with SIGSTOP, or continues it.
    pub(crate) fn freeze(&self, node: usize, freeze: bool) -> Result<()> {
        self.process(node)?.signal(if freeze { Signal::STOP } else { Signal::CONT })
    }

    pub(crate) fn process(&self, node: usize) -> Result<&Process> {
        self.processes[node].as_ref().context("the agent is not running")
    }

    /// The nodes whose agents run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.processes[*node].is_some()).collect()
    }

    /// Waits until every running node follows one running leader, and the leader sees all of them alive.
    pub(crate) async fn settled(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match self.one_leader().await {
                Ok(leader) => match self.all_alive(leader).await {
                    Ok(()) => return Ok(leader),
                    Err(why) => why,
                },
                Err(why) => why,
            };
            ensure!(Instant::now() < deadline, "the cluster does not settle: {why:#}");
            sleep(POLL).await;
        }
    }

    /// The leader that every running node follows. Fails if they follow more than one, or none.
    pub(crate) async fn one_leader(&self) -> Result<usize> {
        let mut leaders = BTreeMap::new();
        for node in self.running() {
            let (leader, term, _) = self.nodes[node].follows().await?;
            let followers: &mut Vec<String> = leaders.entry(leader).or_default();
            followers.push(format!("{} (term {term})", self.nodes[node].name));
        }
        let [Some(leader)] = leaders.keys().collect::<Vec<_>>()[..] else { bail!("no common leader: {leaders:?}") };
        let leader = leader.strip_prefix('n').and_then(|n| n.parse().ok()).context("a node's name")?;
        ensure!(self.processes.get(leader).is_some_and(Option::is_some), "n{leader} is the leader and is not running");
        Ok(leader)
    }

    async fn all_alive(&self, leader: usize) -> Result<()> {
        let nodes = self.nodes[leader].get("/v1/nodes").await?;
        let alive = |node: &&Value| node["state"] == "alive";
        let alive = nodes["items"].as_array().into_iter().flatten().filter(alive).count();
        let running = self.running().len();
        ensure!(alive == running, "{alive} of {running} are alive");
        Ok(())
    }

    /// Adds a workspace whose sessions sleep for `lasts`, and waits until every node has it.
    pub(crate) async fn workspace(&self, name: &str, lasts: Duration, more: &Value) -> Result<()> {
        let mut workspace = json!({
            "name": name, "command": ["sleep", lasts.as_secs().to_string()],
            "cores": 0.01, "memory_bytes": "8MiB",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            workspace[key] = value.clone();
        }
        self.nodes[0].put("POST", "/v1/workspaces", &workspace).await?;
        let deadline = Instant::now() + PATIENCE;
        for node in &self.nodes {
            while node.get(&format!("/v1/workspaces/{name}")).await.is_err() {
                ensure!(Instant::now() < deadline, "workspace {name} does not reach {}", node.name);
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Removes every session, and waits until none is left.
    pub(crate) async fn clear(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let node = &self.nodes[self.settled().await?];
        loop {
            let listed = node.get("/v1/sessions?limit=500").await?;
            let sessions: Vec<&str> =
                listed["items"].as_array().into_iter().flatten().filter_map(|session| session["id"].as_str()).collect();
            if sessions.is_empty() && self.nodes.iter().all(|node| node.kept_sessions().is_empty()) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} sessions are not removed", sessions.len());
            for session in sessions {
                timeout(LOOK, node.ask("DELETE", &format!("/v1/sessions/{session}"), &[], None)).await??;
            }
            sleep(POLL).await;
        }
    }

    /// Stops every agent with SIGTERM.
    pub(crate) fn stop(&mut self) -> Result<()> {
        for process in self.processes.iter().flatten() {
            process.signal(Signal::TERM)?;
        }
        for process in &mut self.processes {
            if let Some(mut process) = process.take() {
                process.stop()?;
            }
        }
        Ok(())
    }

    /// Keeps the agents' files after the drop, to look for the reason of a failure.
    pub(crate) fn keep_files(&mut self) -> &Path {
        self.root.disable_cleanup(true);
        self.root.path()
    }
}

/// Distinct UDP addresses on loopback that no process uses now.
fn free_ports(count: usize) -> Result<Vec<String>> {
    let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    sockets.iter().map(|socket| Ok(socket.local_addr()?.to_string())).collect()
}
