//! How much processes wait for cores, memory and disks, as the kernel counts it (PSI).

use std::fs;
use std::time::Instant;

use crate::types::Pressure;

/// Shares are rounded to this: the profile of a host at rest should not change with each reading.
const STEP: f64 = 0.001;

/// Reads `/proc/pressure` repeatedly.
#[derive(Debug, Default)]
pub struct Sampler {
    /// When it was read last, and the microseconds waited by then, for cpu, memory and io.
    before: Option<(Instant, [Option<u64>; 3])>,
}

impl Sampler {
    /// The share of the time since the last call in which something waited. `None` in the first call, and where the kernel
    /// has no `/proc/pressure`.
    pub fn sample(&mut self) -> Option<Pressure> {
        let (now, read) = (Instant::now(), ["cpu", "memory", "io"].map(waited));
        let (then, before) = self.before.replace((now, read))?;
        let passed = now.duration_since(then).as_micros() as f64;
        let share = |i: usize| share(before[i]?, read[i]?, passed);
        let pressure = Pressure { cpu: share(0), memory: share(1), io: share(2) };
        (pressure != Pressure::default()).then_some(pressure)
    }
}

fn waited(resource: &str) -> Option<u64> {
    total(&fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?)
}

/// The microseconds in which at least one process waited, since the host booted.
fn total(text: &str) -> Option<u64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

fn share(before: u64, now: u64, passed: f64) -> Option<f64> {
    let waited = now.saturating_sub(before) as f64;
    (passed > 0.0).then(|| ((waited / passed).min(1.0) / STEP).round() * STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_that_of_the_line_of_some() {
        let text =
            "some avg10=1.50 avg60=0.80 avg300=0.20 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(total(text), Some(123_456));
        assert_eq!(total("full avg10=0.00 total=7"), None);
        assert_eq!(total("some avg10=0.00 total=x"), None);
    }

    #[test]
    fn a_share_is_of_the_time_that_passed_and_never_more_than_all_of_it() {
        assert_eq!(share(100, 1_250_100, 5_000_000.0), Some(0.25));
        assert_eq!(share(0, 9_000_000, 5_000_000.0), Some(1.0));
        assert_eq!(share(5, 3, 5_000_000.0), Some(0.0));
        assert_eq!(share(0, 1, 0.0), None);
    }
}
