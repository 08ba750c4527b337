//! The process runtime: sessions as supervised child processes, to try ostler on a host without a
//! container engine.
//!
//! A session is a directory (`directory.rs`). While it runs, its own [shim] supervises the command and writes
//! the outcome to the directory. So a session does not depend on the agent: an agent that starts again reads
//! the directories and goes on. In memory this part keeps only which shims it watches.
//!
//! Unlike a container, a session has no image, no network and no root directory of its own. All sessions share
//! the host's network and one account: an unprivileged one under a root agent, else the agent's own. So they can
//! reach each other's processes and files. This runtime ignores a volume's path and `read_only`: the command
//! finds the directory in `OSTLER_VOLUME_<NAME>`. Only CUDA's convention, `CUDA_VISIBLE_DEVICES`, keeps a session
//! to its own GPUs.
//!
//! Needs Linux 5.3, for process file descriptors.

mod account;
mod cgroup;
mod directory;
mod environment;
mod log;
mod output;
mod processes;
mod session;
pub mod shim;
mod steps;
mod volumes;
mod watcher;

use std::env::consts;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use ipnet::IpNet;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};

use super::connections::{Connections, Seen};
use super::{
    Connected, Container, EngineInfo, Error, Event, Fault, Found, GpuSupport, Health, Launch, LogStream, LogsRequest,
    Observed, PortBinding, Runtime, Target,
};
use crate::clock::Clock;
use crate::types::{Bytes, Cores, Name, NodeId, Platform, RuntimeKind, SessionId};
use account::Account;
use cgroup::{Cgroups, Controller};
use directory::{Identity, SessionDirectory};
use session::Session;
use volumes::Volumes;
use watcher::Watcher;

/// What a process may map beyond its session's memory, if only the address space can be limited:
/// programs reserve far more than they use.
const ADDRESS_SPACE_BEYOND: Bytes = Bytes::gib(1);
/// How often a followed log is read for new output.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `<data_dir>/process`; created if it does not exist.
    pub directory: PathBuf,
    pub cluster: Name,
    pub node: NodeId,
    /// The account that sessions run as. Used only where the agent is root.
    pub user: String,
    /// The program that runs [`shim::main`] as its subcommand `shim`: this one.
    pub shim: PathBuf,
    /// The cores and memory of this host that sessions can use, as probed.
    pub cores: Cores,
    pub memory: Bytes,
    /// The clients whose connections to a session do not count as its use.
    pub idle_ignore: Vec<IpNet>,
}

/// Runs sessions as processes of this host.
pub struct ProcessRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    clock: Clock,
    /// The account that sessions run as; `None`: the agent's own.
    account: Option<Account>,
    cgroups: Cgroups,
    volumes: Volumes,
    watcher: Watcher,
    health: watch::Sender<Health>,
    connections: Arc<Connections>,
}

impl ProcessRuntime {
    /// Creates the directory, probes which limits the host supports, and removes what a crash left
    /// unfinished. Only one runtime may use a directory at a time.
    ///
    /// # Errors
    /// The directory cannot be created or read, or a root agent's account for sessions does not exist.
    pub fn open(config: Config) -> io::Result<Self> {
        let account = rustix::process::geteuid().is_root().then(|| Account::named(&config.user)).transpose()?;
        let mode = if account.is_some() { 0o711 } else { 0o700 };
        ensure_directory(&config.directory, mode)?;
        sweep(&config.directory)?;
        let volumes = Volumes::open(config.directory.join("volumes"), mode, account.clone())?;
        if let Some(obstacle) = account.as_ref().and_then(|account| account.obstacle(&config.directory)) {
            let (user, obstacle) = (&config.user, obstacle.display());
            tracing::warn!(
                "user `{user}` cannot enter {obstacle}: sessions have no volumes and cannot use absolute paths to \
                 their own directory; run: chmod a+x {obstacle}"
            );
        }
        let cgroups = Cgroups::probe(&format!("ostler-{}-{}-trial", config.cluster, config.node));
        let health = watch::Sender::new(Health::Up(describe(&config, &cgroups)));
        let (clock, watcher) = (Clock::system()?, Watcher::new());
        let connections = Connections::new(config.idle_ignore.clone());
        Ok(Self { inner: Arc::new(Inner { config, clock, account, cgroups, volumes, watcher, health, connections }) })
    }

