//! chitchat's transport over the mesh.
//!
//! chitchat awaits each send inside its only loop, and treats an error as the end of the transport. So a send only
//! puts the message into a queue, and a message that cannot be sent is dropped, as gossip may be.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatId, ChitchatMessage, Deserializable, Serializable};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Cause;
use super::endpoint::{Gossip, Inner, Net};
use super::pool::lock;

/// Messages that wait for one peer at most: chitchat sends one per round, and older ones are of no use.
const QUEUE: usize = 8;
/// How long a queue without messages is kept.
const KEPT: Duration = Duration::from_secs(60);
/// How long one message may take.
const SEND_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of a message of chitchat at most, uncompressed.
const MAX_MESSAGE: usize = 65_507;
/// Bytes of a message's changes at most, unpacked. chitchat packs changes into compressed blocks of its own, and
/// unpacks whatever arrives. The content of a block is repetitive, but never so much that it packs to a sixtieth.
const MAX_UNPACKED: usize = 4 << 20;
/// Bytes of one unpacked block of chitchat at most.
const MAX_BLOCK: usize = 65_535;
/// The fastest level: messages are small and repetitive.
const COMPRESSION: i32 = 1;

/// Gives chitchat its socket. It can be open once at a time. It is opened again when this host has another address:
/// then connections that peers made to an address that is gone are closed.
pub struct GossipTransport(pub Net);

#[async_trait]
impl Transport for GossipTransport {
    async fn open(&self, own: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let net = Arc::clone(&self.0.0);
        let inbox = lock(&net.gossip_inbox).take().ok_or(Ended::Taken)?;
        net.pool.close_stale();
        Ok(Box::new(GossipSocket { net, own, queues: HashMap::new(), inbox: Some(inbox) }))
    }
}

/// Why there is no gossip over the mesh.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the mesh carries one gossip only")]
    Taken,
    #[error("the mesh is closed")]
    Closed,
}

struct GossipSocket {
    net: Arc<Inner>,
    /// This node's address for the others.
    own: SocketAddr,
    queues: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>,
    /// `Some` until the socket is dropped.
    inbox: Option<mpsc::Receiver<Gossip>>,
}

impl Drop for GossipSocket {
    fn drop(&mut self) {
        *lock(&self.net.gossip_inbox) = self.inbox.take();
    }
}

#[async_trait]
impl Socket for GossipSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if to == self.own {
            return Ok(()); // an earlier start of this node, which chitchat treats as another node
        }
        let Ok(compressed) = zstd::bulk::compress(&message.serialize_to_vec(), COMPRESSION) else { return Ok(()) };
        self.queues.retain(|_, queue| !queue.is_closed());
        let net = &self.net;
        let queue = self.queues.entry(to).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(QUEUE);
            tokio::spawn(deliver(Arc::clone(net), to, messages));
            queue
        });
        // Fails if the queue is full because the peer does not accept earlier messages.
        let _ = queue.try_send(compressed);
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let inbox = self.inbox.as_mut().ok_or(Ended::Closed)?;
            let (from, compressed) = inbox.recv().await.ok_or(Ended::Closed)?;
            match decode(&compressed) {
                Some(message) => return Ok((from, message)),
                None => tracing::debug!(%from, "dropped an unreadable message of gossip"),
            }
        }
    }
}

/// Decodes a peer's message; `None` if it is not a message or too large.
pub fn decode(compressed: &[u8]) -> Option<ChitchatMessage> {
    let bytes = zstd::bulk::decompress(compressed, MAX_MESSAGE).ok()?;
    if unpacked(&bytes)? > MAX_UNPACKED {
        return None;
    }
    ChitchatMessage::deserialize(&mut bytes.as_slice()).ok()
}

/// How many bytes the blocks of a message unpack to; the count stops above [`MAX_UNPACKED`]. `None` if it is not a
/// message. A message is: magic number and version, kind, digest, blocks; not every kind has all of these.
fn unpacked(bytes: &[u8]) -> Option<usize> {
    const SYN_ACK: u8 = 1;
    const ACK: u8 = 2;
    const NO_MORE: u8 = 0;
    const PACKED: u8 = 1;
    let (header, mut rest) = bytes.split_at_checked(4)?;
    match header[3] {
        SYN_ACK => {
            for _ in 0..u16::deserialize(&mut rest).ok()? {
                ChitchatId::deserialize(&mut rest).ok()?;
                // The node's heartbeat, and two versions.
                <[u8; 24]>::deserialize(&mut rest).ok()?;
            }
        }
        ACK => {}
        _ => return Some(0),
    }
    let mut unpacker = zstd::bulk::Decompressor::new().ok()?;
    let mut buffer = vec![0; MAX_BLOCK];
    let mut total = 0;
    while total <= MAX_UNPACKED {
        let kind = u8::deserialize(&mut rest).ok()?;
        if kind == NO_MORE {
            break;
        }
        let length = u16::deserialize(&mut rest).ok()?;
        let block = rest.split_off(..usize::from(length))?;
        total += if kind == PACKED { unpacker.decompress_to_buffer(block, &mut buffer).ok()? } else { block.len() };
    }
    Some(total)
}

