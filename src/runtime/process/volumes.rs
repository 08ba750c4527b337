//! Named volumes: directories that outlive the sessions that use them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::account::Account;
use super::directory::{destroy, make_directory};
use super::{ensure_directory, environment, unavailable};
use crate::runtime::volume_name::{escape_name, unescape_name};
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
    /// [`Error::Refused`] if a name is too long or the sessions' account cannot reach the volumes.
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
        let give = |()| self.account.as_ref().map_or(Ok(()), |account| account.give(&path));
        match make_directory(&path, 0o700).and_then(give) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(unavailable(e)),
            _ => Ok(()),
        }
    }

    /// The volumes' directories, by the variables that name them to the command.
    ///
    /// # Errors
    /// [`Error::Refused`] if a name is too long.
    pub(super) fn variables(&self, mounts: &[Mount]) -> Result<BTreeMap<String, PathBuf>, Error> {
        mounts.iter().map(|m| Ok((environment::volume_variable(&m.name), self.path(&m.name)?))).collect()
    }

    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            names.extend(unescape_name(&entry?.file_name().to_string_lossy()));
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
        destroy(&path).map_err(unavailable)
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let escaped = escape_name(name);
        if escaped.is_empty() || escaped.len() > MAX_NAME {
            let expected =
                format!("expected 1 to {MAX_NAME} bytes, where all but a-z, 0-9, `.` and `-` count three times");
            return Err(Error::Refused(format!("volume name `{name}` is empty or too long; {expected}")));
        }
        Ok(self.directory.join(escaped))
    }
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
        let too_long = volumes.ensure(&[mount(&"A".repeat(86))]);
        assert!(matches!(too_long, Err(Error::Refused(_))), "{too_long:?}");
    }
}
