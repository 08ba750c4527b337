//! Encodes and decodes values. The only file that knows the encodings, JSON and postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_FRAME;
use crate::types::Actor;

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("message of {0} bytes exceeds the limit of {MAX_FRAME} bytes")]
    TooLarge(usize),
    #[error("malformed message")]
    Malformed,
}

/// The encoding of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For documents of the API and other values that may gain fields: a node that knows fewer fields still reads them.
    Json,
    /// For values that are sent often and gain no fields.
    Postcard,
}

impl Format {
    /// # Errors
    /// The encoded value exceeds [`MAX_FRAME`].
    pub fn encode(self, value: &impl Serialize) -> Result<Vec<u8>, Error> {
        self.append(value, Vec::new())
    }

    /// # Errors
    /// The bytes exceed [`MAX_FRAME`], or are not exactly one `T`.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, Error> {
        if bytes.len() > MAX_FRAME {
            return Err(Error::TooLarge(bytes.len()));
        }
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|_| Error::Malformed),
            Self::Postcard => match postcard::take_from_bytes(bytes) {
                Ok((value, [])) => Ok(value),
                _ => Err(Error::Malformed),
            },
        }
    }

    fn append(self, value: &impl Serialize, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self {
            Self::Json => serde_json::to_writer(&mut bytes, value).map_err(|_| Error::Malformed)?,
            Self::Postcard => bytes = postcard::to_extend(value, bytes).map_err(|_| Error::Malformed)?,
        }
        if bytes.len() > MAX_FRAME { Err(Error::TooLarge(bytes.len())) } else { Ok(bytes) }
    }
}

/// The head of a call, before its body: its number and, if it names an actor, the actor as JSON.
type Head<'a> = (u16, Option<&'a str>);

/// The bytes of a call: its head, then its body to the end.
pub(super) fn encode_call(
    number: u16,
    by: Option<&Actor>,
    format: Format,
    body: &impl Serialize,
) -> Result<Vec<u8>, Error> {
    let by = by.map(serde_json::to_string).transpose().map_err(|_| Error::Malformed)?;
    let head: Head<'_> = (number, by.as_deref());
    format.append(body, postcard::to_stdvec(&head).map_err(|_| Error::Malformed)?)
}

/// The number and the actor of a call, and the bytes of its body.
pub(super) fn decode_head(bytes: &[u8]) -> Result<(u16, Option<Actor>, &[u8]), Error> {
    if bytes.len() > MAX_FRAME {
        return Err(Error::TooLarge(bytes.len()));
    }
    let ((number, by), body) = postcard::take_from_bytes::<Head<'_>>(bytes).map_err(|_| Error::Malformed)?;
    let by = by.map(serde_json::from_str).transpose().map_err(|_| Error::Malformed)?;
    Ok((number, by, body))
}
