//! Room that is held back on the disk of the data directory, so that a full disk does not keep the records from telling
//! what was removed to free it.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::capacity::probe::disk;
use crate::types::Bytes;

/// More than the transactions of a round take.
const RESERVED: usize = 1 << 20;
/// What must be free before it is held back again: what was just freed is not for it.
const FREE_BEFORE: Bytes = Bytes::mib(16);
const FILE: &str = "images.reserve";
const FILE_MODE: u32 = 0o600;

/// Its calls block for one write or removal.
#[derive(Debug, Clone)]
pub(super) struct Reserve {
    directory: PathBuf,
}

impl Reserve {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Holds the room back, if it is not yet and enough is free.
    pub(super) fn hold(&self) {
        let is_held = fs::metadata(self.file()).is_ok_and(|file| file.len() >= RESERVED as u64);
        let free = disk::all(std::slice::from_ref(&self.directory)).pop().map(|disk| disk.free_bytes);
        if is_held || free.is_none_or(|free| free < FREE_BEFORE) {
            return;
        }
        if let Err(error) = self.write() {
            tracing::debug!(%error, "cannot hold room back for the records of the images");
            let _ = self.give_up();
        }
    }

    /// Gives the room up. Returns whether there was any.
    pub(super) fn give_up(&self) -> bool {
        match fs::remove_file(self.file()) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(%error, "cannot give up the room that is held back for the records of the images");
                }
                false
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(self.file())?;
        file.write_all(&vec![0; RESERVED])?;
        file.sync_data()
    }

    fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_back_and_given_up_once() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::in_directory(directory.path());
        assert!(!reserve.give_up(), "there is none yet");
        for _ in 0..2 {
            reserve.hold();
            assert_eq!(fs::metadata(reserve.file()).unwrap().len(), RESERVED as u64);
        }
        assert!(reserve.give_up() && !reserve.give_up());
        fs::write(reserve.file(), "cut off").unwrap();
        reserve.hold();
        assert_eq!(fs::metadata(reserve.file()).unwrap().len(), RESERVED as u64);
    }
}
