//! Where the other nodes are told to reach this one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use anyhow::{Context, Result};

use crate::config;
use crate::net::Net;

/// An address of nobody (RFC 5737): the way there is the way out.
const ANYWHERE: &str = "192.0.2.1:9";

/// What the others are told of where this node is.
pub(super) fn advertised(cluster: &config::Cluster, net: &Net) -> Result<SocketAddr> {
    let bound = net.local_addr().context("the mesh's own address is not known")?;
    if let Some(advertise) = cluster.advertise {
        return Ok(advertise);
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let source = cluster.seeds.iter().find_map(|seed| source_towards(seed));
    // Without a seed others come to this node: they see its address, and it tells the way out to anywhere.
    let source = source.or_else(|| source_towards(ANYWHERE)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Ok(SocketAddr::new(source, bound.port()))
}

/// The address of this host that packets to `there` come from. Nothing is sent.
fn source_towards(there: &str) -> Option<IpAddr> {
    there.to_socket_addrs().ok()?.find_map(|there| {
        let any: IpAddr = if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(there).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}
