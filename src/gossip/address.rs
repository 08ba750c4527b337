//! The address that a node tells the others; pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Places;

/// An address of nobody (RFC 5737): the route to it is the default route.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Rounds for which a new address must stay the same before it is told: while a network comes up, routes come one after
/// another.
const STEADY_ROUNDS: u32 = 2;

/// The source address that packets to an address have; `None` if there is no route.
pub type Route = fn(SocketAddr) -> Option<IpAddr>;

/// What the others are to be told: what the operator says, else the address that the endpoint is bound to, else the
/// source address of the route to the first of `seeds` or other `nodes`, else to anywhere. `None` if there is no route.
///
/// The loopback address is told only if nothing else is known: a host's own name may mean it.
pub(super) fn advertised(
    places: &Places,
    bound: SocketAddr,
    seeds: &[SocketAddr],
    nodes: &[SocketAddr],
    route: impl Fn(SocketAddr) -> Option<IpAddr>,
) -> Option<SocketAddr> {
    if let Some(advertise) = places.advertise {
        return Some(advertise);
    }
    if !bound.ip().is_unspecified() {
        return Some(bound);
    }
    let there = seeds.iter().chain(nodes).chain([&ANYWHERE]).filter(|there| bound.is_ipv6() || there.is_ipv4());
    let sources: Vec<IpAddr> = there.filter_map(|there| route(*there)).collect();
    let source = sources.iter().find(|source| !source.is_loopback()).or(sources.first())?;
    Some(SocketAddr::new(*source, bound.port()))
}

/// The address that the others are told, and the one that may replace it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) address: SocketAddr,
    /// A different address, and the rounds for which it has been found.
    next: Option<(SocketAddr, u32)>,
}

impl Told {
    pub(super) const fn new(address: SocketAddr) -> Self {
        Self { address, next: None }
    }

    /// Takes in what this round found. Returns the address to move to, once it is steady.
    pub(super) fn found(&mut self, address: Option<SocketAddr>) -> Option<SocketAddr> {
        let Some(address) = address.filter(|found| *found != self.address) else {
            self.next = None;
            return None;
        };
        let rounds = match self.next {
            Some((next, rounds)) if next == address => rounds + 1,
            _ => 1,
        };
        self.next = Some((address, rounds));
        (rounds >= STEADY_ROUNDS).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A host at 10.0.0.5 on its network, at 198.51.100.5 for the rest of the world.
    fn route(there: SocketAddr) -> Option<IpAddr> {
        match there.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => Some(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V4(ip) if ip.octets()[0] == 10 => Some(Ipv4Addr::new(10, 0, 0, 5).into()),
            IpAddr::V4(_) => Some(Ipv4Addr::new(198, 51, 100, 5).into()),
            IpAddr::V6(_) => None,
        }
    }

    fn told(bound: &str, seeds: &[&str], nodes: &[&str]) -> Option<String> {
        let [seeds, nodes] = [seeds, nodes].map(|all| all.iter().map(|text| at(text)).collect::<Vec<_>>());
        advertised(&Places::default(), at(bound), &seeds, &nodes, route).map(|address| address.to_string())
    }

    #[test]
    fn the_operators_address_comes_before_the_bound_one_and_that_before_a_route() {
        let says = Places { advertise: Some(at("192.0.2.7:1")), ..Places::default() };
        assert_eq!(advertised(&says, at("10.0.0.5:2"), &[], &[], route), Some(at("192.0.2.7:1")));
        assert_eq!(told("10.0.0.9:2", &["10.0.0.1:2"], &[]).unwrap(), "10.0.0.9:2");
        assert_eq!(told("[::]:2", &["10.0.0.1:2"], &[]).unwrap(), "10.0.0.5:2");
    }

    #[test]
    fn seeds_come_before_other_nodes_and_those_before_the_default_route() {
        assert_eq!(told("[::]:2", &["192.0.2.1:2"], &["10.0.0.1:2"]).unwrap(), "198.51.100.5:2");
        assert_eq!(told("[::]:2", &[], &["10.0.0.1:2"]).unwrap(), "10.0.0.5:2");
        assert_eq!(told("[::]:2", &[], &[]).unwrap(), "198.51.100.5:2");
    }

    #[test]
    fn the_loopback_address_comes_last() {
        assert_eq!(told("[::]:2", &["127.0.1.1:2"], &[]).unwrap(), "198.51.100.5:2");
        let alone = |there: SocketAddr| route(there).filter(IpAddr::is_loopback);
        let seeds = [at("127.0.0.1:2")];
        assert_eq!(
            advertised(&Places::default(), at("0.0.0.0:7"), &seeds, &[], alone),
            Some(at("127.0.0.1:7")),
            "all seeds are on this host"
        );
        assert_eq!(advertised(&Places::default(), at("0.0.0.0:7"), &[], &[], alone), None, "there is no network");
    }

    #[test]
    fn a_new_address_is_told_once_it_is_steady() {
        let mut told = Told::new(at("10.0.0.5:2"));
        let [old, new, other] = ["10.0.0.5:2", "10.0.0.6:2", "10.0.0.7:2"].map(at);
        for found in [Some(new), Some(other), Some(new), None, Some(new), Some(old), Some(new)] {
            assert_eq!(told.found(found), None, "{found:?}");
        }
        assert_eq!(told.found(Some(new)), Some(new));
    }
}
