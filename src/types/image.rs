//! Images: what names one, and what a node says of those that it has.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Bytes, Invalid, Name, NodeId, SessionId, Timestamp};

/// Characters of an image in a request at most: a repository of 255, a tag of 128 and a digest of 71 have fewer.
const MAX_IMAGE: usize = 512;

/// The registry of an image whose name has no host.
const DOCKER_HUB: &str = "docker.io";

/// The repositories of Docker Hub that a name without a user means.
const HUB_LIBRARY: &str = "library/";

/// A reference that names exactly one image: with a tag or a digest. Docker's short form, without `docker.io/` and
/// `library/`, so that two references are equal if they mean the same image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageReference(String);

impl ImageReference {
    /// Reads the image of a workspace. Without a tag it means `latest`, as in Docker; a call without a tag would
    /// make the engine pull every tag.
    ///
    /// # Errors
    /// A message that the text is not an image reference.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        // It becomes part of a path of the engine's API, so it must not reach another path.
        if !first || !text.chars().all(fine) || text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("`{}` is not an image reference", text.escape_debug()));
        }
        let name = text.strip_prefix(DOCKER_HUB).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
        let name = name.strip_prefix(HUB_LIBRARY).filter(|name| !name.contains('/')).unwrap_or(name);
        let last = name.rsplit('/').next().unwrap_or(name);
        Ok(Self(if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without tag and digest.
    pub fn repository(&self) -> &str {
        let name = self.0.split('@').next().unwrap_or(&self.0);
        match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        }
    }

    /// Of `name:tag@digest`, the digest alone counts: the tag may have moved since.
    pub fn digest(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, digest)| digest)
    }

    /// The tag, unless a digest makes it meaningless.
    pub fn tag(&self) -> Option<&str> {
        let named = self.digest().is_none().then_some(&self.0)?;
        named.strip_prefix(self.repository())?.strip_prefix(':')
    }

    /// The same repository's image of this digest.
    pub fn at_digest(&self, digest: &str) -> Self {
        Self(format!("{}@{digest}", self.repository()))
    }

    /// The host of its registry, with its port if it names one.
    pub fn registry(&self) -> &str {
        match self.repository().split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
            _ => DOCKER_HUB,
        }
    }

    /// Whether an image with these names (`repository:tag`) and digests (`repository@digest`) is the one that is meant.
    pub fn names<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
        digests: impl IntoIterator<Item = &'a String>,
    ) -> bool {
        match self.digest() {
            Some(digest) => self.own_digests(digests).any(|own| own == digest),
            None => names.into_iter().any(|name| *name == self.0),
        }
    }

    /// The digests of this reference's repository, out of `repository@digest` pairs. The digest of another repository
    /// is none: that repository may have another image under the same tag.
    pub fn own_digests<'a>(&self, digests: impl IntoIterator<Item = &'a String>) -> impl Iterator<Item = &'a str> {
        let pairs = digests.into_iter().filter_map(|pair| pair.split_once('@'));
        pairs.filter(|(repository, _)| *repository == self.repository()).map(|(_, digest)| digest)
    }
}

/// Checks the digest of an image, as a registry gives it.
///
/// # Errors
/// It is not `sha256:` and 64 hexadecimal digits in lower case; the error names the field.
pub fn check_image_digest(field: &str, digest: &str) -> Result<(), Invalid> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    let expected = format!("`{}` is not a digest; expected sha256: and 64 hexadecimal digits", digest.escape_debug());
    Err(Invalid::new(field, expected))
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<ImageReference> for String {
    fn from(reference: ImageReference) -> Self {
        reference.0
    }
}

impl TryFrom<String> for ImageReference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

/// Whether a node takes images from other nodes, and gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FromPeers {
    /// Neither.
    Off,
    /// It takes an image if its registry cannot be reached, or refuses to serve.
    Fallback,
    /// It takes an image before it asks the registry.
    Prefer,
}
words!(FromPeers { Off => "off", Fallback => "fallback", Prefer => "prefer" });

/// Whose image it is. Only an image of ostler's is ever removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageOwner {
    /// The agent of this node pulled it when no image of its id was here, and every name on it is from such a pull; or
    /// an operator adopted it.
    Ostler,
    /// Another program or person brought it here, or gave it a name.
    Foreign,
}
words!(ImageOwner { Ostler => "ostler", Foreign => "foreign" });

