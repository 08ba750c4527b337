//! Calls to other nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use quinn::{RecvStream, VarInt};
use tokio::time::timeout;

use super::endpoint::Net;
use super::metrics::Traffic;
use super::pool::Link;
use super::{Cause, Error, Hello, frame};
use crate::types::{Actor, NodeId};
use crate::wire::{Call, Envelope};

/// Bytes of a stream that are read at once.
const CHUNK: usize = 64 << 10;
/// How often a waiting call checks that the peer is alive.
const LISTEN_EVERY: Duration = Duration::from_millis(400);
/// Checks in a row without a packet from the peer after which it counts as dead: a dead host does not close its
/// connections.
const SILENT_ROUNDS: u32 = 3;
/// The code that closes a connection whose peer sends nothing any more.
const SILENT: VarInt = VarInt::from_u32(3);

impl Net {
    /// Asks a node, and waits for its answer so long. `by`: the person who asks; `None` where this node asks for
    /// itself.
    ///
    /// # Errors
    /// It was not asked, or did not answer.
    pub async fn call<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, Error> {
        let (answer, _) = self.call_stream(node, call, by, within).await?;
        Ok(answer)
    }

    /// Like [`Self::call`], for calls whose answer is followed by a stream.
    ///
    /// # Errors
    /// The call was not delivered, or the node did not answer.
    pub async fn call_stream<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<(C::Answer, impl Stream<Item = io::Result<Bytes>> + Send + use<C>), Error> {
        let request = Envelope::encode(by, &call);
        let request = request.map_err(|error| Error::Unreachable { node: *node, cause: error.into() })?;
        let (answer, rest) = self.ask(node, &request, within).await?;
        let answer = C::FORMAT.decode(&answer);
        let answer = answer.map_err(|error| Error::NoAnswer { node: *node, cause: error.into() })?;
        let received = self.0.metrics.calls.received.clone();
        let chunks = stream::try_unfold((rest, received), |(mut rest, received)| async move {
            match rest.read_chunk(CHUNK, true).await {
                Ok(Some(chunk)) => {
                    received.add(chunk.bytes.len() as u64);
                    Ok(Some((chunk.bytes, (rest, received))))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(io::Error::other(error)),
            }
        });
        Ok((answer, chunks))
    }

    /// Forwards another node's request: takes the request and returns the answer as encoded for the wire.
    ///
    /// # Errors
    /// The call was not delivered, or the node did not answer.
    pub async fn pass(&self, node: &NodeId, request: &[u8], within: Duration) -> Result<Vec<u8>, Error> {
        self.ask(node, request, within).await.map(|(answer, _)| answer)
    }

    /// The hello of a connected node.
    pub fn hello_of(&self, node: &NodeId) -> Option<Arc<Hello>> {
        self.0.pool.of_node(node).map(|link| link.hello)
    }

    /// The hellos of all connected nodes.
    pub fn connected(&self) -> Vec<Arc<Hello>> {
        self.0.pool.all().into_iter().map(|link| link.hello).collect()
    }

    async fn ask(&self, node: &NodeId, request: &[u8], within: Duration) -> Result<(Vec<u8>, RecvStream), Error> {
        let unreachable = |cause| Error::Unreachable { node: *node, cause };
        let link = match timeout(within, self.0.link(node)).await {
            Ok(link) => link.map_err(unreachable)?,
            Err(_) => return Err(unreachable(Cause::NoConnection)),
        };
        let no_answer = |cause| Error::NoAnswer { node: *node, cause };
        tokio::select! {
            answered = timeout(within, exchange(&link, request, &self.0.metrics.calls)) => match answered {
                Ok(answered) => answered.map_err(|cause| {
                    no_answer(link.connection.close_reason().map_or(cause, Cause::Connection))
                }),
                Err(_) => Err(no_answer(Cause::TimedOut(within))),
            },
            () = silence(&link) => {
                // The next call dials a new connection.
                link.connection.close(SILENT, b"silent");
                Err(no_answer(Cause::Silent))
            }
        }
    }
}

/// Returns once the peer has sent no packet for [`SILENT_ROUNDS`] checks, not even an acknowledgement.
async fn silence(link: &Link) {
    let heard = || link.connection.stats().udp_rx.datagrams;
    let (mut last, mut silent) = (heard(), 0);
    while silent < SILENT_ROUNDS {
        tokio::time::sleep(LISTEN_EVERY).await;
        // An empty message has no meaning, but the peer must acknowledge it.
        if let Ok(mut stream) = link.connection.open_uni().await {
            let _ = stream.finish();
        }
        let now = heard();
        silent = if now == last { silent + 1 } else { 0 };
        last = now;
    }
}

async fn exchange(link: &Link, request: &[u8], traffic: &Traffic) -> Result<(Vec<u8>, RecvStream), Cause> {
    let (mut to, mut from) = link.connection.open_bi().await?;
    frame::send(&mut to, request).await?;
    traffic.sent(request.len());
    let _ = to.finish();
    let answer = frame::receive_bytes(&mut from).await?;
    traffic.received(answer.len());
    Ok((answer, from))
}
