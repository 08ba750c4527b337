//! The plan of a demo: its directory, its engine and its names. Everything that the demo creates follows
//! from the plan, so a process that has the plan can remove it all.

use std::env;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::sizes::Sizes;
use crate::cli::failure::Failure;
use crate::daemon::this_program;
use crate::types::Name;

/// The repository of the demo's images; each demo has a tag of its own.
pub(super) const REPOSITORY: &str = "ostler-demo";
/// The prefix of the name of a demo's cluster.
const PREFIX: &str = "demo-";
/// The names of the nodes. Each node has its own agent.
const NAMES: [&str; 3] = ["host-a", "host-b", "host-c"];
/// The number of nodes.
pub(super) const NODES: u64 = NAMES.len() as u64;
/// Ports for the sessions of one demo, which has about ten.
const PORTS: u16 = 100;
/// Ports of each agent. The agents share the host, so their ranges must not overlap.
const AGENT_PORTS: u16 = 33;
const _: () = assert!(AGENT_PORTS as usize * NAMES.len() <= PORTS as usize);
/// The lowest port of a demo. The ranges lie below the ports that the kernel gives to clients.
const FIRST_PORT: u16 = 20_000;
/// The number of ranges. Each demo picks one at random, so two demos at the same time rarely collide.
const RANGES: u16 = 99;
/// Most bytes of the parent directory's path. A socket's path may have 108 bytes; this leaves room for the demo's part.
const MAX_PARENT: usize = 60;

/// The plan of one demo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The demo's directory. It does not exist yet.
    pub(super) directory: PathBuf,
    /// No other cluster has this name, so every object labelled with it belongs to the demo.
    pub(super) cluster: Name,
    /// This program's file.
    pub(super) program: PathBuf,
    pub(super) engine: Engine,
    pub(super) first_port: u16,
    /// The UDP port of each agent's mesh, on loopback.
    pub(super) mesh_ports: [u16; NAMES.len()],
    /// The resources of the nodes, and the requests of the sessions.
    pub(super) sizes: Sizes,
}

/// One of the plan's agents, with its own files and ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agent<'a> {
    plan: &'a Plan,
    pub(super) index: usize,
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
    pub(super) fn new(engine: Engine, sizes: Sizes) -> Result<Self, Failure> {
        let mut random = [0; 6];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Failure::Failed("the system provides no random numbers".to_owned()))?;
        let cluster = format!("{PREFIX}{}", HEXLOWER.encode(&random[..4]));
        let program = this_program().map_err(|e| Failure::Failed(format!("{e:#}")))?;
        Ok(Self {
            directory: parent().join(format!("ostler-{cluster}")),
            cluster: cluster.parse().map_err(Failure::Failed)?,
            program,
            engine,
            first_port: FIRST_PORT + PORTS * (u16::from_le_bytes([random[4], random[5]]) % RANGES),
            mesh_ports: free_ports().map_err(|e| Failure::Failed(format!("no free UDP ports for the mesh: {e}")))?,
            sizes,
        })
    }

    pub(super) fn agents(&self) -> impl Iterator<Item = Agent<'_>> {
        (0..NAMES.len()).map(|index| Agent { plan: self, index })
    }

    /// The agent with this index; the last agent if the index is too large.
    pub(super) fn agent(&self, index: usize) -> Agent<'_> {
        Agent { plan: self, index: index.min(NAMES.len() - 1) }
    }

    /// The file of the cluster token, which makes the agents one cluster.
    pub(super) fn token(&self) -> PathBuf {
        self.directory.join("token")
    }

    pub(super) fn catalogue(&self) -> PathBuf {
        self.directory.join("catalogue.toml")
    }

    /// A file that exists during the import of the image: an image that does not exist yet may still appear.
    pub(super) fn importing(&self) -> PathBuf {
        self.directory.join("importing")
    }

    /// The copy of this program for sessions that run as another user, which may not have access to the original.
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
}

