//! The devices that are known since this host booted. Pure.
//!
//! A device is known by its UUID. One that is not found any more stays known, as lost, until the host boots or the
//! operator forgets it: its slots stay its own, and no other device's number changes. A cordon is remembered for ever.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::answer::{Found, Listed, Measured, Mig, Readings};
use super::device::{Device, Presence, Reading};
use super::health::{Health, is_hot};
use super::{Command, Error};
use crate::types::{BootInstant, Bytes, GpuXid, NVIDIA_CLASS, Timestamp};

/// Devices and cordons that are remembered at most: above it, no new device is used. No host has as many, MIG instances
/// included; each costs less than 1 KiB on disk.
pub const MAX_KNOWN: usize = 1024;
/// Bytes of a UUID at most: NVML's longest have 96.
const MAX_UUID: usize = 96;
/// Why a GPU of another maker is lost. Its driver, its device nodes or its line in the list is gone.
const NOT_LISTED: &str = "the container engine's CDI list does not have it any more, or its device nodes are gone";

/// What is remembered of a device on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The boot since which it is known. In another one, as with `None`, only the cordon counts.
    pub boot_id: Option<u64>,
    pub index: u32,
    pub minor: Option<u32>,
    pub pci_address: Option<String>,
    pub model: String,
    pub class: String,
    pub mig_parent: Option<String>,
    pub memory_total: Option<Bytes>,
    pub presence: Presence,
    #[serde(default)]
    pub last_xid: Option<GpuXid>,
    #[serde(default)]
    pub health: Health,
    pub cordoned: bool,
}

/// What is remembered on disk, by UUID.
pub type Records = BTreeMap<String, Record>;

/// The known devices, and the cordons of devices that are not known now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// The class of all of them.
    class: String,
    /// `None`: the devices are made up, and only their cordons are for the disk.
    boot_id: Option<u64>,
    devices: BTreeMap<String, Entry>,
    /// The records of cordoned devices that are not known: not seen since the boot, or forgotten.
    remembered: Records,
    /// Devices of the last inventory that could not be taken, since [`MAX_KNOWN`] are remembered.
    untaken: usize,
    /// Devices of the last inventory that gave no UUID, and that no known device explains.
    nameless: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    device: Device,
    health: Health,
    /// The last inventory had it.
    listed: bool,
}

/// A device of an inventory: a GPU, or an instance of one.
struct Seen<'a> {
    uuid: &'a str,
    model: &'a str,
    memory_total: Option<Bytes>,
    gpu: &'a Found,
    mig_parent: Option<&'a str>,
}

impl Known {
    /// What is known when the agent starts: the devices of this boot, as they were, and every cordon.
    pub fn restore(stored: Records, boot_id: Option<u64>) -> Self {
        Self::of_class(NVIDIA_CLASS, stored, boot_id)
    }

    /// The same, of devices of this class. `gpu.class` may have been another one before.
    pub fn of_class(class: &str, stored: Records, boot_id: Option<u64>) -> Self {
        let is_known = |record: &Record| boot_id.is_some() && record.boot_id == boot_id && record.class == class;
        let (known, remembered) = stored.into_iter().partition::<Records, _>(|(_, record)| is_known(record));
        let devices = known.into_iter().map(|(uuid, record)| (uuid.clone(), Entry::restore(uuid, record)));
        let remembered = remembered.into_iter().filter(|(_, record)| record.cordoned);
        let (class, devices, remembered) = (class.to_owned(), devices.collect(), remembered.collect());
        Self { class, boot_id, devices, remembered, ..Self::default() }
    }

    /// What is to be on disk.
    pub fn records(&self) -> Records {
        let known = self.devices.iter().map(|(uuid, entry)| (uuid.clone(), entry.record(self.boot_id)));
        let kept = known.filter(|(_, record)| record.boot_id.is_some() || record.cordoned);
        kept.chain(self.remembered.clone()).collect()
    }

    /// The known devices, in the order of their UUIDs.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().map(|entry| &entry.device)
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    pub fn has_lost(&self) -> bool {
        self.devices().any(|device| !device.is_present())
    }

    /// Whether the last inventory had a lost device: the next reading tells whether it is back.
    pub fn has_returning(&self) -> bool {
        self.devices.values().any(|entry| entry.listed && !entry.device.is_present())
    }

