//! Records that must survive a crash: named JSON values in one redb file.
//!
//! An owner reads its records once, at start, and writes each change before it
//! publishes it. The owner defines which records there are and what they mean.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::Serialize;

use crate::types::Timestamp;

/// The only table: it maps a record's name to its JSON.
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");

/// redb caches up to 1 GiB by default. The agent reads these files once, at start, and has no use for a cache
/// afterwards.
const CACHE_BYTES: usize = 256 << 10;

/// Bytes that can be written once a full data directory has room again: more than a transaction of a few sessions takes.
const ROOM_BYTES: usize = 1 << 20;
/// The file that tries whether they can.
const ROOM_FILE: &str = ".room";

/// Records may hold hashes of tokens: only the agent's user may read them.
const FILE_MODE: u32 = 0o600;

/// Every record by its name.
pub type Records = BTreeMap<String, Vec<u8>>;

/// Why a store cannot be opened or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another daemon uses the same data directory. Moving the file aside would take it from that daemon.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The file cannot be accessed. Its content may be intact, so it is not moved aside.
    #[error("{}: {reason}", .path.display())]
    Open { path: PathBuf, reason: String },
    /// The file system, or the quota of the agent's user on it, is used up. Nothing changed.
    #[error("data directory {} is full; free space on its file system", .0.display())]
    Full(PathBuf),
    /// Nothing changed.
    #[error("{0}")]
    Write(String),
}

/// Why a store refuses, within an error that may cross the wire: on this node the error itself. Only its text crosses,
/// so another node has no more than that.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[serde(from = "String", into = "String")]
pub enum Cause {
    #[error(transparent)]
    Here(#[from] Error),
    #[error("{0}")]
    Elsewhere(String),
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self::Elsewhere(text)
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.to_string()
    }
}

/// One record to write or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(String, Vec<u8>),
    Remove(String),
}

impl Change {
    pub fn put(name: impl Into<String>, record: &impl Serialize) -> Self {
        let json = serde_json::to_vec(record).expect("a record of strings, numbers and lists always serialises");
        Self::Put(name.into(), json)
    }
}

/// Why and where an existing file was moved aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedAside {
    pub reason: String,
    pub to: PathBuf,
}

/// An open store. It has one owner, which awaits each commit before it starts the next.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    begun_anew: Option<MovedAside>,
}

impl Store {
    /// Opens the store, creating it if it is absent, and reads its records. Moves a file aside that is not a
    /// store, is damaged, or has records that `parse` refuses, logs an error, and creates a new store.
    ///
    /// # Errors
    /// The file is in use, or cannot be accessed: no permission, no space, a failing disk.
    pub fn open<T>(
        path: &Path,
        now: Timestamp,
        parse: impl Fn(Records) -> Result<T, String>,
    ) -> Result<(Self, T), Error> {
        match try_open(path, &parse) {
            Err(Failure::Broken(reason)) => {
                let aside = move_aside(path, now).map_err(|e| unreachable_file(path, &e))?;
                tracing::error!(store = %path.display(), %reason, moved_to = %aside.display(),
                    "cannot read the store: moved it aside and created a new one");
                let moved = MovedAside { reason: format!("{}: {reason}", path.display()), to: aside };
                try_open(path, &parse).map(|(store, parsed)| (Self { begun_anew: Some(moved), ..store }, parsed))
            }
            outcome => outcome,
        }
        .map_err(|failure| match failure {
            Failure::Fatal(error) => error,
            Failure::Broken(reason) => Error::Open { path: path.to_owned(), reason },
        })
    }

    /// Why the existing file was moved aside, if it was.
    pub const fn begun_anew(&self) -> Option<&MovedAside> {
        self.begun_anew.as_ref()
    }

    /// Writes all of the changes or none, and returns once they are on disk.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let written = tokio::task::spawn_blocking(move || shared.commit(&changes)).await;
        written.unwrap_or_else(|e| Err(Error::Write(e.to_string())))
    }

    /// Like [`Self::commit`], for callers at start that may block.
    pub fn commit_blocking(&self, changes: &[Change]) -> Result<(), Error> {
        self.shared.commit(changes)
    }

    /// Whether the disk has room for a commit, found out by writing to it. For a store whose last commit failed as
    /// [`Error::Full`].
    pub async fn has_room(&self) -> bool {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || (shared.disk.try_room)().is_ok()).await.unwrap_or(false)
    }

    fn new(database: Database, disk: Medium) -> Self {
        let shared = Shared { disk, database: Mutex::new(Some(database)) };
        Self { shared: Arc::new(shared), begun_anew: None }
    }
}

