//! How an engine can hand GPUs to containers, and which way is taken for the devices of one session. Pure.
//!
//! The order of the ways, best first: NVIDIA's container runtime of a toolkit that makes its list of devices at each
//! start; CDI, where the engine lists the device; an older container runtime. `gpu.hand_over` decides otherwise. A CDI
//! list that is not of the driver that runs now ([`mod@stale`]) hands nothing over. GPUs of other makers are handed over by
//! CDI only.

pub mod stale;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::stale::{Majors, Stale};
use crate::gpu::listed::Listed;
use crate::gpu::{Device, Driver, Snapshot};
use crate::types::{ConditionKind, NVIDIA_CLASS};

/// The version of NVIDIA's container toolkit from which on its runtime makes a CDI specification at each start
/// (`jit-cdi`): never out of date, and not affected when systemd reloads its units.
const JIT_CDI: [u32; 2] = [1, 18];
/// The commands that mend what is absent.
pub(super) const CONFIGURE: &str = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker";
pub(super) const GENERATE: &str = "nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml";
/// The key of the toolkit's configuration that decides whether it reads the environment of our containers.
pub(super) const ENV_KEY: &str =
    "accept-nvidia-visible-devices-envvar-when-unprivileged = true in /etc/nvidia-container-runtime/config.toml";
/// The command for GPUs of other makers depends on the maker.
pub(super) const GENERATE_OTHER: &str =
    "create the list again with the tool of the GPUs' maker, such as amd-ctk cdi generate";
/// The name by which a list hands over every GPU of a host at once.
const EVERY_GPU: &str = "all";
/// The devices that a message names at most.
const MAX_NAMED: usize = 3;

/// `gpu.hand_over`: which way GPUs are handed to containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandOver {
    /// The best that the engine can do.
    #[default]
    Auto,
    /// NVIDIA's container runtime.
    Runtime,
    /// The engine's own support of the container device interface.
    Cdi,
}

/// What an engine can do with GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GpuSupport {
    /// Sessions are processes of the host and reach its devices themselves: nothing is handed over.
    #[default]
    Direct,
    /// Shared, since what an engine reports is copied often.
    Engine(Arc<EngineGpus>),
}

impl From<EngineGpus> for GpuSupport {
    fn from(engine: EngineGpus) -> Self {
        Self::Engine(Arc::new(engine))
    }
}

/// What a container engine can do with GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineGpus {
    /// `gpu.class`
    pub class: String,
    pub hand_over: HandOver,
    /// NVIDIA's container runtime; `None`: the engine does not have it.
    pub toolkit: Option<Toolkit>,
    /// The devices that the engine lists, by full name such as `nvidia.com/gpu=0`; `None`: it has no CDI, or it is off.
    pub cdi: Option<BTreeMap<String, CdiDevice>>,
    /// Nodes of CDI devices belong to the container's user. Docker before 29.5 makes them before it knows the user.
    pub cdi_nodes_are_owned: bool,
    /// The numbers of the device nodes of NVIDIA's driver.
    pub majors: Majors,
    /// systemd manages the containers' cgroups, and sets their devices anew whenever it reloads its units.
    pub has_systemd_cgroups: bool,
}

impl Default for EngineGpus {
    fn default() -> Self {
        Self {
            class: NVIDIA_CLASS.to_owned(),
            hand_over: HandOver::default(),
            toolkit: None,
            cdi: None,
            cdi_nodes_are_owned: false,
            majors: Majors::default(),
            has_systemd_cgroups: false,
        }
    }
}

/// NVIDIA's container runtime, as it and its configuration describe it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Toolkit {
    /// `None`: not known.
    pub version: Option<[u32; 3]>,
    /// `mode` of its configuration; `None`: its default.
    pub mode: Option<String>,
    /// It ignores the environment of containers that are not privileged, so it can give ours no device.
    pub ignores_env: bool,
}

/// A device of the engine's CDI list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CdiDevice {
    /// The paths of its device nodes in the container; empty where the file that lists it cannot be read.
    pub nodes: BTreeSet<String>,
    /// The version of the driver whose libraries the file names; `None`: it names none, or those of several.
    pub libraries: Option<String>,
    /// The major numbers of its device nodes and of those that the file gives to every container, by their paths in the
    /// container, where the file has them.
    pub majors: BTreeMap<String, u32>,
    /// The nodes of the host that they are made of.
    pub host_nodes: Vec<HostNode>,
    /// Where those of [`EngineGpus::class`] are on this host, if that is another class than NVIDIA's.
    pub place: Place,
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    pub path: String,
    /// Its major and minor number, if the file has them: the path need not exist then.
    pub number: Option<(u32, u32)>,
}

