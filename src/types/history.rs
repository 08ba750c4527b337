//! History: what was measured, over time, as the API shows it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use super::text::words;
use super::{Name, Period, Timestamp};

/// A point in time of a query: an absolute one, or one before the clock of the node that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryTime {
    At(Timestamp),
    /// So long ago; zero is now.
    Ago(Period),
}

impl HistoryTime {
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

impl fmt::Display for HistoryTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(time) => time.fmt(f),
            Self::Ago(Period(Duration::ZERO)) => f.write_str("now"),
            Self::Ago(Period(span)) => write!(f, "-{}ms", span.as_millis()),
        }
    }
}

impl FromStr for HistoryTime {
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

impl Serialize for HistoryTime {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HistoryTime {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// What is asked of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// Names of metrics; empty: the most important ones.
    pub metrics: Vec<String>,
    /// The UUID of one GPU; `None`: metrics of GPUs are those of every GPU of the node.
    pub gpu: Option<String>,
    pub since: HistoryTime,
    pub until: HistoryTime,
    /// Seconds of a point; `None`: the node chooses.
    pub step_seconds: Option<u64>,
}

/// Why there are no figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HistoryGapReason {
    /// The agent did not run: it was stopped, or it was not started yet.
    AgentStopped,
    /// The clock of the host was set forward.
    ClockStepped,
    /// Nothing was recorded: the host was too busy, the disk could not be written, or it is too long ago.
    NotRecorded,
}
words!(HistoryGapReason {
    AgentStopped => "agent_stopped",
    ClockStepped => "clock_stepped",
    NotRecorded => "not_recorded",
});

/// A time without figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryGap {
    pub since: Timestamp,
    pub until: Timestamp,
    pub reason: HistoryGapReason,
}

/// One metric over time. Point `i` begins at `since` plus `i` times `step_seconds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistorySeries {
    pub metric: String,
    /// `cores`, `bytes`, `ratio` (0 to 1), `celsius`, `watts`, `count`, or `events` (how many there were).
    pub unit: String,
    /// The UUID of the GPU; `null`: the metric is not one of a GPU.
    pub gpu: Option<String>,
    /// The average within each step, of `events` their number; `null`: not known.
    pub average: Vec<Option<f64>>,
    /// The highest reading within each step, of `events` the most in 10 s; `null`: not known.
    pub peak: Vec<Option<f64>>,
}

/// The history of a node or, as one node saw it, of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// The node that recorded it.
    pub node: Name,
    /// The beginning of the first point.
    pub since: Timestamp,
    /// The end of the last point.
    pub until: Timestamp,
    pub step_seconds: u64,
    /// Seconds of a stored row: 10, or 300 for what is older than a day.
    pub source_step_seconds: u64,
    pub series: Vec<HistorySeries>,
    /// The times without any figures, in order; the longest ones if there are many.
    pub gaps: Vec<HistoryGap>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_before_now() {
        let now = Timestamp::from_millis(100_000_000);
        let at = |text: &str| text.parse::<HistoryTime>().unwrap().at(now);
        assert_eq!(at("now"), now);
        assert_eq!(at("-1h"), Timestamp::from_millis(96_400_000));
        assert_eq!(at("1970-01-01T00:00:01Z"), Timestamp::from_millis(1000));
        for text in ["now", "-21600000ms", "2026-01-31T12:00:00.000Z"] {
            assert_eq!(text.parse::<HistoryTime>().unwrap().to_string(), text);
        }
        for text in ["", "-", "6h", "yesterday", "-6", "2026-01-31"] {
            let told = text.parse::<HistoryTime>().unwrap_err();
            assert!(told.contains("expected `now`"), "{told}");
        }
    }
}
