//! A time in a query: as such, or as a time before now.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::types::{Period, Timestamp};

/// A time: RFC 3339, `now`, or how long before now, as `-6h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    At(Timestamp),
    Ago(Duration),
}

impl When {
    pub(super) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(span) => {
                Timestamp::from_millis(now.millis().saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
            }
        }
    }
}

impl std::str::FromStr for When {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time; expected RFC 3339 as 2026-01-31T12:00:00Z, `now`, or -6h");
        if text == "now" {
            return Ok(Self::Ago(Duration::ZERO));
        }
        match text.strip_prefix('-') {
            Some(span) => span.parse::<Period>().map(|span| Self::Ago(span.0)).map_err(|_| wrong()),
            None => text.parse().map(Self::At).map_err(|_| wrong()),
        }
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for When {
    fn schema() -> RefOr<Schema> {
        // Of the times of RFC 3339, those that are valid in every month: a pattern cannot count days.
        let date = "20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])";
        let pattern = format!("^(now|-[1-9][0-9]{{0,3}}[smhd]|{date}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$");
        ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).into()
    }
}

impl ToSchema for When {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_before_now() {
        let now = Timestamp::from_millis(10_000_000);
        let at = |text: &str| text.parse::<When>().map(|when| when.at(now).millis());
        assert_eq!(at("1970-01-01T00:00:05Z"), Ok(5000));
        assert_eq!((at("now"), at("-90s")), (Ok(10_000_000), Ok(9_910_000)));
        for wrong in ["", "6h", "-", "-6", "yesterday", "2026-01-31"] {
            assert!(at(wrong).unwrap_err().contains("expected RFC 3339"), "{wrong}");
        }
    }
}