/// Where the nodes of a CDI device are on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// Nobody has looked, the file cannot be read, or they are of no PCI device.
    #[default]
    Unknown,
    /// A node is not there: the card or its driver is gone, and no container can get the device.
    Missing,
    /// At these PCI addresses. A list may have a name for several cards.
    Pci(BTreeSet<String>),
}

/// How the devices of one session are handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By NVIDIA's container runtime.
    Runtime {
        /// The nodes belong to the container's user, since the runtime makes its list at each start.
        jit: bool,
    },
    /// By the engine, under these full names.
    Cdi(Vec<String>),
}

/// Paths of device nodes in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// Of the GPUs that it is to have.
    pub own: BTreeSet<String>,
    /// Of other GPUs only.
    pub others: BTreeSet<String>,
}

/// Why a device cannot be handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// The engine has no way at all.
    #[error("{0}")]
    Engine(String),
    #[error("the container engine's CDI list does not have GPU {0}; run: {GENERATE}")]
    NotListed(String),
    #[error("the container engine's CDI list does not have MIG instance {0}; run: {GENERATE}")]
    MigNotListed(String),
    #[error("{}", outdated(.uuid, .why))]
    Stale { uuid: String, why: Stale },
    /// A GPU of another maker.
    #[error("the container engine's CDI list does not have GPU {0}, or its device nodes are gone: {GENERATE_OTHER}")]
    OtherNotListed(String),
}

impl GpuSupport {
    /// How these devices are handed to one container; `None`: nothing is to be handed over.
    ///
    /// # Errors
    /// The first device that cannot be handed over.
    pub fn way(&self, devices: &[&Device], driver: &Driver) -> Result<Option<Way>, Lack> {
        match self {
            Self::Engine(engine) if !devices.is_empty() => engine.way(devices, driver.version()).map(Some),
            Self::Direct | Self::Engine(_) => Ok(None),
        }
    }

    /// Whether the nodes of devices that are handed over in this way belong to the container's user.
    pub fn nodes_are_owned(&self, way: &Way) -> bool {
        match (self, way) {
            (_, Way::Runtime { jit }) => *jit,
            (Self::Engine(engine), Way::Cdi(_)) => engine.cdi_nodes_are_owned,
            (Self::Direct, Way::Cdi(_)) => false,
        }
    }

    /// Why no device of the host can be handed over, for people. `None`: at least one can, or there is none.
    pub fn withheld(&self, gpus: &Snapshot) -> Option<String> {
        let lacks: Option<Vec<Lack>> = real(gpus).map(|device| self.lack(device, &gpus.driver)).collect();
        lacks?.first().map(ToString::to_string)
    }

    /// Why this device cannot be handed over; `None`: it can, or it is fictitious.
    pub fn lack(&self, device: &Device, driver: &Driver) -> Option<Lack> {
        if device.is_fictitious() { None } else { self.way(&[device], driver).err() }
    }

    /// The GPUs of another maker than NVIDIA that the engine can hand over.
    pub fn listed(&self) -> Vec<Listed> {
        match self {
            Self::Engine(engine) if engine.class != NVIDIA_CLASS => engine.listed(),
            Self::Engine(_) | Self::Direct => Vec::new(),
        }
    }

    /// The device nodes of these GPUs and of the others of their class; `None`: the engine's files do not tell them, or
    /// they are not handed over by CDI.
    pub fn nodes(&self, devices: &[&Device]) -> Option<Nodes> {
        // A driver counts for the lists of NVIDIA's GPUs only.
        let way = self.way(devices, &Driver::NotAsked);
        let (Self::Engine(engine), Ok(Some(Way::Cdi(names)))) = (self, way) else { return None };
        let of_class = engine.of_class().collect::<Vec<_>>();
        let nodes = |is_own: bool| {
            let devices = of_class.iter().filter(|(name, _)| names.contains(name) == is_own);
            devices.flat_map(|(_, device)| device.nodes.iter().cloned()).collect::<BTreeSet<_>>()
        };
        let own = nodes(true);
        let others = nodes(false).difference(&own).cloned().collect();
        (!own.is_empty()).then_some(Nodes { own, others })
    }

