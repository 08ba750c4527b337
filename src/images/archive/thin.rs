//! Leaves out of an archive what its receiver has.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, remove_file};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::{END, Head, Kind, copy};

/// What the blobs of an OCI layout are named by.
const BLOBS: &str = "blobs/sha256/";
/// A layer of an archive of Docker up to 24, in a directory of its own.
const LAYER: &str = "/layer.tar";
/// Bytes of a layer that are read at once.
const PIECE: usize = 64 << 10;
/// The layer that is being looked at.
const FILE: &str = "image-layer.tmp";

/// What the receiver has.
#[derive(Debug, Clone, Default)]
pub struct LeftOut {
    /// Layers, by the digests of their unpacked content.
    pub layers: BTreeSet<String>,
    /// Entries, by their names.
    pub entries: BTreeSet<String>,
}

/// Holds one layer while its digest is found out: the name of a layer of Docker up to 24 does not say it.
pub struct Spool {
    path: PathBuf,
    /// Whether there is room for so many bytes in that directory.
    has_room: Box<dyn Fn(u64) -> io::Result<()> + Send>,
}

impl Spool {
    /// Layers are held in this directory, in files without a name.
    pub fn new(directory: &Path, has_room: impl Fn(u64) -> io::Result<()> + Send + 'static) -> Self {
        Self { path: directory.join(FILE), has_room: Box::new(has_room) }
    }

    /// Takes a layer in. Returns it from its beginning, with its digest.
    fn hold(&self, layer: &mut impl Read, size: u64) -> io::Result<(File, String)> {
        (self.has_room)(size)?;
        let mut file = self.file()?;
        let (mut context, mut piece, mut left) = (Context::new(&SHA256), vec![0; PIECE], size);
        while left > 0 {
            let read = layer.read(&mut piece)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            context.update(&piece[..read]);
            file.write_all(&piece[..read])?;
            left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        }
        file.seek(SeekFrom::Start(0))?;
        let digest = data_encoding::HEXLOWER.encode(context.finish().as_ref());
        Ok((file, format!("sha256:{digest}")))
    }

    /// A file of its own, which goes with its last user. A stream that broke may still hold a layer when the next begins.
    fn file(&self) -> io::Result<File> {
        // An agent that was killed may have left one.
        let _ = remove_file(&self.path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&self.path)?;
        let _ = remove_file(&self.path);
        Ok(file)
    }
}

/// Copies an archive, without what is left out.
///
/// # Errors
/// `source` broke off or is no archive of an image, `to` takes no more, or there is no room for a layer.
pub fn thin(source: impl Read, to: &mut impl Write, out: &LeftOut, spool: &Spool) -> io::Result<()> {
    let mut archive = tar::Archive::new(source);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let head = Head::of(&entry)?;
        if out.entries.contains(&head.name) || is_known_blob(&head, out) {
            continue;
        }
        let must_look = head.kind == Kind::File && head.name.ends_with(LAYER) && !out.layers.is_empty();
        if must_look {
            let (mut layer, digest) = spool.hold(&mut entry, head.size)?;
            if !out.layers.contains(&digest) {
                put(&head, &mut layer, to)?;
            }
        } else {
            put(&head, &mut entry, to)?;
        }
    }
    to.write_all(&END)?;
    to.flush()
}

/// Blobs of graph drivers are unpacked layers. Those of containerd are packed, and no receiver names their digests.
fn is_known_blob(head: &Head, out: &LeftOut) -> bool {
    let digest = head.name.strip_prefix(BLOBS).map(|hex| format!("sha256:{hex}"));
    digest.is_some_and(|digest| out.layers.contains(&digest))
}