    fn session(&self, id: &SessionId) -> Session {
        self.inner.session(id)
    }
}

impl Inner {
    fn session(&self, id: &SessionId) -> Session {
        let directory = SessionDirectory::at(self.config.directory.join(id.as_str()));
        Session { directory, boot_id: self.clock.now().boot_id }
    }

    /// Every session of this directory, except those whose files cannot be read.
    fn identities(&self) -> io::Result<Vec<Identity>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.config.directory)? {
            let Ok(id) = entry?.file_name().to_string_lossy().parse::<SessionId>() else { continue };
            match self.session(&id).directory.identity() {
                Ok(Some(identity)) if identity.launch.session == id => found.push(identity),
                Ok(_) => {
                    tracing::warn!(session = %id, "the session's directory holds another session or none; left alone")
                }
                Err(e) => tracing::warn!(session = %id, "cannot read the session's directory; left alone: {e}"),
            }
        }
        Ok(found)
    }

    fn create(&self, launch: &Launch) -> Result<String, Error> {
        let mut launch = launch.clone();
        launch.command.splice(0..0, std::mem::take(&mut launch.entrypoint));
        if launch.command.is_empty() {
            return Err(Error::start(Fault::Workspace, "the process runtime needs a command"));
        }
        self.volumes.ensure(&launch.volumes)?;
        let identity = Identity {
            cluster: self.config.cluster.clone(),
            node: self.config.node,
            created_at: self.clock.now().wall,
            launch,
        };
        let id = identity.launch.session;
        self.session(&id).directory.create(&identity, self.account.as_ref()).map_err(unavailable)?;
        Ok(id.to_string())
    }

    fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let uses = |identity: &Identity| identity.launch.volumes.iter().any(|mount| mount.name == name);
        match self.identities().map_err(unavailable)?.iter().find(|identity| uses(identity)) {
            Some(identity) => Err(Error::Refused(format!("session {} uses volume {name}", identity.launch.session))),
            None => self.volumes.remove(name),
        }
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Process
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.subscribe()
    }

    async fn run(&self, events: mpsc::Sender<Event>) {
        let mut ends = self.inner.watcher.ends();
        let mut next = Event::Relist;
        while events.send(next).await.is_ok() {
            next = tokio::select! {
                () = events.closed() => return,
                ended = ends.recv() => match ended {
                    Ok(session) => Event::Changed(session),
                    Err(RecvError::Lagged(_) | RecvError::Closed) => Event::Relist,
                },
            };
        }
    }

    async fn list(&self) -> Result<Vec<Found>, Error> {
        let inner = self.inner.clone();
        let identities = blocking(move || inner.identities().map_err(unavailable)).await?;
        let mut found = Vec::with_capacity(identities.len());
        for identity in identities.into_iter().filter(|identity| identity.cluster == self.inner.config.cluster) {
            match self.inner.observe(&identity.launch.session).await {
                Ok(Container::Absent) => {} // removed meanwhile
                Ok(container) => found.push(describe_session(identity, Some(container))),
                Err(error) => {
                    tracing::warn!(session = %identity.launch.session, %error, "cannot read the state of a session");
                    found.push(describe_session(identity, None));
                }
            }
        }
        Ok(found)
    }

    async fn observe(&self, target: &Target) -> Result<Observed, Error> {
        self.inner.observe(&target.session).await.map(Observed::from)
    }

    async fn create(&self, launch: &Launch) -> Result<String, Error> {
        let (inner, launch) = (self.inner.clone(), launch.clone());
        blocking(move || inner.create(&launch)).await
    }

    /// # Errors
    /// [`Error::Refused`] if the command cannot be executed; the session has then exited with 126 or 127.
    async fn start(&self, target: &Target) -> Result<(), Error> {
        self.inner.start(&target.session).await
    }

    async fn stop(&self, target: &Target, grace: Duration) -> Result<(), Error> {
        self.inner.stop(&target.session, grace).await
    }

    async fn pause(&self, target: &Target) -> Result<(), Error> {
        self.inner.on_live(&target.session, Session::pause).await
    }

    async fn resume(&self, target: &Target) -> Result<(), Error> {
        self.inner.on_live(&target.session, Session::resume).await
    }

    async fn remove(&self, target: &Target) -> Result<(), Error> {
        self.inner.remove(&target.session).await
    }

    async fn logs(&self, target: &Target, request: LogsRequest) -> Result<LogStream, Error> {
        let reader = self.session(&target.session);
        if !reader.directory.exists() {
            return Err(Error::NotFound(target.session.to_string()));
        }
        let path = reader.directory.path().to_owned();
        let output = blocking(move || output::Output::open(&path, request.tail).map_err(unavailable)).await?;
        let follow = request.follow.then_some(reader);
        Ok(futures_util::stream::try_unfold((output, follow), read_on).boxed())
    }

    fn published_at(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    async fn connected(&self, _: &Target, ports: &[PortBinding]) -> Result<Connected, Error> {
        // A process has no network of its own whose bytes could be counted.
        Ok(match self.inner.connections.to(ports).await {
            Seen::Connected => Connected::Yes,
            Seen::Nobody { .. } if ports.is_empty() => Connected::Unknown { bytes: None },
            Seen::Nobody { .. } => Connected::No,
        })
    }

    async fn volumes(&self) -> Result<Vec<String>, Error> {
        let inner = self.inner.clone();
        blocking(move || inner.volumes.names().map_err(unavailable)).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || inner.remove_volume(&name)).await
    }
}

