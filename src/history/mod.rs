//! What was measured on this host, on its GPUs and, as this node saw it, in the cluster: a day in steps of 10 s and 30
//! days in steps of 5 min, in files of a fixed size.
//!
//! The owner ([`task`]) takes [samples](sampling) twice in 10 s and writes one row of averages and peaks to each ring
//! ([`ring`], [`store`]). A row has the number of its slot, so that a ring needs no index, and whatever is not there is
//! a gap. Queries ([`range`]) read the files beside the owner. There is nothing to configure.

pub mod columns;
pub mod range;
pub mod ring;
pub mod sampling;
mod store;
pub mod task;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::metrics::{Count, Registry, Source};
use crate::types::{History, HistoryGap, HistoryQuery, HistorySeries, Invalid, Name, Timestamp};
use columns::Table;
use range::{MAX_SERIES, Points, Range};

/// Queries that read the disk at once. Each reads 2 MB of a ring at most, and others wait.
const READERS: usize = 2;

/// Bytes of the files of the history at most. Each may stand beside one of another layout that was moved aside.
pub const fn max_bytes() -> u64 {
    let gpus = store::MAX_GPUS as u64 * ring::file_bytes(Table::Gpu);
    let subjects = ring::file_bytes(Table::Host) + ring::file_bytes(Table::Cluster) + gpus;
    subjects * ring::Step::BOTH.len() as u64 * 2
}

/// Why a query is not answered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("the history cannot be read: {0}")]
    Read(String),
}

/// Whose history a ring is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Host,
    Cluster,
    /// By its UUID.
    Gpu(String),
}

impl Subject {
    pub const fn table(&self) -> Table {
        match self {
            Self::Host => Table::Host,
            Self::Cluster => Table::Cluster,
            Self::Gpu(_) => Table::Gpu,
        }
    }

    /// The name of its files without the ending. The names of CDI devices may have a slash.
    fn file_name(&self) -> String {
        match self {
            Self::Gpu(uuid) => format!("gpu-{}", uuid.replace('/', "+")),
            Self::Host | Self::Cluster => self.to_string(),
        }
    }

    fn of_file_name(name: &str) -> Option<Self> {
        match name {
            "host" => Some(Self::Host),
            "cluster" => Some(Self::Cluster),
            gpu => Some(Self::Gpu(gpu.strip_prefix("gpu-")?.replace('+', "/"))),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Cluster => f.write_str("cluster"),
            Self::Gpu(uuid) => write!(f, "gpu {uuid}"),
        }
    }
}

/// Reads the history of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    directory: Arc<PathBuf>,
    metrics: Metrics,
    readers: Arc<Semaphore>,
}

/// What the owner of the history counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    errors: Count,
}

impl Source for Metrics {
    fn register(&self, registry: &mut Registry<'_>) {
        registry.count("history_errors", "Rows of the history that could not be written", &self.errors);
    }
}

impl Handle {
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// The history of this host and its GPUs, or of the cluster.
    ///
    /// # Errors
    /// The query is not valid, or a file cannot be read.
    pub async fn query(
        &self,
        query: HistoryQuery,
        is_cluster: bool,
        node: Name,
        now: Timestamp,
    ) -> Result<History, Error> {
        // It is never closed.
        let permit = self.readers.clone().acquire_owned().await.map_err(|closed| Error::Read(closed.to_string()))?;
        let directory = Arc::clone(&self.directory);
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            answer(&directory, &query, is_cluster, node, now)
        });
        read.await.map_err(|failure| Error::Read(failure.to_string()))?
    }
}

fn answer(
    directory: &std::path::Path,
    query: &HistoryQuery,
    is_cluster: bool,
    node: Name,
    now: Timestamp,
) -> Result<History, Error> {
    let tables: &[Table] = if is_cluster { &[Table::Cluster] } else { &[Table::Host, Table::Gpu] };
    let range = Range::of(query, now)?;
    let metrics = range::metrics(query, tables)?;
    let read = |error: io::Error| Error::Read(error.to_string());
    let mut wanted: Vec<(Subject, Vec<usize>)> = Vec::new();
    for (table, column) in metrics {
        for subject in subjects_of(directory, table, query)? {
            match wanted.iter_mut().find(|(known, _)| *known == subject) {
                Some((_, columns)) => columns.push(column),
                None => wanted.push((subject, vec![column])),
            }
        }
    }
    let count: usize = wanted.iter().map(|(_, columns)| columns.len()).sum();
    if count > MAX_SERIES {
        let message = format!("{count} series; expected at most {MAX_SERIES}: ask for fewer metrics, or for one `gpu`");
        return Err(Invalid::new("metric", message).into());
    }
    let (mut series, mut gaps): (Vec<HistorySeries>, Vec<HistoryGap>) = (Vec::new(), Vec::new());
    for (index, (subject, columns)) in wanted.into_iter().enumerate() {
        let mut points = Points::new(range, subject.table(), columns.clone());
        store::read(directory, &subject, range.source, (range.first, range.end), |row| points.push(&row))
            .map_err(read)?;
        let (lines, missing) = points.finish();
        // All rings are written together; a GPU that came later has nulls.
        if index == 0 {
            gaps = missing;
        }
        series.extend(columns.iter().zip(lines).map(|(column, line)| {
            let column = subject.table().columns()[*column];
            let gpu = if let Subject::Gpu(uuid) = &subject { Some(uuid.clone()) } else { None };
            let (metric, unit) = (column.metric.to_owned(), column.unit.to_owned());
            HistorySeries { metric, unit, gpu, average: line.average, peak: line.peak }
        }));
    }
    Ok(History {
        node,
        since: range.since(),
        until: range.until(),
        step_seconds: range.step_seconds(),
        source_step_seconds: range.source.seconds(),
        series,
        gaps,
    })
}

/// Whose rings have a metric of this table.
fn subjects_of(directory: &std::path::Path, table: Table, query: &HistoryQuery) -> Result<Vec<Subject>, Error> {
    match table {
        Table::Host => return Ok(vec![Subject::Host]),
        Table::Cluster => return Ok(vec![Subject::Cluster]),
        Table::Gpu => {}
    }
    let known = store::subjects(directory).map_err(|error| Error::Read(error.to_string()))?;
    let mut gpus: Vec<Subject> = known.into_iter().filter(|subject| subject.table() == Table::Gpu).collect();
    if let Some(wanted) = &query.gpu {
        gpus.retain(|subject| matches!(subject, Subject::Gpu(uuid) if uuid == wanted));
        if gpus.is_empty() {
            let message =
                format!("`{wanted}` is not the UUID of a GPU with a history on this node; run: ostler gpu ls");
            return Err(Invalid::new("gpu", message).into());
        }
    }
    Ok(gpus)
}

#[cfg(test)]
mod tests;
