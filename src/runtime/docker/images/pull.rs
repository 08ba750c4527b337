//! One pull.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::progress::Layers;
use super::request::Messages;
use crate::runtime::docker::blame;
use crate::runtime::docker::engine::Engine;
use crate::runtime::images::{PullCause, PullError, PullOptions, PullProgress};
use crate::types::ImageReference;

/// What precedes the digest in a message.
const DIGEST: &str = "Digest: ";

/// Pulls an image, and sends the progress to `progress`. Returns the digest that the engine tells. It may take hours, but
/// fails if nothing new comes for too long.
pub(super) async fn pull(
    engine: &Engine,
    image: &ImageReference,
    options: &PullOptions,
    progress: mpsc::Sender<PullProgress>,
) -> Result<Option<String>, PullError> {
    let PullOptions { login, platform, patience } = options;
    let opened = Messages::open(engine, image, login.as_ref(), platform.as_ref(), patience.fetching).await;
    let mut messages = opened.map_err(|failure| blame::of_pull(image, failure))?;
    let (mut layers, mut digest, mut changed) = (Layers::default(), None, Instant::now());
    loop {
        let limit = layers.patience(patience);
        let message = timeout_at(changed + limit, messages.next()).await.map_err(|_| stalled(engine, image, limit))?;
        let Some(message) = message.map_err(|failure| blame::of_pull(image, failure))? else { return Ok(digest) };
        digest = message.status.as_deref().and_then(|status| status.strip_prefix(DIGEST)).map(str::to_owned).or(digest);
        if layers.apply(&message) {
            changed = Instant::now();
            // A receiver that is behind misses this progress; the next one replaces it anyway.
            let _ = progress.try_send(layers.progress());
        }
    }
}

/// Perhaps it is the engine that does not answer.
fn stalled(engine: &Engine, image: &ImageReference, limit: Duration) -> PullError {
    engine.suspect.notify_one();
    let message = format!("the pull of {image} made no progress for {} s", limit.as_secs());
    PullError { cause: PullCause::Stalled, message }
}
