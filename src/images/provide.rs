//! Provides the images of sessions: here as the pull policy says, or pulled while the session waits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::ownership::Fetched;
use super::pulls::Urgency;
use super::{Handle, Pull, Request, Snapshot};
use crate::runtime::images::{ImageDetails, PullCause, PullError};
use crate::runtime::{self, Fault, Health, Launch, ProvideImages, Provided};
use crate::types::{BootInstant, ImageReference, Platform, PullPolicy};

/// A node asks the registry about a [`PullPolicy::Daily`] image by itself once nobody did for so long. The leader has the
/// cluster ask once a day: the hours beyond it are for its turns, and for a new leader.
const ASK_AFTER: Duration = Duration::from_secs(27 * 3600);
/// How often a caller that waits for a pull passes its progress on.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long a session waits for a registry that limits pulls. It is the user that waits: beyond it an error is better.
const LIMIT_PATIENCE: Duration = Duration::from_secs(600);
/// How often a caller that waits for a registry is told how long it still waits.
const COUNTDOWN_EVERY: Duration = Duration::from_secs(5);

#[async_trait]
impl ProvideImages for Handle {
    async fn ensure(&self, launch: &Launch, progress: mpsc::Sender<String>) -> Result<Provided, runtime::Error> {
        let text = launch.image.as_deref();
        let none = || runtime::Error::start(Fault::Workspace, "the Docker runtime needs an image");
        let parsed = ImageReference::parse(text.ok_or_else(none)?);
        let image = parsed.map_err(|odd| runtime::Error::start(Fault::Image, odd))?;
        self.provide(&image, launch.pull, &progress).await
    }
}

impl Handle {
    /// Makes an image available to a session that is about to be made from it.
    pub(super) async fn provide(
        &self,
        image: &ImageReference,
        policy: PullPolicy,
        progress: &mpsc::Sender<String>,
    ) -> Result<Provided, runtime::Error> {
        let here = self.make_available(image, policy, progress).await?;
        check_platform(image, here.platform.as_ref(), platform_of(&self.health).as_ref())?;
        // If the owner is busy, the image seems a little older than it is.
        let _ = self.send(Request::Used(here.id.clone()));
        let digest = Some(self.digest(image, &here));
        // Of an image that another node gave, the engine does not know the digest.
        let is_unknown = image.digest().is_some() && !image.names(&here.names, &here.digests);
        Ok(Provided { digest, id: is_unknown.then_some(here.id) })
    }

    /// The image, once it is here and as the policy says.
    pub(super) async fn make_available(
        &self,
        image: &ImageReference,
        policy: PullPolicy,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        let Some(here) = self.look(image).await? else {
            return self.pull_now(image, progress).await;
        };
        if !self.runs_here(&here) && self.snapshot().fetched(&here.id, image).is_some() {
            return self.replace_platform(image, here, progress).await;
        }
        // A digest means the same image for ever.
        if policy == PullPolicy::Missing || image.digest().is_some() {
            return Ok(here);
        }
        // What came from no registry is never replaced by what a registry has under that name.
        let Some(asked_at) = self.snapshot().fetched(&here.id, image).map(Fetched::asked_at) else {
            return Ok(here);
        };
        if policy == PullPolicy::Always {
            return self.refresh_now(image, here, progress).await;
        }
        if self.clock.now().since(asked_at) >= ASK_AFTER {
            // The session does not wait for it. If the owner is busy, the next session asks again.
            let _ = self.pull(image, Urgency::Refresh).await;
        }
        Ok(here)
    }

    async fn pull_now(
        &self,
        image: &ImageReference,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        self.pull_and_wait(image, progress, LIMIT_PATIENCE).await?;
        let removed = || runtime::Error::start(Fault::Host, format!("image {image} was removed right after its pull"));
        self.look(image).await?.ok_or_else(removed)
    }

