//! Whether RAM and swap hold what the node offers, and whether the host waits for memory.

use super::fault;
use crate::capacity::room::beyond_ram_and_swap;
use crate::types::{Bytes, Check, Topic, Verdict};

/// Part of the last minute, in percent, in which every process waited for memory at once. From here on people see it.
const STALLED: f64 = 10.0;

#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// What sessions can use; zero: not known.
    pub physical: Bytes,
    pub swap: Bytes,
    /// What the node offers.
    pub offered: Bytes,
    /// `full avg60` of `/proc/pressure/memory`, in percent; `None`: the kernel does not tell.
    pub stalled: Option<f64>,
}

pub fn judge(facts: &Facts) -> Vec<Check> {
    let Facts { physical, swap, offered, stalled } = facts;
    if physical.is_zero() {
        return vec![Check::skipped(Topic::Memory, "the memory of this host is not known")];
    }
    let mut checks = Vec::new();
    if let Some(beyond) = beyond_ram_and_swap(*offered, *physical, *swap) {
        let held = physical.saturating_add(*swap);
        let mend = format!("add swap, or run: ostler node set self --memory-override {}", text(held));
        checks.push(Check { mend: Some(mend), ..fault(Topic::Memory, Verdict::Fail, &beyond, "") });
    }
    if let Some(stalled) = stalled.filter(|stalled| *stalled >= STALLED) {
        let message = format!("every process of the host waited for memory in {stalled:.0} % of the last minute");
        checks.push(Check::warn(Topic::Memory, message, "stop sessions, or lower memory_override_bytes"));
    }
    if checks.is_empty() {
        checks.push(Check::ok(Topic::Memory, format!("{offered} offered, {physical} of RAM and {swap} of swap")));
    }
    checks
}

/// As the command line reads it.
fn text(bytes: Bytes) -> String {
    bytes.to_string().replace(' ', "")
}

/// The part of time in percent in which all processes waited, of a file of `/proc/pressure`.
pub fn stalled(pressure: &str) -> Option<f64> {
    let full = pressure.lines().find(|line| line.starts_with("full "))?;
    full.split(' ').find_map(|field| field.strip_prefix("avg60="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_ram_and_swap_and_pressure_are_faults() {
        let host = Facts { physical: Bytes::gib(8), swap: Bytes::ZERO, offered: Bytes::gib(12), stalled: None };
        let found = judge(&host).remove(0);
        assert_eq!(found.verdict, Verdict::Fail);
        assert!(found.mend.as_ref().unwrap().ends_with("--memory-override 8GiB"), "{found:?}");
        let swapped = Facts { swap: Bytes::gib(4), ..host };
        assert_eq!(judge(&swapped)[0].verdict, Verdict::Ok);
        let stalled = Facts { stalled: Some(12.0), ..swapped };
        assert_eq!(judge(&stalled)[0].verdict, Verdict::Warn);
        let unknown = Facts { physical: Bytes::ZERO, ..stalled };
        assert_eq!(judge(&unknown)[0].verdict, Verdict::Skipped);
    }

    #[test]
    fn the_pressure_of_a_minute_is_read() {
        let file = "some avg10=1.00 avg60=2.00 avg300=0.12 total=1\nfull avg10=0.00 avg60=3.50 avg300=0.1 total=9\n";
        assert_eq!(stalled(file), Some(3.5));
        assert_eq!(stalled(""), None);
    }
}
