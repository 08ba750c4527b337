//! Memory, clock, token, disks and limits of this host.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use super::{QUICK, blocking};
use crate::capacity::probe::{cgroup, disk, host};
use crate::doctor::judge::clock::Ntp;
use crate::doctor::judge::{agent, limits as kernel, memory as pressure, token as key};
use crate::doctor::{Agent, Config};
use crate::identity;
use crate::runtime::EngineInfo;
use crate::types::{Bytes, Disk};

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

pub(super) async fn token(config: &Config) -> key::Facts {
    let (file, seeds) = (config.token_file.clone(), !config.seeds.is_empty());
    let read = blocking(move || identity::read(&file)).await;
    match read {
        Some(Ok(_)) => key::Facts::Good,
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
