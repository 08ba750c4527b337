//! Bytes to values and back. The only place that knows which encoding it is: postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_FRAME;

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0} bytes are more than a frame may have, {MAX_FRAME}")]
    TooLarge(usize),
    #[error("these bytes are not a message of this protocol")]
    Malformed,
}

/// # Errors
/// The value is larger than a frame may be.
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let bytes = postcard::to_stdvec(value).map_err(|_| Error::Malformed)?;
    if bytes.len() > MAX_FRAME { Err(Error::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// # Errors
/// The bytes are too many, or not a `T` from the first to the last.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_FRAME {
        return Err(Error::TooLarge(bytes.len()));
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Error::Malformed),
    }
}