/// Where the file of a store is.
struct Medium {
    directory: PathBuf,
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    /// Writes as much as [`ROOM_BYTES`], and removes it again.
    try_room: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

impl Medium {
    fn at(path: PathBuf) -> Self {
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let room = directory.join(ROOM_FILE);
        Self { directory, open: Box::new(move || open_database(&path)), try_room: Box::new(move || try_room(&room)) }
    }

    /// The error of a failed write.
    fn failed(&self, error: redb::Error) -> Error {
        match error {
            redb::Error::Io(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                Error::Full(self.directory.clone())
            }
            error => Error::Write(error.to_string()),
        }
    }
}

fn try_room(file: &Path) -> io::Result<()> {
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(file)?;
        file.write_all(&vec![0; ROOM_BYTES])?;
        file.sync_data()
    })();
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => written.and(Err(e)),
        _ => written,
    }
}

struct Shared {
    disk: Medium,
    /// `None` after a failed commit: redb refuses every call until the file is opened again.
    /// The lock is taken on a blocking thread for one commit, and spans no await.
    database: Mutex<Option<Database>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn commit(&self, changes: &[Change]) -> Result<(), Error> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => (self.disk.open)().map_err(|e| self.disk.failed(e.into()))?,
        };
        write(&database, changes).map_err(|e| self.disk.failed(e))?;
        *slot = Some(database);
        Ok(())
    }
}

fn write(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?; // durable once its commit returns, by redb's default
    {
        let mut table = transaction.open_table(RECORDS)?;
        for change in changes {
            match change {
                Change::Put(name, json) => table.insert(name.as_str(), json.as_slice())?,
                Change::Remove(name) => table.remove(name.as_str())?,
            };
        }
    }
    Ok(transaction.commit()?)
}

/// Why a store was not opened: a broken file can be replaced by a new one, other failures are final.
enum Failure {
    Broken(String),
    Fatal(Error),
}

fn try_open<T>(path: &Path, parse: &impl Fn(Records) -> Result<T, String>) -> Result<(Store, T), Failure> {
    make_private(path).map_err(|e| Failure::Fatal(unreachable_file(path, &e)))?;
    let database = open_database(path).map_err(|e| judge(path, e.into()))?;
    let records = read(&database).map_err(|e| judge(path, e))?;
    let parsed = parse(records).map_err(Failure::Broken)?;
    Ok((Store::new(database, Medium::at(path.to_owned())), parsed))
}

/// Creates the file if it is absent, so that it is private from the start and its name survives a crash.
fn make_private(path: &Path) -> io::Result<()> {
    let new = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    match new {
        Ok(_) => path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => fs::set_permissions(path, Permissions::from_mode(FILE_MODE)),
        Err(e) => Err(e),
    }
}

fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    // Without the check, redb trusts a file that was closed cleanly, and may panic if another program has altered it.
    Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)
}

fn read(database: &Database) -> Result<Records, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(RECORDS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Records::new()),
        table => table?,
    };
    let mut records = Records::new();
    for record in table.iter()? {
        let (name, json) = record?;
        records.insert(name.value().to_owned(), json.value().to_vec());
    }
    Ok(records)
}

/// Tells a broken file from one that is in use or cannot be accessed: only a broken one is moved aside.
fn judge(path: &Path, error: redb::Error) -> Failure {
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            Failure::Fatal(Error::InUse(path.to_owned()))
        }
        // redb returns `InvalidData` for a file of another format, and `UnexpectedEof` for a truncated one.
        redb::Error::Io(e) if !matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            Failure::Fatal(unreachable_file(path, &e))
        }
        broken => Failure::Broken(broken.to_string()),
    }
}

fn unreachable_file(path: &Path, error: &io::Error) -> Error {
    Error::Open { path: path.to_owned(), reason: error.to_string() }
}

fn move_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".broken-{}", now.millis()));
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside)?;
    Ok(aside)
}

/// A store in memory whose writes fail while its switch is on, for the tests of its owners.
#[cfg(test)]
pub(crate) mod failing {
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::*;

    /// Whether writes fail now.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Switch(Arc<AtomicBool>);

