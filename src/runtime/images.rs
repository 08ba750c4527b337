//! What an engine tells of its images, and of a pull. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, Fault};
pub use crate::types::ImageStoreKind;
use crate::types::{Bytes, Platform, words};

/// Where an engine keeps its images. An id has a meaning within one store only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageStore {
    /// The engine's own id.
    pub engine: String,
    pub kind: ImageStoreKind,
}

/// The image store of the engine that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageStoreInfo {
    pub store: ImageStore,
    /// Where it is on this host; `None`: it is not known.
    pub path: Option<PathBuf>,
}

/// Every image of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageList {
    /// The store that they are in. It is asked with the list: an engine may restart with another store at any time.
    pub store: Option<ImageStore>,
    pub images: Vec<ListedImage>,
}

/// An image as the engine lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedImage {
    pub id: String,
    /// As `repository:tag`, sorted; empty if the image is dangling. A containerd store also has `repository@digest` here, for
    /// an image that was pulled by its digest.
    pub names: Vec<String>,
    /// As `repository@digest`, sorted. They prove nothing: a containerd store has them for images that were built.
    pub digests: Vec<String>,
    /// What it takes, with the layers that it shares with other images.
    pub size: Bytes,
    /// `None`: the engine does not tell.
    pub shared: Option<Bytes>,
}

/// An image as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageDetails {
    pub id: String,
    pub names: Vec<String>,
    pub digests: Vec<String>,
    /// `None`: the image does not say.
    pub platform: Option<Platform>,
    /// What it takes, with the layers that it shares with other images. A containerd store tells only the packed layers.
    pub size: Bytes,
    /// The digests of its unpacked layers, lowest first.
    pub layers: Vec<String>,
    /// A hash of its unpacked layers and its platform: the same for one image in every store. Empty if the engine does
    /// not tell the layers.
    pub content: String,
}

/// How an image is pulled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullOptions {
    /// `None`: the registry is not told who pulls.
    pub login: Option<Login>,
    /// Only an image for this platform; `None`: the engine chooses.
    pub platform: Option<Platform>,
    pub patience: Patience,
}

/// What the engine tells a registry of who pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// As the file of credentials or a helper names the registry.
    pub server: String,
    pub identity: Identity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Password {
        user: String,
        password: Secret,
    },
    /// A token that the registry gives for a login, in place of the password.
    Token(Secret),
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How long a pull may go on without progress: no byte came, and no layer's status changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub fetching: Duration,
    /// While a layer is being unpacked.
    pub unpacking: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        // The engine's retries of a registry take less than the first. Some engines are silent while they unpack a layer,
        // and one of many GiB takes minutes.
        Self { fetching: Duration::from_secs(180), unpacking: Duration::from_secs(15 * 60) }
    }
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PullProgress {
    pub fetched: Bytes,
    /// Of the layers that are known so far; it grows.
    pub size: Bytes,
    /// Layers that are unpacked.
    pub layers_ready: u32,
    pub layers: u32,
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fetched, size, layers_ready, layers } = self;
        if *layers == 0 || size.is_zero() && *layers_ready == 0 {
            write!(f, "pulling")
        } else if fetched < size {
            write!(f, "pulling {fetched} of {size}")
        } else {
            write!(f, "unpacking, {layers_ready} of {layers} layers done")
        }
    }
}

/// Why an image was not pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct PullError {
    pub cause: PullCause,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullCause {
    /// The engine does not answer. It may have pulled the image or not.
    Engine,
    /// The registry has no such image, or none for this platform.
    Absent,
    /// The registry wants other credentials, or gives this image to nobody who has them.
    Denied,
    /// The registry refuses more pulls for now (429).
    Limited,
    /// The registry cannot be reached, or fails.
    Registry,
    /// The registry's certificate is from an authority that the engine does not know.
    UnknownAuthority,
    /// Nothing came for so long that the pull was given up.
    Stalled,
    /// The disk of the images is full, or its inodes are used up.
    DiskFull,
    /// Anything else.
    Other,
}

words!(PullCause {
    Engine => "engine",
    Absent => "absent",
    Denied => "denied",
    Limited => "limited",
    Registry => "registry",
    UnknownAuthority => "unknown_authority",
    Stalled => "stalled",
    DiskFull => "disk_full",
    Other => "other",
});

impl From<PullError> for Error {
    fn from(PullError { cause, message }: PullError) -> Self {
        match cause {
            PullCause::Engine => Self::Unavailable(message),
            PullCause::Absent => Self::start(Fault::Image, message),
            PullCause::DiskFull => Self::start(Fault::Host, message),
            PullCause::Limited => Self::start(Fault::RegistryLimited, message),
            PullCause::Denied
            | PullCause::Registry
            | PullCause::UnknownAuthority
            | PullCause::Stalled
            | PullCause::Other => Self::start(Fault::Registry, message),
        }
    }
}

/// What became of an image that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// It was not here any more.
    Gone,
    /// It is left as it was, for this reason.
    Skipped(String),
}

/// What takes space on the file system of the images beside the images: about, and as of now. `None`: it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskUsage {
    /// The volumes of all programs.
    pub volumes: Option<Bytes>,
    pub build_cache: Option<Bytes>,
    /// The files that containers wrote outside of volumes.
    pub containers: Option<Bytes>,
    /// What the engine keeps of the output of containers.
    pub logs: Option<Bytes>,
}
