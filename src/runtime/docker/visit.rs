//! Access to an engine without a node: whether it answers, an image to import, and the removal of everything
//! of a cluster. For `ostler demo`, which leaves nothing behind.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, RemoveVolumeOptions,
};
use bytes::Bytes;
use futures_util::TryStreamExt;

use super::container::LABEL_CLUSTER;
use super::engine::{CHANGE, Engine, Failure, LOOK};
use super::gpus::read::Reader;
use super::{ConfigError, CpuMode, Error, socket_of};
use crate::runtime::{EngineInfo, HandOver};
use crate::types::Name;

/// Deadline to send and unpack an image. It takes seconds, and many seconds on a busy disk.
const IMPORT: Duration = Duration::from_secs(180);

/// One engine, for a caller that has no node and no sessions there.
pub struct Visit {
    engine: Engine,
}

impl Visit {
    /// Makes no call yet.
    ///
    /// # Errors
    /// The address is not the path of a socket on this host.
    pub fn new(host: &str) -> Result<Self, ConfigError> {
        Ok(Self { engine: Engine::new(socket_of(host)?, CpuMode::default(), Reader::default()) })
    }

    /// The same, of an engine that is asked what an agent with this configuration asks it.
    ///
    /// # Errors
    /// The address is not the path of a socket on this host.
    pub fn as_agent(
        host: &str,
        cpu_mode: CpuMode,
        hand_over: HandOver,
        gpu_class: String,
        images_path: Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let engine = Engine::new(socket_of(host)?, cpu_mode, Reader::new(hand_over, gpu_class));
        Ok(Self { engine: engine.with_images_at(images_path) })
    }

    /// What the engine reports about itself.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with the reason and how to mend it.
    pub async fn greet(&self) -> Result<EngineInfo, Error> {
        Ok(self.engine.connect().await?.info.clone())
    }

    /// Creates an image of one layer from a tar archive, without a network.
    ///
    /// # Errors
    /// The engine does not answer in time, or refuses the archive.
    pub async fn import_image(&self, repository: &str, tag: &str, archive: Bytes) -> Result<(), Error> {
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag).build();
        let import = async |docker: bollard::Docker| {
            let told = docker.create_image(Some(options), Some(bollard::body_full(archive)), None);
            told.try_for_each(|_| async { Ok(()) }).await
        };
        Ok(self.engine.ask("import image", IMPORT, import).await?)
    }

    /// Whether the engine has an image of that name.
    ///
    /// # Errors
    /// The engine does not answer in time.
    pub async fn has_image(&self, image: &str) -> Result<bool, Error> {
        let seen = self.engine.ask("inspect image", LOOK, |docker| async move { docker.inspect_image(image).await });
        match seen.await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(failure.or_try_again()),
        }
    }

    /// Removes an image. Succeeds if there is none.
    ///
    /// # Errors
    /// The engine does not answer in time, or a container uses the image.
    pub async fn remove_image(&self, image: &str) -> Result<(), Error> {
        let options = RemoveImageOptionsBuilder::default().build();
        let removed = self.engine.ask("remove image", CHANGE, |docker| async move {
            docker.remove_image(image, Some(options), None).await.map(drop)
        });
        gone(removed.await)
    }

    /// Removes every container, volume and network of a cluster, running or not, of every node.
    /// Returns how many there were.
    ///
    /// # Errors
    /// The engine does not answer in time, or refuses to remove something; the rest may be removed or not.
    pub async fn clear(&self, cluster: &Name) -> Result<usize, Error> {
        let of_cluster = HashMap::from([("label".to_owned(), vec![format!("{LABEL_CLUSTER}={cluster}")])]);
        let containers = self.containers(&of_cluster).await?;
        for id in &containers {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            let removed = self
                .engine
                .ask("remove", CHANGE, |docker| async move { docker.remove_container(id, Some(options)).await });
            gone(removed.await)?;
        }
        let volumes = self.volumes(&of_cluster).await?;
        for name in &volumes {
            let removed = self.engine.ask("remove volume", CHANGE, |docker| async move {
                docker.remove_volume(name, None::<RemoveVolumeOptions>).await
            });
            gone(removed.await)?;
        }
        let networks = self.networks(&of_cluster).await?;
        for id in &networks {
            let removed =
                self.engine.ask("remove network", CHANGE, |docker| async move { docker.remove_network(id).await });
            gone(removed.await)?;
        }
        Ok(containers.len() + volumes.len() + networks.len())
    }

    async fn containers(&self, filters: &HashMap<String, Vec<String>>) -> Result<Vec<String>, Failure> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(filters).build();
        let listed =
            self.engine.ask("list", LOOK, |docker| async move { docker.list_containers(Some(options)).await }).await?;
        Ok(listed.into_iter().filter_map(|container| container.id).collect())
    }

    async fn volumes(&self, filters: &HashMap<String, Vec<String>>) -> Result<Vec<String>, Failure> {
        let options = ListVolumesOptionsBuilder::default().filters(filters).build();
        let listed = self
            .engine
            .ask("list volumes", LOOK, |docker| async move { docker.list_volumes(Some(options)).await })
            .await?;
        Ok(listed.volumes.into_iter().flatten().map(|volume| volume.name).collect())
    }

    async fn networks(&self, filters: &HashMap<String, Vec<String>>) -> Result<Vec<String>, Failure> {
        let options = ListNetworksOptionsBuilder::default().filters(filters).build();
        let listed = self
            .engine
            .ask("list networks", LOOK, |docker| async move { docker.list_networks(Some(options)).await })
            .await?;
        Ok(listed.into_iter().filter_map(|network| network.id).collect())
    }
}

/// Counts "not found" as removed.
fn gone(removed: Result<(), Failure>) -> Result<(), Error> {
    match removed {
        Err(failure) if !failure.is_not_found() => Err(failure.into()),
        _ => Ok(()),
    }
}
