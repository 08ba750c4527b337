//! Reads a session's log: from a position in it, across rotations, to its end.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::log;

/// Bytes that are read or searched at once.
const CHUNK: usize = 64 << 10;
const CHUNK_BYTES: u64 = CHUNK as u64;

/// A position in a session's output. Reading goes from the oldest output to the newest.
#[derive(Debug)]
pub(super) struct Output {
    directory: PathBuf,
    /// `None` until there is a log.
    file: Option<File>,
}

impl Output {
    /// Opens the output at the beginning of what is kept, or of its last `tail` lines.
    ///
    /// # Errors
    /// An I/O error.
    pub(super) fn open(directory: &Path, tail: Option<u32>) -> io::Result<Self> {
        // The newer file is opened first: if a rotation makes it the older one meanwhile, the inodes show it.
        let newest = open(&log::current(directory))?;
        let older = match (open(&log::previous(directory))?, &newest) {
            (Some(older), Some(newest)) if inode(&older)? == inode(newest)? => None,
            (older, _) => older,
        };
        let file = match tail {
            None => older.or(newest),
            Some(lines) => last_lines(older, newest, lines)?,
        };
        Ok(Self { directory: directory.to_owned(), file })
    }

    /// The next output; `None` if there is none for now.
    ///
    /// # Errors
    /// An I/O error.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let Some(file) = &mut self.file else {
                self.file = open(&log::current(&self.directory))?;
                if self.file.is_none() {
                    return Ok(None);
                }
                continue;
            };
            let successor = successor(&self.directory, file)?;
            // Read after the look-up of a successor: once there is one, nothing is added to this file.
            let length = file.read(&mut chunk)?;
            if length > 0 {
                chunk.truncate(length);
                return Ok(Some(chunk));
            }
            match successor {
                Some(next) => self.file = Some(next),
                None => return Ok(None),
            }
        }
    }
}

/// The file that was started after this one; `None` while this is the newest.
fn successor(directory: &Path, file: &File) -> io::Result<Option<File>> {
    let this = inode(file)?;
    let Some(newest) = open(&log::current(directory))? else { return Ok(None) };
    if inode(&newest)? == this {
        return Ok(None);
    }
    Ok(match open(&log::previous(directory))? {
        // After two rotations, the file between is the older one now.
        Some(older) if inode(&older)? != this && inode(&older)? != inode(&newest)? => Some(older),
        _ => Some(newest),
    })
}

/// The file in which the last lines begin, positioned at the first of them.
fn last_lines(older: Option<File>, newest: Option<File>, lines: u32) -> io::Result<Option<File>> {
    let mut wanted = u64::from(lines);
    let mut earliest = None;
    let mut at_the_end = true;
    for mut file in [newest, older].into_iter().flatten() {
        let start = start_of_last_lines(&file, &mut wanted, at_the_end)?;
        at_the_end &= file.metadata()?.len() == 0;
        file.seek(SeekFrom::Start(start))?;
        earliest = Some(file);
        if start > 0 || wanted == 0 {
            break;
        }
    }
    Ok(earliest)
}

/// The offset at which the last `wanted` lines of a file begin. If the file has fewer, returns 0 and lowers
/// `wanted` by their number. The newline at the end of all output begins no line.
fn start_of_last_lines(file: &File, wanted: &mut u64, at_the_end: bool) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if *wanted == 0 {
        return Ok(end);
    }
    let mut block = vec![0; CHUNK];
    let mut at = end;
    while at > 0 {
        let from = at.saturating_sub(CHUNK_BYTES);
        let length = usize::try_from(at - from).unwrap_or(CHUNK);
        file.read_exact_at(&mut block[..length], from)?;
        for (offset, _) in block[..length].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = from + offset as u64 + 1;
            if at_the_end && after == end {
                continue;
            }
            *wanted -= 1;
            if *wanted == 0 {
                return Ok(after);
            }
        }
        at = from;
    }
    Ok(0)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn inode(file: &File) -> io::Result<u64> {
    Ok(fs::File::metadata(file)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::process::log::BoundedLog;
    use proptest::prelude::*;

    fn rest(output: &mut Output) -> Vec<u8> {
        std::iter::from_fn(|| output.next().unwrap()).flatten().collect()
    }

    #[test]
    fn rotations_neither_lose_nor_repeat_output() {
        let directory = tempfile::tempdir().unwrap();
        let mut output = Output::open(directory.path(), None).unwrap();
        assert_eq!(rest(&mut output), b"", "no log yet");
        let mut log = BoundedLog::open(directory.path(), 4).unwrap();
        log.write(b"a1\n").unwrap();
        assert_eq!(rest(&mut output), b"a1\n");
        log.write(b"b2\n").unwrap();
        assert_eq!(rest(&mut output), b"b2\n");
        log.write(b"c3\n").unwrap();
        log.write(b"d4\n").unwrap();
        assert_eq!(rest(&mut output), b"c3\nd4\n", "two rotations at once");
        assert_eq!(rest(&mut Output::open(directory.path(), None).unwrap()), b"c3\nd4\n");
    }

    proptest! {
        #[test]
        fn tail_returns_the_last_lines(
            lines in proptest::collection::vec("[a-z]{0,6}", 0..12),
            ended in any::<bool>(),
            tail in 0..15_u32,
            limit in 8..80_u64,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut log = BoundedLog::open(directory.path(), limit).unwrap();
            let mut text = lines.join("\n");
            if ended && !text.is_empty() {
                text.push('\n');
            }
            for piece in text.as_bytes().chunks(3) {
                log.write(piece).unwrap();
            }
            let kept = rest(&mut Output::open(directory.path(), None).unwrap());
            let kept = String::from_utf8(kept).unwrap();
            let all: Vec<&str> = kept.split_inclusive('\n').collect();
            let expected = all[all.len().saturating_sub(tail as usize)..].concat();
            let got = rest(&mut Output::open(directory.path(), Some(tail)).unwrap());
            prop_assert_eq!(String::from_utf8(got).unwrap(), expected);
        }
    }
}
