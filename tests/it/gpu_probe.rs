//! The child that asks NVML, with a library whose devices change: every reading, every way in which a device, a driver
//! or a library lacks something, and a child that crashes, hangs or cannot be killed.

mod child;
mod devices;
mod processes;
mod readings;

use std::path::Path;

use ostler::gpu::answer::{Answer, Ask, Inventory, Listed, Measured, Readings};
use ostler::gpu::probe::Probe;
use ostler::gpu::{Reading, device};

use crate::support::nvml::{self, Fixture, Gpu, List};

const GIB: u64 = 1 << 30;

fn start(fixture: &Fixture) -> Probe {
    Probe::start(Path::new(env!("CARGO_BIN_EXE_ostler")), Some(&fixture.library())).unwrap()
}

/// A child that sees the `/proc` and the `/sys` of the fixture.
fn start_in_root(fixture: &Fixture) -> Probe {
    Probe::start(&fixture.program(), Some(&fixture.library())).unwrap()
}

async fn inventory(probe: &mut Probe) -> Inventory {
    match probe.ask(Ask::Inventory).await.unwrap() {
        Answer::Inventory(inventory) => inventory,
        other => panic!("{other:?}"),
    }
}

async fn readings(probe: &mut Probe) -> Readings {
    match probe.ask(Ask::Readings).await.unwrap() {
        Answer::Readings(readings) => readings,
        other => panic!("{other:?}"),
    }
}

async fn processes(probe: &mut Probe) -> Listed {
    match probe.ask(Ask::Processes).await.unwrap() {
        Answer::Processes(listed) => listed,
        other => panic!("{other:?}"),
    }
}

fn uuid(number: u32) -> String {
    Gpu::numbered(number).uuid
}

fn uuids(inventory: &Inventory) -> Vec<Option<String>> {
    inventory.devices.iter().map(|found| found.uuid.clone()).collect()
}

/// The reading of a device that is not lost.
fn read(readings: &Readings, number: u32) -> &Reading {
    match &readings.devices[&uuid(number)] {
        Measured::Read(reading) => reading,
        lost @ Measured::Lost { .. } => panic!("{lost:?}"),
    }
}

/// Why the device is lost.
fn lost(readings: &Readings, number: u32) -> &str {
    match &readings.devices[&uuid(number)] {
        Measured::Lost { why } => why,
        read @ Measured::Read(_) => panic!("{read:?}"),
    }
}

fn process(pid: u32, list: List, memory: Option<u64>) -> nvml::Process {
    nvml::Process { list, pid, memory }
}

fn pids(listed: &Option<device::Processes>) -> Vec<u32> {
    listed.as_ref().unwrap().list.iter().map(|process| process.pid).collect()
}