/// Why a prune keeps an image. In this order: the first that applies is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeptBecause {
    /// It is not ostler's.
    Foreign,
    /// An operator pinned it.
    Pinned,
    /// A container uses it, running or stopped, of ostler or not.
    Container,
    /// A session of this node is made from it, or will be.
    Session,
    /// It is being pulled.
    Pulling,
    /// It was pulled or used less than `images.min_age` ago.
    Young,
    /// A workspace of the catalogue names it.
    Workspace,
    /// The mode `normal` keeps images that have a name.
    Named,
    /// The mode `off` keeps every image.
    Off,
    /// The catalogue has no workspaces, so that nothing tells which images are needed.
    CatalogueEmpty,
    /// The node has not compared its catalogue with the leader's since it started, or is cut off from the leader.
    CatalogueUnknown,
}
words!(KeptBecause {
    Foreign => "foreign",
    Pinned => "pinned",
    Container => "container",
    Session => "session",
    Pulling => "pulling",
    Young => "young",
    Workspace => "workspace",
    Named => "named",
    Off => "off",
    CatalogueEmpty => "catalogue_empty",
    CatalogueUnknown => "catalogue_unknown",
});

/// The kind of an engine's image store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageStoreKind {
    /// Docker's own, as overlay2. An image's id is the digest of its configuration.
    GraphDriver,
    /// Of containerd. An image's id is the digest of its index or manifest.
    Containerd,
}

impl fmt::Display for ImageStoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::GraphDriver => "graph driver",
            Self::Containerd => "containerd",
        })
    }
}

/// How an image came to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageOrigin {
    /// The agent pulled it from a registry.
    Registry,
    /// From another node of the cluster.
    Peer,
    /// It was here, and an operator adopted or pinned it.
    Here,
}

/// What a registry gave under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSource {
    pub name: String,
    /// The digest in that repository; `null`: the engine did not tell.
    pub digest: Option<String>,
    /// When the registry was last asked.
    pub checked_at: Timestamp,
}

/// An image that a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// As the engine's image store has it. Stores of containerd and of graph drivers have different ids for the same
    /// image.
    pub id: String,
    /// Its tags, as `busybox:1.36`; empty if it has none.
    pub names: Vec<String>,
    /// As the engine lists them, as `busybox@sha256:…`. An engine may list them for images that came from no registry.
    pub digests: Vec<String>,
    /// What it takes, layers that it shares included.
    pub size_bytes: Bytes,
    /// What other images use too: removing this image does not free it. `null`: the engine does not say.
    pub shared_bytes: Option<Bytes>,
    pub owner: ImageOwner,
    /// `null`: the agent has no record of it.
    pub origin: Option<ImageOrigin>,
    /// What registries gave under its names, as far as the agent asked them. A name that is not here came from none: no
    /// pull replaces it.
    pub sources: Vec<ImageSource>,
    /// An operator pinned it: no prune removes it.
    pub pinned: bool,
    /// It is being removed.
    pub removing: bool,
    /// The workspaces that name it.
    pub workspaces: Vec<Name>,
    /// The sessions of this node that are made from it.
    pub sessions: Vec<SessionId>,
    /// The containers that use it, running or stopped, of ostler or not, as of `listed_at` of the list; `null`: not
    /// known.
    pub containers: Option<u32>,
    /// When the agent pulled it first; `null`: it did not.
    pub pulled_at: Option<Timestamp>,
    /// When a session was last made from it, or it was last pulled; `null`: not known.
    pub last_used_at: Option<Timestamp>,
}

/// The images of a node, as it last listed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeImages {
    pub node: Name,
    /// The kind of the engine's image store; `null`: no engine has answered since the agent started.
    pub store: Option<ImageStoreKind>,
    /// Where the images are on the node; `null`: not known.
    pub path: Option<String>,
    /// When the engine listed the images; `null`: not since the agent started.
    pub listed_at: Option<Timestamp>,
    /// What all images take, with layers that several of them share counted once. `null`: the engine does not say enough.
    pub total_bytes: Option<Bytes>,
    /// What all images take at most.
    pub total_at_most_bytes: Bytes,
    /// How many images the node has. The list may have fewer.
    pub images: u64,
    /// Why the list is empty or may be wrong, for people.
    pub note: Option<String>,
    /// The pulls that wait or run.
    pub pulls: Vec<ImagePull>,
    pub items: Vec<Image>,
    /// Pass it as `cursor` to get the next page; `null` on the last page.
    pub next_cursor: Option<String>,
}

/// Which images of a node a list has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFilter {
    pub owner: Option<ImageOwner>,
    /// Only images after this place in the list.
    pub after: Option<String>,
    /// The maximum number of images in the answer.
    pub limit: usize,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImagePullState {
    /// It waits for its turn.
    Waiting,
    /// It waits since its registry limits pulls.
    Limited,
    Running,
    Done,
}
words!(ImagePullState { Waiting => "waiting", Limited => "limited", Running => "running", Done => "done" });

