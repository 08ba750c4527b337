//! The Docker runtime: sessions as containers, through the Docker Engine API.
//!
//! [`container`] (pure) builds the configuration of a container and reads one back. The steps of a
//! session are in [`steps`]; [`images`], [`network`] and [`volumes`] provide what a container needs.
//! [`link`] watches the engine, and [`engine`] is the only way to it: every call has a deadline.
//! [`support`] (pure) says which engines ostler works with.
//! [`blame`] (pure) and [`ending`] read from the engine's words why a session did not start and how it ended.
//! [`gpus`] hands GPUs to containers and checks that each got its own. [`visit`] is for callers that have no node here, such as `ostler demo`.
//!
//! A container is known by its id and by its labels, which say what session it belongs to, so that the agent can
//! adopt it after a crash. Its name is for people, who may change it. The runtime refuses a container, network or volume
//! that has our name without our labels, and leaves it alone.

mod blame;
mod container;
mod ending;
mod engine;
mod gpus;
mod images;
mod link;
mod logs;
mod network;
mod sights;
mod steps;
mod subnet;
mod support;
mod visit;
mod volumes;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::connections::{Connections, Seen};
use super::{
    Connected, Error, Event, Found, HandOver, Health, Launch, LogStream, LogsRequest, Observed, PortBinding, Runtime,
    Target,
};
use crate::gpu;
use crate::types::{Name, NodeId, RuntimeKind};
pub use subnet::Subnet;
pub use visit::Visit;

/// The default of `runtime.cap_allow`: an ordinary image starts its entry point as root and switches to a user. It
/// needs these capabilities for that, and no more.
pub const DEFAULT_CAPABILITIES: [&str; 7] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "KILL", "NET_BIND_SERVICE"];

/// The keys of `[runtime]` that concern Docker, and the cluster and node that own the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub cluster: Name,
    pub node: NodeId,
    /// The engine's socket, as `unix:///var/run/docker.sock`.
    pub host: String,
    pub cpu_mode: CpuMode,
    /// The capabilities of a session, as `CHOWN`; all others are dropped.
    pub cap_allow: Vec<String>,
    /// The address of this host that ports are published on.
    pub publish_address: IpAddr,
    /// The range of ostler's own network; `None`: the engine chooses one.
    pub network_subnet: Option<Subnet>,
    /// The clients whose connections to a session do not count as its use.
    pub idle_ignore: Vec<IpNet>,
    /// `gpu.hand_over`
    pub hand_over: HandOver,
    /// `gpu.class`
    pub gpu_class: String,
    /// `images.path`; `None`: where the engine says.
    pub images_path: Option<PathBuf>,
}

/// How cores limit a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuMode {
    /// Never more than its cores.
    #[default]
    Quota,
    /// At least its cores when other containers want them too, and idle cores besides.
    Shares,
}

impl fmt::Display for CpuMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quota => "quota",
            Self::Shares => "shares",
        })
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("docker_host is `{0}`; expected the path of a socket, such as unix:///var/run/docker.sock")]
    Host(String),
    #[error("cap_allow has `{0}`; expected one capability per item, such as CHOWN or NET_BIND_SERVICE")]
    Capability(String),
}

/// Sessions as containers of one engine.
pub struct DockerRuntime {
    config: Config,
    engine: Arc<engine::Engine>,
    networks: network::Networks,
    sights: sights::Sights,
    health: watch::Sender<Health>,
    /// Grows with the changes of the engine's images.
    image_changes: watch::Sender<u64>,
    connections: Arc<Connections>,
    /// The devices of this host.
    gpus: watch::Receiver<Arc<gpu::Snapshot>>,
    unverified: gpus::Unverified,
}

impl DockerRuntime {
    /// Creates a runtime without a call to the engine. An engine that is absent is a state, not an error. `gpus` are the
    /// devices of this host that sessions may hold.
    ///
    /// # Errors
    /// `host` is not a socket's path, or `cap_allow` has an item that is not one capability.
    pub fn new(config: Config, gpus: watch::Receiver<Arc<gpu::Snapshot>>) -> Result<Arc<Self>, ConfigError> {
        let socket = socket_of(&config.host)?;
        if let Some(odd) = config.cap_allow.iter().find(|capability| !is_one_capability(capability)) {
            return Err(ConfigError::Capability(odd.clone()));
        }
        let reader = gpus::read::Reader::new(config.hand_over, config.gpu_class.clone());
        let engine =
            Arc::new(engine::Engine::new(socket, config.cpu_mode, reader).with_images_at(config.images_path.clone()));
        Ok(Arc::new(Self {
            networks: network::Networks::new(&config),
            sights: sights::Sights::default(),
            health: watch::Sender::new(Health::Unknown),
            image_changes: watch::Sender::new(0),
            connections: Connections::new(config.idle_ignore.clone()),
            gpus,
            unverified: gpus::Unverified::default(),
            config,
            engine,
        }))
    }
}

