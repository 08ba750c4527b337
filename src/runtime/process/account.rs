//! The account that sessions run as if the agent is root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
    /// `/etc/passwd` cannot be read or does not list the account.
    pub(super) fn named(name: &str) -> io::Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd")?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("/etc/passwd lists no user `{name}`"));
        parse(&passwd).find(|account| account.name == name).ok_or_else(missing)
    }

    /// The name of a user id; the number itself if `/etc/passwd` has no name for it.
    pub(super) fn name_of(uid: u32) -> String {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        parse(&passwd).find(|account| account.uid == uid).map_or_else(|| uid.to_string(), |account| account.name)
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

fn parse(passwd: &str) -> impl Iterator<Item = Account> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Account { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn accounts_are_read_and_comments_are_not() {
        let text = "root:x:0:0:root:/root:/bin/sh\n# a:b:c:d\n+::::::\nnobody:x:65534:65533::/:/bin/false\n";
        let accounts: Vec<_> = parse(text).collect();
        assert_eq!(accounts.len(), 2);
        assert_eq!(accounts[1], Account { name: "nobody".to_owned(), uid: 65534, gid: 65533 });
    }

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
