//! What a query asks for, and the points and gaps that rows make of it. Pure.

use super::columns::{DEFAULT_METRICS, Table};
use super::ring::{Fold, ROWS, Row, STARTED, STEPPED, Step};
use crate::types::{HistoryGap, HistoryGapReason, HistoryQuery, Invalid, Timestamp};

/// Points of an answer at most: more than a screen has columns.
pub const MAX_POINTS: u64 = 1500;
/// Series of an answer at most: more lines than anybody reads in one chart.
pub const MAX_SERIES: usize = 16;
/// Points of an answer whose query does not say a step, at most.
const USUAL_POINTS: u64 = 400;
/// Gaps of an answer at most. If there are more, the longest are named.
const MAX_GAPS: usize = 256;
/// A row is written so many seconds after its end at the latest.
const LATE: i64 = 10;

/// A time range in slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub source: Step,
    /// Slots of a point.
    pub width: u64,
    /// The first slot, which begins a point.
    pub first: u64,
    /// The slot after the last one whose row may be there.
    pub end: u64,
    /// The slot before which no row is kept.
    kept: u64,
}

impl Range {
    /// # Errors
    /// The range is empty, or has too many points, or is not kept in this step.
    pub fn of(query: &HistoryQuery, now: Timestamp) -> Result<Self, Invalid> {
        let (since, until) = (query.since.at(now), query.until.at(now).min(now));
        if since >= until {
            let message = format!("{since} is not before the end, {until}; expected an earlier time, such as -6h");
            return Err(Invalid::new("since", message));
        }
        let source = source(since, now);
        let seconds = source.seconds();
        let written = Timestamp::from_millis(now.millis().saturating_sub(LATE * 1000));
        // The running coarse slot has a row, of what is over of it.
        let written = if source == Step::Fine { source.slot(written) } else { source.slot(written) + 1 };
        let end = (source.slot(until) + u64::from(until > source.begins(source.slot(until)))).min(written);
        let from = source.slot(since);
        let width = match query.step_seconds {
            Some(step) => given_width(step, source)?,
            None => end.saturating_sub(from).div_ceil(USUAL_POINTS).max(1),
        };
        let first = from / width * width;
        let points = end.saturating_sub(first).div_ceil(width);
        if points > MAX_POINTS {
            let least = (end - from).div_ceil(MAX_POINTS - 1) * seconds;
            let message = format!(
                "{points} points; expected at most {MAX_POINTS}: a step of at least {least}s, or a later `since`",
            );
            return Err(Invalid::new("step", message));
        }
        Ok(Self { source, width, first, end: end.max(first), kept: (source.slot(now) + 1).saturating_sub(ROWS) })
    }

    pub const fn points(&self) -> u64 {
        (self.end - self.first).div_ceil(self.width)
    }

    pub fn since(&self) -> Timestamp {
        self.source.begins(self.first)
    }

    pub fn until(&self) -> Timestamp {
        self.source.begins(self.first + self.points() * self.width)
    }

    pub const fn step_seconds(&self) -> u64 {
        self.width * self.source.seconds()
    }
}

/// The rows that hold a time: fine ones, as long as they are kept.
fn source(since: Timestamp, now: Timestamp) -> Step {
    let is_kept = Step::Fine.slot(since) + ROWS >= Step::Fine.slot(now);
    if is_kept { Step::Fine } else { Step::Coarse }
}

fn given_width(step: u64, source: Step) -> Result<u64, Invalid> {
    let seconds = source.seconds();
    if step == 0 || !step.is_multiple_of(seconds) {
        let why = match source {
            Step::Fine => "a multiple of 10s",
            Step::Coarse => "a multiple of 5m, since what is older than a day is kept in steps of 5m",
        };
        return Err(Invalid::new("step", format!("{step}s is not kept; expected {why}")));
    }
    if step > source.span() {
        return Err(Invalid::new(
            "step",
            format!("{step}s is longer than what is kept; expected at most {}s", source.span()),
        ));
    }
    Ok(step / seconds)
}

