//! The mesh: one QUIC endpoint that calls other nodes and answers them.
//!
//! The peer proves in the TLS handshake that it has the cluster's token, and says in its [hello](Hello) which
//! node it is. Before that no request passes in either direction. There is one connection to a node, dialled by
//! either side, and it carries calls both ways and gossip. Only this part uses quinn.

mod cause;
mod client;
mod endpoint;
mod frame;
pub mod gossip;
mod metrics;
mod path;
mod pool;
mod probe;
mod server;
#[cfg(test)]
mod tests;
mod twin;

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::types::{ClusterMode, Name, NodeId};
use crate::wire::Envelope;

pub use cause::{Cause, Unwanted, WrongClock};
pub use endpoint::{BindError, Net, reset_key};
pub use probe::{Unreached, probe};

/// A node's first message on a connection: what it says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub cluster: Name,
    pub node: NodeId,
    pub name: Name,
    /// Counts the starts of the agent: grows with every start.
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

/// The answer to a request.
pub enum Reply {
    Frame(Vec<u8>),
    /// A frame, and the stream that follows it. After an error the peer's end of the stream breaks, too.
    Stream(Vec<u8>, BoxStream<'static, io::Result<Bytes>>),
    /// Nothing: the stream is reset.
    Refused,
}

/// Answers the requests of peers.
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
