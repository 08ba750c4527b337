//! The owner of the configuration: reads it and its files again when it is asked to, by SIGHUP or over the API.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::live::Live;
use crate::config::{Config, TLS};
use crate::events::{self, Happening};
use crate::http::{Certificate, Tls};
use crate::identity::{self, Token};
use crate::logging;
use crate::node::Error;
use crate::node::refresh::Request;
use crate::types::{Actor, Refreshed};

/// The key of the token's file.
const TOKEN_FILE: &str = "cluster.token_file";

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// `None`: the default file, if it exists.
    pub file: Option<PathBuf>,
    pub dev: bool,
}

/// What the files that the configuration names had in them when the agent started or was last refreshed.
#[derive(Clone)]
pub(super) struct Files {
    pub token: Option<Token>,
    pub certificate: Option<Certificate>,
}

/// Starts the owner. It ends when the last handle is gone.
pub(super) fn spawn(
    source: Source,
    config: Config,
    files: Files,
    live: Live,
    events: events::Handle,
    queue: mpsc::Receiver<Request>,
) -> JoinHandle<()> {
    tokio::spawn(Owner { source, config, files, live, events }.run(queue))
}

struct Owner {
    source: Source,
    /// What is in force.
    config: Config,
    files: Files,
    live: Live,
    events: events::Handle,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(Request { by, reply }) = queue.recv().await {
            let refreshed = self.refresh(&by).await;
            if let Err(error) = &refreshed {
                tracing::error!(%by, %error, "the configuration was not refreshed: nothing changed");
            }
            // The caller may have gone.
            let _ = reply.send(refreshed);
        }
    }

    /// Reads everything before it applies anything, so that an error changes nothing.
    async fn refresh(&mut self, by: &Actor) -> Result<Refreshed, Error> {
        let (source, tls, token_file) =
            (self.source.clone(), self.config.http.tls.clone(), self.config.cluster.token_file.clone());
        let read = spawn_blocking(move || read(&source, tls.as_ref(), &token_file)).await;
        let (config, files) = read.map_err(|panic| Error::Configuration(panic.to_string()))??;
        let refreshed = self.config.refresh(&config, &self.changed(&files));
        if let Err(error) = logging::set_level(&self.config.log.level) {
            tracing::warn!(%error, "the level of the log stays");
        }
        self.live.publish(&self.config, files.certificate.clone());
        // A token that is not in force yet is told again.
        self.files.certificate = files.certificate;
        let changed = !(refreshed.applied.is_empty() && refreshed.needs_restart.is_empty());
        self.events.record_some(changed.then(|| Happening::configuration_changed(&refreshed)), Some(by));
        tracing::info!(%by, changed, "the configuration was refreshed");
        Ok(refreshed)
    }

    /// The keys of the files whose content is not what it was.
    fn changed(&self, files: &Files) -> Vec<&'static str> {
        let mut changed = Vec::new();
        if files.token != self.files.token {
            changed.push(TOKEN_FILE);
        }
        if let (Some(before), Some(now)) = (&self.files.certificate, &files.certificate) {
            let differs = before.differs_from(now);
            changed.extend(TLS.into_iter().zip(differs).filter(|(_, differs)| *differs).map(|(key, _)| key));
        }
        changed
    }
}

/// Reads the configuration, and the files that it names. Where a key needs a restart, its file is the one in force.
fn read(source: &Source, tls: Option<&Tls>, token_file: &Path) -> Result<(Config, Files), Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Configuration(error.to_string());
    let config = Config::load(source.file.as_deref(), source.dev).map_err(|e| wrong(&e))?;
    let tls = tls.map(|in_force| config.http.tls.as_ref().unwrap_or(in_force));
    let certificate = tls.map(Certificate::read).transpose().map_err(|e| wrong(&e))?;
    let token = token(token_file).map_err(|e| wrong(&format!("{TOKEN_FILE}: {e}")))?;
    Ok((config, Files { token, certificate }))
}

/// The cluster's token. One that is there must be a good one; without the file the node is alone.
///
/// # Errors
/// The file cannot be read, is readable by others, or has no token.
pub(super) fn token(file: &Path) -> Result<Option<Token>, identity::Error> {
    match identity::read(file) {
        Ok(token) => Ok(Some(token)),
        Err(_) if fs::metadata(file).is_err_and(|e| e.kind() == ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
