//! A session's output on disk: the newest in `log`, the output before it in `log.1`, nothing older.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes at which `log` becomes `log.1`: the two keep at least this much and at most twice as much.
pub(super) const FILE_BYTES: u64 = 5 << 20;

/// The file that output is written to.
pub(super) fn current(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// The file with the output before it.
pub(super) fn previous(directory: &Path) -> PathBuf {
    directory.join("log.1")
}

/// Appends to the log of a session, with bounded disk space.
#[derive(Debug)]
pub(super) struct BoundedLog {
    directory: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl BoundedLog {
    /// Opens the log to append to the output of earlier runs.
    ///
    /// # Errors
    /// The file cannot be opened or created.
    pub(super) fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        let file = append_to(&current(directory))?;
        let written = file.metadata()?.len();
        Ok(Self { directory: directory.to_owned(), file, written, limit })
    }

    /// Appends output. Of output larger than a whole file, only the end is kept.
    ///
    /// # Errors
    /// The disk is full or broken. This output is lost; a later write may succeed.
    pub(super) fn write(&mut self, output: &[u8]) -> io::Result<()> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let output = &output[output.len().saturating_sub(limit)..];
        let bytes = output.len() as u64;
        if self.written + bytes > self.limit {
            self.rotate()?;
        }
        self.file.write_all(output)?;
        self.written += bytes;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(current(&self.directory), previous(&self.directory))?;
        self.file = append_to(&current(&self.directory))?;
        self.written = 0;
        Ok(())
    }
}

/// Opens a file that only the agent can read: output may hold secrets.
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_newest_output_is_kept_in_bounded_space(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..40),
            reopened_at in 0..40_usize,
        ) {
            const LIMIT: u64 = 50;
            let directory = tempfile::tempdir().unwrap();
            let mut log = BoundedLog::open(directory.path(), LIMIT).unwrap();
            let mut everything = Vec::new();
            for (at, chunk) in chunks.iter().enumerate() {
                if at == reopened_at {
                    log = BoundedLog::open(directory.path(), LIMIT).unwrap();
                }
                log.write(chunk).unwrap();
                everything.extend_from_slice(chunk);
            }
            let newest = fs::read(current(directory.path())).unwrap();
            let older = fs::read(previous(directory.path())).unwrap_or_default();
            prop_assert!(newest.len() as u64 <= LIMIT && older.len() as u64 <= LIMIT);
            let kept = [older, newest].concat();
            prop_assert!(everything.ends_with(&kept));
            prop_assert!(kept.len() + 30 > everything.len().min(50));
        }
    }

    #[test]
    fn of_output_larger_than_a_file_the_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        BoundedLog::open(directory.path(), 4).unwrap().write(b"abcdefgh").unwrap();
        assert_eq!(fs::read(current(directory.path())).unwrap(), b"efgh");
    }
}
