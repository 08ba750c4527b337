//! Tables and the small texts in them. Pure: values in, text out.

use std::fmt;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::types::{Period, SessionId, Timestamp};

/// What a cell without a value shows.
pub(super) const NONE: &str = "-";

/// Columns under a header, three spaces apart, without borders.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    /// Spaces between two columns.
    const GAP: u16 = 3;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.trim_fmt()
}

/// One indented line for each name and value.
pub(super) fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:width$}  {value}")).collect();
    lines.join("\n")
}

/// The value, or a dash.
pub(super) fn or_none(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

pub(super) const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// The values with commas between them, or a dash.
pub(super) fn joined(values: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() { NONE.to_owned() } else { values.join(", ") }
}

/// The JSON name of a value of one of the API's enums.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => NONE.to_owned(),
    }
}

/// The text on one line, without control characters.
pub(super) fn one_line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How long ago `then` was, in one or two units: `5s`, `1m30s`, `3m`, `2h`, `4d`.
pub(super) fn age(then: Timestamp, now: Timestamp) -> String {
    span(now.since(then))
}

/// The time until `then`, in the format of [`age`].
pub(super) fn until(then: Timestamp, now: Timestamp) -> String {
    span(then.since(now))
}

fn span(span: Duration) -> String {
    /// From two of a unit on, smaller units are left out.
    const UNITS: [u64; 3] = [86_400, 3600, 60];
    let seconds = span.as_secs();
    let unit = UNITS.into_iter().find(|unit| seconds >= 2 * unit).unwrap_or(1);
    Period::secs(seconds - seconds % unit).to_string()
}

/// The shortest prefixes, of at least eight characters, that distinguish these ids.
pub(super) fn short_ids<'a>(ids: impl IntoIterator<Item = &'a SessionId>) -> Vec<String> {
    /// Long enough to stay unique for a while, short enough to read out.
    const SHORTEST: usize = 8;
    let ids: Vec<&str> = ids.into_iter().map(SessionId::as_str).collect();
    let longest = ids.iter().map(|id| id.len()).max().unwrap_or(0);
    let length = (SHORTEST..longest)
        .find(|&length| {
            let mut cut: Vec<&str> = ids.iter().map(|id| &id[..length.min(id.len())]).collect();
            cut.sort_unstable();
            cut.windows(2).all(|pair| pair[0] != pair[1])
        })
        .unwrap_or(longest);
    ids.iter().map(|id| id[..length.min(id.len())].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let rows = vec![vec!["a".to_owned(), "x".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "STATE"], rows), "NAME     STATE\na        x\nlonger");
        assert_eq!(table(&["NAME"], Vec::new()), "NAME");
    }

    #[test]
    fn an_age_has_one_or_two_units() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1000);
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (119, "1m59s"), (121, "2m"), (3660, "1h1m"), (7300, "2h"), (200_000, "2d")]
        {
            assert_eq!(age(at(0), at(seconds)), text);
            assert_eq!(until(at(seconds), at(0)), text);
        }
        assert_eq!(age(at(10), at(0)), "0s");
    }

    #[test]
    fn ids_are_cut_to_the_shortest_distinct_prefixes() {
        let ids: Vec<SessionId> =
            ["a".repeat(26), format!("{}b{}", "a".repeat(9), "a".repeat(16))].map(|id| id.parse().unwrap()).into();
        assert_eq!(short_ids(&ids), ["aaaaaaaaaa", "aaaaaaaaab"]);
        assert_eq!(short_ids(&ids[..1]), ["aaaaaaaa"]);
        assert!(short_ids([]).is_empty());
    }

    #[test]
    fn a_message_cannot_control_the_terminal() {
        assert_eq!(one_line("pulling\n\x1b[2Jdone\t1"), "pulling [2Jdone 1");
    }
}
