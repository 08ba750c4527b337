//! Devices that vanish, return, are renumbered, are divided, or sleep.

use ostler::gpu::Reading;
use ostler::gpu::answer::{Measured, Mig};
use ostler::gpu::probe::Probe;
use ostler::types::Bytes;

use super::{GIB, inventory, lost, pids, process, processes, read, readings, start, start_in_root, uuid, uuids};
use crate::support::nvml::{Fixture, Gpu, List, VERSION, code};

#[tokio::test]
async fn an_inventory_has_every_device_and_the_versions() {
    let fixture = Fixture::new(2);
    let inventory = inventory(&mut start(&fixture)).await;
    let versions = &inventory.versions;
    assert_eq!(versions.driver, VERSION);
    assert_eq!(versions.cuda.as_deref(), Some("13.0"));
    assert_eq!(versions.nvml.as_deref(), Some("13.580.65.06"));
    assert_eq!(inventory.devices.len(), 2);
    let second = &inventory.devices[1];
    assert_eq!((second.uuid.clone(), second.index, second.minor), (Some(uuid(1)), 1, Some(1)));
    assert_eq!(second.pci_address.as_deref(), Some("0000:1b:00.0"));
    assert_eq!(second.model, "NVIDIA Fixture 80GB");
    assert_eq!((second.memory_total, second.mig.clone()), (Some(Bytes::new(80 * GIB)), Mig::Off));
}

#[tokio::test]
async fn a_device_that_vanishes_is_lost_at_once_gone_from_the_next_inventory_and_can_return() {
    let mut fixture = Fixture::new(2);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| drop(machine.gpus.remove(0)));
    let now = readings(&mut probe).await;
    assert_eq!(lost(&now, 0), "the driver does not list it any more");
    read(&now, 1);
    assert_eq!(uuids(&inventory(&mut probe).await), [Some(uuid(1))]);
    assert_eq!(readings(&mut probe).await.devices.keys().collect::<Vec<_>>(), [&uuid(1)]);
    fixture.set(|machine| machine.gpus.push(Gpu::numbered(0)));
    read(&readings(&mut probe).await, 0);
    assert_eq!(uuids(&inventory(&mut probe).await), [Some(uuid(1)), Some(uuid(0))]);
}

#[tokio::test]
async fn a_device_that_is_renumbered_keeps_its_readings() {
    let mut fixture = Fixture::new(3);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| {
        machine.gpus[0].temperature = 80;
        machine.gpus.reverse();
    });
    let readings = readings(&mut probe).await;
    let temperatures = [0, 1, 2].map(|number| read(&readings, number).temperature_celsius);
    assert_eq!(temperatures, [Some(80.0), Some(50.0), Some(50.0)]);
    let inventory = inventory(&mut probe).await;
    assert_eq!(inventory.devices[2].uuid, Some(uuid(0)));
    assert_eq!((inventory.devices[2].index, inventory.devices[2].minor), (2, Some(0)));
}

#[tokio::test]
async fn a_device_without_a_uuid_is_found_by_its_address_and_known_to_be_lost() {
    let mut fixture = Fixture::new(2);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.gpus[0].returns("nvmlDeviceGetUUID", code::UNKNOWN));
    assert_eq!(lost(&readings(&mut probe).await, 0), "its UUID cannot be read: an internal driver error occurred");
    let found = inventory(&mut probe).await.devices.swap_remove(0);
    assert_eq!((found.uuid, found.index, found.pci_address.as_deref()), (None, 0, Some("0000:1a:00.0")));
    // It is not known to this child any more, and has no name for a reading.
    assert_eq!(readings(&mut probe).await.devices.len(), 1);
}

#[tokio::test]
async fn a_device_that_fell_off_the_bus_is_lost_and_the_others_are_read() {
    for (call, code) in [
        ("*", code::GPU_IS_LOST),
        ("*", code::UNKNOWN),
        ("nvmlDeviceGetHandleByIndex_v2", code::GPU_IS_LOST),
        ("nvmlDeviceGetPowerUsage", code::GPU_IS_LOST),
    ] {
        let mut fixture = Fixture::new(2);
        let mut probe = start(&fixture);
        inventory(&mut probe).await;
        fixture.set(|machine| machine.gpus[0].returns(call, code));
        // Waiting for faults of the lost device returns at once, and must not go round.
        for _ in 0..2 {
            let now = readings(&mut probe).await;
            assert!(!lost(&now, 0).is_empty(), "{call} {code}");
            assert_eq!(read(&now, 1).temperature_celsius, Some(50.0));
        }
        fixture.set(|machine| machine.gpus[0].codes.clear());
        read(&readings(&mut probe).await, 0);
    }
}

