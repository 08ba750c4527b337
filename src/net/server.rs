//! Accepts incoming connections, and answers requests on all connections.

use std::sync::Arc;

use futures_util::StreamExt;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{Duration, timeout};

use super::endpoint::{Inner, server_config};
use super::pool::{HANDSHAKE, Link, address_of};
use super::{Cause, Hello, Peer, Reply, frame};
use crate::types::NodeId;
use crate::wire::Envelope;

/// Handshakes in progress at most. Above half of it a peer must prove that its address is its own; at the limit
/// every connection is refused.
const MAX_HANDSHAKES: usize = 256;
/// How long the bytes of a request may take to arrive.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of one compressed message of gossip at most. The limit is above that of an uncompressed one.
const MAX_GOSSIP_BYTES: usize = 66_000;
/// The code that resets a stream whose request is not answered.
const REFUSED: VarInt = VarInt::from_u32(1);
/// The code that resets a stream whose content broke off.
const BROKEN: VarInt = VarInt::from_u32(4);
/// The priority of what follows an answer. That of calls and answers is 0.
const BEHIND_CALLS: i32 = -1;

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(net: Arc<Inner>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut credentials = net.credentials.clone();
    while let Some(incoming) = net.endpoint.accept().await {
        if credentials.has_changed().unwrap_or(false) {
            let current = credentials.borrow_and_update().clone();
            if let Ok(config) = server_config(&current) {
                net.endpoint.set_server_config(Some(config));
            }
        }
        let Ok(slot) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if handshakes.available_permits() < MAX_HANDSHAKES / 2 && !incoming.remote_address_validated() {
            // This cannot fail: a retry is permitted for every address that is not validated.
            let _ = incoming.retry();
            continue;
        }
        let net = Arc::clone(&net);
        tokio::spawn(async move {
            greet(&net, incoming).await;
            drop(slot);
        });
    }
}

async fn greet(net: &Arc<Inner>, incoming: Incoming) {
    let address = incoming.remote_address();
    let greeted = timeout(HANDSHAKE, async {
        let connection = incoming.await?;
        let (mut to, hello) = hear(&connection).await?;
        // The peer gets this node's hello only if its own is accepted.
        let link = net.admit(&connection, Ok(hello))?;
        let told = frame::send_value(&mut to, &net.me).await;
        let _ = to.finish();
        told.map(|()| link)
    });
    if let Err(cause) = greeted.await.unwrap_or(Err(Cause::NoHello)) {
        if cause.is_probe() {
            tracing::debug!(%address, "probed");
            return;
        }
        let cause = cause.explained(net.clock.now().wall);
        net.metrics.rejected(&cause);
        tracing::info!(%address, reason = %cause, "a connection was not let in");
    }
}

/// The peer's hello, and the way to answer it.
async fn hear(connection: &Connection) -> Result<(SendStream, Hello), Cause> {
    let (to, mut from) = connection.accept_bi().await?;
    let hello = frame::receive(&mut from).await?;
    Ok((to, hello))
}

/// Answers the requests on a connection and receives its gossip, until it ends.
pub(super) async fn answer(net: Arc<Inner>, link: Link) {
    let peer = Peer { node: link.hello.node, address: address_of(&link.connection) };
    tracing::debug!(node = %peer.node, address = %peer.address, "connected");
    loop {
        tokio::select! {
            stream = link.connection.accept_bi() => match stream {
                Ok((to, from)) => drop(tokio::spawn(respond(Arc::clone(&net), peer.clone(), to, from))),
                Err(_) => break,
            },
            stream = link.connection.accept_uni() => match stream {
                Ok(from) => drop(tokio::spawn(take_gossip(Arc::clone(&net), peer.address, from))),
                Err(_) => break,
            },
        }
    }
    net.parted(&link);
    tracing::debug!(node = %peer.node, address = %peer.address, "disconnected");
}

async fn respond(net: Arc<Inner>, peer: Peer, mut to: SendStream, mut from: RecvStream) {
    let bytes = match timeout(REQUEST_WITHIN, frame::receive_bytes(&mut from)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(cause)) => return refuse(&mut to, &peer.node, &cause.to_string()),
        Err(_) => return refuse(&mut to, &peer.node, "its request takes too long"),
    };
    let traffic = &net.metrics.calls;
    traffic.received(bytes.len());
    let asked = match Envelope::decode(&bytes) {
        Ok(asked) => asked,
        Err(error) => return refuse(&mut to, &peer.node, &error.to_string()),
    };
    let Some(serve) = net.serve.get() else { return refuse(&mut to, &peer.node, "this node has only just started") };
    let (serve, asked_by) = (Arc::clone(serve), peer.clone());
    let served = tokio::spawn(async move { serve.serve(&asked_by, asked).await });
    // Whoever does not wait any more needs no answer; what it asked for is done all the same.
    let reply = tokio::select! {
        reply = served => reply,
        _ = to.stopped() => return,
    };
    match reply {
        Ok(Reply::Frame(answer)) => {
            if frame::send(&mut to, &answer).await.is_ok() {
                traffic.sent(answer.len());
                let _ = to.finish();
            }
        }
        Ok(Reply::Stream(answer, mut rest)) => {
            // Calls come first: an election must not wait for a log or an image.
            let _ = to.set_priority(BEHIND_CALLS);
            if frame::send(&mut to, &answer).await.is_err() {
                return;
            }
            loop {
                let chunk = tokio::select! {
                    chunk = rest.next() => chunk,
                    _ = to.stopped() => return,
                };
                let chunk = match chunk {
                    None => break,
                    Some(Ok(chunk)) => chunk,
                    Some(Err(error)) => {
                        tracing::debug!(node = %peer.node, %error, "the stream of an answer broke");
                        let _ = to.reset(BROKEN);
                        return;
                    }
                };
                let bytes = chunk.len();
                if to.write_chunk(chunk).await.is_err() {
                    return;
                }
                traffic.sent(bytes);
            }
            let _ = to.finish();
        }
        Ok(Reply::Refused) => refuse(&mut to, &peer.node, "the peer may not make this request"),
        Err(panic) => refuse(&mut to, &peer.node, &panic.to_string()),
    }
}

fn refuse(to: &mut SendStream, node: &NodeId, reason: &str) {
    tracing::debug!(%node, reason, "a request is not answered");
    let _ = to.reset(REFUSED);
}

async fn take_gossip(net: Arc<Inner>, address: std::net::SocketAddr, mut from: RecvStream) {
    if let Ok(Ok(message)) = timeout(REQUEST_WITHIN, from.read_to_end(MAX_GOSSIP_BYTES)).await
        // An empty message is only sent to be acknowledged.
        && !message.is_empty()
    {
        net.metrics.gossip.received(message.len());
        // Gossip may be lost: chitchat sends it again.
        let _ = net.gossip.try_send((address, message));
    }
}
