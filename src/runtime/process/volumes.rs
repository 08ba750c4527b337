//! Named volumes: directories that outlive the sessions that use them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::account::Account;
use super::directory::{destroy, make_directory};
use super::{ensure_directory, environment, unavailable};
use crate::runtime::volume_name::{bounded_name, unescape_name};
use crate::runtime::{Error, Mount};

/// Bytes of the longest file name.
const MAX_NAME: usize = 255;

#[derive(Debug)]
pub(super) struct Volumes {
    directory: PathBuf,
    /// The account that owns the volumes; `None`: the agent's own.
    account: Option<Account>,
}

impl Volumes {
    pub(super) fn open(directory: PathBuf, mode: u32, account: Option<Account>) -> io::Result<Self> {
        ensure_directory(&directory, mode)?;
        Ok(Self { directory, account })
    }

    /// Creates those of these volumes that do not exist.
    ///
    /// # Errors
    /// [`Error::Refused`] if a name is empty or the sessions' account cannot reach the volumes.
    pub(super) fn ensure(&self, mounts: &[Mount]) -> Result<(), Error> {
        if mounts.is_empty() {
            return Ok(());
        }
        if let Some(obstacle) = self.account.as_ref().and_then(|account| account.obstacle(&self.directory)) {
            let message = format!("sessions cannot reach volumes; run: chmod a+x {}", obstacle.display());
            return Err(Error::Refused(message));
        }
        mounts.iter().try_for_each(|mount| self.ensure_one(&mount.name))
    }

    fn ensure_one(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        if path.exists() {
            return Ok(());
        }
        if unescape_name(&path_name(&path)).is_none() {
            fs::write(self.note(&path), name).map_err(unavailable)?;
        }
        let give = |()| self.account.as_ref().map_or(Ok(()), |account| account.give(&path));
        match make_directory(&path, 0o700).and_then(give) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(unavailable(e)),
            _ => Ok(()),
        }
    }

    /// The volumes' directories, by the variables that name them to the command.
    ///
    /// # Errors
    /// [`Error::Refused`] if a name is empty.
    pub(super) fn variables(&self, mounts: &[Mount]) -> Result<BTreeMap<String, PathBuf>, Error> {
        mounts.iter().map(|m| Ok((environment::volume_variable(&m.name), self.path(&m.name)?))).collect()
    }

    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            names.extend(unescape_name(&path_name(&path)).or_else(|| self.noted(&path)));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// # Errors
    /// [`Error::NotFound`], or [`Error::Unavailable`] with an I/O error.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        if !path.exists() {
            return Err(Error::NotFound(name.to_owned()));
        }
        destroy(&path).map_err(unavailable)?;
        match fs::remove_file(self.note(&path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unavailable(e)),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        if name.is_empty() {
            return Err(Error::Refused("the name of a volume is empty".to_owned()));
        }
        Ok(self.directory.join(bounded_name(name, MAX_NAME)))
    }

    /// The file with the name of a volume that is too long for its directory's name. No directory begins with a dot.
    fn note(&self, volume: &Path) -> PathBuf {
        self.directory.join(format!(".{}", path_name(volume)))
    }

    /// The name of a volume, from its note.
    fn noted(&self, volume: &Path) -> Option<String> {
        let name = fs::read_to_string(self.note(volume)).ok()?;
        (bounded_name(&name, MAX_NAME) == path_name(volume)).then_some(name)
    }
}

fn path_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(name: &str) -> Mount {
        Mount { name: name.to_owned(), path: "/home".to_owned(), read_only: false }
    }

    #[test]
    fn volumes_keep_their_names_and_stay_in_their_directory() {
        let parent = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(parent.path().join("volumes"), 0o700, None).unwrap();
        volumes.ensure(&[mount(".."), mount("home-Alice@x"), mount("home-Alice@x")]).unwrap();
        assert_eq!(volumes.names().unwrap(), ["..", "home-Alice@x"]);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert_eq!(volumes.remove("b"), Err(Error::NotFound("b".to_owned())));
        volumes.remove("..").unwrap();
        assert_eq!(volumes.names().unwrap(), ["home-Alice@x"]);
        assert!(matches!(volumes.ensure(&[mount("")]), Err(Error::Refused(_))));
    }

    #[test]
    fn a_name_that_is_too_long_for_a_directory_is_kept_beside_it() {
        let parent = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(parent.path().join("volumes"), 0o700, None).unwrap();
        let (one, other) = ("Ä".repeat(100), format!("{}ä", "Ä".repeat(99)));
        volumes.ensure(&[mount(&one), mount(&other), mount(&one)]).unwrap();
        assert_eq!(volumes.names().unwrap(), [one.clone(), other.clone()]);
        volumes.remove(&one).unwrap();
        assert_eq!(volumes.names().unwrap(), std::slice::from_ref(&other));
        volumes.remove(&other).unwrap();
        assert_eq!(fs::read_dir(parent.path().join("volumes")).unwrap().count(), 0);
    }
}
