//! Tells a path that is too narrow for QUIC from a peer that does not answer.
//!
//! A handshake needs datagrams of 1200 bytes in both directions (RFC 9000, §14.1). A path that carries only smaller
//! ones, such as a tunnel in a tunnel, looks like a dead peer: the kernel or a router drops the datagrams, mostly
//! without a word. So while a handshake has no answer, small and full datagrams are sent beside it. Each looks like a
//! packet of a connection that the peer has forgotten, so the peer's endpoint answers it with a stateless reset
//! (RFC 9000, §10.3), which is smaller than what it answers.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::net::UdpSocket;
use tokio::time::{interval, sleep};

/// Bytes of the datagrams that QUIC needs.
pub(super) const FULL: usize = 1200;
/// Bytes of a datagram that every path carries: IPv4 itself needs 576 with its headers.
const SMALL: usize = 100;
/// How long a handshake may go on before the path is probed. Most are over within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two probes. An endpoint sends a stateless reset every 20 ms at most.
const PROBE_EVERY: Duration = Duration::from_millis(70);
/// Probes of each size. With the pauses between them they end before the handshake times out.
const PROBES: u32 = 5;
/// Answers to small datagrams that prove that the peer is there: one may be a packet that was late.
const ENOUGH: u32 = 2;

/// What the probes of one path have shown so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) small_answers: u32,
    pub(super) full_answers: u32,
    /// The kernel or a router refused to pass a full datagram on.
    too_large: bool,
}

impl Evidence {
    /// Whether the path carries small datagrams and no full ones.
    const fn is_narrow(&self) -> bool {
        self.full_answers == 0 && (self.too_large || self.small_answers >= ENOUGH)
    }
}

/// Probes the path to one address.
pub(super) struct Prober {
    /// The local address of the endpoint, which may be the unspecified one.
    from: IpAddr,
    to: SocketAddr,
    pub(super) evidence: Evidence,
}

impl Prober {
    pub(super) fn new(from: IpAddr, to: SocketAddr) -> Self {
        Self { from: from.to_canonical(), to, evidence: Evidence::default() }
    }

    pub(super) const fn is_narrow(&self) -> bool {
        self.evidence.is_narrow()
    }

    /// Probes the path, if it is not dropped within [`PATIENCE`]. It never returns; drop it for the result.
    pub(super) async fn run(&mut self) -> Infallible {
        sleep(PATIENCE).await;
        if let Err(error) = self.probe().await {
            tracing::debug!(to = %self.to, %error, "the path cannot be probed");
        }
        std::future::pending().await
    }

    async fn probe(&mut self) -> io::Result<()> {
        // A socket for each size: an answer does not say which datagram it answers.
        let (small, full) = (connected(self.from, self.to).await?, connected(self.from, self.to).await?);
        let (mut of_small, mut of_full) = ([0; FULL], [0; FULL]);
        let mut ticks = interval(PROBE_EVERY);
        let mut sent = 0;
        loop {
            tokio::select! {
                _ = ticks.tick(), if sent < 2 * PROBES => {
                    let (socket, size) = if sent.is_multiple_of(2) { (&small, SMALL) } else { (&full, FULL) };
                    self.note_error(socket.send(&datagram(size)?).await);
                    sent += 1;
                }
                received = small.recv(&mut of_small) => self.evidence.small_answers += u32::from(received.is_ok()),
                received = full.recv(&mut of_full) => {
                    self.evidence.full_answers += u32::from(received.is_ok());
                    self.note_error(received);
                }
            }
        }
    }

    /// A router's message that a datagram is too large comes with the next call on the socket.
    fn note_error(&mut self, done: io::Result<usize>) {
        let errno = done.err().and_then(|error| error.raw_os_error());
        self.evidence.too_large |= errno == Some(Errno::MSGSIZE.raw_os_error());
    }
}

/// A socket whose datagrams are never split on the way.
async fn connected(from: IpAddr, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let from = if from.is_unspecified() { any } else { from };
    let socket = UdpSocket::bind((from, 0)).await?;
    if to.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
    } else {
        sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
    }
    socket.connect(to).await?;
    Ok(socket)
}

/// Random bytes with the first byte of a packet with a short header (RFC 9000, §17.3): the connection that it seems to
/// belong to is none of the peer's.
fn datagram(size: usize) -> io::Result<Vec<u8>> {
    const FORM: u8 = 0b1100_0000;
    const SHORT: u8 = 0b0100_0000;
    let mut bytes = vec![0; size];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system has no random numbers"))?;
    bytes[0] = bytes[0] & !FORM | SHORT;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_narrow_if_it_carries_small_datagrams_and_no_full_ones() {
        let narrow =
            |small_answers, full_answers, too_large| Evidence { small_answers, full_answers, too_large }.is_narrow();
        assert!(narrow(ENOUGH, 0, false), "the large ones vanish");
        assert!(narrow(0, 0, true), "the interface or a router says so");
        assert!(!narrow(0, 0, false), "nobody answers");
        assert!(!narrow(ENOUGH - 1, 0, false), "one answer may be by chance");
        assert!(!narrow(ENOUGH, 1, false) && !narrow(ENOUGH, 1, true), "a full one was answered");
    }
}
