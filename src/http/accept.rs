//! How much a request prefers a format of the answer: its header `Accept` (RFC 9110 §12.5.1).

use axum::http::{HeaderMap, header};

/// How much a format is preferred: first by quality, then by how closely the header names it. The default: not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Preference {
    /// Thousandths, 0 to 1000.
    quality: u16,
    closeness: Closeness,
}

/// How closely a media range names a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Closeness {
    /// `*/*`
    #[default]
    Anything,
    /// `text/*`
    Type,
    /// `text/plain`
    Subtype,
    /// `text/plain; version=0.0.4`
    Version,
}

/// How much the request prefers this version of a media type. The range that names the format most closely decides.
/// Every format is preferred equally without `Accept`.
pub(super) fn preference(headers: &HeaderMap, media_type: &str, version: &str) -> Preference {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let matching = lines.flat_map(|line| line.split(',')).filter_map(|range| matching(range, media_type, version));
    let closest = matching.max_by_key(|matching| (matching.closeness, matching.quality));
    // It does not matter how closely the header names a format that it excludes.
    closest.filter(|closest| closest.quality > 0).unwrap_or_default()
}

/// What a media range says of a format; `None` if it is malformed or of another format.
fn matching(range: &str, media_type: &str, version: &str) -> Option<Preference> {
    let mut parts = range.split(';').map(str::trim);
    let mut closeness = closeness(parts.next()?, media_type)?;
    let mut quality = 1000;
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        if name.eq_ignore_ascii_case("q") {
            quality = thousandths(value)?;
        } else if name.eq_ignore_ascii_case("version") {
            if value.trim_matches('"') != version {
                return None;
            }
            closeness = Closeness::Version;
        }
    }
    Some(Preference { quality, closeness })
}

fn closeness(range: &str, media_type: &str) -> Option<Closeness> {
    if range.eq_ignore_ascii_case(media_type) {
        return Some(Closeness::Subtype);
    }
    match range.split_once('/')? {
        ("*", "*") => Some(Closeness::Anything),
        (name, "*") if media_type.split_once('/')?.0.eq_ignore_ascii_case(name) => Some(Closeness::Type),
        _ => None,
    }
}

/// A quality: 0 to 1 with at most three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    let quality = match whole {
        "0" if digits => format!("{decimals:0<3}").parse().ok()?,
        "1" if digits && decimals.bytes().all(|byte| byte == b'0') => 1000,
        _ => return None,
    };
    Some(quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferred(lines: &[&str], media_type: &str, version: &str) -> Preference {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::ACCEPT, line.parse().unwrap());
        }
        preference(&headers, media_type, version)
    }

    fn quality(accept: &str) -> u16 {
        preferred(&[accept], "text/plain", "0.0.4").quality
    }

    #[test]
    fn the_closest_range_decides() {
        assert_eq!(quality("*/*;q=0.1, text/*;q=0.2, text/plain;q=0.3, text/plain;version=0.0.4;q=0.4"), 400);
        assert_eq!(quality("*/*;q=0.1, text/*;q=0.2, text/plain;q=0.3, text/plain;version=1;q=0.4"), 300);
        assert_eq!(quality("text/plain;q=0, */*;q=0.2, text/*"), 0);
        assert_eq!(quality("application/*, image/png, text/html"), 0);
    }

    #[test]
    fn a_quality_has_at_most_three_decimals_and_is_1_by_default() {
        for (accept, thousandths) in [
            ("text/plain", 1000),
            ("TEXT/Plain; Q=0.5", 500),
            ("text/plain;q=1.000", 1000),
            ("text/plain;q=0.", 0),
            ("text/plain;q=0.001", 1),
            ("text/plain ; version=\"0.0.4\" ; charset=utf-8 ; q=0.25", 250),
        ] {
            assert_eq!(quality(accept), thousandths, "{accept}");
        }
        for malformed in
            ["", ",", "text", "*", "text/plain;q=", "text/plain;q=2", "text/plain;q=1.1", "text/plain;q=-1"]
        {
            assert_eq!(quality(malformed), 0, "{malformed}");
        }
        assert_eq!(quality("text/plain;q=0.0001"), 0);
    }

    #[test]
    fn a_format_that_is_named_more_closely_wins_among_equal_qualities() {
        let accept = ["*/*", "application/x;q=1"];
        assert!(preferred(&accept, "application/x", "1") > preferred(&accept, "text/plain", "0.0.4"));
        assert_eq!(preferred(&["text/plain;q=0"], "text/plain", "0.0.4"), preferred(&[], "text/plain", "0.0.4"));
    }
}
