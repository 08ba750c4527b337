//! What `ostler doctor` finds on a host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Name;
use super::text::words;

/// What a check is about, in the order in which checks are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// The container engine.
    Engine,
    Gpus,
    Memory,
    /// The connections to other nodes.
    Mesh,
    Clock,
    /// The file of the cluster token.
    Token,
    Disk,
    /// Whether the kernel can enforce the limits of sessions.
    Limits,
    /// Whether clients reach the API by the names that they use.
    Http,
    /// Whether users reach the ports of sessions.
    Endpoints,
    /// The agent itself, and how it agrees with the other nodes.
    Agent,
}
words!(Topic {
    Engine => "engine",
    Gpus => "gpus",
    Memory => "memory",
    Mesh => "mesh",
    Clock => "clock",
    Token => "token",
    Disk => "disk",
    Limits => "limits",
    Http => "http",
    Endpoints => "endpoints",
    Agent => "agent",
});

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// The check could not be made.
    Skipped,
    /// It works, and may not for long or not for everybody.
    Warn,
    Fail,
}
words!(Verdict { Ok => "ok", Skipped => "skipped", Warn => "warn", Fail => "fail" });

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub topic: Topic,
    pub verdict: Verdict,
    /// What was found, for people.
    pub message: String,
    /// How to mend it, a command where there is one; `null` unless the verdict is `warn` or `fail`.
    pub mend: Option<String>,
}

/// Every check of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkup {
    pub node: Name,
    /// The worst verdict.
    pub verdict: Verdict,
    pub checks: Vec<Check>,
}

/// Why a node gave no checkup. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NoCheckup {
    #[error("too many callers wait for the checks of this node; try again later")]
    Busy,
    #[error("the checks of this node did not end within {seconds} s")]
    Late { seconds: u64 },
    #[error("the checks of this node broke off; look for the error in the log of its agent: journalctl -u ostler")]
    Failed,
    #[error("the daemon is stopping")]
    Stopping,
}

impl Check {
    pub fn ok(topic: Topic, message: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Ok, message: message.into(), mend: None }
    }

    /// `why`: why the check could not be made.
    pub fn skipped(topic: Topic, why: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Skipped, message: why.into(), mend: None }
    }

    pub fn warn(topic: Topic, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Warn, message: message.into(), mend: Some(mend.into()) }
    }

    pub fn fail(topic: Topic, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Fail, message: message.into(), mend: Some(mend.into()) }
    }

    pub const fn is_fault(&self) -> bool {
        matches!(self.verdict, Verdict::Warn | Verdict::Fail)
    }
}

impl Checkup {
    /// The checks in the order of their topics.
    pub fn new(node: Name, mut checks: Vec<Check>) -> Self {
        checks.sort_by_key(|check| check.topic);
        let verdict = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
        Self { node, verdict, checks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkup_is_in_the_order_of_topics_and_has_the_worst_verdict() {
        let checks = vec![
            Check::skipped(Topic::Token, "x"),
            Check::warn(Topic::Engine, "y", "z"),
            Check::ok(Topic::Disk, "w"),
            Check::ok(Topic::Engine, "v"),
        ];
        let checkup = Checkup::new("a".parse().unwrap(), checks);
        let order: Vec<&str> = checkup.checks.iter().map(|check| check.message.as_str()).collect();
        assert_eq!((order, checkup.verdict), (vec!["y", "v", "x", "w"], Verdict::Warn));
    }
}
