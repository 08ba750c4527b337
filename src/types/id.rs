//! Names and identities. Each is checked once, where it enters, and then trusted.

use std::fmt;
use std::str::FromStr;

use data_encoding::Encoding;
use serde::{Deserialize, Deserializer, Serialize};
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

/// Defines a checked string: parse, display, serde (deserialising checks too).
macro_rules! checked_string {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A node's identity: random, made once, kept for the life of its data directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z2-7]{16}$", example = "k3f7q2m5x6a4b7c2")]
pub struct NodeId(String);
checked_string!(NodeId);

impl NodeId {
    /// 80 random bits.
    pub fn from_bytes(random: [u8; 10]) -> Self {
        Self(BASE32.encode(&random))
    }
}

impl FromStr for NodeId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == 16 && is_base32(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("`{text}` is not a node id; expected 16 characters of a-z and 2-7"))
        }
    }
}

/// A session's identity: made from the cluster's name and the idempotency key,
/// so that one key is one session wherever and however often it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z2-7]{26}$", example = "mfrggzdfmztwq2lknnwg23tpob")]
pub struct SessionId(String);
checked_string!(SessionId);

impl SessionId {
    const LEN: usize = 26;

    /// The id of a key: base32 of the SHA-256 of cluster and key, 130 bits of it.
    pub fn of_key(cluster: &Name, idempotency_key: &str) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(cluster.as_str().as_bytes());
        hash.update(&[0]); // a name holds no NUL: no two pairs concatenate alike
        hash.update(idempotency_key.as_bytes());
        let mut text = BASE32.encode(hash.finish().as_ref());
        text.truncate(Self::LEN);
        Self(text)
    }
}

impl FromStr for SessionId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == Self::LEN && is_base32(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("`{text}` is not a session id; expected {} characters of a-z and 2-7", Self::LEN))
        }
    }
}

/// The name of a node, workspace, cluster, volume or token: 1 to 63 of `a-z 0-9 . _ -`,
/// first and last a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$", max_length = 63, example = "ubuntu-desktop")]
pub struct Name(String);
checked_string!(Name);

impl Name {
    pub const MAX_LEN: usize = 63;
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
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(Self::MAX_LEN + 1).collect();
        Err(format!(
            "`{shown}` is not a name; expected 1 to {} of a-z, 0-9, `.`, `_` and `-`, first and last a letter or digit",
            Self::MAX_LEN
        ))
    }
}

/// The person a session is for, as the API's caller asserts it: 1 to 128 of letters, digits and `. _ @ + - \`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[schema(value_type = String, pattern = r"^[A-Za-z0-9._@+\\-]{1,128}$", max_length = 128, example = "alice@example.com")]
pub struct User(String);
checked_string!(User);

impl User {
    pub const MAX_LEN: usize = 128;
}

impl FromStr for User {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'@' | b'+' | b'-' | b'\\');
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(fine) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(Self::MAX_LEN).collect();
        Err(format!("`{shown}` is not a user; expected 1 to {} of letters, digits and . _ @ + - \\", Self::MAX_LEN))
    }
}

/// Who may decide placements, and since when: compared term first, then node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Ballot {
    pub term: u64,
    pub node: NodeId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_session_and_clusters_never_share_one() {
        let a: Name = "a".parse().unwrap();
        let b: Name = "b".parse().unwrap();
        assert_eq!(SessionId::of_key(&a, "k"), SessionId::of_key(&a, "k"));
        assert_ne!(SessionId::of_key(&a, "k"), SessionId::of_key(&b, "k"));
        assert_ne!(SessionId::of_key(&a, "k"), SessionId::of_key(&a, "l"));
        assert_eq!(SessionId::of_key(&a, "k").as_str().parse::<SessionId>(), Ok(SessionId::of_key(&a, "k")));
    }

    #[test]
    fn names_are_safe_in_paths_and_containers() {
        for good in ["a", "node-1", "x.y_z", "0", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a/b", "a b", "ä", "..", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_logins_and_addresses() {
        for good in ["alice", "alice@example.com", r"CORP\alice", "a+b"] {
            assert!(good.parse::<User>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "{user}", "a/b", "a\n", &"a".repeat(129)] {
            assert!(bad.parse::<User>().is_err(), "{bad}");
        }
    }
}
