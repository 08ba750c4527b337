//! A spinner on standard error, for work that takes a while.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::table::one_line;

/// Shows what the command waits for, on a terminal only. Dropping it removes the spinner.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn start(message: &str) -> Self {
        /// Fast enough to look alive, slow enough to cost next to no processor time.
        const TICK: Duration = Duration::from_millis(120);
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style.tick_chars("|/-\\ "));
        }
        bar.enable_steady_tick(TICK);
        let progress = Self(bar);
        progress.show(message);
        progress
    }

    pub(super) fn show(&self, message: &str) {
        self.0.set_message(one_line(message));
    }

    /// Whether there is a terminal that shows it.
    pub(super) fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Hides the spinner while `print` runs.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
