//! What chitchat sends and receives, over the mesh.
//!
//! chitchat awaits a send inside its one loop, and takes an error for the end of the transport: a message is
//! only put into a queue here, and what cannot be sent is lost, as gossip may be.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::endpoint::{Gossip, Inner, Net};

/// Messages that wait for one peer: with one a round, what is older is of no use.
const QUEUE: usize = 8;
/// How long a queue without messages is kept.
const KEPT: Duration = Duration::from_secs(60);
/// How long one message may take.
const SEND_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of a message of chitchat's at most, uncompressed.
const MAX_MESSAGE: usize = 65_507;
/// The fastest: messages are small and alike.
const COMPRESSION: i32 = 1;

/// Gives chitchat its one socket.
pub struct GossipTransport(pub Net);

#[async_trait]
impl Transport for GossipTransport {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let inbox = self.0.0.gossip_inbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let inbox = inbox.ok_or_else(|| anyhow::anyhow!("the mesh carries one gossip only"))?;
        Ok(Box::new(GossipSocket { net: Arc::clone(&self.0.0), queues: HashMap::new(), inbox }))
    }
}

struct GossipSocket {
    net: Arc<Inner>,
    queues: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>,
    inbox: mpsc::Receiver<Gossip>,
}

#[async_trait]
impl Socket for GossipSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let Ok(compressed) = zstd::bulk::compress(&message.serialize_to_vec(), COMPRESSION) else { return Ok(()) };
        self.queues.retain(|_, queue| !queue.is_closed());
        let net = &self.net;
        let queue = self.queues.entry(to).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(QUEUE);
            tokio::spawn(deliver(Arc::clone(net), to, messages));
            queue
        });
        // Full: the peer does not take what it was sent before.
        let _ = queue.try_send(compressed);
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Some((from, compressed)) = self.inbox.recv().await else { anyhow::bail!("the mesh is closed") };
            match decode(&compressed) {
                Some(message) => return Ok((from, message)),
                None => tracing::debug!(%from, "a message of gossip that cannot be read"),
            }
        }
    }
}

fn decode(compressed: &[u8]) -> Option<ChitchatMessage> {
    let bytes = zstd::bulk::decompress(compressed, MAX_MESSAGE).ok()?;
    ChitchatMessage::deserialize(&mut bytes.as_slice()).ok()
}

/// Brings messages to one address, until none comes for a while.
async fn deliver(net: Arc<Inner>, to: SocketAddr, mut messages: mpsc::Receiver<Vec<u8>>) {
    while let Ok(Some(message)) = timeout(KEPT, messages.recv()).await {
        let sent = timeout(SEND_WITHIN, async {
            let link = net.link_to(to).await?;
            let mut stream = link.connection.open_uni().await.map_err(|e| e.to_string())?;
            stream.write_all(&message).await.map_err(|e| e.to_string())?;
            stream.finish().map_err(|e| e.to_string())
        });
        if let Ok(Err(reason)) = sent.await {
            tracing::trace!(%to, reason, "gossip was not sent");
        }
    }
}
