//! The files: `DATA_DIR/history/{host,cluster,gpu-UUID}.{10s,5m}`, each of a fixed size.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Subject;
use super::columns::Table;
use super::ring::{self, Disk, Row, Step};

/// GPUs that have rings at most: 1.1 MB each. The one longest unwritten goes.
pub(super) const MAX_GPUS: usize = 16;
/// They tell how busy users are: only the agent's user may read them.
const FILE_MODE: u32 = 0o600;
/// How often a row that is being written is read again before it counts as missing.
const RETRIES: usize = 3;

impl Disk for File {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }
}

/// The path of a ring.
fn path(directory: &Path, subject: &Subject, step: Step) -> PathBuf {
    directory.join(format!("{}.{}", subject.file_name(), step.suffix()))
}

/// Opens a ring, or begins it. A file with another layout is moved aside, over the one that was moved before.
fn open(directory: &Path, subject: &Subject, step: Step) -> io::Result<File> {
    let (path, table) = (path(directory, subject, step), subject.table());
    let header = ring::header(table, step, &subject.to_string());
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => {
            let mut found = vec![0; header.len()];
            let is_ours = file.metadata()?.len() == ring::file_bytes(table)
                && file.read_exact_at(&mut found, 0).is_ok()
                && found == header;
            if is_ours {
                return Ok(file);
            }
            let aside = path.with_extension(format!("{}.old", step.suffix()));
            tracing::warn!(file = %path.display(), moved_to = %aside.display(), "a history of another layout is begun anew");
            fs::rename(&path, aside)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    begin(&path, &header, ring::file_bytes(table))
}

/// Makes a ring with no rows, whole or not at all.
fn begin(path: &Path, header: &[u8], bytes: u64) -> io::Result<File> {
    let new = path.with_extension("new");
    let made = (|| {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE).open(&new)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // A file system without it, as NFS or FUSE: a full disk is met later, then.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes)?,
            done => done?,
        }
        file.write_all_at(header, 0)?;
        fs::rename(&new, path)?;
        Ok(file)
    })();
    if made.is_err() {
        // What was reserved of it is needed by others on a full disk.
        let _ = fs::remove_file(&new);
    }
    made
}

/// Both rings of one subject.
#[derive(Debug)]
struct Pair {
    fine: File,
    coarse: File,
}

/// The rings, open for writing.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    rings: BTreeMap<Subject, Pair>,
}

impl Store {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, rings: BTreeMap::new() }
    }

    /// Opens the rings of these subjects, so that their space is reserved.
    pub(super) fn prepare(&mut self, subjects: &[Subject], now: u64) -> io::Result<()> {
        subjects.iter().try_for_each(|subject| self.pair(subject, now).map(drop))
    }

    /// Writes a fine row, and the coarse row that holds it.
    pub(super) fn write(&mut self, subject: &Subject, row: &Row) -> io::Result<()> {
        let table = subject.table();
        let Pair { fine, coarse } = self.pair(subject, row.slot)?;
        fine.write_at(&ring::encode(table, row), ring::place(table, row.slot))?;
        let folded = ring::folded(fine, table, row.slot)?;
        coarse.write_at(&ring::encode(table, &folded), ring::place(table, folded.slot))
    }

    /// The clock was set back to fine slot `now`.
    pub(super) fn clear_after(&mut self, now: u64) -> io::Result<()> {
        for (subject, pair) in &mut self.rings {
            clear(pair, subject.table(), now)?;
        }
        Ok(())
    }

    fn pair(&mut self, subject: &Subject, now: u64) -> io::Result<&mut Pair> {
        if !self.rings.contains_key(subject) {
            fs::create_dir_all(&self.directory)?;
            if matches!(subject, Subject::Gpu(_)) {
                self.make_room(subject)?;
            }
            let [fine, coarse] = Step::BOTH.map(|step| open(&self.directory, subject, step));
            let mut pair = Pair { fine: fine?, coarse: coarse? };
            clear(&mut pair, subject.table(), now)?;
            self.rings.insert(subject.clone(), pair);
        }
        self.rings.get_mut(subject).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Removes the rings of GPUs that were not written for the longest time, so that there is room for one more.
    fn make_room(&mut self, wanted: &Subject) -> io::Result<()> {
        let others = |subject: &Subject| matches!(subject, Subject::Gpu(_)) && subject != wanted;
        let mut gpus: Vec<(SystemTime, Subject)> = subjects(&self.directory)?
            .into_iter()
            .filter(others)
            .map(|gpu| (written_at(&self.directory, &gpu), gpu))
            .collect();
        gpus.sort();
        for (_, gpu) in gpus.iter().take((gpus.len() + 1).saturating_sub(MAX_GPUS)) {
            self.rings.remove(gpu);
            for step in Step::BOTH {
                fs::remove_file(path(&self.directory, gpu, step)).or_else(unless_missing)?;
            }
        }
        Ok(())
    }
}

/// Clears what is after `now` and makes the coarse row of the newest fine row again: the agent may have ended between the
/// two writes.
fn clear(pair: &mut Pair, table: Table, now: u64) -> io::Result<()> {
    let newest = ring::clear_after(&mut pair.fine, table, now)?;
    ring::clear_after(&mut pair.coarse, table, now / ring::FOLD)?;
    if newest > 0 {
        let folded = ring::folded(&pair.fine, table, newest)?;
        pair.coarse.write_at(&ring::encode(table, &folded), ring::place(table, folded.slot))?;
    }
    Ok(())
}

