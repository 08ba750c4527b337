//! Workspaces: the catalogue entries from which sessions are created.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::gpu::{NVIDIA_CLASS, check_gpu_class};
use super::node::check_labels;
use super::text::words;
use super::{
    Bytes, Cores, ImageReference, Invalid, Labels, Name, Period, Protocol, Resources, SessionRequest, check_env,
    check_image_digest, schema,
};

const MAX_DESCRIPTION: usize = 1024;
const MAX_IMAGE: usize = 512;
const MAX_COMMAND_WORDS: usize = 256;
/// Bytes of a command's words together. Linux accepts 128 KiB of a single one (`MAX_ARG_STRLEN`).
const MAX_COMMAND_BYTES: usize = 64 * 1024;
const MAX_PORTS: usize = 32;
const MAX_TMPFS: usize = 16;
/// Characters of a user's or group's name in a container, as Linux has them.
const MAX_ACCOUNT: usize = 32;
const MAX_VOLUMES: usize = 16;
const MAX_PATH: usize = 1024;
const MAX_VOLUME_TEMPLATE: usize = 128;
/// Seconds. A profile of some GiB is saved within an hour; a stop that takes longer would look like one that hangs.
const MAX_STOP_GRACE: u64 = 3600;
/// Seconds. What takes longer than an hour to start hangs.
const MAX_READY_TIMEOUT: u64 = 3600;
/// Docker rejects a container with less than 6 MiB.
const MIN_MEMORY: Bytes = Bytes::mib(6);
/// The smallest share of a core that a CPU quota with a period of 100 ms expresses.
const MIN_CORES: Cores = Cores::from_milli(10);
/// No host has more GPUs: a larger number is a typing error.
pub(super) const MAX_GPUS: u32 = 1024;

/// When a node asks the registry for a newer image of the same tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Only if the node does not have the image.
    Missing,
    /// Once a day: one node asks for the cluster, and those that have another digest pull. Sessions do not wait for it.
    #[default]
    Daily,
    /// Before every start. If the pull fails, the node uses the image that it has.
    Always,
}
words!(PullPolicy { Missing => "missing", Daily => "daily", Always => "always" });

/// Whether a process of the engine's is the session's init: it passes signals on and reaps processes without a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// On, unless the entry point is an init itself, such as that of s6-overlay, systemd, tini or dumb-init.
    #[default]
    Auto,
    On,
    Off,
}
words!(Init { Auto => "auto", On => "on", Off => "off" });

/// What the host does with a running session after the host or its engine restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnHostRestart {
    #[default]
    Start,
    Stop,
}
words!(OnHostRestart { Start => "start", Stop => "stop" });

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuCapability {
    Compute,
    Utility,
    Graphics,
    Video,
    Display,
    /// 32-bit libraries.
    Compat32,
}
words!(GpuCapability {
    Compute => "compute",
    Utility => "utility",
    Graphics => "graphics",
    Video => "video",
    Display => "display",
    Compat32 => "compat32",
});

/// A port that the workspace listens on inside its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    #[schema(minimum = 1, maximum = 65535, example = 8080)]
    pub container_port: u16,
    #[serde(default)]
    pub protocol: Protocol,
}

/// How the host finds out that a session can be used: it connects to a port of the session until that succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// A TCP port of the workspace.
    #[schema(minimum = 1, maximum = 65535, example = 8080)]
    pub port: u16,
    /// A path that answers over HTTP with a status of 2xx, 3xx or 401. Without one, a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024, pattern = "^/[!-~]*$")]
    pub path: Option<String>,
    /// After this time the session's message says why it is not ready. The host goes on trying.
    #[serde(default = "default_ready_timeout")]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: u64,
}

/// A named volume in the container. Never a path of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// May contain `{user}` and `{workspace}`: `home-{user}` is one volume per user.
    #[schema(
        max_length = 128,
        pattern = r"^([a-z0-9]|\{user\}|\{workspace\})(([a-z0-9._-]|\{user\}|\{workspace\}){0,61}([a-z0-9]|\{user\}|\{workspace\}))?$"
    )]
    pub name: String,
    /// Where the volume is mounted in the container; absolute.
    #[schema(
        max_length = 1024,
        pattern = r"^/(?!(proc|sys|dev)(/|$))(?!\.{1,2}(/|$))[^/:,\x00]+(/(?!\.{1,2}(/|$))[^/:,\x00]+)*$"
    )]
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
    /// The leader may place the session on a host that does not have the volume yet.
    #[serde(default)]
    pub roam: bool,
}

