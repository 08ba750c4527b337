//! `ostler history` and `ostler node history`: what was measured, as charts.

use clap::Args;
use jiff::tz::TimeZone;

use super::Context;
use super::arguments::time;
use super::chart;
use super::failure::Failure;
use super::route::Route;
use crate::types::{History, Period, QueryTime};

/// What is drawn if no metric is named.
const DRAWN: &str = "cores.utilized,cores.allocated,memory.utilized,memory.allocated";

/// Which part of a history is shown.
#[derive(Debug, Args)]
pub(super) struct RangeArgs {
    /// Names of metrics, separated by commas [default: use and allocation of cores and memory].
    #[arg(long, value_name = "METRICS")]
    metric: Option<String>,
    /// The beginning: how long ago, such as 6h, or a time, such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", default_value = "6h", value_parser = time)]
    since: QueryTime,
    /// The end: how long ago, a time, or `now`.
    #[arg(long, value_name = "TIME", default_value = "now", value_parser = time)]
    until: QueryTime,
    /// The length of a point: a multiple of 10s or, for what is older than a day, of 5m [default: as fits].
    #[arg(long, value_name = "DURATION")]
    step: Option<Period>,
}

/// Show the history of the cluster, as the node that answers saw it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler history
  ostler history --since 7d --metric nodes.alive,sessions.running")]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    range: RangeArgs,
}

/// Show the history of a node: cores, memory, pressure, disk, sessions and GPUs.
///
/// A node keeps a day in steps of 10 s and 30 days in steps of 5 min. `·` is a time without figures.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler node history host-a
  ostler node history host-a --since 30d --metric pressure.memory
  ostler node history host-a --gpu GPU-b5a0a1f6-0aeb-4b7e-9ba1-9d1e4c5f6a7b --since 1h")]
pub(super) struct NodeHistoryArgs {
    /// A node's name, id or id prefix.
    #[arg(value_name = "NODE")]
    name: String,
    #[command(flatten)]
    range: RangeArgs,
    /// The UUID of a GPU, for its metrics only.
    #[arg(long, value_name = "UUID")]
    gpu: Option<String>,
}

pub(super) async fn run(args: &HistoryArgs, context: &Context) -> Result<(), Failure> {
    show(Route::new(&["history"]), &args.range, Some(DRAWN), context).await
}

pub(super) async fn run_node(args: &NodeHistoryArgs, context: &Context) -> Result<(), Failure> {
    let route = Route::new(&["nodes", &args.name, "history"]).with_any("gpu", args.gpu.as_ref());
    show(route, &args.range, args.gpu.is_none().then_some(DRAWN), context).await
}

async fn show(route: Route, range: &RangeArgs, usual: Option<&str>, context: &Context) -> Result<(), Failure> {
    let route = route
        .with_any("metric", range.metric.as_deref().or(usual))
        .with("since", range.since)
        .with("until", range.until)
        .with_any("step", range.step.map(|Period(step)| format!("{}ms", step.as_millis())));
    let body = context.client()?.get(route).await?;
    let terminal = &context.out.terminal;
    context.out.answer(&body, |history: &History| chart::draw(history, terminal, &TimeZone::system()))
}
