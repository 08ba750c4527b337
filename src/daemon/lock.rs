//! The data directory belongs to one agent at a time.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use crate::config::Config;
use crate::types::RuntimeKind;

/// A session that could open the lock's file could take the lock.
const LOCK_MODE: u32 = 0o600;
/// How long the data directory may still be another's: an agent that was killed while it started a
/// session's process leaves its lock to that process, until it runs its own program.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is asked for again meanwhile.
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// The data directory holds secrets: nobody but the agent looks into it.
const DATA_DIR_MODE: u32 = 0o700;
/// What sessions of the process runtime may run as another user; they pass through, and see nothing.
const DATA_DIR_MODE_PROCESS: u32 = 0o711;

/// Makes the data directory and takes it for this process alone, as long as the file is open.
pub(super) async fn claim(config: &Config) -> Result<File> {
    let directory = &config.data_dir;
    let mode = if config.runtime.kind == RuntimeKind::Process { DATA_DIR_MODE_PROCESS } else { DATA_DIR_MODE };
    make(directory, mode)?;
    let path = directory.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).mode(LOCK_MODE).open(&path);
    let lock = lock.with_context(|| format!("{} cannot be made", path.display()))?;
    let began = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(LOCK_AGAIN).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "another agent runs on the data directory {}: stop that one, or give this one its own node.data_dir",
                directory.display()
            ),
            Err(e) => return Err(e).with_context(|| format!("{} cannot be locked", path.display())),
        }
    }
}

/// A directory that is there keeps its mode: it may be one that others use too.
fn make(directory: &Path, mode: u32) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(mode).create(directory);
    made.with_context(|| format!("the data directory {} (node.data_dir) cannot be made", directory.display()))
}