/// A catalogue entry from which sessions are created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    pub name: Name,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 1024)]
    pub description: String,
    /// An image reference as in Docker. Only the process runtime works without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 512, pattern = "^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]
    pub image: Option<String>,
    /// Pins its sessions to this digest of the image's repository, wherever the tag has moved. Of an image for several
    /// platforms it is the digest of the index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^sha256:[0-9a-f]{64}$")]
    pub image_digest: Option<String>,
    /// Replaces the entry point of the image, and its command as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = schema::entrypoint, required = false)]
    pub entrypoint: Vec<String>,
    /// Replaces the command of the image; its entry point stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = schema::command, required = false)]
    pub command: Vec<String>,
    /// The user in the container, as `user`, `user:group` or their numbers. Without it, the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 65, pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$")]
    pub run_as: Option<String>,
    #[serde(default)]
    pub init: Init,
    #[schema(schema_with = schema::session_cores)]
    pub cores: Cores,
    #[schema(schema_with = schema::session_memory)]
    pub memory_bytes: Bytes,
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1024)]
    pub gpus: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub ports: Vec<Port>,
    /// When a session can be used. Without it, as soon as it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// Values may contain `{user}`, `{session}` and `{secret}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = schema::env, required = false)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub volumes: Vec<VolumeMount>,
    /// Paths of the container that are kept in memory, empty at each start. They count as the session's memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = schema::tmpfs, required = false)]
    pub tmpfs: Vec<String>,
    /// Nothing but volumes and `tmpfs` can be written.
    #[serde(default)]
    pub read_only: bool,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = schema::labels, required = false)]
    pub constraints: Labels,
    /// A network of the node's `runtime.networks`. Without it, ostler's own, where sessions cannot reach each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    #[serde(default = "default_gpu_capabilities")]
    pub gpu_capabilities: Vec<GpuCapability>,
    /// Memory that a session needs on each of its GPUs. The node admits the session where so much is neither declared
    /// by others nor in use; it does not limit the session to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::session_memory_or_null, required = false)]
    pub gpu_memory_bytes: Option<Bytes>,
    /// The class of GPUs that it needs, as `amd.com/gpu`. Without it, NVIDIA's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63, pattern = r"^[a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9._-]*$")]
    pub gpu_class: Option<String>,
    #[serde(default = "default_shm")]
    pub shm_bytes: Bytes,
    #[serde(default)]
    pub pull: PullPolicy,
    /// Every node that may run its sessions pulls the image before the first session needs it.
    #[serde(default)]
    pub prepull: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub ttl_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub idle_timeout_seconds: Option<u64>,
    /// How long the session's processes have to end by themselves when it is stopped or removed; then they are killed.
    #[serde(default = "default_stop_grace")]
    #[schema(minimum = 0, maximum = 3600)]
    pub stop_grace_seconds: u64,
    #[serde(default)]
    pub on_host_restart: OnHostRestart,
}

fn default_gpu_capabilities() -> Vec<GpuCapability> {
    vec![GpuCapability::Compute, GpuCapability::Utility, GpuCapability::Graphics, GpuCapability::Video]
}

/// As Docker's.
const fn default_stop_grace() -> u64 {
    10
}

/// A desktop is up within a minute.
const fn default_ready_timeout() -> u64 {
    60
}

const fn default_shm() -> Bytes {
    Bytes::mib(512)
}

impl Workspace {
    /// A workspace with every default.
    pub fn new(name: Name, cores: Cores, memory: Bytes) -> Self {
        Self {
            name,
            description: String::new(),
            image: None,
            image_digest: None,
            entrypoint: Vec::new(),
            command: Vec::new(),
            run_as: None,
            init: Init::default(),
            cores,
            memory_bytes: memory,
            gpus: 0,
            ports: Vec::new(),
            ready: None,
            env: BTreeMap::new(),
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            read_only: false,
            constraints: Labels::new(),
            network: None,
            gpu_capabilities: default_gpu_capabilities(),
            gpu_memory_bytes: None,
            gpu_class: None,
            shm_bytes: default_shm(),
            pull: PullPolicy::default(),
            prepull: false,
            ttl_seconds: None,
            idle_timeout_seconds: None,
            stop_grace_seconds: default_stop_grace(),
            on_host_restart: OnHostRestart::default(),
        }
    }

