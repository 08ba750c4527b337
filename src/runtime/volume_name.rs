//! Volume names as templates make them, `home-Alice@example.com`, in letters
//! that engines and file systems take.

/// A name of `[a-z0-9.-]` and `_` followed by two hex digits, with no dot in front.
///
/// No two names escape alike, and none escapes to what a file system reads otherwise (`..`, `a/b`).
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

/// The name that [`escape_name`] made this of; `None` for what it never makes.
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
    use proptest::prelude::*;

    #[test]
    fn names_are_readable_and_never_paths() {
        assert_eq!(escape_name("home-alice"), "home-alice");
        assert_eq!(escape_name("home-Al_ice@x.org"), "home-_41l_5fice_40x.org");
        assert_eq!(escape_name(".."), "_2e.");
        assert_eq!(escape_name("a/b"), "a_2fb");
    }

    #[test]
    fn what_was_never_escaped_is_not_unescaped() {
        for foreign in ["_", "_4", "_4g", "A", "..", "_41_", "_61", "_2E.", "a/b", "_ff"] {
            assert_eq!(unescape_name(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in "\\PC{0,40}") {
            let escaped = escape_name(&name);
            prop_assert!(escaped.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')));
            prop_assert!(!escaped.starts_with('.'));
            prop_assert_eq!(unescape_name(&escaped), Some(name));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-f0-9_.\\PC]{0,20}") {
            if let Some(name) = unescape_name(&text) {
                prop_assert_eq!(escape_name(&name), text);
            }
        }
    }
}
