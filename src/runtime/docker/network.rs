//! The network that sessions run on: one bridge for a cluster, without traffic between its containers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::models::{
    Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest, NetworkInspect,
};
use bollard::query_parameters::InspectNetworkOptions;
use data_encoding::HEXLOWER;

use super::container::LABEL_CLUSTER;
use super::engine::{CHANGE, Engine, Failure, LOOK};
use super::{Config, Error, Subnet, blame};
use crate::runtime::Fault;
use crate::types::Name;

const ICC: &str = "com.docker.network.bridge.enable_icc";
const BRIDGE: &str = "com.docker.network.bridge.name";
/// Names that the engine reserves for its own networks and modes.
const RESERVED: [&str; 4] = ["host", "none", "default", "container"];

/// Creates ostler's own network, and knows whether it exists.
pub(super) struct Networks {
    name: String,
    bridge: String,
    cluster: Name,
    subnet: Option<Subnet>,
    /// It exists. It is not looked up again until a create or a start fails for want of it.
    seen: AtomicBool,
}

impl Networks {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            name: format!("ostler-{}", config.cluster),
            bridge: bridge_name(&config.cluster),
            cluster: config.cluster.clone(),
            subnet: config.network_subnet,
            seen: AtomicBool::new(false),
        }
    }

    /// The name of an existing network: the one that the launch names, else ostler's own, created if it is absent.
    pub(super) async fn ensure(&self, engine: &Engine, wanted: Option<&Name>) -> Result<String, Error> {
        match wanted {
            Some(name) => existing(engine, name.as_str()).await,
            None => self.ensure_own(engine).await,
        }
    }

    /// Forgets that ostler's own network exists: another program may have removed it.
    pub(super) fn forget(&self) {
        self.seen.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_own(&self, network: &str) -> bool {
        self.name == network
    }

    /// Creates ostler's own network again and connects a stopped container to it. A container
    /// that ran once stores the id of its network, and the new network has another id.
    pub(super) async fn restore(&self, engine: &Engine, container: &str) -> Result<(), Error> {
        self.forget();
        let name = self.ensure_own(engine).await?;
        let name = name.as_str();
        let leave = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
        let join = NetworkConnectRequest { container: container.to_owned(), endpoint_config: None };
        let left =
            engine.ask("disconnect", CHANGE, |docker| async move { docker.disconnect_network(name, leave).await });
        if let Err(lost @ (Failure::Lost(_) | Failure::Unsupported(_))) = left.await {
            return Err(lost.into());
        }
        let joined = engine.ask("connect", CHANGE, |docker| async move { docker.connect_network(name, join).await });
        joined.await.map_err(blame::of_network)
    }

    async fn ensure_own(&self, engine: &Engine) -> Result<String, Error> {
        if self.seen.load(Ordering::Relaxed) {
            return Ok(self.name.clone());
        }
        match inspect(engine, &self.name).await? {
            Some(network) => self.check_own(&network)?,
            None => self.create(engine).await?,
        }
        self.seen.store(true, Ordering::Relaxed);
        Ok(self.name.clone())
    }

    /// Creates the network. Engines below API 1.44 create a second one of the same name without an error, and
    /// then find neither by its name. A bridge exists once, so naming it makes the second attempt fail.
    async fn create(&self, engine: &Engine) -> Result<(), Error> {
        let request = NetworkCreateRequest {
            name: self.name.clone(),
            driver: Some("bridge".to_owned()),
            options: Some(owned([(ICC, "false"), (BRIDGE, &self.bridge)])),
            labels: Some(owned([(LABEL_CLUSTER, self.cluster.as_str())])),
            enable_ipv6: self.subnet.filter(Subnet::is_ipv6).map(|_| true),
            ipam: self.subnet.map(ipam),
            ..NetworkCreateRequest::default()
        };
        let made =
            engine.ask("create network", CHANGE, |docker| async move { docker.create_network(request).await }).await;
        match made {
            Ok(_) => Ok(()),
            Err(lost @ (Failure::Lost(_) | Failure::Unsupported(_))) => Err(lost.into()),
            // Another agent or call may have created it meanwhile.
            Err(said) => match inspect(engine, &self.name).await? {
                Some(network) => self.check_own(&network),
                // Its creation is in progress, and inspect does not show it yet.
                None if is_taken(&said) => Err(Error::Unavailable(said.to_string())),
                None => Err(blame::of_network(said)),
            },
        }
    }

    /// Sessions may be on the network, so it is not made anew.
    fn warn_of_another_subnet(&self, network: &NetworkInspect) {
        let Some(wanted) = self.subnet.map(|subnet| subnet.to_string()) else { return };
        let has = |config: &IpamConfig| config.subnet.as_deref() == Some(wanted.as_str());
        if !network.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten()).any(has) {
            tracing::warn!(
                "network {0} has another range than runtime.network_subnet ({wanted}); once no session is left on this \
                 host, run: docker network rm {0}",
                self.name
            );
        }
    }

    /// Checks labels and options: a network that has only our name may let sessions reach each other.
    fn check_own(&self, network: &NetworkInspect) -> Result<(), Error> {
        let cluster = network.labels.iter().flatten().find(|(key, _)| *key == LABEL_CLUSTER).map(|(_, value)| value);
        let isolated = network.options.iter().flatten().any(|(key, value)| key == ICC && value == "false");
        if cluster.map(String::as_str) == Some(self.cluster.as_str()) && isolated {
            self.warn_of_another_subnet(network);
            return Ok(());
        }
        Err(refused(format!(
            "network {0} is not ostler's: expected {LABEL_CLUSTER}={1} and {ICC}=false; run: docker network rm {0}",
            self.name, self.cluster
        )))
    }
}

