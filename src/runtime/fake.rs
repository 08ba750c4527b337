//! A runtime in memory, for tests. A test can hold it at any step, make it refuse, remove its containers and
//! take it down. Like a real engine, it goes on when the daemon ends.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, watch};

use super::{
    Connected, Container, EngineInfo, Error, Event, Exit, Found, GpuSupport, Health, Launch, LogStream, LogsRequest,
    Observed, PortBinding, ProvideImages, Provided, Run, Runtime, Target,
};
use crate::types::{Bytes, Cores, NodeId, RuntimeKind, SessionId, Timestamp};

/// The calls that change something, in the order of a session's life.
pub(crate) const STEPS: [&str; 7] = ["image", "create", "start", "pause", "resume", "stop", "remove"];

/// An engine that goes on when the daemon is killed.
pub(crate) struct FakeEngine {
    node: NodeId,
    /// The lock is held for one read or change, never across an await.
    state: Mutex<State>,
    health: watch::Sender<Health>,
    /// Notified whenever a call is held, and whenever a hold ends.
    bell: Notify,
    events: Mutex<Option<mpsc::Sender<Event>>>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<SessionId, (Launch, Container)>,
    runs: u32,
    /// Calls of this name wait, before or after they take effect.
    hold: Option<(&'static str, When)>,
    held: bool,
    refuse: BTreeMap<&'static str, Error>,
    /// The next call of this name panics.
    panic: Option<&'static str>,
    calls: Vec<&'static str>,
    connected: Connected,
}

/// Whether a call is held before or after it takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

impl FakeEngine {
    pub(crate) fn new(node: NodeId) -> Arc<Self> {
        let info = EngineInfo {
            version: "fake".to_owned(),
            cores: Cores::whole(6),
            memory: Bytes::gib(6),
            data_root: None,
            unenforced: Vec::new(),
            epoch: None,
            platform: None,
            pid: None,
            gpus: GpuSupport::default(),
            images: None,
        };
        Arc::new(Self {
            node,
            state: Mutex::default(),
            health: watch::channel(Health::Up(info)).0,
            bell: Notify::new(),
            events: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on calls of `step` do not return, until [`Self::let_go`].
    pub(crate) fn hold(&self, step: &'static str, when: When) {
        self.state().hold = Some((step, when));
    }

    pub(crate) fn let_go(&self) {
        let mut state = self.state();
        state.hold = None;
        state.held = false;
        self.bell.notify_waiters();
    }

    /// Returns once a call is held.
    pub(crate) async fn until_held(&self) {
        loop {
            let rung = self.bell.notified();
            if self.state().held {
                return;
            }
            rung.await;
        }
    }

    pub(crate) fn refuse(&self, step: &'static str, error: Error) {
        self.state().refuse.insert(step, error);
    }

    pub(crate) fn panic_once(&self, step: &'static str) {
        self.state().panic = Some(step);
    }

    pub(crate) fn containers(&self) -> BTreeMap<SessionId, Container> {
        self.state().containers.iter().map(|(id, (_, container))| (*id, container.clone())).collect()
    }

    /// How often a step was called.
    pub(crate) fn calls(&self, step: &str) -> usize {
        self.state().calls.iter().filter(|call| **call == step).count()
    }

    /// The container's process ends by itself.
    pub(crate) async fn exit(&self, session: &SessionId, code: i64) {
        if let Some((_, container)) = self.state().containers.get_mut(session)
            && let Container::Running(run) = container
        {
            *container = Container::Exited(Exit::new(run.clone(), code));
        }
        self.say(Event::Changed(*session)).await;
    }

    /// The container is removed by another program than the daemon.
    pub(crate) async fn vanish(&self, session: &SessionId) {
        self.state().containers.remove(session);
        self.say(Event::Changed(*session)).await;
    }

    /// Whether anybody is connected to the ports of the sessions; at first nobody is.
    pub(crate) fn set_connected(&self, connected: Connected) {
        self.state().connected = connected;
    }

    pub(crate) fn go_down(&self) {
        self.health.send_replace(Health::Down { message: "no answer".to_owned(), unsupported: false });
    }

    async fn say(&self, event: Event) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(events) = events {
            let _ = events.send(event).await;
        }
    }

    async fn gate(&self, step: &'static str, when: When) {
        if when == When::Before {
            let mut state = self.state();
            state.calls.push(step);
            if state.panic.take_if(|at| *at == step).is_some() {
                drop(state);
                panic!("asked to panic at {step}");
            }
        }
        loop {
            let news = {
                let mut state = self.state();
                if state.hold != Some((step, when)) {
                    return;
                }
                !std::mem::replace(&mut state.held, true)
            };
            if news {
                self.bell.notify_waiters();
            }
            // A hold that ends between the check and the wait sends no notice to this wait: check again every 20 ms.
            let _ = tokio::time::timeout(Duration::from_millis(20), self.bell.notified()).await;
        }
    }

    /// One call: waits if held before, is refused or takes effect, waits if held after.
    async fn call<T>(
        &self,
        step: &'static str,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        self.gate(step, When::Before).await;
        let done = {
            let mut state = self.state();
            match state.refuse.get(step) {
                Some(error) => Err(error.clone()),
                None => act(&mut state),
            }
        };
        self.gate(step, When::After).await;
        done
    }

    async fn turn(
        &self,
        step: &'static str,
        session: &SessionId,
        turn: impl FnOnce(Run) -> Container + Send,
    ) -> Result<(), Error> {
        self.call(step, |state| {
            let (_, container) =
                state.containers.get_mut(session).ok_or_else(|| Error::NotFound(session.to_string()))?;
            if let Container::Running(run) | Container::Paused(run) = container {
                *container = turn(run.clone());
            }
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Runtime for FakeEngine {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    async fn run(&self, events: mpsc::Sender<Event>) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events.clone());
        let _ = events.send(Event::Relist).await;
        events.closed().await;
    }

    async fn list(&self) -> Result<Vec<Found>, Error> {
        let state = self.state();
        let found = |(id, (launch, container)): (&SessionId, &(Launch, Container))| Found {
            container_id: format!("container-{id}"),
            renamed: None,
            node: self.node,
            session: *id,
            user: launch.user.clone(),
            workspace: launch.workspace.clone(),
            resources: launch.resources,
            gpu_uuids: launch.gpu_uuids.clone(),
            gpu_memory: launch.gpu_memory,
            image: launch.image.clone(),
            ports: launch.ports.clone(),
            created_at: Timestamp::default(),
            container: Some(container.clone()),
        };
        Ok(state.containers.iter().map(found).collect())
    }

    async fn observe(&self, target: &Target) -> Result<Observed, Error> {
        if !self.health.borrow().is_up() {
            return Err(Error::Unavailable("no answer".to_owned()));
        }
        let state = self.state();
        let seen = state.containers.get(&target.session).map_or(Container::Absent, |(_, container)| container.clone());
        Ok(seen.into())
    }

    async fn create(&self, launch: &Launch) -> Result<String, Error> {
        self.call("create", |state| {
            state.containers.entry(launch.session).or_insert_with(|| (launch.clone(), Container::Created));
            Ok(format!("container-{}", launch.session))
        })
        .await
    }

    async fn start(&self, target: &Target) -> Result<(), Error> {
        self.call("start", |state| {
            state.runs += 1;
            let run = Run(state.runs.to_string());
            let (_, container) =
                state.containers.get_mut(&target.session).ok_or_else(|| Error::NotFound(target.session.to_string()))?;
            if !matches!(container, Container::Running(_)) {
                *container = Container::Running(run);
            }
            Ok(())
        })
        .await
    }

    async fn stop(&self, target: &Target, _: Duration) -> Result<(), Error> {
        self.turn("stop", &target.session, |run| Container::Exited(Exit::new(run, 143))).await
    }

    async fn pause(&self, target: &Target) -> Result<(), Error> {
        self.turn("pause", &target.session, Container::Paused).await
    }

    async fn resume(&self, target: &Target) -> Result<(), Error> {
        self.turn("resume", &target.session, Container::Running).await
    }

    async fn remove(&self, target: &Target) -> Result<(), Error> {
        self.call("remove", |state| {
            state.containers.remove(&target.session);
            Ok(())
        })
        .await
    }

    async fn logs(&self, _: &Target, _: LogsRequest) -> Result<LogStream, Error> {
        Ok(Box::pin(futures_util::stream::empty()))
    }

    fn published_at(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    async fn connected(&self, _: &Target, _: &[PortBinding]) -> Result<Connected, Error> {
        Ok(self.state().connected)
    }

    async fn volumes(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        Err(Error::NotFound(name.to_owned()))
    }
}

#[async_trait]
impl ProvideImages for FakeEngine {
    async fn ensure(&self, _: &Launch, progress: mpsc::Sender<String>) -> Result<Provided, Error> {
        let _ = progress.try_send("pulling".to_owned());
        self.call("image", |_| Ok(Provided { digest: Some("sha256:0".to_owned()), id: None })).await
    }
}
