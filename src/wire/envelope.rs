//! A call with its actor, as sent over the mesh.

use super::codec::{self, Error};
use super::{Call, Request};
use crate::types::Actor;

/// A call and its actor. Only the envelope names the actor, the call's body does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// `None`: the sending node asks for itself, or the call changes nothing.
    pub by: Option<Actor>,
    pub request: Request,
}

impl Envelope {
    /// # Errors
    /// The call exceeds [`MAX_FRAME`](super::MAX_FRAME).
    pub fn encode<C: Call>(by: Option<&Actor>, call: &C) -> Result<Vec<u8>, Error> {
        codec::encode_call(C::NUMBER, by, C::FORMAT, call)
    }

    /// # Errors
    /// The bytes exceed [`MAX_FRAME`](super::MAX_FRAME), or are not exactly one call.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (number, by, body) = codec::decode_head(bytes)?;
        Ok(Self { by, request: Request::decode(number, body)? })
    }
}
