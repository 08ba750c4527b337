//! Charts of one metric over time, in eight rows of eighth blocks. Pure, but for the time zone of the host.

use jiff::tz::TimeZone;

use super::terminal::Terminal;
use crate::types::{History, HistoryGap, HistorySeries, Timestamp};

/// Rows of a chart.
const ROWS: usize = 8;
/// Columns of the labels at its left.
const LABEL: usize = 10;
/// Columns from one time to the next below it.
const TICK: usize = 16;
/// Columns of a chart at least, on a terminal that is too narrow.
const NARROWEST: usize = 10;
/// A longer time has days below it.
const DAYS_FROM_SECONDS: u64 = 36 * 3600;
/// Gaps that the caption names.
const NAMED: usize = 3;

/// Every series of the history as a chart, with one scale for those of the same resource, and the gaps as sentences.
pub(super) fn draw(history: &History, terminal: &Terminal, zone: &TimeZone) -> String {
    let charts = history.series.iter().map(|series| {
        let resource = |metric: &str| metric.split('.').next().unwrap_or_default().to_owned();
        let alike = history.series.iter().filter(|other| resource(&other.metric) == resource(&series.metric));
        let top = alike.filter(|other| other.unit == series.unit).map(highest).fold(0.0, f64::max);
        chart(history, series, top, terminal, zone)
    });
    let mut parts: Vec<String> = charts.collect();
    parts.extend(gaps(&history.gaps, history, zone));
    parts.join("\n\n")
}

fn highest(series: &HistorySeries) -> f64 {
    series.average.iter().chain(&series.peak).flatten().copied().fold(0.0, f64::max)
}

fn chart(history: &History, series: &HistorySeries, top: f64, terminal: &Terminal, zone: &TimeZone) -> String {
    let width = terminal.width.saturating_sub(LABEL + 2).max(NARROWEST);
    let cells = columns(&series.average, width);
    let top = if top > 0.0 { top } else { 1.0 };
    let of = series.gpu.as_ref().map(|gpu| format!(" of {gpu}")).unwrap_or_default();
    let mut lines = vec![terminal.bold(&format!("{}{of}: {}", series.metric, caption(series)))];
    for row in (0..ROWS).rev() {
        let label = match row {
            row if row + 1 == ROWS => amount(top, &series.unit),
            0 => "0".to_owned(),
            row if row == ROWS / 2 => amount(top * (row as f64 / ROWS as f64), &series.unit),
            _ => String::new(),
        };
        let drawn: String = cells.iter().map(|cell| block(*cell, top, row, terminal)).collect();
        lines.push(format!("{label:>LABEL$} {}", drawn.trim_end()));
    }
    // A chart that is narrower than a time has no axis.
    lines.extend(Some(axis(history, cells.len(), zone)).filter(|axis| !axis.is_empty()));
    lines.join("\n")
}

