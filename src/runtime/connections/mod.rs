//! Whether anybody is connected to the published ports of sessions, as the kernel of this host tells.
//!
//! Two sources complete each other. Connection tracking ([`conntrack`]) knows every connection with its client, open
//! or just closed, TCP and UDP; the engine's address translation keeps it on. The tables of sockets ([`sockets`]) know
//! the open TCP connections that a process of this host accepted: a proxy of the engine, or a session of the process
//! runtime.

mod conntrack;
mod sockets;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::PortBinding;
use crate::types::Protocol;

/// How long a reading serves the sessions that ask. Each reads the kernel's table of all connections: 0.1 s of a core
/// for 100,000 of them.
const FRESH: Duration = Duration::from_secs(5);
/// How long a connection counts after its last packet if it is closed, or is UDP. Longer than the pause between two
/// looks at a session (10 s) and the age of a reading together, so that a short connection is not missed.
const RECENT: Duration = Duration::from_secs(15);
/// How long an open TCP connection counts without a packet. The client of a silent one may be gone without a word:
/// routers give it up after this time (RFC 5382, REQ-5), and so long Linux waits before it checks the peer.
const SILENT: Duration = Duration::from_secs(2 * 60 * 60 + 4 * 60);

/// Reads the connections of this host for every session that asks, at most once in [`FRESH`].
#[derive(Debug)]
pub struct Connections {
    ignored: Vec<IpNet>,
    last: Mutex<Option<(Instant, Arc<Sample>)>>,
    /// It was logged that connections cannot be tracked.
    told: AtomicBool,
}

/// What the connections say of some ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Connected,
    /// Nobody is connected. `tracked`: short connections, connections over UDP and those that the engine's address
    /// translation passes on would have been seen as well.
    Nobody {
        tracked: bool,
    },
}

impl Connections {
    /// `ignored`: the clients whose connections do not count, such as monitors.
    pub fn new(ignored: Vec<IpNet>) -> Arc<Self> {
        Arc::new(Self { ignored, last: Mutex::default(), told: AtomicBool::new(false) })
    }

    /// Whether somebody is connected to one of these ports, or was within the last [`RECENT`].
    pub(super) async fn to(&self, ports: &[PortBinding]) -> Seen {
        let sample = self.sample().await;
        if ports.iter().any(|port| sample.is_used(port.protocol, port.host_port, is_local)) {
            Seen::Connected
        } else {
            Seen::Nobody { tracked: sample.tracked }
        }
    }

    /// A reading that is fresh. The lock is held while the kernel is read, so that all who wait share the reading.
    async fn sample(&self) -> Arc<Sample> {
        let mut last = self.last.lock().await;
        if let Some((at, sample)) = &*last
            && at.elapsed() < FRESH
        {
            return Arc::clone(sample);
        }
        let ignored = self.ignored.clone();
        let (sample, untracked) = spawn_blocking(move || read(&ignored)).await.unwrap_or_default();
        if let Some(why) = untracked
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "cannot read the kernel's connection tracking: {why}; an idle timeout counts open TCP connections and \
                 bytes, and does not ignore the sources of runtime.idle_ignore where it counts bytes"
            );
        }
        let sample = Arc::new(sample);
        *last = Some((Instant::now(), Arc::clone(&sample)));
        sample
    }
}

/// The ports that were in use at one time.
#[derive(Debug, Default)]
struct Sample {
    tracked: bool,
    used: HashMap<(Protocol, u16), Destinations>,
}

/// Where the connections to one port went.
#[derive(Debug, Default)]
struct Destinations {
    /// To this host.
    here: bool,
    /// To these addresses, which may be this host's: a session may be connected to the same port of another host.
    addresses: BTreeSet<IpAddr>,
}

/// A connection that counts as use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    protocol: Protocol,
    client: IpAddr,
    port: u16,
    to: Destination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Here,
    Address(IpAddr),
}

impl Sample {
    fn add(&mut self, connection: Connection, ignored: &[IpNet]) {
        let client = connection.client.to_canonical();
        if ignored.iter().any(|range| range.contains(&client)) {
            return;
        }
        let destinations = self.used.entry((connection.protocol, connection.port)).or_default();
        match connection.to {
            Destination::Here => destinations.here = true,
            Destination::Address(address) => {
                destinations.addresses.insert(address);
            }
        }
    }

    fn is_used(&self, protocol: Protocol, port: u16, is_local: impl Fn(IpAddr) -> bool) -> bool {
        let destinations = self.used.get(&(protocol, port));
        destinations.is_some_and(|to| to.here || to.addresses.iter().any(|address| is_local(*address)))
    }
}

/// Reads both sources; the text says why connection tracking could not be read.
fn read(ignored: &[IpNet]) -> (Sample, Option<String>) {
    let mut sample = Sample::default();
    let flows = conntrack::dump();
    sample.tracked = flows.is_ok();
    let untracked = flows.as_ref().err().map(ToString::to_string);
    let timeouts = conntrack::Timeouts::read();
    let tracked = flows.iter().flatten().filter(|flow| flow.counts(&timeouts)).map(conntrack::Flow::connection);
    let accepted = sockets::accepted();
    tracked.chain(accepted).for_each(|connection| sample.add(connection, ignored));
    (sample, untracked)
}

/// Whether an address is one of this host: only such an address can be bound to.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(client: &str, to: Destination) -> Connection {
        Connection { protocol: Protocol::Tcp, client: client.parse().unwrap(), port: 20_000, to }
    }

    fn sample(connections: &[Connection]) -> Sample {
        let ignored = ["10.0.0.9/32".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let mut sample = Sample::default();
        connections.iter().for_each(|connection| sample.add(*connection, &ignored));
        sample
    }

    #[test]
    fn a_connection_counts_for_its_port_and_protocol() {
        let sample = sample(&[connection("10.0.0.1", Destination::Here)]);
        let nowhere = |_| false;
        assert!(sample.is_used(Protocol::Tcp, 20_000, nowhere));
        assert!(!sample.is_used(Protocol::Udp, 20_000, nowhere));
        assert!(!sample.is_used(Protocol::Tcp, 20_001, nowhere));
    }

    #[test]
    fn a_connection_to_another_hosts_port_does_not_count() {
        let other: IpAddr = "10.0.0.2".parse().unwrap();
        let sample = sample(&[connection("10.0.0.1", Destination::Address(other))]);
        assert!(!sample.is_used(Protocol::Tcp, 20_000, |_| false));
        assert!(sample.is_used(Protocol::Tcp, 20_000, |address| address == other));
    }

    #[test]
    fn ignored_clients_do_not_count_however_their_address_is_written() {
        for client in ["10.0.0.9", "::ffff:10.0.0.9", "fd00::7"] {
            assert!(!sample(&[connection(client, Destination::Here)]).is_used(Protocol::Tcp, 20_000, |_| true));
        }
        assert!(sample(&[connection("10.0.0.8", Destination::Here)]).is_used(Protocol::Tcp, 20_000, |_| true));
    }

    #[test]
    fn only_addresses_of_this_host_are_local() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        // TEST-NET-1, RFC 5737.
        assert!(!is_local("192.0.2.1".parse().unwrap()));
    }
}
