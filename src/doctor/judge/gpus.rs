//! Whether sessions can have the GPUs of the host.

use super::fault;
use crate::types::{Check, Topic, Verdict};

/// What is known of the GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Facts {
    /// The agent has not asked the driver yet.
    Unknown,
    /// They come from `[dev]`.
    MadeUp,
    /// `gpu.class` is not NVIDIA's: the engine lists this many.
    Listed { class: String, count: usize },
    /// NVML tells of this many GPUs.
    Driver { version: String, count: usize },
    /// There is no driver, and PCI shows this many GPUs of NVIDIA.
    NoDriver { why: String, on_pci: usize },
    /// NVML cannot be asked.
    Broken { why: String },
}

/// `lacks`: what the engine cannot hand over, as conditions say it.
pub fn judge(facts: &Facts, lacks: &[String]) -> Vec<Check> {
    let first = match facts {
        Facts::Unknown => return vec![Check::skipped(Topic::Gpus, "the agent has not asked the driver yet")],
        Facts::MadeUp => return vec![Check::skipped(Topic::Gpus, "the GPUs are made up by [dev]")],
        Facts::Broken { why } => {
            let mend = "read the kernel log: dmesg | grep -i nvrm; then reboot the host";
            return vec![fault(Topic::Gpus, Verdict::Fail, why, mend)];
        }
        Facts::NoDriver { on_pci: 0, .. } => return vec![Check::ok(Topic::Gpus, "this host has no NVIDIA GPU")],
        Facts::NoDriver { why, on_pci } => {
            let message = format!("{on_pci} NVIDIA GPUs on PCI, and the driver is not loaded: {why}");
            let mend = "install the NVIDIA driver, or load it: modprobe nvidia";
            return vec![Check::fail(Topic::Gpus, message, mend)];
        }
        Facts::Listed { class, count } => format!("the engine lists {count} GPUs of class {class}"),
        Facts::Driver { version, count } => format!("driver {version} has {count} GPUs"),
    };
    if lacks.is_empty() {
        return vec![Check::ok(Topic::Gpus, format!("{first}, and the engine can give them to sessions"))];
    }
    let mend = "nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml";
    lacks.iter().map(|lack| fault(Topic::Gpus, Verdict::Fail, lack, mend)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_without_a_driver_or_a_cdi_list_fail() {
        let of = |facts, lacks: &[String]| judge(&facts, lacks).remove(0);
        let none = Facts::NoDriver { why: "no library".to_owned(), on_pci: 0 };
        assert_eq!(of(none, &[]).verdict, Verdict::Ok);
        let unloaded = of(Facts::NoDriver { why: "no library".to_owned(), on_pci: 2 }, &[]);
        assert_eq!(unloaded.verdict, Verdict::Fail);
        assert!(unloaded.message.starts_with("2 NVIDIA GPUs on PCI"), "{unloaded:?}");
        let up = || Facts::Driver { version: "580.1".to_owned(), count: 2 };
        assert_eq!(of(up(), &[]).verdict, Verdict::Ok);
        assert_eq!(of(up(), &["the list is stale; run: nvidia-ctk x".to_owned()]).mend.unwrap(), "nvidia-ctk x");
        assert_eq!(of(Facts::Broken { why: "it hangs".to_owned() }, &[]).verdict, Verdict::Fail);
        assert_eq!(of(Facts::MadeUp, &[]).verdict, Verdict::Skipped);
        assert_eq!(of(Facts::Unknown, &[]).verdict, Verdict::Skipped);
    }
}
