//! The GPUs of this host: asks NVML in a child, as the agent does.

use std::fs;
use std::path::Path;

use super::{Examiner, Gpus};
use crate::doctor::Config;
use crate::doctor::judge::gpus::Facts;
use crate::gpu::answer::{Answer, Ask, Closed, Inventory};
use crate::gpu::device::Presence;
use crate::gpu::known::{Known, Records};
use crate::gpu::probe::{Probe, Silence};
use crate::gpu::{Driver, Snapshot};
use crate::runtime::EngineInfo;
use crate::types::NVIDIA_CLASS;

/// The devices on PCI.
const PCI: &str = "/sys/bus/pci/devices";
/// The vendor of NVIDIA on PCI.
const NVIDIA: &str = "0x10de";
/// The class of display controllers on PCI: VGA, 3D and others.
const DISPLAY: &str = "0x03";

/// The facts, and the devices as the engine's rules for them need them.
pub(super) async fn facts(config: &Config, engine: Option<&EngineInfo>, by: &Examiner) -> (Facts, Snapshot) {
    if config.dev.physical_gpus.is_some() {
        return (Facts::MadeUp, Snapshot::default());
    }
    if config.gpu_class != NVIDIA_CLASS {
        let count = engine.map_or(0, |info| info.gpus.listed().len());
        return (Facts::Listed { class: config.gpu_class.clone(), count }, Snapshot::default());
    }
    let program = match &by.gpus {
        Gpus::Child(program) => program,
        Gpus::Agent(known) => return (told(known), Snapshot::clone(known)),
    };
    let answer = match Probe::start(program, config.nvml_library.as_deref()) {
        Ok(mut probe) => probe.ask(Ask::Inventory).await,
        Err(error) => Err(Silence::Died { why: error.to_string() }),
    };
    let broken = |driver: Driver| (Facts::Broken { why: driver.trouble().unwrap_or_default() }, Snapshot::default());
    match answer {
        Ok(Answer::Inventory(Inventory { versions, devices })) => {
            let mut known = Known::restore(Records::new(), None);
            known.see(&devices, by.now);
            let devices: Vec<_> = known.devices().cloned().collect();
            let facts = Facts::Driver { version: versions.driver.clone(), count: devices.len() };
            (facts, Snapshot { driver: Driver::Up(versions), devices, ..Snapshot::default() })
        }
        Ok(Answer::Closed(Closed::Absent { why })) => {
            (Facts::NoDriver { why, on_pci: on_pci(Path::new(PCI)) }, Snapshot::default())
        }
        Ok(Answer::Closed(Closed::Mismatch { library, module })) => broken(Driver::Mismatch { library, module }),
        Ok(Answer::Closed(Closed::Failed { why })) | Err(Silence::Died { why }) => broken(Driver::Failed { why }),
        Ok(Answer::Readings(_) | Answer::Processes(_)) => {
            broken(Driver::Failed { why: "it answers another question".to_owned() })
        }
        Err(Silence::Late) => {
            let why = "the NVIDIA driver does not answer: look for its errors in the kernel log (dmesg)".to_owned();
            (Facts::Broken { why }, Snapshot::default())
        }
    }
}

/// What the agent knows.
fn told(known: &Snapshot) -> Facts {
    let trouble = || known.driver.trouble().unwrap_or_default();
    match &known.driver {
        Driver::Unknown | Driver::NotAsked => Facts::Unknown,
        Driver::Absent { why } => Facts::NoDriver { why: why.clone(), on_pci: on_pci(Path::new(PCI)) },
        Driver::Up(versions) => {
            let present = known.devices.iter().filter(|device| device.presence == Presence::Present);
            Facts::Driver { version: versions.driver.clone(), count: present.count() }
        }
        Driver::Mismatch { .. } | Driver::Hung { .. } | Driver::Failed { .. } => Facts::Broken { why: trouble() },
    }
}

/// The display controllers of NVIDIA.
fn on_pci(devices: &Path) -> usize {
    let is = |device: &Path, file: &str, begin: &str| {
        fs::read_to_string(device.join(file)).is_ok_and(|text| text.starts_with(begin))
    };
    let found = fs::read_dir(devices).into_iter().flatten().flatten().map(|entry| entry.path());
    found.filter(|device| is(device, "vendor", NVIDIA) && is(device, "class", DISPLAY)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_controllers_of_nvidia_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for (name, vendor, class) in
            [("a", "0x10de\n", "0x030200\n"), ("b", "0x10de\n", "0x040300\n"), ("c", "0x8086\n", "0x030000\n")]
        {
            let device = dir.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("vendor"), vendor).unwrap();
            fs::write(device.join("class"), class).unwrap();
        }
        assert_eq!(on_pci(dir.path()), 1);
    }
}
