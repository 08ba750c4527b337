//! Whether the kernel can enforce the limits of sessions.

use crate::types::{Check, Topic};

/// The controllers that the limits of a session need.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The controllers of the unified hierarchy; `None`: it is not mounted at `/sys/fs/cgroup` (version 1).
    pub unified: Option<String>,
    /// The limits that the engine says that it cannot enforce; `None`: the engine was not asked, or does not answer.
    pub unenforced: Option<Vec<String>>,
}

pub fn judge(Facts { unified, unenforced }: &Facts) -> Vec<Check> {
    const KERNEL: &str = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_enable=memory swapaccount=1";
    if let Some(unenforced) = unenforced.as_ref().filter(|unenforced| !unenforced.is_empty()) {
        let message = format!("the engine cannot enforce these limits on this host: {}", unenforced.join(", "));
        return vec![Check::fail(Topic::Limits, message, KERNEL)];
    }
    let Some(controllers) = unified else {
        return vec![Check::warn(Topic::Limits, "this host has cgroups of version 1, which are being removed", KERNEL)];
    };
    let has = |name: &&str| controllers.split_whitespace().any(|controller| controller == *name);
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return vec![Check::ok(Topic::Limits, "cgroup version 2 with cpu, memory and pids")];
    }
    let message = format!("cgroup version 2 lacks the controllers {}", missing.join(", "));
    vec![Check::fail(Topic::Limits, message, KERNEL)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Verdict;

    #[test]
    fn every_limit_needs_its_controller() {
        let of = |unified: Option<&str>, unenforced: Option<&[&str]>| {
            let unenforced = unenforced.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            judge(&Facts { unified: unified.map(str::to_owned), unenforced }).remove(0).verdict
        };
        assert_eq!(of(Some("cpuset cpu io memory pids\n"), None), Verdict::Ok);
        assert_eq!(of(Some("cpuset io pids"), None), Verdict::Fail);
        assert_eq!(of(Some("cpu memory pids"), Some(&["swap"])), Verdict::Fail);
        assert_eq!(of(None, Some(&[])), Verdict::Warn);
    }
}
