//! The adapter of NVML: one initialization, and the answers from it.
//!
//! Every reading is on its own. What a device, a driver or a library does not support is `None`, and what a device says
//! that it does not support is not asked of it again.

mod events;
mod listing;
mod opening;
mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::host::Host;
use crate::gpu::answer::{Answer, Ask, Closed, Found, Instance, Inventory, Listed, Measured, Mig, Readings, Xid};
use crate::gpu::device::{DriverVersions, Reading};
use crate::types::Bytes;
use events::Events;
use listing::Listing;
use reading::Inquiry;

/// The devices at most. The largest hosts have 16 GPUs; the bound only keeps a broken driver from a long answer.
const MAX_DEVICES: u32 = 64;
/// The instances of one device at most: no GPU can be divided into more than eight.
const MAX_INSTANCES: u32 = 16;
/// Why a device is lost that the driver does not enumerate.
const NOT_LISTED: &str = "the driver does not list it any more";

/// NVML, initialized.
pub(super) struct Driver {
    /// Never shut down: a shutdown can hang like any other call, and the end of the process does the same.
    nvml: &'static Nvml,
    host: Host,
    versions: DriverVersions,
    /// The devices of the last inventory; `None`: there was none yet.
    known: Option<Vec<Found>>,
    /// The readings that a device does not support, by UUID.
    unsupported: Unsupported,
    /// What reports the faults of each device, by UUID; `None`: it reports none.
    events: BTreeMap<String, Option<Events>>,
}

/// By UUID, the names of the readings that the device said it does not support.
type Unsupported = BTreeMap<String, BTreeSet<&'static str>>;

/// What stands under one index.
enum Seen {
    /// A device that the kernel has suspended, as it was in the last inventory.
    Asleep(Found),
    Awake {
        uuid: String,
        index: u32,
        pci_address: Option<String>,
        device: Device<'static>,
    },
    /// A device that cannot even be named.
    Mute {
        index: u32,
        pci_address: Option<String>,
        why: String,
    },
}

/// Every index, or why they cannot be counted.
type Walk = Result<Vec<Seen>, NvmlError>;

impl Driver {
    /// Opens NVML: this library, or what the loader finds. May take seconds for each GPU, or hang.
    ///
    /// # Errors
    /// See [`Closed`].
    pub(super) fn open(library: Option<&Path>, host: Host) -> Result<Self, Closed> {
        let nvml = opening::open(library, &host)?;
        let versions = opening::versions(nvml);
        let (known, unsupported, events) = (None, BTreeMap::new(), BTreeMap::new());
        Ok(Self { nvml, host, versions, known, unsupported, events })
    }

    /// An error of NVML as a whole is `Closed`.
    pub(super) fn answer(&mut self, ask: Ask) -> Answer {
        self.try_answer(ask).unwrap_or_else(|e| Answer::Closed(opening::closed(&e, None, &self.host)))
    }

    fn try_answer(&mut self, ask: Ask) -> Result<Answer, NvmlError> {
        if ask == Ask::Inventory || self.known.is_none() {
            let inventory = self.inventory()?;
            if ask == Ask::Inventory {
                return Ok(Answer::Inventory(inventory));
            }
        }
        let seen = self.walk()?;
        Ok(match ask {
            Ask::Processes => Answer::Processes(self.processes(seen)),
            Ask::Inventory | Ask::Readings => {
                let devices = self.readings(seen);
                Answer::Readings(Readings { devices, xids: self.xids() })
            }
        })
    }

    fn walk(&self) -> Walk {
        let count = self.nvml.device_count()?.min(MAX_DEVICES);
        Ok((0..count).filter_map(|index| self.look(index)).collect())
    }

    /// `None`: there is no device under this index, or it is not for this user.
    fn look(&self, index: u32) -> Option<Seen> {
        if let Some(found) = self.sleeper(index) {
            return Some(Seen::Asleep(found));
        }
        let device = match self.nvml.device_by_index(index) {
            Ok(device) => device,
            Err(NvmlError::NotFound | NvmlError::InvalidArg | NvmlError::NoPermission) => return None,
            Err(e) => return Some(Seen::Mute { index, pci_address: None, why: e.to_string() }),
        };
        let pci_address = device.pci_info().ok().and_then(|pci| address(&pci.bus_id));
        Some(match device.uuid() {
            Ok(uuid) if !uuid.is_empty() => Seen::Awake { uuid, index, pci_address, device },
            Ok(_) => Seen::Mute { index, pci_address, why: "it has no UUID".to_owned() },
            Err(e) => Seen::Mute { index, pci_address, why: format!("its UUID cannot be read: {e}") },
        })
    }