    /// The image that its sessions are made from: `image`, or that of `image_digest` in the same repository. Nodes are
    /// asked for this one, and never for the field `image` alone.
    pub fn image_reference(&self) -> Option<String> {
        let image = self.image.as_ref()?;
        let pinned = self.image_digest.as_ref().and_then(|digest| Some(self.tag()?.at_digest(digest)));
        Some(pinned.map_or_else(|| image.clone(), String::from))
    }

    /// What the field `image` names, pinned or not. `None`: nothing that a node could pull.
    pub fn tag(&self) -> Option<ImageReference> {
        ImageReference::parse(self.image.as_ref()?).ok()
    }

    /// How long a session may be unused before it is stopped.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout_seconds.map(Duration::from_secs)
    }

    /// The class of the GPUs that it needs.
    pub fn gpu_class(&self) -> &str {
        self.gpu_class.as_deref().unwrap_or(NVIDIA_CLASS)
    }

    pub const fn resources(&self) -> Resources {
        Resources::new(self.cores, self.memory_bytes, self.gpus)
    }

    /// The workspace with a request applied: the request's values win, and its maps are merged in.
    pub fn resolve(&self, request: &SessionRequest) -> Self {
        let mut resolved = self.clone();
        resolved.cores = request.cores.unwrap_or(self.cores);
        resolved.memory_bytes = request.memory_bytes.unwrap_or(self.memory_bytes);
        resolved.gpus = request.gpus.unwrap_or(self.gpus);
        resolved.ttl_seconds = request.ttl_seconds.or(self.ttl_seconds);
        resolved.idle_timeout_seconds = request.idle_timeout_seconds.or(self.idle_timeout_seconds);
        resolved.env.extend(request.env.clone());
        resolved.constraints.extend(request.constraints.clone());
        resolved
    }

    /// Checks what the types of the fields do not.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.description.len() > MAX_DESCRIPTION {
            return Err(Invalid::new("description", format!("expected at most {MAX_DESCRIPTION} bytes")));
        }
        if let Some(image) = &self.image {
            check_image(image)?;
        } else if self.command.is_empty() && self.entrypoint.is_empty() {
            return Err(Invalid::new("image", "a workspace needs an image or, for the process runtime, a command"));
        }
        self.check_image_digest()?;
        check_words("entrypoint", &self.entrypoint)?;
        check_words("command", &self.command)?;
        self.run_as.as_deref().map_or(Ok(()), check_run_as)?;
        check_cores(self.cores)?;
        check_memory(self.memory_bytes)?;
        check_gpus(self.gpus)?;
        self.gpu_memory_bytes.map_or(Ok(()), check_gpu_memory)?;
        self.gpu_class.as_deref().map_or(Ok(()), |class| check_gpu_class("gpu_class", class))?;
        self.check_ports()?;
        self.ready.as_ref().map_or(Ok(()), |ready| ready.validate(&self.ports).map_err(|e| e.within("ready")))?;
        check_env(&self.env)?;
        self.check_volumes()?;
        check_labels("constraints", &self.constraints)?;
        if self.shm_bytes > self.memory_bytes && self.shm_bytes != default_shm() {
            return Err(Invalid::new("shm_bytes", "shared memory counts as memory; expected at most memory_bytes"));
        }
        if self.stop_grace_seconds > MAX_STOP_GRACE {
            let expected =
                format!("{} is out of range; expected 0 to {MAX_STOP_GRACE} seconds", self.stop_grace_seconds);
            return Err(Invalid::new("stop_grace_seconds", expected));
        }
        check_spans(self.ttl_seconds, self.idle_timeout_seconds)
    }

    fn check_image_digest(&self) -> Result<(), Invalid> {
        let Some(digest) = &self.image_digest else { return Ok(()) };
        check_image_digest("image_digest", digest)?;
        if self.image.is_none() {
            return Err(Invalid::new("image_digest", "a digest is one of an image; expected `image` beside it"));
        }
        let Some(image) = self.tag() else {
            let message = "not an image reference, which a digest needs; expected for example kasmweb/chrome:1.16.0";
            return Err(Invalid::new("image", message));
        };
        match image.digest().filter(|own| own != digest) {
            Some(own) => Err(Invalid::new("image_digest", format!("differs from the digest of `image`, {own}"))),
            None => Ok(()),
        }
    }

    fn check_ports(&self) -> Result<(), Invalid> {
        if self.ports.len() > MAX_PORTS {
            return Err(Invalid::new("ports", format!("{} ports; at most {MAX_PORTS}", self.ports.len())));
        }
        let mut seen = BTreeSet::new();
        for (i, port) in self.ports.iter().enumerate() {
            if port.container_port == 0 {
                return Err(Invalid::new(format!("ports[{i}].container_port"), "0 is not a port; expected 1 to 65535"));
            }
            if !seen.insert(port) {
                let twice = format!("{}/{} is listed twice", port.container_port, port.protocol);
                return Err(Invalid::new(format!("ports[{i}]"), twice));
            }
        }
        Ok(())
    }

    fn check_volumes(&self) -> Result<(), Invalid> {
        if self.volumes.len() > MAX_VOLUMES {
            return Err(Invalid::new("volumes", format!("{} volumes; at most {MAX_VOLUMES}", self.volumes.len())));
        }
        if self.tmpfs.len() > MAX_TMPFS {
            return Err(Invalid::new("tmpfs", format!("{} paths; at most {MAX_TMPFS}", self.tmpfs.len())));
        }
        let mut paths = BTreeSet::new();
        for (i, volume) in self.volumes.iter().enumerate() {
            volume.validate().map_err(|e| e.within(format!("volumes[{i}]")))?;
            if !paths.insert(&volume.path) {
                return Err(Invalid::new(format!("volumes[{i}].path"), format!("{} is mounted twice", volume.path)));
            }
        }
        for (i, path) in self.tmpfs.iter().enumerate() {
            let wrong = |reason: String| Invalid::new(format!("tmpfs[{i}]"), reason);
            check_mount_path(path).map_err(|expected| wrong(expected.to_owned()))?;
            if !paths.insert(path) {
                return Err(wrong(format!("{path} is mounted twice")));
            }
        }
        Ok(())
    }
}

