//! The credentials for registries: Docker's configuration file, and the helpers that it names.
//!
//! The file is read at each pull, so that a change of it counts at once. A helper is asked at each pull too, and its
//! answer is never kept: the tokens that some give are valid for hours only.

pub mod choose;
mod helper;

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::runtime::images::Login;
use crate::types::ImageReference;
use choose::{Choice, Credentials, Odd};

/// Bytes of the longest file that is read. One entry has about 100.
const MAX_FILE: u64 = 1 << 20;
const ROOT: u32 = 0;

/// Why there are no credentials. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read registry credentials {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("registry credentials {}: not a regular file of at most {} KiB", .0.display(), MAX_FILE >> 10)]
    NotAFile(PathBuf),
    #[error(
        "registry credentials {0} belong to user {owner}; expected root or this process's user; run: chown root {0}",
        file.display()
    )]
    Owner { file: PathBuf, owner: u32 },
    #[error("registry credentials {0} can be read or written by others (mode {mode:04o}); run: chmod 600 {0}", file.display())]
    Exposed { file: PathBuf, mode: u32 },
    #[error("registry credentials {}: {odd}", file.display())]
    Odd { file: PathBuf, odd: Odd },
    #[error("no helper {0} in PATH; install it, or remove it from the registry credentials")]
    NoHelper(String),
    #[error(
        "helper {0} belongs to user {owner}; expected root or this process's user; run: chown root {0}",
        file.display()
    )]
    HelperOwner { file: PathBuf, owner: u32 },
    #[error("helper {0} can be written by others (mode {mode:04o}); run: chmod go-w {0}", file.display())]
    HelperExposed { file: PathBuf, mode: u32 },
    #[error("cannot run helper {}: {source}", file.display())]
    HelperFailed { file: PathBuf, source: io::Error },
    #[error("helper {} gave no credentials for {server}: {why}", file.display())]
    NoAnswer { file: PathBuf, server: String, why: helper::Why },
}

/// The login for an image; `None`: the file has none, and the registry is not told who pulls.
///
/// # Errors
/// See [`Error`].
pub async fn login(file: &Path, image: &ImageReference) -> Result<Option<Login>, Error> {
    let (path, image) = (file.to_owned(), image.clone());
    let found = tokio::task::spawn_blocking(move || find(&path, &image)).await;
    let lost = |failure| Error::Unreadable { file: file.to_owned(), source: io::Error::other(failure) };
    match found.map_err(lost)?? {
        Found::Nobody => Ok(None),
        Found::Login(login) => Ok(Some(login)),
        Found::Helper { file, server } => helper::ask(&file, server).await,
    }
}

enum Found {
    Nobody,
    Login(Login),
    Helper { file: PathBuf, server: String },
}

fn find(file: &Path, image: &ImageReference) -> Result<Found, Error> {
    Ok(match read(file)?.choose(image) {
        Choice::Nobody => Found::Nobody,
        Choice::Login(login) => Found::Login(login),
        Choice::Ask { helper, server } => Found::Helper { file: helper::find(&helper)?, server },
    })
}

/// Checks the file, and that its helpers are there.
///
/// # Errors
/// The first of [`Error`].
pub fn check(file: &Path) -> Result<(), Error> {
    let credentials = read(file)?;
    credentials.helpers().into_iter().try_for_each(|name| helper::find(name).map(drop))
}

fn read(file: &Path) -> Result<Credentials, Error> {
    let unreadable = |source| Error::Unreadable { file: file.to_owned(), source };
    // Of a named pipe only a reader that does not wait learns what it is.
    let opened = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(file).map_err(unreadable)?;
    let found = opened.metadata().map_err(unreadable)?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(Error::NotAFile(file.to_owned()));
    }
    check_access(file, found.uid(), found.mode())?;
    let mut text = Vec::new();
    opened.take(MAX_FILE).read_to_end(&mut text).map_err(unreadable)?;
    Credentials::parse(&text).map_err(|odd| Error::Odd { file: file.to_owned(), odd })
}

#[expect(clippy::cast_possible_wrap, reason = "a flag of a few bits")]
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// Its group may read it, as an operator may want; nobody else may.
fn check_access(file: &Path, owner: u32, mode: u32) -> Result<(), Error> {
    const GROUP_WRITES: u32 = 0o020;
    const OTHERS: u32 = 0o007;
    if !is_trusted(owner) {
        return Err(Error::Owner { file: file.to_owned(), owner });
    }
    if mode & (GROUP_WRITES | OTHERS) != 0 {
        return Err(Error::Exposed { file: file.to_owned(), mode: mode & 0o7777 });
    }
    Ok(())
}

/// Root, or the user of this process.
fn is_trusted(owner: u32) -> bool {
    owner == ROOT || owner == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
