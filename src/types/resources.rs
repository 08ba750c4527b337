use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Bytes, Cores};

/// The resources that a session reserves or that a host has: the three figures that admission compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    pub cores: Cores,
    #[serde(rename = "memory_bytes")]
    pub memory: Bytes,
    pub gpus: u32,
}

impl Resources {
    pub const ZERO: Self = Self { cores: Cores::ZERO, memory: Bytes::ZERO, gpus: 0 };

    pub const fn new(cores: Cores, memory: Bytes, gpus: u32) -> Self {
        Self { cores, memory, gpus }
    }

    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            cores: self.cores.saturating_add(other.cores),
            memory: self.memory.saturating_add(other.memory),
            gpus: self.gpus.saturating_add(other.gpus),
        }
    }

    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            cores: self.cores.saturating_sub(other.cores),
            memory: self.memory.saturating_sub(other.memory),
            gpus: self.gpus.saturating_sub(other.gpus),
        }
    }

    /// Whether these physical figures have one of this dimension. Every host has cores and memory: 0 of them is a figure
    /// that is not known.
    pub const fn known(&self, dimension: Dimension) -> bool {
        match dimension {
            Dimension::Cores => !self.cores.is_zero(),
            Dimension::MemoryBytes => !self.memory.is_zero(),
            _ => true,
        }
    }

    /// The first dimension, in the order cores, memory, GPUs, in which `self` is more than `limit`.
    pub fn exceeds(&self, limit: &Self) -> Option<Dimension> {
        if self.cores > limit.cores {
            Some(Dimension::Cores)
        } else if self.memory > limit.memory {
            Some(Dimension::MemoryBytes)
        } else if self.gpus > limit.gpus {
            Some(Dimension::Gpus)
        } else {
            None
        }
    }

    /// One figure as a number in the unit of its dimension: cores, bytes, devices. `None` for the other dimensions.
    pub fn figure(&self, dimension: Dimension) -> Option<f64> {
        match dimension {
            Dimension::Cores => Some(self.cores.milli() as f64 / 1000.0),
            Dimension::MemoryBytes => Some(self.memory.get() as f64),
            Dimension::Gpus => Some(f64::from(self.gpus)),
            Dimension::GpuMemoryBytes
            | Dimension::Sessions
            | Dimension::Ports
            | Dimension::DiskBytes
            | Dimension::DiskInodes => None,
        }
    }
}

/// The resource that was short when a session was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    Cores,
    MemoryBytes,
    Gpus,
    /// Memory of each GPU of the session.
    GpuMemoryBytes,
    Sessions,
    Ports,
    DiskBytes,
    DiskInodes,
}

impl Dimension {
    /// A figure of this dimension for people: `3 cores`, `1.5 GiB`.
    pub fn describe(self, figure: f64) -> String {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // figures come from u64 and u32
        let whole = figure as u64;
        match self {
            Self::Cores => counted(figure, "core"),
            Self::MemoryBytes => format!("{} of memory", Bytes::new(whole)),
            Self::GpuMemoryBytes => format!("{} of GPU memory", Bytes::new(whole)),
            Self::DiskBytes => format!("{} of disk", Bytes::new(whole)),
            Self::DiskInodes => counted(figure, "inode"),
            Self::Gpus => counted(figure, "GPU"),
            Self::Sessions => counted(figure, "session"),
            Self::Ports => counted(figure, "port"),
        }
    }
}

/// For example `1 core`, `0.5 cores`.
fn counted(figure: f64, noun: &str) -> String {
    let plural = if figure == 1.0 { "" } else { "s" };
    format!("{figure} {noun}{plural}")
}
