//! What nodes say to one another, and its bytes.
//!
//! [`message`] is the table of calls: of each, the part of a node that answers it, who may ask, whether it changes
//! something, its format and its answer. An [`Envelope`] carries a call with the actor who asks for the change.
//! [`codec`] turns values into bytes and back, within bounds: what a peer sends can be wrong, but never crash or fill
//! this node. The protocol's version is agreed in the TLS handshake ([`PROTOCOL`]); whatever may gain fields travels
//! as JSON, so that it can do so without a new version.

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

/// The protocol's name and version, as ALPN has it.
pub const PROTOCOL: &[u8] = b"ostler/1";

/// Bytes of one request or answer at most: the largest is a host's whole ledger, about 1 KiB a session.
pub const MAX_FRAME: usize = 16 << 20;
