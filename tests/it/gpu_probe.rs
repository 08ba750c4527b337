//! The child that asks NVML, with a library whose devices change: every reading, every way in which a device, a driver
//! or a library lacks something, and a child that crashes, hangs or cannot be killed.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ostler::gpu::answer::{Answer, Ask, Closed, Inventory, Listed, Measured, Mig, Readings, Xid};
use ostler::gpu::probe::{PATIENCE, Probe, Silence};
use ostler::gpu::{Process, Reading, device};
use ostler::types::Bytes;

use crate::support::agent::{lives, until};
use crate::support::nvml::{FOREVER, Fixture, Gpu, List, VERSION, code};
use crate::support::{nvml, skip};

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

async fn closed(mut probe: Probe) -> Closed {
    match probe.ask(Ask::Inventory).await.unwrap() {
        Answer::Closed(closed) => closed,
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
async fn every_reading_is_what_the_driver_says_now() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    let expected = Reading {
        memory_used: Some(Bytes::new(9 * GIB)),
        memory_free: Some(Bytes::new(70 * GIB)),
        utilization_percent: Some(37.0),
        temperature_celsius: Some(50.0),
        slowdown_celsius: Some(90.0),
        power_watts: Some(210.5),
        power_limit_watts: Some(700.0),
        throttling: Some(Vec::new()),
        ecc_enabled: Some(true),
        ecc_corrected: Some(0),
        ecc_uncorrected: Some(0),
        remapped_rows: Some(device::RemappedRows::default()),
        retirement_pending: Some(false),
        recovery: Some(device::Recovery::None),
        asleep: false,
    };
    assert_eq!(read(&readings(&mut probe).await, 0), &expected);
    fixture.set(|machine| {
        let gpu = &mut machine.gpus[0];
        (gpu.used, gpu.free, gpu.load, gpu.temperature, gpu.slowdown) = (10 * GIB, 69 * GIB, 100, 91, 92);
        (gpu.milliwatts, gpu.limit, gpu.throttling, gpu.ecc) = (699_999, 500_000, 0x40 | 0x80 | 4, 0);
        (gpu.corrected, gpu.uncorrected, gpu.retirement) = (7, 1 << 40, 1);
        gpu.fields =
            [("142", 3), ("143", 1 << 33), ("144", 1), ("145", 1), ("230", 4)].map(|(id, n)| (id.to_owned(), n)).into();
    });
    let rows = device::RemappedRows { corrected: 3, uncorrected: 1 << 33, pending: true, failed: true };
    let expected = Reading {
        memory_used: Some(Bytes::new(10 * GIB)),
        memory_free: Some(Bytes::new(69 * GIB)),
        utilization_percent: Some(100.0),
        temperature_celsius: Some(91.0),
        slowdown_celsius: Some(92.0),
        power_watts: Some(699.999),
        power_limit_watts: Some(500.0),
        throttling: Some(vec!["thermal".to_owned(), "power_brake".to_owned()]),
        ecc_enabled: Some(false),
        ecc_corrected: Some(7),
        ecc_uncorrected: Some(1 << 40),
        remapped_rows: Some(rows),
        retirement_pending: Some(true),
        recovery: Some(device::Recovery::DrainAndReset),
        asleep: false,
    };
    assert_eq!(read(&readings(&mut probe).await, 0), &expected);
}

/// A call, and what a reading lacks without it.
type Lacking = (&'static str, fn(&mut Reading));

/// How many calls a reading depends on, and devices there are to lack one each.
const COUNT: u32 = 14;

const CALLS: [Lacking; COUNT as usize] = [
    ("nvmlDeviceGetMemoryInfo_v2", |reading| (reading.memory_used, reading.memory_free) = (None, None)),
    ("nvmlDeviceGetUtilizationRates", |reading| reading.utilization_percent = None),
    ("nvmlDeviceGetTemperature", |reading| reading.temperature_celsius = None),
    ("nvmlDeviceGetTemperatureThreshold", |reading| reading.slowdown_celsius = None),
    ("nvmlDeviceGetPowerUsage", |reading| reading.power_watts = None),
    ("nvmlDeviceGetEnforcedPowerLimit", |reading| reading.power_limit_watts = None),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", |reading| reading.throttling = None),
    ("nvmlDeviceGetEccMode", |reading| reading.ecc_enabled = None),
    ("nvmlDeviceGetTotalEccErrors", |reading| (reading.ecc_corrected, reading.ecc_uncorrected) = (None, None)),
    ("nvmlDeviceGetRetiredPagesPendingStatus", |reading| reading.retirement_pending = None),
    ("nvmlDeviceGetFieldValues", |reading| (reading.remapped_rows, reading.recovery) = (None, None)),
    ("field 144", |reading| reading.remapped_rows = None),
    ("field 230", |reading| reading.recovery = None),
    // Nothing of the reading.
    ("nvmlDeviceGetMinorNumber", |_| {}),
];

/// The readings of devices that each lack one of [`CALLS`].
fn assert_each_lacks_one(readings: &Readings, whole: &Reading) {
    for (number, (call, lack)) in (0..).zip(CALLS) {
        let mut expected = whole.clone();
        lack(&mut expected);
        assert_eq!(read(readings, number), &expected, "without {call}");
    }
}

/// A machine where each device returns the code for another call.
fn each_returns(code: u32) -> Fixture {
    let mut fixture = Fixture::new(COUNT);
    fixture.set(|machine| {
        for (gpu, (call, _)) in machine.gpus.iter_mut().zip(CALLS) {
            gpu.returns(call, code);
        }
    });
    fixture
}

async fn whole() -> Reading {
    let fixture = Fixture::new(1);
    read(&readings(&mut start(&fixture)).await, 0).clone()
}

#[tokio::test]
async fn a_reading_that_is_not_supported_is_unknown_alone_and_not_asked_again_of_that_device() {
    let mut fixture = each_returns(code::NOT_SUPPORTED);
    let whole = whole().await;
    let mut probe = start(&fixture);
    assert_each_lacks_one(&readings(&mut probe).await, &whole);
    fixture.set(|machine| machine.gpus.iter_mut().for_each(|gpu| gpu.codes.clear()));
    assert_each_lacks_one(&readings(&mut probe).await, &whole);
    inventory(&mut probe).await;
    assert_each_lacks_one(&readings(&mut probe).await, &whole);
    // The driver may be another one with the next child.
    assert_eq!(read(&readings(&mut start(&fixture)).await, 2), &whole);
}

#[tokio::test]
async fn a_reading_that_fails_otherwise_is_unknown_alone_until_it_succeeds() {
    let whole = whole().await;
    // 27 has no name in the wrapper.
    for code in [code::NO_PERMISSION, code::UNKNOWN, 27] {
        let mut fixture = each_returns(code);
        let mut probe = start(&fixture);
        assert_each_lacks_one(&readings(&mut probe).await, &whole);
        fixture.set(|machine| machine.gpus.iter_mut().for_each(|gpu| gpu.codes.clear()));
        let readings = readings(&mut probe).await;
        assert!((0..COUNT).all(|number| read(&readings, number) == &whole), "{readings:?}");
    }
}

#[tokio::test]
async fn a_library_that_lacks_functions_lacks_only_their_readings() {
    let fixture = Fixture::new(1);
    let missing = [
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlEventSetFree",
        "nvmlSystemGetNVMLVersion",
        "nvmlShutdown",
    ];
    fixture.install(VERSION, &missing);
    let mut expected = whole().await;
    (expected.temperature_celsius, expected.remapped_rows, expected.recovery) = (None, None, None);
    let mut probe = start(&fixture);
    let inventory = inventory(&mut probe).await;
    assert_eq!((inventory.versions.nvml, inventory.devices[0].uuid.clone()), (None, Some(uuid(0))));
    assert_eq!(read(&readings(&mut probe).await, 0), &expected);
    assert_eq!(processes(&mut probe).await, Listed::from([(uuid(0), None)]));
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
    assert_eq!(read(&self::readings(&mut probe).await, 0).utilization_percent, Some(37.0));
}

/// The reading of that device or instance; `None` if it is lost.
async fn readings_of(probe: &mut Probe, uuid: &str) -> Option<Reading> {
    match readings(probe).await.devices.remove(uuid) {
        Some(Measured::Read(reading)) => Some(*reading),
        Some(Measured::Lost { .. }) | None => None,
    }
}

#[tokio::test]
async fn faults_are_told_once_with_their_device_and_not_those_from_before() {
    let mut fixture = Fixture::new(2);
    fixture.set(|machine| machine.gpus[0].xids.push(13));
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| {
        machine.gpus[0].xids.extend([48, 63]);
        machine.gpus[1].xids.extend(1..=40);
    });
    let xid = |number, code| Xid { uuid: uuid(number), code };
    let told: Vec<Xid> =
        [48, 63].map(|code| xid(0, code)).into_iter().chain((1..=32).map(|code| xid(1, code))).collect();
    assert_eq!(readings(&mut probe).await.xids, told);
    let rest: Vec<Xid> = (33..=40).map(|code| xid(1, code)).collect();
    assert_eq!(readings(&mut probe).await.xids, rest);
    assert_eq!(readings(&mut probe).await.xids, []);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.gpus[0].xids.push(79));
    assert_eq!(readings(&mut probe).await.xids, [xid(0, 79)]);
}