    /// What the operator should know of how these devices are handed over.
    pub fn conditions(&self, gpus: &Snapshot) -> Vec<(ConditionKind, String)> {
        let lacks: Vec<Lack> = real(gpus).filter_map(|device| self.lack(device, &gpus.driver)).collect();
        let named = |name: fn(&Lack) -> Option<&str>| -> Vec<&str> { lacks.iter().filter_map(name).collect() };
        let engine = lacks.iter().find(|lack| matches!(lack, Lack::Engine(_))).map(ToString::to_string);
        let not_listed = named(|lack| if let Lack::NotListed(uuid) = lack { Some(uuid) } else { None });
        let mig = named(|lack| if let Lack::MigNotListed(uuid) = lack { Some(uuid) } else { None });
        let others = lacks.iter().find(|lack| matches!(lack, Lack::OtherNotListed(_))).map(ToString::to_string);
        let is_fictitious = gpus.devices.iter().any(Device::is_fictitious);
        let none = || if is_fictitious { None } else { self.lists_none() };
        let nvidia = || both(unlisted("GPU", &not_listed), stale(&lacks));
        let missing = engine.or_else(nvidia).or(others).or_else(none);
        let hazard = self.reload_hazard(gpus);
        [
            (ConditionKind::GpuRuntimeMissing, missing),
            (ConditionKind::MigUnsupported, unlisted("MIG instance", &mig)),
            (ConditionKind::GpuReloadHazard, hazard),
        ]
        .into_iter()
        .filter_map(|(kind, message)| Some((kind, message?)))
        .collect()
    }

    /// Why the engine can hand over no GPU of another maker, where the operator has such GPUs.
    fn lists_none(&self) -> Option<String> {
        let Self::Engine(engine) = self else { return None };
        let is_none = engine.class != NVIDIA_CLASS && engine.listed().is_empty();
        is_none.then(|| match &engine.cdi {
            None => no_other_cdi().to_string(),
            Some(_) => format!(
                "the container engine's CDI list has no {} whose device nodes are on this host: load the GPUs' driver, \
                 and {GENERATE_OTHER}",
                engine.class
            ),
        })
    }

    /// Whether a reload of systemd's units takes their devices from running containers, and what to do about it.
    fn reload_hazard(&self, gpus: &Snapshot) -> Option<String> {
        let Self::Engine(engine) = self else { return None };
        let toolkit = engine.toolkit.as_ref()?;
        let driver = gpus.driver.version();
        let is_taken = real(gpus).any(|gpu| matches!(engine.way(&[gpu], driver), Ok(Way::Runtime { jit: false })));
        // Under `cdi` the runtime lists the devices in the container's configuration, so systemd knows them.
        (is_taken && engine.has_systemd_cgroups && toolkit.mode.as_deref() != Some("cdi")).then(|| {
            format!(
                "GPUs are handed over by {toolkit} with the systemd cgroup driver: `systemctl daemon-reload` takes them \
                 from running sessions; upgrade nvidia-container-toolkit to 1.18 or later{}",
                if toolkit.is_legacy() { " and set mode = \"auto\" in its config.toml" } else { "" }
            )
        })
    }
}

impl fmt::Display for GpuSupport {
    /// How devices are handed over, for example `GPUs by the nvidia runtime 1.18.0`; empty if they are not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Engine(engine) = self else { return Ok(()) };
        match (engine.way_of_class(), &engine.toolkit) {
            (Ok(Way::Runtime { .. }), Some(toolkit)) => write!(f, "GPUs by {toolkit}"),
            (Ok(Way::Cdi(_)), _) if engine.lists_any() => f.write_str("GPUs by CDI"),
            _ => Ok(()),
        }
    }
}

impl EngineGpus {
    /// How these devices are handed over together; of no devices, how any would be. `driver`: its version.
    fn way(&self, devices: &[&Device], driver: Option<&str>) -> Result<Way, Lack> {
        let is_nvidia = devices.iter().all(|device| device.class == NVIDIA_CLASS);
        match self.hand_over {
            HandOver::Runtime if is_nvidia => self.runtime(),
            HandOver::Auto if is_nvidia && self.toolkit.as_ref().is_some_and(Toolkit::is_best) => self.runtime(),
            HandOver::Auto if is_nvidia => self.second_best(devices, driver),
            HandOver::Auto | HandOver::Cdi | HandOver::Runtime => self.by_cdi(devices, driver),
        }
    }

    /// CDI where the engine lists the devices, else NVIDIA's runtime whatever its version.
    fn second_best(&self, devices: &[&Device], driver: Option<&str>) -> Result<Way, Lack> {
        match (self.by_cdi(devices, driver), &self.toolkit) {
            (Ok(way), _) if !devices.is_empty() || self.lists_any() => Ok(way),
            (_, Some(toolkit)) if !toolkit.ignores_env => self.runtime(),
            (_, Some(_)) if self.cdi.is_none() => Err(ignored_env()),
            (_, None) if !self.lists_any() => Err(no_runtime()),
            (by_cdi, _) => by_cdi,
        }
    }

