//! Messages on a stream: the length, then the bytes.

use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cause;
use crate::wire::{Format, MAX_FRAME, codec};

/// Bytes that are read at once, so that a large length uses memory only as its bytes arrive.
const PIECE: usize = 64 << 10;

/// Sends an encoded message.
pub(super) async fn send(stream: &mut SendStream, bytes: &[u8]) -> Result<(), Cause> {
    let length = u32::try_from(bytes.len()).map_err(|_| codec::Error::TooLarge(bytes.len()))?;
    stream.write_all(&length.to_be_bytes()).await?;
    Ok(stream.write_all(bytes).await?)
}

pub(super) async fn send_value(stream: &mut SendStream, value: &impl Serialize) -> Result<(), Cause> {
    let bytes = Format::Postcard.encode(value)?;
    send(stream, &bytes).await
}

/// Reads a message.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T, Cause> {
    Ok(Format::Postcard.decode(&receive_bytes(stream).await?)?)
}

/// Reads a message's bytes. Never takes more memory than has come, nor more than a frame may have.
pub(super) async fn receive_bytes(stream: &mut RecvStream) -> Result<Vec<u8>, Cause> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(codec::Error::TooLarge(length).into());
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let had = bytes.len();
        bytes.resize(length.min(had + PIECE), 0);
        stream.read_exact(&mut bytes[had..]).await?;
    }
    Ok(bytes)
}