/// A network of the operator's, by its exact name: the engine would also accept an id, or the start of one.
async fn existing(engine: &Engine, name: &str) -> Result<String, Error> {
    if RESERVED.contains(&name) {
        return Err(refused(format!("network `{name}` is reserved: sessions may not use it")));
    }
    let found = inspect(engine, name).await?.filter(|network| network.name.as_deref() == Some(name));
    match found {
        Some(network) if network.driver.as_deref() == Some("host") => {
            Err(refused(format!("network {name} is the host's own: sessions may not use it")))
        }
        Some(_) => Ok(name.to_owned()),
        None => Err(refused(format!("network {name} not found on this host"))),
    }
}

async fn inspect(engine: &Engine, name: &str) -> Result<Option<NetworkInspect>, Error> {
    let seen = engine
        .ask("inspect network", LOOK, |docker| async move {
            docker.inspect_network(name, None::<InspectNetworkOptions>).await
        })
        .await;
    match seen {
        Ok(network) => Ok(Some(network)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure.or_try_again()),
    }
}

fn refused(message: String) -> Error {
    Error::start(Fault::Network, message)
}

/// Whether the engine refused because another network has the name or the bridge.
fn is_taken(failure: &Failure) -> bool {
    let same_bridge = |message: &str| message.contains("networks have same bridge name");
    failure.is_conflict() || matches!(failure, Failure::Said { message, .. } if same_bridge(message))
}

fn ipam(subnet: Subnet) -> Ipam {
    let config = IpamConfig { subnet: Some(subnet.to_string()), ..IpamConfig::default() };
    Ipam { config: Some(vec![config]), ..Ipam::default() }
}

/// The name of the bridge's interface. The kernel allows 15 characters, so it is a digest of the cluster's name.
fn bridge_name(cluster: &Name) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, cluster.as_str().as_bytes());
    let mut name = format!("ostler-{}", HEXLOWER.encode(digest.as_ref()));
    name.truncate(15);
    name
}

fn owned<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks() -> Networks {
        let cluster: Name = "lab".parse().unwrap();
        Networks {
            name: "ostler-lab".to_owned(),
            bridge: bridge_name(&cluster),
            cluster,
            subnet: None,
            seen: AtomicBool::new(false),
        }
    }

    #[test]
    fn bridges_fit_the_kernel_and_differ_by_cluster() {
        let bridge = |name: &str| bridge_name(&name.parse().unwrap());
        assert_eq!(bridge("lab").len(), 15);
        assert_ne!(bridge("lab"), bridge("lab2"));
    }

    #[test]
    fn a_network_with_traffic_between_containers_is_not_ours() {
        let network = |cluster, icc| NetworkInspect {
            labels: Some(owned([(LABEL_CLUSTER, cluster)])),
            options: Some(owned([(ICC, icc)])),
            ..NetworkInspect::default()
        };
        assert_eq!(networks().check_own(&network("lab", "false")), Ok(()));
        for foreign in [network("lab", "true"), network("other", "false"), NetworkInspect::default()] {
            assert!(matches!(networks().check_own(&foreign), Err(Error::Start { fault: Fault::Network, .. })));
        }
    }

    #[test]
    fn a_name_or_bridge_in_use_is_told_from_other_refusals() {
        let said = |status, message: &str| Failure::Said { status, message: message.to_owned() };
        let making = "cannot create network 92 (br): conflicts with network 43 (br): networks have same bridge name";
        assert!(is_taken(&said(403, making)));
        assert!(is_taken(&said(409, "network with name ostler-lab already exists")));
        assert!(!is_taken(&said(403, "could not find an available, non-overlapping IPv4 address pool")));
    }

    #[tokio::test]
    async fn the_hosts_own_network_is_refused_before_the_engine_is_asked() {
        let engine = Engine::new(
            "/nowhere".to_owned(),
            super::super::CpuMode::Quota,
            super::super::gpus::read::Reader::default(),
        );
        for name in RESERVED {
            let name: Name = name.parse().unwrap();
            assert!(matches!(
                networks().ensure(&engine, Some(&name)).await,
                Err(Error::Start { fault: Fault::Network, .. })
            ));
        }
    }
}