    /// Devices of the last inventory that could not be taken, since [`MAX_KNOWN`] are remembered.
    pub const fn untaken(&self) -> usize {
        self.untaken
    }

    /// Devices of the last inventory that gave no UUID and are at the address of no known device.
    pub const fn nameless(&self) -> usize {
        self.nameless
    }

    /// Takes over an inventory: new devices are known from now on, and known ones that are not in it are lost. A lost
    /// one that is in it is back once it was read.
    pub fn see(&mut self, found: &[Found], now: Timestamp) {
        let seen: BTreeMap<&str, Seen<'_>> = found.iter().rev().flat_map(seen).map(|seen| (seen.uuid, seen)).collect();
        self.lose_absent(&seen, found, now);
        self.untaken = 0;
        for (uuid, seen) in &seen {
            self.take(uuid, seen);
        }
        let nameless = found.iter().filter(|found| uuid_of(found).is_none());
        self.nameless = nameless.filter(|found| !self.explains(found.pci_address.as_deref())).count();
    }

    /// Takes over the container engine's list of GPUs of another maker. Nothing is read of them, so a lost one that is in
    /// it is back at once.
    pub fn see_listed(&mut self, found: &[Found], now: Timestamp) {
        self.see(found, now);
        for entry in self.devices.values_mut().filter(|entry| entry.listed) {
            entry.device.presence = Presence::Present;
        }
    }

    /// Loses every device: the driver says that there is none.
    pub fn lose_all(&mut self, why: &str, now: Timestamp) {
        for entry in self.devices.values_mut() {
            entry.listed = false;
            entry.lose(now, why.to_owned());
        }
    }

    /// Takes over measurements and faults. True: a device was lost that was there, or there was a fault, so another
    /// inventory tells more.
    pub fn read(&mut self, readings: &Readings, max_celsius: Option<f64>, now: Timestamp) -> bool {
        let mut is_news = false;
        for (uuid, entry) in &mut self.devices {
            let gpu = entry.device.mig_parent.as_ref().and_then(|parent| readings.devices.get(parent));
            match (readings.devices.get(uuid), gpu) {
                (Some(Measured::Read(own)), Some(Measured::Read(gpu))) => {
                    entry.read(&of_instance(own, gpu), max_celsius, now);
                }
                (Some(Measured::Read(reading)), None) => entry.read(reading, max_celsius, now),
                (Some(Measured::Lost { why }), _) | (_, Some(Measured::Lost { why })) if entry.listed => {
                    is_news |= entry.lose(now, why.clone())
                }
                // Lost, and the inventory has said why; or not measured.
                _ => {}
            }
        }
        for xid in &readings.xids {
            is_news = true;
            for entry in self.devices.values_mut().filter(|entry| entry.is_or_is_of(&xid.uuid)) {
                entry.device.last_xid = Some(GpuXid { code: xid.code, at: now });
                entry.fault(xid.code);
            }
        }
        is_news
    }

    /// Takes over the processes on each device, as of `at`. A device that is not in the list keeps those that it had.
    /// True: every present device is in the list.
    pub fn list(&mut self, mut listed: Listed, at: BootInstant) -> bool {
        let mut is_complete = true;
        for (uuid, Entry { device, .. }) in self.devices.iter_mut().filter(|(_, entry)| entry.device.is_present()) {
            match listed.remove(uuid) {
                Some(processes) => (device.processes, device.processes_at) = (processes, Some(at)),
                None => is_complete = false,
            }
        }
        is_complete
    }

    /// Judges the temperatures by another limit.
    pub fn limit(&mut self, max_celsius: Option<f64>) {
        for Entry { device, .. } in self.devices.values_mut() {
            device.hot = is_hot(device.hot, &device.reading, max_celsius);
        }
    }

