//! A GPU as the API shows it, and the parts of it that travel inside the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Bytes, Invalid, Name, SessionId, Timestamp, User};

/// The class of NVIDIA's GPUs, as the container device interface (CDI) names it.
pub const NVIDIA_CLASS: &str = "nvidia.com/gpu";
/// The characters of a class at most.
pub(super) const MAX_GPU_CLASS: usize = 63;

/// Which sessions may share one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuSharing {
    /// None: one session per device.
    None,
    /// Sessions of one user.
    #[default]
    SameUser,
    /// Any sessions. Isolation between users on one GPU is not well established.
    Any,
}
words!(GpuSharing { None => "none", SameUser => "same_user", Any => "any" });

/// Whether a GPU takes sessions, and if not, why: the first that holds, in this order. Only `asleep` and `ok` take
/// sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuState {
    /// It was there since the host booted, and is not found any more.
    Lost,
    /// It reported a fault that needs a reset or a repair.
    Failing,
    /// The container engine cannot give it to containers.
    Unlisted,
    /// A process of a session that has ended is still on it.
    Quarantined,
    /// The operator wants no new sessions on it.
    Cordoned,
    /// It is hotter than `gpu.max_temperature_celsius`.
    Hot,
    /// Processes that are not of ostler's sessions use more of its memory than `gpu.max_foreign_memory`.
    Foreign,
    /// The kernel has suspended it; a session wakes it up.
    Asleep,
    #[default]
    Ok,
}
words!(GpuState {
    Lost => "lost",
    Failing => "failing",
    Unlisted => "unlisted",
    Quarantined => "quarantined",
    Cordoned => "cordoned",
    Hot => "hot",
    Foreign => "foreign",
    Asleep => "asleep",
    Ok => "ok",
});

impl GpuState {
    /// Whether it takes new sessions.
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Asleep | Self::Ok)
    }
}

/// How the driver says that a GPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuHealth {
    #[default]
    Ok,
    Failing,
    Lost,
    /// The driver does not answer, or does not say.
    Unknown,
}
words!(GpuHealth { Ok => "ok", Failing => "failing", Lost => "lost", Unknown => "unknown" });

/// On whose word the node frees a GPU of a session that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuRelease {
    /// The driver lists no process of the session on it any more.
    Proven,
    /// The driver lists no processes on this host: the container has ended, and that is all that is known.
    #[default]
    Unproven,
}
words!(GpuRelease { Proven => "proven", Unproven => "unproven" });

/// Who keeps a session to its `gpu_memory_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuMemoryEnforced {
    /// Nobody: a session can take more, and the node then shows a condition.
    #[default]
    No,
    /// The driver does. No version of ostler sets that up yet.
    Driver,
}
words!(GpuMemoryEnforced { No => "no", Driver => "driver" });

/// A GPU of a node. In MIG mode, each instance of a GPU is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gpu {
    pub uuid: String,
    /// As the driver counts its devices now.
    pub index: u32,
    pub node: Name,
    pub model: String,
    /// The CDI class, as `nvidia.com/gpu`.
    #[serde(default)]
    pub class: String,
    #[serde(default)]
    pub pci_address: Option<String>,
    /// The UUID of the GPU that this is a MIG instance of.
    #[serde(default)]
    pub mig_parent: Option<String>,
    pub memory_total_bytes: Option<Bytes>,
    pub memory_used_bytes: Option<Bytes>,
    /// In use by processes that are not of ostler's sessions.
    #[serde(default)]
    pub memory_foreign_bytes: Option<Bytes>,
    /// The sum of `gpu_memory_bytes` of the sessions on it.
    #[serde(default)]
    pub memory_declared_bytes: Bytes,
    #[serde(default)]
    pub memory_enforced: GpuMemoryEnforced,
    pub utilization_percent: Option<f64>,
    pub temperature_celsius: Option<f64>,
    pub power_watts: Option<f64>,
    /// Why it runs slower than it could, such as `thermal`; `null` if unknown.
    #[serde(default)]
    pub throttling: Option<Vec<String>>,
    #[serde(default)]
    pub details: GpuDetails,
    /// When the measurements were taken.
    #[serde(default)]
    pub read_at: Option<Timestamp>,
    pub health: GpuHealth,
    #[serde(default)]
    pub state: GpuState,
    /// Why it takes no sessions, for a person.
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default)]
    pub release: GpuRelease,
    /// How many sessions may hold the device at once under the override.
    pub slots: u32,
    pub slots_used: u32,
    pub cordoned: bool,
}

/// A GPU without its measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProfile {
    pub uuid: String,
    pub index: u32,
    pub model: String,
    #[serde(default)]
    pub class: String,
    #[serde(default)]
    pub pci_address: Option<String>,
    #[serde(default)]
    pub mig_parent: Option<String>,
    pub memory_total_bytes: Option<Bytes>,
    #[serde(default)]
    pub memory_declared_bytes: Bytes,
    pub health: GpuHealth,
    #[serde(default)]
    pub state: GpuState,
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default)]
    pub release: GpuRelease,
    pub slots: u32,
    pub slots_used: u32,
    /// The user of all sessions on it; `None` where there is none, or where several users share it.
    #[serde(default)]
    pub holder: Option<User>,
    pub cordoned: bool,
}

