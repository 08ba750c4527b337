//! The GPUs of this host: which there are, how they are, and which processes use them.
//!
//! NVML, the driver's library, is asked in a [child process](probe): one of its calls can hang in the kernel, and a
//! process that hangs there cannot be ended. GPUs of other makers are those that the container engine
//! [lists](listed). [`state`] (sans-io) follows the child's answers: it keeps the devices that
//! are [known] since the host booted, tells a lost device from a child that does not answer, and judges their
//! [health]. [`task`] owns it and publishes a [`Snapshot`].

pub mod answer;
pub mod changes;
pub mod children;
pub mod device;
pub mod health;
pub mod known;
pub mod listed;
pub mod probe;
pub mod state;
pub mod store;
pub mod task;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::store::Cause;
use crate::types::{Actor, BootInstant, NVIDIA_CLASS};

pub use device::{Device, DriverVersions, Process, Processes, Reading};

/// Cordons and other changes that wait for the owner. People make them one at a time.
pub const QUEUE: usize = 16;

/// `[gpu]`, as far as it concerns the devices themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The CDI class of the host's GPUs. NVML is asked only about those of [`NVIDIA_CLASS`], the default.
    pub class: String,
    /// The file of NVML; `None`: `libnvidia-ml.so.1`, as the loader finds it.
    pub nvml_library: Option<PathBuf>,
    /// No new sessions on a device that is hotter, in °C; `None`: no limit.
    pub max_temperature_celsius: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self { class: NVIDIA_CLASS.to_owned(), nvml_library: None, max_temperature_celsius: None }
    }
}

/// What everybody may read of this host's GPUs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    pub driver: Driver,
    /// The devices known since this boot, in the order of their UUIDs, lost ones included.
    pub devices: Vec<Device>,
    /// When the last look at the processes began that was answered for every present device.
    pub processes_at: Option<BootInstant>,
    /// Why no device takes new sessions now, for people; `None`: each device says for itself.
    pub withheld: Option<String>,
}

impl Snapshot {
    /// Devices that are made up, to try ostler with. Nothing is handed over, and nothing is read.
    pub fn fictitious(count: u32) -> Self {
        // In the order of the UUIDs, which is that of the indices.
        let device = |index: u32| Device::new(format!("{}{index:04}", device::FICTITIOUS), index, "dev".to_owned());
        Self { devices: (0..count).map(device).collect(), ..Self::default() }
    }

    /// The device with this UUID.
    pub fn device(&self, uuid: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.uuid == uuid)
    }
}

/// Whether NVML answers, and for which driver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Driver {
    /// Nobody has asked yet.
    #[default]
    Unknown,
    /// There is no driver, or it is not loaded: `why` says which, for the log.
    Absent {
        why: String,
    },
    Up(DriverVersions),
    /// The GPUs are of another maker, and the container engine has listed them.
    NotAsked,
    /// The library and the kernel module are of different versions, as after an upgrade. What runs goes on.
    Mismatch {
        library: Option<String>,
        module: Option<String>,
    },
    /// NVML does not answer. The devices are as they were last seen.
    Hung {
        since: BootInstant,
    },
    /// NVML answers with an error that says nothing of the driver.
    Failed {
        why: String,
    },
}

impl Driver {
    /// The version of the driver, as `580.65.06`; `None`: not known now.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Up(versions) if !versions.driver.is_empty() => Some(&versions.driver),
            _ => None,
        }
    }
}

/// Why a change of a device was not made. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error("no GPU {0} on this node")]
    NotFound(String),
    #[error("GPU {0} is present; only a lost one can be forgotten")]
    Present(String),
    #[error("the change cannot be stored: {0}")]
    Store(#[source] Cause),
    /// The owner has ended: the daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What can be asked of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Command {
    /// No new sessions on it.
    Cordon,
    /// New sessions again. A device that was failing gets another chance.
    Uncordon,
    /// A lost device is not known any more, so its slots are not kept for it.
    Forget,
}

/// A command that waits for the owner.
pub struct Request {
    pub uuid: String,
    pub command: Command,
    pub by: Actor,
    pub reply: oneshot::Sender<Result<(), Error>>,
}

/// Asks the owner of the GPUs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    look: Arc<Notify>,
}

impl Handle {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// To wait for the devices to change.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Lets the owner look at the processes now, not only when it is time: a session has left its devices.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Changes one device. A change that it has already succeeds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn command(&self, uuid: &str, command: Command, by: Actor) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request { uuid: uuid.to_owned(), command, by, reply };
        self.requests.send(request).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

#[cfg(test)]
impl Handle {
    /// Asks nobody: no GPU is known.
    pub(crate) fn of_nobody() -> Self {
        let (requests, snapshot) = (mpsc::channel(QUEUE).0, watch::channel(Arc::default()).1);
        Self { requests, snapshot, look: Arc::default() }
    }
}
