//! Escapes volume names as templates give them, such as `home-Alice@example.com`,
//! into characters that engines and file systems accept.

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

    proptest! {
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
