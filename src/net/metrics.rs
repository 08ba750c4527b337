//! What the mesh counts.

use super::{Cause, Net, Unwanted};
use crate::metrics::{Count, CountBy, Registry, Source};
use crate::types::words;

/// Why a connection was not let in, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    OtherToken,
    OtherCluster,
    WrongClock,
    /// Another agent has the node id of this one.
    Twin,
    /// It broke off, or took too long.
    Unfinished,
    Other,
}
words!(Reason {
    OtherToken => "other_token",
    OtherCluster => "other_cluster",
    WrongClock => "wrong_clock",
    Twin => "twin",
    Unfinished => "unfinished",
    Other => "other",
});

/// The kinds of traffic between nodes.
const CHANNELS: [&str; 2] = [GOSSIP, CALL];
const GOSSIP: &str = "gossip";
/// Calls, their answers, and the streams that follow answers: logs and images.
const CALL: &str = "call";

/// The bytes of one kind of traffic.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) sent: Count,
    pub(super) received: Count,
}

impl Traffic {
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.add(bytes as u64);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.add(bytes as u64);
    }
}

#[derive(Debug)]
pub(super) struct Metrics {
    sent: CountBy,
    received: CountBy,
    rejected: CountBy,
    pub(super) gossip: Traffic,
    pub(super) calls: Traffic,
}

impl Default for Metrics {
    fn default() -> Self {
        let (sent, received) = (CountBy::new("channel", CHANNELS), CountBy::new("channel", CHANNELS));
        let traffic = |channel| Traffic { sent: sent.of(channel), received: received.of(channel) };
        let (gossip, calls) = (traffic(GOSSIP), traffic(CALL));
        Self {
            sent,
            received,
            rejected: CountBy::new("reason", Reason::ALL.iter().map(|word| word.as_str())),
            gossip,
            calls,
        }
    }
}

impl Metrics {
    pub(super) fn rejected(&self, cause: &Cause) {
        let reason = match cause {
            Cause::OtherToken => Reason::OtherToken,
            Cause::Unwanted(Unwanted::OtherCluster(_)) => Reason::OtherCluster,
            Cause::WrongClock(_) => Reason::WrongClock,
            Cause::Unwanted(Unwanted::Twin) => Reason::Twin,
            Cause::NoHello | Cause::Connection(_) | Cause::Read(_) | Cause::Write(_) => Reason::Unfinished,
            _ => Reason::Other,
        };
        self.rejected.of(reason.as_str()).inc();
    }

    pub(super) fn all_rejected(&self) -> u64 {
        self.rejected.total()
    }
}

impl Source for Net {
    fn register(&self, registry: &mut Registry<'_>) {
        let Metrics { sent, received, rejected, .. } = &self.0.metrics;
        let help =
            "Bytes of messages sent to other nodes, without QUIC's own: gossip; or calls, answers, logs and images";
        registry.count_by("mesh_sent_bytes", help, sent);
        registry.count_by(
            "mesh_received_bytes",
            "Bytes of messages received from other nodes, without QUIC's own",
            received,
        );
        let help = "Incoming connections of the mesh that were not let in, by reason";
        registry.count_by("handshakes_rejected", help, rejected);
        let peers = [("connected", self.connected().len()), ("unreachable", self.failures().len())];
        let help = "Nodes that this node has a connection to, and addresses that it could not reach lately";
        let peers = peers.map(|(state, count)| (vec![("state", state.to_owned())], count as f64));
        registry.gauges("mesh_peers", help, peers);
    }
}
