//! The programs that the benchmark starts besides the agents: an engine, and a registry.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use bollard::{API_DEFAULT_VERSION, Docker};
use rustix::process::geteuid;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::agents::{PATIENCE, POLL};
use crate::process::Process;

const TOOLS: [&str; 4] = ["docker", "dockerd", "docker-registry", "ip"];
/// With `--bridge=none`, dockerd removes `docker0`, which is that of the host's engine.
const BRIDGE: &str = "ostler-bench";
/// How long the engine may take for an answer, in seconds.
const LOOK_SECS: u64 = 5;

/// Whether a second engine and a registry can run here.
pub(crate) fn available() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    geteuid().is_root() && TOOLS.iter().all(|tool| std::env::split_paths(&paths).any(|path| path.join(tool).exists()))
}

/// A Docker engine with no image. Dropping it ends it.
pub(crate) struct Engine {
    process: Process,
    folder: TempDir,
    _bridge: Bridge,
}

/// The network bridge of the engine. Dropping it removes it.
struct Bridge;

impl Bridge {
    fn add() -> Result<Self> {
        let added = Command::new("ip").args(["link", "add", "name", BRIDGE, "type", "bridge"]).status()?;
        ensure!(added.success(), "cannot add the network bridge; if it exists: ip link delete {BRIDGE}");
        Ok(Self)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", BRIDGE]).status();
    }
}

impl Engine {
    pub(crate) async fn start(storage_driver: &str) -> Result<Self> {
        let bridge = Bridge::add()?;
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        // Not that of the host.
        fs::write(at("daemon.json"), "{}")?;
        let mut command = Command::new("dockerd");
        command
            .args(["--storage-driver", storage_driver, "--bridge", BRIDGE, "--iptables=false", "--ip-masq=false"])
            .args(["--host", &format!("unix://{}", at("d.sock").display())])
            .args(["--config-file".as_ref(), at("daemon.json").as_os_str()])
            .args(["--data-root".as_ref(), at("data").as_os_str()])
            .args(["--exec-root".as_ref(), at("exec").as_os_str()])
            .args(["--pidfile".as_ref(), at("pid").as_os_str()]);
        let process = Process::start(&mut command, &at("log"))?;
        let (engine, deadline) = (Self { process, folder, _bridge: bridge }, Instant::now() + PATIENCE);
        while !engine.answers().await {
            let log = || fs::read_to_string(engine.path("log")).unwrap_or_default();
            ensure!(Instant::now() < deadline, "dockerd does not answer:\n{}", log());
            sleep(POLL).await;
        }
        Ok(engine)
    }

    /// The engine's address, as for `docker_host`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("d.sock").display())
    }

    async fn answers(&self) -> bool {
        let Ok(docker) = Docker::connect_with_unix(&self.host(), LOOK_SECS, API_DEFAULT_VERSION) else { return false };
        docker.ping().await.is_ok()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // On SIGTERM the engine removes its mounts, without which its directory cannot be removed.
        let _ = self.process.stop();
    }
}

/// A registry on loopback. Dropping it ends it.
pub(crate) struct Registry {
    pub(crate) address: String,
    _process: Process,
    _store: TempDir,
}

impl Registry {
    pub(crate) async fn start() -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let store = tempfile::tempdir()?;
        let file = store.path().join("config.yml");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            store.path().display()
        );
        fs::write(&file, config)?;
        let mut command = Command::new("docker-registry");
        let process = Process::start(command.arg("serve").arg(&file), &store.path().join("log"))?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).await.is_err() {
            ensure!(Instant::now() < deadline, "the registry does not listen");
            sleep(POLL).await;
        }
        Ok(Self { address, _process: process, _store: store })
    }
}
