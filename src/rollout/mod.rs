//! The rollout of images, by turns of the leader: which node pulls an image before a session needs it, and which node
//! asks a registry for a newer one.
//!
//! [`daily`] (pure) says when a registry is to be asked about an image, and what follows from its answer for the other
//! nodes. [`turns`] (pure) chooses the next pulls, few at a time. [`task`] makes the calls while this node leads. A host
//! pulls by itself what a session needs: without a leader nothing is missing, it only comes later.

pub mod daily;
pub mod task;
pub mod turns;

use std::error::Error;

use async_trait::async_trait;

use crate::images;
use crate::images::{Fetch, Fetching};
use crate::types::{ImageReference, NodeId};

/// Why a node did not do it, as far as the leader knows.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// It does not answer. It may do it all the same.
    #[error("the node did not answer: {0}")]
    Unanswered(#[source] Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Refused(images::Error),
}

/// The leader's calls to hosts, itself included.
#[async_trait]
pub trait Fetchers: Send + Sync + 'static {
    /// Has a node fetch an image. The node answers after a bounded time, whether or not it is done.
    async fn fetch(&self, node: &NodeId, image: ImageReference, how: Fetch) -> Result<Fetching, NotFetched>;
}