    /// The device of this index, if the kernel has suspended it: any call may wake it, so it is not looked for anew.
    fn sleeper(&self, index: u32) -> Option<Found> {
        let found = self.known.as_ref()?.iter().find(|found| found.index == index && found.uuid.is_some())?;
        self.host.is_asleep(found.pci_address.as_ref()?).then(|| found.clone())
    }

    fn inventory(&mut self) -> Result<Inventory, NvmlError> {
        let devices: Vec<Found> = self.walk()?.into_iter().map(|seen| self.found(seen)).collect();
        let present = |uuid: &String| devices.iter().any(|found| found.uuid.as_ref() == Some(uuid));
        self.events.retain(|uuid, _| present(uuid));
        // A device that returns may be another under its UUID, as after a reset: it is asked everything again.
        self.unsupported.retain(|uuid, _| is_unchanged(uuid, self.known.as_deref(), &devices));
        self.known = Some(devices.clone());
        Ok(Inventory { versions: self.versions.clone(), devices })
    }

    fn found(&mut self, seen: Seen) -> Found {
        match seen {
            Seen::Asleep(found) => found,
            Seen::Mute { index, pci_address, .. } => Found { index, pci_address, ..Found::default() },
            Seen::Awake { uuid, index, pci_address, device } => {
                let nvml = self.nvml;
                self.events.entry(uuid.clone()).or_insert_with(|| Events::of(nvml, &device));
                Found {
                    uuid: Some(uuid),
                    index,
                    minor: device.minor_number().ok(),
                    pci_address,
                    model: device.name().unwrap_or_default(),
                    memory_total: memory_total(&device),
                    mig: mig(&device),
                }
            }
        }
    }

    fn readings(&mut self, seen: Vec<Seen>) -> BTreeMap<String, Measured> {
        let mut measured = BTreeMap::new();
        let mut mute = Vec::new();
        for seen in seen {
            match seen {
                Seen::Asleep(found) => measured.extend(asleep(found)),
                Seen::Mute { index, pci_address, why } => mute.push((index, pci_address, why)),
                Seen::Awake { uuid, device, .. } => self.measure(&uuid, &device, &mut measured),
            }
        }
        for found in self.known.iter().flatten() {
            let lost: Vec<&String> = uuids(found).filter(|uuid| !measured.contains_key(*uuid)).collect();
            for uuid in lost {
                measured.insert(uuid.clone(), Measured::Lost { why: why_lost(found, &mute) });
            }
        }
        measured
    }

    /// Reads the device, and its instances.
    fn measure(&mut self, uuid: &str, device: &Device, into: &mut BTreeMap<String, Measured>) {
        let read = self.inquire(uuid, device, |inquiry, device| inquiry.read(device));
        let is_lost = matches!(read, Measured::Lost { .. });
        into.insert(uuid.to_owned(), read);
        if is_lost {
            return;
        }
        for (instance, device) in instances(device) {
            let read = self.inquire(&instance, &device, |inquiry, device| inquiry.read_instance(device));
            into.insert(instance, read);
        }
    }

    fn inquire(
        &mut self,
        uuid: &str,
        device: &Device,
        read: impl FnOnce(&mut Inquiry, &Device) -> Reading,
    ) -> Measured {
        let mut inquiry = Inquiry::new(self.unsupported.entry(uuid.to_owned()).or_default());
        let reading = read(&mut inquiry, device);
        inquiry.end(reading)
    }

    fn xids(&mut self) -> Vec<Xid> {
        let reports = self.events.iter().filter_map(|(uuid, events)| Some((uuid, events.as_ref()?)));
        let xids = reports.flat_map(|(uuid, events)| events.drain().into_iter().map(|code| (uuid.clone(), code)));
        xids.map(|(uuid, code)| Xid { uuid, code }).collect()
    }

    fn processes(&self, seen: Vec<Seen>) -> Listed {
        let foreign = self.host.has_own_process_ids();
        let mut listing = Listing::new(&self.host);
        for seen in seen {
            match seen {
                // A process on a device keeps it awake.
                Seen::Asleep(found) => listing.add_idle(uuids(&found)),
                Seen::Mute { .. } => {}
                Seen::Awake { uuid, device, .. } => {
                    let instances = instances(&device);
                    let devices = if is_divided(&device) { instances } else { vec![(uuid, device)] };
                    devices.into_iter().for_each(|(uuid, device)| listing.add(uuid, &device, foreign));
                }
            }
        }
        listing.end()
    }
}

