//! Makes one archive of several tries, so that an engine that loads it does not notice that a stream broke.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use super::{END, Head, MAX_ENTRIES, copy};

/// An archive on its way to an engine.
pub struct Splice<W> {
    to: W,
    /// The names of the entries that the engine has whole.
    arrived: BTreeSet<String>,
    /// The entry that the engine has in part, and how many bytes of it.
    open: Option<(Head, u64)>,
}

impl<W: Write> Splice<W> {
    pub const fn new(to: W) -> Self {
        Self { to, arrived: BTreeSet::new(), open: None }
    }

    /// What need not be sent again.
    pub fn arrived(&self) -> Vec<String> {
        self.arrived.iter().cloned().collect()
    }

    /// Passes on what one try brings. After an error of `source` the next try goes on where this one ended.
    ///
    /// # Errors
    /// `source` broke off, or is another archive than that of the tries before; or the engine takes no more.
    pub fn take(&mut self, source: impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(source);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let head = Head::of(&entry)?;
            if self.arrived.contains(&head.name) {
                continue;
            }
            if self.arrived.len() >= MAX_ENTRIES {
                return Err(io::Error::other(format!("the archive of an image has more than {MAX_ENTRIES} entries")));
            }
            let had = self.begin(&head)?;
            copy(&mut entry, &mut io::sink(), had)?;
            self.go_on(&head, had, &mut entry)?;
            head.pad(&mut self.to)?;
            self.open = None;
            self.arrived.insert(head.name);
        }
        match &self.open {
            Some((head, _)) => Err(io::Error::other(format!("the archive has no {} any more", head.name))),
            None => Ok(()),
        }
    }

    /// The whole archive has been passed on.
    ///
    /// # Errors
    /// The engine takes no more.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&END)?;
        self.to.flush()?;
        Ok(self.to)
    }

    /// Begins an entry, or returns how much of it the engine has from an earlier try.
    fn begin(&mut self, head: &Head) -> io::Result<u64> {
        match &self.open {
            None => {
                head.write(&mut self.to)?;
                self.open = Some((head.clone(), 0));
                Ok(0)
            }
            Some((open, had)) if open == head => Ok(*had),
            Some((open, _)) => {
                let message = format!("the archive goes on with {}, and not with {}", head.name, open.name);
                Err(io::Error::other(message))
            }
        }
    }

    fn go_on(&mut self, head: &Head, had: u64, content: &mut impl Read) -> io::Result<()> {
        let mut piece = vec![0; 64 << 10];
        let mut passed = had;
        while passed < head.size {
            let read = content.read(&mut piece)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.to.write_all(&piece[..read])?;
            passed += u64::try_from(read).unwrap_or(0);
            self.open = Some((head.clone(), passed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sample::{Part, archive, contents};
    use super::super::thin::{LeftOut, Spool, thin};
    use super::*;

    /// Breaks after so many bytes.
    struct Torn<'a>(&'a [u8]);

    impl Read for Torn<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.0.read(into)
        }
    }

    fn whole() -> Vec<u8> {
        archive(&[
            Part::Directory("aa/"),
            Part::File("aa/layer.tar", &(0..3000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>()),
            Part::Link("bb/layer.tar", "../aa/layer.tar"),
            Part::File("cc/layer.tar", &[7; 700]),
            Part::File("manifest.json", b"[]"),
        ])
    }

    /// What a sender sends to a receiver that has these entries.
    fn sent(arrived: Vec<String>) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let out = LeftOut { entries: arrived.into_iter().collect(), ..LeftOut::default() };
        let mut to = Vec::new();
        thin(whole().as_slice(), &mut to, &out, &Spool::new(directory.path(), |_| Ok(()))).unwrap();
        to
    }

    proptest! {
        #[test]
        fn however_often_a_stream_breaks_the_engine_gets_the_same_archive(cuts in prop::collection::vec(0_usize..9000, 0..4)) {
            let mut splice = Splice::new(Vec::new());
            for cut in cuts {
                let sent = sent(splice.arrived());
                let before = splice.arrived.len();
                let broken = splice.take(Torn(&sent[..cut.min(sent.len() - END.len())]));
                // Only the end is missing.
                prop_assert!(broken.is_err(), "it broke");
                prop_assert!(splice.arrived.len() >= before);
            }
            splice.take(sent(splice.arrived()).as_slice()).unwrap();
            prop_assert_eq!(contents(&splice.finish().unwrap()), contents(&whole()));
        }
    }

    #[test]
    fn what_arrived_is_not_asked_for_again() {
        let mut splice = Splice::new(Vec::new());
        let sent = sent(Vec::new());
        splice.take(Torn(&sent[..5000])).unwrap_err();
        assert_eq!(splice.arrived(), ["aa/", "aa/layer.tar", "bb/layer.tar"]);
    }

    #[test]
    fn a_try_that_brings_something_else_is_refused() {
        let mut splice = Splice::new(Vec::new());
        let sent = sent(Vec::new());
        splice.take(Torn(&sent[..2000])).unwrap_err();
        let other = archive(&[Part::Directory("aa/"), Part::File("aa/layer.tar", &[1; 10])]);
        assert!(splice.take(other.as_slice()).unwrap_err().to_string().contains("goes on with"));
        let none = archive(&[]);
        assert!(splice.take(none.as_slice()).unwrap_err().to_string().contains("no aa/layer.tar any more"));
    }
}
