//! Whether a disk has room for a copy of an image.

use std::path::PathBuf;

use tokio::task::spawn_blocking;

use crate::capacity::probe::disk;
use crate::types::Bytes;

/// Whether `needs` more bytes leave `least` free at this path. A path that is not known has room.
///
/// # Errors
/// The figures, for people.
pub(super) async fn check(path: Option<PathBuf>, needs: Bytes, least: Bytes) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    spawn_blocking(move || check_now(&path, needs, least)).await.unwrap_or(Ok(()))
}

/// The same, for a thread that may wait.
pub(super) fn check_now(path: &std::path::Path, needs: Bytes, least: Bytes) -> Result<(), String> {
    let Some(disk) = disk::all(&[path.to_owned()]).pop() else { return Ok(()) };
    if disk.free_bytes.get() >= needs.get().saturating_add(least.get()) {
        return Ok(());
    }
    let free = disk.free_bytes;
    Err(format!("{free} is free on {}, and the copy needs {needs} above limits.min_free_disk ({least})", disk.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_what_is_free_above_the_least() {
        let directory = tempfile::tempdir().unwrap();
        let path = || Some(directory.path().to_owned());
        assert_eq!(check(path(), Bytes::new(1), Bytes::ZERO).await, Ok(()));
        let refused = check(path(), Bytes::new(1), Bytes::new(u64::MAX)).await.unwrap_err();
        assert!(refused.contains("limits.min_free_disk"), "{refused}");
        assert!(check(path(), Bytes::new(u64::MAX), Bytes::ZERO).await.is_err());
        assert_eq!(check(None, Bytes::new(u64::MAX), Bytes::ZERO).await, Ok(()));
    }
}
