//! What the leader asks of a host's images: to have one before a session needs it, and whether one is the newest.

use std::time::Duration;

use super::pulls::Urgency;
use super::{Error, Fetch, Fetching, Handle, Pull, Request};
use crate::runtime::images::{PullCause, PullError};
use crate::types::ImageReference;

/// How long a host holds its answer while the pull runs. Callers wait longer than that for an answer.
const HOLD: Duration = Duration::from_secs(10);

impl Handle {
    /// Does what is asked, and returns once it is done or after [`HOLD`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fetch(&self, image: &ImageReference, how: Fetch) -> Result<Fetching, Error> {
        match how {
            Fetch::Checked { digest } => {
                self.send(Request::Checked { image: image.clone(), digest })?;
                Ok(Fetching::Done)
            }
            Fetch::Missing if self.has(image) => Ok(Fetching::Done),
            Fetch::Missing => self.wait_for_pull(image, Urgency::Ahead).await,
            // What came from no registry is never replaced by what a registry has under that name.
            Fetch::Refresh if !self.is_of_registry(image) => Ok(Fetching::Done),
            Fetch::Refresh => self.wait_for_pull(image, Urgency::Refresh).await,
        }
    }

    fn has(&self, image: &ImageReference) -> bool {
        let snapshot = self.snapshot();
        snapshot.meant(image).is_some_and(|listed| !snapshot.removing.contains(&listed.id))
    }

    fn is_of_registry(&self, image: &ImageReference) -> bool {
        let snapshot = self.snapshot();
        snapshot.meant(image).is_some_and(|listed| snapshot.fetched(&listed.id, image).is_some())
    }

    async fn wait_for_pull(&self, image: &ImageReference, urgency: Urgency) -> Result<Fetching, Error> {
        let mut pull = self.pull(image, urgency).await?;
        let ended = pull.wait_for(|pull| matches!(pull, Pull::Ended(_)));
        match tokio::time::timeout(HOLD, ended).await {
            Err(_) => Ok(Fetching::Runs),
            Ok(Ok(ended)) => match &*ended {
                Pull::Ended(Err(error)) => Err(error.clone().into()),
                _ => Ok(Fetching::Done),
            },
            Ok(Err(_)) => {
                let message = format!("the pull of {image} was aborted");
                Err(PullError { cause: PullCause::Other, message }.into())
            }
        }
    }
}
