//! Reads events from the files, beside the owner that writes them.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;

use super::line::{self, Backwards};
use super::log::{EXTENSION, Segment};
use super::{MAX_PAGE, Page, Paged, Published};
use crate::types::{Event, EventFilter};

/// Bytes of the lines of a page at most: a message between nodes must hold it.
const MAX_BYTES: usize = 4 << 20;

/// The newest events that match, the newest first.
pub(super) fn page(published: &Published, page: &Page) -> io::Result<Paged> {
    let limit = page.limit.min(MAX_PAGE);
    let (mut events, mut bytes) = (Vec::new(), 0);
    for (segment, end) in newest_first(published) {
        let Some(file) = open(segment)? else { continue };
        for line in Backwards::new(&file, end)? {
            if events.len() >= limit || bytes >= MAX_BYTES {
                return Ok(Paged { events, more: true });
            }
            let line = line?;
            let Some(event) = line::decode(&line) else { continue };
            // Within a file, times only grow: the rest of it is older still.
            if page.filter.since.is_some_and(|since| event.time < since) {
                break;
            }
            if page.before.is_none_or(|before| event.place() < before) && page.filter.matches(&event) {
                events.push(event);
                bytes += line.len();
            }
        }
    }
    Ok(Paged { events, more: false })
}

/// The events after this number, in their order, `limit` at most.
pub(super) fn after(published: &Published, seq: u64, limit: usize) -> io::Result<Vec<Event>> {
    let limit = limit.min(MAX_PAGE);
    // Numbers have no gap, so it is known how many there are: a few are read from the end.
    if usize::try_from(published.last - seq).is_ok_and(|missing| missing <= limit) {
        return few_after(published, seq);
    }
    let mut events = Vec::new();
    let begin = published.files.iter().rposition(|segment| segment.first <= seq.saturating_add(1)).unwrap_or(0);
    for (i, segment) in published.files.iter().enumerate().skip(begin) {
        let Some(file) = open(segment)? else { continue };
        let end = end_of(published, i);
        for line in BufReader::new(io::Read::take(file, end)).split(b'\n') {
            if events.len() >= limit {
                return Ok(events);
            }
            events.extend(line::decode(&line?).filter(|event| event.id.seq > seq));
        }
    }
    Ok(events)
}

fn few_after(published: &Published, seq: u64) -> io::Result<Vec<Event>> {
    let mut events = VecDeque::new();
    for (segment, end) in newest_first(published) {
        let Some(file) = open(segment)? else { break };
        for line in Backwards::new(&file, end)? {
            let Some(event) = line::decode(&line?) else { continue };
            if event.id.seq <= seq {
                return Ok(events.into());
            }
            events.push_front(event);
        }
    }
    Ok(events.into())
}

/// The events in the files of a directory that match, [`MAX_PAGE`] at most, in no order. It needs no owner of the log: the
/// agent may be down, or write meanwhile.
///
/// # Errors
/// The directory or a file cannot be read.
pub fn scan(directory: &Path, filter: &EventFilter) -> io::Result<Vec<Event>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let since = filter.since.unwrap_or_default();
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != EXTENSION) {
            continue;
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            // It was too old, and was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // A line that is being written at the end decodes to nothing.
        let events = Backwards::new(&file, file.metadata()?.len())?.map(|line| Ok(line::decode(&line?)));
        for event in events.filter_map(io::Result::transpose) {
            let event = event?;
            // Within a file, times only grow: the rest of it is older still.
            if event.time < since || found.len() >= MAX_PAGE {
                break;
            }
            found.extend(Some(event).filter(|event| filter.matches(event)));
        }
    }
    Ok(found)
}

impl line::ReadAt for File {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, at)
    }
}

/// The files with the ends of their complete lines.
fn newest_first(published: &Published) -> impl Iterator<Item = (&Segment, u64)> {
    published.files.iter().enumerate().rev().map(|(i, segment)| (segment, end_of(published, i)))
}

fn end_of(published: &Published, i: usize) -> u64 {
    if i + 1 == published.files.len() { published.bytes } else { published.files[i].bytes }
}

/// `None`: it was too old, and was removed meanwhile.
fn open(segment: &Segment) -> io::Result<Option<File>> {
    match File::open(&segment.path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
