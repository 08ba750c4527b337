//! Hosts on a network that can be cut: network namespaces of this machine.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::agent::Agent;
use super::cluster::{Cluster, Mesh};

/// The port of every host's mesh.
pub(crate) const MESH_PORT: u16 = 7000;

/// Namespaces joined by a switch. The switch has its own namespace, so nothing shows in this machine's own network.
/// Dropping it removes them.
pub(crate) struct Network {
    switch: String,
    hosts: Vec<String>,
}

impl Network {
    /// `None`, after printing SKIPPED, if namespaces cannot be created here.
    fn lay(test: &str, size: usize) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ostler-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { switch: name.clone(), hosts: Vec::new() };
        let laid = network.add_namespace(&name) && {
            network.hosts = (0..size).map(|i| format!("{name}-n{i}")).collect();
            network.hosts.iter().all(|host| network.add_namespace(host) && iptables(host, "-L INPUT"))
        };
        if !laid {
            super::skip(test, "netns");
            return None;
        }
        ip(&format!("-n {name} link add switch type bridge"));
        ip(&format!("-n {name} link set switch up"));
        for (i, host) in network.hosts.iter().enumerate() {
            ip(&format!("-n {name} link add n{i} type veth peer name eth0 netns {host}"));
            ip(&format!("-n {name} link set n{i} master switch up"));
            ip(&format!("-n {host} address add {}/24 dev eth0", address(i)));
            ip(&format!("-n {host} link set lo up"));
            ip(&format!("-n {host} link set eth0 up"));
        }
        Some(network)
    }

    fn add_namespace(&self, name: &str) -> bool {
        run("ip", &format!("netns add {name}"))
    }

    /// From now on no packet from `from` reaches `to`. It is dropped on arrival, since a network loses packets without
    /// telling the sender.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        let cut = iptables(&self.hosts[to], &format!("-A INPUT -s {} -j DROP", address(from)));
        assert!(cut, "packets from n{from} cannot be dropped at n{to}");
    }

    /// From now on no packet passes between the two sides.
    pub(crate) fn split(&self, one: &[usize], other: &[usize]) {
        for a in one {
            for b in other {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// Sets a sysctl of a host, such as `net.ipv6.bindv6only`.
    pub(crate) fn set(&self, host: usize, sysctl: &str, value: &str) {
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        let (path, value) = (path.as_str(), value.to_owned());
        self.inside(host, || std::fs::write(path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// From now on the host's link carries packets of so many bytes at most.
    pub(crate) fn narrow(&self, host: usize, mtu: u32) {
        ip(&format!("-n {} link set n{host} mtu {mtu}", self.switch));
        ip(&format!("-n {} link set eth0 mtu {mtu}", self.hosts[host]));
    }

    /// From now on the host has another address.
    pub(crate) fn move_to(&self, host: usize, address: &str) {
        ip(&format!("-n {} address flush dev eth0", self.hosts[host]));
        ip(&format!("-n {} address add {address}/24 dev eth0", self.hosts[host]));
    }

    /// Takes the host's link down or brings it up.
    pub(crate) fn link(&self, host: usize, is_up: bool) {
        ip(&format!("-n {} link set eth0 {}", self.hosts[host], if is_up { "up" } else { "down" }));
    }

    /// Does something in the network of a host.
    pub(crate) fn inside<T: Send>(&self, host: usize, act: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.hosts[host]);
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let namespace = std::fs::File::open(path).unwrap();
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
                act()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// All packets pass again.
    pub(crate) fn heal(&self) {
        for host in &self.hosts {
            iptables(host, "-F INPUT");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.switch]) {
            run("ip", &format!("netns delete {name}"));
        }
    }
}

/// A cluster with each agent on a host of such a network.
pub(crate) struct Hosts {
    pub(crate) cluster: Cluster,
    pub(crate) network: Network,
}

impl Hosts {
    /// Starts the agents, and waits until they have found each other and follow one leader. `None`, after printing
    /// SKIPPED, if namespaces cannot be created here.
    pub(crate) fn start(test: &str, size: usize, extra: &str) -> Option<Self> {
        let mut hosts = Self::prepare(test, size, extra)?;
        hosts.up();
        Some(hosts)
    }

    /// The same, not started yet.
    pub(crate) fn prepare(test: &str, size: usize, extra: &str) -> Option<Self> {
        Self::prepare_with(test, size, extra, |i| Mesh::at(format!("{}:{MESH_PORT}", address(i))))
    }

    /// The same, with agents that find their own addresses.
    pub(crate) fn prepare_finding(test: &str, size: usize, extra: &str) -> Option<Self> {
        Self::prepare_with(test, size, extra, |i| Mesh {
            listen: format!("[::]:{MESH_PORT}"),
            reached: format!("{}:{MESH_PORT}", address(i)),
            finds_itself: true,
        })
    }

    fn prepare_with(test: &str, size: usize, extra: &str, mesh: impl Fn(usize) -> Mesh) -> Option<Self> {
        let network = Network::lay(test, size)?;
        let meshes = (0..size).map(mesh).collect();
        let mut cluster = Cluster::prepare_at(meshes, extra);
        for (agent, namespace) in cluster.nodes.iter_mut().zip(&network.hosts) {
            agent.live_in(namespace);
        }
        Some(Self { cluster, network })
    }

    /// Starts the agents, and waits until they have found each other and follow one leader.
    pub(crate) fn up(&mut self) {
        self.cluster.nodes.iter_mut().for_each(Agent::up);
        self.cluster.settled();
    }
}

impl Drop for Hosts {
    /// Heals the network first, so that the agents can clean up.
    fn drop(&mut self) {
        self.network.heal();
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

fn iptables(namespace: &str, arguments: &str) -> bool {
    run("ip", &format!("netns exec {namespace} iptables --wait {arguments}"))
}

fn ip(arguments: &str) {
    assert!(run("ip", arguments), "ip {arguments}");
}

/// Whether a command, its arguments separated by spaces, succeeds.
pub(crate) fn run(program: &str, arguments: &str) -> bool {
    Command::new(program).args(arguments.split(' ')).output().is_ok_and(|output| output.status.success())
}
