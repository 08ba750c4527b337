//! Whether the file of the cluster token can be used.

use core::net::SocketAddr;

use super::fault;
use crate::types::{Check, Topic, Verdict};

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Facts {
    Good {
        /// Identifies the key of the token and `cluster.name` without revealing it; `None`: it was not derived in time.
        key_id: Option<String>,
        in_force: InForce,
    },
    /// There is none. `seeds`: the configuration names other nodes.
    Missing { file: String, seeds: bool },
    /// Why it is refused, as the agent says it.
    Refused(String),
}

/// What the agent that runs was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InForce {
    Same,
    /// Another token or `cluster.name`, with this key id.
    Other(Option<String>),
    /// It runs, and nobody listens on its own port.
    Silent(SocketAddr),
    /// The agent does not run, or its port is not known.
    Unknown,
}

pub fn judge(facts: &Facts, file: &str) -> Vec<Check> {
    vec![match facts {
        Facts::Good { key_id, in_force } => good(file, key_id.as_deref(), in_force),
        Facts::Missing { file, seeds: true } => {
            let message = format!("there is no token file {file}, and cluster.seeds names other nodes");
            Check::fail(Topic::Token, message, "ssh root@SEED cat /etc/ostler/token | ostler join SEED --token-file -")
        }
        Facts::Missing { file, seeds: false } => {
            Check::ok(Topic::Token, format!("there is no token file {file}: this node stays alone"))
        }
        Facts::Refused(why) => fault(Topic::Token, Verdict::Fail, why, "copy the token of another node of the cluster"),
    }]
}

fn good(file: &str, key_id: Option<&str>, in_force: &InForce) -> Check {
    const RESTART: &str = "systemctl restart ostler; sessions keep running meanwhile";
    let id = |id: Option<&str>| id.map(|id| format!(" (key id {id})")).unwrap_or_default();
    let held = format!("{file} holds a token{}", id(key_id));
    match in_force {
        InForce::Other(other) => {
            let message = format!("{held}, and the agent was started with another one{}", id(other.as_deref()));
            Check::fail(Topic::Token, message, RESTART)
        }
        InForce::Silent(address) => {
            let message = format!(
                "{held}, and the agent does not listen on UDP {address}: it was started without a token or with another \
                 cluster.listen"
            );
            Check::fail(Topic::Token, message, RESTART)
        }
        InForce::Same | InForce::Unknown => Check::ok(Topic::Token, format!("{held}, and only its owner reads it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_token_is_a_fault_of_a_node_with_seeds() {
        let missing = |seeds| judge(&Facts::Missing { file: "/t".to_owned(), seeds }, "/t").remove(0).verdict;
        assert_eq!((missing(true), missing(false)), (Verdict::Fail, Verdict::Ok));
        let open = Facts::Refused("token file /t is readable by others; run: chmod 600 /t".to_owned());
        assert_eq!(judge(&open, "/t").remove(0).mend.as_deref(), Some("chmod 600 /t"));
    }

    #[test]
    fn an_agent_that_was_started_with_another_token_is_a_fault() {
        let of = |in_force| judge(&Facts::Good { key_id: Some("00ff".to_owned()), in_force }, "/t").remove(0);
        assert_eq!(of(InForce::Same).message, "/t holds a token (key id 00ff), and only its owner reads it");
        assert_eq!(of(InForce::Unknown).verdict, Verdict::Ok);
        let other = of(InForce::Other(Some("aa11".to_owned())));
        assert_eq!(
            other.message,
            "/t holds a token (key id 00ff), and the agent was started with another one (key id aa11)"
        );
        assert!(other.mend.unwrap().starts_with("systemctl restart ostler"));
        let silent = of(InForce::Silent("127.0.0.1:7480".parse().unwrap()));
        assert!(silent.verdict == Verdict::Fail && silent.message.contains("UDP 127.0.0.1:7480"), "{silent:?}");
    }
}