/// The metrics of a query: the table of each, and its column.
///
/// # Errors
/// A metric is unknown or given twice.
pub fn metrics(query: &HistoryQuery, tables: &[Table]) -> Result<Vec<(Table, usize)>, Invalid> {
    let usual = || match &query.gpu {
        Some(_) => Table::Gpu.columns().iter().map(|column| column.metric.to_owned()).collect(),
        None => DEFAULT_METRICS.iter().map(|metric| (*metric).to_owned()).collect(),
    };
    let wanted: Vec<String> = if query.metrics.is_empty() { usual() } else { query.metrics.clone() };
    let mut found = Vec::new();
    for metric in &wanted {
        let place = tables.iter().find_map(|table| Some((*table, table.find(metric)?)));
        let place = place.ok_or_else(|| {
            let known: Vec<&str> = tables.iter().flat_map(|t| t.columns()).map(|column| column.metric).collect();
            Invalid::new("metric", format!("`{metric}` is not a metric; expected one of {}", known.join(", ")))
        })?;
        if found.contains(&place) {
            return Err(Invalid::new("metric", format!("`{metric}` is given twice")));
        }
        found.push(place);
    }
    Ok(found)
}

/// Makes points and gaps of rows, which come in the order of their slots.
#[derive(Debug)]
pub struct Points {
    range: Range,
    columns: Vec<usize>,
    table: Table,
    /// The point that the rows of `fold` are in.
    point: u64,
    fold: Fold,
    series: Vec<Series>,
    gaps: Vec<HistoryGap>,
    /// The slot after the last row.
    next: u64,
}

/// Average and peak of each point.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    pub average: Vec<Option<f64>>,
    pub peak: Vec<Option<f64>>,
}

impl Points {
    pub fn new(range: Range, table: Table, columns: Vec<usize>) -> Self {
        let series = vec![Series::default(); columns.len()];
        // The oldest fine row is overwritten while the query runs: that is no gap.
        let next = if range.source == Step::Fine { range.first.max(range.kept + 1) } else { range.first };
        Self { range, columns, table, point: 0, fold: Fold::new(table), series, gaps: Vec::new(), next }
    }

    pub fn push(&mut self, row: &Row) {
        let point = (row.slot - self.range.first) / self.range.width;
        self.close_up_to(point);
        self.fold.add(row);
        let reason = match row.flags {
            flags if flags & STARTED != 0 => HistoryGapReason::AgentStopped,
            flags if flags & STEPPED != 0 => HistoryGapReason::ClockStepped,
            _ => HistoryGapReason::NotRecorded,
        };
        self.gap_up_to(row.slot, reason);
        self.next = self.next.max(row.slot + 1);
    }

    /// The series in the order of the columns, and the gaps.
    pub fn finish(mut self) -> (Vec<Series>, Vec<HistoryGap>) {
        self.close_up_to(self.range.points());
        self.gap_up_to(self.range.end, HistoryGapReason::NotRecorded);
        if self.gaps.len() > MAX_GAPS {
            self.gaps.sort_by_key(|gap| std::cmp::Reverse(gap.until.since(gap.since)));
            self.gaps.truncate(MAX_GAPS);
            self.gaps.sort_by_key(|gap| gap.since);
        }
        (self.series, self.gaps)
    }

    fn close_up_to(&mut self, point: u64) {
        while self.point < point {
            let fold = std::mem::replace(&mut self.fold, Fold::new(self.table));
            for (series, column) in self.series.iter_mut().zip(&self.columns) {
                let (average, peak) = fold.figures(*column).unzip();
                series.average.push(average);
                series.peak.push(peak);
            }
            self.point += 1;
        }
    }

