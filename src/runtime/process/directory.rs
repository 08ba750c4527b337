//! The directory of one session. Everything that must survive the agent is here:
//!
//! | file | written by | |
//! | --- | --- | --- |
//! | `launch.json` | `create` | what the session is; holds secrets, so only the agent reads it |
//! | `plan.json` | `start` | how the shim runs it on this host |
//! | `lock` | | the shim of a run holds it for as long as it lives |
//! | `state.json` | shim | the run, once the command runs |
//! | `exit.json` | shim | how the run ended |
//! | `paused` | `pause` | exists while the session is paused without a cgroup |
//! | `log`, `log.1` | shim | the output |
//! | `work/` | `create` | the command's working directory |

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::cgroup::Group;
use super::processes::Process;
use crate::runtime::{Exit, Launch, Oom, Run};
use crate::types::{Name, NodeId, Timestamp};

/// Prefix of directories while they are created or destroyed. The next start removes what a crashed agent left.
pub(super) const UNFINISHED: &str = ".unfinished-";

/// What the session is, and which cluster and node it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub cluster: Name,
    pub node: NodeId,
    pub created_at: Timestamp,
    pub launch: Launch,
}

/// How the shim does one run on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The account that the command runs as; `None`: the agent's own.
    pub account: Option<Account>,
    pub group: Group,
    /// The most that a process may map, if no cgroup limits memory.
    pub address_space_bytes: Option<u64>,
    /// Volumes by the variables that name them.
    pub volumes: BTreeMap<String, PathBuf>,
}

/// The run that the shim has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The boot that the processes belong to.
    pub boot_id: u64,
    pub shim: Process,
    /// The command, the leader of its own process group.
    pub command: Process,
}

impl State {
    pub(super) fn run(&self) -> Run {
        run(self.boot_id, &self.shim)
    }
}

/// The name of a shim's run.
pub(super) fn run(boot_id: u64, shim: &Process) -> Run {
    Run(format!("{boot_id:016x}-{}-{}", shim.pid, shim.start))
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub run: Run,
    pub code: i64,
    pub oom_killed: bool,
    pub finished_at: Option<Timestamp>,
    /// Why the command was not started, if it was not.
    pub never_ran: Option<String>,
}

impl From<Ending> for Exit {
    fn from(ending: Ending) -> Self {
        let Ending { run, code, oom_killed, finished_at, never_ran } = ending;
        let oom = match (oom_killed, code) {
            (false, _) => Oom::Nothing,
            (true, super::session::KILLED) => Oom::Main,
            (true, _) => Oom::Child,
        };
        Self { run, code, oom, never_ran, finished_at }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionDirectory {
    path: PathBuf,
}

impl SessionDirectory {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Creates the directory completely or not at all. If it exists, changes nothing.
    ///
    /// # Errors
    /// An I/O error.
    pub(super) fn create(&self, identity: &Identity, account: Option<&Account>) -> io::Result<()> {
        if self.exists() {
            return Ok(());
        }
        let unfinished = Self::at(self.unfinished()?);
        let made = unfinished.fill(identity, account).and_then(|()| fs::rename(&unfinished.path, &self.path));
        if made.is_err() {
            // The first error is the one to return; the next start removes what is left.
            let _ = destroy(&unfinished.path);
        }
        made?;
        sync_directory(self.path.parent().unwrap_or(&self.path))
    }

    fn fill(&self, identity: &Identity, account: Option<&Account>) -> io::Result<()> {
        destroy(&self.path)?;
        // Another account can enter its working directory, but cannot read the directories above it.
        make_directory(&self.path, if account.is_some() { 0o711 } else { 0o700 })?;
        make_directory(&self.work(), 0o700)?;
        if let Some(account) = account {
            account.give(&self.work())?;
        }
        self.write("launch.json", identity)
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    pub(super) fn identity(&self) -> io::Result<Option<Identity>> {
        self.read("launch.json")
    }

    pub(super) fn plan(&self) -> io::Result<Option<Plan>> {
        self.read("plan.json")
    }

    pub(super) fn write_plan(&self, plan: &Plan) -> io::Result<()> {
        self.write("plan.json", plan)
    }

    pub(super) fn state(&self) -> io::Result<Option<State>> {
        self.read("state.json")
    }

    pub(super) fn write_state(&self, state: &State) -> io::Result<()> {
        self.write("state.json", state)
    }

    pub(super) fn ending(&self) -> io::Result<Option<Ending>> {
        self.read("exit.json")
    }

    pub(super) fn write_ending(&self, ending: &Ending) -> io::Result<()> {
        self.write("exit.json", ending)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.path.join("paused").exists()
    }

    pub(super) fn set_paused(&self, paused: bool) -> io::Result<()> {
        if paused { self.write("paused", &()) } else { self.delete("paused") }
    }

    /// Forgets the last run. The plan goes last: while it exists, processes or a group of the run may be left.
    pub(super) fn forget_run(&self) -> io::Result<()> {
        ["paused", "state.json", "exit.json", "plan.json"].iter().try_for_each(|name| self.delete(name))
    }

    /// Takes the lock of the session's run; `None` while a shim holds it, or briefly another call.
    /// It is held as long as any process has a copy of the file open.
    pub(super) fn try_lock(&self) -> io::Result<Option<File>> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Destroys the directory: renames it first, so that it is gone at once, then deletes its files.
    ///
    /// # Errors
    /// An I/O error. If only the deletion fails, the call succeeds and the next start removes the rest.
    pub(super) fn remove(&self) -> io::Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let unfinished = self.unfinished()?;
        destroy(&unfinished)?;
        fs::rename(&self.path, &unfinished)?;
        if let Err(e) = destroy(&unfinished) {
            tracing::warn!(directory = %unfinished.display(), "a removed session's files stay until the next start: {e}");
        }
        Ok(())
    }

    fn unfinished(&self) -> io::Result<PathBuf> {
        let name = self.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.path.with_file_name(format!("{UNFINISHED}{}", name.to_string_lossy())))
    }

    /// `None` if there is no such file.
    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.path.join(name);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let broken = |e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()));
        serde_json::from_slice(&text).map(Some).map_err(broken)
    }

    /// Replaces a file atomically: after a crash, too, a reader sees the old one or the new one.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let new = self.path.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&new, self.path.join(name))?;
        sync_directory(&self.path)
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Creates a directory of exactly that mode, whatever the umask is. Its parent must exist.
pub(super) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes a directory with everything in it. Succeeds if there is none.
///
/// # Errors
/// An I/O error.
pub(super) fn destroy(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // The session's program may have taken away permissions on its own directories.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            unlock(path)?;
            fs::remove_dir_all(path)
        }
        done => done,
    }
}

