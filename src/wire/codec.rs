//! Values to bytes and back. The only place that knows the encodings: JSON and postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_FRAME;
use crate::types::Actor;

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0} bytes are more than a frame may have, {MAX_FRAME}")]
    TooLarge(usize),
    #[error("these bytes are not a message of this protocol")]
    Malformed,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For documents of the API and whatever may gain fields: a node that knows fewer of them still reads it.
    Json,
    /// For what is sent often and stays as it is.
    Postcard,
}

impl Format {
    /// # Errors
    /// The value is larger than a frame may be.
    pub fn encode(self, value: &impl Serialize) -> Result<Vec<u8>, Error> {
        self.append(value, Vec::new())
    }

    /// # Errors
    /// The bytes are too many, or not a `T` from the first to the last.
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

/// What stands before a call's body: its number, and the actor's JSON where one is named.
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
