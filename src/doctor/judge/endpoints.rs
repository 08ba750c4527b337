//! Whether users reach the ports of sessions.

use core::net::IpAddr;
use std::collections::BTreeSet;

use crate::ledger::PortRange;
use crate::types::{Check, Topic};

/// The firewall's chain in which Docker admits published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    Present,
    /// Rules can be read, and the chain is not there.
    Missing,
    /// Rules cannot be read, and why; or the runtime has no such chain.
    Unknown(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub range: PortRange,
    /// The ports of the host that other programs may take for outgoing connections.
    pub ephemeral: Option<(u16, u16)>,
    /// The ports of the range on which programs listen.
    pub listening: BTreeSet<u16>,
    /// The ports of sessions; `None`: the agent does not run, so that it cannot be told whose ports these are.
    pub ours: Option<BTreeSet<u16>>,
    pub publish_address: IpAddr,
    /// Whether this host has `publish_address`.
    pub is_here: bool,
    pub host: String,
    /// The addresses of `runtime.endpoint_host`, or why there are none.
    pub resolved: Result<Vec<IpAddr>, String>,
    /// Whether the kernel forwards IPv4; `None`: not known, or it need not.
    pub forwards: Option<bool>,
    pub chain: Chain,
}

pub fn judge(facts: &Facts) -> Vec<Check> {
    let found = [range(facts), taken(facts), address(facts), host(facts), firewall(facts)];
    let mut checks: Vec<Check> = found.into_iter().flatten().collect();
    if checks.is_empty() {
        let PortRange { first, last } = facts.range;
        let used = match (&facts.ours, facts.listening.len()) {
            (_, 0) => " are free, and".to_owned(),
            (Some(_), taken) => format!(": {taken} in use by sessions, the others free;"),
            // Containers run on without the agent, which alone knows their ports.
            (None, taken) => format!(": {taken} in use, and only the agent knows which are of sessions;"),
        };
        let message = format!("ports {first} to {last}{used} {} has an address", facts.host);
        checks.push(Check::ok(Topic::Endpoints, message));
    }
    if let Chain::Unknown(why) = &facts.chain {
        checks.push(Check::skipped(Topic::Endpoints, format!("the firewall is not checked: {why}")));
    }
    checks
}

fn range(Facts { range: PortRange { first, last }, ephemeral, .. }: &Facts) -> Option<Check> {
    let (low, high) = (*ephemeral)?;
    (*first <= high && low <= *last).then(|| {
        let message = format!(
            "runtime.port_range {first}-{last} overlaps the ports {low}-{high} of outgoing connections: a port may be \
             taken when a session needs it"
        );
        Check::warn(Topic::Endpoints, message, format!("sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}"))
    })
}

fn taken(Facts { range, listening, ours, .. }: &Facts) -> Option<Check> {
    let ours = ours.as_ref()?;
    let others: Vec<u16> = listening.difference(ours).copied().collect();
    let first = others.first()?;
    let message = format!(
        "other programs listen on {} ports of runtime.port_range {}-{}, first {first}",
        others.len(),
        range.first,
        range.last
    );
    Some(Check::warn(Topic::Endpoints, message, format!("find the program: ss -tulpn 'sport = :{first}'")))
}

fn address(Facts { publish_address, is_here, .. }: &Facts) -> Option<Check> {
    (!is_here).then(|| {
        let message = format!("runtime.publish_address is {publish_address}, which is no address of this host");
        let mend = "set runtime.publish_address to an address of this host, or to 0.0.0.0, and restart the agent";
        Check::fail(Topic::Endpoints, message, mend)
    })
}

fn host(Facts { host, resolved, publish_address, .. }: &Facts) -> Option<Check> {
    let mend =
        "set runtime.endpoint_host to a name or an address by which users reach this host, and restart the agent";
    match resolved {
        Err(why) => {
            let message = format!("runtime.endpoint_host {host} cannot be resolved: {why}");
            Some(Check::fail(Topic::Endpoints, message, mend))
        }
        Ok(_) if is_loopback(host) && !publish_address.is_loopback() => {
            let message =
                format!("runtime.endpoint_host is {host}: users of other hosts are told an address of their own");
            Some(Check::warn(Topic::Endpoints, message, mend))
        }
        Ok(_) => None,
    }
}