    impl Switch {
        pub(crate) fn set(&self, fails: bool) {
            self.0.store(fails, Ordering::SeqCst);
        }

        fn check(&self) -> io::Result<()> {
            if self.0.load(Ordering::SeqCst) { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    pub(crate) fn store() -> (Store, Switch) {
        let switch = Switch::default();
        let disk = Disk { memory: Arc::new(InMemoryBackend::new()), switch: switch.clone() };
        let open = move || Builder::new().create_with_backend(disk.clone());
        let database = open().unwrap();
        let room = switch.clone();
        let medium =
            Medium { directory: "/data".into(), open: Box::new(open), try_room: Box::new(move || room.check()) };
        (Store::new(database, medium), switch)
    }

    #[derive(Debug, Clone)]
    struct Disk {
        memory: Arc<InMemoryBackend>,
        switch: Switch,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.switch.check()?;
            self.memory.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.switch.check()?;
            self.memory.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.switch.check()?;
            self.memory.write(offset, data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<(Store, Records), Error> {
        Store::open(path, Timestamp::from_millis(7), Ok)
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn records_survive_and_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.redb");
        let (store, records) = open(&path).unwrap();
        assert_eq!(records, Records::new());
        store.commit(vec![Change::put("a", &1), Change::put("b", &2)]).await.unwrap();
        store.commit(vec![Change::Remove("a".to_owned())]).await.unwrap();
        drop(store);
        assert_eq!(open(&path).unwrap().1, Records::from([("b".to_owned(), b"2".to_vec())]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_broken_file_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.redb");
        let (store, _) = open(&path).unwrap();
        store.commit(vec![Change::put("a", &1)]).await.unwrap();
        drop(store);
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[600..].fill(0xA5);
        for broken in [b"not a store".to_vec(), whole[..whole.len() / 2].to_vec(), damaged] {
            fs::write(&path, &broken).unwrap();
            let (_, records) = open(&path).unwrap();
            assert_eq!(records, Records::new());
            assert_eq!(names(directory.path()), ["x.redb", "x.redb.broken-7"]);
            assert_eq!(fs::read(directory.path().join("x.redb.broken-7")).unwrap(), broken);
        }
    }

    #[test]
    fn a_new_file_that_is_refused_again_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.redb");
        let refused = Store::open(&path, Timestamp::from_millis(7), |_| Err::<(), _>("no".to_owned()));
        assert_eq!(refused.unwrap_err(), Error::Open { path, reason: "no".to_owned() });
    }

    #[test]
    fn a_file_that_is_in_use_or_inaccessible_stays_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.redb");
        let (_held, _) = open(&path).unwrap();
        assert_eq!(open(&path).unwrap_err(), Error::InUse(path));
        assert!(matches!(open(&directory.path().join("none/x.redb")), Err(Error::Open { .. })));
        assert_eq!(names(directory.path()), ["x.redb"]);
    }

    #[test]
    fn only_the_text_of_a_cause_crosses_the_wire() {
        let here = Cause::from(Error::Write("disk full".to_owned()));
        let json = serde_json::to_string(&here).unwrap();
        assert_eq!(json, r#""disk full""#);
        let elsewhere: Cause = serde_json::from_str(&json).unwrap();
        assert_eq!(elsewhere, Cause::Elsewhere("disk full".to_owned()));
        assert_eq!(elsewhere.to_string(), here.to_string());
    }

    #[tokio::test]
    async fn trying_whether_there_is_room_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = open(&directory.path().join("x.redb")).unwrap();
        assert!(store.has_room().await);
        assert_eq!(names(directory.path()), ["x.redb"]);
    }

    #[tokio::test]
    async fn a_failed_commit_changes_nothing_and_a_later_one_succeeds() {
        let (store, switch) = failing::store();
        store.commit(vec![Change::put("a", &1)]).await.unwrap();
        switch.set(true);
        let full = Err(Error::Full("/data".into()));
        assert_eq!(store.commit(vec![Change::put("a", &2)]).await, full);
        assert_eq!(store.commit(vec![Change::put("a", &3)]).await, full);
        assert!(!store.has_room().await);
        switch.set(false);
        assert!(store.has_room().await);
        store.commit(vec![Change::put("b", &4)]).await.unwrap();
        let records = read(store.shared.database.lock().unwrap().as_ref().unwrap()).unwrap();
        assert_eq!(records, Records::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"4".to_vec())]));
    }
}
