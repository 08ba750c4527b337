//! Reads what an engine can do with GPUs: its own answers, the toolkit's, and the files that list CDI devices.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bollard::ClientVersion;
use bollard::models::{DeviceInfo, SystemInfo, SystemInfoCgroupDriverEnum};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::cdi::{self, Devices};
use super::fields::RUNTIME;
use super::{place, toolkit};
use crate::runtime::gpus::stale::Majors;
use crate::runtime::gpus::{EngineGpus, GpuSupport, HandOver, Toolkit};
use crate::types::NVIDIA_CLASS;

/// How long the runtime may take to say its version; it needs milliseconds.
const ANSWER: Duration = Duration::from_secs(5);
/// Bytes of that answer that are read; it has about 200.
const MAX_ANSWER: u64 = 4096;
/// The toolkit's configuration.
const SETTINGS: &str = "/etc/nvidia-container-runtime/config.toml";
/// Bytes of the toolkit's configuration that are read; it has about 1 KiB.
const MAX_SETTINGS: u64 = 64 << 10;
/// Files of one CDI directory that are read at most; a host has one or two.
const MAX_FILES: usize = 64;
/// The version of the API from which on the engine lists the CDI devices itself (Docker 28.2).
const LISTS_DEVICES: (usize, usize) = (1, 50);
/// The version of Docker from which on the nodes of CDI devices belong to the container's user.
const OWNS_NODES: [u32; 2] = [29, 5];

/// Asks the runtime for its version, once for each version of its file.
pub(in crate::runtime::docker) struct Reader {
    /// The class of the host's GPUs.
    class: String,
    hand_over: HandOver,
    /// The last answer. The lock spans no await.
    asked: Mutex<Option<Asked>>,
}

/// What a program answered.
#[derive(Clone, PartialEq, Eq)]
struct Asked {
    program: PathBuf,
    /// When the file was last changed.
    changed: Option<SystemTime>,
    /// `None`: nothing, or not in time. It is asked again each time, and this is logged once.
    answer: Option<String>,
}

impl Default for Reader {
    /// That of an agent without a configuration.
    fn default() -> Self {
        Self::new(HandOver::default(), NVIDIA_CLASS.to_owned())
    }
}

impl Reader {
    pub(in crate::runtime::docker) fn new(hand_over: HandOver, class: String) -> Self {
        Self { class, hand_over, asked: Mutex::default() }
    }

    /// What the engine that said this can do.
    pub(in crate::runtime::docker) async fn support(&self, said: &SystemInfo, api: &ClientVersion) -> GpuSupport {
        EngineGpus {
            class: self.class.clone(),
            hand_over: self.hand_over,
            toolkit: self.toolkit(said).await,
            cdi: self.listed(said, api).await,
            cdi_nodes_are_owned: owns_nodes(said.server_version.as_deref().unwrap_or_default()),
            majors: majors().await,
            has_systemd_cgroups: said.cgroup_driver == Some(SystemInfoCgroupDriverEnum::SYSTEMD),
        }
        .into()
    }

    /// The CDI devices of the engine; `None`: it has no CDI, or it is off.
    async fn listed(&self, said: &SystemInfo, api: &ClientVersion) -> Option<Devices> {
        let mut devices = listed(said, api).await?;
        if self.class == NVIDIA_CLASS {
            return Some(devices);
        }
        let class = format!("{}=", self.class);
        let locate = move || {
            for (_, device) in devices.iter_mut().filter(|(name, _)| name.starts_with(&class)) {
                device.place = place::of(Path::new("/"), &device.host_nodes);
            }
            devices
        };
        tokio::task::spawn_blocking(locate).await.ok()
    }

    async fn toolkit(&self, said: &SystemInfo) -> Option<Toolkit> {
        let runtime = said.runtimes.as_ref()?.get(RUNTIME)?;
        let program = runtime.path.as_deref().and_then(found);
        let answer = match &program {
            Some(program) => self.answer(program).await,
            None => None,
        };
        let settings = tokio::task::spawn_blocking(|| read_bounded(Path::new(SETTINGS), MAX_SETTINGS));
        let settings = settings.await.ok().flatten();
        Some(toolkit::toolkit(answer.as_deref(), settings.as_deref()))
    }

    /// What the runtime says of its version. An answer holds until its file changes.
    async fn answer(&self, program: &Path) -> Option<String> {
        let changed = tokio::fs::metadata(program).await.and_then(|file| file.modified()).ok();
        let before = self.lock().clone().filter(|asked| asked.program == program && asked.changed == changed);
        if let Some(Asked { answer: Some(answer), .. }) = before {
            return Some(answer);
        }
        let answer = ask(program).await;
        if answer.is_none() && before.is_none() {
            tracing::warn!(program = %program.display(), "NVIDIA's container runtime does not say its version");
        }
        *self.lock() = Some(Asked { program: program.to_owned(), changed, answer: answer.clone() });
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Option<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program of a runtime: its path, or as the engine finds its name.
fn found(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program));
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|path| path.join(program)).find(|path| path.is_file())
}

