//! The steps of a session that take time: each waits for the shim, with a deadline.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::cgroup::Controller;
use super::directory::{Plan, State};
use super::processes::Process;
use super::session::{Seen, Session};
use super::{ADDRESS_SPACE_BEYOND, Container, Error, Inner, blocking, unavailable};
use crate::types::{Name, NodeId, SessionId};

/// How long a shim may take to write its state, and how long killed processes may take to be gone.
/// Both take milliseconds; a host that needs longer than this has a fault.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often files are read meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Inner {
    pub(super) async fn observe(&self, id: &SessionId) -> Result<Container, Error> {
        let session = self.session(id);
        patiently("the session neither started nor ended", async {
            loop {
                match self.look(&session).await? {
                    Seen::Is(container) => return Ok(container),
                    Seen::Lives(state, container) => {
                        // If it has ended meanwhile, the watcher sends the end at once.
                        self.watcher.watch(id, state.shim);
                        return Ok(container);
                    }
                    Seen::Starting => tokio::time::sleep(LOOK_EVERY).await,
                    Seen::Abandoned(_) => {
                        tracing::warn!(session = %id, "the shim is gone without an exit status; killing its processes");
                        self.settle(&session).await?;
                    }
                }
            }
        })
        .await
    }

    pub(super) async fn start(self: &Arc<Self>, id: &SessionId) -> Result<(), Error> {
        let session = self.session(id);
        let Some(lock) = patiently("the session's last shim did not end", self.room_for_a_run(id, &session)).await?
        else {
            return Ok(());
        };
        let (inner, prepared) = (self.clone(), session.clone());
        let lock = blocking(move || inner.prepare(&prepared, &lock).map(|()| lock)).await?;
        let shim = spawn_shim(&self.config.shim, session.directory.path(), lock)
            .map_err(|e| Error::Refused(format!("cannot run the shim {}: {e}", self.config.shim.display())))?;
        patiently("the session did not start", self.started(id, &session, shim)).await
    }

    /// The session's lock, to start a run under; `None` if a run is in progress.
    async fn room_for_a_run(&self, id: &SessionId, session: &Session) -> Result<Option<File>, Error> {
        loop {
            match self.observe(id).await? {
                Container::Absent => return Err(Error::NotFound(id.to_string())),
                Container::Running(_) | Container::Paused(_) => return Ok(None),
                Container::Created | Container::Exited(_) | Container::Removing(_) => {}
            }
            if let Some(lock) = session.directory.try_lock().map_err(unavailable)? {
                return Ok(Some(lock));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Forgets the last run and writes the plan of the next one.
    fn prepare(&self, session: &Session, lock: &File) -> Result<(), Error> {
        let identity = session.directory.identity().map_err(unavailable)?;
        let identity = identity.ok_or_else(|| Error::NotFound(session.directory.path().display().to_string()))?;
        let launch = identity.launch;
        self.volumes.ensure(&launch.volumes)?;
        let address_space = launch.resources.memory.saturating_add(ADDRESS_SPACE_BEYOND).get();
        let plan = Plan {
            account: self.account.clone(),
            group: self.cgroups.group(&group_name(&self.config.cluster, &self.config.node, &launch.session)),
            address_space_bytes: (!self.cgroups.limits(Controller::Memory)).then_some(address_space),
            volumes: self.volumes.variables(&launch.volumes)?,
        };
        session.clear(lock).map_err(unavailable)?;
        session.directory.write_plan(&plan).map_err(unavailable)?;
        plan.group.create(&launch.resources).map_err(|e| Error::Refused(format!("cannot limit the session: {e}")))
    }

    /// Returns once the shim has written whether the command started.
    async fn started(&self, id: &SessionId, session: &Session, shim: Process) -> Result<(), Error> {
        loop {
            // Checked before the files: once the shim is gone, everything that it wrote is there.
            let gone = !shim.is_alive();
            match on_thread(session, Session::start_outcome).await? {
                Some(Ok(())) => {
                    self.watcher.watch(id, shim);
                    return Ok(());
                }
                Some(Err((fault, why))) => return Err(Error::start(fault, why)),
                None if gone => return Err(Error::Unavailable("the shim ended without a status".to_owned())),
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    pub(super) async fn stop(&self, id: &SessionId, grace: Duration) -> Result<(), Error> {
        let session = self.session(id);
        // Waits for a shim that is starting, and writes the ending of a shim that is gone.
        self.observe(id).await?;
        if let Some(state) = self.live_state(&session).await? {
            on_thread(&session, move |session| session.terminate(&state)).await?;
            match tokio::time::timeout(grace, state.shim.ended()).await {
                Ok(ended) => ended.map_err(unavailable)?,
                Err(_) => self.kill(&session, state).await?,
            }
        }
        self.observe(id).await.map(drop)
    }

    pub(super) async fn remove(&self, id: &SessionId) -> Result<(), Error> {
        let session = self.session(id);
        if !session.directory.exists() {
            return Ok(());
        }
        // A directory whose files are damaged is removed as well.
        if self.observe(id).await.is_ok()
            && let Some(state) = self.live_state(&session).await?
        {
            self.kill(&session, state).await?;
        }
        let lock = self.lock(&session).await?;
        on_thread(&session, move |session| {
            match session.clear(&lock) {
                // Damaged files do not say which processes are left; only the removal is left to do.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => tracing::warn!("removing a damaged session: {e}"),
                cleared => cleared?,
            }
            session.directory.remove()
        })
        .await
    }

    /// Does a step on a running session.
    pub(super) async fn on_live(
        &self,
        id: &SessionId,
        step: fn(&Session, &State) -> io::Result<()>,
    ) -> Result<(), Error> {
        let session = self.session(id);
        if self.observe(id).await? == Container::Absent {
            return Err(Error::NotFound(id.to_string()));
        }
        match self.live_state(&session).await? {
            Some(state) => on_thread(&session, move |session| step(session, &state)).await,
            None => Err(Error::Refused("the session is not running".to_owned())),
        }
    }

    /// Kills all processes of a session and returns once its shim, which waits for them, has ended too.
    async fn kill(&self, session: &Session, state: State) -> Result<(), Error> {
        on_thread(session, move |session| session.kill(&state)).await?;
        let ended = async { state.shim.ended().await.map_err(unavailable) };
        if let Ok(ended) = tokio::time::timeout(PATIENCE, ended).await {
            return ended;
        }
        // The shim hangs; the command may have stopped it. The caller ends the processes that it leaves.
        state.shim.signal(Signal::KILL);
        patiently("the session's processes did not end", async { state.shim.ended().await.map_err(unavailable) }).await
    }

    /// Waits for the session's lock. No shim runs while the caller holds it.
    async fn lock(&self, session: &Session) -> Result<File, Error> {
        patiently("the session's last shim did not end", async {
            loop {
                if let Some(lock) = session.directory.try_lock().map_err(unavailable)? {
                    return Ok(lock);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
        .await
    }

    async fn look(&self, session: &Session) -> Result<Seen, Error> {
        on_thread(session, Session::look).await
    }

    async fn live_state(&self, session: &Session) -> Result<Option<State>, Error> {
        on_thread(session, Session::live_state).await
    }

    async fn settle(&self, session: &Session) -> Result<(), Error> {
        let now = self.clock.now().wall;
        if !on_thread(session, move |session| session.settle(now)).await? {
            // Another call or a shim holds the lock: look again.
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// The name has the node's id: the two sides of a partition may have placed one session on two agents of one host.
fn group_name(cluster: &Name, node: &NodeId, session: &SessionId) -> String {
    format!("ostler-{cluster}-{node}-{session}")
}

/// Starts a shim that holds the session's lock. It outlives this agent. While the agent lives, a task waits
/// for the shim, so that it does not stay a zombie.
fn spawn_shim(program: &Path, directory: &Path, lock: File) -> io::Result<Process> {
    let mut child = tokio::process::Command::new(program)
        .arg("shim")
        .arg(directory)
        .env_clear()
        .stdin(lock)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let shim = Process::of_child(child.id().unwrap_or_default());
    tokio::spawn(async move { child.wait().await });
    Ok(shim)
}

async fn on_thread<T: Send + 'static>(
    session: &Session,
    step: impl FnOnce(&Session) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let session = session.clone();
    blocking(move || step(&session).map_err(unavailable)).await
}

async fn patiently<T>(otherwise: &str, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Err(Error::Unavailable(format!("{otherwise} within {} seconds", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(late)
}