impl Ready {
    /// A probe of a port over TCP, with the default timeout.
    pub const fn on(port: u16) -> Self {
        Self { port, path: None, timeout_seconds: default_ready_timeout() }
    }

    fn validate(&self, ports: &[Port]) -> Result<(), Invalid> {
        if !ports.contains(&Port { container_port: self.port, protocol: Protocol::Tcp }) {
            let expected = format!("{} is not a TCP port of the workspace; expected one of its ports", self.port);
            return Err(Invalid::new("port", expected));
        }
        let is_path = |path: &String| path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        if self.path.as_ref().is_some_and(|path| path.len() > MAX_PATH || !is_path(path)) {
            let expected = format!("expected a path such as /health, of at most {MAX_PATH} printable ASCII characters");
            return Err(Invalid::new("path", expected));
        }
        if !(1..=MAX_READY_TIMEOUT).contains(&self.timeout_seconds) {
            let expected =
                format!("{} is out of range; expected 1 to {MAX_READY_TIMEOUT} seconds", self.timeout_seconds);
            return Err(Invalid::new("timeout_seconds", expected));
        }
        Ok(())
    }
}

impl VolumeMount {
    fn validate(&self) -> Result<(), Invalid> {
        let plain = self.name.replace("{user}", "u").replace("{workspace}", "w");
        if self.name.len() > MAX_VOLUME_TEMPLATE || plain.parse::<Name>().is_err() {
            let expected =
                "expected a name of a-z, 0-9, `.`, `_`, `-` that may contain {user} and {workspace}; no host path";
            return Err(Invalid::new("name", expected));
        }
        check_mount_path(&self.path).map_err(|expected| Invalid::new("path", expected))
    }
}