async fn ask(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let answer = async {
        let mut child = command.spawn().ok()?;
        let mut text = Vec::new();
        child.stdout.take()?.take(MAX_ANSWER).read_to_end(&mut text).await.ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    tokio::time::timeout(ANSWER, answer).await.ok().flatten()
}

/// The numbers of NVIDIA's device nodes; none where they cannot be read.
async fn majors() -> Majors {
    let text = tokio::fs::read_to_string("/proc/devices").await.unwrap_or_default();
    Majors::of(&text)
}

/// The CDI devices of the engine; `None`: it has no CDI, or it is off.
async fn listed(said: &SystemInfo, api: &ClientVersion) -> Option<Devices> {
    let directories = said.cdi_spec_dirs.clone().filter(|directories| !directories.is_empty())?;
    let files = tokio::task::spawn_blocking(move || cdi::join(directories.iter().map(|path| files_of(path.as_ref()))));
    let files = files.await.unwrap_or_default();
    if (api.major_version, api.minor_version) < LISTS_DEVICES {
        return Some(files);
    }
    Some(cdi::discovered(said.discovered_devices.iter().flatten().filter_map(name), files))
}

fn name(device: &DeviceInfo) -> Option<String> {
    device.id.clone().filter(|_| device.source.as_deref() == Some("cdi"))
}

/// What the files of one directory list. A file that cannot be read, or is no specification, lists nothing, as for the
/// engine.
fn files_of(directory: &Path) -> Vec<Devices> {
    let is_specification = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(is_specification).take(MAX_FILES).collect();
    paths.sort();
    let devices = |path: PathBuf| {
        let text = read_bounded(&path, cdi::MAX_FILE)?;
        let log = |why: &String| tracing::debug!(file = %path.display(), why, "a CDI file is not a specification");
        cdi::devices_of(&text).inspect_err(log).ok()
    };
    paths.into_iter().filter_map(devices).collect()
}

/// The text of a file that is not longer than `most` bytes.
fn read_bounded(path: &Path, most: u64) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(most + 1).read_to_string(&mut text).ok()?;
    (text.len() as u64 <= most).then_some(text)
}

fn owns_nodes(version: &str) -> bool {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    matches!((parts.next().flatten(), parts.next().flatten()), (Some(major), Some(minor)) if [major, minor] >= OWNS_NODES)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nodes_of_cdi_belong_to_the_user_from_docker_29_5_on() {
        for (version, owned) in [("29.5.0", true), ("30.0.1-rc.1", true), ("29.4.9", false), ("20.10.24+dfsg1", false)]
        {
            assert_eq!(owns_nodes(version), owned, "{version}");
        }
        assert!(!owns_nodes(""));
    }

    /// Until another test that starts a program at this moment has let go of the file, it cannot be executed.
    async fn answer(reader: &Reader, program: &Path) -> Option<String> {
        for _ in 0..100 {
            if let Some(answer) = reader.answer(program).await {
                return Some(answer);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    #[tokio::test]
    async fn a_runtime_is_asked_again_once_its_file_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let (program, calls) = (directory.path().join("runtime"), directory.path().join("calls"));
        let says = |version: &str, age: u64| {
            let script = format!("#!/bin/sh\necho >>{}\necho {version}\n", calls.display());
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let file = fs::File::options().append(true).open(&program).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        let reader = Reader::default();
        assert_eq!(reader.answer(&program).await, None, "there is no such program");
        says("1.18", 20);
        for _ in 0..2 {
            assert_eq!(answer(&reader, &program).await.as_deref(), Some("1.18\n"));
        }
        assert_eq!(fs::read_to_string(&calls).unwrap(), "\n", "it was asked once");
        says("1.19", 10);
        assert_eq!(answer(&reader, &program).await.as_deref(), Some("1.19\n"));
    }

    #[tokio::test]
    async fn an_engine_without_cdi_lists_nothing_and_one_with_it_what_its_files_have() {
        let directory = tempfile::tempdir().unwrap();
        let list = "kind: nvidia.com/gpu\ndevices: [{name: GPU-1}, {name: GPU-2}]";
        fs::write(directory.path().join("nvidia.yaml"), list).unwrap();
        fs::write(directory.path().join("broken.json"), "{").unwrap();
        fs::write(directory.path().join("notes.txt"), list).unwrap();
        let api = |minor_version| ClientVersion { major_version: 1, minor_version };
        let said = SystemInfo {
            cdi_spec_dirs: Some(vec!["/absent".to_owned(), directory.path().display().to_string()]),
            discovered_devices: Some(vec![DeviceInfo {
                source: Some("cdi".to_owned()),
                id: Some("nvidia.com/gpu=GPU-2".to_owned()),
            }]),
            ..SystemInfo::default()
        };
        let names = async |said: &SystemInfo, minor| {
            listed(said, &api(minor)).await.map(|devices| devices.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(names(&SystemInfo::default(), 41).await, None);
        let files = ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"].map(str::to_owned).to_vec();
        assert_eq!(names(&said, 45).await, Some(files));
        assert_eq!(names(&said, 50).await, Some(vec!["nvidia.com/gpu=GPU-2".to_owned()]), "as the engine says");
    }
}
