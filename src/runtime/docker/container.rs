//! Builds the configuration of a session's container, and reads back what an existing one was created from. Pure.
//!
//! The configuration is built field by field from a [`Launch`]; no part of a request is passed
//! through. The tests hold an allow-list of everything that may be sent to the engine.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary,
    HealthStatusEnum, HostConfig, HostConfigLogConfig, Mount as EngineMount, MountType, PortBinding as EnginePort,
    PortMap, PortSummary, RestartPolicy, RestartPolicyNameEnum,
};

use super::gpus::fields::Fields;
use super::{Config, CpuMode, Error, ending};
use crate::runtime::container::Renamed;
use crate::runtime::{Container, Exit, Fault, Found, Launch, PortBinding, Run};
use crate::types::{Bytes, Cores, HealthStatus, Init, Name, Resources, SessionId, Timestamp};

pub(super) const LABEL_CLUSTER: &str = "ostler.cluster";
pub(super) const LABEL_NODE: &str = "ostler.node";
pub(super) const LABEL_SESSION: &str = "ostler.session";
const LABEL_WORKSPACE: &str = "ostler.workspace";
pub(super) const LABEL_USER: &str = "ostler.user";
const LABEL_CORES: &str = "ostler.cores_milli";
const LABEL_MEMORY: &str = "ostler.memory_bytes";
const LABEL_GPUS: &str = "ostler.gpus";
/// What each GPU's memory was declared as, in bytes; 0: nothing.
const LABEL_GPU_MEMORY: &str = "ostler.gpu_memory_bytes";
/// Comma separated, empty where there are none.
const LABEL_GPU_UUIDS: &str = "ostler.gpu_uuids";

/// The names of inits: of s6-overlay, systemd and those that images bring to reap processes.
const INITS: [&str; 8] =
    ["init", "s6-svscan", "systemd", "tini", "tini-static", "dumb-init", "docker-init", "catatonit"];
/// Processes and threads of one session at most. A desktop with a browser runs some hundreds; a fork bomb ends here.
const PIDS: i64 = 4096;
/// A session's log on disk is at most `LOG_FILES` of this size.
const LOG_FILE_SIZE: &str = "10m";
const LOG_FILES: &str = "2";
/// Memory has a hard limit; swap has none (-1), because the host's operator decides how much swap there is.
/// Kernels without swap accounting limit no swap either, so the engine has no reason for a warning.
const SWAP_WITHOUT_LIMIT: i64 = -1;
/// The CPU shares of one core, as the engine counts them.
const SHARES_PER_CORE: u64 = 1024;
/// The smallest number of shares that the kernel accepts.
const LEAST_SHARES: u64 = 2;
const NANOS_PER_MILLICORE: u64 = 1_000_000;
/// Characters of the session's id in the host name, which shells show in prompts.
const HOSTNAME_LEN: usize = 12;
/// What the engine reports as the time of an event that has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The name that a session's container is created under.
pub(super) fn container_name(cluster: &Name, session: &SessionId) -> String {
    format!("ostler-{cluster}-{session}")
}

/// The parts of a container that need a call to the engine first.
pub(super) struct Surroundings<'a> {
    /// The name of a network that exists.
    pub(super) network: &'a str,
    /// The engine's volume for each of the launch's mounts, in the same order.
    pub(super) volumes: &'a [String],
    /// Whether the entry point is an init itself.
    pub(super) brings_init: bool,
    /// How many cores the engine has. It refuses a quota above them, which would limit nothing.
    pub(super) engine_cores: Cores,
    /// What hands it its GPUs, or keeps it from any.
    pub(super) gpus: &'a Fields,
}

