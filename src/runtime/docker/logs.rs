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

/// What is on the disk comes without a pause this long, unless the engine hangs.
const STALL: Duration = Duration::from_secs(30);

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// The output of a container that exists, both streams as one, without the engine's frames around it.
///
/// With `follow` the stream is silent for as long as the container is, and ends when it ends.
pub(super) fn stream(connection: &Connection, container: &str, request: LogsRequest) -> LogStream {
    let tail = request.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(request.follow).tail(&tail).build();
    let output: Output = Box::pin(connection.docker.logs(container, Some(options)));
    stream::unfold(Some(output), move |output| next(output, request.follow)).boxed()
}

/// The next piece, and what to go on with: nothing after an error.
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
