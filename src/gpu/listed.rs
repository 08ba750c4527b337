//! GPUs of other makers than NVIDIA, as the container engine lists them by CDI. Pure.
//!
//! No driver is asked about them. A GPU is known by its PCI address; where the engine's files do not tell it, by the
//! name in its list. Either is followed by the node's id, since hosts of one kind have their cards at the same addresses.

use std::sync::Arc;

use super::answer::Found;
use super::known::Known;
use crate::types::NodeId;

/// A GPU in the engine's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its full name, as `amd.com/gpu=0`.
    pub name: String,
    /// As the kernel writes it: `0000:1a:00.0`. `None`: not known.
    pub pci_address: Option<String>,
}

/// What the engine lists; `None`: it has not answered yet.
pub type List = Option<Arc<[Listed]>>;

/// The listed GPUs, as a driver would enumerate them. The name stands for the model, since nothing else is known.
pub(super) fn found(list: &[Listed], known: &Known, node: NodeId) -> Vec<Found> {
    let found = |(position, listed): (usize, &Listed)| {
        let (name, short) = (&listed.name, listed.name.split_once('=').map_or(&*listed.name, |(_, short)| short));
        // A file that cannot be read for a moment, as while it is written, makes no other device of this one.
        let before = known.devices().find(|device| device.is_present() && device.model == *name);
        let address = listed.pci_address.clone().or_else(|| before?.pci_address.clone());
        Found {
            uuid: Some(format!("{}-{node}", address.as_deref().unwrap_or(short))),
            index: short.parse().unwrap_or(u32::try_from(position).unwrap_or(u32::MAX)),
            pci_address: address,
            model: name.clone(),
            ..Found::default()
        }
    };
    list.iter().enumerate().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::known::Records;
    use crate::types::Timestamp;

    const CLASS: &str = "amd.com/gpu";
    const NOW: Timestamp = Timestamp::from_millis(1);

    fn node() -> NodeId {
        "k3f7q2m5x6a4b7c2".parse().unwrap()
    }

    fn listed(name: &str, address: Option<&str>) -> Listed {
        Listed { name: format!("{CLASS}={name}"), pci_address: address.map(str::to_owned) }
    }

    fn nothing() -> Known {
        Known::of_class(CLASS, Records::new(), Some(1))
    }

    #[test]
    fn a_gpu_is_known_by_its_address_or_else_by_its_name() {
        let list = [listed("1", Some("0000:03:00.0")), listed("card0", None)];
        let found = found(&list, &nothing(), node());
        let told: Vec<_> = found.iter().map(|gpu| (gpu.uuid.as_deref().unwrap(), gpu.index, &*gpu.model)).collect();
        let expected =
            [("0000:03:00.0-k3f7q2m5x6a4b7c2", 1, "amd.com/gpu=1"), ("card0-k3f7q2m5x6a4b7c2", 1, "amd.com/gpu=card0")];
        assert_eq!(told, expected);
        assert_eq!(found[0].pci_address.as_deref(), Some("0000:03:00.0"));
    }

    #[test]
    fn a_file_that_cannot_be_read_for_a_moment_makes_no_other_device() {
        let mut known = nothing();
        known.see_listed(&found(&[listed("0", Some("0000:03:00.0"))], &known, node()), NOW);
        let again = found(&[listed("0", None), listed("1", None)], &known, node());
        let uuids: Vec<_> = again.iter().map(|gpu| gpu.uuid.as_deref().unwrap()).collect();
        assert_eq!(uuids, ["0000:03:00.0-k3f7q2m5x6a4b7c2", "1-k3f7q2m5x6a4b7c2"]);
        known.see_listed(&[], NOW);
        let lost = found(&[listed("0", None)], &known, node());
        assert_eq!(lost[0].uuid.as_deref(), Some("0-k3f7q2m5x6a4b7c2"), "a lost one may be another");
    }
}
