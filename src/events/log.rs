//! The files of the log: one a day, the oldest removed first.
//!
//! `DATA_DIR/events/2026-01-31.jsonl` has the events of a day as lines of JSON, which `grep` and `jq` read. A day with
//! many events goes on in `2026-01-31.2.jsonl`. Within one file, numbers and times only grow.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::line::{self, Backwards};
use crate::types::{Event, EventKind, Timestamp};

/// How long events are kept.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of all files at most, with what is reserved.
pub const MAX_BYTES: u64 = 64 << 20;
/// Bytes of one file at most, so that the oldest one is a small part of all.
const MAX_FILE: u64 = 8 << 20;
/// Bytes that are reserved behind the end of the newest file, so that a full disk still takes events.
const RESERVE: u64 = 1 << 20;
/// The reserve is renewed when less than this is left of it.
const RESERVE_LOW: u64 = 256 << 10;
/// A clock that is this much behind the newest event was set back; less is borne by repeating the time.
const STEP: Duration = Duration::from_secs(60);
const SUFFIX: &str = ".jsonl";
/// The same, as a path has it.
pub(super) const EXTENSION: &str = "jsonl";
/// They name users and addresses: only the agent's user may read them.
const FILE_MODE: u32 = 0o600;

/// A file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// The number of its first event.
    pub(super) first: u64,
    /// The time of its newest event, as far as this agent knows.
    pub(super) newest: Timestamp,
    pub(super) bytes: u64,
}

/// The log, open for writing.
#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    /// The oldest first. The last one is the one that is written, while there is a `file`.
    pub(super) segments: Vec<Segment>,
    file: Option<File>,
    /// Up to where space is reserved in `file`.
    reserved: u64,
    /// The newest event.
    last: Option<(u64, Timestamp, EventKind)>,
    /// Something was written that may not be on the disk.
    dirty: bool,
}

impl Log {
    /// Opens the log, and cuts off a line that was not written to its end.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(SUFFIX))
                && let Some(opened) = read_segment(path)?
            {
                found.push(opened);
            }
        }
        found.sort_by_key(|(segment, _)| segment.first);
        let last = found.last().map(|(_, newest)| (newest.id.seq, newest.time, newest.kind));
        let segments: Vec<Segment> = found.into_iter().map(|(segment, _)| segment).collect();
        let mut log = Self { directory: directory.to_owned(), segments, file: None, reserved: 0, last, dirty: false };
        if let Some(newest) = log.segments.last() {
            let file = OpenOptions::new().write(true).open(&newest.path)?;
            file.set_len(newest.bytes)?;
            log.file = Some(file);
        }
        Ok(log)
    }

    /// The number of the newest event; 0: there is none.
    pub(super) fn last(&self) -> u64 {
        self.last.map_or(0, |(seq, ..)| seq)
    }

    /// Whether the newest event is not the end of an agent: it was killed, or the host lost its power.
    pub(super) fn is_unclean(&self) -> bool {
        self.last.is_some_and(|(.., kind)| kind != EventKind::AgentStopped)
    }

    /// The time that an event of now gets: the newest event's, if the clock is a little behind it.
    pub(super) fn time(&self, now: Timestamp) -> Timestamp {
        self.last.map_or(now, |(_, newest, _)| if newest.since(now) <= STEP { now.max(newest) } else { now })
    }

    /// Writes events, which follow the newest one. Nothing of them is written if that fails.
    pub(super) fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let Some(newest) = events.last() else { return Ok(()) };
        let lines: Vec<u8> = events.iter().flat_map(line::encode).collect();
        self.make_room(&events[0])?;
        let (Some(file), Some(segment)) = (&self.file, self.segments.last_mut()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Err(error) = file.write_all_at(&lines, segment.bytes) {
            // Whatever of it was written is not part of the log: the next line is written over it.
            let _ = file.set_len(segment.bytes);
            self.reserved = 0;
            return Err(error);
        }
        segment.bytes += lines.len() as u64;
        segment.newest = newest.time;
        self.last = Some((newest.id.seq, newest.time, newest.kind));
        self.dirty = true;
        Ok(())
    }

    /// Opens the file that the event belongs in, and reserves space in it.
    fn make_room(&mut self, event: &Event) -> io::Result<()> {
        let day = event.time.day();
        let fits = self.file.is_some()
            && self.segments.last().is_some_and(|newest| {
                newest.bytes < MAX_FILE && newest.newest <= event.time && newest.newest.day() == day
            });
        if !fits {
            self.begin(&day, event)?;
        }
        let (Some(file), Some(newest)) = (&self.file, self.segments.last()) else { return Ok(()) };
        if self.reserved < newest.bytes + RESERVE_LOW {
            // What cannot be reserved is written without: many file systems cannot, and a full one will tell.
            let _ = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, newest.bytes, RESERVE);
            self.reserved = newest.bytes + RESERVE;
        }
        Ok(())
    }

    fn begin(&mut self, day: &str, event: &Event) -> io::Result<()> {
        let (path, file) = create(&self.directory, day)?;
        if let (Some(finished), Some(segment)) = (self.file.take(), self.segments.last()) {
            // Gives back what was reserved behind its end, and puts it on the disk: nobody synchronises it later.
            let _ = finished.set_len(segment.bytes).and_then(|()| finished.sync_data());
        }
        self.segments.push(Segment { path, first: event.id.seq, newest: event.time, bytes: 0 });
        (self.file, self.reserved) = (Some(file), 0);
        self.prune(event.time);
        Ok(())
    }

    /// Removes the oldest files while they are too old or too many, and never the newest.
    fn prune(&mut self, now: Timestamp) {
        while let [oldest, _, ..] = self.segments.as_slice() {
            let bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
            if now.since(oldest.newest) <= MAX_AGE && bytes + MAX_FILE + RESERVE <= MAX_BYTES {
                return;
            }
            if let Err(error) = fs::remove_file(&oldest.path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file = %oldest.path.display(), %error, "cannot remove old events");
                return;
            }
            self.segments.remove(0);
        }
    }

    /// A file to synchronise with the disk, if something was written since the last call.
    pub(super) fn unsynced(&mut self) -> Option<File> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.file.as_ref()?.try_clone().ok()
    }
}

/// Creates the first file of this day that does not exist yet.
fn create(directory: &Path, day: &str) -> io::Result<(PathBuf, File)> {
    let mut part = 1_u32;
    loop {
        let name = if part == 1 { format!("{day}{SUFFIX}") } else { format!("{day}.{part}{SUFFIX}") };
        let path = directory.join(name);
        match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => part += 1,
            Err(error) => return Err(error),
        }
    }
}

/// A file of the log with its newest event. One without an event is removed: it holds nothing.
fn read_segment(path: PathBuf) -> io::Result<Option<(Segment, Event)>> {
    let bytes = fs::read(&path)?;
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let first = bytes[..complete].split(|byte| *byte == b'\n').find_map(line::decode);
    let newest = Backwards::new(&Bytes(&bytes), complete as u64)?.find_map(|line| line::decode(&line.ok()?));
    let (Some(first), Some(newest)) = (first, newest) else {
        tracing::warn!(file = %path.display(), "removing a file of the event log that has no event");
        fs::remove_file(&path)?;
        return Ok(None);
    };
    let segment = Segment { path, first: first.id.seq, newest: newest.time, bytes: complete as u64 };
    Ok(Some((segment, newest)))
}

struct Bytes<'b>(&'b [u8]);

impl line::ReadAt for Bytes<'_> {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let found = self.0.get(from..from.saturating_add(bytes.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
