//! Whether a token can be guessed. Pure.

/// Fewer characters cannot hold what a token should, whatever they are.
pub(super) const MIN_LEN: usize = 32;
/// Longer ones are some other file.
pub(super) const MAX_LEN: usize = 4096;
/// What is refused below, in bits. A token of ours is estimated at over 180.
const MIN_BITS: f64 = 128.0;

/// Why a text cannot be a token. The text is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooWeak {
    #[error("the token is empty")]
    Empty,
    #[error("the token has {0} characters; expected at least {MIN_LEN}")]
    Short(usize),
    #[error("the token has more than {MAX_LEN} characters: this is some other file")]
    Long,
    #[error("the token holds characters that are not printable ASCII, or blanks")]
    NotPlain,
    #[error("the token could be guessed: it repeats itself, counts up, or has few different characters")]
    Guessable,
}

/// Checks that a text can be a token: 32 to 4,096 printable ASCII characters without blanks, estimated
/// at 128 bits or more. The estimate is Shannon's entropy of the characters times their number. It is
/// taken of the shortest piece that the text repeats, and of the steps from each character to the next,
/// and the least counts: `passwordpassword…` has the entropy of `password`, `abcdef…` has that of
/// `+1+1+1…`. It finds what was never random; it cannot tell a well-known text from a random one.
pub(super) fn check(text: &str) -> Result<(), TooWeak> {
    match text.len() {
        0 => return Err(TooWeak::Empty),
        _ if !text.bytes().all(|b| b.is_ascii_graphic()) => return Err(TooWeak::NotPlain),
        len if len < MIN_LEN => return Err(TooWeak::Short(len)),
        len if len > MAX_LEN => return Err(TooWeak::Long),
        _ => {}
    }
    if estimated_bits(text.as_bytes()) < MIN_BITS { Err(TooWeak::Guessable) } else { Ok(()) }
}

fn estimated_bits(text: &[u8]) -> f64 {
    let piece = &text[..period(text)];
    let steps: Vec<u8> = piece.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    entropy_bits(piece).min(entropy_bits(&steps))
}

/// The length of the shortest piece that the text repeats, the last time perhaps cut off.
fn period(text: &[u8]) -> usize {
    (1..text.len()).find(|&len| text[len..] == text[..text.len() - len]).unwrap_or(text.len())
}

/// Shannon's entropy of the bytes, times their number.
fn entropy_bits(bytes: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    let total = f64::from(counts.iter().sum::<u32>());
    counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count)).map(|n| n * (total / n).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::{BASE32, BASE64, BASE64URL_NOPAD, HEXLOWER};
    use proptest::prelude::*;

    #[test]
    fn what_was_never_random_is_refused() {
        let alphabet: String = (b'!'..=b'~').map(char::from).collect();
        for weak in [
            "a".repeat(64),
            "ab".repeat(40),
            "password123".repeat(5),
            "0123456789".repeat(6),
            "correct-horse-battery-staple".repeat(3),
            "deadbeef".repeat(8),
            "0".repeat(63) + "1",
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".to_owned(),
            alphabet,
        ] {
            assert_eq!(check(&weak), Err(TooWeak::Guessable), "{weak}");
        }
    }

    #[test]
    fn what_is_no_token_is_told_apart() {
        assert_eq!(check(""), Err(TooWeak::Empty));
        assert_eq!(check("k3f7q2m5x6a4b7c2"), Err(TooWeak::Short(16)));
        assert_eq!(check(&"x".repeat(MAX_LEN + 1)), Err(TooWeak::Long));
        assert_eq!(check("one line\nand another line, long enough"), Err(TooWeak::NotPlain));
        assert_eq!(check("ключ-ключ-ключ-ключ-ключ-ключ-ключ"), Err(TooWeak::NotPlain));
    }

    proptest! {
        #[test]
        fn random_bits_are_a_token_in_every_common_spelling(bits: [u8; 32]) {
            // proptest's shrinking and its favourite numbers make arrays that are not random: hash them.
            let bits = ring::digest::digest(&ring::digest::SHA256, &bits);
            for encoding in [BASE64URL_NOPAD, BASE64, HEXLOWER, BASE32] {
                let text = encoding.encode(bits.as_ref());
                prop_assert_eq!(check(&text), Ok(()), "{}", text);
                prop_assert!(estimated_bits(text.as_bytes()) > 180.0, "{}", text);
            }
        }

        #[test]
        fn any_text_is_a_token_or_not(text in "\\PC{0,100}") {
            let _ = check(&text);
        }
    }
}
