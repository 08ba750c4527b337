//! Calls to the engine: connects, calls with a deadline, and turns failures into errors.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::SystemInfo;
use bollard::query_parameters::InspectNetworkOptions;
use bollard::{API_DEFAULT_VERSION, Docker, errors};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::gpus::read::Reader;
use super::{CpuMode, Error, images, support};
use crate::runtime::images::ImageStoreInfo;
use crate::runtime::{EngineInfo, GpuSupport};
use crate::types::{Bytes, Cores, Platform, Timestamp};

/// Deadline to connect and agree on a version. A healthy engine needs milliseconds, a loaded one a second.
const CONNECT: Duration = Duration::from_secs(5);
/// Deadline of a read: inspect, list. Engines under load were measured to need seconds.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// Deadline of a change: create, start, pause. A start sets up file system, network and process.
pub(super) const CHANGE: Duration = Duration::from_secs(60);
/// The network that the engine creates at each start.
const DEFAULT_NETWORK: &str = "bridge";
/// The process id of systemd.
const INIT: u32 = 1;
/// Where dockerd writes its process id.
const PID_FILE: &str = "/run/docker.pid";
/// The names of the processes of engines. At the socket may be a proxy instead, which says nothing of the engine.
const ENGINES: [&str; 2] = ["dockerd", "podman"];
/// The client library's own timeout. It is the same for all calls, so it is longer than every deadline here.
const CLIENT_TIMEOUT_SECS: u64 = 365 * 24 * 3600;

/// One engine, at the path of its socket. The first call connects to it.
pub(super) struct Engine {
    socket: String,
    cpu_mode: CpuMode,
    /// The connection in use, once both sides agree on the API's version. The lock is held to copy or to
    /// replace an `Arc`, and spans no await.
    connection: Mutex<Option<Arc<Connection>>>,
    /// A call had no answer in time: the link should ping the engine now.
    pub(super) suspect: Notify,
    gpus: Reader,
    /// `images.path`
    images_at: Option<PathBuf>,
}

/// A client that uses a version of the API that the engine supports, and what the engine reports about itself.
pub(super) struct Connection {
    pub(super) docker: Docker,
    pub(super) info: EngineInfo,
    /// The engine's clock when the connection was made.
    pub(super) engine_time: Option<Timestamp>,
}

/// Why a call to the engine failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The engine answered with an error; nothing changed.
    #[error("{message}")]
    Said { status: u16, message: String },
    /// The engine did not answer, or its answer is not readable. The call may have taken effect or not.
    #[error("{0}")]
    Lost(String),
    /// The engine answers, and ostler does not work with it. Nothing was done.
    #[error("{0}")]
    Unsupported(String),
}

impl Failure {
    pub(super) const fn is_not_found(&self) -> bool {
        matches!(self, Self::Said { status: 404, .. })
    }

    pub(super) const fn is_conflict(&self) -> bool {
        matches!(self, Self::Said { status: 409, .. })
    }

    /// The error of a call that cannot be refused for good: an internal error of the engine is worth a retry.
    pub(super) fn or_try_again(self) -> Error {
        match self {
            Self::Said { status: 500.., message } => Error::Failed(message),
            other => other.into(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(message) | Failure::Unsupported(message) | Failure::Said { status: 503, message } => {
                Self::Unavailable(message)
            }
            Failure::Said { status: 404, message } => Self::NotFound(message),
            Failure::Said { message, .. } => Self::Refused(message),
        }
    }
}

impl Engine {
    pub(super) fn new(socket: String, cpu_mode: CpuMode, gpus: Reader) -> Self {
        Self { socket, cpu_mode, connection: Mutex::new(None), suspect: Notify::new(), gpus, images_at: None }
    }

    /// The operator says where its images are.
    pub(super) fn with_images_at(self, path: Option<PathBuf>) -> Self {
        Self { images_at: path, ..self }
    }

    /// The path of its socket.
    pub(super) fn socket(&self) -> &str {
        &self.socket
    }

    /// Makes one call to the engine. `call` gets a client; `what` names the call in errors.
    pub(super) async fn ask<T, F>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl FnOnce(Docker) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, errors::Error>>,
    {
        let connection = self.connection().await?;
        self.within(what, deadline, call(connection.docker.clone())).await
    }

