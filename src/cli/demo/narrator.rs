//! Prints the demo's text, wrapped to the width of the terminal.

use std::cell::Cell;

use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Columns. Wider lines are hard to read.
const WIDEST: usize = 96;

/// Prints the demo's headings, text and commands on standard output.
pub(super) struct Narrator<'a> {
    pub(super) out: &'a Output,
    step: Cell<u32>,
}

impl<'a> Narrator<'a> {
    pub(super) fn new(out: &'a Output) -> Self {
        Self { out, step: Cell::new(0) }
    }

    pub(super) fn title(&self, text: &str) -> Result<(), Failure> {
        self.out.text(format_args!("{}\n", self.out.terminal.bold(text)))
    }

    /// Prints the heading of the next step.
    pub(super) fn step(&self, text: &str) -> Result<(), Failure> {
        self.step.set(self.step.get() + 1);
        let heading = format!("{}. {text}", self.step.get());
        self.out.text(format_args!("\n{}", self.out.terminal.bold(&heading)))
    }

    pub(super) fn say(&self, text: &str) -> Result<(), Failure> {
        self.out.text(self.fitted(text))
    }

    pub(super) fn warn(&self, text: &str) -> Result<(), Failure> {
        self.out.text(self.out.terminal.yellow(&self.fitted(text)))
    }

    /// Prints a command as a user would type it.
    pub(super) fn command(&self, line: &str) -> Result<(), Failure> {
        self.out.text(self.out.terminal.green(&format!("$ {line}")))
    }

    fn fitted(&self, text: &str) -> String {
        wrapped(text, self.out.terminal.width.min(WIDEST))
    }
}

/// Wraps the text at spaces to this width. Keeps its own line breaks.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_text_fits_and_keeps_every_word() {
        assert_eq!(wrapped("one two three four", 9), "one two\nthree\nfour");
        assert_eq!(wrapped("\nfar-too-long-a-word x", 5), "\nfar-too-long-a-word\nx");
        assert_eq!(wrapped("short", 80), "short");
    }
}