/// Whether every host takes the name for its own. A name that only this host resolves so is not one.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn firewall(Facts { forwards, chain, .. }: &Facts) -> Option<Check> {
    if *forwards == Some(false) {
        let message = "the kernel forwards no packets, which published ports of containers need";
        return Some(Check::fail(Topic::Endpoints, message, "sysctl -w net.ipv4.ip_forward=1"));
    }
    (*chain == Chain::Missing).then(|| {
        let message = "the firewall has no chain DOCKER: its rules were replaced after Docker started, and published ports \
                       may not open";
        Check::warn(Topic::Endpoints, message, "systemctl restart docker")
    })
}

/// The ports of a range on which sockets of `/proc/net/tcp` and its like listen. `state`: `0A` for TCP, `07` for UDP.
pub fn listening(table: &str, state: &str, range: PortRange) -> BTreeSet<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next()?;
        fields.nth(1).filter(|found| *found == state)?;
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (range.first..=range.last).contains(&port).then_some(port)
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Verdict;

    fn facts() -> Facts {
        Facts {
            range: PortRange { first: 20_000, last: 29_999 },
            ephemeral: Some((32_768, 60_999)),
            listening: BTreeSet::from([20_001]),
            ours: Some(BTreeSet::from([20_001])),
            publish_address: "0.0.0.0".parse().unwrap(),
            is_here: true,
            host: "host-a".to_owned(),
            resolved: Ok(vec!["127.0.1.1".parse().unwrap()]),
            forwards: Some(true),
            chain: Chain::Present,
        }
    }

    fn of(facts: Facts) -> (Verdict, String) {
        let check = judge(&facts).remove(0);
        (check.verdict, check.mend.unwrap_or_default())
    }

    #[test]
    fn every_step_to_a_port_is_checked() {
        assert_eq!(of(facts()).0, Verdict::Ok);
        let ok = |listening: &[u16], ours: Option<&[u16]>| {
            let (listening, ours) =
                (listening.iter().copied().collect(), ours.map(|ours| ours.iter().copied().collect()));
            let check = judge(&Facts { listening, ours, ..facts() }).remove(0);
            assert_eq!(check.verdict, Verdict::Ok);
            check.message
        };
        assert_eq!(ok(&[], None), "ports 20000 to 29999 are free, and host-a has an address");
        assert!(ok(&[20_001], Some(&[20_001])).starts_with("ports 20000 to 29999: 1 in use by sessions, "));
        assert!(ok(&[20_001], None).starts_with("ports 20000 to 29999: 1 in use, and only the agent "));
        let (verdict, mend) = of(Facts { ephemeral: Some((10_000, 65_000)), ..facts() });
        assert_eq!((verdict, &*mend), (Verdict::Warn, "sysctl -w net.ipv4.ip_local_reserved_ports=20000-29999"));
        let (verdict, mend) = of(Facts { listening: BTreeSet::from([20_005]), ..facts() });
        assert_eq!((verdict, &*mend), (Verdict::Warn, "find the program: ss -tulpn 'sport = :20005'"));
        assert_eq!(of(Facts { is_here: false, ..facts() }).0, Verdict::Fail);
        assert_eq!(of(Facts { resolved: Err("no such name".to_owned()), ..facts() }).0, Verdict::Fail);
        assert_eq!(of(Facts { host: "localhost".to_owned(), ..facts() }).0, Verdict::Warn);
        let (verdict, mend) = of(Facts { forwards: Some(false), ..facts() });
        assert_eq!((verdict, &*mend), (Verdict::Fail, "sysctl -w net.ipv4.ip_forward=1"));
        assert_eq!(of(Facts { chain: Chain::Missing, ..facts() }).1, "systemctl restart docker");
        assert_eq!(judge(&Facts { chain: Chain::Unknown("x".to_owned()), ..facts() })[1].verdict, Verdict::Skipped);
    }

    #[test]
    fn listening_sockets_of_a_range_are_read() {
        let table = "  sl  local_address rem_address   st\n   0: 00000000:4E20 00000000:0000 0A 0:0\n   \
                     1: 00000000:4E21 00000000:0000 01 0:0\n   2: 0100007F:1F90 00000000:0000 0A 0:0\n";
        assert_eq!(listening(table, "0A", PortRange { first: 20_000, last: 20_010 }), BTreeSet::from([20_000]));
    }
}
