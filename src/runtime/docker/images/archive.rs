//! Images as archives: `docker save` and `docker load`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::body_try_stream;
use bollard::models::BuildInfo;
use bollard::query_parameters::ImportImageOptionsBuilder;
use bytes::Bytes as Chunk;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::time::timeout;

use crate::runtime::ByteStream;
use crate::runtime::docker::engine::{Engine, Failure};
use crate::runtime::images::{PullCause, PullError};

/// An archive that is read or written fails if no byte moves for this long. Before the first byte the engine copies the
/// image to a file of its own, at the speed of its disk.
const STALL: Duration = Duration::from_secs(60);
/// How long the engine may unpack without a word once it has the whole archive: one large layer is silent.
const UNPACK: Duration = Duration::from_secs(15 * 60);
/// How long the engine may write its own copy before the first byte comes: 20 GiB at 50 MiB/s.
const FIRST_BYTE: Duration = Duration::from_secs(7 * 60);
/// What the engine says of each image that it loaded: its id if it has no name, else a name of it.
const LOADED: [&str; 2] = ["Loaded image ID: ", "Loaded image: "];
/// Words of a full disk, or of one whose inodes are used up.
const FULL: [&str; 2] = ["no space left on device", "disk quota exceeded"];
/// Loaded images that are told at most.
const MAX_TOLD: usize = 64;

type Pieces = BoxStream<'static, Result<Chunk, bollard::errors::Error>>;

/// What [`save`] does next.
enum Reading {
    Connect(String),
    Read(Pieces, Duration),
}

/// The archive of an image.
pub(super) fn save(engine: Arc<Engine>, id: String) -> ByteStream {
    let begin = Some(Reading::Connect(id));
    stream::unfold(begin, move |reading| {
        let engine = Arc::clone(&engine);
        async move {
            let (mut pieces, within) = match reading? {
                Reading::Connect(id) => match engine.connection().await {
                    Ok(connection) => {
                        let docker = connection.docker.clone();
                        // The stream borrows the client, which it therefore takes along.
                        (exported(docker, id), FIRST_BYTE)
                    }
                    Err(failure) => return Some((Err(io::Error::other(failure)), None)),
                },
                Reading::Read(pieces, within) => (pieces, within),
            };
            match timeout(within, pieces.next()).await {
                Ok(Some(Ok(piece))) => Some((Ok(piece), Some(Reading::Read(pieces, STALL)))),
                Ok(Some(Err(error))) => Some((Err(io::Error::other(engine.failure(&error))), None)),
                Ok(None) => None,
                Err(_) => Some((Err(stalled("read", within)), None)),
            }
        }
    })
    .boxed()
}

fn exported(docker: bollard::Docker, id: String) -> Pieces {
    docker.export_image(&id).boxed()
}

/// Loads an archive. Returns what the engine says that it loaded.
pub(super) async fn load(engine: &Engine, archive: ByteStream) -> Result<Vec<String>, PullError> {
    let lost = |failure: Failure| PullError { cause: PullCause::Engine, message: failure.to_string() };
    let connection = engine.connection().await.map_err(lost)?;
    let moved = Arc::new(Moved::default());
    let body = body_try_stream(moved.count(archive));
    // Progress is wanted: it shows that the engine works.
    let options = ImportImageOptionsBuilder::default().quiet(false).build();
    let mut messages = connection.docker.import_image(options, body, None).boxed();
    let mut loaded = Vec::new();
    loop {
        let before = moved.now();
        let within = if moved.is_over() { UNPACK } else { STALL };
        match timeout(within, messages.next()).await {
            Ok(None) => return Ok(loaded),
            Ok(Some(Ok(message))) => loaded.extend(told(&message).filter(|_| loaded.len() < MAX_TOLD)),
            Ok(Some(Err(error))) => return Err(of_load(engine.failure(&error))),
            Err(_) if moved.now() != before => {}
            Err(_) => {
                engine.suspect.notify_one();
                let error = stalled("loaded", within);
                return Err(PullError { cause: PullCause::Stalled, message: error.to_string() });
            }
        }
    }
}

/// How much of an archive the engine has taken.
#[derive(Default)]
struct Moved(AtomicU64);

impl Moved {
    /// After the last byte.
    const OVER: u64 = u64::MAX;

    fn count(self: &Arc<Self>, archive: ByteStream) -> impl Stream<Item = io::Result<Chunk>> + Send + use<> {
        let (each, end) = (Arc::clone(self), Arc::clone(self));
        let counted = archive.inspect(move |piece| {
            if let Ok(piece) = piece {
                each.0.fetch_add(u64::try_from(piece.len()).unwrap_or(0), Ordering::Relaxed);
            }
        });
        counted.chain(stream::poll_fn(move |_| {
            end.0.store(Self::OVER, Ordering::Relaxed);
            std::task::Poll::Ready(None)
        }))
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.now() == Self::OVER
    }
}

fn stalled(what: &str, within: Duration) -> io::Error {
    io::Error::other(format!("the archive of an image is not {what}: no byte came for {} s", within.as_secs()))
}

/// The image that a message of the engine says is loaded.
fn told(message: &BuildInfo) -> Option<String> {
    let line = message.stream.as_deref()?.trim();
    LOADED.iter().find_map(|words| line.strip_prefix(words)).map(str::to_owned)
}

fn of_load(failure: Failure) -> PullError {
    match failure {
        Failure::Said { message, .. } => {
            let full = FULL.iter().any(|words| message.contains(words));
            let cause = if full { PullCause::DiskFull } else { PullCause::Other };
            PullError { cause, message: format!("cannot load the image: {message}") }
        }
        Failure::Lost(message) | Failure::Unsupported(message) => PullError { cause: PullCause::Engine, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_says_what_it_loaded() {
        let said = |text: &str| told(&BuildInfo { stream: Some(text.to_owned()), ..BuildInfo::default() });
        assert_eq!(said("Loaded image ID: sha256:ab\n"), Some("sha256:ab".to_owned()));
        assert_eq!(said("Loaded image: r:5000/x:1\n"), Some("r:5000/x:1".to_owned()));
        assert_eq!(said("The image x:1 already exists, renaming the old one"), None);
        assert_eq!(told(&BuildInfo::default()), None);
    }

    #[test]
    fn a_full_disk_is_told_from_a_bad_archive() {
        let said = |message: &str| of_load(Failure::Said { status: 500, message: message.to_owned() });
        assert_eq!(said("write /x: no space left on device").cause, PullCause::DiskFull);
        assert_eq!(said("invalid tar header").cause, PullCause::Other);
        assert_eq!(of_load(Failure::Lost("gone".to_owned())).cause, PullCause::Engine);
    }

    #[tokio::test]
    async fn the_end_of_an_archive_is_noticed() {
        let moved = Arc::new(Moved::default());
        let archive = stream::iter([Ok(Chunk::from_static(b"abc")), Ok(Chunk::from_static(b"de"))]).boxed();
        let mut counted = Box::pin(moved.count(archive));
        counted.next().await;
        assert_eq!((moved.now(), moved.is_over()), (3, false));
        counted.next().await;
        assert!(counted.next().await.is_none() && moved.is_over());
    }
}
