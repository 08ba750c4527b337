//! Whether this node and the others reach each other.

use core::net::SocketAddr;
use std::time::Duration;

use crate::types::{Check, Name, Topic};

/// A handshake that takes longer delays votes and offers: those of one site take milliseconds.
const SLOW: Duration = Duration::from_millis(500);
/// Nodes that a message names at most.
const MAX_NAMED: usize = 3;

/// What became of a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// The other side has the same token.
    Yes(Duration),
    /// `key_id`: the one that the other side names.
    OtherToken { key_id: Option<String> },
    /// Nothing came back in time.
    NoAnswer,
    /// Only small datagrams arrive: what the mesh says of it.
    Narrow(String),
    /// A clock was never set, or something else: what the mesh says of it.
    Other(String),
}

/// A node that is to be reached: a seed, or a node that the agent does not hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// As the configuration or the agent names it.
    pub name: String,
    /// Each address with what became of it, or why the name has none.
    pub found: Result<Vec<(SocketAddr, Reached)>, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The key id of this host's token; `None`: there is no token that can be used.
    pub key_id: Option<String>,
    pub listen: SocketAddr,
    /// Why the port cannot be bound while the agent does not run; `None`: it runs, or the port is free.
    pub port_taken: Option<String>,
    /// `cluster.advertise`, if this host does not have that address.
    pub advertise_elsewhere: Option<SocketAddr>,
    pub peers: Vec<Peer>,
    /// Nodes that say that they cannot reach this one.
    pub unreached_by: Vec<Name>,
    /// How many other nodes the agent hears; `None`: it does not run.
    pub alive: Option<usize>,
}

pub fn judge(facts: &Facts) -> Vec<Check> {
    let Some(key_id) = &facts.key_id else {
        return vec![Check::skipped(Topic::Mesh, "there is no cluster token that can be used: this node stays alone")];
    };
    let port = facts.listen.port();
    let mut checks = Vec::new();
    if let Some(why) = &facts.port_taken {
        let message = format!("UDP {} (cluster.listen) cannot be used: {why}", facts.listen);
        checks.push(Check::fail(Topic::Mesh, message, format!("find its user: ss -ulpn 'sport = :{port}'")));
    }
    if let Some(address) = facts.advertise_elsewhere {
        let message = format!("cluster.advertise is {address}, which is no address of this host");
        let mend = "set cluster.advertise to an address of this host, unless a router forwards it; then run: ostler node \
                    refresh";
        checks.push(Check::warn(Topic::Mesh, message, mend));
    }
    checks.extend(facts.peers.iter().map(|peer| judge_peer(peer, port, key_id)));
    if !facts.unreached_by.is_empty() {
        let named: Vec<&str> = facts.unreached_by.iter().take(MAX_NAMED).map(Name::as_str).collect();
        let message = format!("{} cannot reach this node", named.join(", "));
        checks.push(Check::fail(Topic::Mesh, message, opened(port, "this host")));
    }
    if checks.is_empty() {
        let heard = match facts.alive {
            Some(1) => "1 other node answers".to_owned(),
            Some(alive) => format!("{alive} other nodes answer"),
            None => "there are no seeds to check".to_owned(),
        };
        checks.push(Check::ok(Topic::Mesh, format!("UDP {}: {heard}", facts.listen)));
    }
    checks
}

fn judge_peer(peer: &Peer, port: u16, key_id: &str) -> Check {
    let name = &peer.name;
    let found = match &peer.found {
        Ok(found) if !found.is_empty() => found,
        Ok(_) => return unresolved(name, "it has no address"),
        Err(why) => return unresolved(name, why),
    };
    let reached = |(address, reached): &(SocketAddr, Reached)| match reached {
        Reached::Yes(took) => Some((*address, *took)),
        _ => None,
    };
    match found.iter().find_map(reached) {
        Some((address, took)) if took > SLOW => {
            let message = format!("{} took {} ms to shake hands", label(name, address), took.as_millis());
            Check::warn(Topic::Mesh, message, format!("look for packet loss: mtr -u -P {port} {}", address.ip()))
        }
        Some((address, took)) => {
            let took = took.as_millis();
            let peer = label(name, address);
            Check::ok(Topic::Mesh, format!("{peer} answers with this cluster's token in {took} ms"))
        }
        None => unreached(name, &found[0], key_id),
    }
}

/// The name and its address, once where they are the same.
fn label(name: &str, address: SocketAddr) -> String {
    if name == address.to_string() { name.to_owned() } else { format!("{name} ({address})") }
}

