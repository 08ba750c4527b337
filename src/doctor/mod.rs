//! The checks of `ostler doctor`: for each thing that users meet, what is checked, and one way to mend it.
//!
//! [`collect`] reads the facts of this host and changes nothing: files, sockets, the engine, the GPUs, other nodes. Each
//! fact has a time limit, so that what hangs is a finding. [`judge`] (pure) makes findings of facts; every sentence and
//! every mend that is not of another part is written there. The agent need not run: what only it knows is left out. The
//! agent of another node makes the same checks of its own host, one checkup at a time ([`task`]).

pub mod collect;
pub mod judge;
pub mod task;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::capacity::DevFigures;
use crate::ledger::PortRange;
use crate::runtime::HandOver;
use crate::runtime::docker::CpuMode;
use crate::types::{Bytes, Name, Node, RuntimeKind};

/// What the checks need of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub name: Name,
    pub data_dir: PathBuf,
    pub cluster: Name,
    pub token_file: PathBuf,
    pub listen: SocketAddr,
    pub advertise: Option<SocketAddr>,
    pub seeds: Vec<String>,
    pub runtime: RuntimeKind,
    /// `runtime.docker_host`
    pub docker_host: String,
    pub cpu_mode: CpuMode,
    pub hand_over: HandOver,
    pub images_path: Option<PathBuf>,
    pub gpu_class: String,
    pub nvml_library: Option<PathBuf>,
    pub publish_address: IpAddr,
    pub port_range: PortRange,
    pub endpoint_host: String,
    pub min_free_disk: Bytes,
    /// `settings.memory_override`; zero if the file does not declare it.
    pub memory_override: Bytes,
    pub http: SocketAddr,
    pub allowed_hosts: Vec<String>,
    /// `http.tls_cert`
    pub certificate: Option<PathBuf>,
    pub socket: PathBuf,
    pub dev: DevFigures,
}

/// What the agent of this host tells.
#[derive(Debug, Clone)]
pub enum Agent {
    Up(Box<Told>),
    /// It does not answer: why, for people.
    Down(String),
}

/// The answers of the agent.
#[derive(Debug, Clone)]
pub struct Told {
    pub here: Node,
    /// Every node that it knows, this one included.
    pub nodes: Vec<Node>,
    /// The host ports of this node's sessions.
    pub ports: BTreeSet<u16>,
}

impl Agent {
    pub fn told(&self) -> Option<&Told> {
        match self {
            Self::Up(told) => Some(told),
            Self::Down(_) => None,
        }
    }
}
