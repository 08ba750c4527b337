//! Size and free space of a file system.

use std::path::Path;

use rustix::fs::statvfs;

use crate::types::{Bytes, Disk};

/// The file system that `path` is on; `None` if `statvfs` fails.
pub fn of(path: &Path) -> Option<Disk> {
    let found = statvfs(path).ok()?;
    let bytes = |blocks: u64| Bytes::new(blocks.saturating_mul(found.f_frsize));
    Some(Disk {
        path: path.display().to_string(),
        total_bytes: bytes(found.f_blocks),
        // Free for every user, without the blocks that are reserved for root.
        free_bytes: bytes(found.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_size_and_an_absent_path_has_none() {
        let disk = of(Path::new("/")).unwrap();
        assert!(disk.total_bytes > Bytes::ZERO && disk.free_bytes <= disk.total_bytes);
        assert_eq!(of(Path::new("/there/is/no/such/path")), None);
    }
}