fn process(pid: u32, list: List, memory: Option<u64>) -> nvml::Process {
    nvml::Process { list, pid, memory }
}

fn pids(listed: &Option<device::Processes>) -> Vec<u32> {
    listed.as_ref().unwrap().list.iter().map(|process| process.pid).collect()
}

#[tokio::test]
async fn processes_of_all_lists_are_merged_and_say_whose_they_are() {
    let mut user = Command::new("sleep").arg("1000").env("OSTLER_SESSION", "sessionsession").spawn().unwrap();
    let mut fixture = Fixture::new(2);
    let pid = user.id();
    // No such process: ids end far below it.
    let gone = u32::MAX - 1;
    fixture.set(|machine| {
        machine.gpus[0].processes = vec![
            process(pid, List::Compute, Some(GIB)),
            process(pid, List::Graphics, Some(GIB)),
            process(gone, List::Mps, None),
        ];
    });
    let listed = processes(&mut start(&fixture)).await;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    user.kill().unwrap();
    user.wait().unwrap();
    let list = &listed[&uuid(0)].as_ref().unwrap().list;
    let [known, unknown] = &list[..] else { panic!("{list:?}") };
    assert_eq!((known.pid, &*known.command, known.memory), (pid, "sleep", Some(Bytes::new(GIB))));
    assert!(known.is_of("sessionsession") && !known.is_of("sessionsession2"), "{known:?}");
    let paths = cgroups.lines().map(|line| line.splitn(3, ':').nth(2).unwrap()).filter(|path| *path != "/");
    assert!(paths.clone().all(|path| known.marks.iter().any(|mark| mark == path)), "{known:?} {cgroups}");
    let nothing = Process { pid: gone, command: String::new(), memory: None, marks: Vec::new() };
    assert_eq!(unknown, &nothing);
    assert_eq!(listed[&uuid(0)].as_ref().unwrap().memory_used, Some(Bytes::new(9 * GIB)));
    assert!(pids(&listed[&uuid(1)]).is_empty());
}