fn unlock(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            unlock(&entry.path())?;
        }
    }
    Ok(())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::{Bytes, Cores, Init, PullPolicy, Resources};

    pub(in super::super) fn identity() -> Identity {
        let cluster: Name = "c".parse().unwrap();
        Identity {
            launch: Launch {
                session: crate::types::SessionId::of_key(&cluster, "k"),
                user: "alice".parse().unwrap(),
                workspace: "w".parse().unwrap(),
                image: None,
                pull: PullPolicy::Daily,
                command: vec!["true".to_owned()],
                env: BTreeMap::from([("PASSWORD".to_owned(), "secret".to_owned())]),
                resources: Resources::new(Cores::whole(1), Bytes::mib(64), 0),
                gpu_uuids: Vec::new(),
                gpu_capabilities: Vec::new(),
                gpu_memory: None,
                ports: Vec::new(),
                volumes: Vec::new(),
                shm: Bytes::mib(64),
                stop_grace: std::time::Duration::from_secs(10),
                entrypoint: Vec::new(),
                run_as: None,
                init: Init::Auto,
                tmpfs: Vec::new(),
                read_only: false,
                network: None,
            },
            cluster,
            node: NodeId::from_bytes([7; 10]),
            created_at: Timestamp::from_millis(1),
        }
    }

    fn made() -> (tempfile::TempDir, SessionDirectory) {
        let parent = tempfile::tempdir().unwrap();
        let directory = SessionDirectory::at(parent.path().join("s"));
        directory.create(&identity(), None).unwrap();
        (parent, directory)
    }

    #[test]
    fn a_session_is_created_completely_and_read_back() {
        let (parent, directory) = made();
        assert_eq!(directory.identity().unwrap(), Some(identity()));
        assert_eq!((directory.state().unwrap(), directory.ending().unwrap()), (None, None));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(directory.path()), mode(&directory.path().join("launch.json"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_second_create_changes_nothing() {
        let (_parent, directory) = made();
        let other = Identity { created_at: Timestamp::from_millis(2), ..identity() };
        directory.create(&other, None).unwrap();
        assert_eq!(directory.identity().unwrap(), Some(identity()));
    }

    #[test]
    fn create_succeeds_over_the_remains_of_a_crash() {
        let parent = tempfile::tempdir().unwrap();
        let directory = SessionDirectory::at(parent.path().join("s"));
        fs::create_dir_all(parent.path().join(format!("{UNFINISHED}s/work"))).unwrap();
        directory.create(&identity(), None).unwrap();
        assert!(directory.identity().unwrap().is_some());
    }

    #[test]
    fn the_lock_has_one_holder_at_a_time() {
        let (_parent, directory) = made();
        let held = directory.try_lock().unwrap();
        assert!(held.is_some());
        assert!(directory.try_lock().unwrap().is_none());
        drop(held);
        assert!(directory.try_lock().unwrap().is_some());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_a_missing_file() {
        let (_parent, directory) = made();
        fs::write(directory.path().join("state.json"), "{").unwrap();
        assert!(directory.state().unwrap_err().to_string().contains("state.json"));
    }

    #[test]
    fn directories_without_permissions_are_removed_too() {
        let parent = tempfile::tempdir().unwrap();
        let locked = parent.path().join("a/b");
        fs::create_dir_all(locked.join("c")).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        destroy(&parent.path().join("a")).unwrap();
        destroy(&parent.path().join("a")).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_run_is_forgotten_and_a_session_removed() {
        let (parent, directory) = made();
        let shim = Process { pid: 1, start: 2 };
        directory.write_state(&State { boot_id: 3, shim, command: shim }).unwrap();
        directory.set_paused(true).unwrap();
        directory.forget_run().unwrap();
        assert!(directory.state().unwrap().is_none() && !directory.is_paused());
        directory.remove().unwrap();
        directory.remove().unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
