//! Where the device nodes of a GPU are on this host: the kernel tells which PCI device a node belongs to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor};

use crate::runtime::gpus::{HostNode, Place};

/// Where these nodes are. `root` has the host's `dev` and `sys`.
pub(super) fn of(root: &Path, nodes: &[HostNode]) -> Place {
    let numbers: Option<Vec<(u32, u32)>> =
        nodes.iter().map(|node| node.number.or_else(|| number(root, node))).collect();
    let Some(numbers) = numbers else { return Place::Missing };
    let addresses: BTreeSet<String> = numbers.into_iter().filter_map(|number| address(root, number)).collect();
    if addresses.is_empty() { Place::Unknown } else { Place::Pci(addresses) }
}

/// The number of a node that is there.
fn number(root: &Path, node: &HostNode) -> Option<(u32, u32)> {
    let found = fs::metadata(root.join(node.path.strip_prefix('/')?)).ok()?;
    let is_device = found.file_type().is_char_device() || found.file_type().is_block_device();
    is_device.then(|| (major(found.rdev()), minor(found.rdev())))
}

/// The PCI address of the character device with this number. Those for all cards, such as `/dev/kfd`, have none.
fn address(root: &Path, (major, minor): (u32, u32)) -> Option<String> {
    let link = fs::read_link(root.join(format!("sys/dev/char/{major}:{minor}/device"))).ok()?;
    let name = link.file_name()?.to_str()?;
    is_pci_address(name).then(|| name.to_owned())
}

/// Whether this is a PCI address as the kernel writes it, such as `0000:1a:00.0`. Domains of virtual bridges are longer.
fn is_pci_address(name: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let parts: Vec<&str> = name.split([':', '.']).collect();
    let [domain, bus, slot, function] = parts[..] else { return false };
    let lengths = [bus.len(), slot.len(), function.len()];
    (4..=8).contains(&domain.len()) && lengths == [2, 2, 1] && parts.iter().all(|part| is_hex(part))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn node(path: &str, number: Option<(u32, u32)>) -> HostNode {
        HostNode { path: path.to_owned(), number }
    }

    /// A host whose devices with these numbers belong to what the links name.
    fn host(devices: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (number, device) in devices {
            let directory = root.path().join("sys/dev/char").join(number);
            fs::create_dir_all(&directory).unwrap();
            symlink(format!("../../../{device}"), directory.join("device")).unwrap();
        }
        root
    }

    #[test]
    fn a_node_belongs_to_the_pci_device_that_the_kernel_names() {
        let root = host(&[("226:128", "0000:03:00.0"), ("226:0", "0000:03:00.0"), ("226:129", "amdgpu_xcp_1")]);
        let at = |numbers: &[(u32, u32)]| {
            let nodes: Vec<HostNode> = numbers.iter().map(|&number| node("/dev/x", Some(number))).collect();
            of(root.path(), &nodes)
        };
        let pci = |addresses: &[&str]| Place::Pci(addresses.iter().map(|&address| address.to_owned()).collect());
        assert_eq!(at(&[(226, 128), (226, 0), (510, 0)]), pci(&["0000:03:00.0"]), "the last one is of all cards");
        assert_eq!(at(&[(226, 129)]), Place::Unknown, "a part of a card is no PCI device");
        assert_eq!(at(&[]), Place::Unknown, "the file cannot be read");
        let two = host(&[("226:128", "0000:03:00.0"), ("226:129", "10000:e1:00.0")]);
        let nodes = [node("/dev/x", Some((226, 128))), node("/dev/y", Some((226, 129)))];
        assert_eq!(of(two.path(), &nodes), pci(&["0000:03:00.0", "10000:e1:00.0"]));
    }

    #[test]
    fn a_node_that_is_not_there_is_missing() {
        let root = host(&[]);
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/file"), "").unwrap();
        for path in ["/dev/dri/renderD128", "/dev/file", "relative"] {
            let nodes = [node("/dev/x", Some((226, 0))), node(path, None)];
            assert_eq!(of(root.path(), &nodes), Place::Missing, "{path}");
        }
        assert_eq!(of(Path::new("/"), &[node("/dev/null", None)]), Place::Unknown, "it is there, and of no PCI device");
    }

    #[test]
    fn only_an_address_is_one() {
        for address in ["0000:1a:00.0", "10000:e1:00.0"] {
            assert!(is_pci_address(address), "{address}");
        }
        for other in ["card0", "0000:1A:00.0", "0000:1a:00", "0000:1a:00.0.0", "1a:00.0", "../0000:1a:00.0", ""] {
            assert!(!is_pci_address(other), "{other}");
        }
    }
}