/// The container that a launch describes.
///
/// # Errors
/// [`Fault::Workspace`] for a launch without an image, or with a variable whose name is empty or holds `=` or NUL.
pub(super) fn body(config: &Config, launch: &Launch, around: &Surroundings<'_>) -> Result<ContainerCreateBody, Error> {
    let needs_image = || Error::start(Fault::Workspace, "the Docker runtime needs an image");
    let image = launch.image.clone().ok_or_else(needs_image)?;
    let (exposed, published) = ports(config, launch);
    Ok(ContainerCreateBody {
        hostname: Some(launch.session.as_str().chars().take(HOSTNAME_LEN).collect()),
        image: Some(image),
        entrypoint: (!launch.entrypoint.is_empty()).then(|| launch.entrypoint.clone()),
        user: launch.run_as.clone(),
        cmd: (!launch.command.is_empty()).then(|| launch.command.clone()),
        env: Some(env(launch, around.gpus)?),
        labels: Some(labels(config, launch)),
        exposed_ports: Some(exposed),
        host_config: Some(HostConfig {
            memory: Some(signed(launch.resources.memory.get())),
            memory_swap: Some(SWAP_WITHOUT_LIMIT),
            pids_limit: Some(PIDS),
            shm_size: Some(signed(launch.shm.get())),
            init: Some(match launch.init {
                Init::Auto => !around.brings_init,
                Init::On => true,
                Init::Off => false,
            }),
            readonly_rootfs: Some(launch.read_only),
            tmpfs: Some(launch.tmpfs.iter().map(|path| (path.clone(), String::new())).collect()),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            log_config: Some(log_config()),
            network_mode: Some(around.network.to_owned()),
            port_bindings: Some(published),
            mounts: Some(mounts(launch, around.volumes)),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(config.cap_allow.clone()),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            runtime: around.gpus.runtime.clone(),
            device_requests: around.gpus.requests.clone(),
            group_add: around.gpus.groups.clone(),
            ..cpu_limit(config.cpu_mode, launch.resources.cores, around.engine_cores)
        }),
        ..ContainerCreateBody::default()
    })
}

/// Whether this is the command line of an init, which must be the container's first process, or wants to be.
pub(super) fn is_init(words: &[String]) -> bool {
    let program = words.first().map(|word| word.rsplit('/').next().unwrap_or(word));
    program.is_some_and(|program| INITS.contains(&program))
}

/// A host configuration that limits the CPU and does nothing else.
fn cpu_limit(mode: CpuMode, cores: Cores, engine_cores: Cores) -> HostConfig {
    match mode {
        CpuMode::Quota => HostConfig {
            nano_cpus: Some(signed(cores.min(engine_cores).milli().saturating_mul(NANOS_PER_MILLICORE))),
            ..HostConfig::default()
        },
        CpuMode::Shares => {
            let shares = cores.milli().saturating_mul(SHARES_PER_CORE) / 1000;
            HostConfig { cpu_shares: Some(signed(shares.max(LEAST_SHARES))), ..HostConfig::default() }
        }
    }
}

fn log_config() -> HostConfigLogConfig {
    let config = [("max-size", LOG_FILE_SIZE), ("max-file", LOG_FILES)];
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(config.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
    }
}

fn env(launch: &Launch, gpus: &Fields) -> Result<Vec<String>, Error> {
    let mut env: BTreeMap<&str, &str> = gpus.env_defaults.iter().map(|(name, value)| (*name, value.as_str())).collect();
    env.extend(launch.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    env.extend(gpus.env.iter().map(|(name, value)| (*name, value.as_str())));
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        let odd = format!("`{}` is not the name of an environment variable", name.escape_debug());
        return Err(Error::start(Fault::Workspace, odd));
    }
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

/// Always sets every label of ours, so that an image's label of the same key never counts.
fn labels(config: &Config, launch: &Launch) -> HashMap<String, String> {
    let labels = [
        (LABEL_CLUSTER, config.cluster.to_string()),
        (LABEL_NODE, config.node.to_string()),
        (LABEL_SESSION, launch.session.to_string()),
        (LABEL_WORKSPACE, launch.workspace.to_string()),
        (LABEL_USER, launch.user.to_string()),
        (LABEL_CORES, launch.resources.cores.milli().to_string()),
        (LABEL_MEMORY, launch.resources.memory.get().to_string()),
        (LABEL_GPUS, launch.resources.gpus.to_string()),
        (LABEL_GPU_MEMORY, launch.gpu_memory.unwrap_or_default().get().to_string()),
        (LABEL_GPU_UUIDS, launch.gpu_uuids.join(",")),
    ];
    labels.map(|(key, value)| (key.to_owned(), value)).into()
}

fn ports(config: &Config, launch: &Launch) -> (Vec<String>, PortMap) {
    let mut published = PortMap::new();
    for port in &launch.ports {
        let binding = EnginePort {
            host_ip: Some(config.publish_address.to_string()),
            host_port: Some(port.host_port.to_string()),
        };
        let key = format!("{}/{}", port.container_port, port.protocol);
        published.entry(key).or_default().get_or_insert_default().push(binding);
    }
    (published.keys().cloned().collect(), published)
}

fn mounts(launch: &Launch, volumes: &[String]) -> Vec<EngineMount> {
    let mount = |(mount, volume): (&crate::runtime::Mount, &String)| EngineMount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.clone()),
        target: Some(mount.path.clone()),
        read_only: Some(mount.read_only),
        ..EngineMount::default()
    };
    launch.volumes.iter().zip(volumes).map(mount).collect()
}

