//! A line of the log: one event as JSON, and the lines of a file from its end.

use std::io;

use crate::types::Event;

/// Bytes of a line at most, with its end. A longer event is written without its data.
pub(super) const MAX_LINE: usize = 16 << 10;
/// Characters of the message of an event that is too long otherwise.
const MAX_MESSAGE: usize = 1000;
/// Bytes that are read at once.
const CHUNK: u64 = 64 << 10;

/// The event's line, with its end.
pub(super) fn encode(event: &Event) -> Vec<u8> {
    let line = |event: &Event| {
        // An event is strings, numbers and maps with string keys: there is nothing that JSON does not have.
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        line
    };
    let whole = line(event);
    if whole.len() <= MAX_LINE {
        return whole;
    }
    let mut short = event.clone();
    short.data.clear();
    short.message = short.message.chars().take(MAX_MESSAGE).collect();
    line(&short)
}

/// The event of a line. `None`: the line is damaged, or of a version that knows other kinds.
pub(super) fn decode(line: &[u8]) -> Option<Event> {
    serde_json::from_slice(line).ok()
}

/// Something that can be read at any place.
pub(super) trait ReadAt {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
}

/// The lines of a file from the last one to the first, without their ends.
pub(super) struct Backwards<'s, S> {
    source: &'s S,
    /// Where the bytes begin that are held.
    at: u64,
    /// Bytes that were read and not returned: lines, the last one without its end.
    held: Vec<u8>,
    done: bool,
}

impl<'s, S: ReadAt> Backwards<'s, S> {
    /// `end`: where the last complete line ends.
    pub(super) fn new(source: &'s S, end: u64) -> io::Result<Self> {
        let mut lines = Self { source, at: end, held: Vec::new(), done: end == 0 };
        if !lines.done {
            lines.read()?;
            if lines.held.last() == Some(&b'\n') {
                lines.held.pop();
            }
        }
        Ok(lines)
    }

    fn read(&mut self) -> io::Result<()> {
        let from = self.at.saturating_sub(CHUNK);
        let mut bytes = vec![0; usize::try_from(self.at - from).unwrap_or_default()];
        self.source.read_exact_at(&mut bytes, from)?;
        bytes.append(&mut self.held);
        (self.held, self.at) = (bytes, from);
        Ok(())
    }
}

impl<S: ReadAt> Iterator for Backwards<'_, S> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if let Some(end) = self.held.iter().rposition(|byte| *byte == b'\n') {
                let line = self.held.split_off(end + 1);
                self.held.pop();
                return Some(Ok(line));
            }
            if self.at == 0 {
                self.done = true;
                return Some(Ok(std::mem::take(&mut self.held)));
            }
            if let Err(error) = self.read() {
                self.done = true;
                return Some(Err(error));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{EventKind, sample};

    impl ReadAt for Vec<u8> {
        fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            bytes.copy_from_slice(&self[at..at + bytes.len()]);
            Ok(())
        }
    }

    #[test]
    fn an_event_that_is_too_long_loses_its_data_and_the_end_of_its_message() {
        let mut event = sample::event(EventKind::SettingsChanged, 5);
        assert_eq!(decode(encode(&event).trim_ascii_end()), Some(event.clone()));
        event.data.insert("to".to_owned(), "x".repeat(MAX_LINE).into());
        event.message = "ä".repeat(MAX_LINE);
        let line = encode(&event);
        assert!(line.len() <= MAX_LINE);
        let read = decode(line.trim_ascii_end()).unwrap();
        assert_eq!((read.id, read.data.len(), read.message.chars().count()), (event.id, 0, MAX_MESSAGE));
    }

    #[test]
    fn an_empty_file_has_no_line() {
        assert_eq!(Backwards::new(&Vec::new(), 0).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn lines_come_back_in_reverse(lens in proptest::collection::vec(0_usize..40_000, 1..12)) {
            let lines: Vec<Vec<u8>> = lens.iter().zip(b'a'..).map(|(len, byte)| vec![byte; *len]).collect();
            let mut file: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
            let end = file.len() as u64;
            file.extend(b"torn"); // what is behind the end is not looked at
            let mut read: Vec<Vec<u8>> = Backwards::new(&file, end).unwrap().map(Result::unwrap).collect();
            read.reverse();
            prop_assert_eq!(read, lines);
        }
    }
}
