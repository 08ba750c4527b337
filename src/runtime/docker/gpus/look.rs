//! Reads which devices a container has, and the graphics nodes of GPUs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, major, minor, open, openat, openat2, statat,
};
use rustix::io::Errno;

use super::fields::Graphics;
use super::verify::Node;
use crate::gpu::Device;
use crate::runtime::gpus::stale::Majors;

/// The character devices in a container's `/dev` that are looked at, at most. A container has about twenty.
const MAX_NODES: usize = 4096;
/// The group of root: an additional group 0 would give a session the rights of root's group on its files.
const ROOT: u32 = 0;

/// Why what was found is of no use.
const OTHER_NAMESPACE: &str = "its first process is in a namespace that the agent does not see";

/// The first process of a container.
#[derive(Debug, Clone)]
pub(super) struct First {
    pub(super) container_id: String,
    /// As the engine numbers it, which may have its own namespace of processes.
    pub(super) pid: u32,
    /// The engine's process, as the agent numbers it; `None`: not known.
    pub(super) engine: Option<u32>,
}

impl First {
    /// Its directory in the engine's view of `/proc`, so that its number means the same.
    fn directory(&self) -> PathBuf {
        let root = self.engine.map_or_else(|| PathBuf::from("/"), |pid| format!("/proc/{pid}/root").into());
        root.join(format!("proc/{}", self.pid))
    }

    /// Whether this is the container's process, and not one that has its number in another namespace, or after it.
    fn is_of_container(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.directory().join("cgroup"))?.contains(&self.container_id))
    }
}

/// The character devices in `/dev` of a container, and the major numbers of NVIDIA's driver.
///
/// # Errors
/// They cannot be read, for example because the agent is not root.
pub(super) async fn nodes_of(first: First) -> io::Result<(Vec<Node>, Vec<u32>)> {
    let read = move || {
        let nodes = nodes(&first.directory())?;
        if !first.is_of_container()? {
            return Err(io::Error::other(OTHER_NAMESPACE));
        }
        Ok((nodes, Majors::of(&fs::read_to_string("/proc/devices")?).of_gpus()))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

fn nodes(process: &Path) -> io::Result<Vec<Node>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(process.join("root"), flags, Mode::empty())?;
    // The image may have a link there, which would lead to the host's own devices.
    let devices = openat(&root, "dev", flags | OFlags::NOFOLLOW, Mode::empty())?;
    let mut nodes = Vec::new();
    for entry in Dir::read_from(&devices)?.take(MAX_NODES) {
        let entry = entry?;
        if let Some(node) = node(&devices, entry.file_name())? {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

/// The node of this name, if it is a character device.
fn node(directory: &OwnedFd, name: &std::ffi::CStr) -> io::Result<Option<Node>> {
    let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        // It was removed since it was listed.
        Err(Errno::NOENT) => return Ok(None),
        stat => stat?,
    };
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    let name = || name.to_string_lossy().into_owned();
    Ok(is_device.then(|| Node { name: name(), major: major(stat.st_rdev), minor: minor(stat.st_rdev) }))
}

/// Those of these paths at which a container has a character device.
///
/// # Errors
/// They cannot be looked up, for example because the agent is not root.
pub(super) async fn present(first: First, paths: BTreeSet<String>) -> io::Result<BTreeSet<String>> {
    let look = move || {
        let root =
            open(first.directory().join("root"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut present = BTreeSet::new();
        for path in paths {
            if is_device(&root, &path)? {
                present.insert(path);
            }
        }
        if !first.is_of_container()? {
            return Err(io::Error::other(OTHER_NAMESPACE));
        }
        Ok(present)
    };
    tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
}

/// Whether there is a character device at this path. A link of the image, which could lead to the host's own devices, is
/// not followed.
fn is_device(root: &OwnedFd, path: &str) -> io::Result<bool> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    match openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(found) => Ok(FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::CharacterDevice),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The graphics nodes of these devices. One whose driver made none has none, and a MIG instance has none.
pub(super) async fn graphics(devices: &[&Device]) -> Vec<Graphics> {
    let whole = devices.iter().filter(|device| device.mig_parent.is_none());
    let addresses: Vec<String> = whole.filter_map(|device| device.pci_address.clone()).collect();
    let read = move || addresses.iter().map(|address| graphics_of(address)).collect();
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn graphics_of(address: &str) -> Graphics {
    let listed = fs::read_dir(Path::new("/sys/bus/pci/devices").join(address).join("drm"));
    let names: BTreeSet<String> =
        listed.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let named = |prefix: &str| {
        let name = names.iter().find(|name| name.starts_with(prefix))?;
        Some(format!("/dev/dri/{name}"))
    };
    let (card, render) = (named("card"), named("renderD"));
    let group = |path: &String| fs::metadata(path).ok().map(|node| node.gid()).filter(|group| *group != ROOT);
    let groups = [&card, &render].into_iter().flatten().filter_map(group).collect();
    Graphics { card, render, groups }
}