    /// Makes a change of one device.
    ///
    /// # Errors
    /// There is no such device, or it cannot be forgotten since it is present. Nothing changed.
    pub fn command(&mut self, uuid: &str, command: Command) -> Result<(), Error> {
        match (self.devices.get_mut(uuid), command) {
            (Some(entry), Command::Cordon) => entry.device.cordoned = true,
            (Some(entry), Command::Uncordon) => entry.uncordon(),
            (Some(entry), Command::Forget) if entry.device.is_present() => {
                return Err(Error::Present(uuid.to_owned()));
            }
            (Some(_), Command::Forget) => self.forget(uuid),
            (None, Command::Cordon) if self.remembered.contains_key(uuid) => {}
            (None, Command::Uncordon) if self.remembered.remove(uuid).is_some() => {}
            (None, _) => return Err(Error::NotFound(uuid.to_owned())),
        }
        Ok(())
    }

    /// Its cordon is remembered: the device may come back.
    fn forget(&mut self, uuid: &str) {
        if let Some(entry) = self.devices.remove(uuid)
            && entry.device.cordoned
        {
            self.remembered.insert(uuid.to_owned(), entry.record(None));
        }
    }

    fn lose_absent(&mut self, seen: &BTreeMap<&str, Seen<'_>>, found: &[Found], now: Timestamp) {
        for (uuid, entry) in &mut self.devices {
            entry.listed = seen.contains_key(uuid.as_str());
            if !entry.listed {
                let is_nvidia = self.class == NVIDIA_CLASS;
                let why = if is_nvidia { why_lost(&entry.device, seen, found) } else { NOT_LISTED.to_owned() };
                entry.lose(now, why);
            }
        }
    }

    fn take(&mut self, uuid: &str, seen: &Seen<'_>) {
        if let Some(entry) = self.devices.get_mut(uuid) {
            entry.update(seen);
            return;
        }
        let is_remembered = self.remembered.contains_key(uuid);
        if !is_remembered && self.devices.len() + self.remembered.len() >= MAX_KNOWN {
            self.untaken += 1;
            return;
        }
        let cordoned = self.remembered.remove(uuid).is_some();
        let class = self.class.clone();
        let device = Device { class, cordoned, ..Device::new(uuid.to_owned(), seen.gpu.index, seen.model.to_owned()) };
        let mut entry = Entry { device, health: Health::default(), listed: true };
        entry.update(seen);
        self.devices.insert(uuid.to_owned(), entry);
    }

    /// Whether a known device was last seen at this address.
    fn explains(&self, address: Option<&str>) -> bool {
        address.is_some() && self.devices().any(|device| device.pci_address.as_deref() == address)
    }
}

impl Entry {
    fn restore(uuid: String, record: Record) -> Self {
        let mut device = Device {
            minor: record.minor,
            pci_address: record.pci_address,
            class: record.class,
            mig_parent: record.mig_parent,
            memory_total: record.memory_total,
            presence: record.presence,
            last_xid: record.last_xid,
            cordoned: record.cordoned,
            ..Device::new(uuid, record.index, record.model)
        };
        device.failing = record.health.message(gpu_of(&device));
        Self { device, health: record.health, listed: false }
    }

    fn record(&self, boot_id: Option<u64>) -> Record {
        let device = &self.device;
        Record {
            boot_id,
            index: device.index,
            minor: device.minor,
            pci_address: device.pci_address.clone(),
            model: device.model.clone(),
            class: device.class.clone(),
            mig_parent: device.mig_parent.clone(),
            memory_total: device.memory_total,
            presence: device.presence.clone(),
            last_xid: device.last_xid,
            health: self.health.clone(),
            cordoned: device.cordoned,
        }
    }

    fn update(&mut self, seen: &Seen<'_>) {
        let device = &mut self.device;
        device.index = seen.gpu.index;
        device.minor = seen.gpu.minor.or(device.minor);
        device.pci_address = seen.gpu.pci_address.clone().or(device.pci_address.take());
        seen.model.clone_into(&mut device.model);
        device.memory_total = seen.memory_total.or(device.memory_total);
        device.mig_parent = seen.mig_parent.map(str::to_owned);
        self.listed = true;
    }

    /// Nothing is known any more of a device that is lost. True if it was there.
    fn lose(&mut self, now: Timestamp, why: String) -> bool {
        let device = &mut self.device;
        let was_present = device.is_present();
        let since = match device.presence {
            Presence::Lost { since, .. } => since,
            Presence::Present => now,
        };
        device.presence = Presence::Lost { since, why };
        (device.reading, device.read_at, device.hot) = (Reading::default(), None, false);
        (device.processes, device.processes_at) = (None, None);
        was_present
    }

