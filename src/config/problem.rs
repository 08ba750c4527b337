use std::fmt;
use std::path::{Path, PathBuf};

/// Problems shown of one file. A file with more is not a configuration at all.
const MAX_SHOWN: usize = 32;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {reason}", file.display())]
    Unreadable { file: PathBuf, reason: String },
    /// Everything that is wrong, in the order of the file, one line each.
    #[error("{}", Lines { file: file.as_deref(), problems })]
    Invalid { file: Option<PathBuf>, problems: Vec<Problem> },
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    /// `http.listen`, or the environment variable; empty where the text is not TOML.
    pub key: String,
    /// The value as it was written, and what would be right.
    pub message: String,
}

/// Where a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Counted from 1.
    Line(usize),
    /// Nowhere: the file does not say it, and should.
    Missing,
    /// In a variable of the environment.
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
