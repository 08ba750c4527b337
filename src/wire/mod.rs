//! The messages between nodes, and their bytes.
//!
//! [`message`] is the table of calls. It says of each call which part of a node answers it, who may ask, whether it
//! changes something, its format and its answer. An [`Envelope`] carries a call with its actor. [`codec`] encodes and
//! decodes values within bounds: a peer's message can be wrong, but it cannot crash this node or fill its memory. The
//! TLS handshake agrees on the version of the protocol ([`PROTOCOL`]). Values that may gain fields are sent as JSON,
//! so that a new field needs no new version.

pub mod codec;
mod envelope;
#[cfg(test)]
pub(crate) mod fixture;
pub mod message;
#[cfg(test)]
mod tests;

pub use codec::Format;
pub use envelope::Envelope;
pub use message::{Call, Request};

/// The protocol's name and version, for ALPN.
pub const PROTOCOL: &[u8] = b"ostler/1";

/// Bytes of one request or answer at most. The largest is a host's full report, of about 1 KiB a session.
pub const MAX_FRAME: usize = 16 << 20;
