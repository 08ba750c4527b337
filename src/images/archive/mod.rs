//! The archive of one image on its way to another node.
//!
//! An engine writes it as a tar archive, in one of two formats: up to Docker 24 with a directory for each layer, named by
//! an id that says nothing of the content, and from Docker 25 on as an OCI layout, whose blobs are named by their digests.
//! [`thin`] leaves out, on the sender, what the receiver has. [`splice`] makes one archive of several tries, on the receiver.
//! Both read and write without waiting for tasks, so they run on threads of their own, and [`pipe`] connects them.

pub mod pipe;
pub mod splice;
pub mod thin;

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;
/// The end of a tar archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Bytes of the name of an entry at most. Those of an image have 75: a digest, and a word.
pub const MAX_NAME: usize = 100;
/// Entries of an archive at most. An image has 127 layers at most, with four entries each.
pub const MAX_ENTRIES: usize = 4096;

/// An entry, as far as an engine needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    name: String,
    size: u64,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    /// To this path. A layer that an image has twice is a link to the first.
    Link(String),
}

impl Head {
    fn of(entry: &tar::Entry<'_, impl Read>) -> io::Result<Self> {
        let odd = |what: &str| io::Error::other(format!("the archive of an image has {what}"));
        let text = |path: &[u8]| {
            let text = String::from_utf8(path.to_vec()).ok();
            text.filter(|text| text.len() <= MAX_NAME).ok_or_else(|| odd("an entry whose name is too long"))
        };
        let kind = match entry.header().entry_type() {
            EntryType::Regular => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| odd("a link without a target"))?;
                Kind::Link(text(&target)?)
            }
            other => return Err(odd(&format!("an entry of the type {other:?}"))),
        };
        Ok(Self { name: text(&entry.path_bytes())?, size: entry.size(), kind })
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path(&self.name)?;
        header.set_size(self.size);
        header.set_mtime(0);
        match &self.kind {
            Kind::File => header.set_mode(0o644),
            Kind::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
            }
            Kind::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_link_name(target)?;
                header.set_mode(0o777);
            }
        }
        header.set_cksum();
        to.write_all(header.as_bytes())
    }

    /// Fills the last block.
    fn pad(&self, to: &mut impl Write) -> io::Result<()> {
        let over = usize::try_from(self.size % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { to.write_all(&END[over..BLOCK]) }
    }
}

/// Copies exactly so many bytes.
fn copy(from: &mut impl Read, to: &mut impl Write, size: u64) -> io::Result<()> {
    let copied = io::copy(&mut from.take(size), to)?;
    if copied == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Archives of images by hand, for tests.
#[cfg(test)]
pub(super) mod sample {
    use super::*;

    /// A file, or with a `None` a directory, or a link.
    pub(crate) enum Part<'a> {
        File(&'a str, &'a [u8]),
        Directory(&'a str),
        Link(&'a str, &'a str),
    }

    pub(crate) fn archive(parts: &[Part<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for part in parts {
            let mut header = Header::new_ustar();
            header.set_mode(0o600);
            match part {
                Part::File(name, bytes) => {
                    header.set_size(bytes.len() as u64);
                    builder.append_data(&mut header, name, *bytes).unwrap();
                }
                Part::Directory(name) => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_size(0);
                    builder.append_data(&mut header, name, io::empty()).unwrap();
                }
                Part::Link(name, target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, name, target).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }

    /// The names and contents in an archive, in order.
    pub(crate) fn contents(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        assert!(archive.ends_with(&END), "it has an end");
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let link = entry.link_name_bytes().map(|target| target.to_vec());
            (entry.path().unwrap().display().to_string(), link.unwrap_or(bytes))
        });
        entries.collect()
    }

    /// `sha256:…`
    pub(crate) fn digest(bytes: &[u8]) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        format!("sha256:{}", data_encoding::HEXLOWER.encode(digest.as_ref()))
    }
}