/// A pull of an image on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagePull {
    pub node: Name,
    pub image: String,
    pub state: ImagePullState,
    pub fetched_bytes: Bytes,
    /// Of the layers that are known so far: it grows.
    pub size_bytes: Bytes,
    /// Layers that are unpacked.
    pub layers_ready: u32,
    /// Layers that are known so far.
    pub layers: u32,
    /// The image that has the name once the pull is done; `null` until then.
    pub id: Option<String>,
    /// Whether the name meant another image, or none, when the pull was asked for; `null` until it is done.
    pub changed: Option<bool>,
}

/// Names an image in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// A name, as `busybox:1.36`. Where the request does not pull, an id or a unique prefix of one as well.
    #[schema(min_length = 1, max_length = 512)]
    pub image: String,
}

impl ImageRequest {
    /// # Errors
    /// The image cannot be one.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.reference().map(drop)
    }

    /// The image as a name. Every id and every prefix of one can be a name, too.
    ///
    /// # Errors
    /// The image cannot be one.
    pub fn reference(&self) -> Result<ImageReference, Invalid> {
        if self.image.len() > MAX_IMAGE {
            return Err(Invalid::new("image", format!("longer than {MAX_IMAGE} characters")));
        }
        ImageReference::parse(&self.image).map_err(|message| Invalid::new("image", message))
    }
}

/// A digest of a workspace's image that is in use: on a node that has the image, or in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DigestInUse {
    /// The node that has the image.
    pub node: Name,
    pub node_id: NodeId,
    /// The session that is made from it; `null`: the node has it under the workspace's `image`.
    pub session: Option<SessionId>,
    /// What its registry gave; `null`: the image came from no registry, as far as the node has a record of it.
    pub digest: Option<String>,
    /// When the node last asked the registry about it; `null` for a session.
    pub checked_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    #[test]
    fn references_to_the_same_image_are_equal() {
        for (text, short) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("registry:5000/team/x", "registry:5000/team/x:latest"),
            ("registry:5000/team/x:2", "registry:5000/team/x:2"),
            ("x@sha256:ab", "x@sha256:ab"),
            ("docker.io/library/busybox", "busybox:latest"),
            ("library/busybox", "busybox:latest"),
            ("docker.io/team/x:1", "team/x:1"),
            ("registry:5000/library/x:1", "registry:5000/library/x:1"),
        ] {
            assert_eq!(parse(text).as_str(), short);
            assert_eq!(parse(short), parse(text), "the short form means the same");
        }
    }

    #[test]
    fn text_that_changes_the_path_of_a_call_is_refused() {
        for bad in ["", "../containers/x", "a/../../containers/x", "a//b", "a?force=1", "a b", "-a", "a/"] {
            assert!(ImageReference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_parts_of_a_reference() {
        let parts = |text: &str| {
            let reference = parse(text);
            let own = |part: Option<&str>| part.map(str::to_owned);
            (
                reference.registry().to_owned(),
                reference.repository().to_owned(),
                own(reference.tag()),
                own(reference.digest()),
            )
        };
        let told = |registry: &str, repository: &str, tag: Option<&str>, digest: Option<&str>| {
            (registry.to_owned(), repository.to_owned(), tag.map(str::to_owned), digest.map(str::to_owned))
        };
        assert_eq!(parts("busybox"), told("docker.io", "busybox", Some("latest"), None));
        assert_eq!(parts("team/x:1"), told("docker.io", "team/x", Some("1"), None));
        assert_eq!(parts("ghcr.io/team/x:1"), told("ghcr.io", "ghcr.io/team/x", Some("1"), None));
        assert_eq!(parts("localhost/x"), told("localhost", "localhost/x", Some("latest"), None));
        let fixed = told("registry:5000", "registry:5000/x", None, Some("sha256:ab"));
        assert_eq!(parts("registry:5000/x:7@sha256:ab"), fixed);
        assert_eq!(parse("registry:5000/x:7").at_digest("sha256:cd").as_str(), "registry:5000/x@sha256:cd");
    }

    #[test]
    fn an_image_is_meant_by_its_tag_or_by_the_digest_of_that_repository() {
        let (names, digests) = (["x:1".to_owned()], ["x@sha256:ab".to_owned(), "other@sha256:cd".to_owned()]);
        let is_meant = |text: &str| parse(text).names(&names, &digests);
        assert!(is_meant("x:1") && is_meant("docker.io/library/x:1"));
        assert!(!is_meant("x:2"));
        assert!(is_meant("x@sha256:ab") && is_meant("x:gone@sha256:ab"));
        assert!(!is_meant("x@sha256:cd"), "the digest of another repository");
    }
}
