//! Whether the disks have room for another session, and RAM and swap for what the node offers. Pure.

use std::fmt;

use crate::types::{Bytes, Disk, Inodes};

/// Inodes that must be free on a file system with a fixed number of them, in percent: an image of a desktop has some
/// 100,000 files, and a file system that is made for one hundred million has two million left.
pub const MIN_FREE_INODES_PERCENT: u64 = 2;

/// Why a disk has no room. The figures are of its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage<'a> {
    Bytes { disk: &'a Disk, least: Bytes },
    Inodes { disk: &'a Disk, inodes: Inodes, least: u64 },
}

/// The first of the disks without room. `min_free`: `limits.min_free_disk`; with 0 every disk has room.
pub fn shortage(disks: &[Disk], min_free: Bytes) -> Option<Shortage<'_>> {
    if min_free.is_zero() {
        return None;
    }
    disks.iter().find_map(|disk| {
        if disk.free_bytes < min_free {
            return Some(Shortage::Bytes { disk, least: min_free });
        }
        let inodes = disk.inodes?;
        let least = least_inodes(inodes.total);
        (inodes.free < least).then_some(Shortage::Inodes { disk, inodes, least })
    })
}

impl fmt::Display for Shortage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { disk, least } => write!(
                f,
                "{} is free on {}, less than limits.min_free_disk ({least}): the node admits no session; \
                 free disk space",
                disk.free_bytes, disk.path
            ),
            Self::Inodes { disk, inodes, least } => write!(
                f,
                "{} of {} inodes are free on {}, less than {MIN_FREE_INODES_PERCENT} % ({least}): \
                 the node admits no session; remove files, or make the file system with more inodes",
                inodes.free, inodes.total, disk.path
            ),
        }
    }
}

/// Why the memory that a node offers is more than it has, for people; `None`: RAM and swap hold it.
pub fn beyond_ram_and_swap(offered: Bytes, ram: Bytes, swap: Bytes) -> Option<String> {
    let held = ram.saturating_add(swap);
    (offered > held).then(|| {
        format!(
            "the node offers {offered} of memory, but RAM and swap hold {held}: the kernel may kill sessions that \
             use it; add swap or lower memory_override_bytes"
        )
    })
}

const fn least_inodes(total: u64) -> u64 {
    // Divided first: no file system is so small that this matters, and none so large that it overflows.
    total / 100 * MIN_FREE_INODES_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(free_gib: u64, inodes: Option<(u64, u64)>) -> Disk {
        let inodes = inodes.map(|(total, free)| Inodes { total, free });
        Disk { path: "/d".to_owned(), total_bytes: Bytes::gib(100), free_bytes: Bytes::gib(free_gib), inodes }
    }

    #[test]
    fn a_disk_needs_free_bytes_and_free_inodes() {
        let short = |disk: Disk| match shortage(&[disk], Bytes::gib(5)) {
            None => "no",
            Some(Shortage::Bytes { .. }) => "bytes",
            Some(Shortage::Inodes { .. }) => "inodes",
        };
        assert_eq!(short(disk(5, Some((1000, 20)))), "no");
        assert_eq!(short(disk(4, Some((1000, 20)))), "bytes");
        assert_eq!(short(disk(5, Some((1000, 19)))), "inodes");
        assert_eq!(short(disk(5, None)), "no", "inodes without a bound");
    }

    #[test]
    fn every_disk_counts_and_a_limit_of_zero_is_none() {
        let disks = [disk(50, None), disk(1, Some((1000, 0)))];
        assert_eq!(shortage(&disks, Bytes::gib(2)), Some(Shortage::Bytes { disk: &disks[1], least: Bytes::gib(2) }));
        assert!(matches!(shortage(&disks, Bytes::gib(1)), Some(Shortage::Inodes { least: 20, .. })));
        assert_eq!(shortage(&disks, Bytes::ZERO), None);
    }
}
