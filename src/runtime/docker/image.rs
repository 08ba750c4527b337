//! Images: pulled when a session needs them, once for all sessions that ask at the same time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptions};
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::engine::{Engine, Failure, LOOK};
use super::progress::Progress;
use super::reference::Reference;
use super::{Error, blame};
use crate::runtime::{Fault, Launch};
use crate::types::{Platform, PullPolicy};

/// A pull may take hours, but it fails if no message comes for this long. The engine's retries of a registry and the
/// unpacking of a layer take less.
const STALL: Duration = Duration::from_secs(180);
/// How often a pull reports its progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// [`PullPolicy::Daily`].
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Images whose last refresh is remembered. Beyond that the oldest is forgotten, and refreshed early.
const MAX_REMEMBERED: usize = 1024;

/// Pulls images, and knows which pulls run.
pub(super) struct Images {
    engine: Arc<Engine>,
    /// The lock is held for a look-up or an insertion, and spans no await.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    running: HashMap<Reference, watch::Receiver<Pull>>,
    /// When each image was last pulled, failures included: a registry that is down is not asked at every start.
    refreshed: HashMap<Reference, Instant>,
}

/// The state of a pull.
#[derive(Debug, Clone)]
enum Pull {
    Running(String),
    Ended(Result<(), Error>),
}

/// An image that the engine has.
struct Present {
    digest: Option<String>,
    /// It came from a registry, which may have a newer one.
    pulled: bool,
    /// `None`: the image does not say.
    platform: Option<Platform>,
}

