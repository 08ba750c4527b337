//! Size and free space of file systems.

use std::path::{Path, PathBuf};

use rustix::fs::{stat, statvfs};

use crate::types::{Bytes, Disk, Inodes};

/// The file systems of these paths, each once, under the first path on it. Without those that cannot be read.
pub fn all(paths: &[PathBuf]) -> Vec<Disk> {
    let mut devices = Vec::new();
    let once = |path: &&PathBuf| {
        let Ok(found) = stat(path.as_path()) else { return false };
        let is_new = !devices.contains(&found.st_dev);
        devices.push(found.st_dev);
        is_new
    };
    paths.iter().filter(once).filter_map(|path| of(path)).collect()
}

/// The file system that `path` is on; `None` if `statvfs` fails.
fn of(path: &Path) -> Option<Disk> {
    let found = statvfs(path).ok()?;
    let bytes = |blocks: u64| Bytes::new(blocks.saturating_mul(found.f_frsize));
    Some(Disk {
        path: path.display().to_string(),
        total_bytes: bytes(found.f_blocks),
        free_bytes: bytes(found.f_bavail),
        // A file system that makes inodes as it needs them reports none.
        inodes: (found.f_files > 0).then_some(Inodes { total: found.f_files, free: found.f_favail }),
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
        let inodes = of(Path::new("/")).unwrap().inodes;
        assert!(inodes.is_none_or(|inodes| inodes.free <= inodes.total));
    }

    #[test]
    fn a_file_system_is_measured_once() {
        let paths = ["/there/is/no/such/path", "/", "/.", "/proc"].map(PathBuf::from);
        let measured: Vec<String> = all(&paths).into_iter().map(|disk| disk.path).collect();
        assert_eq!(measured, ["/", "/proc"]);
    }
}
