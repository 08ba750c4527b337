//! The unix socket. Its mode lets only administrators open it, and the kernel's peer credentials confirm each of them.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Gid, chown};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};

use super::Error;
use super::access::Admin;
use crate::identity::Accounts;

/// The group whose members are administrators, if it exists.
const GROUP: &str = "ostler";
/// Only owner and group may connect.
const MODE: u32 = 0o660;

/// The bound socket. Drop removes its file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The file may be removed already; then nothing is left to do.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Creates the socket, and its directory if that is missing.
///
/// # Errors
/// Another agent answers on the socket, the path is a file of another kind, or the directory is not writable.
pub(super) async fn bind(path: &Path) -> Result<Socket, Error> {
    let wrong = |source| Error::Socket { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(wrong)?;
    }
    clear(path).await?;
    let listener = UnixListener::bind(path).map_err(wrong)?;
    let socket = Socket { listener, path: path.to_owned() };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(wrong)?;
    if let Some(group) = Accounts::of_host().groups().find(|group| group.name == GROUP) {
        // An agent without root may lack the permission; its own user can still connect.
        if let Err(error) = chown(path, None, Some(Gid::from_raw(group.gid))) {
            tracing::warn!(%error, socket = %path.display(), "cannot change the group of the socket to {GROUP}");
        }
    }
    Ok(socket)
}

/// Removes a stale socket that a dead agent left behind. Keeps a socket that accepts connections, and a file that is
/// not a socket.
async fn clear(path: &Path) -> Result<(), Error> {
    let wrong = |source| Error::Socket { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(wrong(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(wrong(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is not a socket exists; remove it or change http.socket",
            )));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(Error::SocketInUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(wrong),
        Err(error) => Err(wrong(error)),
    }
}

/// The peer, if it is an administrator: root, the agent's own user, or a member of the group.
///
/// `/etc/passwd` and `/etc/group` define the membership. The kernel also lets a member from a directory
/// service open the socket; such a member needs an API token like any other caller.
pub(super) fn admin(peer: &UCred) -> Option<Admin> {
    let accounts = Accounts::of_host();
    let name = accounts.name_of(peer.uid());
    let own = rustix::process::getuid().as_raw();
    let is_admin = peer.uid() == 0
        || peer.uid() == own
        || accounts
            .groups()
            .find(|group| group.name == GROUP)
            .is_some_and(|group| peer.gid() == group.gid || name.is_some_and(|name| group.members.contains(&name)));
    is_admin.then(|| Admin { uid: peer.uid(), name: name.map(Arc::from) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_has_its_mode_and_is_removed_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/ostler.sock");
        let socket = bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ostler.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let living = bind(&path).await.unwrap();
        assert!(matches!(bind(&path).await, Err(Error::SocketInUse(_))));
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(living);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).await, Err(Error::Socket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_agents_own_user_is_an_administrator() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(admin(&one.peer_cred().unwrap()).is_some());
    }
}
