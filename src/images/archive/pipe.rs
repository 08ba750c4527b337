//! Connects tasks, which await bytes, with threads, which block for them.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::mpsc;

use crate::runtime::ByteStream;

/// Pieces that wait in a pipe. Each has 64 KiB at most.
const PIECES: usize = 8;
/// Bytes that are passed on at once.
const PIECE: usize = 64 << 10;

type Piece = io::Result<Bytes>;

/// The end of a pipe that a thread reads. An end of the other side without a word is an error.
pub struct Reader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    is_over: bool,
}

/// The end of a pipe that a thread writes.
pub struct Writer {
    pieces: mpsc::Sender<Piece>,
    current: Vec<u8>,
}

/// The end of a pipe that a task fills.
pub struct Filler(mpsc::Sender<Piece>);

/// From a task to a thread.
pub fn to_thread() -> (Filler, Reader) {
    let (filler, pieces) = mpsc::channel(PIECES);
    (Filler(filler), Reader { pieces, current: Bytes::new(), is_over: false })
}

/// From a thread to a task. If the writer is dropped before [`Writer::end`], the stream ends with an error.
pub fn to_task() -> (Writer, ByteStream) {
    let (pieces, filled) = mpsc::channel(PIECES);
    let stream = stream::unfold(Some(filled), |filled| async move {
        let mut filled: mpsc::Receiver<Piece> = filled?;
        match filled.recv().await {
            Some(Ok(piece)) if piece.is_empty() => None,
            Some(Ok(piece)) => Some((Ok(piece), Some(filled))),
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    });
    (Writer { pieces, current: Vec::with_capacity(PIECE) }, stream.boxed())
}

impl Filler {
    /// Passes a stream on, up to its end or its first error. `seen` is called with the size of each piece.
    pub async fn fill(self, mut stream: ByteStream, mut seen: impl FnMut(usize) + Send) {
        while let Some(piece) = stream.next().await {
            let failed = piece.is_err();
            if let Ok(piece) = &piece {
                // An empty piece means the end.
                if piece.is_empty() {
                    continue;
                }
                seen(piece.len());
            }
            if self.0.send(piece).await.is_err() || failed {
                return;
            }
        }
        let _ = self.0.send(Ok(Bytes::new())).await;
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.is_over {
            self.current = self.pieces.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)??;
            self.is_over = self.current.is_empty();
        }
        let read = self.current.len().min(into.len());
        self.current.copy_to_slice(&mut into[..read]);
        Ok(read)
    }
}

impl Writer {
    /// Nothing follows.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Ok(Bytes::new()))
    }

    /// Nothing follows, for this reason. The other end may be gone.
    pub fn fail(self, error: io::Error) {
        let _ = self.pieces.blocking_send(Err(error));
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.current.len());
        self.current.extend_from_slice(&bytes[..taken]);
        if self.current.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.current, Vec::with_capacity(PIECE));
        self.send(Ok(full.into()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::spawn_blocking;

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_in_order() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let pieces = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>();
        let (filler, mut reader) = to_thread();
        let (mut writer, stream) = to_task();
        let thread = spawn_blocking(move || {
            io::copy(&mut reader, &mut writer).unwrap();
            writer.end().unwrap();
        });
        let mut seen = 0;
        let fill = filler.fill(stream::iter(pieces).boxed(), |size| seen += size);
        let (out, ()) = tokio::join!(stream.collect::<Vec<_>>(), fill);
        thread.await.unwrap();
        let out: Vec<u8> = out.into_iter().flat_map(|piece| piece.unwrap()).collect();
        assert!(out == bytes && seen == bytes.len());
    }

    #[tokio::test]
    async fn an_end_without_a_word_is_an_error_on_either_side() {
        let (filler, mut reader) = to_thread();
        drop(filler);
        let read = spawn_blocking(move || reader.read(&mut [0; 8])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (writer, mut stream) = to_task();
        drop(writer);
        assert!(stream.next().await.unwrap().is_err() && stream.next().await.is_none());
    }

    #[tokio::test]
    async fn an_error_reaches_the_thread() {
        let (filler, mut reader) = to_thread();
        let broken = [Ok(Bytes::from_static(b"ab")), Err(io::ErrorKind::ConnectionReset.into())];
        let thread = spawn_blocking(move || io::copy(&mut reader, &mut io::sink()));
        filler.fill(stream::iter(broken).boxed(), |_| ()).await;
        assert_eq!(thread.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
