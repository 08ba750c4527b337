//! The configuration: one TOML file, read once, into the `Config` of each part.
//!
//! It parses and binds nothing. Every key has a default that works. An error
//! lists every problem at once, with file, line, key and value.

mod doctor;
mod document;
mod edit;
mod problem;
mod read;
mod refresh;
#[cfg(test)]
mod tests;
mod value;

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::http;
use crate::runtime::{HandOver, docker};
pub use edit::{EditError, add_seed};
pub use problem::{Error, Place, Problem};
pub use refresh::TLS;

use crate::capacity::DevFigures;
use crate::ledger::PortRange;
use crate::types::{Bytes, ClusterMode, Name, OnUnknown, Period, RuntimeKind, SettingsPatch, Strategy};
use crate::{events, gpu, images, logging, node, sessions};

/// The file that is read when no other is named. It may be missing.
pub const DEFAULT_FILE: &str = "/etc/ostler/ostler.toml";
/// The default UDP port of the mesh.
pub const MESH_PORT: u16 = 7480;
/// Bytes of the longest file that is read. The shipped one, with all its comments, has about 6 KiB.
const MAX_FILE: usize = 128 << 10;

/// The whole configuration, each section as its part takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `node.name` and `[settings]`.
    pub node: node::Config,
    /// The directory of everything that must survive a restart.
    pub data_dir: PathBuf,
    pub cluster: Cluster,
    pub placement: Placement,
    pub http: http::Config,
    pub runtime: Runtime,
    /// `[images]`
    pub images: images::Config,
    /// `[events]`
    pub events: events::Config,
    /// `[gpu]`
    pub gpu: gpu::Config,
    /// `[limits]`, and the keys of `[runtime]` that apply to every runtime.
    pub sessions: sessions::Config,
    pub log: logging::Config,
    /// `[dev]`: empty, except under `--dev`.
    pub dev: DevFigures,
}

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub name: Name,
    pub token_file: PathBuf,
    /// The UDP address that the mesh listens on.
    pub listen: SocketAddr,
    /// The address that other nodes connect to; `None`: the node finds it, and follows its changes.
    pub advertise: Option<SocketAddr>,
    /// The nodes to contact first, as `host:port`.
    pub seeds: Vec<String>,
    pub mode: ClusterMode,
}

/// `[placement]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub strategy: Strategy,
    /// `None`: the default of the cluster's mode, see [`OnUnknown::of`].
    pub on_unknown: Option<OnUnknown>,
}

/// The keys of `[runtime]` that apply to one runtime only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    pub kind: RuntimeKind,
    /// The engine's socket, `unix:///…`.
    pub docker_host: String,
    pub cpu_mode: docker::CpuMode,
    /// `gpu.hand_over`
    pub hand_over: HandOver,
    /// `images.path`
    pub images_path: Option<PathBuf>,
    /// The capabilities of containers, in upper case without `CAP_`.
    pub cap_allow: Vec<String>,
    /// The address of this host that sessions' ports are published on.
    pub publish_address: IpAddr,
    /// The range of ostler's own network; `None`: the engine chooses one.
    pub network_subnet: Option<docker::Subnet>,
    /// The clients whose connections to a session do not count as its use.
    pub idle_ignore: Vec<IpNet>,
    /// The user that the process runtime runs commands as when the agent runs as root.
    pub process_user: String,
}

