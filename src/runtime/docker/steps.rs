//! The steps of a session's life, each one or two calls to the engine.
//!
//! A step acts on the id of a container whose labels say that it is ours. It takes the id from the inspection
//! just before it; if there is none, it inspects the container itself, by its recorded id, else by its labels.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, StatsOptionsBuilder, StopContainerOptionsBuilder,
};
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::container::{self, LABEL_CLUSTER, LABEL_SESSION, Surroundings};
use super::engine::{CHANGE, Failure, LOOK};
use super::{DockerRuntime, blame, volumes};
use crate::runtime::{Container, Error, Fault, Found, Launch, Observed, Target};
use crate::types::{HealthStatus, Init, SessionId};

/// How long a stop may take after the grace period: the engine kills, then takes down process, network and file system.
const AFTER_GRACE: Duration = Duration::from_secs(30);
/// How long one attempt to remove a container may take. It frees the container's file system, which can be large: an
/// attempt that takes longer goes on in the engine, and the next one waits for it.
const REMOVAL: Duration = Duration::from_secs(30);
/// How often a removal that another caller began is checked.
const REMOVAL_POLL: Duration = Duration::from_millis(100);
/// Containers that a list inspects at the same time.
const LOOKS_AT_ONCE: usize = 8;
/// Deadline of an inspection for a list, which waits for all of them: half of [`LOOK`], so that one container that the
/// engine cannot describe does not hold up the start of the agent.
const LISTED_LOOK: Duration = Duration::from_secs(5);

/// A container of ours, as the last inspection showed it.
pub(super) struct Own {
    pub(super) id: String,
    pub(super) state: Container,
    pub(super) health: Option<HealthStatus>,
    pub(super) network: Option<String>,
}

impl Own {
    fn of(inspected: ContainerInspectResponse) -> Self {
        Self {
            state: container::state(&inspected),
            health: container::health(&inspected),
            network: inspected.host_config.and_then(|host| host.network_mode),
            id: inspected.id.unwrap_or_default(),
        }
    }
}

impl DockerRuntime {
    /// The state of the session's container.
    pub(super) async fn observe_container(&self, target: &Target) -> Result<Observed, Error> {
        let Some(mut own) = self.own(target).await? else { return Ok(Container::Absent.into()) };
        if let Container::Exited(exit) = &mut own.state {
            self.complete(&own.id, exit).await;
        }
        let observed = Observed { container: own.state.clone(), health: own.health };
        self.sights.keep(&target.session, own, Instant::now());
        Ok(observed)
    }

    /// The session's container, if there is one: the one of the recorded id, else the first with the session's labels.
    async fn own(&self, target: &Target) -> Result<Option<Own>, Error> {
        Ok(self.inspected(target).await?.map(Own::of))
    }

    /// What the engine says of the session's container.
    pub(super) async fn inspected(&self, target: &Target) -> Result<Option<ContainerInspectResponse>, Error> {
        let Some(id) = self.id_of(target).await? else { return Ok(None) };
        let mut inspected = self.inspect(&id).await?;
        if let Some(inspected) = &mut inspected {
            inspected.id.get_or_insert(id);
        }
        Ok(inspected.filter(|inspected| container::is_ours(&self.config, &target.session, inspected)))
    }

    async fn id_of(&self, target: &Target) -> Result<Option<String>, Error> {
        let Target { session, container_id } = target;
        if container_id.is_some() {
            return Ok(container_id.clone());
        }
        let listed = self.summaries(&[(LABEL_SESSION, session.as_str())]).await?;
        let ours = listed.into_iter().filter(|found| found.node == self.config.node && found.session == *session);
        Ok(ours.min_by_key(Found::rank).map(|found| found.container_id))
    }

    pub(super) async fn existing(&self, target: &Target) -> Result<Own, Error> {
        let absent = || Error::NotFound(container::container_name(&self.config.cluster, &target.session));
        self.own(target).await?.ok_or_else(absent)
    }

    /// The session's container from the inspection before this step, else from a new one.
    async fn just_seen(&self, target: &Target) -> Result<Own, Error> {
        match self.sights.take(&target.session, Instant::now()) {
            Some(own) => Ok(own),
            None => self.existing(target).await,
        }
    }

    pub(super) async fn list_containers(&self) -> Result<Vec<Found>, Error> {
        let listed = self.summaries(&[]).await?;
        let described = stream::iter(listed.into_iter().map(|found| self.describe(found)));
        Ok(described.buffer_unordered(LOOKS_AT_ONCE).filter_map(|found| async { found }).collect().await)
    }