    /// The registry gave an image for another platform. It may have one for this host now; if it has none, the image that
    /// is here tells why the session does not start.
    async fn replace_platform(
        &self,
        image: &ImageReference,
        here: ImageDetails,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        match self.pull_now(image, progress).await {
            Err(runtime::Error::Start { fault: Fault::Image, .. }) => Ok(here),
            pulled => pulled,
        }
    }

    /// Pulls the image; if that fails, or would have to wait for the registry, uses the one that is here.
    async fn refresh_now(
        &self,
        image: &ImageReference,
        here: ImageDetails,
        progress: &mpsc::Sender<String>,
    ) -> Result<ImageDetails, runtime::Error> {
        if let Err(error) = self.pull_and_wait(image, progress, Duration::ZERO).await {
            tracing::warn!(%image, "cannot refresh the image, using the local one: {error}");
            return Ok(here);
        }
        Ok(self.look(image).await?.unwrap_or(here))
    }

    /// The image, if it is here and is not being removed.
    pub(super) async fn look(&self, image: &ImageReference) -> Result<Option<ImageDetails>, runtime::Error> {
        let mut snapshot = self.snapshot.clone();
        loop {
            let Some(here) = self.details(image).await? else { return Ok(None) };
            let is_going = |snapshot: &Arc<Snapshot>| snapshot.removing.contains(&here.id);
            if !is_going(&snapshot.borrow_and_update()) {
                return Ok(Some(here));
            }
            let stopping = |_| runtime::Error::Unavailable("the daemon is stopping".to_owned());
            snapshot.wait_for(|snapshot| !is_going(snapshot)).await.map_err(stopping)?;
        }
    }

    /// The image, if it is here.
    pub(super) async fn details(&self, image: &ImageReference) -> Result<Option<ImageDetails>, runtime::Error> {
        if let Some(here) = self.engine.inspect(image.as_str()).await? {
            return Ok(Some(here));
        }
        let recorded = self.snapshot().of_digest(image).map(str::to_owned);
        match recorded {
            Some(id) => self.engine.inspect(&id).await,
            None => Ok(None),
        }
    }

    /// Pulls, or joins a pull that runs, and sends its progress until it ends. Waits for a registry that limits pulls for
    /// as long as `patience`.
    async fn pull_and_wait(
        &self,
        image: &ImageReference,
        progress: &mpsc::Sender<String>,
        patience: Duration,
    ) -> Result<(), runtime::Error> {
        let joined = self.pull(image, Urgency::Demand).await;
        let mut pull = joined.map_err(|error| runtime::Error::Unavailable(error.to_string()))?;
        // When it first had to wait for the registry.
        let mut held: Option<BootInstant> = None;
        loop {
            let now = pull.borrow_and_update().clone();
            let mut pause = PROGRESS_EVERY;
            let text = match &now {
                Pull::Ended(result) => return result.clone().map_err(runtime::Error::from),
                Pull::Waiting => "waiting for other pulls".to_owned(),
                Pull::Running(now) => now.to_string(),
                Pull::Limited { registry, until } => {
                    let now = self.clock.now().boot;
                    let left = patience.saturating_sub(now.since(*held.get_or_insert(now)));
                    let text = limited(registry, until.since(now));
                    if left.is_zero() {
                        let message = format!("cannot pull {image}: {text}");
                        return Err(PullError { cause: PullCause::Limited, message }.into());
                    }
                    pause = left.min(COUNTDOWN_EVERY);
                    text
                }
                Pull::Copying { node, copied, size } => format!("copying {copied} of {size} from node {node}"),
            };
            // A receiver that is behind misses this progress; the next one replaces it anyway.
            drop(progress.try_send(text));
            let is_limited = matches!(now, Pull::Limited { .. });
            wait(&mut pull, is_limited, pause).await.map_err(|_| aborted(image))?;
        }
    }

    fn runs_here(&self, image: &ImageDetails) -> bool {
        runs(image, platform_of(&self.health).as_ref())
    }

