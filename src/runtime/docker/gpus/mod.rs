//! GPUs of containers: what this engine can do with them, what a container needs to get its own, and whether it did.
//!
//! Pure: [`cdi`] reads lists of devices, [`toolkit`] what NVIDIA's container runtime and its configuration say,
//! [`fields`] is a container's part, and [`verify`] judges what a container got. [`read`] and [`look`] read the host.

pub(super) mod cdi;
pub(super) mod fields;
pub(super) mod look;
pub(super) mod place;
pub(super) mod read;
pub(super) mod toolkit;
pub(super) mod verify;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::KillContainerOptions;

use self::fields::{EGL_CARD, Fields, RUNTIME};
use self::look::First;
use self::verify::Wanted;
use super::container;
use super::engine::CHANGE;
use super::{DockerRuntime, Error};
use crate::gpu::device::FICTITIOUS;
use crate::gpu::{Device, Driver};
use crate::runtime::gpus::{Lack, Nodes};
use crate::runtime::{Fault, Launch, Target};
use crate::types::NVIDIA_CLASS;

/// What could not be checked is logged once, since it is so for every session of the host.
#[derive(Default)]
pub(super) struct Unverified(AtomicBool);

impl Unverified {
    /// The same for the user of the session.
    fn told(&self, why: &str) -> String {
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!(why, "cannot check which GPUs containers have: sessions run without the check");
        }
        format!("whether the session has its GPUs and no others was not verified: {why}")
    }
}

impl DockerRuntime {
    /// The part of a container that hands it the GPUs of its session.
    pub(super) async fn gpu_fields(&self, launch: &Launch) -> Result<Fields, Error> {
        let devices = self.known(&launch.gpu_uuids)?;
        let driver = self.gpus.borrow().driver.clone();
        let support = self.engine.connection().await?.info.gpus.clone();
        let devices: Vec<&Device> = devices.iter().collect();
        let lack = |lack: Lack| Error::start(Fault::Host, lack.to_string());
        let Some(way) = support.way(&devices, &driver).map_err(lack)? else { return Ok(Fields::none()) };
        // On GPUs of other makers, the graphics nodes are those for computing as well.
        let is_other = devices.iter().any(|device| device.class != NVIDIA_CLASS);
        let graphics =
            if is_other || fields::wants_graphics(launch) { look::graphics(&devices).await } else { Vec::new() };
        Ok(Fields::of(launch, &way, support.nodes_are_owned(&way), &graphics))
    }

    /// The devices of these UUIDs, without the fictitious ones of `[dev]`.
    fn known(&self, uuids: &[String]) -> Result<Vec<Device>, Error> {
        let snapshot = self.gpus.borrow().clone();
        let absent = |uuid: &String| match snapshot.driver {
            Driver::Unknown => not_known_yet(uuid),
            _ => Error::start(Fault::Host, format!("GPU {uuid} is not on this host any more")),
        };
        let real = uuids.iter().filter(|uuid| !uuid.starts_with(FICTITIOUS));
        real.map(|uuid| snapshot.device(uuid).cloned().ok_or_else(|| absent(uuid))).collect()
    }

    /// Whether a container has exactly the GPUs of its session. One that has others is killed at once. Returns what its
    /// user should know of them.
    pub(super) async fn verify_gpus(&self, target: &Target, launch: &Launch) -> Result<Option<String>, Error> {
        let Some(inspected) = self.inspected(target).await? else { return Ok(None) };
        let wanted = self.wanted(&container::gpu_uuids(&inspected))?;
        if wanted.is_empty() {
            return Ok(None);
        }
        let unverified = self.check(target, &inspected, &wanted).await?;
        let without_graphics = self.without_graphics(launch, &inspected).await;
        let remarks: Vec<String> = unverified.into_iter().chain(without_graphics).collect();
        Ok((!remarks.is_empty()).then(|| remarks.join("; ")))
    }

    /// Compares the devices of a container with those of its session. Returns why it could not, for people.
    async fn check(
        &self,
        target: &Target,
        inspected: &ContainerInspectResponse,
        wanted: &[Wanted],
    ) -> Result<Option<String>, Error> {
        let (Some(id), Some(pid)) = (&inspected.id, pid_of(inspected)) else { return Ok(None) };
        let engine = self.engine.connection().await?.info.clone();
        let first = First { container_id: id.clone(), pid, engine: engine.pid };
        let others = self.of_other_makers(wanted);
        let checked = if others.is_empty() {
            let runtime = inspected.host_config.as_ref().and_then(|host| host.runtime.as_deref());
            check_nvidia(first, wanted, runtime == Some(RUNTIME)).await
        } else {
            check_others(first, engine.gpus.nodes(&others.iter().collect::<Vec<_>>())).await
        };
        let message = match checked {
            Ok(None) => return Ok(None),
            Ok(Some(message)) => message,
            Err(why) => return Ok(Some(self.unverified.told(&why))),
        };
        // If it ended meanwhile, its process id may be another program's.
        let again = self.inspected(target).await?;
        if again.as_ref().and_then(pid_of) != Some(pid) {
            return Ok(None);
        }
        self.kill(id).await?;
        Err(Error::start(Fault::Host, message))
    }

