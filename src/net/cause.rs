//! What goes wrong on the way to a node.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectError, ConnectionError, ReadExactError, VarInt, WriteError};

use super::path::FULL;
use super::pool::{NOT_WANTED, TWIN};
use super::probe::PROBED;
use crate::identity::Credentials;
use crate::types::{Name, NodeId, Timestamp};
use crate::wire::codec;

/// The TLS alerts among QUIC's error codes (RFC 9001, §4.8).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;
/// The alert of a certificate that is not valid at the time of the verifier's clock (RFC 8446, §6.2).
const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
/// What the TLS library writes before the time of the verifier's clock, in Unix seconds. The peer sends it as the
/// reason of the alert.
const VERIFIED_AT: &str = "verification time ";

/// Why there is no connection, or no answer over it. Whether the peer did anything is said by the
/// [`Error`](super::Error) that has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("this node has no cluster token and stays alone")]
    Alone,
    #[error("its address is not known")]
    NoAddress,
    #[error("at {address} there is node {found} now")]
    OtherNode { address: SocketAddr, found: NodeId },
    /// The time of the call was over before there was a connection.
    #[error("no connection in time")]
    NoConnection,
    /// The handshake and the hello took too long.
    #[error("no answer")]
    NoHello,
    /// The peer answers, but no datagram of the size that QUIC needs arrives.
    #[error("the path to {} carries only datagrams of less than {FULL} bytes; raise its MTU to 1280 or more", .0)]
    NarrowPath(SocketAddr),
    #[error("another token or another cluster")]
    OtherToken,
    #[error(transparent)]
    WrongClock(#[from] WrongClock),
    #[error(transparent)]
    Unwanted(#[from] Unwanted),
    #[error("the TLS configuration has no cipher suite for QUIC")]
    NoCipherSuite,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", describe(.0))]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadExactError),
    /// What was to be sent, or came, is no message.
    #[error(transparent)]
    Message(#[from] codec::Error),
    /// The time of the call was over.
    #[error("not within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// Not even acknowledgements come.
    #[error("nothing comes from it any more")]
    Silent,
    #[error("the dial panicked: see the log")]
    DialPanicked,
    #[error("the dial was cancelled: the daemon is stopping")]
    DialCancelled,
}

/// Why a connection does not count, as the peer is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwanted {
    #[error("it is of cluster {0}: another token or another cluster")]
    OtherCluster(Name),
    #[error("its certificate is another node's")]
    OtherCertificate,
    #[error("it is this node itself")]
    Itself,
    #[error("another agent has the same node id")]
    Twin,
    #[error("it is an earlier life of an agent that is known")]
    EarlierLife,
}

/// A clock outside of the years in which certificates of the mesh are valid: one that was never set. Days are as
/// `2026-01-31`, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongClock {
    #[error("the clock of this host shows {here}: set it; {}", validity())]
    Here { here: String },
    /// `there` is "another year" if the peer does not say what its clock shows.
    #[error(
        "the clock of that host shows {there}, and the clock of this host {here}: set the clock there; {}",
        validity()
    )]
    There { there: String, here: String },
}

fn validity() -> String {
    let (first, last) = Credentials::VALID_YEARS;
    format!("certificates of the mesh are valid from {first} to {last}")
}

impl Cause {
    /// The code that a connection is closed with for this cause.
    pub(super) const fn code(&self) -> VarInt {
        match self {
            Self::Unwanted(Unwanted::Twin) => TWIN,
            _ => NOT_WANTED,
        }
    }

    /// Whether it does not pass by itself: somebody must change a token, a clock or a network.
    pub const fn needs_operator(&self) -> bool {
        matches!(self, Self::NarrowPath(_) | Self::OtherToken | Self::WrongClock(_))
    }

    /// Whether the peer only looked whether this node answers.
    pub(super) fn is_probe(&self) -> bool {
        matches!(self, Self::Connection(ConnectionError::ApplicationClosed(closed)) if closed.error_code == PROBED)
    }

    /// The cause behind a connection that TLS refused. `now`: what the clock of this host shows.
    pub(super) fn explained(self, now: Timestamp) -> Self {
        let Self::Connection(error) = &self else { return self };
        let (alert, is_here, reason) = match error {
            ConnectionError::TransportError(error) => (u64::from(error.code), true, error.reason.clone()),
            ConnectionError::ConnectionClosed(closed) => {
                (u64::from(closed.error_code), false, String::from_utf8_lossy(&closed.reason).into_owned())
            }
            ConnectionError::TimedOut => return Self::NoHello,
            _ => return self,
        };
        let here = || now.day();
        match (alert, is_here) {
            (CERTIFICATE_EXPIRED, true) => WrongClock::Here { here: here() }.into(),
            (CERTIFICATE_EXPIRED, false) => WrongClock::There { there: verified_at(&reason), here: here() }.into(),
            _ if ALERTS.contains(&alert) => Self::OtherToken,
            _ => self,
        }
    }
}

/// The day on which a peer verified a certificate, from the reason that it gives for its alert.
fn verified_at(reason: &str) -> String {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let seconds = reason.split_once(VERIFIED_AT).and_then(|(_, rest)| digits(rest).parse::<i64>().ok());
    let millis = seconds.and_then(|seconds| seconds.checked_mul(1000));
    millis.map_or_else(|| "another year".to_owned(), |millis| Timestamp::from_millis(millis).day())
}

/// The reason that the peer gives, where it closed the connection.
fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(closed) if [NOT_WANTED, TWIN].contains(&closed.error_code) => {
            String::from_utf8_lossy(&closed.reason).into_owned()
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_peer_is_read_from_its_reason() {
        // As the TLS library words it; `tests` has a handshake that fails so.
        let reason = "invalid peer certificate: certificate not valid yet: verification time 86400 (UNIX), but …";
        assert_eq!(verified_at(reason), "1970-01-02");
        for other in ["", "verification time", "verification time 99999999999999999999 (UNIX)"] {
            assert_eq!(verified_at(other), "another year", "{other}");
        }
    }
}
