//! What goes wrong on the way to a node.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectError, ConnectionError, ReadExactError, TransportErrorCode, VarInt, WriteError};

use super::pool::{NOT_WANTED, TWIN};
use crate::types::{Name, NodeId};
use crate::wire::codec;

/// The TLS alerts among QUIC's error codes (RFC 9001, §4.8).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;

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

impl Cause {
    /// The code that a connection is closed with for this cause.
    pub(super) const fn code(&self) -> VarInt {
        match self {
            Self::Unwanted(Unwanted::Twin) => TWIN,
            _ => NOT_WANTED,
        }
    }
}

/// Tells a wrong token from a silent host.
fn describe(error: &ConnectionError) -> String {
    let is_alert = |code: TransportErrorCode| ALERTS.contains(&u64::from(code));
    match error {
        ConnectionError::TransportError(error) if is_alert(error.code) => "another token or another cluster".to_owned(),
        ConnectionError::ConnectionClosed(closed) if is_alert(closed.error_code) => {
            "another token or another cluster".to_owned()
        }
        ConnectionError::ApplicationClosed(closed) if [NOT_WANTED, TWIN].contains(&closed.error_code) => {
            String::from_utf8_lossy(&closed.reason).into_owned()
        }
        ConnectionError::TimedOut => "no answer".to_owned(),
        error => error.to_string(),
    }
}
