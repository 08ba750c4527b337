//! The unix socket. Its mode lets only administrators open it, and the kernel's peer credentials confirm each of them.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, chown};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};

use super::Error;

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
    if let Some(group) = group_of(&read("/etc/group"), GROUP) {
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

/// Whether the peer is an administrator: root, the agent's own user, or a member of the group.
///
/// `/etc/passwd` and `/etc/group` define the membership. The kernel also lets a member from a directory
/// service open the socket; such a member needs an API token like any other caller.
pub(super) fn is_admin(peer: &UCred) -> bool {
    let own = rustix::process::getuid().as_raw();
    if peer.uid() == 0 || peer.uid() == own {
        return true;
    }
    let Some(group) = group_of(&read("/etc/group"), GROUP) else { return false };
    let name = user_of(&read("/etc/passwd"), peer.uid());
    peer.gid() == group.gid || name.is_some_and(|name| group.members.contains(&name))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A line of `/etc/group`.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    gid: u32,
    members: Vec<String>,
}

fn group_of(file: &str, name: &str) -> Option<Group> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, _password, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let members = members.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned);
        (found == name).then(|| Some(Group { gid: gid.parse().ok()?, members: members.collect() }))?
    })
}

fn user_of(file: &str, uid: u32) -> Option<String> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_users_are_read_from_their_files() {
        let groups = "root:x:0:\n# no line\nostler:x:987:alice, bob\nostlers:x:1:eve\nempty:x:5:\nbad:x:no:\n";
        let members = vec!["alice".to_owned(), "bob".to_owned()];
        assert_eq!(group_of(groups, "ostler"), Some(Group { gid: 987, members }));
        assert_eq!(group_of(groups, "empty"), Some(Group { gid: 5, members: vec![] }));
        assert_eq!(group_of(groups, "bad"), None);
        assert_eq!(group_of(groups, "none"), None);
        let users = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(user_of(users, 1000), Some("alice".to_owned()));
        assert_eq!(user_of(users, 100), None);
    }

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
        assert!(is_admin(&one.peer_cred().unwrap()));
    }
}
