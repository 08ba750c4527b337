//! Whether the file of the cluster token can be used.

use super::fault;
use crate::types::{Check, Topic, Verdict};

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Facts {
    Good,
    /// There is none. `seeds`: the configuration names other nodes.
    Missing {
        file: String,
        seeds: bool,
    },
    /// Why it is refused, as the agent says it.
    Refused(String),
}

pub fn judge(facts: &Facts, file: &str) -> Vec<Check> {
    vec![match facts {
        Facts::Good => Check::ok(Topic::Token, format!("{file} holds a token, and only its owner reads it")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_token_is_a_fault_of_a_node_with_seeds() {
        let missing = |seeds| judge(&Facts::Missing { file: "/t".to_owned(), seeds }, "/t").remove(0).verdict;
        assert_eq!((missing(true), missing(false)), (Verdict::Fail, Verdict::Ok));
        let open = Facts::Refused("token file /t is readable by others; run: chmod 600 /t".to_owned());
        assert_eq!(judge(&open, "/t").remove(0).mend.as_deref(), Some("chmod 600 /t"));
        assert_eq!(judge(&Facts::Good, "/t").remove(0).verdict, Verdict::Ok);
    }
}
