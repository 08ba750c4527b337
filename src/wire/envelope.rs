//! A call with who asks, as it travels.

use super::codec::{self, Error};
use super::{Call, Request};
use crate::types::Actor;

/// A call and who asks. The actor is named once, here, and not in the call's body.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// `None`: the node that sends it asks for itself, or nothing is changed.
    pub by: Option<Actor>,
    pub request: Request,
}

impl Envelope {
    /// # Errors
    /// The call is larger than a frame may be.
    pub fn encode<C: Call>(by: Option<&Actor>, call: &C) -> Result<Vec<u8>, Error> {
        codec::encode_call(C::NUMBER, by, C::FORMAT, call)
    }

    /// # Errors
    /// The bytes are too many, or not a call from the first to the last.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (number, by, body) = codec::decode_head(bytes)?;
        Ok(Self { by, request: Request::decode(number, body)? })
    }
}
