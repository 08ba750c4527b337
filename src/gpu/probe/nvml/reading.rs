//! The measurements of one device.

use std::collections::BTreeSet;

use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;

use crate::gpu::answer::Measured;
use crate::gpu::device::{Reading, Recovery, RemappedRows};
use crate::types::Bytes;

/// The field values that are read, by the name of the reading. The numbers are NVML's.
const FIELDS: [(&str, u32); 5] =
    [(ROWS_CORRECTED, 142), (ROWS_UNCORRECTED, 143), (ROWS_PENDING, 144), (ROWS_FAILED, 145), (RECOVERY, 230)];
const ROWS_CORRECTED: &str = "rows corrected";
const ROWS_UNCORRECTED: &str = "rows uncorrected";
const ROWS_PENDING: &str = "rows pending";
const ROWS_FAILED: &str = "rows failed";
const RECOVERY: &str = "recovery";

/// Asks one device for one reading after another.
pub(super) struct Inquiry<'a> {
    unsupported: &'a mut BTreeSet<&'static str>,
    /// A reading succeeded.
    answered: bool,
    /// The driver said that the device is lost. It is asked nothing more.
    lost: Option<String>,
    /// An error of the driver that a device gives as well when it is lost.
    unknown: Option<String>,
}

impl<'a> Inquiry<'a> {
    pub(super) fn new(unsupported: &'a mut BTreeSet<&'static str>) -> Self {
        Self { unsupported, answered: false, lost: None, unknown: None }
    }

    /// One reading; `None` if it cannot be had.
    fn ask<T>(&mut self, name: &'static str, call: impl FnOnce() -> Result<T, NvmlError>) -> Option<T> {
        if self.lost.is_some() || self.unsupported.contains(name) {
            return None;
        }
        match call() {
            Ok(value) => {
                self.answered = true;
                return Some(value);
            }
            Err(NvmlError::NotSupported) => drop(self.unsupported.insert(name)),
            Err(e @ NvmlError::GpuLost) => self.lost = Some(e.to_string()),
            Err(e @ NvmlError::Unknown) => self.unknown = Some(e.to_string()),
            // No such function in the library, no permission, a code that the wrapper does not know, ….
            Err(_) => {}
        }
        None
    }

    /// A device is lost if the driver says so, or if it has no reading at all and the driver does not know why. Single
    /// readings of a healthy device can fail with an unknown error.
    pub(super) fn end(self, reading: Reading) -> Measured {
        match self.lost.or(self.unknown.filter(|_| !self.answered)) {
            Some(why) => Measured::Lost { why },
            None => Measured::Read(Box::new(reading)),
        }
    }

    pub(super) fn read(&mut self, device: &Device) -> Reading {
        let mut reading = self.read_instance(device);
        let sensor = TemperatureSensor::Gpu;
        let slowdown = TemperatureThreshold::Slowdown;
        reading.utilization_percent = self.ask("load", || device.utilization_rates()).map(|load| load.gpu.into());
        reading.temperature_celsius = self.ask("temperature", || device.temperature(sensor)).map(f64::from);
        reading.slowdown_celsius = self.ask("slowdown", || device.temperature_threshold(slowdown)).map(f64::from);
        reading.power_watts = self.ask("power", || device.power_usage()).map(watts);
        reading.power_limit_watts = self.ask("power limit", || device.enforced_power_limit()).map(watts);
        reading.throttling = self.ask("throttling", || device.current_throttle_reasons()).map(throttling);
        self.read_memory_health(device, &mut reading);
        self.read_fields(device, &mut reading);
        reading
    }

    /// Of an instance there is only the memory.
    pub(super) fn read_instance(&mut self, device: &Device) -> Reading {
        let memory = self.ask("memory", || device.memory_info());
        Reading {
            memory_used: memory.as_ref().map(|memory| Bytes::new(memory.used)),
            memory_free: memory.as_ref().map(|memory| Bytes::new(memory.free)),
            ..Reading::default()
        }
    }

    fn read_memory_health(&mut self, device: &Device, reading: &mut Reading) {
        let count = |kind| device.total_ecc_errors(kind, EccCounter::Volatile);
        reading.ecc_enabled = self.ask("ecc", || device.is_ecc_enabled()).map(|mode| mode.currently_enabled);
        reading.ecc_corrected = self.ask("ecc corrected", || count(MemoryError::Corrected));
        reading.ecc_uncorrected = self.ask("ecc uncorrected", || count(MemoryError::Uncorrected));
        reading.retirement_pending = self.ask("retirement", || device.are_pages_pending_retired());
    }

    fn read_fields(&mut self, device: &Device, reading: &mut Reading) {
        let [corrected, uncorrected, pending, failed, recovery] = self.fields(device);
        reading.remapped_rows = (|| {
            Some(RemappedRows {
                corrected: corrected?,
                uncorrected: uncorrected?,
                pending: pending? != 0,
                failed: failed? != 0,
            })
        })();
        reading.recovery = recovery.map(recovery_of);
    }

