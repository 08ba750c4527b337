//! Names and identities. Each is checked once, when it is parsed, and trusted from then on.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::Encoding;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_normalization::UnicodeNormalization;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::schema;

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

/// The user of a session, as the API's caller and its identity provider name it: 1 to 256 printable characters, such as
/// `auth0|5f7c`, `Jörg Müller` or `CORP\alice`.
///
/// The text is normalised to NFC, so that one name has one text however it is typed. Nothing else of it changes: names
/// that differ in case are two users. A blank at an end is an error and is not cut off: to the identity provider it may
/// be another user, and in a table it looks like the same one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User(Arc<str>);
name!(User);

impl User {
    /// Characters. The subject of OpenID Connect has 255 at most, a persistent name of SAML 256.
    pub const MAX_LEN: usize = 256;
    /// Bytes: a character has four at most.
    pub const MAX_BYTES: usize = 4 * Self::MAX_LEN;
}

impl FromStr for User {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // No more than one character above the bound is normalised or shown.
        let name: String = text.nfc().take(Self::MAX_LEN + 1).collect();
        let wrong = if name.is_empty() || name.chars().count() > Self::MAX_LEN {
            None
        } else if let Some(odd) = name.chars().find(|c| !is_printable(*c)) {
            Some(format!("U+{:04X} is not printable", u32::from(odd)))
        } else if name.starts_with(' ') || name.ends_with(' ') {
            Some("it begins or ends with a blank".to_owned())
        } else {
            return Ok(Self(name.into()));
        };
        let wrong = wrong.map_or_else(String::new, |wrong| format!(": {wrong}"));
        let shown: String = name.chars().map(shown).collect();
        Err(format!(
            "`{shown}` is not a user{wrong}; expected 1 to {} printable characters, with no blank at an end",
            Self::MAX_LEN
        ))
    }
}

/// A character as an error shows it.
fn shown(c: char) -> String {
    if is_printable(c) { c.to_string() } else { c.escape_unicode().to_string() }
}

impl PartialSchema for User {
    fn schema() -> RefOr<Schema> {
        schema::user().into()
    }
}
impl ToSchema for User {}

/// Ranges of characters, in order, that no name may contain: those that control, that are invisible, that are blanks
/// other than the space, or that have no meaning of their own. The API's pattern of users is made from them.
pub(super) const UNPRINTABLE: &[(char, char)] = &[
    ('\0', '\u{1f}'),
    ('\u{7f}', '\u{a0}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{2000}', '\u{200f}'),
    ('\u{2028}', '\u{202f}'),
    ('\u{205f}', '\u{206f}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{e000}', '\u{f8ff}'), // private use
    ('\u{fdd0}', '\u{fdef}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{ffff}'), // with the mark of a character that could not be decoded
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{10ffff}'), // tags, variation selectors, private use
];

/// Whether the character may be part of a name that people read in tables. Controls, white space other than the space,
/// Unicode's default ignorable characters and those for private use may not.
pub fn is_printable(c: char) -> bool {
    !UNPRINTABLE.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// The order of leaders: ballots compare by term first, then by node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Ballot {
    pub term: u64,
    pub node: NodeId,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn users_are_named_as_identity_providers_name_them() {
        for good in [
            "alice",
            "alice@example.com",
            r"CORP\alice",
            "a+b",
            "auth0|5f7c8ec7c33c6c004bbafe82",
            "google-oauth2|103547991597142817347",
            "https://idp.example.com/u/1?x=y#z",
            "CN=Jörg Müller,OU=Köln,DC=example",
            "Zoë  van der Berg",
            "O'Neil \"the\" {user}",
            "李小龙",
            "Владимир",
            "..",
            &"a".repeat(256),
            &"漢".repeat(256),
        ] {
            assert_eq!(good.parse::<User>().map(|user| user.to_string()), Ok(good.to_owned()));
        }
        for (bad, told) in [
            ("", "expected 1 to 256 printable characters"),
            ("a\n", "U+000A is not printable"),
            ("a\u{1b}[2J", "U+001B is not printable"),
            ("a\u{200b}b", "U+200B is not printable"),
            ("\u{202e}ecila", "U+202E is not printable"),
            ("a\u{a0}b", "U+00A0 is not printable"),
            ("a\u{fffd}", "U+FFFD is not printable"),
            (" a", "begins or ends with a blank"),
            ("a ", "begins or ends with a blank"),
            (&"a".repeat(257), "expected 1 to 256"),
        ] {
            let error = bad.parse::<User>().unwrap_err();
            assert!(error.contains(told) && error.chars().all(is_printable), "{bad:?}: {error}");
        }
    }

    #[test]
    fn one_name_is_one_user_however_it_is_typed() {
        let user = |text: &str| text.parse::<User>().unwrap();
        assert_eq!(user("Jo\u{308}rg"), user("J\u{f6}rg"));
        assert_eq!(user("\u{212b}ngstrom"), user("\u{c5}ngstrom"));
        assert_eq!(user(&"u\u{308}".repeat(256)).as_str().chars().count(), 256, "the bound counts what is kept");
        for (one, other) in [("Alice", "alice"), ("\u{fb01}n", "fin"), ("a b", "a  b")] {
            assert_ne!(user(one), user(other), "these are two users");
        }
    }

    #[test]
    fn unprintable_characters_are_listed_in_order_and_each_once() {
        assert!(UNPRINTABLE.iter().all(|(first, last)| first <= last));
        assert!(UNPRINTABLE.windows(2).all(|pair| pair[0].1 < pair[1].0));
        let of_unicode = |c: &char| c.is_control() || (c.is_whitespace() && *c != ' ');
        assert!(('\0'..=char::MAX).filter(of_unicode).all(|c| !is_printable(c)));
    }

    proptest! {
        #[test]
        fn a_user_that_is_shown_is_parsed_as_the_same_user(text in "\\PC{0,40}") {
            if let Ok(user) = text.parse::<User>() {
                prop_assert_eq!(user.as_str().parse::<User>(), Ok(user.clone()));
                prop_assert!(user.as_str().len() <= User::MAX_BYTES);
            }
        }
    }
}
