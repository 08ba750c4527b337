//! Judges the health of one device by what the driver says of it. Pure.
//!
//! The driver's own word is the recovery action (NVML field 230). Only older drivers, which do not have it, are judged
//! by the numbers of the faults (XIDs) that they report.

use serde::{Deserialize, Serialize};

use super::device::{Reading, Recovery};

/// A device that was hot takes sessions again once it is this much below the limit, in °C: with less, one that is at
/// the limit would change its state with every reading.
const HYSTERESIS_CELSIUS: f64 = 5.0;

/// The faults after which a device needs a reset or a repair, with their meaning in NVIDIA's catalogue of XIDs. Faults
/// that an application causes (13, 31, 43, 45, 68, 109), the contained error 94 and unknown numbers are not among them.
const FATAL: &[(u64, &str)] = &[
    (48, "double-bit ECC error"),
    (64, "memory could not be retired or remapped"),
    (79, "the GPU has fallen off the bus"),
    (95, "uncontained memory error"),
    (119, "timeout of the GPU system processor"),
    (120, "error of the GPU system processor"),
    (140, "unrecovered ECC error"),
];

/// What is wrong with a device, as far as it says. It outlives a restart of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Why it takes no new sessions.
    trouble: Option<Trouble>,
    /// The trouble that it had when the operator uncordoned it: not held against it until another fault.
    forgiven: Option<Trouble>,
    /// The last fatal fault since it was well.
    xid: Option<u64>,
    /// Memory waits for the next reset to be replaced. That alone is no trouble: the driver keeps away from it.
    memory_pending: bool,
}

/// Why a device takes no new sessions until it was reset, repaired or uncordoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Trouble {
    /// The driver asks for an action other than none.
    Recovery(Recovery),
    /// No spare rows of memory are left.
    RowsFailed,
    /// A fatal fault on a driver that has no word on recovery.
    Xid(u64),
}

impl Health {
    /// Judges the device by a reading. Without a word on recovery, a trouble of the driver's word or of a fault stays.
    pub(super) fn read(&mut self, reading: &Reading) {
        if reading.asleep {
            return; // nothing was read
        }
        let rows_pending = reading.remapped_rows.is_some_and(|rows| rows.pending);
        self.memory_pending = rows_pending || reading.retirement_pending == Some(true);
        match trouble(reading) {
            Some(found) => self.trouble = Some(found).filter(|found| self.forgiven != Some(*found)),
            None if reading.recovery == Some(Recovery::None) => self.clear(),
            None if self.trouble == Some(Trouble::RowsFailed) && reading.remapped_rows.is_some() => self.clear(),
            None => {}
        }
    }

    /// Takes a fault into account, and judges the device anew: what was forgiven is not any more.
    pub(super) fn fault(&mut self, code: u64, reading: &Reading) {
        self.forgiven = None;
        if is_fatal(code) {
            self.xid = Some(code);
            if reading.recovery.is_none() && self.trouble.is_none() {
                self.trouble = Some(Trouble::Xid(code));
            }
        }
        if let Some(found) = trouble(reading) {
            self.trouble = Some(found);
        }
    }

    /// The device was lost and is back: it was reset.
    pub(super) fn clear(&mut self) {
        *self = Self { memory_pending: self.memory_pending, ..Self::default() };
    }

    /// The operator gives the device another chance.
    pub(super) fn forgive(&mut self) {
        *self =
            Self { forgiven: self.trouble.or(self.forgiven), memory_pending: self.memory_pending, ..Self::default() };
    }

    /// Why the device takes no new sessions, and what to do. `uuid` is the GPU's, also for an instance of it.
    pub(super) fn message(&self, uuid: &str) -> Option<String> {
        let mut message = match self.trouble? {
            Trouble::Recovery(action) => format!("{}{}", self.after(), asked(action, uuid)),
            Trouble::RowsFailed => {
                format!("{}no spare rows of memory are left: end the sessions on it and replace it", self.after())
            }
            Trouble::Xid(code) => format!(
                "{}: end the sessions on it, run: nvidia-smi --gpu-reset -i {uuid}, then: ostler gpu uncordon {uuid}",
                named(code)
            ),
        };
        if self.memory_pending {
            message.push_str("; memory waits for a reset to be replaced");
        }
        Some(message)
    }

