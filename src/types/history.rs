//! History: what was measured, over time, as the API shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Name, QueryTime, Timestamp};

/// What is asked of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// Names of metrics; empty: the most important ones.
    pub metrics: Vec<String>,
    /// The UUID of one GPU; `None`: metrics of GPUs are those of every GPU of the node.
    pub gpu: Option<String>,
    pub since: QueryTime,
    pub until: QueryTime,
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
