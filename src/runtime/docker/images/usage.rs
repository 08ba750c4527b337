//! What else is on the file system of the images, as `docker system df` tells, and the logs of containers, which it
//! does not tell.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use bollard::ClientVersion;
use serde::{Deserialize, Deserializer};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::request;
use crate::runtime::docker::engine::{Engine, Failure};
use crate::runtime::images::DiskUsage;
use crate::types::Bytes;

/// Deadline of the whole answer: the engine reads every volume and every container's files. A prune that a person asked
/// for waits for it.
const WITHIN: Duration = Duration::from_secs(60);
/// Bytes of an answer. It lists containers, volumes and records of the build cache with up to 2 KiB each, and engines
/// of API 1.52 list all twice.
const MAX_ANSWER: usize = 32 << 20;
/// The version of the API from which on the engine can be asked without its images, of which it would list every layer.
const TAKES_TYPES: ClientVersion = ClientVersion { major_version: 1, minor_version: 42 };
/// Directories and files that are looked at for the logs of containers. Of more, their size is not told.
const MAX_LOG_ENTRIES: usize = 20_000;
/// Where the engine keeps volumes, and the logs and settings of each container, under its own directory.
const VOLUMES: &str = "volumes";
const CONTAINERS: &str = "containers";
/// What the names of log files have in common: `ID-json.log`, and `.1`, `.2.gz` and so on for those that are full.
const JSON_LOG: &str = "-json.log";
/// The directory of the logs of the driver `local`.
const LOCAL_LOGS: &str = "local-logs";
/// Bytes of a block in which the kernel counts the size of a file on the disk.
const BLOCK: u64 = 512;

/// What the engine tells, and what can be seen of its directory from here.
pub(super) async fn disk_usage(engine: &Engine) -> Result<DiskUsage, Failure> {
    let connection = engine.connection().await?;
    let path = if connection.docker.client_version() < TAKES_TYPES {
        "/system/df"
    } else {
        "/system/df?type=volume&type=build-cache&type=container"
    };
    let images = connection.info.images.as_ref().and_then(|images| images.path.clone());
    let (root, answer) = tokio::join!(
        Root::look(connection.info.data_root.clone(), images),
        request::get(engine, "system df", path, WITHIN, MAX_ANSWER)
    );
    let unreadable = |error: serde_json::Error| {
        Failure::Lost(format!("{}: cannot read the answer to `system df`: {error}", engine.socket()))
    };
    let told = read(&answer?).map_err(unreadable)?;
    Ok(DiskUsage { volumes: if root.has_volumes { told.volumes } else { Some(Bytes::ZERO) }, logs: root.logs, ..told })
}

/// What can be seen of the engine's own directory.
struct Root {
    /// Whether volumes are on the file system of the images, as far as that is known.
    has_volumes: bool,
    logs: Option<Bytes>,
}

impl Root {
    /// `root`: the engine's directory. A disk that hangs is not waited for longer than the engine.
    async fn look(root: Option<PathBuf>, images: Option<PathBuf>) -> Self {
        let unknown = Self { has_volumes: true, logs: None };
        let Some((root, images)) = root.zip(images) else { return unknown };
        let look = spawn_blocking(move || Self {
            has_volumes: is_beside(&root, VOLUMES, &images),
            logs: if is_beside(&root, CONTAINERS, &images) {
                logs(&root.join(CONTAINERS)).ok()
            } else {
                Some(Bytes::ZERO)
            },
        });
        timeout(WITHIN, look).await.ok().and_then(Result::ok).unwrap_or(unknown)
    }
}

/// Whether a directory of the engine is on the file system of the images. Where it cannot be seen, the engine's own
/// directory tells.
fn is_beside(root: &Path, directory: &str, images: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let found = device(&root.join(directory)).or_else(|_| device(root));
    found.ok().zip(device(images).ok()).is_none_or(|(one, other)| one == other)
}

