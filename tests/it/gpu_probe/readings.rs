//! What is measured of a device, and its faults.

use ostler::gpu::answer::{Listed, Readings, Xid};
use ostler::gpu::{Reading, device};
use ostler::types::Bytes;

use super::{GIB, inventory, processes, read, readings, start, uuid};
use crate::support::nvml::{Fixture, VERSION, code};

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