    fn runtime(&self) -> Result<Way, Lack> {
        let toolkit = self.toolkit.as_ref().ok_or_else(no_runtime)?;
        Ok(Way::Runtime { jit: toolkit.is_current() })
    }

    fn by_cdi(&self, devices: &[&Device], driver: Option<&str>) -> Result<Way, Lack> {
        let is_nvidia = devices.iter().all(|device| device.class == NVIDIA_CLASS);
        let listed = self.cdi.as_ref().ok_or_else(|| if is_nvidia { no_cdi() } else { no_other_cdi() })?;
        let name = |device: &&Device| match &*device.class {
            NVIDIA_CLASS => self.name_of_nvidia(device, listed, driver),
            _ => self.name_of_other(device),
        };
        devices.iter().map(name).collect::<Result<_, _>>().map(Way::Cdi)
    }

    /// The full name of a GPU of NVIDIA's, from a list that is of this version of the driver.
    fn name_of_nvidia(
        &self,
        device: &Device,
        listed: &BTreeMap<String, CdiDevice>,
        driver: Option<&str>,
    ) -> Result<String, Lack> {
        let name = name_of(device, listed)?;
        match listed.get(&name).and_then(|listed| listed.stale(driver, &self.majors)) {
            Some(why) => Err(Lack::Stale { uuid: device.uuid.clone(), why }),
            None => Ok(name),
        }
    }

    /// The full name of a GPU of another maker: by its PCI address, whatever its name was before.
    fn name_of_other(&self, device: &Device) -> Result<String, Lack> {
        let is_it = |listed: &Listed| match &device.pci_address {
            Some(_) => listed.pci_address == device.pci_address,
            None => listed.name == device.model,
        };
        let name = self.listed().into_iter().filter(|_| device.class == self.class).find(is_it);
        name.map(|listed| listed.name).ok_or_else(|| Lack::OtherNotListed(device.uuid.clone()))
    }

    /// The single GPUs of the class, one name each. What hands over several of them is none.
    fn listed(&self) -> Vec<Listed> {
        let mut addresses = BTreeSet::new();
        let single = |(name, device): (&String, &CdiDevice)| {
            let pci_address = match &device.place {
                Place::Missing => return None,
                Place::Unknown => None,
                Place::Pci(at) if at.len() > 1 => return None,
                Place::Pci(at) => at.first().cloned(),
            };
            let is_single = name.split_once('=').is_some_and(|(_, name)| name != EVERY_GPU);
            let is_new = pci_address.as_ref().is_none_or(|address| !addresses.contains(address));
            (is_single && is_new).then(|| {
                addresses.extend(pci_address.clone());
                Listed { name: name.clone(), pci_address }
            })
        };
        self.of_class().filter_map(single).collect()
    }

    /// What the engine lists of the class.
    fn of_class(&self) -> impl Iterator<Item = (&String, &CdiDevice)> {
        let is_of_class = |name: &str| name.split_once('=').is_some_and(|(class, _)| class == self.class);
        self.cdi.iter().flatten().filter(move |(name, _)| is_of_class(name))
    }

    /// Whether the engine lists a GPU of the class.
    fn lists_any(&self) -> bool {
        if self.class == NVIDIA_CLASS { self.of_class().next().is_some() } else { !self.listed().is_empty() }
    }

    /// How any device of the class would be handed over.
    fn way_of_class(&self) -> Result<Way, Lack> {
        if self.class == NVIDIA_CLASS { self.way(&[], None) } else { self.by_cdi(&[], None) }
    }
}

impl Toolkit {
    /// Whether it makes its list of devices at each start.
    fn is_current(&self) -> bool {
        self.version.is_some_and(|[major, minor, _]| [major, minor] >= JIT_CDI) && !self.is_legacy()
    }

    /// Whether nothing is better.
    fn is_best(&self) -> bool {
        self.is_current() && !self.ignores_env
    }

    fn is_legacy(&self) -> bool {
        self.mode.as_deref() == Some("legacy")
    }
}

impl fmt::Display for Toolkit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the nvidia runtime")?;
        match self.version {
            Some([major, minor, patch]) => write!(f, " {major}.{minor}.{patch}")?,
            None => f.write_str(" of a version that is not known")?,
        }
        if self.is_legacy() { f.write_str(" in legacy mode") } else { Ok(()) }
    }
}