impl Config {
    /// Reads `file`. Without one, reads [`DEFAULT_FILE`] if it exists, and uses the defaults otherwise.
    /// `dev` allows what is meant for a trial only: `[dev]` and the process runtime.
    ///
    /// # Errors
    /// The file cannot be read, or the file or the environment is invalid: the error lists every problem.
    pub fn load(file: Option<&Path>, dev: bool) -> Result<Self, Error> {
        let environment = Environment::of_process();
        match text_of(file.unwrap_or(Path::new(DEFAULT_FILE))) {
            Ok((file, text)) => Self::parse(&text, Some(&file), dev, &environment),
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Self::parse("", None, dev, &environment)
            }
            Err(error) => Err(Error::Unreadable {
                file: file.unwrap_or(Path::new(DEFAULT_FILE)).to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    /// Reads the text of a configuration. Errors name `file` as its source.
    ///
    /// # Errors
    /// The text or the environment is invalid: the error lists every problem.
    pub fn parse(text: &str, file: Option<&Path>, dev: bool, environment: &Environment) -> Result<Self, Error> {
        let defaults = Self::with_host_name(&environment.host_name);
        let invalid = |problems| Error::Invalid { file: file.map(Path::to_owned), problems };
        let mut document = document::Document::parse(text).map_err(invalid)?;
        let mut config = read::config(&mut document, defaults, dev, environment);
        let problems = document.finish();
        if !problems.is_empty() {
            return Err(invalid(problems));
        }
        config.node.file = file.map(Path::to_owned);
        Ok(config)
    }

    /// The defaults on a host of this name.
    fn with_host_name(host_name: &str) -> Self {
        Self {
            node: node::Config { name: node_name(host_name), declared: SettingsPatch::default(), file: None },
            data_dir: "/var/lib/ostler".into(),
            cluster: Cluster {
                name: fixed_name("default"),
                token_file: "/etc/ostler/token".into(),
                listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, MESH_PORT)),
                advertise: None,
                seeds: Vec::new(),
                mode: ClusterMode::Available,
            },
            placement: Placement { strategy: Strategy::Spread, on_unknown: None },
            http: http::Config {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7481)),
                status_listen: None,
                socket: "/run/ostler/ostler.sock".into(),
                tls: None,
                allowed_hosts: Vec::new(),
            },
            runtime: Runtime::default(),
            images: images::Config::default(),
            events: events::Config::default(),
            gpu: gpu::Config::default(),
            sessions: sessions::Config {
                max_sessions_per_user: 0,
                max_sessions_per_node: 0,
                keep_ended: Period::secs(24 * 3600),
                stopped_retention: Period::secs(7 * 24 * 3600),
                min_free_disk: Bytes::gib(1),
                max_foreign_gpu_memory: Bytes::gib(1),
                port_range: PortRange { first: 20_000, last: 29_999 },
                networks: Vec::new(),
                endpoint_host: if value::is_host(host_name) { host_name.to_owned() } else { "localhost".to_owned() },
            },
            log: logging::Config { level: "info".to_owned(), format: logging::Format::Text },
            dev: DevFigures::default(),
        }
    }
}

impl Default for Config {
    /// The defaults on this host, without its files and environment.
    fn default() -> Self {
        Self::with_host_name(&host_name())
    }
}

impl Default for Runtime {
    fn default() -> Self {
        let cap_allow = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "KILL", "NET_BIND_SERVICE"];
        Self {
            kind: RuntimeKind::Docker,
            docker_host: "unix:///var/run/docker.sock".to_owned(),
            cpu_mode: docker::CpuMode::Quota,
            hand_over: HandOver::Auto,
            images_path: None,
            cap_allow: cap_allow.map(str::to_owned).to_vec(),
            publish_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            network_subnet: None,
            idle_ignore: Vec::new(),
            process_user: "nobody".to_owned(),
        }
    }
}

/// What the configuration takes from the host and the environment of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub host_name: String,
    /// `DOCKER_HOST`: used when the file has no `runtime.docker_host`.
    pub docker_host: Option<String>,
    /// `OSTLER_LOG`: overrides `log.level`.
    pub log_level: Option<String>,
}

impl Environment {
    pub fn of_process() -> Self {
        // An empty variable counts as unset, as in the tools of Docker and tracing.
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { host_name: host_name(), docker_host: variable("DOCKER_HOST"), log_level: variable("OSTLER_LOG") }
    }
}

/// The name of every key.
#[cfg(test)]
fn known_keys() -> Vec<String> {
    let environment = Environment { host_name: String::new(), docker_host: None, log_level: None };
    let mut document = document::Document::parse("").expect("an empty text is TOML");
    read::config(&mut document, Config::default(), true, &environment);
    document.known().iter().map(ToString::to_string).collect()
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The file's path and text.
fn text_of(file: &Path) -> io::Result<(PathBuf, String)> {
    let mut text = String::new();
    let bound = u64::try_from(MAX_FILE).unwrap_or(u64::MAX) + 1;
    std::fs::File::open(file)?.take(bound).read_to_string(&mut text)?;
    if text.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_FILE} bytes")));
    }
    Ok((file.to_owned(), text))
}

/// The host's name as the name of a node: in lower case, with `-` for each character that a name cannot have.
fn node_name(host_name: &str) -> Name {
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c.to_ascii_lowercase() } else { '-' };
    let text: String = host_name.chars().map(allowed).collect();
    let text = text.trim_start_matches(['.', '_', '-']);
    let text = text[..text.len().min(Name::MAX_LEN)].trim_end_matches(['.', '_', '-']);
    text.parse().unwrap_or_else(|_| fixed_name("node"))
}

fn fixed_name(text: &'static str) -> Name {
    text.parse().expect("a constant of letters is a valid name")
}
