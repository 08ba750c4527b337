//! The mesh: one QUIC endpoint that calls other nodes and answers them.
//!
//! Whoever is on the other end proved in the TLS handshake that it has the cluster's token, and says in
//! its [hello](Hello) which node it is; before that no request passes in either direction. There is one
//! connection to a node, whoever dialled it, and it carries calls both ways and gossip. quinn stays in here.

mod cause;
mod client;
mod endpoint;
mod frame;
pub mod gossip;
mod pool;
mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::types::{ClusterMode, Name, NodeId};
use crate::wire::Envelope;

pub use cause::{Cause, Unwanted};
pub use endpoint::{BindError, Net, reset_key};

/// What a node says of itself before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub cluster: Name,
    pub node: NodeId,
    pub name: Name,
    /// Which life of its agent this is: grows with every start.
    pub incarnation: u64,
    pub version: String,
    pub mode: ClusterMode,
}

/// The node that a request comes from. It may ask for a person: that is the actor, in the envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    pub address: SocketAddr,
}

/// What is sent back.
pub enum Reply {
    Frame(Vec<u8>),
    /// A frame, and what follows it, to its end.
    Stream(Vec<u8>, BoxStream<'static, Bytes>),
    /// Nothing: the stream is reset.
    Refused,
}

/// Answers requests of peers.
#[async_trait]
pub trait Serve: Send + Sync + 'static {
    async fn serve(&self, from: &Peer, asked: Envelope) -> Reply;
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request was not delivered: the peer did nothing.
    #[error("node {node} cannot be reached: {cause}")]
    Unreachable {
        node: NodeId,
        #[source]
        cause: Cause,
    },
    /// The request was delivered, or may have been: what became of it is not known.
    #[error("node {node} did not answer: {cause}")]
    NoAnswer {
        node: NodeId,
        #[source]
        cause: Cause,
    },
}