/// The devices that are there and are none of `[dev]`.
fn real(gpus: &Snapshot) -> impl Iterator<Item = &Device> {
    gpus.devices.iter().filter(|device| device.is_present() && !device.is_fictitious())
}

/// The full name of a device in the engine's list: by its UUID, else by its index if the nodes say that it is this one.
/// An index alone says nothing: it changes, and the list may be older.
fn name_of(device: &Device, listed: &BTreeMap<String, CdiDevice>) -> Result<String, Lack> {
    let by_uuid = format!("{}={}", device.class, device.uuid);
    if listed.contains_key(&by_uuid) {
        return Ok(by_uuid);
    }
    if device.mig_parent.is_some() {
        return Err(Lack::MigNotListed(device.uuid.clone()));
    }
    let is_it = |name: &str, listed: &CdiDevice| {
        let index = name.split_once('=').filter(|(class, _)| *class == device.class).map(|(_, index)| index);
        index.is_some_and(|index| index.parse::<u32>().is_ok())
            && device.minor.is_some_and(|minor| listed.is_whole(minor))
    };
    let by_index = listed.iter().find(|(name, listed)| is_it(name, listed)).map(|(name, _)| name.clone());
    by_index.ok_or_else(|| Lack::NotListed(device.uuid.clone()))
}

impl CdiDevice {
    /// Whether its nodes are those of the GPU with this minor number, of no other, and of no part of it.
    fn is_whole(&self, minor: u32) -> bool {
        let minors: Vec<u32> = self.nodes.iter().filter_map(|path| gpu_minor(path.strip_prefix("/dev/")?)).collect();
        minors == [minor] && !self.nodes.iter().any(|path| path.starts_with("/dev/nvidia-caps/"))
    }
}

/// The minor number in the name of a GPU's device node, as in `nvidia0`.
pub fn gpu_minor(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("nvidia")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

fn no_runtime() -> Lack {
    Lack::Engine(format!(
        "the container engine cannot hand over GPUs: it has no runtime `nvidia`; install the package \
         nvidia-container-toolkit and run: {CONFIGURE}"
    ))
}

fn no_cdi() -> Lack {
    Lack::Engine(
        "the container engine cannot hand over GPUs by CDI: it has none, or it is off; use Docker 28.2 or later, or 25.0 \
         or later with \"features\": {\"cdi\": true} in /etc/docker/daemon.json, or set gpu.hand_over = \"auto\""
            .to_owned(),
    )
}

fn no_other_cdi() -> Lack {
    Lack::Engine(
        "the container engine cannot hand over GPUs of this class: it has no CDI, or it is off; use Docker 28.2 or later, \
         or 25.0 or later with \"features\": {\"cdi\": true} in /etc/docker/daemon.json"
            .to_owned(),
    )
}

fn ignored_env() -> Lack {
    Lack::Engine(format!(
        "the container engine cannot hand over GPUs: NVIDIA's container runtime ignores NVIDIA_VISIBLE_DEVICES of \
         sessions; set {ENV_KEY}"
    ))
}

/// For example `the container engine's CDI list does not have GPU GPU-1, GPU-2 and 3 more; run: …`.
fn unlisted(what: &str, uuids: &[&str]) -> Option<String> {
    let named = named(uuids);
    let message = format!("the container engine's CDI list does not have {what} {named}; run: {GENERATE}");
    (!uuids.is_empty()).then_some(message)
}

/// Of the devices whose list is out of date, and why that of the first is.
fn stale(lacks: &[Lack]) -> Option<String> {
    let stale =
        |lack: &'_ Lack| if let Lack::Stale { uuid, why } = lack { Some((uuid.clone(), why.clone())) } else { None };
    let (uuids, whys): (Vec<String>, Vec<Stale>) = lacks.iter().filter_map(stale).unzip();
    let uuids: Vec<&str> = uuids.iter().map(String::as_str).collect();
    whys.first().map(|why| outdated(&named(&uuids), why))
}

fn outdated(uuids: &str, why: &Stale) -> String {
    format!("the container engine's CDI list is out of date for {uuids}: {why}; run: {GENERATE}")
}

/// For example `GPU-1, GPU-2 and 3 more`.
fn named(uuids: &[&str]) -> String {
    let named = uuids.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = uuids.len().saturating_sub(MAX_NAMED);
    if more > 0 { format!("{named} and {more} more") } else { named }
}

fn both(one: Option<String>, other: Option<String>) -> Option<String> {
    let messages: Vec<String> = one.into_iter().chain(other).collect();
    (!messages.is_empty()).then(|| messages.join("; "))
}

#[cfg(test)]
mod tests;
