//! The owner of this node's settings and drain.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::store::{Store, Stored};
use super::{Config, DrainState, Error, Handle, Request, State, settings};
use crate::clock::Clock;
use crate::events::Happening;
use crate::types::{Actor, Deadline, DrainRequest, GpuSharing, Settings, SettingsPatch};
use crate::{capacity, events};

/// Changes that wait for the owner at most. Further callers wait for a place: changes are few, and each takes one
/// write to disk.
const QUEUE: usize = 64;

/// Starts the owner. It ends when the last [`Handle`] is gone. It follows the declared settings of `config`.
pub fn spawn(
    mut watched_config: watch::Receiver<Config>,
    store: Store,
    stored: Stored,
    capacity: capacity::Handle,
    events: events::Handle,
    clock: Clock,
) -> (Handle, JoinHandle<()>) {
    let config = watched_config.borrow_and_update().clone();
    let in_force = settings::in_force(&stored.chosen, &config.declared);
    caution(&Settings::default(), &in_force);
    let state = State {
        id: stored.id,
        name: config.name.clone(),
        settings: in_force,
        declared: declared(&config),
        drain: stored.drain,
    };
    let (requests, queue) = mpsc::channel(QUEUE);
    let (publish, watched) = watch::channel(Arc::new(state.clone()));
    let owner = Owner { config, store, chosen: stored.chosen, state, capacity, events, clock, publish };
    (Handle { requests, state: watched }, tokio::spawn(owner.run(queue, watched_config)))
}

/// The names of the declared settings.
fn declared(config: &Config) -> Vec<String> {
    config.declared.fields().into_iter().map(str::to_owned).collect()
}

struct Owner {
    config: Config,
    store: Store,
    /// The settings chosen over the API.
    chosen: Settings,
    state: State,
    capacity: capacity::Handle,
    events: events::Handle,
    clock: Clock,
    publish: watch::Sender<Arc<State>>,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>, mut config: watch::Receiver<Config>) {
        self.rebase_drain().await;
        loop {
            tokio::select! {
                // A request that follows a change of the configuration finds it in force.
                biased;
                Ok(()) = config.changed() => {
                    let config = config.borrow_and_update().clone();
                    self.declare(config);
                }
                request = queue.recv() => match request {
                    Some(request) => self.answer(request).await,
                    None => return,
                },
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        // The caller may have gone: the change is made or rejected all the same.
        match request {
            Request::Patch(patch, by, reply) => drop(reply.send(self.patch(&patch, &by).await)),
            Request::Drain(drain, by, reply) => drop(reply.send(self.drain(drain, &by).await)),
            Request::Undrain(by, reply) => drop(reply.send(self.undrain(&by).await)),
        }
    }

    /// Takes over the settings that the configuration declares now. Those that it declares no more are the chosen ones
    /// again.
    fn declare(&mut self, config: Config) {
        let in_force = settings::in_force(&self.chosen, &config.declared);
        self.tell(&in_force, None);
        (self.state.settings, self.state.declared, self.config) = (in_force, declared(&config), config);
        self.publish();
    }

    async fn patch(&mut self, patch: &SettingsPatch, by: &Actor) -> Result<Settings, Error> {
        let physical_gpus = self.capacity.report().physical.gpus;
        let change = settings::change(&self.chosen, &self.config, patch, physical_gpus)?;
        if change.chosen != self.chosen {
            self.store.keep_settings(&change.chosen).await.map_err(|e| Error::Store(e.to_string()))?;
            self.tell(&change.in_force, Some(by));
            self.chosen = change.chosen;
            self.state.settings = change.in_force;
            self.publish();
        }
        Ok(self.state.settings.clone())
    }

    async fn drain(&mut self, request: DrainRequest, by: &Actor) -> Result<DrainState, Error> {
        request.validate()?;
        let now = self.clock.now();
        let drain = DrainState {
            since: self.state.drain.as_ref().map_or(now.wall, |drain| drain.since),
            deadline: request.deadline_seconds.map(|seconds| Deadline::after(now, Duration::from_secs(seconds))),
            stop_sessions: request.stop_sessions,
            message: request.message,
        };
        self.keep_drain(Some(drain.clone())).await?;
        let State { id, name, .. } = &self.state;
        let (deadline, reason) = (request.deadline_seconds, drain.message.as_deref());
        let started = Happening::drain_started(id, name, deadline, drain.stop_sessions, reason);
        self.events.record(started, Some(by));
        Ok(drain)
    }

    async fn undrain(&mut self, by: &Actor) -> Result<(), Error> {
        if self.state.drain.is_some() {
            self.keep_drain(None).await?;
            self.events.record(Happening::drain_ended(&self.state.id, &self.state.name), Some(by));
        }
        Ok(())
    }

    /// Rebases the drain's deadline to this boot after a reboot. If that cannot be written, the old deadline stays in
    /// force, counted by the wall clock.
    async fn rebase_drain(&mut self) {
        let Some(drain) = &self.state.drain else { return };
        let rebased =
            DrainState { deadline: drain.deadline.map(|deadline| deadline.rebased(self.clock.now())), ..drain.clone() };
        if rebased != *drain
            && let Err(error) = self.keep_drain(Some(rebased)).await
        {
            tracing::warn!(%error, "cannot write the drain's deadline after the reboot");
        }
    }

    async fn keep_drain(&mut self, drain: Option<DrainState>) -> Result<(), Error> {
        self.store.keep_drain(drain.as_ref()).await.map_err(|e| Error::Store(e.to_string()))?;
        self.state.drain = drain;
        self.publish();
        Ok(())
    }

    /// Tells of the settings that change. `by`: `None` for a change of the configuration.
    fn tell(&self, after: &Settings, by: Option<&Actor>) {
        let State { id, name, settings: before, .. } = &self.state;
        for changed in Happening::settings_changed(id, name, before, after) {
            self.events.record(changed, by);
        }
        caution(before, after);
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(self.state.clone()));
    }
}