#[tokio::test]
async fn lists_that_are_not_supported_are_unknown_and_those_that_fail_are_left_out() {
    let mut fixture = Fixture::new(4);
    let calls = [
        ("nvmlDeviceGetComputeRunningProcesses_v3", code::NOT_SUPPORTED),
        ("nvmlDeviceGetGraphicsRunningProcesses_v3", code::NOT_SUPPORTED),
        ("nvmlDeviceGetGraphicsRunningProcesses_v3", code::UNKNOWN),
        ("nvmlDeviceGetComputeRunningProcesses_v3", code::GPU_IS_LOST),
    ];
    fixture.set(|machine| {
        for (gpu, (call, code)) in machine.gpus.iter_mut().zip(calls) {
            gpu.returns(call, code);
            gpu.processes.push(process(1, List::Compute, None));
        }
    });
    let listed = processes(&mut start(&fixture)).await;
    assert_eq!(listed.keys().collect::<Vec<_>>(), [&uuid(0), &uuid(1)]);
    assert_eq!(listed[&uuid(0)], None);
    assert_eq!(pids(&listed[&uuid(1)]), [1]);
}

#[tokio::test]
async fn more_processes_than_an_answer_holds_are_not_listed_in_part() {
    let mut fixture = Fixture::new(2);
    fixture.set(|machine| {
        machine.gpus[0].processes = (0..4097).map(|n| process(u32::MAX - 1 - n, List::Compute, None)).collect();
        machine.gpus[1].processes = (0..4096).map(|n| process(u32::MAX - 1 - n, List::Compute, None)).collect();
    });
    let listed = processes(&mut start(&fixture)).await;
    assert_eq!(listed.keys().collect::<Vec<_>>(), [&uuid(1)]);
    assert_eq!(pids(&listed[&uuid(1)]).len(), 4096);
}