    /// The cluster's containers with these labels, as the engine's list has them: without their states.
    async fn summaries(&self, labels: &[(&str, &str)]) -> Result<Vec<Found>, Error> {
        let cluster = (LABEL_CLUSTER, self.config.cluster.as_str());
        let labels = [cluster].iter().chain(labels).map(|(key, value)| format!("{key}={value}")).collect();
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self
            .engine
            .ask("list containers", LOOK, |docker| async move { docker.list_containers(Some(options)).await })
            .await
            .map_err(Failure::or_try_again)?;
        let found = |summary: ContainerSummary| {
            let found = container::found(&self.config.cluster, &summary);
            let id = summary.id.unwrap_or_default();
            found.inspect_err(|odd| {
                tracing::info!(container = id, "a container with the cluster's label is left alone: {odd}")
            })
        };
        Ok(listed.into_iter().filter_map(|summary| found(summary).ok()).collect())
    }

    /// Adds the state of a listed container; `None` if it is gone meanwhile. One that the engine cannot describe stays
    /// in the list without a state, so that it hides none of the others.
    async fn describe(&self, mut found: Found) -> Option<Found> {
        match self.inspect_within(&found.container_id, LISTED_LOOK).await {
            Ok(Some(inspected)) => container::describe(&mut found, &inspected),
            Ok(None) => return None,
            Err(error) => tracing::warn!(container = found.container_id, %error, "cannot inspect a container"),
        }
        Some(found)
    }

    pub(super) async fn create_container(&self, launch: &Launch) -> Result<String, Error> {
        let network = self.networks.ensure(&self.engine, launch.network.as_ref()).await?;
        let mut volumes = Vec::with_capacity(launch.volumes.len());
        for mount in &launch.volumes {
            volumes.push(volumes::ensure(&self.engine, &self.config.cluster, mount).await?);
        }
        let engine_cores = self.engine.connection().await?.info.cores;
        let gpus = self.gpu_fields(launch).await?;
        let brings_init = launch.init == Init::Auto && container::is_init(&self.first_words(launch).await);
        let around = Surroundings { network: &network, volumes: &volumes, brings_init, engine_cores, gpus: &gpus };
        let body = container::body(&self.config, launch, &around)?;
        let name = container::container_name(&self.config.cluster, &launch.session);
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = self
            .engine
            .ask("create", CHANGE, |docker| async move { docker.create_container(Some(options), body).await })
            .await;
        match created {
            Ok(created) => {
                let own =
                    Own { id: created.id.clone(), state: Container::Created, health: None, network: Some(network) };
                self.sights.keep(&launch.session, own, Instant::now());
                Ok(created.id)
            }
            Err(failure) if failure.is_conflict() => self.holder_of(&name, &launch.session, failure).await,
            Err(failure) => {
                if is_missing_network(&failure) {
                    self.networks.forget();
                }
                Err(blame::of_create(failure))
            }
        }
    }

    /// The words that a container of the launch executes first.
    async fn first_words(&self, launch: &Launch) -> Vec<String> {
        match &launch.image {
            _ if !launch.entrypoint.is_empty() => launch.entrypoint.clone(),
            Some(image) => self.command_line(image, &launch.command).await,
            None => Vec::new(),
        }
    }

    /// The container that has the name of the session's container: an earlier attempt created it and its answer was
    /// lost, or it is another program's.
    async fn holder_of(&self, name: &str, session: &SessionId, conflict: Failure) -> Result<String, Error> {
        match self.inspect(name).await? {
            Some(inspected) if container::is_ours(&self.config, session, &inspected) => {
                Ok(inspected.id.unwrap_or_else(|| name.to_owned()))
            }
            Some(_) => {
                let taken = format!("container {name} exists and is not this session's: left alone");
                Err(Error::start(Fault::Host, taken))
            }
            // The engine reserves a name before inspect shows the container: an attempt may still be in progress.
            None => Err(Error::Unavailable(conflict.to_string())),
        }
    }

    pub(super) async fn start_container(&self, target: &Target) -> Result<(), Error> {
        let own = self.just_seen(target).await?;
        let id = own.id.as_str();
        let own_network = own.network.is_some_and(|network| self.networks.is_own(&network));
        match self.start_once(id).await {
            // The network was removed since it was last seen: `docker network prune` does so once no session runs.
            Err(failure) if own_network && is_missing_network(&failure) => {
                self.networks.restore(&self.engine, id).await?;
                self.start_once(id).await.map_err(blame::of_start)
            }
            answer => answer.map_err(blame::of_start),
        }
    }

    async fn start_once(&self, id: &str) -> Result<(), Failure> {
        let start = |docker: Docker| async move { docker.start_container(id, None::<StartContainerOptions>).await };
        self.engine.ask("start", CHANGE, start).await
    }