/// Whether the device is the one of the inventory before, in the same mode.
fn is_unchanged(uuid: &str, before: Option<&[Found]>, now: &[Found]) -> bool {
    let mode = |found: &Found| matches!(found.mig, Mig::On(_));
    let find = |devices: &[Found]| devices.iter().find(|found| uuids(found).any(|one| one == uuid)).map(mode);
    before.and_then(find).is_some_and(|mode| find(now) == Some(mode))
}

/// The UUIDs of a device and of its instances.
fn uuids(found: &Found) -> impl Iterator<Item = &String> {
    let instances: &[Instance] = if let Mig::On(instances) = &found.mig { instances } else { &[] };
    found.uuid.iter().chain(instances.iter().map(|instance| &instance.uuid))
}

fn asleep(found: Found) -> Vec<(String, Measured)> {
    let reading = || Box::new(Reading { asleep: true, ..Reading::default() });
    uuids(&found).map(|uuid| (uuid.clone(), Measured::Read(reading()))).collect()
}

/// Why a known device has no reading: it may be one of those that cannot be named.
fn why_lost(found: &Found, mute: &[(u32, Option<String>, String)]) -> String {
    let same = |(index, address, _): &&(u32, Option<String>, String)| match address {
        Some(address) => found.pci_address.as_ref() == Some(address),
        None => found.index == *index,
    };
    mute.iter().find(same).map_or(NOT_LISTED, |(_, _, why)| why).to_owned()
}

fn memory_total(device: &Device) -> Option<Bytes> {
    device.memory_info().ok().map(|memory| Bytes::new(memory.total))
}

fn is_divided(device: &Device) -> bool {
    device.mig_mode().is_ok_and(|mode| mode.current == 1)
}

fn mig(device: &Device) -> Mig {
    if !is_divided(device) {
        return Mig::Off;
    }
    let instance = |(uuid, device): (String, Device)| Instance {
        uuid,
        model: device.name().unwrap_or_default(),
        memory_total: memory_total(&device).or_else(|| instance_size(&device)),
    };
    Mig::On(instances(device).into_iter().map(instance).collect())
}

/// The instances of a device in MIG mode. The count is of the most that there may be: an index can be empty.
fn instances<'nvml>(device: &Device<'nvml>) -> Vec<(String, Device<'nvml>)> {
    if !is_divided(device) {
        return Vec::new();
    }
    let count = device.mig_device_count().unwrap_or(0).min(MAX_INSTANCES);
    let instances = (0..count).filter_map(|index| device.mig_device_by_index(index).ok());
    instances.filter_map(|instance| Some((instance.uuid().ok()?, instance))).collect()
}

/// The size of an instance by its profile, for drivers that do not tell its memory.
fn instance_size(device: &Device) -> Option<Bytes> {
    device.attributes().ok().map(|attributes| Bytes::mib(attributes.memory_size_mb))
}

/// The PCI address as the kernel writes it: NVML has eight digits for the domain, and capitals.
fn address(bus_id: &str) -> Option<String> {
    let (domain, rest) = bus_id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_in_sysfs() {
        for (nvml, sysfs) in [
            ("00000000:1A:00.0", Some("0000:1a:00.0")),
            ("0000:C1:00.0", Some("0000:c1:00.0")),
            ("00010000:01:00.0", Some("10000:01:00.0")),
            ("", None),
            ("1A", None),
            ("G:1A:00.0", None),
        ] {
            assert_eq!(address(nvml).as_deref(), sysfs, "{nvml}");
        }
    }

    #[test]
    fn a_device_that_cannot_be_named_is_matched_by_its_address_and_without_one_by_its_index() {
        let found = Found { index: 1, pci_address: Some("0000:1a:00.0".to_owned()), ..Found::default() };
        let mute = |index, address: Option<&str>| vec![(index, address.map(str::to_owned), "broken".to_owned())];
        assert_eq!(why_lost(&found, &mute(0, Some("0000:1a:00.0"))), "broken");
        assert_eq!(why_lost(&found, &mute(1, None)), "broken");
        assert_eq!(why_lost(&found, &mute(1, Some("0000:1b:00.0"))), NOT_LISTED);
        assert_eq!(why_lost(&found, &mute(0, None)), NOT_LISTED);
    }
}