#[tokio::test]
async fn in_a_namespace_of_process_ids_of_its_own_the_lists_are_unknown() {
    let mut fixture = Fixture::new(1);
    fixture.set(|machine| machine.gpus[0].processes.push(process(1, List::Compute, None)));
    fixture.root("proc/self/status", "NSpid:\t4711\t17\n");
    assert_eq!(processes(&mut start_in_root(&fixture)).await, Listed::from([(uuid(0), None)]));
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

#[tokio::test]
async fn a_library_and_a_module_of_different_versions_are_named() {
    let mut fixture = Fixture::new(1);
    let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sun Jul 27 07:10:00 UTC 2025\n";
    fixture.root("proc/driver/nvidia/version", line);
    fixture.set(|machine| machine.driver = "575.57.08".to_owned());
    let mismatch = |module: Option<&str>| Closed::Mismatch {
        library: Some(VERSION.to_owned()),
        module: module.map(str::to_owned),
    };
    assert_eq!(closed(start_in_root(&fixture)).await, mismatch(Some("575.57.08")));
    let mut probe = start_in_root(&fixture);
    probe.ask(Ask::Readings).await.unwrap();
    assert!(matches!(probe.ask(Ask::Readings).await, Err(Silence::Died { .. })), "it answers once");
}

#[tokio::test]
async fn a_host_without_a_driver_is_told_from_one_whose_driver_fails() {
    let mut fixture = Fixture::new(1);
    let nowhere = PathBuf::from("/nowhere/libnvidia-ml.so.1");
    let probe = Probe::start(Path::new(env!("CARGO_BIN_EXE_ostler")), Some(&nowhere)).unwrap();
    assert!(matches!(closed(probe).await, Closed::Absent { why } if why.contains("/nowhere/libnvidia-ml.so.1")));
    // 28: the driver is loaded and has no GPU.
    for code in [code::DRIVER_NOT_LOADED, 28] {
        fixture.set(|machine| machine.returns("nvmlInit_v2", code));
        assert!(matches!(closed(start(&fixture)).await, Closed::Absent { .. }), "{code}");
    }
    fixture.set(|machine| machine.returns("nvmlInit_v2", code::UNKNOWN));
    assert!(matches!(closed(start(&fixture)).await, Closed::Failed { .. }));
    fs::write(fixture.library(), "not a library").unwrap();
    assert!(matches!(closed(start(&fixture)).await, Closed::Failed { .. }));
}

#[tokio::test]
async fn a_library_that_is_replaced_is_seen_by_the_next_child() {
    let mut fixture = Fixture::new(1);
    let mut old = start(&fixture);
    inventory(&mut old).await;
    fixture.install("590.10", &[]);
    read(&readings(&mut old).await, 0);
    assert_eq!(inventory(&mut old).await.versions.nvml.as_deref(), Some("13.580.65.06"));
    let Closed::Mismatch { library, .. } = closed(start(&fixture)).await else { panic!("no mismatch") };
    assert_eq!(library.as_deref(), Some("590.10"));
    fixture.set(|machine| machine.driver = "590.10".to_owned());
    assert_eq!(inventory(&mut start(&fixture)).await.versions.nvml.as_deref(), Some("13.590.10"));
}

#[tokio::test]
async fn a_driver_that_goes_away_closes_the_child() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.returns("nvmlDeviceGetCount_v2", code::DRIVER_NOT_LOADED));
    assert!(matches!(probe.ask(Ask::Readings).await, Ok(Answer::Closed(Closed::Absent { .. }))));
    assert!(matches!(probe.ask(Ask::Readings).await, Err(Silence::Died { .. })));
}

#[tokio::test]
async fn a_crash_in_the_library_ends_the_child_alone() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.crash = "nvmlDeviceGetPowerUsage".to_owned());
    let Err(Silence::Died { why }) = probe.ask(Ask::Readings).await else { panic!("it did not die") };
    assert!(why.contains("SIGSEGV"), "{why}");
    assert!(probe.abandon().is_gone());
    fixture.set(|machine| machine.crash.clear());
    read(&readings(&mut start(&fixture)).await, 0);
}

