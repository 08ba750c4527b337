//! What the child that asks NVML is asked, and its answers. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::device::{DriverVersions, Processes, Reading};
use crate::types::Bytes;

/// A question to the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    Inventory,
    /// The measurements, and the faults (XIDs) since the last answer.
    Readings,
    Processes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Inventory(Inventory),
    Readings(Readings),
    Processes(Listed),
    /// NVML could not be opened: the child answers this once, and ends.
    Closed(Closed),
}

/// Every device that the driver enumerates.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Inventory {
    pub versions: DriverVersions,
    pub devices: Vec<Found>,
}

/// A device as the driver enumerates it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// `None`: the device fell off the bus and cannot say.
    pub uuid: Option<String>,
    pub index: u32,
    pub minor: Option<u32>,
    /// As the kernel writes it: `0000:1a:00.0`.
    pub pci_address: Option<String>,
    pub model: String,
    pub memory_total: Option<Bytes>,
    pub mig: Mig,
}

/// Whether a device is divided into instances (MIG mode).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mig {
    /// It is not, or cannot be.
    #[default]
    Off,
    /// It is, into these; the device itself cannot be used.
    On(Vec<Instance>),
}

/// An instance of a device in MIG mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub uuid: String,
    /// As NVML names it, for example `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
    pub model: String,
    pub memory_total: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Readings {
    /// By UUID.
    pub devices: BTreeMap<String, Measured>,
    pub xids: Vec<Xid>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    Read(Box<Reading>),
    /// The driver says that the device is lost.
    Lost {
        why: String,
    },
}

/// A fault that the driver reported of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xid {
    pub uuid: String,
    pub code: u64,
}

/// The processes of each device, by UUID; `None`: the driver does not list them. A device whose processes could not be
/// read this time, as of a lost one, is left out: it says nothing of them.
pub type Listed = BTreeMap<String, Option<Processes>>;

/// Why NVML could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// There is no library, or no driver is loaded: the host has no NVIDIA GPU that can be used.
    Absent {
        why: String,
    },
    /// The library and the kernel module are of different versions.
    Mismatch {
        library: Option<String>,
        module: Option<String>,
    },
    Failed {
        why: String,
    },
}
