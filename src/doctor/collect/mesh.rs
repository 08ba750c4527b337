//! Names, ports and handshakes of the mesh.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{Examiner, QUICK, blocking};
use crate::doctor::judge::mesh::{Facts, Peer, Reached};
use crate::doctor::judge::token::InForce;
use crate::doctor::{Agent, Config};
use crate::identity::{self, Credentials};
use crate::net::{Cause, Unreached, probe};
use crate::types::{ConditionKind, Name, NodeId, NodeState, Timestamp};
use crate::{socket, wire};

/// Nodes that are probed at most. Every further one costs two seconds of traffic where a firewall drops it.
const MAX_PEERS: usize = 16;
/// Addresses of one name that are probed at most.
const MAX_ADDRESSES: usize = 4;

/// `credentials`: those of the token file; `None`: it holds none that can be used.
pub(super) async fn facts(config: &Config, agent: &Agent, by: &Examiner, credentials: Option<&Credentials>) -> Facts {
    let names = names(config, agent);
    let peers = match credentials {
        Some(credentials) => join_all(names.iter().map(|name| peer(name, credentials, by.now))).await,
        None => Vec::new(),
    };
    let told = agent.told();
    let others = || told.into_iter().flat_map(|told| told.nodes.iter().filter(|node| node.id != told.here.id));
    let is_alive = |state| state == NodeState::Alive;
    let own: Option<&Name> = told.map(|told| &told.here.name);
    let unreached_by = others().filter(|node| {
        let failing = node.conditions.iter().filter(|condition| condition.kind == ConditionKind::MeshFailing);
        own.is_some_and(|own| failing.into_iter().any(|condition| names_node(&condition.message, own)))
    });
    Facts {
        key_id: credentials.map(|credentials| credentials.key_id.clone()),
        listen: config.listen,
        port_taken: if told.is_none() { taken(config.listen) } else { None },
        advertise_elsewhere: config.advertise.filter(|address| !is_here(*address)),
        peers,
        unreached_by: unreached_by.map(|node| node.name.clone()).collect(),
        alive: told.map(|_| others().filter(|node| is_alive(node.state)).count()),
    }
}

/// Whether the message of a condition names the node.
fn names_node(message: &str, name: &Name) -> bool {
    message.split(|c: char| c.is_whitespace() || matches!(c, ':' | ',' | ';')).any(|word| word == name.as_str())
}

pub(super) async fn credentials(config: &Config) -> Option<Credentials> {
    let (file, cluster) = (config.token_file.clone(), config.cluster.clone());
    // The id stands in a certificate that nobody looks at: there is no hello.
    let node = NodeId::from_bytes([0; 10]);
    blocking(move || Credentials::new(&identity::read(&file).ok()?, &cluster, &node, wire::PROTOCOL).ok()).await?
}

/// The seeds, and the nodes that the agent does not hear, at the usual port.
fn names(config: &Config, agent: &Agent) -> Vec<String> {
    let silent = agent.told().into_iter().flat_map(|told| {
        let silent = told.nodes.iter().filter(|node| node.state == NodeState::Unknown);
        silent.map(|node| format!("{}:{}", node.address, config.listen.port()))
    });
    let mut names = config.seeds.clone();
    for name in silent {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.truncate(MAX_PEERS);
    names
}

async fn peer(name: &str, credentials: &Credentials, now: Timestamp) -> Peer {
    let found = match timeout(QUICK, lookup_host(name)).await {
        Ok(Ok(addresses)) => {
            let reached = async |address| (address, reach(address, credentials, now).await);
            Ok(join_all(addresses.take(MAX_ADDRESSES).map(reached)).await)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the name server gave no answer within {} s", QUICK.as_secs())),
    };
    Peer { name: name.to_owned(), found }
}

async fn reach(address: SocketAddr, credentials: &Credentials, now: Timestamp) -> Reached {
    match probe(address, credentials, now).await {
        Ok(took) => Reached::Yes(took),
        Err(Unreached { cause: Cause::OtherToken, key_id }) => Reached::OtherToken { key_id },
        Err(Unreached { cause: Cause::NoHello, .. }) => Reached::NoAnswer,
        Err(Unreached { cause: cause @ Cause::NarrowPath(_), .. }) => Reached::Narrow(cause.to_string()),
        Err(Unreached { cause, .. }) => Reached::Other(cause.to_string()),
    }
}

/// Whether the agent that runs has the token of the file: shakes hands with it, as another node would.
pub(super) async fn in_force(config: &Config, agent: &Agent, by: &Examiner, credentials: &Credentials) -> InForce {
    let mut address = config.listen;
    if agent.told().is_none() || address.port() == 0 {
        return InForce::Unknown;
    }
    if taken(address).is_none() {
        return InForce::Silent(address);
    }
    if address.ip().is_unspecified() {
        // `[::]` stands for IPv4 too.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    match reach(address, credentials, by.now).await {
        Reached::Yes(_) => InForce::Same,
        Reached::OtherToken { key_id } => InForce::Other(key_id),
        // An agent that is too busy for a handshake may have any token.
        Reached::NoAnswer | Reached::Narrow(_) | Reached::Other(_) => InForce::Unknown,
    }
}

/// Why the port cannot be bound.
fn taken(listen: SocketAddr) -> Option<String> {
    socket::udp("cluster.listen", listen).err().map(|error| error.to_string())
}

fn is_here(address: SocketAddr) -> bool {
    let bound = UdpSocket::bind((address.ip(), 0));
    bound.map_or_else(|error| error.kind() != io::ErrorKind::AddrNotAvailable, |_| true)
}