    /// The values of [`FIELDS`], by one call for those that are not known to be unsupported.
    fn fields(&mut self, device: &Device) -> [Option<u64>; FIELDS.len()] {
        let mut values = [None; FIELDS.len()];
        let asked: Vec<usize> = (0..FIELDS.len()).filter(|at| !self.unsupported.contains(FIELDS[*at].0)).collect();
        if asked.is_empty() {
            return values;
        }
        let ids: Vec<FieldId> = asked.iter().map(|at| FieldId(FIELDS[*at].1)).collect();
        let samples = self.ask("fields", || device.field_values_for(&ids)).unwrap_or_default();
        for (at, sample) in asked.into_iter().zip(samples) {
            let value = || sample.and_then(|sample| sample.value);
            values[at] = self.ask(FIELDS[at].0, value).and_then(|value| number(&value));
        }
        values
    }
}

/// NVML counts milliwatts.
fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

/// Only what an operator can do something about: idle clocks, clocks of applications and the power limit are how GPUs
/// normally run.
fn throttling(reasons: ThrottleReasons) -> Vec<String> {
    let thermal = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
    let words = [("thermal", thermal), ("power_brake", ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN)];
    words.into_iter().filter(|(_, bits)| reasons.intersects(*bits)).map(|(word, _)| word.to_owned()).collect()
}

/// A field's value, which is never negative.
fn number(value: &SampleValue) -> Option<u64> {
    match *value {
        SampleValue::U32(value) => Some(value.into()),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => value.try_into().ok(),
        SampleValue::F64(_) => None,
    }
}

fn recovery_of(action: u64) -> Recovery {
    match action {
        0 => Recovery::None,
        1 => Recovery::Reset,
        2 => Recovery::Reboot,
        3 => Recovery::DrainPeerToPeer,
        4 => Recovery::DrainAndReset,
        other => Recovery::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_out_of_the_ordinary_is_throttling() {
        let usual = ThrottleReasons::GPU_IDLE | ThrottleReasons::SW_POWER_CAP | ThrottleReasons::SYNC_BOOST;
        assert_eq!(throttling(usual), Vec::<String>::new());
        assert_eq!(throttling(usual | ThrottleReasons::SW_THERMAL_SLOWDOWN), ["thermal"]);
        assert_eq!(throttling(ThrottleReasons::all()), ["thermal", "power_brake"]);
    }

    #[test]
    fn what_is_not_supported_is_not_asked_again() {
        let mut unsupported = BTreeSet::new();
        let mut inquiry = Inquiry::new(&mut unsupported);
        assert_eq!(inquiry.ask("load", || Err::<u32, _>(NvmlError::NotSupported)), None);
        assert_eq!(inquiry.ask("power", || Err::<u32, _>(NvmlError::NoPermission)), None);
        let mut inquiry = Inquiry::new(&mut unsupported);
        assert_eq!(inquiry.ask("load", || Ok(1)), None);
        assert_eq!(inquiry.ask("power", || Ok(1)), Some(1));
    }

    #[test]
    fn a_device_is_lost_if_the_driver_says_so_or_if_nothing_of_it_is_known() {
        let end = |answers: Vec<Result<u32, NvmlError>>| {
            let mut unsupported = BTreeSet::new();
            let mut inquiry = Inquiry::new(&mut unsupported);
            for (answer, name) in answers.into_iter().zip(["load", "power", "memory"]) {
                inquiry.ask(name, || answer);
            }
            matches!(inquiry.end(Reading::default()), Measured::Lost { .. })
        };
        assert!(end(vec![Ok(1), Err(NvmlError::GpuLost)]));
        assert!(end(vec![Err(NvmlError::NotSupported), Err(NvmlError::Unknown)]));
        assert!(!end(vec![Err(NvmlError::Unknown), Ok(1)]));
        assert!(!end(vec![Err(NvmlError::NotSupported), Err(NvmlError::NoPermission)]));
    }

    #[test]
    fn an_action_that_this_version_does_not_know_keeps_its_number() {
        let actions = [Recovery::None, Recovery::Reset, Recovery::Reboot, Recovery::DrainPeerToPeer];
        for (number, action) in (0..).zip(actions) {
            assert_eq!(recovery_of(number), action);
        }
        assert_eq!((recovery_of(4), recovery_of(5)), (Recovery::DrainAndReset, Recovery::Other(5)));
    }

    #[test]
    fn values_of_fields_are_not_negative() {
        assert_eq!(number(&SampleValue::U32(7)), Some(7));
        assert_eq!(number(&SampleValue::I64(7)), Some(7));
        assert_eq!(number(&SampleValue::I64(-1)), None);
    }
}
