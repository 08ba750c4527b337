//! What nodes say to one another, and its bytes.
//!
//! [`message`] is the table of everything that one node may ask of another, each request with the
//! type of its answer. [`codec`] turns them into bytes and back, within bounds: what a peer sends
//! can be wrong, but never crash or fill this node. The protocol's version is agreed in the TLS
//! handshake ([`PROTOCOL`]); documents of the API travel as their JSON ([`Document`]), so that they
//! can gain fields without a new version.

pub mod codec;
mod document;
#[cfg(test)]
pub(crate) mod fixture;
pub mod message;
#[cfg(test)]
mod tests;

pub use document::Document;
pub use message::{Call, Request};

/// The protocol's name and version, as ALPN has it.
pub const PROTOCOL: &[u8] = b"ostler/1";

/// Bytes of one request or answer at most: the largest is a host's whole ledger, about 1 KiB a session.
pub const MAX_FRAME: usize = 16 << 20;
