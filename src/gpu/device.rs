//! A GPU, and what is read of it. Pure.

use serde::{Deserialize, Serialize};

use crate::types::{BootInstant, Bytes, GpuXid, NVIDIA_CLASS, Timestamp};

/// How the UUIDs of fictitious devices begin, which `[dev]` adds: they are counted, and there is nothing to hand over.
pub const FICTITIOUS: &str = "GPU-dev-";

/// The versions that NVML reports of itself and its driver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DriverVersions {
    pub driver: String,
    /// The newest CUDA that the driver supports, as `13.0`.
    pub cuda: Option<String>,
    pub nvml: Option<String>,
}

/// A GPU of this host, or an instance of one in MIG mode.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// By it a device is known; the index changes.
    pub uuid: String,
    /// As the driver counts its devices now.
    pub index: u32,
    /// The number in `/dev/nvidia<minor>`; of a MIG instance, its GPU's.
    pub minor: Option<u32>,
    /// As the kernel writes it: `0000:1a:00.0`.
    pub pci_address: Option<String>,
    /// Of another maker's GPU, its full name in the container engine's list, as `amd.com/gpu=0`.
    pub model: String,
    /// The CDI class, [`NVIDIA_CLASS`] unless `gpu.class` says otherwise.
    pub class: String,
    /// The UUID of the GPU that this is a MIG instance of.
    pub mig_parent: Option<String>,
    pub memory_total: Option<Bytes>,
    pub presence: Presence,
    /// Why it takes no new sessions until it was reset or is uncordoned, for people.
    pub failing: Option<String>,
    /// Why the container engine cannot give it to containers, for people.
    pub unlisted: Option<String>,
    /// The operator wants no new sessions on it.
    pub cordoned: bool,
    /// It is hotter than `gpu.max_temperature_celsius`, or was and has not cooled down enough.
    pub hot: bool,
    /// What was last read; what is not known is `None`.
    pub reading: Reading,
    pub read_at: Option<Timestamp>,
    /// The last fault that the driver reported since the host booted.
    pub last_xid: Option<GpuXid>,
    /// The processes on it as last seen; `None`: the driver does not list them, or nobody has looked.
    pub processes: Option<Processes>,
    /// When the last look at its processes began that was answered for it.
    pub processes_at: Option<BootInstant>,
}

/// Whether a known device is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    #[default]
    Present,
    /// It was there since this boot and is not found any more, or does not answer any more.
    Lost { since: Timestamp, why: String },
}

/// What is measured of one device. What it does not support is `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// In use by every process of the host, without what the driver reserves.
    pub memory_used: Option<Bytes>,
    pub memory_free: Option<Bytes>,
    pub utilization_percent: Option<f64>,
    pub temperature_celsius: Option<f64>,
    /// Above it the device slows down.
    pub slowdown_celsius: Option<f64>,
    pub power_watts: Option<f64>,
    pub power_limit_watts: Option<f64>,
    /// Why it runs slower than it could, in words such as `thermal`; `None`: not known.
    pub throttling: Option<Vec<String>>,
    pub ecc_enabled: Option<bool>,
    pub ecc_corrected: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    pub remapped_rows: Option<RemappedRows>,
    /// Pages of memory wait to be retired at the next reset.
    pub retirement_pending: Option<bool>,
    pub recovery: Option<Recovery>,
    /// The kernel has suspended it, and nothing was read: a reading would wake it.
    pub asleep: bool,
}

/// Rows of memory that the device replaced by spare ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RemappedRows {
    pub corrected: u64,
    pub uncorrected: u64,
    /// Rows wait to be replaced at the next reset.
    pub pending: bool,
    /// There were no spare rows left.
    pub failed: bool,
}

/// What the driver says a device needs (NVML field 230, `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    None,
    Reset,
    Reboot,
    DrainPeerToPeer,
    DrainAndReset,
    /// A number that this version does not know.
    Other(u64),
}

/// The processes on one device, and the memory in use when they were listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Processes {
    pub list: Vec<Process>,
    /// Read right after the list, so that the two can be compared.
    pub memory_used: Option<Bytes>,
}

/// A process on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// The name of its program, as `/proc/<pid>/comm` has it.
    pub command: String,
    /// Its memory on the device; `None`: not known.
    pub memory: Option<Bytes>,
    /// What tells whose it is: its cgroups, and the mark of a session of the process runtime.
    pub marks: Vec<String>,
}

impl Process {
    /// Whether it belongs to the container, or to the session of the process runtime, with this id.
    pub fn is_of(&self, id: &str) -> bool {
        self.marks.iter().any(|mark| mark.contains(id))
    }
}

impl Device {
    /// A device that is there and of which nothing else is known.
    pub fn new(uuid: String, index: u32, model: String) -> Self {
        Self {
            uuid,
            index,
            minor: None,
            pci_address: None,
            model,
            class: NVIDIA_CLASS.to_owned(),
            mig_parent: None,
            memory_total: None,
            presence: Presence::Present,
            failing: None,
            unlisted: None,
            cordoned: false,
            hot: false,
            reading: Reading::default(),
            read_at: None,
            last_xid: None,
            processes: None,
            processes_at: None,
        }
    }

    /// Whether it is one of `[dev]`.
    pub fn is_fictitious(&self) -> bool {
        self.uuid.starts_with(FICTITIOUS)
    }

    /// Whether the driver tells which processes are on it. Until it was asked for the first time, it may.
    pub fn tells_processes(&self) -> bool {
        let is_read = self.class == NVIDIA_CLASS && !self.is_fictitious() && self.is_present();
        is_read && (self.processes.is_some() || self.processes_at.is_none())
    }

    pub const fn is_present(&self) -> bool {
        matches!(self.presence, Presence::Present)
    }
}