    /// The connection in use, or a new one.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, Failure> {
        let current = self.current().clone();
        match current {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    /// Makes a new connection: another engine, or another version of it, may answer now.
    pub(super) async fn connect(&self) -> Result<Arc<Connection>, Failure> {
        let docker = Docker::connect_with_unix(&self.socket, CLIENT_TIMEOUT_SECS, API_DEFAULT_VERSION)
            .map_err(|e| self.failure(&e))?;
        let docker = self.negotiate(docker).await?;
        let (info, engine_time) = self.describe(&docker).await?;
        let connection = Arc::new(Connection { docker, info, engine_time });
        *self.current() = Some(connection.clone());
        Ok(connection)
    }

    /// Agrees on a version of the API with an engine that ostler works with.
    async fn negotiate(&self, docker: Docker) -> Result<Docker, Failure> {
        let spoken = docker.client_version().to_string();
        let agreed = self.within("version", CONNECT, docker.negotiate_version()).await;
        let docker = agreed.map_err(|failure| match support::refused(&failure, &spoken) {
            Some(why) => Failure::Unsupported(why),
            None => failure,
        })?;
        let said = self.within("version", CONNECT, docker.version()).await?;
        match support::unsupported(&said, &spoken) {
            Some(why) => Err(Failure::Unsupported(why)),
            None => Ok(docker),
        }
    }

    /// Asks the engine again what it reports about itself, if it still answers: its cores and memory can change.
    pub(super) async fn renew(&self, docker: &Docker) -> Result<EngineInfo, Failure> {
        self.within("ping", CONNECT, docker.ping()).await?;
        let (info, engine_time) = self.describe(docker).await?;
        let connection = Connection { docker: docker.clone(), info: info.clone(), engine_time };
        *self.current() = Some(Arc::new(connection));
        Ok(info)
    }

    /// What the engine reports about itself, and its clock.
    async fn describe(&self, docker: &Docker) -> Result<(EngineInfo, Option<Timestamp>), Failure> {
        let said = self.within("info", LOOK, docker.info()).await?;
        let engine_time = said.system_time.as_deref().and_then(|time| time.parse().ok());
        let gpus = self.gpus.support(&said, &docker.client_version()).await;
        let mut info = engine_info(said, self.cpu_mode, gpus, self.images_at.as_deref()).await;
        info.epoch = self.epoch(docker).await?;
        info.pid = self.pid().await;
        Ok((info, engine_time))
    }

    /// Which start of the engine this is: at each start, the engine creates its default network anew. `None`: it has no
    /// default network, as with `--bridge=none`.
    async fn epoch(&self, docker: &Docker) -> Result<Option<String>, Failure> {
        let network = docker.inspect_network(DEFAULT_NETWORK, None::<InspectNetworkOptions>);
        match self.within("inspect network", LOOK, network).await {
            Ok(network) => Ok(network.id),
            Err(Failure::Said { .. }) => Ok(None),
            Err(lost) => Err(lost),
        }
    }

    /// The engine's process, by the socket's other end. If systemd made the socket, that is systemd: then by the engine's
    /// own file.
    async fn pid(&self) -> Option<u32> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        let peer = u32::try_from(stream.peer_cred().ok()?.pid()?).ok()?;
        let pid =
            if peer == INIT { tokio::fs::read_to_string(PID_FILE).await.ok()?.trim().parse().ok()? } else { peer };
        let name = tokio::fs::read_to_string(format!("/proc/{pid}/comm")).await.ok()?;
        ENGINES.contains(&name.trim()).then_some(pid)
    }

    /// Drops the connection, so that the next call makes a new one.
    pub(super) fn disconnect(&self) {
        *self.current() = None;
    }

    /// Whether an error of the client is the engine's answer or the lack of one.
    pub(super) fn failure(&self, error: &errors::Error) -> Failure {
        match error {
            errors::Error::DockerResponseServerError { status_code, message } => {
                Failure::Said { status: *status_code, message: message.trim().to_owned() }
            }
            errors::Error::DockerStreamError { error } => Failure::Said { status: 500, message: error.clone() },
            other => Failure::Lost(unreachable_text(&self.socket, other)),
        }
    }

