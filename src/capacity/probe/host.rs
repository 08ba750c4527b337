//! The host's cores, memory, swap and load, as the kernel counts them.

use sysinfo::System;

use super::pressure;
use crate::types::{Bytes, Cores, Pressure, Swap};

/// One reading of the host. A figure that the kernel did not report is zero or `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    pub cores: Cores,
    pub memory: Bytes,
    /// Cores busy since the previous sample; `None` in the first one.
    pub cores_used: Option<Cores>,
    pub memory_used: Option<Bytes>,
    pub swap: Option<Swap>,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// `None` in the first sample, and where the kernel does not tell it.
    pub pressure: Option<Pressure>,
}

/// Reads the host repeatedly. It reads memory and CPU time only: the list of processes costs a
/// hundred times as much.
#[derive(Debug)]
pub struct Sampler {
    system: System,
    sampled_before: bool,
    pressure: pressure::Sampler,
}

impl Sampler {
    pub fn new() -> Self {
        Self {
            system: System::new().expect("on Linux this reads nothing that could fail"),
            sampled_before: false,
            pressure: pressure::Sampler::default(),
        }
    }

    /// Reads the host now. Usage covers the time since the last call, which should be at least 200 ms ago.
    pub fn sample(&mut self) -> Sample {
        self.system.refresh_memory();
        self.system.refresh_cpu_usage();
        let usage = f64::from(self.system.global_cpu_usage());
        let load = System::load_average().ok().map(|load| [load.one, load.five, load.fifteen]);
        let count = self.system.cpus().len();
        let memory_known = self.system.total_memory() > 0;
        let sample = Sample {
            cores: Cores::whole(u32::try_from(count).unwrap_or(u32::MAX)),
            memory: Bytes::new(self.system.total_memory()),
            // The first reading is an average since the host booted.
            cores_used: if self.sampled_before { cores_used(usage, count) } else { None },
            memory_used: memory_known
                .then(|| Bytes::new(self.system.total_memory().saturating_sub(self.system.available_memory()))),
            swap: memory_known.then(|| Swap {
                total_bytes: Bytes::new(self.system.total_swap()),
                used_bytes: Bytes::new(self.system.used_swap()),
            }),
            load,
            pressure: self.pressure.sample(),
        };
        self.sampled_before = true;
        sample
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of cores that `percent` of all of them are.
fn cores_used(percent: f64, count: usize) -> Option<Cores> {
    (count > 0).then(|| Cores::from_measured(percent / 100.0 * count as f64)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_of_the_host_is_cores() {
        assert_eq!(cores_used(25.0, 6), Some(Cores::from_milli(1500)));
        assert_eq!(cores_used(f64::NAN, 6), None);
        assert_eq!(cores_used(10.0, 0), None);
    }

    #[test]
    fn usage_is_known_from_the_second_sample_on() {
        let mut sampler = Sampler::new();
        let first = sampler.sample();
        assert_eq!(first.cores_used, None);
        assert!(first.cores > Cores::ZERO && first.memory > Bytes::ZERO);
        assert!(first.memory_used.unwrap() <= first.memory);
        let second = sampler.sample();
        assert!(second.cores_used.unwrap() <= second.cores);
    }
}
