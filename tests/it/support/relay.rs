//! A network on loopback that loses, delays and reorders packets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::random::Random;

/// Most bytes of a packet.
const MAX_PACKET: usize = 65_535;
/// How often a waiting thread checks whether the relay has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a network does to packets in each direction.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    /// Lost packets, in percent.
    pub(crate) lost: u64,
    pub(crate) delay: Duration,
    /// Most of the random extra delay, so that packets overtake each other.
    pub(crate) jitter: Duration,
}

/// A relay in front of every node. Each node is reached at an address of the relay, and its packets come from there.
pub(crate) struct Relay {
    addresses: Vec<SocketAddr>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Ordered by the time of arrival, then by the time of sending.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    sent: Instant,
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

/// The nodes, and the relay's socket for each.
struct Sides {
    nodes: Vec<SocketAddr>,
    sockets: Vec<UdpSocket>,
}

impl Relay {
    /// Relays between nodes that listen at these addresses. The seed and the number of packets decide which are lost.
    pub(crate) fn between(nodes: Vec<SocketAddr>, weather: Weather, seed: u64) -> Self {
        let sockets: Vec<UdpSocket> = nodes.iter().map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let over = Arc::new(AtomicBool::new(false));
        let (packets, sent) = mpsc::channel();
        let sides = Arc::new(Sides { nodes, sockets });
        let mut threads: Vec<_> = (0..sides.nodes.len())
            .map(|to| {
                let (sides, packets, over) = (Arc::clone(&sides), packets.clone(), Arc::clone(&over));
                let random = Random(seed.wrapping_add(to as u64));
                std::thread::spawn(move || take(&sides, to, weather, random, &packets, &over))
            })
            .collect();
        threads.push(std::thread::spawn(move || deliver(&sides, &sent)));
        Self { addresses, over, threads }
    }

    /// The address where a node is reached.
    pub(crate) fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Receives the packets to one node.
fn take(sides: &Sides, to: usize, weather: Weather, mut random: Random, packets: &Sender<Packet>, over: &AtomicBool) {
    let socket = &sides.sockets[to];
    socket.set_read_timeout(Some(LOOK_EVERY)).unwrap();
    let mut buffer = vec![0; MAX_PACKET];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, sender)) = socket.recv_from(&mut buffer) else { continue };
        let Some(from) = sides.nodes.iter().position(|node| *node == sender) else { continue };
        if random.below(100) < weather.lost {
            continue;
        }
        let sent = Instant::now();
        let jitter = random.below(u64::try_from(weather.jitter.as_micros()).unwrap() + 1);
        let due = sent + weather.delay + Duration::from_micros(jitter);
        let _ = packets.send(Packet { due, sent, from, to, bytes: buffer[..length].to_vec() });
    }
}

/// Delivers each packet when it is due, until every sender has ended.
fn deliver(sides: &Sides, sent: &Receiver<Packet>) {
    let mut underway = BinaryHeap::new();
    loop {
        let next = underway.peek().map(|Reverse(Packet { due, .. })| *due);
        let wait = next.map_or(LOOK_EVERY, |due| due.saturating_duration_since(Instant::now()));
        match sent.recv_timeout(wait) {
            Ok(packet) => underway.push(Reverse(packet)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while underway.peek().is_some_and(|Reverse(Packet { due, .. })| *due <= Instant::now()) {
            let Some(Reverse(packet)) = underway.pop() else { break };
            // A node that does not run receives nothing.
            let _ = sides.sockets[packet.from].send_to(&packet.bytes, sides.nodes[packet.to]);
        }
    }
}
