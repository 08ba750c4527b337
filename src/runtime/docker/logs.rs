//! A container's output.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};

use super::engine::Connection;
use crate::runtime::{LogStream, LogsRequest};

/// The engine reads stored output from its disk without a pause this long, unless it hangs.
const STALL: Duration = Duration::from_secs(30);

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// The output of an existing container: standard output and standard error as one, without the engine's frames.
///
/// With `follow` the stream waits for new output, and ends when the container ends.
pub(super) fn stream(connection: &Connection, container: &str, request: LogsRequest) -> LogStream {
    let tail = request.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(request.follow).tail(&tail).build();
    let output: Output = Box::pin(connection.docker.logs(container, Some(options)));
    stream::unfold(Some(output), move |output| next(output, request.follow)).boxed()
}

/// The next piece, and the stream to read on from: `None` after an error.
async fn next(output: Option<Output>, follow: bool) -> Option<(io::Result<Bytes>, Option<Output>)> {
    let mut output = output?;
    let piece = if follow {
        output.next().await
    } else {
        match tokio::time::timeout(STALL, output.next()).await {
            Ok(piece) => piece,
            Err(_) => return Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    };
    match piece? {
        Ok(piece) => Some((Ok(piece.into_bytes()), Some(output))),
        Err(error) => Some((Err(io::Error::other(error)), None)),
    }
}