/// The measurements of a GPU. `None`: not known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuUsage {
    pub at: Option<Timestamp>,
    pub memory_used_bytes: Option<Bytes>,
    pub memory_foreign_bytes: Option<Bytes>,
    pub utilization_percent: Option<f64>,
    pub temperature_celsius: Option<f64>,
    pub power_watts: Option<f64>,
    pub throttling: Option<Vec<String>>,
    pub details: GpuDetails,
}

/// What is read of a GPU besides its load. `null`: not known; nodes know it only of themselves and, while they lead, of
/// every node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GpuDetails {
    pub driver_version: Option<String>,
    /// Above it the device slows down.
    pub slowdown_celsius: Option<f64>,
    pub power_limit_watts: Option<f64>,
    pub ecc_enabled: Option<bool>,
    /// Errors of the device's memory since the driver was loaded.
    pub ecc_corrected_errors: Option<u64>,
    pub ecc_uncorrected_errors: Option<u64>,
    pub remapped_rows: Option<GpuRemappedRows>,
    /// The last fault that the driver reported since the host booted.
    pub last_xid: Option<GpuXid>,
    /// At most 64 of the processes on it.
    pub processes: Option<Vec<GpuProcess>>,
}

/// Rows of a GPU's memory that were replaced by spare ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuRemappedRows {
    pub corrected: u64,
    pub uncorrected: u64,
    /// Rows wait to be replaced at the next reset.
    pub pending: bool,
    /// There were no spare rows left.
    pub failed: bool,
}

/// A fault of a GPU, by the number that NVIDIA's documentation has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuXid {
    pub code: u64,
    pub at: Timestamp,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuProcess {
    /// As the host counts it.
    pub pid: u32,
    pub command: String,
    pub memory_bytes: Option<Bytes>,
    /// The session that it belongs to; `null`: none.
    #[schema(value_type = Option<String>)]
    pub session: Option<SessionId>,
}

impl Gpu {
    /// Joins the profile of a GPU and its usage.
    pub fn of(gpu: &GpuProfile, node: &Name, usage: Option<&GpuUsage>) -> Self {
        let usage = usage.cloned().unwrap_or_default();
        Self {
            uuid: gpu.uuid.clone(),
            index: gpu.index,
            node: node.clone(),
            model: gpu.model.clone(),
            class: gpu.class.clone(),
            pci_address: gpu.pci_address.clone(),
            mig_parent: gpu.mig_parent.clone(),
            memory_total_bytes: gpu.memory_total_bytes,
            memory_used_bytes: usage.memory_used_bytes,
            memory_foreign_bytes: usage.memory_foreign_bytes,
            memory_declared_bytes: gpu.memory_declared_bytes,
            memory_enforced: GpuMemoryEnforced::default(),
            utilization_percent: usage.utilization_percent,
            temperature_celsius: usage.temperature_celsius,
            power_watts: usage.power_watts,
            throttling: usage.throttling,
            details: usage.details,
            read_at: usage.at,
            health: gpu.health,
            state: gpu.state,
            message: gpu.message.clone(),
            release: gpu.release,
            slots: gpu.slots,
            slots_used: gpu.slots_used,
            cordoned: gpu.cordoned,
        }
    }
}

/// Checks the name of a class of devices, as the container device interface defines it: `vendor.domain/class`.
///
/// # Errors
/// It is not one, or too long.
pub fn check_gpu_class(field: &str, class: &str) -> Result<(), Invalid> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    let starts = |part: &str| part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_class = class.split_once('/').is_some_and(|(vendor, kind)| {
        [vendor, kind].into_iter().all(|part| starts(part) && part.chars().all(fine)) && !vendor.contains('_')
    });
    if is_class && class.len() <= MAX_GPU_CLASS {
        return Ok(());
    }
    let expected = format!("`{}` is not a class of GPUs; expected for example nvidia.com/gpu", class.escape_debug());
    Err(Invalid::new(field, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_a_vendor_and_a_kind() {
        for class in ["nvidia.com/gpu", "amd.com/gpu", "k8s.intel-gpu.com/gpu_2"] {
            assert_eq!(check_gpu_class("gpu_class", class), Ok(()), "{class}");
        }
        let long = format!("nvidia.com/{}", "g".repeat(MAX_GPU_CLASS));
        for class in ["", "gpu", "/gpu", "nvidia.com/", "nvidia.com/gpu/0", "Nvidia.com/gpu", "a_b.com/gpu", &long] {
            assert_eq!(check_gpu_class("gpu_class", class).unwrap_err().field, "gpu_class", "{class}");
        }
    }

    #[test]
    fn only_a_device_without_a_reason_against_it_takes_sessions() {
        let usable = GpuState::ALL.iter().filter(|state| state.is_usable());
        assert_eq!(usable.collect::<Vec<_>>(), [&GpuState::Asleep, &GpuState::Ok]);
    }
}
