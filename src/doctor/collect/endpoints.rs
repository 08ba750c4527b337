//! Ports, addresses and firewall of sessions.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::process::Stdio;

use tokio::net::lookup_host;
use tokio::process::Command;
use tokio::time::timeout;

use super::QUICK;
use crate::doctor::judge::endpoints::{Chain, Facts, listening};
use crate::doctor::{Agent, Config};
use crate::ledger::PortRange;
use crate::types::RuntimeKind;

/// The states of a listening socket in `/proc/net`.
const TABLES: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];

pub(super) async fn facts(config: &Config, agent: &Agent) -> Facts {
    let is_docker = config.runtime == RuntimeKind::Docker;
    let resolved = match timeout(QUICK, lookup_host((config.endpoint_host.as_str(), 0))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the name server gave no answer within {} s", QUICK.as_secs())),
    };
    let bound = UdpSocket::bind((config.publish_address, 0));
    Facts {
        range: config.port_range,
        ephemeral: ephemeral(),
        listening: all_listening(config.port_range),
        ours: agent.told().map(|told| told.ports.clone()),
        publish_address: config.publish_address,
        is_here: bound.map_or_else(|error| error.kind() != io::ErrorKind::AddrNotAvailable, |_| true),
        host: config.endpoint_host.clone(),
        resolved,
        forwards: if is_docker { forwards() } else { None },
        chain: if is_docker { chain().await } else { Chain::Present },
    }
}

fn ephemeral() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_whitespace().map(|port| port.parse().ok());
    Some((ports.next()??, ports.next()??))
}

fn all_listening(range: PortRange) -> BTreeSet<u16> {
    let read = |(table, state): (&str, &str)| {
        listening(&fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default(), state, range)
    };
    TABLES.into_iter().flat_map(read).collect()
}

fn forwards() -> Option<bool> {
    Some(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok()?.trim() != "0")
}

/// Lists the rules of Docker's chain.
async fn chain() -> Chain {
    let list = Command::new("iptables")
        .args(["--wait", "1", "--list-rules", "DOCKER"])
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .output();
    match timeout(QUICK, list).await {
        Err(_) => Chain::Unknown(format!("iptables did not end within {} s", QUICK.as_secs())),
        Ok(Err(error)) => Chain::Unknown(format!("iptables cannot be run: {error}")),
        Ok(Ok(output)) if output.status.success() => Chain::Present,
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            if said.contains("No chain") {
                return Chain::Missing;
            }
            let first = said.lines().next().unwrap_or("iptables failed");
            Chain::Unknown(first.trim_end_matches('.').to_owned())
        }
    }
}