/// Warns an operator that lets users share a GPU.
fn caution(before: &Settings, after: &Settings) {
    if after.gpu_sharing == GpuSharing::Any && before.gpu_sharing != GpuSharing::Any {
        tracing::warn!(
            "security: gpu_sharing is `any`: sessions of different users may share one GPU, \
             and isolation between users on one GPU is not well established"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::node::fixture::{self, moment};
    use crate::types::{Cores, Moment};

    const HOUR: Duration = Duration::from_secs(3600);

    fn capacity(gpus: u32) -> capacity::Handle {
        let mut report = fixture::report();
        report.physical.gpus = gpus;
        capacity::Handle::new(watch::channel(Arc::new(report)).1)
    }

    fn config(declared: &str) -> Config {
        Config { name: "n1".parse().unwrap(), declared: serde_json::from_str(declared).unwrap(), file: None }
    }

    fn start(directory: &Path, declared: &str, clock: &Clock) -> (Handle, JoinHandle<()>) {
        let (store, stored) = Store::open(directory, Some("m"), clock.now().wall).unwrap();
        spawn(
            watch::channel(config(declared)).1,
            store,
            stored,
            capacity(0),
            crate::events::recorder::nowhere(),
            clock.clone(),
        )
    }

    async fn stop(started: (Handle, JoinHandle<()>)) {
        drop(started.0);
        started.1.await.unwrap();
    }

    fn root() -> Actor {
        crate::types::sample::root()
    }

    fn patch(json: &str) -> SettingsPatch {
        serde_json::from_str(json).unwrap()
    }

    #[tokio::test]
    async fn settings_and_drain_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(moment());
        let first = start(directory.path(), "{}", &clock);
        let answered = first.0.patch(patch(r#"{"cores_override":12,"labels":{"rack":"3"}}"#), root()).await.unwrap();
        assert_eq!(answered.cores_override, Cores::whole(12));
        let drain =
            DrainRequest { deadline_seconds: Some(3600), stop_sessions: true, message: Some("disk".to_owned()) };
        first.0.drain(drain, root()).await.unwrap();
        let before = first.0.state();
        assert!(!before.accepts());
        stop(first).await;

        let second = start(directory.path(), "{}", &clock);
        assert_eq!(second.0.state(), before);
        second.0.undrain(root()).await.unwrap();
        second.0.undrain(root()).await.unwrap();
        assert!(second.0.state().accepts());
        stop(second).await;
        assert_eq!(start(directory.path(), "{}", &clock).0.state().drain, None);
    }

    #[tokio::test]
    async fn settings_that_the_configuration_declares_later_are_in_force_until_it_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(moment());
        let (store, stored) = Store::open(directory.path(), Some("m"), clock.now().wall).unwrap();
        let (declare, declared) = watch::channel(config("{}"));
        let (node, _owner) = spawn(declared, store, stored, capacity(0), crate::events::recorder::nowhere(), clock);
        node.patch(patch(r#"{"cores_override":12}"#), root()).await.unwrap();

        declare.send_replace(config(r#"{"cores_override":8}"#));
        let mut seen = node.watch();
        let state = seen.wait_for(|state| state.settings.cores_override == Cores::whole(8)).await.unwrap().clone();
        assert_eq!(state.declared, ["cores_override"]);
        let refused = node.patch(patch(r#"{"cores_override":9}"#), root()).await;
        assert!(matches!(refused, Err(Error::Declared { .. })), "{refused:?}");

        declare.send_replace(config("{}"));
        seen.wait_for(|state| state.settings.cores_override == Cores::whole(12)).await.unwrap();
        assert!(node.state().declared.is_empty());
    }

    #[tokio::test]
    async fn a_declared_setting_wins_and_the_chosen_one_returns_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(moment());
        let free = start(directory.path(), "{}", &clock);
        free.0.patch(patch(r#"{"cores_override":12}"#), root()).await.unwrap();
        stop(free).await;

        let declared = start(directory.path(), r#"{"cores_override":8}"#, &clock);
        assert_eq!(declared.0.state().settings.cores_override, Cores::whole(8));
        assert_eq!(declared.0.state().declared, ["cores_override"]);
        let refused = declared.0.patch(patch(r#"{"cores_override":12}"#), root()).await.unwrap_err();
        assert!(matches!(refused, Error::Declared { field, .. } if field == "cores_override"));
        assert_eq!(
            declared.0.patch(patch(r#"{"enabled":false}"#), root()).await.unwrap().cores_override,
            Cores::whole(8)
        );
        stop(declared).await;

        let settings = start(directory.path(), "{}", &clock).0.state().settings.clone();
        assert_eq!((settings.cores_override, settings.enabled), (Cores::whole(12), false));
    }

    #[tokio::test]
    async fn undrain_does_not_change_enabled_and_a_second_drain_keeps_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(moment());
        let (node, _owner) = start(directory.path(), r#"{"enabled":false}"#, &clock);
        let first = node.drain(DrainRequest::default(), root()).await.unwrap();
        clock.advance(HOUR);
        let second = node.drain(DrainRequest { stop_sessions: true, ..DrainRequest::default() }, root()).await.unwrap();
        assert_eq!((second.since, second.stop_sessions), (first.since, true));
        node.undrain(root()).await.unwrap();
        assert!(!node.state().settings.enabled && !node.state().accepts());
        let long = DrainRequest { message: Some("x".repeat(2000)), ..DrainRequest::default() };
        assert!(matches!(node.drain(long, root()).await, Err(Error::Invalid(_))));
        assert_eq!(node.state().drain, None);
    }

    #[tokio::test]
    async fn the_deadline_of_a_drain_survives_a_reboot() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(moment());
        let first = start(directory.path(), "{}", &clock);
        first.0.drain(DrainRequest { deadline_seconds: Some(7200), ..DrainRequest::default() }, root()).await.unwrap();
        stop(first).await;

        let rebooted = Clock::manual(Moment { boot_id: 2, ..moment().plus(HOUR) });
        let (node, _owner) = start(directory.path(), "{}", &rebooted);
        let rebased = |state: &Arc<State>| {
            let deadline = state.drain.as_ref().unwrap().deadline.unwrap();
            // A jump of the wall clock has no effect once the deadline is rebased.
            let jumped = Moment { wall: rebooted.now().wall.plus(24 * HOUR), ..rebooted.now() };
            deadline.remaining(jumped) == HOUR
        };
        node.watch().wait_for(rebased).await.unwrap();
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_written_is_not_made() {
        let (store, switch) = Store::failing();
        let id = "k3f7q2m5x6a4b7c2".parse().unwrap();
        let stored = Stored { id, chosen: Settings::default(), drain: None };
        let (node, _owner) = spawn(
            watch::channel(config("{}")).1,
            store,
            stored,
            capacity(1),
            crate::events::recorder::nowhere(),
            Clock::manual(moment()),
        );
        let before = node.state();
        switch.set(true);
        assert!(matches!(node.patch(patch(r#"{"gpus_override":2}"#), root()).await, Err(Error::Store(_))));
        assert!(matches!(node.drain(DrainRequest::default(), root()).await, Err(Error::Store(_))));
        assert_eq!(node.state(), before);
        switch.set(false);
        assert_eq!(node.patch(patch(r#"{"gpus_override":2}"#), root()).await.unwrap().gpus_override, 2);
    }

    #[tokio::test]
    async fn without_its_owner_a_handle_answers_that_the_daemon_is_stopping() {
        let directory = tempfile::tempdir().unwrap();
        let (node, owner) = start(directory.path(), "{}", &Clock::manual(moment()));
        owner.abort();
        assert!(owner.await.unwrap_err().is_cancelled());
        assert_eq!(node.undrain(root()).await, Err(Error::Stopping));
    }
}
