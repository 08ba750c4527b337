//! The kernel's table of tracked connections, read through netlink. Root and `CAP_NET_ADMIN` may read it.
//!
//! `/proc/net/nf_conntrack` would show the same, but not every distribution builds it into its kernel.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol as IpProtocol, Status,
    Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::{Connection, Destination, RECENT, SILENT};
use crate::types::Protocol;

/// Bytes of an answer at most: the kernel fills up to 32 KiB of the reader's buffer.
const BUFFER: usize = 64 * 1024;
/// How long the kernel may take for the next part of its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the kernel says how long it remembers a connection in a state.
const SETTINGS: &str = "/proc/sys/net/netfilter/nf_conntrack_";
/// The names of the states of TCP there, by the number of the state.
const TCP_STATES: [&str; 9] =
    ["", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close"];
const ESTABLISHED: u8 = 3;
/// The number of the first state in which a connection was open once.
const FIRST_CLOSING: u8 = 4;

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    protocol: Protocol,
    client: IpAddr,
    destination: IpAddr,
    port: u16,
    /// The kernel passes its packets on to another address: that of a container.
    translated: bool,
    /// The other side answered.
    replied: bool,
    /// Packets went both ways for more than a moment.
    assured: bool,
    /// The number of the state of TCP; 0 for UDP.
    state: u8,
    /// How long the kernel remembers it without a further packet.
    left: Duration,
}

/// How long the kernel remembers a connection after its last packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Timeouts {
    /// By the number of the state.
    tcp: [Option<Duration>; TCP_STATES.len()],
    /// Of an open TCP connection whose last data was not acknowledged.
    tcp_unacknowledged: Option<Duration>,
    udp: Option<Duration>,
    udp_stream: Option<Duration>,
}

impl Timeouts {
    /// Those of this host, from its kernel's settings. One that cannot be read is not known.
    pub(super) fn read() -> Self {
        let setting = |name: &str| {
            let text = fs::read_to_string(format!("{SETTINGS}{name}")).ok()?;
            text.trim().parse().ok().map(Duration::from_secs)
        };
        Self {
            tcp: TCP_STATES.map(|state| setting(&format!("tcp_timeout_{state}"))),
            tcp_unacknowledged: setting("tcp_timeout_unacknowledged"),
            udp: setting("udp_timeout"),
            udp_stream: setting("udp_timeout_stream"),
        }
    }
}

impl Flow {
    /// Whether it counts as use now: an open TCP connection, unless it has been silent for long; any other for a short
    /// time after its last packet. One that nobody answered does not.
    pub(super) fn counts(&self, timeouts: &Timeouts) -> bool {
        let whole = match (self.protocol, self.state) {
            (Protocol::Tcp, ESTABLISHED) => {
                let whole = timeouts.tcp[usize::from(ESTABLISHED)];
                let silent = whole.is_some_and(|whole| whole.saturating_sub(self.left) > SILENT);
                // Data on its way: the kernel counts from a shorter time, after which it forgets the connection.
                let sends = timeouts.tcp_unacknowledged.is_none_or(|whole| self.left <= whole);
                return !silent || sends;
            }
            (Protocol::Tcp, FIRST_CLOSING..) => timeouts.tcp.get(usize::from(self.state)).copied().flatten(),
            (Protocol::Udp, _) if self.assured => timeouts.udp_stream,
            (Protocol::Udp, _) if self.replied => timeouts.udp,
            _ => return false,
        };
        whole.is_none_or(|whole| whole.saturating_sub(self.left) <= RECENT)
    }

    pub(super) const fn connection(&self) -> Connection {
        let to = if self.translated { Destination::Here } else { Destination::Address(self.destination) };
        Connection { protocol: self.protocol, client: self.client, port: self.port, to }
    }

    /// `None`: it is neither TCP nor UDP, or the kernel does not describe it.
    fn of(attributes: &[ConntrackAttribute]) -> Option<Self> {
        let original = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
            _ => None,
        })?;
        let status = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaStatus(status) => Some(*status),
            _ => None,
        });
        let left = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTimeout(seconds) => Some(Duration::from_secs(u64::from(*seconds))),
            _ => None,
        });
        let state = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaProtoInfo(parts) => parts.iter().find_map(tcp_state),
            _ => None,
        });
        let status = status.unwrap_or(Status::empty());
        let addresses = || original.iter().flat_map(|part| if let Tuple::Ip(ip) = part { &**ip } else { &[] });
        let ports = || original.iter().flat_map(|part| if let Tuple::Proto(proto) = part { &**proto } else { &[] });
        let protocol = ports().find_map(|part| match part {
            ProtoTuple::Protocol(IpProtocol::Tcp) => Some(Protocol::Tcp),
            ProtoTuple::Protocol(IpProtocol::Udp) => Some(Protocol::Udp),
            _ => None,
        })?;
        Some(Self {
            protocol,
            client: addresses().find_map(|part| match part {
                IPTuple::SourceAddress(address) => Some(*address),
                _ => None,
            })?,
            destination: addresses().find_map(|part| match part {
                IPTuple::DestinationAddress(address) => Some(*address),
                _ => None,
            })?,
            port: ports().find_map(|part| match part {
                ProtoTuple::DestinationPort(port) => Some(*port),
                _ => None,
            })?,
            translated: status.contains(Status::DstNat),
            replied: status.contains(Status::SeenReply),
            assured: status.contains(Status::Assured),
            state: state.unwrap_or(0),
            left: left.unwrap_or_default(),
        })
    }
}