/// The engine counts in signed 64 bits; the largest of them is as good as no limit.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Whether the labels of a container say that this node created it, for this session.
pub(super) fn is_ours(config: &Config, session: &SessionId, inspected: &ContainerInspectResponse) -> bool {
    let label = |key| label(inspected, key);
    label(LABEL_CLUSTER) == Some(config.cluster.as_str())
        && label(LABEL_NODE) == Some(config.node.as_str())
        && label(LABEL_SESSION) == Some(session.as_str())
}

/// What a line of the engine's list says of a container, or which label is missing or wrong.
///
/// The state is left out: a line lacks start time, exit code and the ports of stopped containers, which [`describe`]
/// adds.
pub(super) fn found(cluster: &Name, listed: &ContainerSummary) -> Result<Found, String> {
    let session: SessionId = parsed(listed, LABEL_SESSION)?;
    let expected = container_name(cluster, &session);
    let names = || listed.names.iter().flatten().map(|name| name.trim_start_matches('/'));
    let renamed = if names().any(|name| name == expected) {
        None
    } else {
        Some(Renamed { name: names().next().unwrap_or_default().to_owned(), expected })
    };
    let cores = Cores::from_milli(parsed(listed, LABEL_CORES)?);
    let memory = Bytes::new(parsed(listed, LABEL_MEMORY)?);
    let gpu_uuids = listed.labels.as_ref().and_then(|labels| labels.get(LABEL_GPU_UUIDS)).map(String::as_str);
    Ok(Found {
        container_id: listed.id.clone().ok_or("it has no id")?,
        renamed,
        node: parsed(listed, LABEL_NODE)?,
        session,
        user: parsed(listed, LABEL_USER)?,
        workspace: parsed(listed, LABEL_WORKSPACE)?,
        resources: Resources::new(cores, memory, parsed(listed, LABEL_GPUS)?),
        gpu_uuids: uuids(gpu_uuids),
        gpu_memory: gpu_memory(listed),
        image: listed.image.clone(),
        ports: open_ports(listed),
        created_at: Timestamp::from_millis(listed.created.unwrap_or_default().saturating_mul(1000)),
        container: None,
    })
}

/// Adds what only an inspection tells.
pub(super) fn describe(found: &mut Found, inspected: &ContainerInspectResponse) {
    found.ports = host_ports(inspected);
    found.created_at = inspected.created.as_deref().and_then(|time| time.parse().ok()).unwrap_or(found.created_at);
    found.image = inspected.config.as_ref().and_then(|config| config.image.clone());
    found.container = Some(state(inspected));
}

/// The UUIDs of the GPUs that its session holds.
pub(super) fn gpu_uuids(inspected: &ContainerInspectResponse) -> Vec<String> {
    uuids(label(inspected, LABEL_GPU_UUIDS))
}

fn uuids(label: Option<&str>) -> Vec<String> {
    label.unwrap_or_default().split(',').filter(|uuid| !uuid.is_empty()).map(str::to_owned).collect()
}

fn label<'a>(inspected: &'a ContainerInspectResponse, key: &str) -> Option<&'a str> {
    inspected.config.as_ref()?.labels.as_ref()?.get(key).map(String::as_str)
}