fn put(head: &Head, content: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    head.write(to)?;
    copy(content, to, head.size)?;
    head.pad(to)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Part, archive, contents, digest};
    use super::*;

    /// What is left of an archive, and the room that was asked for.
    fn thinned(whole: &[u8], layers: &[String], entries: &[&str]) -> Vec<(String, Vec<u8>)> {
        let directory = tempfile::tempdir().unwrap();
        let out = LeftOut {
            layers: layers.iter().cloned().collect(),
            entries: entries.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mut to = Vec::new();
        thin(whole, &mut to, &out, &Spool::new(directory.path(), |_| Ok(()))).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
        contents(&to)
    }

    fn names(of: &[(String, Vec<u8>)]) -> Vec<&str> {
        of.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn two_layers_that_are_held_at_the_same_time_stay_apart() {
        let directory = tempfile::tempdir().unwrap();
        let hold = |content: &[u8]| {
            let spool = Spool::new(directory.path(), |_| Ok(()));
            spool.hold(&mut &*content, u64::try_from(content.len()).unwrap()).unwrap()
        };
        let (mut one, _) = hold(b"of the stream that broke");
        let (mut other, digest_of_other) = hold(b"of the next");
        for (file, expected) in [(&mut one, "of the stream that broke"), (&mut other, "of the next")] {
            let mut content = String::new();
            file.read_to_string(&mut content).unwrap();
            assert_eq!(content, expected);
        }
        assert_eq!(digest_of_other, digest(b"of the next"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn layers_of_an_old_archive_are_told_by_their_content() {
        let (one, two) = (vec![1; 1000], vec![2; 512]);
        let whole = archive(&[
            Part::Directory("aa/"),
            Part::File("aa/VERSION", b"1.0"),
            Part::File("aa/layer.tar", &one),
            Part::Directory("bb/"),
            Part::File("bb/layer.tar", &two),
            Part::Link("cc/layer.tar", "../aa/layer.tar"),
            Part::File("dd.json", b"{}"),
            Part::File("manifest.json", b"[]"),
        ]);
        let all = thinned(&whole, &[], &[]);
        assert_eq!(all, contents(&whole), "nothing is left out, and nothing is changed");
        let some = thinned(&whole, &[digest(&one), digest(b"unknown")], &[]);
        let left = ["aa/", "aa/VERSION", "bb/", "bb/layer.tar", "cc/layer.tar", "dd.json", "manifest.json"];
        assert_eq!(names(&some), left);
        assert_eq!(some[3].1, two, "a layer that was looked at is whole");
    }

    #[test]
    fn layers_of_an_oci_layout_are_told_by_their_names() {
        let (one, two) = (vec![1; 1000], vec![2; 512]);
        let blob = |bytes: &[u8]| format!("blobs/{}", digest(bytes).replace(':', "/"));
        let whole =
            archive(&[Part::File(&blob(&one), &one), Part::File(&blob(&two), &two), Part::File("oci-layout", b"{}")]);
        let left = thinned(&whole, &[digest(&two)], &[]);
        assert_eq!(left, [(blob(&one), one.clone()), ("oci-layout".to_owned(), b"{}".to_vec())]);
        assert_eq!(names(&thinned(&whole, &[], &["oci-layout"])), [blob(&one), blob(&two)]);
    }

    #[test]
    fn a_layer_waits_for_room_and_a_torn_archive_has_no_end() {
        let layer = vec![1; 100_000];
        let whole = archive(&[Part::File("aa/layer.tar", &layer)]);
        let directory = tempfile::tempdir().unwrap();
        let out = LeftOut { layers: [digest(b"")].into(), ..LeftOut::default() };
        let full = Spool::new(directory.path(), |size| {
            assert_eq!(size, 100_000);
            Err(io::ErrorKind::StorageFull.into())
        });
        let refused = thin(whole.as_slice(), &mut Vec::new(), &out, &full).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        for out in [LeftOut::default(), out] {
            let mut to = Vec::new();
            let spool = Spool::new(directory.path(), |_| Ok(()));
            assert!(thin(&whole[..50_000], &mut to, &out, &spool).is_err());
            assert!(!to.ends_with(&END));
        }
    }

    #[test]
    fn an_archive_of_anything_else_is_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Fifo);
        header.set_size(0);
        builder.append_data(&mut header, "pipe", io::empty()).unwrap();
        let odd = builder.into_inner().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), |_| Ok(()));
        assert!(thin(odd.as_slice(), &mut Vec::new(), &LeftOut::default(), &spool).is_err());
        let long = archive(&[Part::File(&"x".repeat(101), b"1")]);
        assert!(thin(long.as_slice(), &mut Vec::new(), &LeftOut::default(), &spool).is_err());
    }
}
