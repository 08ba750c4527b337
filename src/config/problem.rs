use std::fmt;
use std::path::{Path, PathBuf};

/// Problems of one file that the error shows. A file with more is probably not a configuration at all.
const MAX_SHOWN: usize = 32;

/// Why the configuration was not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {reason}", file.display())]
    Unreadable { file: PathBuf, reason: String },
    /// Every problem, in the order of the file, one line each.
    #[error("{}", Lines { file: file.as_deref(), problems })]
    Invalid { file: Option<PathBuf>, problems: Vec<Problem> },
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    /// `http.listen`, or the name of an environment variable; empty if the text is not TOML.
    pub key: String,
    /// The value as it was written, and what is expected.
    pub message: String,
}

/// Where a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line(usize),
    /// The key is not in the file, and is required.
    Missing,
    /// An environment variable.
    Environment,
}

struct Lines<'a> {
    file: Option<&'a Path>,
    problems: &'a [Problem],
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.unwrap_or(Path::new("configuration")).display();
        for (index, problem) in self.problems.iter().take(MAX_SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match problem.place {
                Place::Line(line) => write!(f, "{file}:{line}: ")?,
                Place::Missing => write!(f, "{file}: ")?,
                Place::Environment => f.write_str("environment: ")?,
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            f.write_str(&problem.message)?;
        }
        match self.problems.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}
