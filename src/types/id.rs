//! Names and identities. Each is checked once, when it is parsed, and trusted from then on.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::Encoding;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// RFC 4648 base32 in lower case without padding: safe in DNS labels, container names and URLs.
static BASE32: std::sync::LazyLock<Encoding> = std::sync::LazyLock::new(|| {
    let mut spec = data_encoding::Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("a constant alphabet of 32 distinct symbols is valid")
});

fn is_base32(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// Implements `Display`, `AsRef<str>`, `Serialize` and strict `Deserialize` of a name or identity by its text.
macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                from.deserialize_str(Text)
            }
        }
    };
}

/// An identity: a fixed number of base32 characters, stored inline. It is `Copy`, needs no allocation, and orders and
/// hashes as its text does.
macro_rules! identity {
    ($name:ident, $len:literal, $what:literal) => {
        impl $name {
            /// Characters of the text.
            pub const LEN: usize = $len;

            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("base32 is ASCII")
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let characters: Option<[u8; $len]> = text.as_bytes().try_into().ok();
                characters
                    .filter(|_| is_base32(text))
                    .map(Self)
                    .ok_or_else(|| format!("`{text}` is not a {}; expected {} characters of a-z and 2-7", $what, $len))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }
        text!($name);
    };
}

/// A name: checked text that all its clones share.
macro_rules! name {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
        text!($name);
    };
}

/// A node's identity: random, created once, and kept as long as the node's data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z2-7]{16}$", example = "k3f7q2m5x6a4b7c2")]
pub struct NodeId([u8; 16]);
identity!(NodeId, 16, "node id");

impl NodeId {
    /// The id of these 80 random bits.
    pub fn from_bytes(random: [u8; 10]) -> Self {
        let mut text = [0; Self::LEN];
        BASE32.encode_mut(&random, &mut text);
        Self(text)
    }
}

/// A session's identity, derived from the cluster's name and the idempotency key, so that every request with one key
/// means one session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z2-7]{26}$", example = "mfrggzdfmztwq2lknnwg23tpob")]
pub struct SessionId([u8; 26]);
identity!(SessionId, 26, "session id");

impl SessionId {
    /// Characters of the base32 of a SHA-256 digest, unpadded.
    const DIGEST_LEN: usize = 52;

    /// The id of a key: the first 130 bits of the SHA-256 of cluster and key, as base32.
    pub fn of_key(cluster: &Name, idempotency_key: &str) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(cluster.as_str().as_bytes());
        hash.update(&[0]); // a name holds no NUL, so no two pairs of cluster and key give the same bytes
        hash.update(idempotency_key.as_bytes());
        let mut digest = [0; Self::DIGEST_LEN];
        BASE32.encode_mut(hash.finish().as_ref(), &mut digest);
        let mut text = [0; Self::LEN];
        text.copy_from_slice(&digest[..Self::LEN]);
        Self(text)
    }
}

/// The name of a node, workspace, cluster, volume or token: 1 to 63 characters of `a-z 0-9 . _ -`.
/// The first and the last are a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$", max_length = 63, example = "ubuntu-desktop")]
pub struct Name(Arc<str>);
name!(Name);

impl Name {
    pub const MAX_LEN: usize = 63;
}

impl From<NodeId> for Name {
    /// The name that stands for a node whose name is not known. Every node id is a valid name.
    fn from(id: NodeId) -> Self {
        Self(id.as_str().into())
    }
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let bytes = text.as_bytes();
        let inside = |&c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
        if bytes.len() <= Self::MAX_LEN
            && edge(bytes.first().copied())
            && edge(bytes.last().copied())
            && bytes.iter().all(inside)
        {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(Self::MAX_LEN + 1).collect();
        Err(format!(
            "`{shown}` is not a name; expected 1 to {} characters of a-z, 0-9, `.`, `_` and `-`, \
             first and last a letter or digit",
            Self::MAX_LEN
        ))
    }
}

/// The user of a session, as the API's caller states it: 1 to 128 of letters, digits and `. _ @ + - \`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = r"^[A-Za-z0-9._@+\\-]{1,128}$", max_length = 128, example = "alice@example.com")]
pub struct User(Arc<str>);
name!(User);

impl User {
    pub const MAX_LEN: usize = 128;
}

impl FromStr for User {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'@' | b'+' | b'-' | b'\\');
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(fine) {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(Self::MAX_LEN).collect();
        Err(format!(
            "`{shown}` is not a user; expected 1 to {} characters of letters, digits and . _ @ + - \\",
            Self::MAX_LEN
        ))
    }
}

/// The order of leaders: ballots compare by term first, then by node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Ballot {
    pub term: u64,
    pub node: NodeId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_one_session_id_and_another_in_each_cluster() {
        let a: Name = "a".parse().unwrap();
        let b: Name = "b".parse().unwrap();
        assert_eq!(SessionId::of_key(&a, "k"), SessionId::of_key(&a, "k"));
        assert_ne!(SessionId::of_key(&a, "k"), SessionId::of_key(&b, "k"));
        assert_ne!(SessionId::of_key(&a, "k"), SessionId::of_key(&a, "l"));
        assert_eq!(SessionId::of_key(&a, "k").as_str().parse::<SessionId>(), Ok(SessionId::of_key(&a, "k")));
    }

    #[test]
    fn an_identity_is_shown_parsed_and_ordered_as_its_text() {
        let session = SessionId::of_key(&"c".parse().unwrap(), "k");
        assert_eq!(session.to_string().len(), SessionId::LEN);
        assert_eq!(serde_json::to_string(&session).unwrap(), format!("\"{session}\""));
        let (low, high) = (NodeId::from_bytes([0; 10]), NodeId::from_bytes([255; 10]));
        assert_eq!((low.as_str(), high.as_str()), ("aaaaaaaaaaaaaaaa", "7777777777777777"));
        assert!(low > high, "a digit orders below a letter, as in the text");
        for wrong in
            ["", "aaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaa", "Aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaa1", "aaaaaaaaaaaaaaé"]
        {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong}");
            assert!(serde_json::from_value::<NodeId>(wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_safe_in_paths_and_container_names() {
        for good in ["a", "node-1", "x.y_z", "0", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a/b", "a b", "ä", "..", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_login_names_and_mail_addresses() {
        for good in ["alice", "alice@example.com", r"CORP\alice", "a+b"] {
            assert!(good.parse::<User>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "{user}", "a/b", "a\n", &"a".repeat(129)] {
            assert!(bad.parse::<User>().is_err(), "{bad}");
        }
    }
}
