use std::fmt;
use std::path::{Path, PathBuf};

/// Problems of one file that an error shows at most. More of them say that the file is not a configuration.
const MAX_SHOWN: usize = 32;

/// Why the configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {reason}", file.display())]
    Unreadable { file: PathBuf, reason: String },
    /// Every problem in the order of the file, one per line.
    #[error("{}", Lines { file: file.as_deref(), problems })]
    Invalid { file: Option<PathBuf>, problems: Vec<Problem> },
}

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    /// `http.listen`, or the environment variable; empty if the text is not TOML.
    pub key: String,
    /// The value as written, and what is expected.
    pub message: String,
}

/// Where a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Counted from 1.
    Line(usize),
    /// Nowhere: the file lacks the key.
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