/// The path of the engine's socket on this host.
fn socket_of(host: &str) -> Result<String, ConfigError> {
    let path = host.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    path.map(str::to_owned).ok_or_else(|| ConfigError::Host(host.to_owned()))
}

fn is_one_capability(name: &str) -> bool {
    !name.is_empty() && name != "ALL" && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    async fn run(&self, events: mpsc::Sender<Event>) {
        link::run(&self.engine, &self.config, &self.health, &self.image_changes, events).await;
    }

    async fn list(&self) -> Result<Vec<Found>, Error> {
        self.list_containers().await
    }

    async fn observe(&self, target: &Target) -> Result<Observed, Error> {
        self.observe_container(target).await
    }

    async fn create(&self, launch: &Launch) -> Result<String, Error> {
        self.create_container(launch).await
    }

    async fn start(&self, target: &Target) -> Result<(), Error> {
        self.start_container(target).await
    }

    async fn verify(&self, target: &Target, launch: &Launch) -> Result<Option<String>, Error> {
        self.verify_gpus(target, launch).await
    }

    async fn stop(&self, target: &Target, grace: Duration) -> Result<(), Error> {
        self.stop_container(target, grace).await
    }

    async fn pause(&self, target: &Target) -> Result<(), Error> {
        self.pause_container(target).await
    }

    async fn resume(&self, target: &Target) -> Result<(), Error> {
        self.resume_container(target).await
    }

    async fn remove(&self, target: &Target) -> Result<(), Error> {
        self.remove_container(target).await
    }

    async fn logs(&self, target: &Target, request: LogsRequest) -> Result<LogStream, Error> {
        let own = self.existing(target).await?;
        let connection = self.engine.connection().await?;
        Ok(logs::stream(&connection, &own.id, request))
    }

    fn published_at(&self) -> IpAddr {
        match self.config.publish_address {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        }
    }

    async fn connected(&self, target: &Target, ports: &[PortBinding]) -> Result<Connected, Error> {
        match self.connections.to(ports).await {
            Seen::Connected => Ok(Connected::Yes),
            Seen::Nobody { tracked: true } if !ports.is_empty() => Ok(Connected::No),
            Seen::Nobody { .. } => Ok(Connected::Unknown { bytes: self.network_bytes(target).await? }),
        }
    }

    async fn volumes(&self) -> Result<Vec<String>, Error> {
        volumes::list(&self.engine, &self.config.cluster).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        volumes::remove(&self.engine, &self.config.cluster, name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            cluster: "lab".parse().unwrap(),
            node: "k3f7q2m5x6a4b7c2".parse().unwrap(),
            host: "unix:///nowhere/docker.sock".to_owned(),
            cpu_mode: CpuMode::Quota,
            cap_allow: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            publish_address: "127.0.0.1".parse().unwrap(),
            network_subnet: None,
            idle_ignore: Vec::new(),
            hand_over: HandOver::Auto,
            gpu_class: crate::types::NVIDIA_CLASS.to_owned(),
            images_path: None,
        }
    }

    fn no_gpus() -> watch::Receiver<Arc<gpu::Snapshot>> {
        watch::channel(Arc::default()).1
    }

    #[test]
    fn an_absent_engine_is_accepted_and_a_wrong_address_is_an_error() {
        let runtime = DockerRuntime::new(config(), no_gpus()).unwrap();
        assert_eq!(*runtime.health().borrow(), Health::Unknown);
        for host in ["tcp://127.0.0.1:2375", "/var/run/docker.sock", "unix://relative", ""] {
            let refused = DockerRuntime::new(Config { host: host.to_owned(), ..config() }, no_gpus()).err();
            assert_eq!(refused, Some(ConfigError::Host(host.to_owned())));
        }
    }

    #[test]
    fn capabilities_are_named_one_by_one() {
        for odd in ["ALL", "", "chown", "SYS_ADMIN,NET_RAW"] {
            let refused = DockerRuntime::new(Config { cap_allow: vec![odd.to_owned()], ..config() }, no_gpus()).err();
            assert_eq!(refused, Some(ConfigError::Capability(odd.to_owned())));
        }
    }
}
