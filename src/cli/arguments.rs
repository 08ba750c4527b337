//! Argument types that several commands share.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::types::{Period, QueryTime};

/// `KEY=VALUE`. The value may be empty and may hold `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for Pair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(format!("`{text}` is not KEY=VALUE")),
        }
    }
}

/// The pairs as a map. If a key occurs twice, the later pair wins.
pub(super) fn map(pairs: &[Pair]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

/// `KEY=VALUE` sets a label, `KEY-` removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LabelChange {
    pub(super) key: String,
    pub(super) value: Option<String>,
}

impl FromStr for LabelChange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(Pair { key, value }) = text.parse() {
            return Ok(Self { key, value: Some(value) });
        }
        match text.strip_suffix('-') {
            Some(key) if !key.is_empty() && !key.contains('=') => Ok(Self { key: key.to_owned(), value: None }),
            _ => Err(format!("`{text}` is not a label change; expected KEY=VALUE to set it or KEY- to remove it")),
        }
    }
}

/// A time. `6h` is 6 hours ago, as `-6h` is for the API.
pub(super) fn time(text: &str) -> Result<QueryTime, String> {
    match text.parse::<Period>() {
        Ok(ago) => Ok(QueryTime::Ago(ago)),
        Err(_) => text.parse().map_err(|_| {
            format!("`{text}` is not a time; expected for example 6h, now, or RFC 3339: 2026-01-31T12:00:00Z")
        }),
    }
}

/// A number of things.
pub(super) fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u32::MAX))
}

/// Accepts the names of an enum's values, and lists them in help and completions.
pub(super) fn one_of<T>(words: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words.into_iter().collect::<Vec<_>>()).try_map(|word| word.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_labels_are_read() {
        let pair = |text: &str| text.parse::<Pair>().map(|pair| (pair.key, pair.value));
        assert_eq!(pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("A="), Ok(("A".to_owned(), String::new())));
        assert!(pair("=b").is_err() && pair("A").is_err());
        let label = |text: &str| text.parse::<LabelChange>().map(|change| (change.key, change.value));
        assert_eq!(label("rack=3-"), Ok(("rack".to_owned(), Some("3-".to_owned()))));
        assert_eq!(label("rack-"), Ok(("rack".to_owned(), None)));
        assert!(label("rack").is_err() && label("-").is_err() && label("=x-").is_err());
    }

    #[test]
    fn a_duration_is_so_long_ago() {
        assert_eq!(time("6h"), Ok(QueryTime::Ago(Period::secs(21_600))));
        assert_eq!(time("-6h"), time("6h"));
        assert_eq!(time("now"), Ok(QueryTime::NOW));
        assert!(time("2026-01-31T12:00:00Z").is_ok());
        assert!(time("soon").unwrap_err().contains("expected for example 6h"));
    }
}