    async fn within<T>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl Future<Output = Result<T, errors::Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(deadline, call).await {
            Ok(answer) => answer.map_err(|e| self.failure(&e)),
            Err(_) => {
                self.suspect.notify_one();
                let seconds = deadline.as_secs();
                Err(Failure::Lost(format!("no answer to `{what}` at {} within {seconds} s", self.socket)))
            }
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says why the socket cannot be used, and how to mend it.
fn unreachable_text(socket: &str, error: &errors::Error) -> String {
    if matches!(error, errors::Error::SocketNotFoundError(_)) {
        return format!("{socket} does not exist: is Docker installed and running?");
    }
    match io_kind(error) {
        Some(io::ErrorKind::NotFound) => format!("{socket} does not exist: is Docker installed and running?"),
        Some(io::ErrorKind::ConnectionRefused) => format!("no process listens on {socket}: is Docker running?"),
        Some(io::ErrorKind::PermissionDenied) => {
            format!("no permission to use {socket}: run as root, or add the user to the group docker")
        }
        _ => format!("{socket}: {}", chain(error)),
    }
}

/// The kind of the I/O error among the causes of `error`, if there is one.
fn io_kind(error: &errors::Error) -> Option<io::ErrorKind> {
    if let errors::Error::IOError { err } = error {
        return Some(err.kind());
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = current.source();
    }
    None
}

/// An error with its causes, outermost first, without repetition.
fn chain(error: &errors::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        let next = current.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = current.source();
    }
    text
}

async fn engine_info(said: SystemInfo, cpu_mode: CpuMode, gpus: GpuSupport, images_at: Option<&Path>) -> EngineInfo {
    let unenforced = unenforced(&said, cpu_mode);
    let store = images::store(&said);
    let root = said.docker_root_dir.clone().map(PathBuf::from);
    let data_root = match root {
        Some(root) if tokio::fs::try_exists(&root).await.unwrap_or(false) => Some(root),
        _ => None,
    };
    let images = match store {
        Some(store) => {
            let path = match images_at {
                Some(path) => Some(path.to_owned()),
                None => images::path(&said, store.kind, data_root.as_deref()).await,
            };
            Some(ImageStoreInfo { store, path })
        }
        None => None,
    };
    EngineInfo {
        version: said.server_version.unwrap_or_default(),
        cores: Cores::whole(said.ncpu.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)),
        memory: Bytes::new(said.mem_total.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)),
        data_root,
        unenforced,
        epoch: None,
        platform: platform(said.os_type, said.architecture),
        pid: None,
        gpus,
        images,
    }
}

fn platform(os: Option<String>, architecture: Option<String>) -> Option<Platform> {
    Some(Platform::new(&os?, &architecture?))
}

/// The limits that the engine reports it cannot set on this host.
fn unenforced(said: &SystemInfo, cpu_mode: CpuMode) -> Vec<String> {
    let off = |flag: Option<bool>| flag == Some(false);
    let warns = |of: &str| said.warnings.iter().flatten().any(|warning| warning.contains(of));
    let no_cpu = match cpu_mode {
        CpuMode::Quota => off(said.cpu_cfs_quota) || off(said.cpu_cfs_period),
        CpuMode::Shares => off(said.cpu_shares),
    };
    [
        (no_cpu, format!("cores (the kernel has no CPU {cpu_mode})")),
        (off(said.memory_limit), "memory (the kernel has no memory limit)".to_owned()),
        (off(said.pids_limit), "processes (the kernel has no pids limit)".to_owned()),
        (
            warns("bridge-nf-call-iptables is disabled"),
            "isolation of sessions' networks (bridge-nf-call-iptables is disabled)".to_owned(),
        ),
    ]
    .into_iter()
    .filter_map(|(missing, text)| missing.then_some(text))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_never_taken_for_a_lost_call() {
        let said = |status| Failure::Said { status, message: "m".to_owned() };
        assert_eq!(Error::from(said(404)), Error::NotFound("m".to_owned()));
        assert_eq!(Error::from(said(400)), Error::Refused("m".to_owned()));
        assert_eq!(Error::from(said(500)), Error::Refused("m".to_owned()));
        assert_eq!(Error::from(said(503)), Error::Unavailable("m".to_owned()));
        assert_eq!(said(500).or_try_again(), Error::Failed("m".to_owned()));
        assert_eq!(said(409).or_try_again(), Error::Refused("m".to_owned()));
        assert_eq!(Error::from(Failure::Lost("m".to_owned())), Error::Unavailable("m".to_owned()));
    }

    #[test]
    fn each_reason_to_be_unreachable_has_its_own_advice() {
        let text = |kind: io::ErrorKind| unreachable_text("/s", &errors::Error::IOError { err: kind.into() });
        assert!(text(io::ErrorKind::PermissionDenied).contains("group docker"));
        assert!(text(io::ErrorKind::ConnectionRefused).contains("is Docker running?"));
        assert!(text(io::ErrorKind::NotFound).contains("does not exist"));
        let absent = errors::Error::SocketNotFoundError("/s".to_owned());
        assert!(unreachable_text("/s", &absent).contains("does not exist"));
    }

    #[test]
    fn limits_that_the_kernel_lacks_are_named() {
        let all = SystemInfo {
            cpu_cfs_quota: Some(true),
            memory_limit: Some(true),
            cpu_shares: Some(false),
            ..SystemInfo::default()
        };
        assert_eq!(unenforced(&all, CpuMode::Quota), Vec::<String>::new());
        assert_eq!(unenforced(&all, CpuMode::Shares).len(), 1);
        let none = SystemInfo {
            memory_limit: Some(false),
            pids_limit: Some(false),
            warnings: Some(vec!["WARNING: bridge-nf-call-iptables is disabled".to_owned()]),
            ..SystemInfo::default()
        };
        assert_eq!(unenforced(&none, CpuMode::Quota).len(), 3);
    }
}