impl Agent<'_> {
    pub(super) fn name(&self) -> &'static str {
        NAMES[self.index]
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// Its configuration file.
    pub(super) fn configuration(&self) -> PathBuf {
        self.file("toml")
    }

    /// The file with its output.
    pub(super) fn log(&self) -> PathBuf {
        self.file("log")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.plan.directory.join(self.name())
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.plan.directory.join(format!("{}.{extension}", self.name()))
    }

    /// The text of its configuration.
    pub(super) fn configuration_text(&self) -> String {
        let text = |path: &Path| quoted(&path.display().to_string());
        let plan = self.plan;
        let runtime = match &plan.engine {
            Engine::Docker { host } => {
                format!("kind = \"docker\"\ndocker_host = {}\n", quoted(host))
            }
            Engine::Process => "kind = \"process\"\n".to_owned(),
        };
        let first = plan.first_port + AGENT_PORTS * u16::try_from(self.index).unwrap_or_default();
        let last = first + AGENT_PORTS - 1;
        let others = plan.agents().filter(|agent| agent.index != self.index);
        let seeds: Vec<String> = others.map(|other| quoted(&other.mesh())).collect();
        format!(
            "[node]\nname = \"{}\"\ndata_dir = {}\n\n\
             [cluster]\nname = \"{}\"\ntoken_file = {}\nlisten = \"{}\"\nseeds = [{}]\n\n\
             [http]\nlisten = \"127.0.0.1:0\"\nsocket = {}\n\n\
             [runtime]\n{runtime}port_range = \"{first}-{last}\"\n\
             publish_address = \"127.0.0.1\"\nendpoint_host = \"127.0.0.1\"\n\n\
             [limits]\nmin_free_disk = 0\n\n\
             [dev]\nphysical_cores = {}\nphysical_memory = {}\n",
            self.name(),
            text(&self.data()),
            plan.cluster,
            text(&plan.token()),
            self.mesh(),
            seeds.join(", "),
            text(&self.socket()),
            plan.sizes.node_cores,
            plan.sizes.node_memory.get(),
        )
    }

    fn mesh(&self) -> String {
        format!("127.0.0.1:{}", self.plan.mesh_ports[self.index])
    }
}

/// Free UDP ports of loopback, all different.
fn free_ports() -> io::Result<[u16; NAMES.len()]> {
    let mut ports = [0; NAMES.len()];
    // All sockets stay open until every port is known, so that no port comes twice.
    let mut held = Vec::new();
    for port in &mut ports {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = socket.local_addr()?.port();
        held.push(socket);
    }
    Ok(ports)
}

/// The text as a TOML string. TOML accepts every escape of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The directory for temporary files, unless its path is too long for a socket in it, or, for a demo of root,
/// the sessions' user cannot reach files in it.
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
    use crate::types::{Bytes, Cores, RuntimeKind};

    fn parsed(agent: Agent<'_>) -> Config {
        let environment = Environment { host_name: "desk".to_owned(), docker_host: None, log_level: None };
        Config::parse(&agent.configuration_text(), None, true, &environment).unwrap()
    }

    fn plan(engine: Engine) -> Plan {
        Plan::new(engine, Sizes::of(Cores::whole(2), Bytes::gib(4))).unwrap()
    }

    #[test]
    fn the_agents_configurations_are_valid_and_stay_in_the_demos_directory() {
        for engine in [Engine::Process, Engine::Docker { host: "unix:///run/d \"x\".sock".to_owned() }] {
            let mut plan = plan(engine.clone());
            plan.directory = "/tmp/a \"b\"".into();
            for agent in plan.agents() {
                let config = parsed(agent);
                for path in [&config.data_dir, &config.cluster.token_file, &config.http.socket] {
                    assert!(path.starts_with(&plan.directory), "{}", path.display());
                }
                assert_eq!(config.node.name.as_str(), agent.name());
                assert_eq!(config.cluster.name, plan.cluster);
                assert_eq!(config.cluster.seeds.len(), NAMES.len() - 1);
                assert!(config.runtime.publish_address.is_loopback());
                assert_eq!(config.dev.physical_cores, Some(plan.sizes.node_cores));
                assert_eq!(config.dev.physical_memory, Some(plan.sizes.node_memory));
                let kind = if engine == Engine::Process { RuntimeKind::Process } else { RuntimeKind::Docker };
                assert_eq!(config.runtime.kind, kind);
            }
        }
    }

    #[test]
    fn the_agents_of_a_demo_share_the_cluster_and_nothing_else() {
        let plan = plan(Engine::Process);
        let configs: Vec<Config> = plan.agents().map(parsed).collect();
        for (i, one) in configs.iter().enumerate() {
            for other in &configs[i + 1..] {
                assert_eq!(one.cluster.token_file, other.cluster.token_file);
                assert_ne!(one.data_dir, other.data_dir);
                assert_ne!(one.http.socket, other.http.socket);
                assert_ne!(one.cluster.listen, other.cluster.listen);
                let (one, other) = (&one.sessions.port_range, &other.sessions.port_range);
                assert!(one.last < other.first || other.last < one.first, "{one:?} and {other:?}");
            }
        }
    }

    #[test]
    fn two_demos_have_nothing_in_common() {
        let (one, other) = (plan(Engine::Process), plan(Engine::Process));
        assert_ne!(one.directory, other.directory);
        assert_ne!(one.cluster, other.cluster);
        assert!(one.agents().all(|agent| agent.socket().as_os_str().len() < 100));
    }
}
