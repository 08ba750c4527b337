//! Messages on a stream: the length, then the bytes.

use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{MAX_FRAME, codec};

/// Bytes that are read at once, so that a large length uses memory only as its bytes arrive.
const PIECE: usize = 64 << 10;

/// Sends an encoded message.
pub(super) async fn send(stream: &mut SendStream, bytes: &[u8]) -> Result<(), String> {
    let length = u32::try_from(bytes.len()).map_err(|_| "the message is too large".to_owned())?;
    stream.write_all(&length.to_be_bytes()).await.map_err(|e| e.to_string())?;
    stream.write_all(bytes).await.map_err(|e| e.to_string())
}

pub(super) async fn send_value(stream: &mut SendStream, value: &impl Serialize) -> Result<(), String> {
    let bytes = codec::encode(value).map_err(|e| e.to_string())?;
    send(stream, &bytes).await
}

/// Reads a message.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T, String> {
    codec::decode(&receive_bytes(stream).await?).map_err(|e| e.to_string())
}

/// Reads a message's bytes. Uses at most [`PIECE`] bytes more memory than have arrived, and never more than a frame
/// may have.
pub(super) async fn receive_bytes(stream: &mut RecvStream) -> Result<Vec<u8>, String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(|e| e.to_string())?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(codec::Error::TooLarge(length).to_string());
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let had = bytes.len();
        bytes.resize(length.min(had + PIECE), 0);
        stream.read_exact(&mut bytes[had..]).await.map_err(|e| e.to_string())?;
    }
    Ok(bytes)
}
