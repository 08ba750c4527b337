//! History: what was measured on a node or, as this node saw it, in the cluster.

use std::str::FromStr;

use axum::Json as Answer;
use axum::extract::State;
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

use super::Shared;
use super::error::Refusal;
use super::extract::{Path, Query};
use super::nodes::NodePath;
use super::routed::Served;
use crate::types::{ErrorBody, History, HistoryQuery, Period, QueryTime};

/// How far back an answer goes by default.
const USUAL: Period = Period::secs(6 * 3600);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeQuery {
    /// Names of metrics, separated by commas [default: use, allocation and offer of cores and memory; with `gpu`, every
    /// metric of the GPU].
    metric: Option<String>,
    /// The UUID of a GPU [default: metrics of GPUs are those of every GPU of the node].
    gpu: Option<String>,
    /// The beginning: RFC 3339, or a time before now, such as `-6h` [default: -6h].
    since: Option<QueryTime>,
    /// The end: RFC 3339, `now`, or a time before now, such as `-1h` [default: now].
    until: Option<QueryTime>,
    /// The length of a point, such as `60s`: a multiple of 10 s or, if `since` is more than a day ago, of 5 min. The
    /// default gives at most 400 points.
    #[param(value_type = Option<String>)]
    #[serde(default, deserialize_with = "period")]
    step: Option<Period>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterQuery {
    /// Names of metrics, separated by commas [default: use, allocation and offer of cores and memory].
    metric: Option<String>,
    /// The beginning: RFC 3339, or a time before now, such as `-6h` [default: -6h].
    since: Option<QueryTime>,
    /// The end: RFC 3339, `now`, or a time before now, such as `-1h` [default: now].
    until: Option<QueryTime>,
    /// The length of a point, such as `60s`: a multiple of 10 s or, if `since` is more than a day ago, of 5 min. The
    /// default gives at most 400 points.
    #[param(value_type = Option<String>)]
    #[serde(default, deserialize_with = "period")]
    step: Option<Period>,
}

fn period<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Period>, D::Error> {
    let text = String::deserialize(from)?;
    let period = Period::from_str(&text).map_err(|wrong| serde::de::Error::custom(format!("step: {wrong}")))?;
    if period.0.subsec_millis() != 0 {
        return Err(serde::de::Error::custom(format!("step: `{text}` is not a whole number of seconds")));
    }
    Ok(Some(period))
}

impl NodeQuery {
    fn query(self) -> HistoryQuery {
        let Self { metric, gpu, since, until, step } = self;
        HistoryQuery {
            metrics: metric.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect(),
            gpu,
            since: since.unwrap_or(QueryTime::Ago(USUAL)),
            until: until.unwrap_or(QueryTime::NOW),
            step_seconds: step.map(Period::as_secs),
        }
    }
}

/// Shows the history of a node and its GPUs.
///
/// The node keeps a day in steps of 10 s and 30 days in steps of 5 min. An answer has at most 1500 points of 16 series.
#[utoipa::path(get, path = "/v1/nodes/{node}/history", tag = "history", operation_id = "node_history",
    params(NodePath, NodeQuery), responses(
    (status = 200, description = "the history", body = History),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 422, description = "`invalid`: a parameter is out of bounds; the message names it", body = ErrorBody),
    (status = 503, description = "`node_unreachable`: the history of a node is on that node", body = ErrorBody),
))]
pub(super) async fn node(
    State(app): Shared,
    Path(path): Path<NodePath>,
    Query(query): Query<NodeQuery>,
) -> Result<Served<Answer<History>>, Refusal> {
    Ok(Served(app.api.cluster.history(&path.node, query.query()).await?.map(Answer)))
}

/// Shows the history of the cluster, as this node saw it.
#[utoipa::path(get, path = "/v1/history", tag = "history", operation_id = "history", params(ClusterQuery), responses(
    (status = 200, description = "the history", body = History),
    (status = 422, description = "`invalid`: a parameter is out of bounds; the message names it", body = ErrorBody),
))]
pub(super) async fn cluster(State(app): Shared, Query(query): Query<ClusterQuery>) -> Result<Answer<History>, Refusal> {
    let ClusterQuery { metric, since, until, step } = query;
    let query = NodeQuery { metric, gpu: None, since, until, step };
    Ok(Answer(app.api.cluster.own_history(query.query()).await?))
}
