//! Whether clients reach the API by the names that they use.

use core::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::fault;
use crate::types::{Check, Topic, Verdict};

/// How long before its end a certificate is worth a warning: time to get another one.
pub const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// What the file of `http.tls_cert` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// No `http.tls_cert`.
    None,
    /// The file, or what is in it, cannot be used.
    Wrong(String),
    Read {
        /// The names that clients use and that it does not have.
        lacks: Vec<String>,
        /// It is not valid now: why.
        invalid: Option<String>,
        /// The last day of one that ends within [`ENDS_SOON`], as `2026-01-31`.
        ends: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub listen: SocketAddr,
    pub allowed_hosts: Vec<String>,
    /// `runtime.endpoint_host`
    pub endpoint_host: String,
    pub certificate: Certificate,
    /// The file of `http.tls_cert`.
    pub file: String,
    /// Whether the API accepts a connection; `None`: the agent does not run, or the system chose its port.
    pub answers: Option<Result<(), String>>,
}

pub fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = certificate(facts);
    if let Some(Err(why)) = &facts.answers {
        let message = format!("the API does not accept connections at {}: {why}", facts.listen);
        checks.push(Check::fail(Topic::Http, message, "look for its error: journalctl -u ostler"));
    }
    if !facts.listen.ip().is_loopback() && facts.allowed_hosts.is_empty() {
        let message = format!(
            "the API listens on {} and http.allowed_hosts is empty: clients that use a name get `host not allowed`",
            facts.listen
        );
        let mend = "set http.allowed_hosts to the names that clients use, then run: ostler node refresh";
        checks.push(Check::warn(Topic::Http, message, mend));
    }
    checks.extend(shared_name(facts));
    if checks.is_empty() {
        let tls = if facts.certificate == Certificate::None { "without TLS" } else { "with a valid certificate" };
        checks.push(Check::ok(Topic::Http, format!("the API is at {}, {tls}", facts.listen)));
    }
    checks
}

/// Whether the ports of sessions are on a name of the API. Loopback is no name that users of other hosts have.
fn shared_name(Facts { listen, allowed_hosts, endpoint_host, .. }: &Facts) -> Option<Check> {
    let is_listener = endpoint_host.parse::<IpAddr>().is_ok_and(|ip| ip == listen.ip() && !ip.is_loopback());
    let is_allowed = allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(endpoint_host));
    (is_listener || is_allowed).then(|| {
        let message = format!(
            "the ports of sessions and the API are both at {endpoint_host}: a browser sends the cookies of one port to \
             every port of a host name, so a page of a session can get those of a sign-in"
        );
        let mend = "set runtime.endpoint_host to another name of this host than the API has, and restart the agent";
        Check::warn(Topic::Http, message, mend)
    })
}

fn certificate(Facts { certificate, file, .. }: &Facts) -> Vec<Check> {
    let replace = format!("get another certificate, write it to {file}, then run: ostler node refresh");
    match certificate {
        Certificate::None => Vec::new(),
        Certificate::Wrong(why) => vec![fault(Topic::Http, Verdict::Fail, why, &replace)],
        Certificate::Read { lacks, invalid, ends } => {
            let mut checks = Vec::new();
            if let Some(why) = invalid {
                checks.push(Check::fail(Topic::Http, format!("certificate {file} is not valid: {why}"), &replace));
            } else if let Some(day) = ends {
                checks.push(Check::warn(Topic::Http, format!("certificate {file} ends on {day}"), &replace));
            }
            if !lacks.is_empty() {
                let message = format!("certificate {file} is not for {}", lacks.join(", "));
                checks.push(Check::warn(Topic::Http, message, &replace));
            }
            checks
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(listen: &str, certificate: Certificate) -> Facts {
        let listen = listen.parse().unwrap();
        let (allowed_hosts, endpoint_host) = (vec!["a".to_owned()], "host-a".to_owned());
        Facts { listen, allowed_hosts, endpoint_host, certificate, file: "/c".to_owned(), answers: None }
    }

    #[test]
    fn a_certificate_has_names_and_an_end() {
        let of = |lacks: &[&str], invalid: Option<&str>, ends: Option<&str>| {
            let lacks = lacks.iter().map(|name| (*name).to_owned()).collect();
            let (invalid, ends) = (invalid.map(str::to_owned), ends.map(str::to_owned));
            judge(&facts("192.0.2.1:7481", Certificate::Read { lacks, invalid, ends })).remove(0)
        };
        assert_eq!(of(&[], None, None).verdict, Verdict::Ok);
        assert_eq!(of(&["b"], None, None).message, "certificate /c is not for b");
        assert_eq!(of(&[], None, Some("2026-01-31")).message, "certificate /c ends on 2026-01-31");
        assert_eq!(of(&[], Some("it has ended"), None).verdict, Verdict::Fail);
    }

    #[test]
    fn the_ports_of_sessions_have_another_name_than_the_api() {
        let of = |allowed: &str, host: &str| {
            let mut facts = facts("192.0.2.1:7481", Certificate::None);
            (facts.allowed_hosts, facts.endpoint_host) = (vec![allowed.to_owned()], host.to_owned());
            judge(&facts).remove(0).verdict
        };
        assert_eq!(of("ostler.example", "host-a.example"), Verdict::Ok);
        for (allowed, host) in [("Host-A.example", "host-a.example"), ("x", "192.0.2.1")] {
            assert_eq!(of(allowed, host), Verdict::Warn, "{allowed} {host}");
        }
        let mut local = facts("127.0.0.1:7481", Certificate::None);
        local.endpoint_host = "127.0.0.1".to_owned();
        assert_eq!(judge(&local)[0].verdict, Verdict::Ok);
    }

    #[test]
    fn a_listener_for_others_needs_allowed_hosts() {
        let mut open = facts("192.0.2.1:7481", Certificate::None);
        assert_eq!(judge(&open)[0].verdict, Verdict::Ok);
        open.allowed_hosts.clear();
        assert_eq!(judge(&open)[0].verdict, Verdict::Warn);
        let mut local = facts("127.0.0.1:7481", Certificate::None);
        local.allowed_hosts.clear();
        assert_eq!(judge(&local)[0].verdict, Verdict::Ok);
        local.answers = Some(Err("connection refused".to_owned()));
        assert_eq!(judge(&local)[0].verdict, Verdict::Fail);
    }
}