    fn gap_up_to(&mut self, slot: u64, reason: HistoryGapReason) {
        if slot > self.next {
            let (since, until) = (self.range.source.begins(self.next), self.range.source.begins(slot));
            self.gaps.push(HistoryGap { since, until, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::QueryTime;

    const NOW: i64 = 1_790_000_000_000;

    fn query(since: &str, until: &str, step: Option<u64>) -> HistoryQuery {
        HistoryQuery {
            metrics: Vec::new(),
            gpu: None,
            since: since.parse().unwrap(),
            until: until.parse().unwrap(),
            step_seconds: step,
        }
    }

    fn range(since: &str, until: &str, step: Option<u64>) -> Result<Range, Invalid> {
        Range::of(&query(since, until, step), Timestamp::from_millis(NOW))
    }

    fn points(range: Range, rows: impl IntoIterator<Item = Row>) -> (Vec<Series>, Vec<HistoryGap>) {
        let mut points = Points::new(range, Table::Gpu, vec![0]);
        rows.into_iter().for_each(|row| points.push(&row));
        points.finish()
    }

    fn row(slot: u64, figure: f64) -> Row {
        Row { slot, ..Fold::reading(&[figure, f64::NAN, f64::NAN, f64::NAN, f64::NAN, f64::NAN]) }
    }

    #[test]
    fn a_day_is_read_from_fine_rows_and_more_from_coarse_ones() {
        let day = range("-24h", "now", None).unwrap();
        assert_eq!((day.source, day.step_seconds()), (Step::Fine, 220));
        assert!(day.points() <= USUAL_POINTS + 1, "{}", day.points());
        let week = range("-7d", "now", None).unwrap();
        assert_eq!((week.source, week.step_seconds()), (Step::Coarse, 1800));
        assert_eq!(range("-10m", "now", None).unwrap().step_seconds(), 10);
    }

    #[test]
    fn what_is_out_of_bounds_names_the_field_and_what_would_be_right() {
        let told = |since, until, step| range(since, until, step).unwrap_err().to_string();
        assert!(
            told("-24h", "now", Some(10)).starts_with("step: 8639 points; expected at most 1500: a step of at least ")
        );
        assert!(told("-7d", "now", Some(60)).starts_with("step: 60s is not kept; expected a multiple of 5m"));
        assert_eq!(told("-1h", "now", Some(15)), "step: 15s is not kept; expected a multiple of 10s");
        assert_eq!(told("-1h", "now", Some(0)), "step: 0s is not kept; expected a multiple of 10s");
        assert!(told("-1h", "-2h", None).starts_with("since: "));
        assert!(told("now", "now", None).starts_with("since: "));
        assert!(range("-24h", "now", Some(60)).is_ok());
        let least = range("1970-01-01T00:00:00Z", "now", None).unwrap();
        assert!(least.points() <= USUAL_POINTS + 1);
        let metrics = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            super::metrics(&HistoryQuery { metrics: names, ..query("-1h", "now", None) }, &[Table::Host, Table::Gpu])
        };
        assert_eq!(metrics(&["gpu.power", "load"]).unwrap(), [(Table::Gpu, 4), (Table::Host, 12)]);
        assert!(
            metrics(&["cpu"]).unwrap_err().to_string().starts_with("metric: `cpu` is not a metric; expected one of ")
        );
        assert_eq!(metrics(&["load", "load"]).unwrap_err().to_string(), "metric: `load` is given twice");
        assert_eq!(metrics(&[]).unwrap().len(), DEFAULT_METRICS.len());
        let unknown =
            HistoryQuery { gpu: Some("GPU-1".to_owned()), since: QueryTime::NOW, ..query("-1h", "now", None) };
        assert_eq!(super::metrics(&unknown, &[Table::Host, Table::Gpu]).unwrap().len(), 6);
    }

    #[test]
    fn a_point_is_the_average_and_the_peak_of_its_rows_and_a_missing_row_is_a_gap() {
        let range = range("-60s", "now", Some(20)).unwrap();
        let first = range.first;
        assert_eq!(range.points(), 3);
        let mut back = row(first + 4, 0.25);
        back.flags = STARTED;
        let (series, gaps) = points(range, [row(first, 0.5), row(first + 1, 1.0), back]);
        assert_eq!(series[0].average, [Some(0.75), None, Some(0.25)]);
        assert_eq!(series[0].peak, [Some(1.0), None, Some(0.25)]);
        let expected = HistoryGap {
            since: Step::Fine.begins(first + 2),
            until: Step::Fine.begins(first + 4),
            reason: HistoryGapReason::AgentStopped,
        };
        assert_eq!(gaps, [expected]);
        let (series, gaps) = points(range, []);
        assert_eq!((series[0].average.len(), gaps.len()), (3, 1));
        assert_eq!(gaps[0].reason, HistoryGapReason::NotRecorded);
    }

    #[test]
    fn there_are_not_more_gaps_than_the_bound_and_the_longest_are_kept() {
        let range = range("-24h", "now", None).unwrap();
        let first = range.kept + 1;
        let rows = (0..2000).map(|i| row(first + 2 * i + if i >= 1000 { 50 } else { 0 }, 0.0));
        let (_, gaps) = points(range, rows);
        assert_eq!(gaps.len(), MAX_GAPS);
        assert!(gaps.iter().any(|gap| gap.until.since(gap.since).as_secs() > 400));
        assert!(gaps.is_sorted_by_key(|gap| gap.since));
    }
}
