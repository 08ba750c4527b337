//! One pull.

use std::time::Duration;

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::progress::Layers;
use crate::runtime::docker::blame;
use crate::runtime::docker::engine::{Engine, Failure};
use crate::runtime::images::{PullCause, PullError, PullProgress};
use crate::types::ImageReference;

/// A pull may take hours, but it fails if no message comes for this long. The engine's retries of a registry and the
/// unpacking of a layer take less.
const STALL: Duration = Duration::from_secs(180);

/// Pulls an image, and sends the progress to `progress`. Returns the digest that the engine tells.
pub(super) async fn pull(
    engine: &Engine,
    image: &ImageReference,
    progress: mpsc::Sender<PullProgress>,
) -> Result<Option<String>, PullError> {
    let lost = |failure: Failure| PullError { cause: PullCause::Engine, message: failure.to_string() };
    let connection = engine.connection().await.map_err(lost)?;
    let options = CreateImageOptionsBuilder::default().from_image(image.as_str()).build();
    let mut messages = connection.docker.create_image(Some(options), None, None);
    let mut layers = Layers::default();
    let mut digest = None;
    loop {
        let message = timeout(STALL, messages.next()).await.map_err(|_| {
            engine.suspect.notify_one();
            let message = format!("the pull of {image} made no progress for {} s", STALL.as_secs());
            PullError { cause: PullCause::Stalled, message }
        })?;
        let Some(message) = message else { return Ok(digest) };
        let message = message.map_err(|error| blame::of_pull(image.as_str(), engine.failure(&error)))?;
        digest =
            message.status.as_deref().and_then(|status| status.strip_prefix("Digest: ")).map(str::to_owned).or(digest);
        layers.apply(&message);
        // A receiver that is behind misses this progress; the next one replaces it anyway.
        let _ = progress.try_send(layers.progress());
    }
}
