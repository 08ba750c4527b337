//! Whether a token can be guessed. Pure.

use crate::types::NotPlain;

/// Characters of a token at least: fewer characters of common encodings hold less than 128 bits.
pub(super) const MIN_LEN: usize = 32;
/// Characters of a token at most: a longer text is another file.
pub(super) const MAX_LEN: usize = 4096;
/// Estimated bits of a token at least. The estimate of a token of ours is over 180.
const MIN_BITS: f64 = 128.0;

/// Why a text cannot be a token. Never contains the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooWeak {
    #[error(transparent)]
    NotPlain(#[from] NotPlain),
    #[error("the token has {0} characters; expected at least {MIN_LEN}")]
    Short(usize),
    #[error("the token has more than {MAX_LEN} characters: this is not a token file")]
    Long,
    #[error("the token is easy to guess: it repeats itself, counts up, or has few different characters")]
    Guessable,
}

/// Checks that a text can be a token: 32 to 4,096 characters, estimated at 128 bits or more. The estimate is
/// Shannon's entropy of the characters times their number. It is computed for the shortest piece that the text
/// repeats, and for the steps from each character to the next; the smaller one counts. So `passwordpassword…` has
/// the entropy of `password`, and `abcdef…` has that of `+1+1+1…`. The check finds texts with a pattern; it cannot
/// tell a well-known text from a random one.
pub(super) fn check(text: &str) -> Result<(), TooWeak> {
    match text.len() {
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

/// The length of the shortest piece that the text repeats; the last repetition may be incomplete.
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
    fn texts_with_a_pattern_are_refused() {
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
    fn each_reason_for_a_refusal_has_its_own_error() {
        assert_eq!(check(""), Err(TooWeak::Short(0)));
        assert_eq!(check("k3f7q2m5x6a4b7c2"), Err(TooWeak::Short(16)));
        assert_eq!(check(&"x".repeat(MAX_LEN + 1)), Err(TooWeak::Long));
    }

    proptest! {
        #[test]
        fn random_bits_are_a_token_in_every_common_encoding(bits: [u8; 32]) {
            // proptest's shrinking and its preferred numbers give arrays that are not random: hash them.
            let bits = ring::digest::digest(&ring::digest::SHA256, &bits);
            for encoding in [BASE64URL_NOPAD, BASE64, HEXLOWER, BASE32] {
                let text = encoding.encode(bits.as_ref());
                prop_assert_eq!(check(&text), Ok(()), "{}", text);
                prop_assert!(estimated_bits(text.as_bytes()) > 180.0, "{}", text);
            }
        }

        #[test]
        fn the_check_panics_on_no_text(text in "\\PC{0,100}") {
            let _ = check(&text);
        }
    }
}
