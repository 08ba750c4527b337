//! The log: one line per event on standard error, where systemd and container engines collect it.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, reload};

/// The level of this process's log. A process has one log.
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A level, or levels by module: `info,ostler::sessions=debug`.
    pub level: String,
    pub format: Format,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people, coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("log.level: {0}")]
    Level(String),
    /// The process already has a log, and keeps it.
    #[error("the log is already set up")]
    AlreadySet,
    #[error("the log is not set up")]
    NotSet,
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Sets up the log of this process. A second call is an error.
pub fn init(config: &Config) -> Result<(), Error> {
    let (filter, level) = reload::Layer::new(filter(&config.level).map_err(Error::Level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colours());
    let lines = match config.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().map_err(|_| Error::AlreadySet)?;
    LEVEL.set(level).map_err(|_| Error::AlreadySet)
}

/// Changes the level of this process's log.
///
/// # Errors
/// The level is not valid, or there is no log.
pub fn set_level(level: &str) -> Result<(), Error> {
    let filter = filter(level).map_err(Error::Level)?;
    let handle = LEVEL.get().ok_or(Error::NotSet)?;
    handle.reload(filter).map_err(|_| Error::NotSet)
}

/// Parses a level. The error says what is expected.
pub fn filter(level: &str) -> Result<Targets, String> {
    let wrong = || format!("expected {}, or levels by module such as info,ostler::sessions=debug", LEVELS.join(", "));
    // The filter's own parser reads a misspelled level as a module's name, and then logs nothing.
    let known = |directive: &str| {
        let (module, level) = directive.rsplit_once('=').unwrap_or(("", directive));
        let named = module.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte));
        named && LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
    };
    let directives: Vec<&str> = level.split(',').map(str::trim).collect();
    if !directives.iter().copied().all(known) {
        return Err(wrong());
    }
    directives.join(",").parse().map_err(|_| wrong())
}

/// Whether to use colours: on terminals whose user has not set `NO_COLOR` (<https://no-color.org>).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_level_is_an_error_and_not_a_module() {
        for fine in ["info", "OFF", "warn,ostler::sessions=debug", "info, ostler=trace"] {
            assert!(filter(fine).is_ok(), "{fine}");
        }
        for wrong in ["", "inof", "info,", "ostler=inof", "ostler::sessions", "3", "[=debug"] {
            assert!(filter(wrong).unwrap_err().starts_with("expected off, error"), "{wrong}");
        }
    }

    #[test]
    fn a_process_has_one_log() {
        let config = Config { level: "off".to_owned(), format: Format::Text };
        let _ = init(&config); // fails if another test of this process has set up the log
        assert_eq!(init(&Config { format: Format::Json, ..config.clone() }), Err(Error::AlreadySet));
        assert!(matches!(init(&Config { level: "loud".to_owned(), ..config }), Err(Error::Level(_))));
    }
}
