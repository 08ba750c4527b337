//! What the terminal can show: its width, its colours, its characters.

use std::env;
use std::io::{self, IsTerminal};

/// What standard output can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terminal {
    /// Columns.
    pub(super) width: usize,
    /// Whether it shows Unicode block characters.
    pub(super) unicode: bool,
    pub(super) colour: bool,
}

impl Terminal {
    /// For text that a program reads.
    pub(super) const PLAIN: Self = Self { width: 80, unicode: false, colour: false };

    /// Standard output, as the environment describes it.
    pub(super) fn of_stdout() -> Self {
        let stdout = io::stdout();
        let width = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
        Self::describe(stdout.is_terminal(), width, |name| env::var(name).ok())
    }

    fn describe(is_terminal: bool, columns: usize, env: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Self {
            width: if columns == 0 { Self::PLAIN.width } else { columns },
            unicode: is_terminal && (locale.contains("utf-8") || locale.contains("utf8")),
            colour: is_terminal && !dumb && set("NO_COLOR").is_none(),
        }
    }

    pub(super) fn red(&self, text: &str) -> String {
        self.styled("31", text)
    }

    pub(super) fn green(&self, text: &str) -> String {
        self.styled("32", text)
    }

    pub(super) fn yellow(&self, text: &str) -> String {
        self.styled("33", text)
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.styled("1", text)
    }

    fn styled(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn colours_and_blocks_are_used_only_on_terminals_that_support_them() {
        let utf8 = &[("LANG", "en_US.UTF-8"), ("TERM", "xterm")];
        assert_eq!(Terminal::describe(true, 120, env(utf8)), Terminal { width: 120, unicode: true, colour: true });
        assert_eq!(Terminal::describe(false, 0, env(utf8)), Terminal::PLAIN);
        let quiet = &[("LANG", "en_US.UTF-8"), ("LC_ALL", "C"), ("TERM", "xterm"), ("NO_COLOR", "1")];
        assert_eq!(Terminal::describe(true, 0, env(quiet)), Terminal::PLAIN);
        assert!(!Terminal::describe(true, 0, env(&[("TERM", "dumb")])).colour);
        assert!(Terminal::describe(true, 0, env(&[("TERM", "xterm"), ("NO_COLOR", "")])).colour);
    }

    #[test]
    fn plain_text_stays_plain() {
        assert_eq!(Terminal::PLAIN.red("x"), "x");
        assert_eq!(Terminal { colour: true, ..Terminal::PLAIN }.red("x"), "\x1b[31mx\x1b[0m");
    }
}
