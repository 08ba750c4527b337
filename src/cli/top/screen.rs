//! The terminal while `ostler top` runs: its alternate screen, without echo.

use std::io::{self, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Rows, where the terminal does not tell.
const ROWS: usize = 24;

/// The alternate screen. Dropping it restores the terminal: at the end, at Ctrl-C and when a panic unwinds.
pub(super) struct Screen {
    before: Termios,
}

impl Screen {
    /// # Errors
    /// Standard input is no terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        // Signals of keys stay: Ctrl-C ends the program as everywhere.
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let screen = Self { before };
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Replaces what is shown. Lines beyond the last row are left out.
    pub(super) fn show(&self, lines: &[String]) -> io::Result<()> {
        let rows = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let rows = if rows == 0 { ROWS } else { rows };
        let shown: Vec<String> = lines.iter().take(rows).map(|line| format!("{line}\x1b[K")).collect();
        write(&format!("\x1b[H{}\x1b[J", shown.join("\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing more can be done for a terminal that is gone.
        let _ = write("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
