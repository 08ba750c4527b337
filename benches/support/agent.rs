//! An agent of this build in its own process, with its own data directory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::api::Api;

/// How long an agent may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to ask the agent whether it is ready.
const POLL: Duration = Duration::from_millis(1);

/// A data directory and a configuration, for one agent at a time.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new(runtime: &str, cluster: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = folder.path().display();
        let config = format!(
            "[node]\ndata_dir = \"{at}/data\"\n\
             [cluster]\nname = \"{cluster}\"\ntoken_file = \"{at}/token\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\nsocket = \"{at}/agent.sock\"\n\
             [settings]\ncores_override = 1000\nmemory_override = \"1TiB\"\n\
             [runtime]\nkind = \"{runtime}\"\n\
             [limits]\nmin_free_disk = 0\n"
        );
        fs::write(folder.path().join("ostler.toml"), config)?;
        Ok(Self(folder))
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) async fn start(&self) -> Result<Agent> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let started = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_ostler"))
            .args(["agent", "--dev", "--config"])
            .arg(self.0.path().join("ostler.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut agent = Agent { process };
        while !self.is_ready().await {
            if agent.process.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("the agent is not ready:\n{}", fs::read_to_string(self.log())?);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(agent)
    }

    pub(crate) async fn api(&self) -> Result<Api> {
        Api::connect(self.0.path().join("agent.sock")).await
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut api) = self.api().await else { return false };
        api.get("/readyz").await.is_ok()
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }
}

/// A running agent. Dropping it stops the agent.
pub(crate) struct Agent {
    pub(crate) process: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if pid.is_none_or(|pid| kill_process(pid, Signal::TERM).is_err()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}
