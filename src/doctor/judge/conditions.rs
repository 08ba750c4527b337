//! The conditions of this node, which its agent has found, beside the checks.

use super::fault;
use crate::types::{Check, Condition, ConditionKind, Topic, Verdict};

/// Each condition is one more finding of its topic, unless a check has found a fault there already: it is mostly the same
/// fault.
pub fn judge(conditions: &[Condition], checks: &[Check]) -> Vec<Check> {
    let is_found = |topic| checks.iter().any(|check| check.topic == topic && check.is_fault());
    let new = conditions.iter().filter(|condition| !is_found(topic(condition.kind)));
    new.map(|condition| {
        let (topic, verdict) = (topic(condition.kind), verdict(condition.kind));
        fault(topic, verdict, &condition.message, "see: ostler node show self")
    })
    .collect()
}

const fn topic(kind: ConditionKind) -> Topic {
    use ConditionKind as Kind;
    match kind {
        Kind::RuntimeUnavailable
        | Kind::EngineUnsupported
        | Kind::EngineLimited
        | Kind::NetworkFailing
        | Kind::RegistryFailing
        | Kind::RegistryLimited
        | Kind::FailingStarts => Topic::Engine,
        Kind::GpuOverrideInactive
        | Kind::GpuLost
        | Kind::GpuFailing
        | Kind::GpuQuarantined
        | Kind::GpuHot
        | Kind::GpuForeignUse
        | Kind::GpuMemoryExceeded
        | Kind::GpuDriverHung
        | Kind::GpuDriverMismatch
        | Kind::GpuDriverOld
        | Kind::MigUnsupported
        | Kind::GpuRuntimeMissing
        | Kind::GpuReloadHazard
        | Kind::GpuSharingLimitsOverride => Topic::Gpus,
        Kind::Overcommitted | Kind::MemoryOvercommitWithoutSwap => Topic::Memory,
        Kind::AloneWithSeeds | Kind::MeshFailing => Topic::Mesh,
        Kind::LowDisk | Kind::DiskPressure | Kind::DataDirectoryFull => Topic::Disk,
        Kind::LimitsNotEnforced => Topic::Limits,
        _ => Topic::Agent,
    }
}

const fn verdict(kind: ConditionKind) -> Verdict {
    use ConditionKind as Kind;
    match kind {
        Kind::RuntimeUnavailable
        | Kind::EngineUnsupported
        | Kind::DataDirectoryFull
        | Kind::LowDisk
        | Kind::DuplicateNodeId
        | Kind::AloneWithSeeds
        | Kind::MeshFailing => Verdict::Fail,
        _ => Verdict::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    #[test]
    fn a_condition_is_a_finding_unless_its_topic_has_a_fault() {
        let message = "the agent at 192.0.2.1 has the same node id; stop one of the two agents".to_owned();
        let condition = Condition { kind: ConditionKind::DuplicateNodeId, message, since: Timestamp::from_millis(0) };
        let found = judge(std::slice::from_ref(&condition), &[Check::ok(Topic::Agent, "it runs")]);
        let mend = Some("stop one of the two agents");
        assert_eq!((found[0].verdict, found[0].mend.as_deref()), (Verdict::Fail, mend));
        assert_eq!(judge(&[condition], &[Check::warn(Topic::Agent, "x", "y")]), []);
    }
}
