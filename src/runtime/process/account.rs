//! The account that sessions run as if the agent is root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::Accounts;

/// A local account, from `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// Finds an account by its name.
    ///
    /// # Errors
    /// `/etc/passwd` does not list the account.
    pub(super) fn named(name: &str) -> io::Result<Self> {
        let accounts = Accounts::of_host();
        let found = accounts.accounts().find(|account| account.name == name);
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("/etc/passwd lists no user `{name}`"));
        let found = found.ok_or_else(missing)?;
        Ok(Self { name: found.name.to_owned(), uid: found.uid, gid: found.gid })
    }

    /// The name of a user id; the number itself if `/etc/passwd` has no name for it.
    pub(super) fn name_of(uid: u32) -> String {
        Accounts::of_host().name_of(uid).map_or_else(|| uid.to_string(), str::to_owned)
    }

    /// Makes the account the owner of a file or directory.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    /// The deepest directory on the way to `path`, `path` included, that the account cannot enter.
    pub(super) fn obstacle(&self, path: &Path) -> Option<PathBuf> {
        let passes = |directory: &Path| {
            fs::metadata(directory).is_ok_and(|metadata| {
                let class = if metadata.uid() == self.uid {
                    0o100
                } else if metadata.gid() == self.gid {
                    0o010
                } else {
                    0o001
                };
                self.uid == 0 || metadata.mode() & class != 0
            })
        };
        path.ancestors().find(|directory| !passes(directory)).map(Path::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_the_account_cannot_enter_is_named() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let open = |mode| fs::set_permissions(outer.path(), fs::Permissions::from_mode(mode)).unwrap();
        let stranger = Account { name: "stranger".to_owned(), uid: 4_000_000, gid: 4_000_000 };
        open(0o700);
        assert_eq!(stranger.obstacle(&inner).as_deref(), Some(outer.path()));
        open(0o711);
        assert_ne!(stranger.obstacle(&inner).as_deref(), Some(outer.path()));
        open(0o700);
    }
}
