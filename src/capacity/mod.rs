//! The physical resources of this host, and how much of them is in use.
//!
//! Probes read the host and the engine; [`effective`] (pure) applies the
//! operator's overrides; [`task`] owns the sampling and publishes a [`Report`].

pub mod effective;
pub mod probe;
pub mod room;
pub mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::probe::cgroup::EngineBounds;

use crate::gpu;
use crate::types::{Bytes, Cores, Disk, Pressure, Resources, RuntimeKind, Swap, Timestamp};

/// How often the host is read. A reading takes 0.1 to 0.4 ms: less than 0.01 % of a core.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// The owner's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub runtime: RuntimeKind,
    pub dev: DevFigures,
    /// The data directory: its file system is measured beside that of the engine's images.
    pub data_dir: PathBuf,
    /// [`INTERVAL`], except in tests.
    pub interval: Duration,
}

/// `[dev]`: figures that replace the probed ones, so that any host can be tried on any machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DevFigures {
    pub physical_cores: Option<Cores>,
    pub physical_memory: Option<Bytes>,
    pub physical_gpus: Option<u32>,
}

/// One reading of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What sessions can use. [Not every figure is known](Resources::known): not before the engine has reported it.
    pub physical: Resources,
    /// What the container engine reported, and what bounds it; `None`: not known, or there is no engine.
    pub engine: Option<EngineFigures>,
    /// The GPUs; with `[dev]`, fictitious ones.
    pub gpus: Arc<gpu::Snapshot>,
    /// Why no GPU can be given to sessions now, for people; `None`: each device says for itself.
    pub gpus_withheld: Option<String>,
    pub utilized: Option<Utilized>,
    /// The file systems of the images, of what else the engine stores, and of the data directory, each once. The first is
    /// that of the images, if the engine names a path of this host.
    pub disks: Vec<Disk>,
    pub swap: Option<Swap>,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    pub pressure: Option<Pressure>,
    /// At least one figure comes from `[dev]`.
    pub dev: bool,
}

/// What an engine reports of its host. It does not look at the cgroups that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineFigures {
    pub cores: Cores,
    pub memory: Bytes,
    pub bounds: EngineBounds,
}

/// What is in use now, by sessions and all other processes. `None`: not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utilized {
    pub cores: Option<Cores>,
    pub memory: Option<Bytes>,
    pub at: Timestamp,
}

/// Reads the latest report.
#[derive(Debug, Clone)]
pub struct Handle {
    report: watch::Receiver<Arc<Report>>,
}

impl Handle {
    pub fn new(report: watch::Receiver<Arc<Report>>) -> Self {
        Self { report }
    }

    pub fn report(&self) -> Arc<Report> {
        self.report.borrow().clone()
    }

    /// A receiver to wait for the next report with.
    pub fn watch(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }
}
