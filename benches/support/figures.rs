//! Medians and the tables that show them.

use std::time::Duration;

use comfy_table::{Table, presets};

/// Many measurements of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(pub(crate) Vec<f64>);

impl Figures {
    pub(crate) fn add_millis(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn p95(&self) -> f64 {
        self.quantile(0.95)
    }

    /// Interpolates between the two nearest figures; NaN if there are none.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let mut at = 0;
        while at < last && ((at + 1) as f64) <= q * last as f64 {
            at += 1;
        }
        let (low, high) = (sorted[at], sorted[last.min(at + 1)]);
        low + (high - low) * (q * last as f64 - at as f64)
    }
}

pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(head).add_rows(rows);
    table.to_string()
}
