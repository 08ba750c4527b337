//! A time in a query: absolute, or before now.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::{Period, Timestamp};

/// A point in time of a query: an absolute one, or one before the clock of the node that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryTime {
    At(Timestamp),
    /// So long ago; zero is now.
    Ago(Period),
}

impl QueryTime {
    pub const NOW: Self = Self::Ago(Period::secs(0));

    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(Period(span)) => {
                Timestamp::from_millis(now.millis().saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
            }
        }
    }
}

impl fmt::Display for QueryTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(time) => time.fmt(f),
            Self::Ago(Period(Duration::ZERO)) => f.write_str("now"),
            Self::Ago(Period(span)) => write!(f, "-{}ms", span.as_millis()),
        }
    }
}

impl FromStr for QueryTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time; expected `now`, `-6h`, or RFC 3339: 2026-01-31T12:00:00Z");
        if text == "now" {
            return Ok(Self::NOW);
        }
        match text.strip_prefix('-') {
            Some(span) => Ok(Self::Ago(span.parse().map_err(|_| wrong())?)),
            None => Ok(Self::At(text.parse().map_err(|_| wrong())?)),
        }
    }
}

impl Serialize for QueryTime {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QueryTime {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl PartialSchema for QueryTime {
    fn schema() -> RefOr<Schema> {
        // Of the times of RFC 3339, those that are valid in every month: a pattern cannot count days.
        let date = "20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])";
        let pattern = format!("^(now|-[1-9][0-9]{{0,3}}[smhd]|{date}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$");
        ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).into()
    }
}

impl ToSchema for QueryTime {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_before_now() {
        let now = Timestamp::from_millis(100_000_000);
        let at = |text: &str| text.parse::<QueryTime>().unwrap().at(now);
        assert_eq!(at("now"), now);
        assert_eq!(at("-1h"), Timestamp::from_millis(96_400_000));
        assert_eq!(at("1970-01-01T00:00:01Z"), Timestamp::from_millis(1000));
        for text in ["now", "-21600000ms", "2026-01-31T12:00:00.000Z"] {
            assert_eq!(text.parse::<QueryTime>().unwrap().to_string(), text);
        }
        for text in ["", "-", "6h", "yesterday", "-6", "2026-01-31"] {
            let told = text.parse::<QueryTime>().unwrap_err();
            assert!(told.contains("expected `now`"), "{told}");
        }
    }
}
