//! Whether the clock of this host is right. Deadlines do not depend on it; ages, expiries and logs that people see do.

use crate::types::{Check, Name, Node, NodeState, Timestamp, Topic};

/// How far the clock of another node may be ahead, in seconds, before its figures look wrong.
const AHEAD: i64 = 5;
/// The same behind: a list has figures that are some 20 s old.
const BEHIND: i64 = 60;

/// Whether the kernel says that the clock is synchronised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ntp {
    Synchronised,
    Not,
    /// It cannot be told, and why.
    Unknown(String),
}

/// `nodes`: what the agent knows of other nodes, with the times of their own clocks.
pub fn judge(ntp: &Ntp, nodes: &[Node], here: Option<&Name>, now: Timestamp) -> Vec<Check> {
    let mut checks = vec![match ntp {
        Ntp::Synchronised => Check::ok(Topic::Clock, "the clock is synchronised by NTP"),
        Ntp::Not => {
            let message = "the clock is not synchronised by NTP: times that people see may be wrong";
            Check::warn(Topic::Clock, message, "apt-get install chrony, or: timedatectl set-ntp true")
        }
        Ntp::Unknown(why) => Check::skipped(Topic::Clock, format!("whether NTP runs is not known: {why}")),
    }];
    let others = nodes.iter().filter(|node| node.state == NodeState::Alive && Some(&node.name) != here);
    checks.extend(others.filter_map(|node| skew(node, now)));
    checks
}

fn skew(node: &Node, now: Timestamp) -> Option<Check> {
    let there = node.resources.cores.utilized_at?;
    let ahead = (there.millis() - now.millis()) / 1000;
    if (-BEHIND..=AHEAD).contains(&ahead) {
        return None;
    }
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let message = format!("the clock of {} is about {} s {way} the clock of this host", node.name, ahead.abs());
    Some(Check::warn(Topic::Clock, message, "run chrony or systemd-timesyncd on both hosts: timedatectl set-ntp true"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Verdict, sample};

    #[test]
    fn a_clock_without_ntp_and_a_skew_are_warnings() {
        let now = Timestamp::from_millis(1_780_000_000_000);
        let with = |seconds: i64| {
            let mut node = sample::node("a", "k3f7q2m5x6a4b7c2");
            node.state = NodeState::Alive;
            node.resources.cores.utilized_at = Some(Timestamp::from_millis(now.millis() + seconds * 1000));
            let found = judge(&Ntp::Synchronised, &[node], None, now);
            found.into_iter().filter(Check::is_fault).map(|check| check.message).collect::<Vec<_>>()
        };
        assert!(with(-20).is_empty() && with(4).is_empty());
        assert!(with(90)[0].contains("90 s ahead of"), "{:?}", with(90));
        assert!(with(-90)[0].contains("90 s behind"), "{:?}", with(-90));
        assert_eq!(judge(&Ntp::Not, &[], None, now)[0].verdict, Verdict::Warn);
        assert_eq!(judge(&Ntp::Unknown("x".to_owned()), &[], None, now)[0].verdict, Verdict::Skipped);
    }
}
