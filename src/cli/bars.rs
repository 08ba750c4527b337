//! Bars that show usage. Pure: figures in, text out.

use super::terminal::Terminal;

/// Cells of a bar on a terminal narrower than `WIDE_TERMINAL` columns. Wider terminals get `WIDE` cells.
const NARROW: usize = 20;
const WIDE: usize = 40;
const WIDE_TERMINAL: usize = 110;

/// A bar is yellow from this fraction on, and red above 1.
const NEARLY_FULL: f64 = 0.9;

/// A bar filled to `part` of `whole`, and the percentage. If `whole` is 0, the bar is empty for a `part` of 0 and full
/// for any other.
pub(super) fn bar(part: f64, whole: f64, terminal: &Terminal) -> String {
    let fraction = fraction(part, whole);
    let width = if terminal.width >= WIDE_TERMINAL { WIDE } else { NARROW };
    let drawn = if terminal.unicode { blocks(fraction, width) } else { hashes(fraction, width) };
    let coloured = if fraction > 1.0 {
        terminal.red(&drawn)
    } else if fraction >= NEARLY_FULL {
        terminal.yellow(&drawn)
    } else {
        terminal.green(&drawn)
    };
    format!("{coloured} {:>4}", percent(part, whole))
}

/// A placeholder for an unknown value, as wide as a bar with its percentage.
pub(super) fn unknown(terminal: &Terminal) -> String {
    let width = if terminal.width >= WIDE_TERMINAL { WIDE } else { NARROW };
    if terminal.unicode {
        format!("{} {:>4}", "·".repeat(width), "?")
    } else {
        format!("[{}] {:>4}", " ".repeat(width), "?")
    }
}

fn fraction(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (part / whole).max(0.0)
    } else if part > 0.0 {
        f64::INFINITY
    } else {
        0.0
    }
}

fn percent(part: f64, whole: f64) -> String {
    let percent = fraction(part, whole) * 100.0;
    if percent > 999.0 { ">999%".to_owned() } else { format!("{percent:.0}%") }
}

/// Draws eighths of a cell with Unicode block characters.
fn blocks(fraction: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let filled = steps(fraction, width * 8);
    let mut drawn = "█".repeat(filled / 8);
    drawn.push_str(EIGHTHS[filled % 8]);
    let used = filled.div_ceil(8);
    drawn.push_str(&"░".repeat(width - used));
    drawn
}

fn hashes(fraction: f64, width: usize) -> String {
    let filled = steps(fraction, width);
    format!("[{}{}]", "#".repeat(filled), "-".repeat(width - filled))
}

/// The number of `steps` nearest to the fraction: at least one for a fraction above 0, and never all for one below 1.
fn steps(fraction: f64, steps: usize) -> usize {
    let nearest = (0..=steps).find(|&n| n as f64 + 0.5 > fraction * steps as f64).unwrap_or(steps);
    match nearest {
        0 if fraction > 0.0 => 1,
        all if all == steps && fraction < 1.0 => steps - 1,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNICODE: Terminal = Terminal { unicode: true, ..Terminal::PLAIN };

    #[test]
    fn a_bar_shows_its_share() {
        assert_eq!(bar(5.0, 12.0, &Terminal::PLAIN), "[########------------]  42%");
        assert_eq!(bar(5.0, 12.0, &UNICODE), "████████▍░░░░░░░░░░░  42%");
        assert_eq!(bar(0.0, 12.0, &UNICODE), "░░░░░░░░░░░░░░░░░░░░   0%");
        assert_eq!(bar(12.0, 12.0, &Terminal::PLAIN), "[####################] 100%");
        assert_eq!(bar(0.0, 0.0, &Terminal::PLAIN), "[--------------------]   0%");
    }

    #[test]
    fn a_bar_above_100_percent_is_full_and_red() {
        let colour = Terminal { colour: true, ..Terminal::PLAIN };
        assert_eq!(bar(5.0, 3.0, &Terminal::PLAIN), "[####################] 167%");
        assert_eq!(bar(1.0, 0.0, &Terminal::PLAIN), "[####################] >999%");
        assert!(bar(5.0, 3.0, &colour).starts_with("\x1b[31m"));
        assert!(bar(1.0, 3.0, &colour).starts_with("\x1b[32m"));
    }

    #[test]
    fn a_fraction_above_0_is_never_drawn_empty_nor_one_below_1_full() {
        assert!(bar(0.001, 64.0, &Terminal::PLAIN).starts_with("[#-"));
        assert!(bar(63.999, 64.0, &Terminal::PLAIN).contains("#-]"));
        assert!(bar(63.999, 64.0, &UNICODE).contains('▉'));
    }

    #[test]
    fn every_bar_of_a_terminal_has_the_same_width() {
        let wide = Terminal { width: 200, ..UNICODE };
        for part in 0..=100 {
            assert_eq!(bar(f64::from(part), 100.0, &wide).chars().count(), WIDE + 5);
        }
        assert_eq!(unknown(&wide).chars().count(), WIDE + 5);
        assert_eq!(unknown(&Terminal::PLAIN).len(), bar(0.5, 1.0, &Terminal::PLAIN).len());
    }
}