    fn read(&mut self, reading: &Reading, max_celsius: Option<f64>, now: Timestamp) {
        if !self.device.is_present() {
            if !self.listed {
                return; // nobody knows yet whether this is the same device
            }
            self.device.presence = Presence::Present;
            self.health.clear();
        }
        self.health.read(reading);
        let device = &mut self.device;
        device.hot = is_hot(device.hot, reading, max_celsius);
        (device.reading, device.read_at) = (reading.clone(), Some(now));
        self.judge();
    }

    fn fault(&mut self, code: u64) {
        self.health.fault(code, &self.device.reading);
        self.judge();
    }

    fn uncordon(&mut self) {
        self.device.cordoned = false;
        self.health.forgive();
        self.judge();
    }

    fn judge(&mut self) {
        self.device.failing = self.health.message(gpu_of(&self.device));
    }

    fn is_or_is_of(&self, gpu: &str) -> bool {
        self.device.uuid == gpu || self.device.mig_parent.as_deref() == Some(gpu)
    }
}

/// The UUID of the GPU that the device is, or is an instance of: commands that reset take no other.
fn gpu_of(device: &Device) -> &str {
    device.mig_parent.as_deref().unwrap_or(&device.uuid)
}

/// The devices that a GPU of the inventory is: itself, or its instances. One without a UUID is none.
fn seen(found: &Found) -> Vec<Seen<'_>> {
    let Some(uuid) = uuid_of(found) else { return Vec::new() };
    match &found.mig {
        Mig::Off => {
            let (model, memory_total) = (&*found.model, found.memory_total);
            vec![Seen { uuid, model, memory_total, gpu: found, mig_parent: None }]
        }
        Mig::On(instances) => instances
            .iter()
            .filter(|instance| is_uuid(&instance.uuid))
            .map(|instance| Seen {
                uuid: &instance.uuid,
                model: &instance.model,
                memory_total: instance.memory_total,
                gpu: found,
                mig_parent: Some(uuid),
            })
            .collect(),
    }
}

/// The reading of an instance: its own memory and load, and what is known only of its GPU. The power is that of all
/// instances together, so it is of none.
fn of_instance(own: &Reading, gpu: &Reading) -> Reading {
    Reading {
        memory_used: own.memory_used,
        memory_free: own.memory_free,
        utilization_percent: own.utilization_percent,
        power_watts: own.power_watts,
        power_limit_watts: own.power_limit_watts,
        ..gpu.clone()
    }
}

fn uuid_of(found: &Found) -> Option<&str> {
    found.uuid.as_deref().filter(|uuid| is_uuid(uuid))
}

/// UUIDs get into messages, environments and file names.
fn is_uuid(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.' | ':');
    (1..=MAX_UUID).contains(&text.len()) && text.chars().all(is_plain)
}

/// Why a device that the inventory does not have is lost.
fn why_lost(device: &Device, seen: &BTreeMap<&str, Seen<'_>>, found: &[Found]) -> String {
    let gpu = found.iter().find(|found| uuid_of(found) == Some(gpu_of(device)));
    if let Some(gpu) = gpu {
        return match (&gpu.mig, &device.mig_parent) {
            (Mig::On(_), None) => "it is in MIG mode now: its instances are used instead".to_owned(),
            (Mig::On(_), Some(parent)) => format!("MIG instance not found on {parent}"),
            (Mig::Off, _) => format!("MIG mode of {} is off: the GPU itself is used instead", gpu_of(device)),
        };
    }
    let Some(address) = &device.pci_address else { return "the driver does not find it".to_owned() };
    let at_address = |other: &&Found| other.pci_address.as_ref() == Some(address);
    match found.iter().find(at_address).map(uuid_of) {
        Some(None) => format!("the GPU at PCI address {address} does not answer the driver"),
        Some(Some(other)) => format!("another GPU is at its PCI address {address}: {other}"),
        None if seen.is_empty() => format!("the driver finds no GPU, and not this one at PCI address {address}"),
        None => format!("the driver finds no GPU at PCI address {address}"),
    }
}

#[cfg(test)]
mod tests;
