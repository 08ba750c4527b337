//! The conditions of the GPUs: of the devices and their driver, of what sessions and others do on them, and of how they
//! are offered and handed over.

use super::{Inputs, listed};
use crate::capacity::Report;
use crate::gpu::device::Presence;
use crate::gpu::{Device, Driver, Snapshot};
use crate::node::State;
use crate::runtime::Health;
use crate::sessions::{Exceeded, GpuUse, Gpus};
use crate::types::{ConditionKind, GpuSharing};

/// The first driver that reports memory and processes in the form that is read.
const OLDEST_DRIVER: u32 = 510;

pub(super) fn evaluate(inputs: Inputs<'_>) -> Vec<(ConditionKind, String)> {
    let Inputs { report, node, sessions, health, .. } = inputs;
    let used = [
        (ConditionKind::GpuQuarantined, on_gpus(&sessions.gpus, |used| used.quarantined.as_ref())),
        (ConditionKind::GpuForeignUse, on_gpus(&sessions.gpus, |used| used.foreign_use.as_ref())),
        (ConditionKind::GpuMemoryExceeded, memory_exceeded(&sessions.gpus.exceeded)),
        (ConditionKind::GpuOverrideInactive, gpu_override_inactive(report, node)),
        (ConditionKind::GpuSharingLimitsOverride, sharing_limits_override(report, node)),
    ];
    let told = of_devices(&report.gpus).into_iter().chain(used);
    told.filter_map(|(kind, message)| Some((kind, message?))).chain(hand_over(report, health)).collect()
}

/// What the devices and their driver say of themselves.
fn of_devices(gpus: &Snapshot) -> [(ConditionKind, Option<String>); 6] {
    [
        (ConditionKind::GpuLost, lost(gpus)),
        (ConditionKind::GpuFailing, named(gpus, |gpu| gpu.failing.clone())),
        (ConditionKind::GpuHot, hot(gpus)),
        (ConditionKind::GpuDriverHung, hung(gpus)),
        (ConditionKind::GpuDriverMismatch, mismatch(gpus)),
        (ConditionKind::GpuDriverOld, old(gpus)),
    ]
}

/// Which GPUs the engine cannot hand to containers, and what puts them at risk.
fn hand_over(report: &Report, health: &Health) -> Vec<(ConditionKind, String)> {
    match health {
        Health::Up(info) => info.gpus.conditions(&report.gpus),
        Health::Unknown | Health::Down { .. } => Vec::new(),
    }
}

fn gpu_override_inactive(report: &Report, node: &State) -> Option<String> {
    let override_ = node.settings.gpus_override;
    (override_ > 0 && report.physical.gpus == 0)
        .then(|| format!("gpus_override is {override_}, but this host has no GPU: the node offers none"))
}

/// Names the GPUs of which the owner of sessions says so. They take no sessions.
fn on_gpus(gpus: &Gpus, why: impl Fn(&GpuUse) -> Option<&String>) -> Option<String> {
    let told = gpus.devices.iter().filter_map(|(uuid, used)| Some(format!("GPU {uuid}: {}", why(used)?)));
    let named = listed(told.collect())?;
    Some(format!("no new sessions on {named}"))
}

/// For example `session … uses 9 GiB of GPU …, and its workspace declares 8 GiB`.
fn memory_exceeded(exceeded: &[Exceeded]) -> Option<String> {
    let told = |over: &Exceeded| {
        let Exceeded { session, gpu, declared, used } = over;
        format!("session {session} uses {used} of the memory of GPU {gpu}, and its workspace declares {declared}")
    };
    let named = listed(exceeded.iter().map(told).collect())?;
    Some(format!("{named}; raise gpu_memory_bytes of the workspace, or stop the session"))
}

fn sharing_limits_override(report: &Report, node: &State) -> Option<String> {
    let (override_, physical) = (node.settings.gpus_override, report.physical.gpus);
    let sharing = node.settings.gpu_sharing;
    let limited = physical > 0 && override_ > physical && sharing != GpuSharing::Any;
    let who = if sharing == GpuSharing::None { "two sessions" } else { "two users" };
    limited.then(|| {
        format!(
            "gpus_override is {override_} and the host has {physical}, but gpu_sharing is `{sharing}`: \
             no {who} share a GPU; lower gpus_override or change gpu_sharing"
        )
    })
}

fn lost(gpus: &Snapshot) -> Option<String> {
    let named = named(gpus, |gpu| match &gpu.presence {
        Presence::Lost { since, why } => Some(format!("lost since {since}, {why}")),
        Presence::Present => None,
    })?;
    Some(format!("{named}; if a GPU was removed on purpose, run: ostler gpu forget UUID"))
}

fn hot(gpus: &Snapshot) -> Option<String> {
    let named = named(gpus, |gpu| {
        gpu.hot.then(|| "hotter than gpu.max_temperature_celsius, or not yet 5 °C below".to_owned())
    })?;
    Some(format!("no new sessions on {named}"))
}

/// A driver that fails each time does not answer either.
fn hung(gpus: &Snapshot) -> Option<String> {
    let trouble = match &gpus.driver {
        Driver::Hung { .. } | Driver::Failed { .. } => gpus.driver.trouble()?,
        // Silent for so long that its devices take no sessions.
        Driver::Up(_) => gpus.withheld.clone()?,
        Driver::Unknown | Driver::Absent { .. } | Driver::Mismatch { .. } | Driver::NotAsked => return None,
    };
    let shown = if gpus.devices.is_empty() { "" } else { "; the GPUs are shown as they were last seen" };
    Some(format!("{trouble}{shown}"))
}