/// Sends messages to one address, until none comes for [`KEPT`].
async fn deliver(net: Arc<Inner>, to: SocketAddr, mut messages: mpsc::Receiver<Vec<u8>>) {
    while let Ok(Some(message)) = timeout(KEPT, messages.recv()).await {
        let sent = timeout(SEND_WITHIN, async {
            let link = net.link_to(to).await?;
            let mut stream = link.connection.open_uni().await?;
            stream.write_all(&message).await?;
            let _ = stream.finish();
            net.metrics.gossip.sent(message.len());
            Ok::<(), Cause>(())
        });
        if let Ok(Err(cause)) = sent.await {
            tracing::trace!(%to, reason = %cause, "gossip was not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::wire::fixture::damage::{damaged, damages};

    /// Text as chitchat encodes it.
    fn text(text: &str) -> Vec<u8> {
        [&u16::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// A node's id, generation and address.
    fn node(name: &str) -> Vec<u8> {
        [text(name), numbers(&[7]), vec![4, 127, 0, 0, 1], 7000_u16.to_le_bytes().to_vec()].concat()
    }

    fn digest() -> Vec<u8> {
        [2_u16.to_le_bytes().to_vec(), node("one"), numbers(&[3, 0, 9]), node("two"), numbers(&[4, 1, 8])].concat()
    }

    fn block(kind: u8, bytes: &[u8]) -> Vec<u8> {
        [&[kind][..], &u16::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
    }

    /// The node that the following changes belong to, in a block that is not packed.
    fn begins() -> Vec<u8> {
        block(2, &[vec![0], node("one"), numbers(&[0, 0])].concat())
    }

    /// A change of a node: a key and its value, in a packed block.
    fn delta() -> Vec<u8> {
        let changes = [vec![1], text("key"), text(&"value".repeat(20)), numbers(&[5]), vec![0]].concat();
        [begins(), block(1, &compress(&changes)), vec![0]].concat()
    }

    /// A message of each kind, before it is compressed.
    fn messages() -> [Vec<u8>; 4] {
        let message = |kind: u8, bytes: Vec<u8>| [vec![0x53, 0xb0, 0, kind], bytes].concat();
        [
            message(0, [digest(), text("cluster")].concat()),
            message(1, [digest(), delta()].concat()),
            message(2, delta()),
            message(3, Vec::new()),
        ]
    }

    fn compress(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, COMPRESSION).unwrap()
    }

    #[test]
    fn each_kind_of_message_is_decoded() {
        use ChitchatMessage::{Ack, BadCluster, Syn, SynAck};
        let [syn, syn_ack, ack, bad_cluster] = messages().map(|bytes| decode(&compress(&bytes)).unwrap());
        assert!(matches!(syn, Syn { .. }) && matches!(syn_ack, SynAck { .. }) && matches!(ack, Ack { .. }));
        assert_eq!(bad_cluster, BadCluster);
        assert_eq!(decode(&compress(&syn.serialize_to_vec())), Some(syn));
    }

    #[test]
    fn a_message_that_unpacks_to_more_than_its_limit_is_dropped() {
        let bomb = compress(&vec![0; 64 << 20]);
        assert!(bomb.len() < MAX_MESSAGE);
        assert_eq!(decode(&bomb), None);
    }

    #[test]
    fn blocks_that_unpack_to_more_than_their_limit_are_dropped() {
        // A version that is set repeatedly: nine bytes each here, many more in memory.
        let versions: Vec<u8> = [vec![2], numbers(&[0])].concat().into_iter().cycle().take(9 * 7281).collect();
        let block = block(1, &zstd::bulk::compress(&versions, 19).unwrap());
        let of = |blocks| [vec![0x53, 0xb0, 0, 2], begins(), block.repeat(blocks), vec![0]].concat();
        assert!(decode(&compress(&of(2))).is_some());
        let most = (MAX_MESSAGE - of(0).len()) / block.len();
        assert!(most * versions.len() > 2 * MAX_UNPACKED);
        assert_eq!(unpacked(&of(most)).unwrap() / MAX_BLOCK, MAX_UNPACKED / MAX_BLOCK, "the count stops at the limit");
        assert_eq!(decode(&compress(&of(most))), None);
    }

    proptest! {
        #[test]
        fn damaged_messages_cause_no_panic(message: Index, other: Index, inside in damages(), outside in damages()) {
            let messages = messages();
            let [message, other] = [message, other].map(|index| index.get(&messages));
            let compressed = compress(&damaged(message, other, &inside));
            decode(&compressed);
            decode(&damaged(&compressed, &compress(other), &outside));
        }
    }
}