fn tcp_state(part: &ProtoInfo) -> Option<u8> {
    let ProtoInfo::TCP(parts) = part else { return None };
    parts.iter().find_map(|part| if let ProtoInfoTCP::State(state) = part { Some(*state) } else { None })
}

/// All tracked connections over TCP and UDP.
///
/// # Errors
/// The kernel has no connection tracking, or this process may not read it.
pub(super) fn dump() -> io::Result<Vec<Flow>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    rustix::net::send(&socket, &request(), SendFlags::empty())?;
    let mut flows = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let (read, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())?;
        if take(&buffer[..read], &mut flows)? {
            return Ok(flows);
        }
    }
}

fn request() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let everything = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let body = NetfilterMessage::new(everything, ConntrackMessage::Get(Vec::new()));
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(body));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Takes one part of the answer; true if it was the last.
fn take(mut part: &[u8], flows: &mut Vec<Flow>) -> io::Result<bool> {
    while !part.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(part).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) => flows.extend(Flow::of(&attributes)),
            _ => {}
        }
        // Messages begin at multiples of four bytes. A length of 0 would never end.
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4).max(4);
        part = part.get(length..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The defaults of Linux.
    fn timeouts() -> Timeouts {
        Timeouts {
            tcp: [0, 120, 60, 432_000, 120, 60, 30, 120, 10].map(|s| Some(secs(s))),
            tcp_unacknowledged: Some(secs(300)),
            udp: Some(secs(30)),
            udp_stream: Some(secs(120)),
        }
    }

    fn tcp(state: u8, left: u64) -> Flow {
        let address = |text: &str| text.parse().unwrap();
        Flow {
            protocol: Protocol::Tcp,
            client: address("10.0.0.5"),
            destination: address("10.0.0.1"),
            port: 20_000,
            translated: true,
            replied: true,
            assured: true,
            state,
            left: secs(left),
        }
    }

    #[test]
    fn an_open_connection_counts_until_it_has_been_silent_for_hours() {
        let counts = |left| tcp(ESTABLISHED, left).counts(&timeouts());
        assert!(counts(432_000) && counts(432_000 - 3600) && counts(432_000 - SILENT.as_secs()));
        assert!(!counts(432_000 - SILENT.as_secs() - 1) && !counts(301));
        assert!(counts(300), "data on its way");
        let unknown = Timeouts { tcp: [None; 9], ..timeouts() };
        assert!(tcp(ESTABLISHED, 1000).counts(&unknown), "what is not known ends no session");
    }

    #[test]
    fn a_closed_connection_counts_for_a_moment_and_an_unanswered_one_never() {
        let counts = |state, left| tcp(state, left).counts(&timeouts());
        assert!(counts(7, 120) && counts(7, 105) && !counts(7, 104), "time_wait");
        assert!(counts(4, 119) && counts(8, 10) && !counts(5, 30));
        assert!(!counts(1, 120) && !counts(2, 60), "syn_sent, syn_recv");
    }

    #[test]
    fn datagrams_count_for_a_moment_after_an_answer() {
        let udp = |replied, assured, left| {
            let flow = Flow { protocol: Protocol::Udp, state: 0, replied, assured, ..tcp(0, left) };
            flow.counts(&timeouts())
        };
        assert!(udp(true, true, 110) && !udp(true, true, 100));
        assert!(udp(true, false, 20) && !udp(true, false, 10));
        assert!(!udp(false, false, 30), "a scan of a port where nobody listens");
    }

    #[test]
    fn a_tracked_connection_is_read_from_what_the_kernel_sends() {
        let original = vec![
            Tuple::Ip(vec![
                IPTuple::SourceAddress("10.0.0.5".parse().unwrap()),
                IPTuple::DestinationAddress("10.0.0.1".parse().unwrap()),
            ]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(IpProtocol::Tcp),
                ProtoTuple::SourcePort(50_000),
                ProtoTuple::DestinationPort(20_000),
            ]),
        ];
        let attributes = vec![
            ConntrackAttribute::CtaTupleOrig(original),
            ConntrackAttribute::CtaStatus(Status::DstNat | Status::SeenReply | Status::Assured),
            ConntrackAttribute::CtaTimeout(431_999),
            ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![ProtoInfoTCP::State(ESTABLISHED)])]),
        ];
        assert_eq!(Flow::of(&attributes), Some(tcp(ESTABLISHED, 431_999)));
        assert_eq!(Flow::of(&attributes[1..]), None);

        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        let body = NetfilterMessage::new(header, ConntrackMessage::New(attributes));
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(body));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let twice = [bytes.clone(), bytes].concat();
        let mut flows = Vec::new();
        assert!(!take(&twice, &mut flows).unwrap());
        assert_eq!(flows, [tcp(ESTABLISHED, 431_999); 2]);
        assert!(take(&[1, 2, 3], &mut flows).is_err(), "a part that is cut off");
    }
}