/// What the logs of all containers take on the disk.
fn logs(containers: &Path) -> io::Result<Bytes> {
    let (mut sum, mut left) = (0_u64, MAX_LOG_ENTRIES);
    for container in entries(containers, &mut left)? {
        // A container may go while this looks.
        for entry in entries(&container, &mut left).unwrap_or_default() {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            let files = if name.contains(JSON_LOG) {
                vec![entry]
            } else if name == LOCAL_LOGS {
                entries(&entry, &mut left).unwrap_or_default()
            } else {
                Vec::new()
            };
            let sizes = files.iter().filter_map(|file| fs::symlink_metadata(file).ok());
            sum = sizes.fold(sum, |sum, file| sum.saturating_add(file.blocks().saturating_mul(BLOCK)));
        }
        if left == 0 {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
    }
    Ok(Bytes::new(sum))
}

/// The paths in a directory, of which `left` counts how many more may be looked at.
fn entries(directory: &Path, left: &mut usize) -> io::Result<Vec<PathBuf>> {
    let found: Vec<PathBuf> = fs::read_dir(directory)?.flatten().take(*left).map(|entry| entry.path()).collect();
    *left -= found.len();
    Ok(found)
}

/// The engine's answer, in the layout of API 1.52 and later, or in that of older ones; 1.52 has both.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    volume_usage: Option<Usage>,
    build_cache_usage: Option<Usage>,
    container_usage: Option<Usage>,
    #[serde(default, deserialize_with = "rows")]
    volumes: Option<Vec<Volume>>,
    #[serde(default, deserialize_with = "rows")]
    build_cache: Option<Vec<CacheRecord>>,
    #[serde(default, deserialize_with = "rows")]
    containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Usage {
    /// It is left out if it is 0.
    #[serde(default)]
    total_size: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volume {
    usage_data: Option<VolumeUsage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VolumeUsage {
    /// -1: the engine does not know it.
    size: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CacheRecord {
    #[serde(default)]
    size: i64,
    /// An image has it, too, and counts it.
    #[serde(default)]
    shared: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    /// It is left out if it is 0.
    #[serde(default)]
    size_rw: i64,
}

/// The rows of a list that is there. `null` is how an engine writes an empty one.
fn rows<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Some(Option::deserialize(list)?.unwrap_or_default()))
}

/// What the engine tells of all but the logs.
fn read(answer: &[u8]) -> serde_json::Result<DiskUsage> {
    let Answer { volume_usage, build_cache_usage, container_usage, volumes, build_cache, containers } =
        serde_json::from_slice(answer)?;
    let volumes = volumes.map(|rows| sum(rows.iter().filter_map(|row| row.usage_data.as_ref()).map(|row| row.size)));
    let build_cache = build_cache.map(|rows| sum(rows.iter().filter(|row| !row.shared).map(|row| row.size)));
    let containers = containers.map(|rows| sum(rows.iter().map(|row| row.size_rw)));
    Ok(DiskUsage {
        volumes: volume_usage.and_then(total).or(volumes),
        build_cache: build_cache_usage.and_then(total).or(build_cache),
        containers: container_usage.and_then(total).or(containers),
        logs: None,
    })
}

/// `None`: the engine does not know it.
fn total(usage: Usage) -> Option<Bytes> {
    u64::try_from(usage.total_size).ok().map(Bytes::new)
}

/// Of the sizes that are known.
fn sum(sizes: impl Iterator<Item = i64>) -> Bytes {
    Bytes::new(sizes.filter_map(|size| u64::try_from(size).ok()).fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(volumes: u64, build_cache: u64, containers: u64) -> DiskUsage {
        let [volumes, build_cache, containers] = [volumes, build_cache, containers].map(|n| Some(Bytes::new(n)));
        DiskUsage { volumes, build_cache, containers, logs: None }
    }

    #[test]
    fn the_layout_before_api_1_52_is_summed_as_docker_system_df_does() {
        let answer = br#"{
            "LayersSize": 1092588,
            "Images": [{"Id": "sha256:2b8f", "Size": 1092588, "SharedSize": 0, "Containers": 1}],
            "Containers": [
                {"Id": "e575", "Names": ["/top"], "SizeRw": 40, "SizeRootFs": 1092588, "State": "running"},
                {"Id": "f575", "Names": ["/idle"], "SizeRootFs": 1092588, "State": "exited"}],
            "Volumes": [
                {"Name": "home", "Driver": "local", "Scope": "local", "UsageData": {"Size": 300, "RefCount": 2}},
                {"Name": "nfs", "Driver": "other", "Scope": "local", "UsageData": {"Size": -1, "RefCount": 0}},
                {"Name": "odd", "Driver": "local", "Scope": "local", "UsageData": null}],
            "BuildCache": [
                {"ID": "a", "Type": "regular", "InUse": true, "Shared": false, "Size": 7},
                {"ID": "b", "Type": "regular", "InUse": false, "Shared": true, "Size": 51}],
            "BuilderSize": 58}"#;
        assert_eq!(read(answer).unwrap(), usage(300, 7, 40));
    }

    #[test]
    fn an_engine_with_nothing_but_images_says_so() {
        let answer = br#"{"LayersSize":0,"Images":[],"Containers":[],"Volumes":[],"BuildCache":null,"BuilderSize":0}"#;
        assert_eq!(read(answer).unwrap(), usage(0, 0, 0));
    }

    #[test]
    fn the_layout_of_api_1_53_has_the_sums() {
        let answer = br#"{
            "ContainerUsage": {"ActiveCount": 1, "TotalCount": 2, "Reclaimable": 1, "TotalSize": 40, "Items": []},
            "VolumeUsage": {"TotalCount": 1, "TotalSize": 300, "Items": [{"Name": "x", "UsageData": {"Size": 5}}]},
            "BuildCacheUsage": {}}"#;
        assert_eq!(read(answer).unwrap(), usage(300, 0, 40));
    }

    #[test]
    fn of_both_layouts_the_newer_counts_unless_it_lacks_a_size() {
        let answer = br#"{
            "Volumes": [{"Name": "x", "UsageData": {"Size": 5}}],
            "Containers": [{"SizeRw": 6}],
            "VolumeUsage": {"TotalCount": 1, "TotalSize": 300},
            "ContainerUsage": {"TotalCount": 1, "TotalSize": -1}}"#;
        assert_eq!(read(answer).unwrap(), DiskUsage { build_cache: None, ..usage(300, 0, 6) });
    }

    #[test]
    fn what_is_not_told_is_not_known() {
        assert_eq!(read(b"{}").unwrap(), DiskUsage::default());
        let only = br#"{"BuildCache": [{"Size": 9223372036854775807}, {"Size": 9223372036854775807}, {"Size": 9}]}"#;
        assert_eq!(read(only).unwrap().build_cache, Some(Bytes::new(u64::MAX)));
        assert!(read(b"<html>").is_err() && read(br#"{"Volumes": 1}"#).is_err());
    }

    #[test]
    fn logs_are_those_of_both_drivers_that_write_files() {
        let directory = tempfile::tempdir().unwrap();
        let container = directory.path().join("e575");
        fs::create_dir_all(container.join(LOCAL_LOGS)).unwrap();
        assert_eq!(logs(directory.path()).unwrap(), Bytes::ZERO);
        for name in ["e575-json.log", "e575-json.log.1", "local-logs/container.log", "config.v2.json"] {
            fs::write(container.join(name), vec![b'x'; 64 << 10]).unwrap();
        }
        let found = logs(directory.path()).unwrap();
        assert!((192 << 10..256 << 10).contains(&found.get()), "{found}");
        assert!(logs(&directory.path().join("absent")).is_err());
    }

    #[test]
    fn a_directory_with_more_entries_than_may_be_looked_at_is_read_up_to_there() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut left = 5;
        assert_eq!(entries(directory.path(), &mut left).unwrap().len(), 3);
        assert_eq!((entries(directory.path(), &mut left).unwrap().len(), left), (2, 0));
    }

    #[test]
    fn a_directory_on_another_file_system_is_not_beside_the_images() {
        assert!(is_beside(Path::new("/"), "there-is-no-such-directory", Path::new("/")));
        assert!(!is_beside(Path::new("/"), "proc", Path::new("/")));
        assert!(is_beside(Path::new("/absent"), "x", Path::new("/")), "it is not known");
    }
}
