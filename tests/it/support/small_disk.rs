//! A small file system of its own, which a test can fill.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A tmpfs. Dropping it unmounts it: an agent that uses it must be dropped before.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts a tmpfs with these options, such as `size=16m`. `None`, after printing SKIPPED, if this process may not.
    pub(crate) fn mount(test: &str, options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("mode=755,{options}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            super::skip(test, "mount");
            return None;
        }
        Some(Self(directory))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self, i: usize) -> PathBuf {
        self.path().join(format!("filler-{i}"))
    }

    /// Takes all bytes that are left.
    pub(crate) fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler(0)).unwrap();
        let block = vec![0; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Takes all bytes but these.
    pub(crate) fn fill_but(&self, left: u64) {
        self.fill();
        let file = File::options().write(true).open(self.filler(0)).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left)).unwrap();
    }

    /// Creates files until only so many more could be.
    pub(crate) fn use_up_inodes(&self, left: u64) {
        for i in 1.. {
            if rustix::fs::statvfs(self.path()).unwrap().f_favail <= left {
                return;
            }
            File::create(self.filler(i)).unwrap();
        }
    }

    /// Removes everything that filled it.
    pub(crate) fn free(&self) {
        for entry in fs::read_dir(self.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("filler-") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