    /// Why programs of this container cannot draw with its GPUs although they are to, for people. `None` for GPUs of
    /// other makers: they need no other nodes for it than those that were checked.
    async fn without_graphics(&self, launch: &Launch, inspected: &ContainerInspectResponse) -> Option<String> {
        let snapshot = self.gpus.borrow().clone();
        let devices: Vec<&Device> = launch.gpu_uuids.iter().filter_map(|uuid| snapshot.device(uuid)).collect();
        if !fields::wants_graphics(launch) || devices.iter().any(|device| device.class != NVIDIA_CLASS) {
            return None;
        }
        let env = inspected.config.as_ref().and_then(|config| config.env.as_ref());
        let is_set = |variable: &String| variable.split_once('=').is_some_and(|(name, _)| name == EGL_CARD);
        fields::without_graphics(&look::graphics(&devices).await, env.is_some_and(|env| env.iter().any(is_set)))
    }

    /// Those of these GPUs that are not NVIDIA's.
    fn of_other_makers(&self, wanted: &[Wanted]) -> Vec<Device> {
        let snapshot = self.gpus.borrow().clone();
        let devices = wanted.iter().filter_map(|wanted| snapshot.device(&wanted.uuid));
        devices.filter(|device| device.class != NVIDIA_CLASS).cloned().collect()
    }

    fn wanted(&self, uuids: &[String]) -> Result<Vec<Wanted>, Error> {
        let snapshot = self.gpus.borrow().clone();
        let real = uuids.iter().filter(|uuid| !uuid.starts_with(FICTITIOUS));
        let wanted = |uuid: &String| match snapshot.device(uuid) {
            None if snapshot.driver == Driver::Unknown => Err(not_known_yet(uuid)),
            device => Ok(Wanted { uuid: uuid.clone(), minor: device.and_then(|device| device.minor) }),
        };
        real.map(wanted).collect()
    }

    /// It must not run on with the devices of others, so it gets no time to end by itself.
    async fn kill(&self, id: &str) -> Result<(), Error> {
        let kill = |docker: Docker| async move { docker.kill_container(id, None::<KillContainerOptions>).await };
        match self.engine.ask("kill", CHANGE, kill).await {
            // It has ended by itself.
            Err(failure) if failure.is_conflict() || failure.is_not_found() => Ok(()),
            answer => answer.map_err(super::engine::Failure::or_try_again),
        }
    }
}

/// What is wrong with the GPUs of a container, for people. `by_runtime`: NVIDIA's container runtime handed them over.
///
/// # Errors
/// Why it cannot be checked.
async fn check_nvidia(first: First, wanted: &[Wanted], by_runtime: bool) -> Result<Option<String>, String> {
    let (nodes, majors) = look::nodes_of(first).await.map_err(unreadable)?;
    match verify::check(wanted, &nodes, &majors) {
        Err(wrong) => Ok(Some(verify::explain(&wrong, by_runtime))),
        Ok(()) if wanted.iter().any(|wanted| wanted.minor.is_none()) => {
            Err("the minor number of a GPU is not known".to_owned())
        }
        Ok(()) => Ok(None),
    }
}

/// The same of GPUs of other makers, by the paths of their nodes and of those of other GPUs.
async fn check_others(first: First, nodes: Option<Nodes>) -> Result<Option<String>, String> {
    let Nodes { own, others } = nodes.ok_or("the engine's CDI files do not tell the device nodes of a GPU")?;
    let present = look::present(first, own.union(&others).cloned().collect()).await.map_err(unreadable)?;
    Ok(verify::check_paths(&own, &others, &present).err().map(|wrong| verify::explain_other(&wrong)))
}

fn unreadable(error: io::Error) -> String {
    format!("the devices of its container cannot be read: {error}")
}

/// The agent has just started: the step is tried again.
fn not_known_yet(uuid: &str) -> Error {
    Error::Failed(format!("whether GPU {uuid} is on this host is not known yet"))
}

/// The first process of a container that runs.
fn pid_of(inspected: &ContainerInspectResponse) -> Option<u32> {
    let state = inspected.state.as_ref().filter(|state| state.running == Some(true))?;
    u32::try_from(state.pid?).ok().filter(|pid| *pid > 0)
}