/// The points as so many columns at most: the average of those that share one; `None`: nothing is known.
fn columns(points: &[Option<f64>], width: usize) -> Vec<Option<f64>> {
    let count = points.len().min(width).max(1);
    let column = |i: usize| {
        let known: Vec<f64> =
            points[i * points.len() / count..(i + 1) * points.len() / count].iter().flatten().copied().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    (0..count).map(column).collect()
}

/// What a column shows in a row, counted from below.
fn block(cell: Option<f64>, top: f64, row: usize, terminal: &Terminal) -> char {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let Some(figure) = cell else { return if row == 0 { if terminal.unicode { '·' } else { '.' } } else { ' ' } };
    let all = 8 * ROWS;
    // Something is never drawn as nothing.
    let eighths = (0..=all).find(|n| *n as f64 + 0.5 > figure / top * all as f64).unwrap_or(all);
    let eighths = eighths.max(usize::from(figure > 0.0)).saturating_sub(8 * row).min(8);
    match (terminal.unicode, eighths) {
        (true, eighths) => EIGHTHS[eighths],
        (false, 0) => ' ',
        (false, 1..=4) if row == 0 || eighths > 0 => '_',
        (false, _) => '#',
    }
}

/// `now 4.2, average 3.1, peak 6.0 cores`
fn caption(series: &HistorySeries) -> String {
    let known: Vec<f64> = series.average.iter().flatten().copied().collect();
    let Some(last) = known.last() else { return "nothing recorded".to_owned() };
    let peak = series.peak.iter().flatten().copied().fold(f64::MIN, f64::max);
    if series.unit == "events" {
        let all: f64 = known.iter().sum();
        return format!("{} in all, at most {} in 10 s", amount(all, &series.unit), amount(peak, &series.unit));
    }
    let average = known.iter().sum::<f64>() / known.len() as f64;
    let now = if series.average.last().is_some_and(Option::is_some) { "now" } else { "last" };
    let [last, average, peak] = [*last, average, peak].map(|figure| amount(figure, &series.unit));
    let unit = if matches!(series.unit.as_str(), "cores") { " cores" } else { "" };
    format!("{now} {last}, average {average}, peak {peak}{unit}")
}

fn amount(figure: f64, unit: &str) -> String {
    match unit {
        "bytes" => bytes(figure),
        "ratio" => format!("{:.1}%", figure * 100.0),
        "celsius" => format!("{figure:.0} C"),
        "watts" => format!("{figure:.0} W"),
        _ if figure.fract() == 0.0 => format!("{figure:.0}"),
        _ => format!("{figure:.2}"),
    }
}

fn bytes(figure: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut figure, mut unit) = (figure, 0);
    while figure >= 1024.0 && unit + 1 < units.len() {
        (figure, unit) = (figure / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{figure:.0} B") } else { format!("{figure:.1} {}", units[unit]) }
}

fn axis(history: &History, width: usize, zone: &TimeZone) -> String {
    let span = history.until.since(history.since).as_secs();
    let mut line = " ".repeat(LABEL + 1);
    for column in (0..width).step_by(TICK) {
        let at = history.since.millis() + i64::try_from(span * 1000 * column as u64 / width as u64).unwrap_or(0);
        let shown = local(Timestamp::from_millis(at), span, zone);
        if column + shown.chars().count() <= width {
            line.push_str(&format!("{shown:<TICK$}"));
        }
    }
    line.trim_end().to_owned()
}

fn local(time: Timestamp, span: u64, zone: &TimeZone) -> String {
    let Ok(time) = jiff::Timestamp::from_millisecond(time.millis()) else { return String::new() };
    let format = if span >= DAYS_FROM_SECONDS { "%m-%d %H:%M" } else { "%H:%M" };
    time.to_zoned_datetime(zone.clone()).strftime(format).to_string()
}

/// Such as `no figures from 08:10 to 08:24: the agent did not run`.
fn gaps(gaps: &[HistoryGap], history: &History, zone: &TimeZone) -> Option<String> {
    use crate::types::HistoryGapReason::{AgentStopped, ClockStepped, NotRecorded};
    let span = history.until.since(history.since).as_secs();
    let mut longest: Vec<&HistoryGap> = gaps.iter().collect();
    longest.sort_by_key(|gap| std::cmp::Reverse(gap.until.since(gap.since)));
    longest.truncate(NAMED);
    longest.sort_by_key(|gap| gap.since);
    let sentence = |gap: &&HistoryGap| {
        let why = match gap.reason {
            AgentStopped => "the agent did not run",
            ClockStepped => "the clock was set forward",
            NotRecorded => "nothing was recorded",
        };
        format!("No figures from {} to {}: {why}.", local(gap.since, span, zone), local(gap.until, span, zone))
    };
    let mut lines: Vec<String> = longest.iter().map(sentence).collect();
    if gaps.len() > NAMED {
        lines.push(format!("And {} shorter gaps.", gaps.len() - NAMED));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HistoryGapReason;

    const UNICODE: Terminal = Terminal { unicode: true, ..Terminal::PLAIN };

    fn history(average: Vec<Option<f64>>, gaps: Vec<HistoryGap>) -> History {
        let series = HistorySeries {
            metric: "cores.utilized".to_owned(),
            unit: "cores".to_owned(),
            gpu: None,
            peak: average.clone(),
            average,
        };
        History {
            node: "a".parse().unwrap(),
            since: Timestamp::from_millis(0),
            until: Timestamp::from_millis(3_600_000),
            step_seconds: 900,
            source_step_seconds: 10,
            series: vec![series],
            gaps,
        }
    }

    #[test]
    fn a_chart_has_eighths_gaps_and_an_axis() {
        let gap = HistoryGap {
            since: Timestamp::from_millis(1_800_000),
            until: Timestamp::from_millis(2_700_000),
            reason: HistoryGapReason::AgentStopped,
        };
        let drawn = draw(&history(vec![Some(8.0), Some(0.0), None, Some(0.5)], vec![gap]), &UNICODE, &TimeZone::UTC);
        let expected = "\
cores.utilized: now 0.50, average 2.83, peak 8 cores
         8 █
           █
           █
         4 █
           █
           █
           █
         0 █ ·▄

No figures from 00:30 to 00:45: the agent did not run.";
        assert_eq!(drawn, expected);
        let hour = (0..60).map(|i| Some(f64::from(i))).collect();
        let drawn = draw(&history(hour, Vec::new()), &UNICODE, &TimeZone::UTC);
        assert_eq!(drawn.lines().last().unwrap().trim(), "00:00           00:16           00:32           00:48");
    }

    #[test]
    fn a_chart_fits_into_the_terminal() {
        for width in [30, 80, 200] {
            let terminal = Terminal { width, ..UNICODE };
            let drawn =
                draw(&history((0..1500).map(|i| Some(f64::from(i))).collect(), Vec::new()), &terminal, &TimeZone::UTC);
            assert!(drawn.lines().skip(1).all(|line| line.chars().count() <= width), "{width}\n{drawn}");
            assert!(drawn.lines().count() == ROWS + 2);
        }
        let plain = draw(&history(vec![Some(1.0), None], Vec::new()), &Terminal::PLAIN, &TimeZone::UTC);
        assert!(plain.is_ascii(), "{plain}");
    }
}