    fn after(&self) -> String {
        self.xid.map(|code| format!("{}; ", named(code))).unwrap_or_default()
    }
}

/// The trouble that a reading shows.
fn trouble(reading: &Reading) -> Option<Trouble> {
    match reading.recovery {
        Some(action) if action != Recovery::None => Some(Trouble::Recovery(action)),
        _ => reading.remapped_rows.filter(|rows| rows.failed).map(|_| Trouble::RowsFailed),
    }
}

fn is_fatal(code: u64) -> bool {
    FATAL.iter().any(|(fatal, _)| *fatal == code)
}

/// A fault for people: `XID 79 (the GPU has fallen off the bus)`.
fn named(code: u64) -> String {
    match FATAL.iter().find(|(fatal, _)| *fatal == code) {
        Some((_, meaning)) => format!("XID {code} ({meaning})"),
        None => format!("XID {code}"),
    }
}

fn asked(action: Recovery, uuid: &str) -> String {
    match action {
        // Not trouble: nothing is asked for.
        Recovery::None => "the driver asks for nothing".to_owned(),
        Recovery::Reset => {
            format!("the driver asks for a reset: end the sessions on it, then run: nvidia-smi --gpu-reset -i {uuid}")
        }
        Recovery::Reboot => "the driver asks for a reboot of the host: drain the node, then reboot it".to_owned(),
        Recovery::DrainPeerToPeer => "the driver asks for an end of all traffic between GPUs: end the sessions that \
                                      use several GPUs of this host"
            .to_owned(),
        Recovery::DrainAndReset => format!(
            "the driver asks for a reset, and the GPU works with reduced capacity until then: end the sessions on it, \
             then run: nvidia-smi --gpu-reset -i {uuid}"
        ),
        Recovery::Other(number) => format!(
            "the driver asks for recovery action {number}, which this version of ostler does not know: see the \
             driver's documentation"
        ),
    }
}

