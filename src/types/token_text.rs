//! The text of a token in a file or an input: of the cluster's token and of API tokens alike.

use std::fmt;

/// Bytes that are read of a file or an input that holds a token: twice the longest token, so that there is room for
/// blanks around it.
pub const MAX_TOKEN_INPUT: usize = 8192;
/// What some editors write in front of a text in UTF-8.
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why bytes are not a token. Contains no more of them than the first one that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPlain {
    #[error("it is empty; expected a token")]
    Empty,
    #[error("it has more than {MAX_TOKEN_INPUT} bytes; expected a token")]
    Long,
    #[error("it is UTF-16, with byte {0:#04x} at offset 0; save it as UTF-8")]
    Utf16(u8),
    #[error("byte {} at offset {at} cannot be part of a token, which is printable ASCII; remove it", Byte(*value))]
    OddByte { at: usize, value: u8 },
}

/// A byte as an error shows it, with its name if it is hard to see.
struct Byte(u8);

impl fmt::Display for Byte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)?;
        match self.0 {
            0 => f.write_str(" (NUL)"),
            b'\t' => f.write_str(" (tab)"),
            b'\n' => f.write_str(" (line feed)"),
            b'\r' => f.write_str(" (carriage return)"),
            b' ' => f.write_str(" (space)"),
            _ => Ok(()),
        }
    }
}

/// The token that these bytes hold: without a byte order mark, and without the blanks and line ends around it. Blanks
/// are those of ASCII: space, tab, line feed, form feed, carriage return.
///
/// # Errors
/// There is no token, or a byte that no token has.
pub fn token_text(content: &[u8]) -> Result<&str, NotPlain> {
    if content.len() > MAX_TOKEN_INPUT {
        return Err(NotPlain::Long);
    }
    if let [first @ (0xff | 0xfe), 0xff | 0xfe, ..] = content {
        return Err(NotPlain::Utf16(*first));
    }
    let unmarked = content.strip_prefix(UTF8_MARK).unwrap_or(content);
    let start = unmarked.trim_ascii_start();
    let text = start.trim_ascii_end();
    if text.is_empty() {
        return Err(NotPlain::Empty);
    }
    if let Some(at) = text.iter().position(|byte| !byte.is_ascii_graphic()) {
        return Err(NotPlain::OddByte { at: content.len() - start.len() + at, value: text[at] });
    }
    Ok(str::from_utf8(text).expect("printable ASCII is UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_byte_order_mark_and_blanks_around_a_token_are_not_part_of_it() {
        for around in ["T", "T\n", "T\r\n", "\u{feff}T\r\n", " \t T \n\n", "\u{feff} \nT", "\r\nT\r\n"] {
            assert_eq!(token_text(around.replace('T', "secret").as_bytes()), Ok("secret"), "{around:?}");
        }
    }

    #[test]
    fn any_other_byte_is_named_with_its_offset_and_the_rest_is_not_shown() {
        let told = |content: &[u8]| token_text(content).unwrap_err().to_string();
        for (content, expected) in [
            (&b"se cret"[..], "byte 0x20 (space) at offset 2"),
            (b"\xef\xbb\xbf\r\nse\ncret\n", "byte 0x0a (line feed) at offset 7"),
            (b"secret\0\n", "byte 0x00 (NUL) at offset 6"),
            ("secret\u{a0}".as_bytes(), "byte 0xc2 at offset 6"),
            ("\u{feff}\u{feff}secret".as_bytes(), "byte 0xef at offset 3"),
            (b"\xff\xfes\0e\0c\0", "UTF-16, with byte 0xff at offset 0; save it as UTF-8"),
            (b"\xfe\xff\0s\0e\0c", "UTF-16, with byte 0xfe at offset 0; save it as UTF-8"),
        ] {
            let told = told(content);
            assert!(told.contains(expected) && !told.contains("cret"), "{content:?}: {told}");
        }
        for nothing in [&b""[..], b" \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"] {
            assert_eq!(token_text(nothing), Err(NotPlain::Empty));
        }
        assert_eq!(token_text(&[b'x'; MAX_TOKEN_INPUT + 1]), Err(NotPlain::Long));
        assert!(token_text(&[b'x'; MAX_TOKEN_INPUT]).is_ok());
    }

    proptest! {
        #[test]
        fn the_offset_is_that_of_the_byte_in_the_whole_content(content: Vec<u8>) {
            if let Err(NotPlain::OddByte { at, value }) = token_text(&content) {
                prop_assert_eq!(content[at], value);
            }
        }
    }
}
