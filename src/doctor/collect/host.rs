//! Memory, clock, token, disks and limits of this host.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use super::{Examiner, QUICK, blocking, mesh};
use crate::capacity::probe::{cgroup, disk, host};
use crate::doctor::judge::clock::Ntp;
use crate::doctor::judge::disk::Kept;
use crate::doctor::judge::{agent, limits as kernel, memory as pressure, token as key};
use crate::doctor::{Agent, Config};
use crate::identity::{self, Credentials};
use crate::runtime::EngineInfo;
use crate::types::{Bytes, Disk, EventFilter, EventKind, Timestamp};
use crate::{events, history};

/// systemd-timesyncd makes this file at its first synchronisation since the boot.
const TIMESYNC: &str = "/run/systemd/timesync/synchronized";

/// The agent knows the settings that were made on the command line; without it those of the file count.
pub(super) async fn memory(config: &Config, agent: &Agent, engine: Option<&EngineInfo>) -> pressure::Facts {
    let sample = host::Sampler::new().sample();
    let measured = engine.map_or_else(|| cgroup::own().limit_memory(sample.memory), |info| info.memory);
    let own = config.dev.physical_memory.unwrap_or(measured);
    let set = if config.memory_override.is_zero() { own } else { config.memory_override };
    let (physical, offered) = match agent.told() {
        Some(told) => {
            let memory = &told.here.resources.memory_bytes;
            (memory.physical.unwrap_or(own), memory.effective)
        }
        None => (own, set),
    };
    let stalled = std::fs::read_to_string("/proc/pressure/memory").ok().and_then(|text| pressure::stalled(&text));
    pressure::Facts { physical, swap: sample.swap.map_or(Bytes::ZERO, |swap| swap.total_bytes), offered, stalled }
}

/// `timedatectl` asks the kernel, which every NTP client tells.
pub(super) async fn ntp() -> Ntp {
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = match timeout(QUICK, asked).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    match answer.as_str() {
        "yes" => Ntp::Synchronised,
        "no" => Ntp::Not,
        _ if Path::new(TIMESYNC).exists() => Ntp::Synchronised,
        _ => Ntp::Unknown("timedatectl gives no answer on this host".to_owned()),
    }
}

pub(super) async fn token(
    config: &Config,
    agent: &Agent,
    by: &Examiner,
    credentials: Option<&Credentials>,
) -> key::Facts {
    let (file, seeds) = (config.token_file.clone(), !config.seeds.is_empty());
    let read = blocking(move || identity::read(&file)).await;
    match read {
        Some(Ok(_)) => match credentials {
            Some(credentials) => key::Facts::Good {
                key_id: Some(credentials.key_id.clone()),
                in_force: mesh::in_force(config, agent, by, credentials).await,
            },
            None => key::Facts::Good { key_id: None, in_force: key::InForce::Unknown },
        },
        Some(Err(identity::Error::Missing(file))) => key::Facts::Missing { file: file.display().to_string(), seeds },
        Some(Err(wrong)) => key::Facts::Refused(wrong.to_string()),
        None => key::Facts::Refused(format!("token file {} cannot be read in time", config.token_file.display())),
    }
}

/// The file systems of the images and of the data directory. What does not exist yet is on that of its parent.
pub(super) async fn disks(config: &Config, engine: Option<&EngineInfo>) -> Vec<Disk> {
    let images = config.images_path.clone().or_else(|| engine?.images.as_ref()?.path.clone());
    let root = engine.and_then(|info| info.data_root.clone());
    let paths: Vec<PathBuf> = [images, root, Some(config.data_dir.clone())].into_iter().flatten().collect();
    blocking(move || disk::all(&paths.iter().filter_map(|path| existing(path)).collect::<Vec<_>>()))
        .await
        .unwrap_or_default()
}

/// What the event log and the history take of the data directory.
pub(super) async fn kept(config: &Config) -> Vec<Kept> {
    let directories = [
        ("the event log", config.data_dir.join("events"), events::MAX_BYTES),
        ("the history", config.data_dir.join("history"), history::max_bytes()),
    ];
    let read = move || {
        let kept = |(what, path, most): (&'static str, PathBuf, u64)| {
            let bytes = Bytes::new(size(&path));
            Kept { what, path: path.display().to_string(), bytes, most: Bytes::new(most) }
        };
        directories.map(kept).into()
    };
    blocking(read).await.unwrap_or_default()
}

/// Bytes of the files in a directory; those below it are of nobody that ostler knows.
fn size(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(Metadata::is_file).map(|file| file.len()).sum()
}

/// The starts of the agent in the last [`agent::WITHIN`] that followed one that was not stopped.
pub(super) async fn unclean(config: &Config, now: Timestamp) -> Result<Vec<Timestamp>, String> {
    let directory = config.data_dir.join("events");
    let since = now.millis().saturating_sub(i64::try_from(agent::WITHIN.as_millis()).unwrap_or(i64::MAX));
    let filter = EventFilter {
        since: Some(Timestamp::from_millis(since)),
        kinds: [EventKind::AgentStarted].into(),
        ..EventFilter::default()
    };
    match blocking(move || events::scan(&directory, &filter)).await {
        Some(Ok(starts)) => Ok(agent::unclean(&starts)),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(format!("it was not read within {} s", QUICK.as_secs())),
    }
}

fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

pub(super) async fn limits(engine: Option<&EngineInfo>) -> kernel::Facts {
    kernel::Facts {
        unified: std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok(),
        unenforced: engine.map(|info| info.unenforced.clone()),
    }
}

/// The limit of open files of the agent's process.
pub(super) async fn files(pid: Option<u32>) -> Option<u64> {
    agent::file_limit(&std::fs::read_to_string(format!("/proc/{}/limits", pid?)).ok()?)
}