/// Whether a device is hot, if it `was` at its last reading. An unknown temperature changes nothing.
pub(super) fn is_hot(was: bool, reading: &Reading, max_celsius: Option<f64>) -> bool {
    let Some(max) = max_celsius else { return false };
    match reading.temperature_celsius {
        Some(celsius) if was => celsius > max - HYSTERESIS_CELSIUS,
        Some(celsius) => celsius > max,
        // The kernel suspends only a device that does nothing.
        None => was && !reading.asleep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::device::RemappedRows;

    fn says(recovery: Recovery) -> Reading {
        Reading { recovery: Some(recovery), ..Reading::default() }
    }

    fn rows(failed: bool, pending: bool) -> Reading {
        let remapped_rows = Some(RemappedRows { failed, pending, ..RemappedRows::default() });
        Reading { remapped_rows, ..says(Recovery::None) }
    }

    fn after(steps: impl FnOnce(&mut Health)) -> Option<String> {
        let mut health = Health::default();
        steps(&mut health);
        health.message("GPU-1")
    }

    #[test]
    fn without_a_word_on_recovery_the_fault_decides() {
        let silent = Reading::default();
        for code in [48, 64, 79, 95, 119, 120, 140] {
            let message = after(|health| health.fault(code, &silent)).unwrap();
            assert!(message.starts_with(&format!("XID {code} (")), "{message}");
            assert!(message.contains("nvidia-smi --gpu-reset -i GPU-1"), "{message}");
            assert!(message.contains("ostler gpu uncordon GPU-1"), "{message}");
        }
        for code in [0, 13, 31, 43, 45, 63, 68, 94, 109, 9999, u64::MAX] {
            assert_eq!(after(|health| health.fault(code, &silent)), None, "{code}");
        }
    }

    #[test]
    fn the_drivers_word_wins_over_the_number_of_the_fault() {
        assert_eq!(after(|health| health.fault(79, &says(Recovery::None))), None);
        let message = after(|health| health.fault(31, &says(Recovery::Reset))).unwrap();
        assert!(message.starts_with("the driver asks for a reset"), "an application's fault is not named: {message}");
        let message = after(|health| health.fault(48, &says(Recovery::Reboot))).unwrap();
        assert!(message.starts_with("XID 48 (double-bit ECC error); the driver asks for a reboot"), "{message}");
    }

    #[test]
    fn every_action_but_none_is_trouble_until_it_is_none_again() {
        use Recovery::{DrainAndReset, DrainPeerToPeer, Other, Reboot, Reset};
        for action in [Reset, Reboot, DrainPeerToPeer, DrainAndReset, Other(9)] {
            let mut health = Health::default();
            health.read(&says(action));
            assert!(health.message("x").is_some(), "{action:?}");
            health.read(&Reading::default());
            assert!(health.message("x").is_some(), "no word is no good word");
            health.read(&says(Recovery::None));
            assert_eq!(health, Health::default());
        }
    }

    #[test]
    fn a_fault_ends_when_the_device_is_back_and_not_by_a_reading_without_a_word() {
        let mut health = Health::default();
        health.fault(79, &Reading::default());
        health.read(&Reading::default());
        assert!(health.message("x").is_some());
        health.clear();
        assert_eq!(health.message("x"), None);
    }

    #[test]
    fn an_uncordoned_device_has_another_chance_until_the_next_fault() {
        let mut health = Health::default();
        health.read(&says(Recovery::Reset));
        health.forgive();
        health.read(&says(Recovery::Reset));
        assert_eq!(health.message("x"), None, "the same trouble");
        health.forgive();
        health.read(&says(Recovery::Reset));
        assert_eq!(health.message("x"), None, "uncordoned twice");
        health.read(&says(Recovery::Reboot));
        assert!(health.message("x").is_some(), "another one");
        health.forgive();
        health.fault(31, &says(Recovery::Reboot));
        assert!(health.message("x").is_some(), "another fault");
    }

    #[test]
    fn rows_that_failed_are_trouble_and_rows_that_wait_are_only_told() {
        assert_eq!(after(|health| health.read(&rows(false, true))), None);
        let pages = Reading { retirement_pending: Some(true), ..Reading::default() };
        assert_eq!(after(|health| health.read(&pages)), None);
        let failed = after(|health| health.read(&rows(true, false))).unwrap();
        assert!(failed.contains("no spare rows") && !failed.contains("waits"), "{failed}");
        let both = after(|health| health.read(&rows(true, true))).unwrap();
        assert!(both.ends_with("memory waits for a reset to be replaced"), "{both}");
        let mended = Reading { recovery: None, ..rows(false, false) };
        assert_eq!(after(|health| [rows(true, false), mended].iter().for_each(|reading| health.read(reading))), None);
    }

    #[test]
    fn a_sleeping_device_keeps_its_trouble() {
        let asleep = Reading { asleep: true, ..Reading::default() };
        let slept = |health: &mut Health| [says(Recovery::Reset), asleep].iter().for_each(|r| health.read(r));
        assert!(after(slept).is_some());
    }

    #[test]
    fn hot_ends_five_degrees_below_the_limit() {
        let at = |celsius| Reading { temperature_celsius: Some(celsius), ..Reading::default() };
        let max = Some(80.0);
        assert!(!is_hot(false, &at(80.0), max) && is_hot(false, &at(80.5), max));
        assert!(is_hot(true, &at(75.5), max) && !is_hot(true, &at(75.0), max));
        assert!(is_hot(true, &Reading::default(), max) && !is_hot(false, &Reading::default(), max), "unknown");
        assert!(!is_hot(true, &Reading { asleep: true, ..Reading::default() }, max));
        assert!(!is_hot(true, &at(200.0), None), "no limit");
    }
}
