//! The runtime that the configuration asks for.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::Base;
use crate::runtime::docker::{self, DockerRuntime};
use crate::runtime::process::{self, ProcessRuntime};
use crate::runtime::{Images, Runtime};
use crate::types::RuntimeKind;
use crate::{capacity, gpu};

/// What runs sessions, and has their images.
pub(super) struct Engine {
    pub runtime: Arc<dyn Runtime>,
    /// `None`: the runtime has no images.
    pub images: Option<Arc<dyn Images>>,
}

/// `gpus`: the devices that it hands to containers.
pub(super) fn open(base: &Base, gpus: &gpu::Handle) -> Result<Engine> {
    let config = &base.config;
    let (cluster, node) = (config.cluster.name.clone(), base.me);
    match config.runtime.kind {
        RuntimeKind::Docker => {
            let config = docker::Config {
                cluster,
                node,
                host: config.runtime.docker_host.clone(),
                cpu_mode: config.runtime.cpu_mode,
                cap_allow: config.runtime.cap_allow.clone(),
                publish_address: config.runtime.publish_address,
                network_subnet: config.runtime.network_subnet,
                idle_ignore: config.runtime.idle_ignore.clone(),
                hand_over: config.runtime.hand_over,
                gpu_class: config.gpu.class.clone(),
                images_path: config.runtime.images_path.clone(),
            };
            let runtime = DockerRuntime::new(config, gpus.watch())?;
            Ok(Engine { runtime: runtime.clone(), images: Some(runtime) })
        }
        RuntimeKind::Process => {
            let (cores, memory) = capacity::probe::host_bounds();
            let runtime = ProcessRuntime::open(process::Config {
                directory: config.data_dir.join("process"),
                cluster,
                node,
                user: config.runtime.process_user.clone(),
                shim: this_program()?,
                cores,
                memory,
                idle_ignore: config.runtime.idle_ignore.clone(),
            })?;
            Ok(Engine { runtime: Arc::new(runtime), images: None })
        }
    }
}

/// This program's file, also where it was replaced by a newer one since it was started.
///
/// # Errors
/// The kernel does not say.
pub fn this_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("this program's own path is not known")?;
    let text = path.to_string_lossy();
    Ok(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}