#[tokio::test]
async fn a_child_that_hangs_is_late_and_can_be_abandoned_at_once() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.takes("nvmlDeviceGetTemperature", FOREVER));
    let asked = Instant::now();
    assert_eq!(probe.ask(Ask::Readings).await, Err(Silence::Late));
    let waited = asked.elapsed();
    assert!(waited >= PATIENCE && waited < PATIENCE + Duration::from_secs(2), "{waited:?}");
    assert_eq!(probe.ask(Ask::Inventory).await, Err(Silence::Late), "what comes next may answer the question before");
    let pid = probe.pid().unwrap();
    let mut abandoned = probe.abandon();
    until("the child is gone", || abandoned.is_gone());
    assert!(!lives(pid.into()));
}

#[tokio::test]
async fn a_driver_may_take_its_time_to_initialize_but_not_to_answer() {
    let mut fixture = Fixture::new(1);
    let slow = PATIENCE.as_secs() * 1000 + 1000;
    fixture.set(|machine| machine.takes("nvmlInit_v2", slow));
    assert_eq!(uuids(&inventory(&mut start(&fixture)).await), [Some(uuid(0))]);
}

#[tokio::test]
async fn a_question_that_was_given_up_is_not_answered_by_the_next() {
    let mut fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    fixture.set(|machine| machine.takes("nvmlDeviceGetCount_v2", 200));
    assert!(tokio::time::timeout(Duration::from_millis(50), probe.ask(Ask::Inventory)).await.is_err());
    assert_eq!(probe.ask(Ask::Processes).await, Err(Silence::Late));
}

#[tokio::test]
async fn a_child_that_cannot_be_killed_is_waited_for_by_nobody() {
    const TEST: &str = "a_child_that_cannot_be_killed_is_waited_for_by_nobody";
    let fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    let pid = probe.pid().unwrap();
    let Some(freezer) = Freezer::of(TEST, pid) else { return };
    let started = Instant::now();
    let mut abandoned = probe.abandon();
    assert!(started.elapsed() < Duration::from_secs(1));
    until("it was sent SIGKILL", || is_sent_sigkill(pid));
    assert!(!abandoned.is_gone() && Path::new(&format!("/proc/{pid}")).exists());
    freezer.thaw();
    until("the child is gone", || abandoned.is_gone());
}

/// Whether the process has a SIGKILL that did not reach it yet.
fn is_sent_sigkill(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:").or(line.strip_prefix("SigPnd:")));
    pending.map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap()).any(|mask| mask & 1 << 8 != 0)
}

/// A cgroup whose processes stand still, even when they are killed: the only way to have what hangs in the kernel.
struct Freezer(PathBuf);

impl Freezer {
    /// Freezes the process; `None`, after printing SKIPPED, without the freezer of cgroup v1.
    fn of(test: &str, pid: u32) -> Option<Self> {
        let group = Path::new("/sys/fs/cgroup/freezer").join(format!("ostler-test-{pid}"));
        if fs::create_dir(&group).is_err() || !group.join("freezer.state").exists() {
            skip(test, "freezer");
            return None;
        }
        let freezer = Self(group);
        fs::write(freezer.0.join("cgroup.procs"), pid.to_string()).unwrap();
        freezer.write("FROZEN");
        until("it is frozen", || fs::read_to_string(freezer.0.join("freezer.state")).unwrap().trim() == "FROZEN");
        Some(freezer)
    }

    fn thaw(&self) {
        self.write("THAWED");
    }

    fn write(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        // A process leaves its group when it was reaped.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn dropping_a_probe_ends_its_child() {
    let fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    let pid = probe.pid().unwrap();
    assert!(lives(pid.into()));
    drop(probe);
    until("the child is gone", || !lives(pid.into()));
}

#[tokio::test]
async fn the_child_holds_nothing_of_the_agent() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    let fixture = Fixture::new(1);
    let mut probe = start(&fixture);
    inventory(&mut probe).await;
    let target = |pid: u32, fd: i32| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    let child = probe.pid().unwrap();
    let open = fs::read_dir(format!("/proc/{child}/fd")).unwrap().map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    let open: BTreeSet<PathBuf> = open.collect();
    let mine = [socket.as_raw_fd(), file.as_raw_fd()].map(|fd| target(std::process::id(), fd));
    assert!(mine.iter().all(|target| !open.contains(target)), "{mine:?} {open:?}");
    assert_eq!(target(child, 2), Path::new("/dev/null"));
}

#[test]
fn the_child_ends_when_nobody_can_ask_it_any_more() {
    let fixture = Fixture::new(1);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ostler"))
        .arg("gpu-probe")
        .arg(fixture.library())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\"inventory\"\n").unwrap();
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"{\"inventory\":"), "{output:?}");
}