fn parsed<T: std::str::FromStr>(listed: &ContainerSummary, key: &str) -> Result<T, String> {
    let labels = listed.labels.as_ref();
    let text = labels.and_then(|labels| labels.get(key)).ok_or_else(|| format!("it has no label {key}"))?;
    text.parse().map_err(|_| format!("its label {key} is `{}`", text.escape_debug()))
}

/// Containers of older versions have no such label.
fn gpu_memory(listed: &ContainerSummary) -> Option<Bytes> {
    let bytes: u64 = parsed(listed, LABEL_GPU_MEMORY).ok()?;
    (bytes > 0).then_some(Bytes::new(bytes))
}

/// The ports that the container publishes while it runs.
fn open_ports(listed: &ContainerSummary) -> Vec<PortBinding> {
    let binding = |port: &PortSummary| {
        let protocol = port.typ.as_ref()?.to_string().parse().ok()?;
        Some(PortBinding { container_port: port.private_port, protocol, host_port: port.public_port? })
    };
    let mut ports: Vec<PortBinding> = listed.ports.iter().flatten().filter_map(binding).collect();
    ports.sort();
    // The engine lists IPv4 and IPv6 of one port.
    ports.dedup();
    ports
}

/// The ports that the container was created with, running or not.
fn host_ports(inspected: &ContainerInspectResponse) -> Vec<PortBinding> {
    let bound = inspected.host_config.as_ref().and_then(|host| host.port_bindings.as_ref());
    let mut ports: Vec<PortBinding> = bound
        .into_iter()
        .flatten()
        .flat_map(|(key, bindings)| bindings.iter().flatten().filter_map(move |binding| host_port(key, binding)))
        .collect();
    ports.sort();
    ports
}

fn host_port(key: &str, binding: &EnginePort) -> Option<PortBinding> {
    let (container_port, protocol) = key.split_once('/')?;
    Some(PortBinding {
        container_port: container_port.parse().ok()?,
        protocol: protocol.parse().ok()?,
        host_port: binding.host_port.as_deref()?.parse().ok()?,
    })
}

/// The container's state in ostler's terms.
pub(super) fn state(inspected: &ContainerInspectResponse) -> Container {
    let Some(state) = &inspected.state else { return Container::Created };
    let run = Run(state.started_at.clone().unwrap_or_default());
    match state.status {
        Some(ContainerStateStatusEnum::PAUSED) => Container::Paused(run),
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::RESTARTING
            | ContainerStateStatusEnum::STOPPING,
        ) => Container::Running(run),
        Some(ContainerStateStatusEnum::EXITED) => Container::Exited(exit(run, state)),
        Some(ContainerStateStatusEnum::REMOVING) => {
            Container::Removing("another program is removing its container".to_owned())
        }
        Some(ContainerStateStatusEnum::DEAD) => Container::Removing(
            "its container is dead: another program began to remove it, and the engine could not".to_owned(),
        ),
        Some(ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EMPTY) | None => Container::Created,
    }
}

/// What the health check of the image found, while the container runs.
pub(super) fn health(inspected: &ContainerInspectResponse) -> Option<HealthStatus> {
    let state = inspected.state.as_ref().filter(|state| state.running == Some(true))?;
    match state.health.as_ref()?.status? {
        HealthStatusEnum::STARTING => Some(HealthStatus::Starting),
        HealthStatusEnum::HEALTHY => Some(HealthStatus::Healthy),
        HealthStatusEnum::UNHEALTHY => Some(HealthStatus::Unhealthy),
        HealthStatusEnum::NONE | HealthStatusEnum::EMPTY => None,
    }
}

fn exit(run: Run, state: &ContainerState) -> Exit {
    let code = state.exit_code.unwrap_or(0);
    let finished = state.finished_at.as_deref().filter(|time| *time != NEVER);
    Exit {
        run,
        code,
        oom: ending::oom(state.oom_killed.unwrap_or(false), code),
        never_ran: None,
        finished_at: finished.and_then(|time| time.parse::<Timestamp>().ok()),
    }
}

#[cfg(test)]
mod tests;