fn written_at(directory: &Path, subject: &Subject) -> SystemTime {
    let written = fs::metadata(path(directory, subject, Step::Fine)).and_then(|metadata| metadata.modified());
    written.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Whose rings there are.
pub(super) fn subjects(directory: &Path) -> io::Result<Vec<Subject>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return unless_missing(error).map(|()| Vec::new()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".10s"));
        found.extend(name.and_then(Subject::of_file_name));
    }
    found.sort();
    Ok(found)
}

/// Passes on the rows from slot `first` up to `end`, in order. A ring that is not there has none.
pub(super) fn read(
    directory: &Path,
    subject: &Subject,
    step: Step,
    (first, end): (u64, u64),
    mut each: impl FnMut(Row),
) -> io::Result<()> {
    let file = match File::open(path(directory, subject, step)) {
        Ok(file) => file,
        Err(error) => return unless_missing(error),
    };
    let mut header = vec![0; ring::HEADER];
    let table = subject.table();
    let is_ours =
        file.read_exact_at(&mut header, 0).is_ok() && header == ring::header(table, step, &subject.to_string());
    if !is_ours {
        return Ok(());
    }
    let mut next = first;
    let mut each = |row: Row, next: &mut u64| {
        *next = row.slot + 1;
        each(row);
    };
    ring::rows(&file, table, first, end, |row| each(row, &mut next))?;
    // The owner may have been writing the newest row.
    for _ in 0..RETRIES {
        if next + 1 == end {
            ring::rows(&file, table, next, end, |row| each(row, &mut next))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::ring::{Cell, FOLD, HEADER};

    fn row(subject: &Subject, slot: u64, figure: f32) -> Row {
        let cell = Cell { average: figure, peak: figure };
        Row { slot, flags: 0, count: 1, cells: vec![cell; subject.table().columns().len()] }
    }

    fn figures(directory: &Path, subject: &Subject, step: Step, range: (u64, u64)) -> Vec<(u64, f32)> {
        let mut found = Vec::new();
        read(directory, subject, step, range, |row| found.push((row.slot, row.cells[0].average))).unwrap();
        found
    }

    #[test]
    fn rows_outlive_the_store_and_the_size_of_a_file_never_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, first) = (dir.path().join("history"), 1000 * FOLD);
        let size = || fs::metadata(directory.join("host.10s")).unwrap().len();
        for (slot, figure) in [(first, 1.0), (first + 1, 3.0), (first + 1 + FOLD, 5.0)] {
            let mut store = Store::new(directory.clone());
            store.write(&Subject::Host, &row(&Subject::Host, slot, figure)).unwrap();
            assert_eq!(size(), ring::file_bytes(Table::Host));
        }
        let expected = [(first, 1.0), (first + 1, 3.0), (first + 1 + FOLD, 5.0)];
        assert_eq!(figures(&directory, &Subject::Host, Step::Fine, (first, first + 2 * FOLD)), expected);
        assert_eq!(figures(&directory, &Subject::Host, Step::Coarse, (1000, 1002)), [(1000, 2.0), (1001, 5.0)]);
        assert_eq!(figures(&directory, &Subject::Cluster, Step::Fine, (first, first + 2)), []);
    }

    #[test]
    fn a_clock_that_is_set_back_clears_what_is_ahead_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        for slot in 3000..3090 {
            store.write(&Subject::Cluster, &row(&Subject::Cluster, slot, 1.0)).unwrap();
        }
        store.clear_after(3010).unwrap();
        store.write(&Subject::Cluster, &row(&Subject::Cluster, 3010, 2.0)).unwrap();
        let left = figures(dir.path(), &Subject::Cluster, Step::Fine, (3000, 3100));
        assert_eq!((left.len(), left[10]), (11, (3010, 2.0)));
        let coarse = figures(dir.path(), &Subject::Cluster, Step::Coarse, (100, 104));
        assert_eq!(coarse.len(), 1);
        assert!((coarse[0].1 - 12.0 / 11.0).abs() < 0.001, "{coarse:?}");
    }

    #[test]
    fn a_file_of_another_layout_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("host.10s"), "something else").unwrap();
        Store::new(dir.path().to_owned()).write(&Subject::Host, &row(&Subject::Host, 900, 1.0)).unwrap();
        assert_eq!(fs::read(dir.path().join("host.10s.old")).unwrap(), b"something else");
        assert_eq!(figures(dir.path(), &Subject::Host, Step::Fine, (900, 901)), [(900, 1.0)]);
        let file = OpenOptions::new().write(true).open(dir.path().join("host.10s")).unwrap();
        file.write_all_at(b"x", HEADER as u64 - 1).unwrap();
        assert_eq!(figures(dir.path(), &Subject::Host, Step::Fine, (900, 901)), []);
    }

    #[test]
    fn the_gpu_that_was_longest_unwritten_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = |i: usize| Subject::Gpu(format!("MIG-GPU-{i}/1/0"));
        for i in 0..=MAX_GPUS {
            let mut store = Store::new(dir.path().to_owned());
            store.write(&gpu(i), &row(&gpu(i), 900, 1.0)).unwrap();
            let file = File::options().write(true).open(path(dir.path(), &gpu(i), Step::Fine)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(10 + i as u64)).unwrap();
        }
        let left = subjects(dir.path()).unwrap();
        assert_eq!(left.len(), MAX_GPUS);
        assert!(!left.contains(&gpu(0)) && left.contains(&gpu(MAX_GPUS)));
    }
}
