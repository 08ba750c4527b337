//! What a demo is to be: where, on what, under which names. Everything follows from it, so that
//! whoever knows the plan can clear away what came of it.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::cli::failure::Failure;
use crate::daemon::this_program;
use crate::types::Name;

/// The repository of the demo's images; each demo has a tag of its own.
pub(super) const REPOSITORY: &str = "ostler-demo";
/// What the name of a demo's cluster begins with.
const PREFIX: &str = "demo-";
/// Ports for the sessions of one demo. It has a handful.
const PORTS: u16 = 100;
/// Where those ports may lie: below what the kernel gives to clients.
const FIRST_PORT: u16 = 20_000;
/// How many such ranges there are, of which chance picks one: two demos side by side seldom meet.
const RANGES: u16 = 99;
/// A socket's path may have 108 bytes. This leaves room for the demo's own part of it.
const MAX_PARENT: usize = 60;

/// A demo to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Does not exist yet.
    pub(super) directory: PathBuf,
    /// No other cluster has this name: what is labelled with it is the demo's.
    pub(super) cluster: Name,
    /// This program's file.
    pub(super) program: PathBuf,
    pub(super) engine: Engine,
    pub(super) first_port: u16,
}

/// What runs the sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Engine {
    /// `unix:///…`
    Docker {
        host: String,
    },
    Process,
}

impl Plan {
    pub(super) fn new(engine: Engine) -> Result<Self, Failure> {
        let mut random = [0; 6];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Failure::Failed("the system has no random numbers".to_owned()))?;
        let cluster = format!("{PREFIX}{}", HEXLOWER.encode(&random[..4]));
        let program = this_program().map_err(|e| Failure::Failed(format!("{e:#}")))?;
        Ok(Self {
            directory: parent().join(format!("ostler-{cluster}")),
            cluster: cluster.parse().map_err(Failure::Failed)?,
            program,
            engine,
            first_port: FIRST_PORT + PORTS * (u16::from_le_bytes([random[4], random[5]]) % RANGES),
        })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("ostler.sock")
    }

    /// The agent's configuration file.
    pub(super) fn configuration(&self) -> PathBuf {
        self.directory.join("ostler.toml")
    }

    /// What the agent prints.
    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    pub(super) fn catalogue(&self) -> PathBuf {
        self.directory.join("catalogue.toml")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// There while the image is being made: one that is not there yet may still come.
    pub(super) fn importing(&self) -> PathBuf {
        self.directory.join("importing")
    }

    /// The copy of this program that sessions run where they are another user, who may not reach the original.
    pub(super) fn program_for_others(&self) -> PathBuf {
        self.directory.join("ostler")
    }

    /// Whether sessions run as another user than the demo.
    pub(super) fn sessions_are_others(&self) -> bool {
        self.engine == Engine::Process && rustix::process::geteuid().is_root()
    }

    pub(super) fn image(&self) -> String {
        format!("{REPOSITORY}:{}", self.tag())
    }

    pub(super) fn tag(&self) -> &str {
        let cluster = self.cluster.as_str();
        cluster.strip_prefix(PREFIX).unwrap_or(cluster)
    }

    /// The text of the agent's configuration.
    pub(super) fn configuration_text(&self) -> String {
        let text = |path: &Path| quoted(&path.display().to_string());
        let runtime = match &self.engine {
            Engine::Docker { host } => {
                format!("kind = \"docker\"\ndocker_host = {}\n", quoted(host))
            }
            Engine::Process => "kind = \"process\"\n".to_owned(),
        };
        let (first, last) = (self.first_port, self.first_port + PORTS - 1);
        format!(
            "[node]\ndata_dir = {}\n\n[cluster]\nname = \"{}\"\ntoken_file = {}\n\n\
             [http]\nlisten = \"127.0.0.1:0\"\nsocket = {}\n\n\
             [runtime]\n{runtime}port_range = \"{first}-{last}\"\n\
             publish_address = \"127.0.0.1\"\nendpoint_host = \"127.0.0.1\"\n\n\
             [limits]\nmin_free_disk = 0\n",
            text(&self.data()),
            self.cluster,
            text(&self.directory.join("token")),
            text(&self.socket()),
        )
    }
}

/// As a string of TOML, which takes every escape of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The directory for temporary files, unless its name is too long for a socket in it, or others, as whom
/// sessions of root run, may not pass through it.
fn parent() -> PathBuf {
    let suits = |directory: &PathBuf| directory.as_os_str().len() <= MAX_PARENT && is_passable(directory);
    [env::temp_dir(), "/tmp".into(), "/var/tmp".into()].into_iter().find(suits).unwrap_or_else(env::temp_dir)
}

fn is_passable(directory: &Path) -> bool {
    let passes = |above: &Path| fs::metadata(above).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    directory.is_absolute() && (!rustix::process::geteuid().is_root() || directory.ancestors().all(passes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};
    use crate::types::RuntimeKind;

    fn parsed(plan: &Plan) -> Config {
        let environment = Environment { host_name: "desk".to_owned(), docker_host: None, log_level: None };
        Config::parse(&plan.configuration_text(), None, true, &environment).unwrap()
    }

    #[test]
    fn the_agents_configuration_is_sound_and_stays_in_its_place() {
        for engine in [Engine::Process, Engine::Docker { host: "unix:///run/d \"x\".sock".to_owned() }] {
            let mut plan = Plan::new(engine.clone()).unwrap();
            plan.directory = "/tmp/a \"b\"".into();
            let config = parsed(&plan);
            for path in [&config.data_dir, &config.cluster.token_file, &config.http.socket] {
                assert!(path.starts_with(&plan.directory), "{}", path.display());
            }
            assert_eq!(config.cluster.name, plan.cluster);
            assert!(config.runtime.publish_address.is_loopback());
            let kind = if engine == Engine::Process { RuntimeKind::Process } else { RuntimeKind::Docker };
            assert_eq!(config.runtime.kind, kind);
        }
    }

    #[test]
    fn two_demos_have_nothing_in_common() {
        let plan = || Plan::new(Engine::Process).unwrap();
        let (one, other) = (plan(), plan());
        assert_ne!(one.directory, other.directory);
        assert_ne!(one.cluster, other.cluster);
        assert!(one.socket().as_os_str().len() < 100);
    }
}