type Following = (output::Output, Option<Session>);

/// The next piece of a log. With a session, waits for new output as long as the session runs.
async fn read_on((mut output, follow): Following) -> io::Result<Option<(bytes::Bytes, Following)>> {
    loop {
        let session = follow.clone();
        let (read, ended) = tokio::task::spawn_blocking(move || {
            // Checked before the read: if the session has ended, the read sees all its output.
            let ended = session.is_none_or(|session| !session.live_state().is_ok_and(|state| state.is_some()));
            output.next().map(|chunk| ((chunk, output), ended))
        })
        .await
        .map_err(io::Error::other)??;
        output = match read {
            (Some(chunk), output) => return Ok(Some((chunk.into(), (output, follow)))),
            (None, _) if ended => return Ok(None),
            (None, output) => output,
        };
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

fn describe(config: &Config, cgroups: &Cgroups) -> EngineInfo {
    let mut unenforced = cgroups.unenforced();
    if !cgroups.limits(Controller::Memory) {
        let instead = format!("; each process may map the session's memory and {ADDRESS_SPACE_BEYOND} more");
        unenforced.iter_mut().filter(|limit| limit.starts_with("memory")).for_each(|limit| limit.push_str(&instead));
    }
    EngineInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cores: config.cores,
        memory: config.memory,
        data_root: Some(config.directory.clone()),
        unenforced,
        epoch: None,
        platform: Some(Platform::new(consts::OS, consts::ARCH)),
        pid: None,
        gpus: GpuSupport::default(),
        images: None,
    }
}

fn describe_session(identity: Identity, container: Option<Container>) -> Found {
    let Identity { cluster: _, node, created_at, launch } = identity;
    Found {
        container_id: launch.session.to_string(),
        renamed: None,
        node,
        session: launch.session,
        user: launch.user,
        workspace: launch.workspace,
        resources: launch.resources,
        gpu_uuids: launch.gpu_uuids,
        gpu_memory: launch.gpu_memory,
        image: launch.image,
        ports: launch.ports,
        created_at,
        container,
    }
}

fn ensure_directory(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match directory::make_directory(path, mode) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Removes directories that a crash left half created or half destroyed.
fn sweep(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(directory::UNFINISHED)
            && let Err(e) = directory::destroy(&entry.path())
        {
            tracing::warn!(directory = %entry.path().display(), "cannot remove an unfinished session's directory: {e}");
        }
    }
    Ok(())
}

/// Runs a step that reads and writes files on a thread that may block.
async fn blocking<T: Send + 'static>(step: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(step).await.unwrap_or_else(|e| Err(Error::Unavailable(e.to_string())))
}

fn unavailable(error: io::Error) -> Error {
    Error::Unavailable(error.to_string())
}
