//! Requests to read the configuration again. The daemon has their owner, since no other part knows the configuration.

use tokio::sync::{mpsc, oneshot};

use super::Error;
use crate::types::{Actor, Refreshed};

/// Requests that wait for the owner at most. Further callers wait for a place: each takes some milliseconds.
const QUEUE: usize = 16;

/// Asks the owner of the configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Request>);

/// A request to read the configuration and its files again.
#[derive(Debug)]
pub struct Request {
    pub by: Actor,
    pub reply: oneshot::Sender<Result<Refreshed, Error>>,
}

/// The channel of the requests. It exists before its owner.
pub fn channel() -> (Handle, mpsc::Receiver<Request>) {
    let (requests, queue) = mpsc::channel(QUEUE);
    (Handle(requests), queue)
}

impl Handle {
    /// Reads the configuration and its files again. What takes effect without a restart is in force when this returns.
    ///
    /// # Errors
    /// A file cannot be read or is not valid: nothing changed.
    pub async fn refresh(&self, by: Actor) -> Result<Refreshed, Error> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Request { by, reply }).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}
