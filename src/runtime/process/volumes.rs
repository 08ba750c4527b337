//! Named volumes: directories that outlive the sessions that use them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::directory::{destroy, make_directory};
use super::{ensure_directory, environment, unavailable};
use crate::runtime::volume_name::{bounded_name, unescape_name};
use crate::runtime::{Error, Mount};
use crate::types::User;

/// Bytes of the longest file name.
const MAX_NAME: usize = 255;

#[derive(Debug)]
pub(super) struct Volumes {
    directory: PathBuf,
    /// The account that owns the volumes; `None`: the agent's own.
    account: Option<Account>,
    /// Held while a volume is looked up and created.
    creating: Mutex<()>,
}

/// What the name of a volume's directory does not say.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// As the template gave it. The directory of a long name has a digest of it.
    name: String,
    /// The user for whom it was created, if it is one user's.
    user: Option<User>,
}

impl Note {
    /// Writes the note before its volume exists, so that no volume lacks one. Only the agent reads it.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()
    }
}

impl Volumes {
    pub(super) fn open(directory: PathBuf, mode: u32, account: Option<Account>) -> io::Result<Self> {
        ensure_directory(&directory, mode)?;
        Ok(Self { directory, account, creating: Mutex::new(()) })
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
        mounts.iter().try_for_each(|mount| self.ensure_one(mount))
    }

    fn ensure_one(&self, mount: &Mount) -> Result<(), Error> {
        let path = self.path(&mount.name)?;
        // Without the lock two users could create it at once, and both would find their own note.
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            let owner = self.note_of(&path).and_then(|note| note.user);
            return mount.check_owner(owner.as_ref().map(User::as_str)).map_err(Error::Refused);
        }
        if mount.user.is_some() || unescape_name(&path_name(&path)).is_none() {
            let note = Note { name: mount.name.clone(), user: mount.user.clone() };
            note.write(&self.note(&path)).map_err(unavailable)?;
        }
        let give = |()| self.account.as_ref().map_or(Ok(()), |account| account.give(&path));
        make_directory(&path, 0o700).and_then(give).map_err(unavailable)
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
            names.extend(unescape_name(&path_name(&path)).or_else(|| self.note_of(&path).map(|note| note.name)));
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

    /// The file of a volume's note. No volume's directory begins with a dot.
    fn note(&self, volume: &Path) -> PathBuf {
        self.directory.join(format!(".{}", path_name(volume)))
    }

    fn note_of(&self, volume: &Path) -> Option<Note> {
        let note: Note = serde_json::from_slice(&fs::read(self.note(volume)).ok()?).ok()?;
        (bounded_name(&note.name, MAX_NAME) == path_name(volume)).then_some(note)
    }
}

fn path_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(name: &str) -> Mount {
        Mount { name: name.to_owned(), path: "/home".to_owned(), read_only: false, user: None }
    }

    #[test]
    fn a_volume_stays_with_the_user_that_it_was_created_for() {
        let parent = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(parent.path().join("volumes"), 0o700, None).unwrap();
        let of = |user: &str| Mount { user: user.parse().ok(), ..mount("home-a-b-c") };
        volumes.ensure(&[of("a-b"), of("a-b")]).unwrap();
        let refused = volumes.ensure(&[of("a")]);
        assert!(matches!(&refused, Err(Error::Refused(why)) if why.contains("belongs to user a-b, not to a;")));
        volumes.ensure(&[mount("home-a-b-c")]).unwrap();
        assert_eq!(volumes.names().unwrap(), ["home-a-b-c"]);
        volumes.remove("home-a-b-c").unwrap();
        volumes.ensure(&[of("a")]).unwrap();
        // A volume from before notes belongs to every user whose template gives its name.
        volumes.ensure(&[mount("old")]).unwrap();
        volumes.ensure(&[Mount { user: "a".parse().ok(), ..mount("old") }]).unwrap();
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