fn unresolved(name: &str, why: &str) -> Check {
    let message = format!("the name of {name} cannot be resolved: {why}");
    Check::fail(Topic::Mesh, message, "correct cluster.seeds, or add the name to DNS or /etc/hosts")
}

fn unreached(name: &str, (address, reached): &(SocketAddr, Reached), key_id: &str) -> Check {
    let peer = label(name, *address);
    let (message, mend) = match reached {
        Reached::OtherToken { key_id: other } => (
            format!(
                "{peer} answers and has another token or another cluster.name: its key id is {}, and that of this host \
                 {key_id}",
                other.as_deref().unwrap_or("not known")
            ),
            format!("copy the token: ssh root@{} cat /etc/ostler/token; and compare cluster.name", address.ip()),
        ),
        Reached::Narrow(why) => (why.clone(), "raise the MTU of the path to 1280 or more".to_owned()),
        Reached::Other(why) => (format!("{peer}: {why}"), "look for its error: journalctl -u ostler".to_owned()),
        Reached::NoAnswer | Reached::Yes(_) => (
            format!("{peer} does not answer on UDP {}", address.port()),
            format!("start the agent there, and {}", opened(address.port(), "both hosts")),
        ),
    };
    Check::fail(Topic::Mesh, message, mend)
}

fn opened(port: u16, whose: &str) -> String {
    format!("open UDP {port} in the firewall of {whose}: ufw allow {port}/udp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Verdict;

    fn facts(peers: Vec<Peer>) -> Facts {
        Facts {
            key_id: Some("00ff".to_owned()),
            listen: "[::]:7480".parse().unwrap(),
            port_taken: None,
            advertise_elsewhere: None,
            peers,
            unreached_by: Vec::new(),
            alive: Some(2),
        }
    }

    fn peer(reached: Reached) -> Check {
        let found = Ok(vec![("192.0.2.1:7480".parse().unwrap(), reached)]);
        judge(&facts(vec![Peer { name: "host-a".to_owned(), found }])).remove(0)
    }

    #[test]
    fn another_token_is_told_from_no_answer() {
        assert_eq!(peer(Reached::Yes(Duration::from_millis(3))).verdict, Verdict::Ok);
        assert_eq!(peer(Reached::Yes(Duration::from_secs(1))).verdict, Verdict::Warn);
        let token = peer(Reached::OtherToken { key_id: Some("aa11".to_owned()) });
        assert!(token.message.contains("another token"), "{token:?}");
        assert!(token.message.ends_with("its key id is aa11, and that of this host 00ff"), "{token:?}");
        assert!(token.mend.unwrap().starts_with("copy the token"));
        let silent = peer(Reached::NoAnswer);
        assert!(silent.message.ends_with("does not answer on UDP 7480"), "{silent:?}");
        assert!(silent.mend.unwrap().ends_with("ufw allow 7480/udp"));
        assert!(peer(Reached::Narrow("narrow".to_owned())).mend.unwrap().contains("MTU"));
        assert_eq!(peer(Reached::Other("x".to_owned())).verdict, Verdict::Fail);
    }

    #[test]
    fn one_address_of_a_name_is_enough() {
        let address = |text: &str| text.parse().unwrap();
        let found = Ok(vec![
            (address("[2001:db8::1]:7480"), Reached::NoAnswer),
            (address("192.0.2.1:7480"), Reached::Yes(Duration::ZERO)),
        ]);
        assert_eq!(judge(&facts(vec![Peer { name: "a".to_owned(), found }]))[0].verdict, Verdict::Ok);
        let unknown = Peer { name: "a".to_owned(), found: Err("no such name".to_owned()) };
        assert_eq!(judge(&facts(vec![unknown]))[0].verdict, Verdict::Fail);
    }

    #[test]
    fn the_port_the_address_and_the_way_back_are_checked() {
        assert_eq!(judge(&facts(Vec::new()))[0].message, "UDP [::]:7480: 2 other nodes answer");
        let taken = Facts { port_taken: Some("address in use".to_owned()), ..facts(Vec::new()) };
        assert_eq!(judge(&taken)[0].verdict, Verdict::Fail);
        let elsewhere = Facts { advertise_elsewhere: "192.0.2.9:1".parse().ok(), ..facts(Vec::new()) };
        assert_eq!(judge(&elsewhere)[0].verdict, Verdict::Warn);
        let back = Facts { unreached_by: vec!["b".parse().unwrap()], ..facts(Vec::new()) };
        assert_eq!(judge(&back)[0].message, "b cannot reach this node");
        let alone = Facts { key_id: None, ..taken };
        assert_eq!(judge(&alone)[0].verdict, Verdict::Skipped);
    }
}