/// Checks a path of the container that something is mounted at, or says what is expected.
fn check_mount_path(path: &str) -> Result<(), &'static str> {
    let components: Vec<&str> = path.split('/').skip(1).collect();
    let absolute = path.starts_with('/') && path.len() <= MAX_PATH;
    let clean =
        !components.iter().any(|c| c.is_empty() || matches!(*c, "." | "..")) && !path.contains(['\0', ':', ',']);
    let reserved = matches!(components.first(), Some(&("proc" | "sys" | "dev")));
    if absolute && clean && !reserved {
        return Ok(());
    }
    Err("expected an absolute path inside the container, not under /proc, /sys or /dev")
}

/// Checks a command or an entry point.
fn check_words(field: &str, words: &[String]) -> Result<(), Invalid> {
    // The bound of all words is half of what the kernel accepts of one.
    if let Some(long) = words.iter().position(|word| word.len() > MAX_COMMAND_BYTES) {
        let told = format!("{} bytes; expected at most {MAX_COMMAND_BYTES}", words[long].len());
        return Err(Invalid::new(format!("{field}[{long}]"), told));
    }
    let bytes: usize = words.iter().map(String::len).sum();
    if words.len() > MAX_COMMAND_WORDS || bytes > MAX_COMMAND_BYTES {
        let told = format!("{} words and {bytes} bytes", words.len());
        let bound = format!("expected at most {MAX_COMMAND_WORDS} words and {MAX_COMMAND_BYTES} bytes");
        return Err(Invalid::new(field, format!("{told}; {bound}")));
    }
    if let Some(wrong) = words.iter().position(|word| word.contains('\0')) {
        return Err(Invalid::new(format!("{field}[{wrong}]"), "a word cannot contain NUL"));
    }
    if words.first().is_some_and(String::is_empty) {
        return Err(Invalid::new(format!("{field}[0]"), "the program's name is empty"));
    }
    Ok(())
}

fn check_run_as(account: &str) -> Result<(), Invalid> {
    let name = |text: &str| {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        starts && text.len() <= MAX_ACCOUNT && text.chars().all(fine)
    };
    let (user, group) = account.split_once(':').map_or((account, None), |(user, group)| (user, Some(group)));
    if name(user) && group.is_none_or(name) {
        return Ok(());
    }
    let expected = format!(
        "`{}` is not a user of a container; expected user or user:group, as names or numbers",
        account.escape_debug()
    );
    Err(Invalid::new("run_as", expected))
}

/// Checks an image reference loosely: it rejects what no registry accepts, and leaves the rest to Docker.
fn check_image(image: &str) -> Result<(), Invalid> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
    let starts = image.starts_with(|c: char| c.is_ascii_alphanumeric());
    if image.len() > MAX_IMAGE || !starts || !image.chars().all(fine) {
        return Err(Invalid::new("image", "not an image reference; expected for example kasmweb/chrome:1.16.0"));
    }
    Ok(())
}

pub(super) fn check_cores(cores: Cores) -> Result<(), Invalid> {
    if cores < MIN_CORES {
        return Err(Invalid::new("cores", format!("{cores} is too small; a session needs at least {MIN_CORES} cores")));
    }
    Ok(())
}

pub(super) fn check_memory(memory: Bytes) -> Result<(), Invalid> {
    if memory < MIN_MEMORY {
        let least = format!("{memory} is too small; a session needs at least {MIN_MEMORY}");
        return Err(Invalid::new("memory_bytes", least));
    }
    Ok(())
}

pub(super) fn check_gpus(gpus: u32) -> Result<(), Invalid> {
    if gpus > MAX_GPUS {
        return Err(Invalid::new("gpus", format!("{gpus} is out of range; expected at most {MAX_GPUS} GPUs")));
    }
    Ok(())
}

fn check_gpu_memory(memory: Bytes) -> Result<(), Invalid> {
    check_memory(memory).map_err(|e| Invalid::new("gpu_memory_bytes", e.message))
}

pub(super) fn check_spans(ttl: Option<u64>, idle: Option<u64>) -> Result<(), Invalid> {
    for (field, seconds) in [("ttl_seconds", ttl), ("idle_timeout_seconds", idle)] {
        if let Some(seconds) = seconds
            && !(1..=Period::MAX.as_secs()).contains(&seconds)
        {
            let expected =
                format!("{seconds} is out of range; expected 1 to {} seconds, or leave it out", Period::MAX.as_secs());
            return Err(Invalid::new(field, expected));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