    /// The digest that is told of a session's image: that of its own repository, or the image's id.
    fn digest(&self, image: &ImageReference, here: &ImageDetails) -> String {
        let fetched = || self.snapshot().fetched(&here.id, image).and_then(|fetched| fetched.digest.clone());
        let own = || image.own_digests(&here.digests).next().map(str::to_owned);
        image.digest().map(str::to_owned).or_else(fetched).or_else(own).unwrap_or_else(|| here.id.clone())
    }
}

/// Returns when there may be news. A pull that runs has news at most once a `pause`; a limit counts down meanwhile.
async fn wait(
    pull: &mut watch::Receiver<Pull>,
    is_limited: bool,
    pause: Duration,
) -> Result<(), watch::error::RecvError> {
    if is_limited {
        return tokio::time::timeout(pause, pull.changed()).await.unwrap_or(Ok(()));
    }
    pull.changed().await?;
    let ended = pull.wait_for(|pull| matches!(pull, Pull::Ended(_) | Pull::Limited { .. }));
    let _ = tokio::time::timeout(pause, ended).await;
    Ok(())
}

fn aborted(image: &ImageReference) -> runtime::Error {
    PullError { cause: PullCause::Other, message: format!("the pull of {image} was aborted") }.into()
}

fn limited(registry: &str, left: Duration) -> String {
    let next = match left.as_secs() {
        0 => "soon".to_owned(),
        seconds @ ..120 => format!("in {seconds} s"),
        seconds => format!("in {} min", seconds / 60),
    };
    format!("registry {registry} limits pulls (429); next try {next}")
}

/// The platform of the engine's images, if it is up and says so.
pub(super) fn platform_of(health: &watch::Receiver<Health>) -> Option<Platform> {
    match &*health.borrow() {
        Health::Up(info) => info.platform.clone(),
        Health::Unknown | Health::Down { .. } => None,
    }
}

/// Whether this host can execute the image's programs, as far as is known.
pub(super) fn runs(image: &ImageDetails, host: Option<&Platform>) -> bool {
    image.platform.as_ref().zip(host).is_none_or(|(needs, host)| host.runs(needs))
}

/// Refuses an image whose programs this host cannot execute: a container of it would end at once, without a word.
fn check_platform(
    image: &ImageReference,
    needs: Option<&Platform>,
    host: Option<&Platform>,
) -> Result<(), runtime::Error> {
    match (needs, host) {
        (Some(needs), Some(host)) if !host.runs(needs) => {
            let message = format!("image {image} is for {needs}, and this host runs {host}");
            Err(runtime::Error::start(Fault::Platform { image: needs.clone() }, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_with_the_time_that_is_left() {
        let text = |seconds| limited("docker.io", Duration::from_secs(seconds));
        assert_eq!(text(55), "registry docker.io limits pulls (429); next try in 55 s");
        assert_eq!(text(1799), "registry docker.io limits pulls (429); next try in 29 min");
        assert_eq!(text(0), "registry docker.io limits pulls (429); next try soon");
    }

    #[test]
    fn an_image_of_another_platform_is_refused_and_both_are_named() {
        let (amd64, arm64) = (Platform::new("linux", "x86_64"), Platform::new("linux", "aarch64"));
        let image = ImageReference::parse("x").unwrap();
        let check = |needs, host| check_platform(&image, needs, host);
        assert_eq!(check(Some(&amd64), Some(&amd64)), Ok(()));
        assert_eq!((check(None, Some(&amd64)), check(Some(&arm64), None)), (Ok(()), Ok(())));
        let Err(runtime::Error::Start { fault, message }) = check(Some(&arm64), Some(&amd64)) else {
            panic!("it cannot run")
        };
        assert_eq!(fault, Fault::Platform { image: arm64 });
        assert_eq!(message, "image x:latest is for linux/arm64, and this host runs linux/amd64");
    }
}
