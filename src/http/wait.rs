//! Answers that wait until a session is in the state that the caller wants.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tokio::time::Instant;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::cluster::MAX_HOLD;
use crate::types::{Period, SessionState, Wait};

/// How long an answer waits by default. nginx and most load balancers give up after 60 s without an answer, and a host
/// that does not answer adds a few seconds.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(50);
/// Bytes of a timeout's text at most.
const MAX_TEXT: usize = 15;
/// Digits of each of its numbers at most.
const MAX_DIGITS: usize = 4;

/// What to wait for. The status code of the answer does not depend on it.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    /// Delay the answer until the session is in this state, or can be used (`ready`), or has ended, or `timeout` has
    /// passed.
    pub(super) wait: Option<WaitFor>,
    /// How long to delay the answer, counted from the request, for example `90s` or `2m`. Longer values count as ten
    /// minutes. The default is below the 60 s after which most reverse proxies give up.
    #[serde(default)]
    pub(super) timeout: Timeout,
}

/// What a request may wait for: a state of the session, or `ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WaitFor(pub(super) Wait);

const READY: &str = "ready";

impl<'de> Deserialize<'de> for WaitFor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == READY {
            return Ok(Self(Wait::Ready));
        }
        let state = text.parse::<SessionState>();
        state.map(|state| Self(Wait::Until(state))).map_err(|e| serde::de::Error::custom(format!("{e}, {READY}")))
    }
}

impl PartialSchema for WaitFor {
    fn schema() -> RefOr<Schema> {
        let words = SessionState::ALL.iter().map(|state| state.as_str()).chain([READY]);
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
    }
}

impl ToSchema for WaitFor {}

/// How long an answer waits at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^([0-9]{1,4}(ms|s|m|h|d))+$", max_length = 15, default = "50s")]
pub(super) struct Timeout(Duration);

impl Default for Timeout {
    fn default() -> Self {
        Self(DEFAULT_TIMEOUT)
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let short = text.len() <= MAX_TEXT && text.split(|c: char| !c.is_ascii_digit()).all(|n| n.len() <= MAX_DIGITS);
        let shown: String = text.chars().take(MAX_TEXT).collect();
        let wrong = || format!("`{shown}` is not a timeout; expected for example 90s or 2m");
        let Period(span) = text.parse().ok().filter(|_| short).ok_or_else(wrong).map_err(serde::de::Error::custom)?;
        Ok(Self(span.min(MAX_HOLD)))
    }
}

impl Timeout {
    /// The end of the wait of a request that has just arrived: what happens before the wait counts as well.
    pub(super) fn end(self) -> Instant {
        Instant::now() + self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(text: &str) -> Option<Duration> {
        serde_json::from_value::<Timeout>(text.into()).ok().map(|Timeout(span)| span)
    }

    #[test]
    fn timeouts_are_short_texts_and_bounded() {
        assert_eq!(timeout("90s"), Some(Duration::from_secs(90)));
        assert_eq!(timeout("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(timeout("0s"), Some(Duration::ZERO));
        assert_eq!(timeout("9999d9999d9999d"), Some(MAX_HOLD));
        for bad in ["", "60", "-1s", "1.5s", "1w", "99999s", "1s1s1s1s1s1s1s1s"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_wait_is_for_a_state_or_for_ready() {
        let read = |text: &str| serde_json::from_value::<WaitFor>(text.into()).map(|WaitFor(wait)| wait);
        assert_eq!(read("ready").unwrap(), Wait::Ready);
        assert_eq!(read("running").unwrap(), Wait::Until(SessionState::Running));
        let error = read("up").unwrap_err().to_string();
        assert!(error.ends_with("unknown, ready"), "{error}");
    }

    #[test]
    fn the_default_is_the_described_one_and_below_the_patience_of_proxies() {
        let described = serde_json::to_value(Timeout::schema()).unwrap()["default"].take();
        assert_eq!(timeout(described.as_str().unwrap()), Some(DEFAULT_TIMEOUT));
        assert!(DEFAULT_TIMEOUT < Duration::from_secs(60));
    }
}
