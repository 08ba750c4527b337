//! Whether the agent of this host runs, and agrees with the other nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::types::{Check, Event, Name, Node, NodeState, Timestamp, Topic};

/// Open files that an agent of a large cluster may need: a connection each node, session, log and client.
const FILES: u64 = 4096;
/// How far back unclean starts count: an operator looks into those of the last day.
pub const WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Nodes that a message names at most.
const MAX_NAMED: usize = 3;

#[derive(Debug, Clone, PartialEq)]
pub struct Facts<'a> {
    /// The node of this host and every node, or why the agent does not tell.
    pub told: Result<(&'a Node, &'a [Node]), &'a str>,
    /// The version of this program.
    pub version: &'a str,
    /// The limit of open files of the agent's process; `None`: not known.
    pub files: Option<u64>,
    /// When the agent started within the last [`WITHIN`] after one that was not stopped, or why that is not known.
    pub unclean: Result<&'a [Timestamp], &'a str>,
}

pub fn judge(facts: &Facts<'_>) -> Vec<Check> {
    let (here, nodes) = match facts.told {
        Ok(told) => told,
        Err(why) => {
            let mend = "systemctl start ostler; and if it ends again: journalctl -u ostler";
            let down = Check::fail(Topic::Agent, format!("the agent of this host does not answer: {why}"), mend);
            return std::iter::once(down).chain(starts(facts.unclean)).collect();
        }
    };
    let found =
        [program(here, facts.version), versions(nodes), silent(nodes), files(facts.files), starts(facts.unclean)];
    let mut checks: Vec<Check> = found.into_iter().flatten().collect();
    if checks.is_empty() {
        let count = nodes.len();
        let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        checks
            .push(Check::ok(Topic::Agent, format!("the agent of {} runs {}, {nodes} known", here.name, here.version)));
    }
    checks
}

fn program(here: &Node, version: &str) -> Option<Check> {
    (here.version != version).then(|| {
        let message = format!("the agent runs version {}, and the program on this host is {version}", here.version);
        Check::warn(Topic::Agent, message, "systemctl restart ostler; sessions keep running meanwhile")
    })
}

fn versions(nodes: &[Node]) -> Option<Check> {
    let alive = nodes.iter().filter(|node| node.state == NodeState::Alive);
    let versions: BTreeSet<&str> = alive.map(|node| node.version.as_str()).collect();
    (versions.len() > 1).then(|| {
        let message =
            format!("the nodes run different versions: {}", versions.iter().copied().collect::<Vec<_>>().join(", "));
        Check::warn(Topic::Agent, message, "upgrade one node after the other, the leader last: ostler node ls")
    })
}

fn silent(nodes: &[Node]) -> Option<Check> {
    let silent: Vec<&Name> =
        nodes.iter().filter(|node| matches!(node.state, NodeState::Unknown)).map(|node| &node.name).collect();
    let first = silent.first()?;
    let named: Vec<&str> = silent.iter().take(MAX_NAMED).map(|name| name.as_str()).collect();
    let message = match silent.len() {
        1 => format!("node {first} does not answer"),
        many => format!("{many} nodes do not answer: {}", named.join(", ")),
    };
    let mend = format!("start the agent there; if the node will not return: ostler node rm {first}");
    Some(Check::warn(Topic::Agent, message, mend))
}

fn files(limit: Option<u64>) -> Option<Check> {
    let limit = limit.filter(|limit| *limit < FILES)?;
    let message = format!("the agent may open {limit} files, and a large cluster needs {FILES}");
    Some(Check::warn(Topic::Agent, message, "set LimitNOFILE=65536 in its unit: systemctl edit ostler"))
}