fn mismatch(gpus: &Snapshot) -> Option<String> {
    match &gpus.driver {
        Driver::Mismatch { .. } => {
            Some(format!("{}; sessions that have a GPU go on, and no new ones are given one", gpus.driver.trouble()?))
        }
        _ => None,
    }
}

fn old(gpus: &Snapshot) -> Option<String> {
    let Driver::Up(versions) = &gpus.driver else { return None };
    let is_old = versions.major().is_some_and(|major| major < OLDEST_DRIVER);
    (is_old && !gpus.devices.is_empty()).then(|| {
        format!(
            "NVIDIA driver {} is older than {OLDEST_DRIVER}: memory and processes of the GPUs are not known; upgrade \
             the driver",
            versions.driver
        )
    })
}

/// Names the devices of which something is to be said.
fn named(gpus: &Snapshot, say: impl Fn(&Device) -> Option<String>) -> Option<String> {
    listed(gpus.devices.iter().filter_map(|gpu| Some(format!("GPU {}: {}", gpu.uuid, say(gpu)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DriverVersions;
    use crate::types::{BootInstant, Timestamp};

    fn found(gpus: &Snapshot) -> Vec<(ConditionKind, String)> {
        of_devices(gpus).into_iter().filter_map(|(kind, message)| Some((kind, message?))).collect()
    }

    fn device(n: u32) -> Device {
        Device::new(format!("GPU-{n}"), n, "H100".to_owned())
    }

    fn driver(version: &str) -> Driver {
        Driver::Up(DriverVersions { driver: version.to_owned(), ..DriverVersions::default() })
    }

    /// The only condition of these devices and this driver.
    fn only(driver: Driver, devices: Vec<Device>) -> (ConditionKind, String) {
        let mut found = found(&Snapshot { driver, devices, ..Snapshot::default() });
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn well_gpus_and_a_host_without_any_have_no_condition() {
        assert_eq!(found(&Snapshot::default()), []);
        let absent = Driver::Absent { why: "no library".to_owned() };
        assert_eq!(found(&Snapshot { driver: absent, ..Snapshot::default() }), []);
        let devices = vec![device(0), device(1)];
        assert_eq!(found(&Snapshot { driver: driver("580.65.06"), devices, ..Snapshot::default() }), []);
        assert_eq!(found(&Snapshot { driver: driver("470.1"), ..Snapshot::default() }), [], "nothing to be read");
    }

    #[test]
    fn lost_gpus_are_named_and_not_all_of_them() {
        let presence = Presence::Lost { since: Timestamp::from_millis(0), why: "gone".to_owned() };
        let devices = (0..5).map(|n| Device { presence: presence.clone(), ..device(n) }).collect();
        let (kind, message) = only(driver("580.1"), devices);
        assert_eq!(kind, ConditionKind::GpuLost);
        let lost = |n| format!("GPU GPU-{n}: lost since 1970-01-01T00:00:00.000Z, gone");
        assert!(message.starts_with(&format!("{}; {}; {}; and 2 more", lost(0), lost(1), lost(2))), "{message}");
        assert!(message.ends_with("ostler gpu forget UUID"), "{message}");
    }

    #[test]
    fn a_failing_gpu_says_why_and_a_hot_one_is_named() {
        let failing = Device { failing: Some("XID 79".to_owned()), ..device(1) };
        let told = only(driver("580.1"), vec![device(0), failing]);
        assert_eq!(told, (ConditionKind::GpuFailing, "GPU GPU-1: XID 79".to_owned()));
        let hot = Device { hot: true, ..device(1) };
        let (kind, message) = only(driver("580.1"), vec![device(0), hot.clone()]);
        assert_eq!(kind, ConditionKind::GpuHot);
        assert!(message.starts_with("no new sessions on GPU GPU-1: hotter than"), "{message}");
        let mut hotter = hot;
        hotter.reading.temperature_celsius = Some(91.0);
        assert_eq!(only(driver("580.1"), vec![device(0), hotter]).1, message, "it does not change with each reading");
    }

    #[test]
    fn a_driver_that_does_not_answer_is_a_condition_with_its_mend() {
        let (kind, message) = only(Driver::Hung { since: BootInstant::default() }, vec![device(0)]);
        assert_eq!(kind, ConditionKind::GpuDriverHung);
        assert!(message.contains("dmesg") && message.contains("last seen"), "{message}");
        let (kind, message) = only(Driver::Failed { why: "signal 11".to_owned() }, Vec::new());
        assert_eq!(kind, ConditionKind::GpuDriverHung);
        assert!(message.ends_with("signal 11"), "{message}");
        let (library, module) = (Some("580.2".to_owned()), None);
        let (kind, message) = only(Driver::Mismatch { library, module }, Vec::new());
        assert_eq!(kind, ConditionKind::GpuDriverMismatch);
        assert!(message.contains("580.2 and its kernel module unknown: reboot"), "{message}");
    }

    #[test]
    fn a_driver_before_510_is_old() {
        let (kind, message) = only(driver("470.256.02"), vec![device(0)]);
        assert_eq!(kind, ConditionKind::GpuDriverOld);
        assert!(message.contains("470.256.02"), "{message}");
        for version in ["510.39", "580.65.06", "", "unknown"] {
            let gpus = Snapshot { driver: driver(version), devices: vec![device(0)], ..Snapshot::default() };
            assert_eq!(found(&gpus), [], "{version}");
        }
    }
}