    pub(super) async fn stop_container(&self, target: &Target, grace: Duration) -> Result<(), Error> {
        let own = self.just_seen(target).await?;
        if matches!(own.state, Container::Created | Container::Exited(_) | Container::Removing(_)) {
            return Ok(());
        }
        self.thaw(&own).await?;
        let seconds = i32::try_from(grace.as_secs() + u64::from(grace.subsec_nanos() > 0)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let id = own.id.as_str();
        let deadline = grace.saturating_add(AFTER_GRACE);
        let stop = |docker: Docker| async move { docker.stop_container(id, Some(options)).await };
        match self.engine.ask("stop", deadline, stop).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(failure.or_try_again()),
        }
    }

    pub(super) async fn pause_container(&self, target: &Target) -> Result<(), Error> {
        let own = self.just_seen(target).await?;
        if matches!(own.state, Container::Paused(_)) {
            return Ok(());
        }
        let id = own.id.as_str();
        let paused = self.engine.ask("pause", CHANGE, |docker| async move { docker.pause_container(id).await }).await;
        match paused {
            Err(failure) if !matches!(self.existing(target).await?.state, Container::Paused(_)) => Err(failure.into()),
            _ => Ok(()),
        }
    }

    pub(super) async fn resume_container(&self, target: &Target) -> Result<(), Error> {
        let own = self.just_seen(target).await?;
        match own.state {
            Container::Running(_) => Ok(()),
            Container::Paused(_) => self.thaw(&own).await,
            _ => Err(Error::Refused(format!("container {} is not running", own.id))),
        }
    }

    /// Resumes a paused container: while it is frozen it handles no signal and does not end.
    async fn thaw(&self, own: &Own) -> Result<(), Error> {
        if !matches!(own.state, Container::Paused(_)) {
            return Ok(());
        }
        let id = own.id.as_str();
        let thawed =
            self.engine.ask("unpause", CHANGE, |docker| async move { docker.unpause_container(id).await }).await;
        match thawed {
            Err(failure) => match self.inspect(id).await?.map(|inspected| container::state(&inspected)) {
                Some(Container::Paused(_)) => Err(failure.into()),
                _ => Ok(()),
            },
            Ok(()) => Ok(()),
        }
    }

    pub(super) async fn remove_container(&self, target: &Target) -> Result<(), Error> {
        let own = match self.just_seen(target).await {
            Err(Error::NotFound(_)) => return Ok(()),
            seen => seen?,
        };
        self.thaw(&own).await?;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let id = own.id.as_str();
        let remove = |docker: Docker| async move { docker.remove_container(id, Some(options)).await };
        match self.engine.ask("remove", REMOVAL, remove).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.is_not_found() => Ok(()),
            // Another removal is in progress.
            Err(failure) if failure.is_conflict() => self.until_gone(id, failure).await,
            Err(failure) => Err(failure.or_try_again()),
        }
    }

    async fn until_gone(&self, id: &str, failure: Failure) -> Result<(), Error> {
        let gone = async {
            while self.inspect(id).await?.is_some() {
                tokio::time::sleep(REMOVAL_POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(REMOVAL, gone).await.unwrap_or_else(|_| Err(failure.into()))
    }

    pub(super) async fn network_bytes(&self, target: &Target) -> Result<Option<u64>, Error> {
        let Some(id) = self.id_of(target).await? else { return Ok(None) };
        let id = id.as_str();
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let stats = self
            .engine
            .ask("stats", LOOK, |docker| async move { docker.stats(id, Some(options)).next().await.transpose() });
        let networks = match stats.await {
            Ok(stats) => stats.and_then(|stats| stats.networks),
            Err(failure) => return Err(failure.or_try_again()),
        };
        let bytes = |network: &bollard::models::ContainerNetworkStats| {
            network.rx_bytes.unwrap_or(0).saturating_add(network.tx_bytes.unwrap_or(0))
        };
        Ok(networks.map(|networks| networks.values().map(bytes).fold(0, u64::saturating_add)))
    }

    async fn inspect(&self, container: &str) -> Result<Option<ContainerInspectResponse>, Error> {
        self.inspect_within(container, LOOK).await
    }

    async fn inspect_within(
        &self,
        container: &str,
        deadline: Duration,
    ) -> Result<Option<ContainerInspectResponse>, Error> {
        let look =
            |docker: Docker| async move { docker.inspect_container(container, None::<InspectContainerOptions>).await };
        match self.engine.ask("inspect", deadline, look).await {
            Ok(inspected) => Ok(Some(inspected)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.or_try_again()),
        }
    }
}

fn is_missing_network(failure: &Failure) -> bool {
    matches!(failure, Failure::Said { message, .. } if blame::is_missing_network(message))
}