impl Images {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, state: Arc::default() }
    }

    /// Makes the launch's image available and returns its digest.
    pub(super) async fn ensure(
        &self,
        launch: &Launch,
        progress: mpsc::Sender<String>,
    ) -> Result<Option<String>, Error> {
        let text = launch.image.as_deref();
        let text = text.ok_or_else(|| Error::start(Fault::Workspace, "the Docker runtime needs an image"))?;
        let image = Reference::parse(text).map_err(|odd| Error::start(Fault::Image, odd))?;
        let present = self.make_present(&image, launch.pull, &progress).await?;
        let host = self.engine.connection().await?.info.platform.clone();
        check_platform(&image, present.platform.as_ref(), host.as_ref())?;
        Ok(present.digest)
    }

    async fn make_present(
        &self,
        image: &Reference,
        policy: PullPolicy,
        progress: &mpsc::Sender<String>,
    ) -> Result<Present, Error> {
        let Some(present) = self.look(image).await? else {
            self.pull(image, progress).await?;
            let removed = || format!("image {} was removed right after its pull", image.as_str());
            return self.look(image).await?.ok_or_else(|| Error::start(Fault::Host, removed()));
        };
        if !present.pulled || image.is_fixed() {
            return Ok(present);
        }
        match policy {
            PullPolicy::Missing => Ok(present),
            PullPolicy::Daily => {
                self.refresh_daily(image);
                Ok(present)
            }
            PullPolicy::Always => self.refresh_now(image, present, progress).await,
        }
    }

    /// Pulls the image; if that fails, uses the one that is here.
    async fn refresh_now(
        &self,
        image: &Reference,
        present: Present,
        progress: &mpsc::Sender<String>,
    ) -> Result<Present, Error> {
        if let Err(error) = self.pull(image, progress).await {
            tracing::warn!(image = image.as_str(), "cannot refresh the image, using the local one: {error}");
            return Ok(present);
        }
        Ok(self.look(image).await?.unwrap_or(present))
    }

    /// Starts a pull in the background, unless there was one within a day.
    fn refresh_daily(&self, image: &Reference) {
        let due = lock(&self.state).refreshed.get(image).is_none_or(|last| last.elapsed() >= DAY);
        if due {
            drop(self.join(image));
        }
    }

    /// Pulls, or joins a pull that runs, and sends its progress until it ends.
    async fn pull(&self, image: &Reference, progress: &mpsc::Sender<String>) -> Result<(), Error> {
        let mut pull = self.join(image);
        loop {
            match pull.borrow_and_update().clone() {
                Pull::Ended(result) => return result,
                // A receiver that is behind misses this progress; the next one replaces it anyway.
                Pull::Running(text) => drop(progress.try_send(text)),
            }
            if pull.changed().await.is_err() {
                return Err(Error::start(Fault::Host, format!("the pull of {} was aborted", image.as_str())));
            }
        }
    }

    /// The one pull of this image, started if none runs. It goes on when its callers give up.
    fn join(&self, image: &Reference) -> watch::Receiver<Pull> {
        let mut state = lock(&self.state);
        // A pull removes itself from the map before it ends: an entry whose channel is closed has panicked.
        if let Some(running) = state.running.get(image).filter(|pull| pull.has_changed().is_ok()) {
            return running.clone();
        }
        let (report, pull) = watch::channel(Pull::Running("pulling".to_owned()));
        state.running.insert(image.clone(), pull.clone());
        state.remember(image);
        let task = Task { engine: self.engine.clone(), state: self.state.clone(), image: image.clone(), report };
        tokio::spawn(task.run());
        pull
    }

    /// The words that a container of the launch executes first: its entry point, or its command without one.
    /// Empty if the image cannot be inspected: the creation that follows says what is wrong.
    pub(super) async fn command_line(&self, launch: &Launch) -> Vec<String> {
        if !launch.entrypoint.is_empty() {
            return launch.entrypoint.clone();
        }
        let name = launch.image.as_deref().unwrap_or_default();
        let seen = self.engine.ask("inspect image", LOOK, |docker| async move { docker.inspect_image(name).await });
        let Ok(inspected) = seen.await else { return Vec::new() };
        let config = inspected.config.unwrap_or_default();
        let command = || if launch.command.is_empty() { config.cmd } else { Some(launch.command.clone()) };
        config.entrypoint.filter(|words| !words.is_empty()).or_else(command).unwrap_or_default()
    }

    /// Which of these texts name an image that the engine has.
    pub(super) async fn present(&self, texts: &[String]) -> Result<BTreeSet<String>, Error> {
        if texts.is_empty() {
            return Ok(BTreeSet::new());
        }
        let listed = self
            .engine
            .ask("list images", LOOK, |docker| async move { docker.list_images(None::<ListImagesOptions>).await });
        let listed = listed.await.map_err(Failure::or_try_again)?;
        let names: HashSet<&str> = listed
            .iter()
            .flat_map(|image| image.repo_tags.iter().chain(&image.repo_digests))
            .map(String::as_str)
            .collect();
        let is_here = |text: &&String| Reference::parse(text).is_ok_and(|image| names.contains(image.familiar()));
        Ok(texts.iter().filter(is_here).cloned().collect())
    }

    async fn look(&self, image: &Reference) -> Result<Option<Present>, Error> {
        let name = image.as_str();
        let seen = self.engine.ask("inspect image", LOOK, |docker| async move { docker.inspect_image(name).await });
        match seen.await {
            Ok(inspected) => Ok(Some(present(image, inspected))),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.or_try_again()),
        }
    }
}