fn starts(unclean: Result<&[Timestamp], &str>) -> Option<Check> {
    let hours = WITHIN.as_secs() / 3600;
    let unclean = match unclean {
        Ok(unclean) => unclean,
        Err(why) => {
            let message = format!("unclean starts are not checked, since the event log cannot be read: {why}");
            return Some(Check::skipped(Topic::Agent, message));
        }
    };
    let last = unclean.iter().max()?;
    let times = if unclean.len() == 1 { "once".to_owned() } else { format!("{} times", unclean.len()) };
    let message = format!(
        "the agent started {times} in the last {hours} h after one that was not stopped (killed, crashed or a power \
         cut), last at {last}"
    );
    Some(Check::warn(Topic::Agent, message, "look for the reason before that time: journalctl -u ostler"))
}

/// The times of the starts that followed an agent that was not stopped.
pub fn unclean(starts: &[Event]) -> Vec<Timestamp> {
    let is_unclean = |start: &&Event| start.data.get("unclean") == Some(&true.into());
    starts.iter().filter(is_unclean).map(|start| start.time).collect()
}

/// The soft limit of open files, of `/proc/PID/limits`.
pub fn file_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EventKind, Verdict, sample};

    fn of(version: &str, files: Option<u64>, change: impl FnOnce(&mut Node)) -> Check {
        let here = sample::node("a", "k3f7q2m5x6a4b7c2");
        let mut other = sample::node("a", "k3f7q2m5x6a4b7c2");
        other.name = "b".parse().unwrap();
        (other.state, other.version) = (NodeState::Alive, here.version.clone());
        change(&mut other);
        let nodes = [here.clone(), other];
        judge(&Facts { told: Ok((&here, &nodes)), version, files, unclean: Ok(&[]) }).remove(0)
    }

    #[test]
    fn an_agent_that_disagrees_is_a_warning() {
        let version = sample::node("a", "k3f7q2m5x6a4b7c2").version;
        assert_eq!(of(&version, Some(FILES), |_| {}).verdict, Verdict::Ok);
        assert!(of("9.9", None, |_| {}).message.contains("the program on this host is 9.9"));
        assert!(of(&version, None, |node| node.version = "9.9".to_owned()).message.contains("different versions"));
        assert_eq!(of(&version, None, |node| node.state = NodeState::Unknown).message, "node b does not answer");
        assert!(of(&version, Some(1024), |_| {}).mend.unwrap().contains("LimitNOFILE"));
    }

    #[test]
    fn unclean_starts_are_counted_with_the_last_also_while_the_agent_is_down() {
        let of = |unclean| judge(&Facts { told: Err("no socket"), version: "1", files: None, unclean });
        assert_eq!(of(Ok(&[])).len(), 1);
        let at = |minutes: i64| Timestamp::from_millis(minutes * 60_000);
        let (once, times) = ([at(1)], [at(2), at(5), at(1)]);
        let many = of(Ok(&times));
        assert_eq!((many[0].verdict, many[1].verdict), (Verdict::Fail, Verdict::Warn));
        assert!(
            many[1].message.contains("started 3 times") && many[1].message.ends_with(&at(5).to_string()),
            "{many:?}"
        );
        assert!(of(Ok(&once))[1].message.contains("started once"));
        assert!(many[1].mend.as_ref().unwrap().ends_with("journalctl -u ostler"));
        assert_eq!(of(Err("denied"))[1].verdict, Verdict::Skipped);
    }

    #[test]
    fn only_starts_after_an_agent_that_was_not_stopped_count() {
        let start = |unclean: bool, seq| {
            let mut start = sample::event(EventKind::AgentStarted, seq);
            start.data.insert("unclean".to_owned(), unclean.into());
            start
        };
        let (clean, dirty) = (start(false, 1), start(true, 2));
        let plain = sample::event(EventKind::AgentStarted, 3);
        assert_eq!(unclean(&[clean, dirty.clone(), plain]), [dirty.time]);
    }

    #[test]
    fn the_limit_of_open_files_is_read() {
        assert_eq!(
            file_limit("Max cpu time  unlimited\nMax open files            1024    524288    files\n"),
            Some(1024)
        );
        assert_eq!(file_limit("Max open files            unlimited    unlimited    files\n"), None);
    }
}
