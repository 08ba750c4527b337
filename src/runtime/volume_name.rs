//! Escapes volume names as templates give them, such as `home-Alice@example.com`,
//! into characters that engines and file systems accept.

use data_encoding::HEXLOWER;

/// Returns a name of `[a-z0-9.-]` and `_` followed by two hex digits, with no dot in front.
///
/// Different names have different escaped names, and none is a path (`..`, `a/b`).
pub(super) fn escape_name(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => escaped.push(char::from(byte)),
            b'.' if at > 0 => escaped.push('.'),
            _ => escaped.push_str(&format!("_{byte:02x}")),
        }
    }
    escaped
}

/// How many bytes of a name that is too long are kept before its digest.
const READABLE: usize = 100;

/// The escaped name if it has at most `most` bytes, and otherwise its beginning with a digest of the name. Different
/// names give different texts here, too, also on file systems that do not distinguish upper and lower case.
pub(super) fn bounded_name(name: &str, most: usize) -> String {
    let escaped = escape_name(name);
    if escaped.len() <= most {
        return escaped;
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    // Escaping never writes `_h`, so no name that is short enough gives this text.
    format!("{}_h{}", &escaped[..READABLE], HEXLOWER.encode(digest.as_ref()))
}

/// The name that [`escape_name`] turned into `escaped`; `None` if it never returns `escaped`.
pub(super) fn unescape_name(escaped: &str) -> Option<String> {
    let mut name = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'_' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            plain => plain,
        });
    }
    let name = String::from_utf8(name).ok()?;
    (escape_name(&name) == escaped).then_some(name)
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::User;
    use proptest::prelude::*;

    #[test]
    fn escaped_names_are_readable_and_never_paths() {
        assert_eq!(escape_name("home-alice"), "home-alice");
        assert_eq!(escape_name("home-Al_ice@x.org"), "home-_41l_5fice_40x.org");
        assert_eq!(escape_name(".."), "_2e.");
        assert_eq!(escape_name("a/b"), "a_2fb");
    }

    #[test]
    fn only_escaped_names_are_unescaped() {
        for foreign in ["_", "_4", "_4g", "A", "..", "_41_", "_61", "_2E.", "a/b", "_ff"] {
            assert_eq!(unescape_name(foreign), None, "{foreign}");
        }
    }

    /// Names of users: of old ones, which escaping must not change, and of all that are taken now.
    fn user() -> impl Strategy<Value = User> {
        let text = prop_oneof![r"[A-Za-z0-9._@+\\-]{1,128}", "[aA._ |ö%-]{1,6}", r"\PC{1,256}"];
        text.prop_filter_map("a user", |text| text.parse().ok())
    }

    #[test]
    fn the_volumes_of_users_that_were_valid_before_keep_their_names() {
        for (user, volume) in [
            ("alice", "home-alice"),
            ("Alice@example.com", "home-_41lice_40example.com"),
            (r"CORP\a_b+c", "home-_43_4f_52_50_5ca_5fb_2bc"),
        ] {
            assert_eq!(bounded_name(&format!("home-{user}"), 180), volume);
        }
    }

    proptest! {
        #[test]
        fn two_users_never_share_a_volume(
            one in user(), other in user(), most in prop_oneof![Just(180_usize), Just(255)],
        ) {
            let volume = |user: &User| bounded_name(&format!("home-{user}"), most);
            let (a, b) = (volume(&one), volume(&other));
            prop_assert_eq!(one == other, a == b);
            prop_assert_eq!(a.to_ascii_lowercase(), &a[..], "nothing to fold");
            prop_assert!(a.len() <= most);
        }

        #[test]
        fn unescaping_gives_back_every_name(name in "\\PC{0,40}") {
            let escaped = escape_name(&name);
            prop_assert!(escaped.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')));
            prop_assert!(!escaped.starts_with('.'));
            prop_assert_eq!(unescape_name(&escaped), Some(name));
        }

        #[test]
        fn unescaping_never_panics(text in "[a-f0-9_.\\PC]{0,20}") {
            if let Some(name) = unescape_name(&text) {
                prop_assert_eq!(escape_name(&name), text);
            }
        }
    }
}