#[tokio::test]
async fn a_device_whose_handle_is_refused_is_not_there() {
    let mut fixture = Fixture::new(2);
    fixture.set(|machine| machine.gpus[0].returns("nvmlDeviceGetHandleByIndex_v2", code::NO_PERMISSION));
    assert_eq!(uuids(&inventory(&mut start(&fixture)).await), [Some(uuid(1))]);
}

#[tokio::test]
async fn instances_are_found_around_holes_and_have_their_own_memory_and_processes() {
    let mut fixture = Fixture::new(1);
    fixture.set(|machine| {
        let gpu = &mut machine.gpus[0];
        let [first, second] = [2, 5].map(|number| gpu.instance(number));
        gpu.processes.push(process(1, List::Compute, None));
        gpu.mig = Some(vec![Gpu::default(), Gpu::default(), first, Gpu::default(), second, Gpu::default()]);
        let second = &mut gpu.mig.as_mut().unwrap()[4];
        second.returns("nvmlDeviceGetMemoryInfo_v2", code::NOT_SUPPORTED);
        second.processes.push(process(2, List::Compute, Some(GIB)));
    });
    let mut probe = start(&fixture);
    let found = inventory(&mut probe).await.devices.swap_remove(0);
    let Mig::On(instances) = found.mig else { panic!("{found:?}") };
    let names: Vec<&str> = instances.iter().map(|instance| &*instance.uuid).collect();
    assert_eq!(names, [2, 5].map(|n| format!("MIG-00000000-0000-0000-0000-000000000000-{n}")));
    assert_eq!(instances[0].model, "NVIDIA Fixture 80GB MIG 1g.10gb");
    // One from its memory, the other from its profile.
    assert!(instances.iter().all(|instance| instance.memory_total == Some(Bytes::new(10 * GIB))));
    let readings = readings(&mut probe).await;
    let parent = read(&readings, 0);
    assert_eq!((parent.utilization_percent, parent.temperature_celsius), (None, Some(50.0)));
    let reading =
        Reading { memory_used: Some(Bytes::new(GIB)), memory_free: Some(Bytes::new(9 * GIB)), ..Reading::default() };
    assert_eq!(readings.devices[names[0]], Measured::Read(Box::new(reading)));
    assert_eq!(readings.devices[names[1]], Measured::Read(Box::default()));
    let listed = processes(&mut probe).await;
    assert_eq!(listed.keys().collect::<Vec<_>>(), names);
    assert!(pids(&listed[names[0]]).is_empty());
    assert_eq!(pids(&listed[names[1]]), [2]);
    fixture.set(|machine| machine.gpus[0].mig.as_mut().unwrap()[2] = Gpu::default());
    assert_eq!(readings_of(&mut probe, names[0]).await, None);
    // Without instances its load is known again.
    fixture.set(|machine| machine.gpus[0].mig = None);
    assert_eq!(inventory(&mut probe).await.devices[0].mig, Mig::Off);
    assert_eq!(read(&super::readings(&mut probe).await, 0).utilization_percent, Some(37.0));
}

/// The reading of that device or instance; `None` if it is lost.
async fn readings_of(probe: &mut Probe, uuid: &str) -> Option<Reading> {
    match readings(probe).await.devices.remove(uuid) {
        Some(Measured::Read(reading)) => Some(*reading),
        Some(Measured::Lost { .. }) | None => None,
    }
}

#[tokio::test]
async fn a_device_that_the_kernel_suspended_is_left_alone() {
    let mut fixture = Fixture::new(2);
    let status = "sys/bus/pci/devices/0000:1a:00.0/power/runtime_status";
    fixture.root(status, "active\n");
    let mut probe = start_in_root(&fixture);
    let awake = inventory(&mut probe).await;
    assert!(!read(&readings(&mut probe).await, 0).asleep);
    fixture.root(status, "suspended\n");
    // A call on it would be seen.
    fixture.set(|machine| machine.gpus[0].returns("*", code::GPU_IS_LOST));
    let now = readings(&mut probe).await;
    assert_eq!(read(&now, 0), &Reading { asleep: true, ..Reading::default() });
    assert!(!read(&now, 1).asleep);
    assert_eq!(inventory(&mut probe).await, awake);
    assert!(pids(&processes(&mut probe).await[&uuid(0)]).is_empty());
    fixture.root(status, "active\n");
    fixture.set(|machine| machine.gpus[0].codes.clear());
    assert!(!read(&readings(&mut probe).await, 0).asleep);
}
