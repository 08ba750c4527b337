//! What the owner of the GPUs logs, and tells the event log.

use std::collections::BTreeSet;

use crate::events::{self, Happening};
use crate::gpu::answer::Xid;
use crate::gpu::changes::Event;
use crate::gpu::{Command, Driver};
use crate::types::Actor;

/// The faults of one answer that are logged at most: a device can report the same one many times a second.
const LOGGED_FAULTS: usize = 16;

pub(super) fn event(event: Event<'_>, events: &events::Handle) {
    match event {
        Event::Driver(driver) => log_driver(driver),
        Event::New(device) => {
            let address = device.pci_address.as_deref();
            tracing::info!(gpu = %device.uuid, model = %device.model, index = device.index, address, "GPU found");
        }
        Event::Lost { device, why } => {
            events.record(Happening::gpu_lost(&device.uuid, &device.model, why), None);
        }
        Event::Back(device) => events.record(Happening::gpu_back(&device.uuid, &device.model), None),
        Event::Failing { device, why } => tracing::warn!(gpu = %device.uuid, %why, "GPU is failing"),
        Event::Well(device) => tracing::info!(gpu = %device.uuid, "GPU is not failing any more"),
        Event::Hot(device) => {
            let celsius = device.reading.temperature_celsius;
            events.record(Happening::gpu_hot(&device.uuid, &device.model, celsius), None);
        }
        Event::Cooled(device) => tracing::info!(gpu = %device.uuid, "GPU is not hot any more"),
    }
}

fn log_driver(driver: &Driver) {
    match driver {
        Driver::Unknown | Driver::NotAsked => {}
        Driver::Absent { why } => tracing::info!(%why, "no NVIDIA driver"),
        Driver::Up(versions) => {
            tracing::info!(driver = %versions.driver, cuda = versions.cuda.as_deref(), "the NVIDIA driver answers");
        }
        Driver::Mismatch { .. } | Driver::Hung { .. } | Driver::Failed { .. } => {
            tracing::warn!("{}", driver.trouble().unwrap_or_default());
        }
    }
}

pub(super) fn command(uuid: &str, command: Command, by: &Actor, events: &events::Handle) {
    let happening = match command {
        Command::Cordon => Happening::gpu_cordoned(uuid),
        Command::Uncordon => Happening::gpu_uncordoned(uuid),
        Command::Forget => Happening::gpu_forgotten(uuid),
    };
    events.record(happening, Some(by));
}

pub(super) fn faults(xids: &[Xid]) {
    let faults: BTreeSet<(&str, u64)> = xids.iter().map(|xid| (&*xid.uuid, xid.code)).collect();
    for (gpu, xid) in faults.into_iter().take(LOGGED_FAULTS) {
        tracing::warn!(%gpu, xid, "the NVIDIA driver reported a fault (XID) of a GPU");
    }
}

/// Devices that are there and not used: those above the bound, and those without a UUID.
pub(super) fn unusable(before: (usize, usize), (untaken, nameless): (usize, usize)) {
    if untaken > before.0 {
        tracing::warn!(
            untaken,
            "too many GPUs are remembered, and new ones are not used: run `ostler gpu forget` or `ostler gpu \
             uncordon` for those that are gone"
        );
    }
    if nameless > before.1 {
        tracing::warn!(nameless, "GPUs do not give their UUID to the driver and are not used");
    }
}
