//! GPUs of containers: what this engine can do with them, what a container needs to get its own, and whether it did.
//!
//! Pure: [`cdi`] reads lists of devices, [`toolkit`] what NVIDIA's container runtime and its configuration say,
//! [`fields`] is a container's part, and [`verify`] judges what a container got. [`read`] and [`look`] read the host.

pub(super) mod cdi;
pub(super) mod fields;
pub(super) mod look;
pub(super) mod read;
pub(super) mod toolkit;
pub(super) mod verify;

use std::sync::atomic::{AtomicBool, Ordering};

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::KillContainerOptions;

use self::fields::{Fields, RUNTIME};
use self::verify::Wanted;
use super::container;
use super::engine::CHANGE;
use super::{DockerRuntime, Error};
use crate::gpu::device::FICTITIOUS;
use crate::gpu::{Device, Driver};
use crate::runtime::gpus::Lack;
use crate::runtime::{Fault, Launch, Target};

/// What could not be checked is logged once, since it is so for every session of the host.
#[derive(Default)]
pub(super) struct Unverified(AtomicBool);

impl Unverified {
    fn log(&self, why: &str) {
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!(why, "cannot check which GPUs containers have: sessions run without the check");
        }
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
        let graphics = if fields::wants_graphics(launch) { look::graphics(&devices).await } else { Vec::new() };
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

    /// Whether a container has exactly the GPUs of its session. One that has others is killed at once.
    pub(super) async fn verify_gpus(&self, target: &Target) -> Result<(), Error> {
        let Some(inspected) = self.inspected(target).await? else { return Ok(()) };
        let wanted = self.wanted(&container::gpu_uuids(&inspected))?;
        let (Some(id), Some(pid)) = (&inspected.id, pid_of(&inspected)) else { return Ok(()) };
        if wanted.is_empty() {
            return Ok(());
        }
        let engine = self.engine.connection().await?.info.pid;
        let first = look::First { container_id: id.clone(), pid, engine };
        let (nodes, majors) = match look::nodes_of(first).await {
            Ok(seen) => seen,
            Err(error) => {
                self.unverified.log(&format!("the devices of a container cannot be read: {error}"));
                return Ok(());
            }
        };
        if wanted.iter().any(|wanted| wanted.minor.is_none()) {
            self.unverified.log("the minor number of a GPU is not known");
        }
        let Err(wrong) = verify::check(&wanted, &nodes, &majors) else { return Ok(()) };
        // If it ended meanwhile, its process id may be another program's.
        let again = self.inspected(target).await?;
        if again.as_ref().and_then(pid_of) != Some(pid) {
            return Ok(());
        }
        self.kill(id).await?;
        let by_runtime = inspected.host_config.and_then(|host| host.runtime).is_some_and(|name| name == RUNTIME);
        Err(Error::start(Fault::Host, verify::explain(&wrong, by_runtime)))
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

/// The agent has just started: the step is tried again.
fn not_known_yet(uuid: &str) -> Error {
    Error::Failed(format!("whether GPU {uuid} is on this host is not known yet"))
}

/// The first process of a container that runs.
fn pid_of(inspected: &ContainerInspectResponse) -> Option<u32> {
    let state = inspected.state.as_ref().filter(|state| state.running == Some(true))?;
    u32::try_from(state.pid?).ok().filter(|pid| *pid > 0)
}