impl State {
    fn remember(&mut self, image: &Reference) {
        if self.refreshed.len() >= MAX_REMEMBERED {
            let oldest = self.refreshed.iter().min_by_key(|(_, at)| **at).map(|(image, _)| image.clone());
            oldest.map(|image| self.refreshed.remove(&image));
        }
        self.refreshed.insert(image.clone(), Instant::now());
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn present(image: &Reference, inspected: ImageInspect) -> Present {
    let pulled = image.digest(&inspected.repo_digests.unwrap_or_default());
    let named = |name: Option<String>| name.filter(|name| !name.is_empty());
    let platform = named(inspected.os).zip(named(inspected.architecture));
    Present {
        pulled: pulled.is_some(),
        digest: pulled.or(inspected.id),
        platform: platform.map(|(os, architecture)| Platform::new(&os, &architecture)),
    }
}

/// Refuses an image whose programs this host cannot execute: a container of it would end at once, without a word.
fn check_platform(image: &Reference, needs: Option<&Platform>, host: Option<&Platform>) -> Result<(), Error> {
    match (needs, host) {
        (Some(needs), Some(host)) if !host.runs(needs) => {
            let message = format!("image {} is for {needs}, and this host runs {host}", image.as_str());
            Err(Error::start(Fault::Platform { image: needs.clone() }, message))
        }
        _ => Ok(()),
    }
}

/// One pull.
struct Task {
    engine: Arc<Engine>,
    state: Arc<Mutex<State>>,
    image: Reference,
    report: watch::Sender<Pull>,
}

impl Task {
    async fn run(self) {
        let result = self.pull().await;
        if let Err(error) = &result {
            tracing::warn!(image = self.image.as_str(), "cannot pull the image: {error}");
        }
        // Removed before the result is published: a caller that comes now starts a new pull.
        lock(&self.state).running.remove(&self.image);
        self.report.send_replace(Pull::Ended(result));
    }

    async fn pull(&self) -> Result<(), Error> {
        let connection = self.engine.connection().await?;
        let options = CreateImageOptionsBuilder::default().from_image(self.image.as_str()).build();
        let mut messages = connection.docker.create_image(Some(options), None, None);
        let mut progress = Progress::default();
        let mut told = Instant::now();
        loop {
            let message = timeout(STALL, messages.next()).await.map_err(|_| self.stalled())?;
            let Some(message) = message else { return Ok(()) };
            progress.apply(&message.map_err(|error| self.failed(&error))?);
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                self.report.send_replace(Pull::Running(progress.text()));
            }
        }
    }

    fn stalled(&self) -> Error {
        self.engine.suspect.notify_one();
        let stalled = format!("the pull of {} made no progress for {} s", self.image.as_str(), STALL.as_secs());
        Error::start(Fault::Registry, stalled)
    }

    fn failed(&self, error: &bollard::errors::Error) -> Error {
        blame::of_pull(self.image.as_str(), self.engine.failure(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    #[test]
    fn the_digest_of_a_local_image_is_its_id() {
        let inspected = |repo_digests| ImageInspect {
            id: Some("sha256:1d".to_owned()),
            repo_digests: Some(repo_digests),
            ..ImageInspect::default()
        };
        let built = present(&image("x"), inspected(Vec::new()));
        assert_eq!((built.digest.as_deref(), built.pulled), (Some("sha256:1d"), false));
        let pulled = present(&image("x"), inspected(vec!["x@sha256:d1".to_owned()]));
        assert_eq!((pulled.digest.as_deref(), pulled.pulled), (Some("sha256:d1"), true));
    }

    #[test]
    fn an_image_of_another_platform_is_refused_and_both_are_named() {
        let (amd64, arm64) = (Platform::new("linux", "x86_64"), Platform::new("linux", "aarch64"));
        let check = |needs, host| check_platform(&image("x"), needs, host);
        assert_eq!(check(Some(&amd64), Some(&amd64)), Ok(()));
        assert_eq!((check(None, Some(&amd64)), check(Some(&arm64), None)), (Ok(()), Ok(())));
        let Err(Error::Start { fault, message }) = check(Some(&arm64), Some(&amd64)) else { panic!("it cannot run") };
        assert_eq!(fault, Fault::Platform { image: arm64 });
        assert_eq!(message, "image x:latest is for linux/arm64, and this host runs linux/amd64");
    }

    #[test]
    fn the_number_of_remembered_refreshes_is_bounded() {
        let mut state = State::default();
        for n in 0..MAX_REMEMBERED + 3 {
            state.remember(&image(&format!("x:{n}")));
        }
        assert_eq!(state.refreshed.len(), MAX_REMEMBERED);
        assert!(!state.refreshed.contains_key(&image("x:0")));
        assert!(state.refreshed.contains_key(&image("x:3")));
    }
}
