//! The ring on disk: where a row is, what its bytes are, and how rows are folded into wider ones. Pure.
//!
//! A row is at its slot's number modulo [`ROWS`]. It has the number at its beginning and at its end and a checksum, and
//! counts only if all agree: a row that was torn by a crash, or that is left from an earlier round, is a gap.

use std::io;

use super::columns::{Kind, Table};
use crate::types::Timestamp;

/// Rows of a ring: a day of 10 s, 30 days of 5 min.
pub const ROWS: u64 = 8640;
/// Bytes before the first row: what the file is, as text.
pub const HEADER: usize = 4096;
/// Bytes of a row beside its columns: the slot twice, flags, count, checksum.
pub const OVERHEAD: usize = 16;
/// Changes with the layout of rows.
const VERSION: u32 = 1;

/// How long a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// 10 s.
    Fine,
    /// 5 min.
    Coarse,
}

impl Step {
    pub const BOTH: [Self; 2] = [Self::Fine, Self::Coarse];

    pub const fn seconds(self) -> u64 {
        match self {
            Self::Fine => 10,
            Self::Coarse => 300,
        }
    }

    /// Seconds that a ring holds.
    pub const fn span(self) -> u64 {
        self.seconds() * ROWS
    }

    /// The end of a ring's file name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Fine => "10s",
            Self::Coarse => "5m",
        }
    }

    /// The slot of a time. A time before 1970 is in slot 0, which is never written.
    pub fn slot(self, at: Timestamp) -> u64 {
        u64::try_from(at.millis()).unwrap_or(0) / (self.seconds() * 1000)
    }

    /// When a slot begins.
    pub fn begins(self, slot: u64) -> Timestamp {
        Timestamp::from_millis(i64::try_from(slot * self.seconds() * 1000).unwrap_or(i64::MAX))
    }
}

/// Fine slots of a coarse one. [`ROWS`] is a multiple of it: the rows of a coarse slot lie side by side.
pub const FOLD: u64 = Step::Coarse.seconds() / Step::Fine.seconds();

/// The first row since the agent started.
pub const STARTED: u16 = 1;
/// The first row since the clock of the host was set.
pub const STEPPED: u16 = 2;

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub slot: u64,
    /// [`STARTED`], [`STEPPED`].
    pub flags: u16,
    /// Readings in it.
    pub count: u16,
    /// Average and peak of each column; NaN: not known.
    pub cells: Vec<Cell>,
}

/// The average of a column, for events their number, and the peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    pub average: f32,
    pub peak: f32,
}

impl Cell {
    pub const UNKNOWN: Self = Self { average: f32::NAN, peak: f32::NAN };
}

/// Where the row of a slot is in the file.
pub fn place(table: Table, slot: u64) -> u64 {
    HEADER as u64 + slot % ROWS * table.row_bytes() as u64
}

/// Bytes of a ring's file.
pub const fn file_bytes(table: Table) -> u64 {
    HEADER as u64 + ROWS * table.row_bytes() as u64
}

/// The header: a text that says what the file is. A file with another one is not read. `of`: whose history it is.
pub fn header(table: Table, step: Step, of: &str) -> Vec<u8> {
    let columns: Vec<&str> = table.columns().iter().map(|column| column.metric).collect();
    let text = format!(
        "ostler history {VERSION}\nof {of}\nstep {}\nrows {ROWS}\nrow_bytes {}\ncolumns {}\n",
        step.seconds(),
        table.row_bytes(),
        columns.join(" ")
    );
    let mut header = text.into_bytes();
    header.resize(HEADER, 0);
    header
}

/// The bytes of a row.
pub fn encode(table: Table, row: &Row) -> Vec<u8> {
    let slot = number(row.slot).to_le_bytes();
    let mut bytes = Vec::with_capacity(table.row_bytes());
    bytes.extend(slot);
    bytes.extend(row.flags.to_le_bytes());
    bytes.extend(row.count.to_le_bytes());
    for Cell { average, peak } in &row.cells {
        bytes.extend(average.to_le_bytes());
        bytes.extend(peak.to_le_bytes());
    }
    bytes.resize(table.row_bytes() - 8, 0);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(slot);
    bytes
}

/// The row of these bytes, whichever slot it is of. `None`: it was never written, or not to its end.
pub fn decode(table: Table, bytes: &[u8]) -> Option<Row> {
    let body = bytes.get(..table.row_bytes() - 8)?;
    let slot = word(bytes, 0)?;
    let is_whole = slot != 0
        && word(bytes, table.row_bytes() - 4)? == slot
        && word(bytes, table.row_bytes() - 8)? == crc32fast::hash(body);
    if !is_whole {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let cell = |i: usize| {
        let at = 8 + 8 * i;
        Some(Cell { average: f32::from_bits(word(bytes, at)?), peak: f32::from_bits(word(bytes, at + 4)?) })
    };
    let cells = (0..table.columns().len()).map(cell).collect::<Option<Vec<Cell>>>()?;
    Some(Row { slot: u64::from(slot), flags: half(4)?, count: half(6)?, cells })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A slot's number on disk. It is exact until the year 3331.
fn number(slot: u64) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

/// Joins rows or readings: averages are weighted by their readings, a peak is the peak of peaks, events add up.
#[derive(Debug, Clone)]
pub struct Fold {
    table: Table,
    flags: u16,
    count: u32,
    columns: Vec<Joined>,
}

#[derive(Debug, Clone, Copy)]
struct Joined {
    sum: f64,
    /// Readings in the sum; 0: nothing is known.
    weight: f64,
    peak: f64,
}

impl Fold {
    pub fn new(table: Table) -> Self {
        let columns = vec![Joined { sum: 0.0, weight: 0.0, peak: f64::NAN }; table.columns().len()];
        Self { table, flags: 0, count: 0, columns }
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn flag(&mut self, flags: u16) {
        self.flags |= flags;
    }

    /// Adds a row of the same table, which may be a single reading.
    pub fn add(&mut self, row: &Row) {
        self.flags |= row.flags;
        self.count += u32::from(row.count);
        for ((joined, cell), column) in self.columns.iter_mut().zip(&row.cells).zip(self.table.columns()) {
            if cell.average.is_nan() {
                continue;
            }
            let readings = f64::from(row.count.max(1));
            joined.sum += f64::from(cell.average) * if column.kind == Kind::Count { 1.0 } else { readings };
            joined.weight += readings;
            joined.peak = joined.peak.max(f64::from(cell.peak));
        }
    }

    /// The average, or of events their number, and the peak; `None`: not known.
    pub fn figures(&self, column: usize) -> Option<(f64, f64)> {
        let joined = self.columns.get(column).filter(|joined| joined.weight > 0.0)?;
        match self.table.columns()[column].kind {
            Kind::Gauge => Some((joined.sum / joined.weight, joined.peak)),
            Kind::Count => Some((joined.sum, joined.peak)),
        }
    }

    /// All of it as one row.
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough for people")]
    pub fn row(&self, slot: u64) -> Row {
        let cell = |column: usize| {
            let known = self.figures(column);
            known.map_or(Cell::UNKNOWN, |(average, peak)| Cell { average: average as f32, peak: peak as f32 })
        };
        let count = u16::try_from(self.count).unwrap_or(u16::MAX);
        Row { slot, flags: self.flags, count, cells: (0..self.columns.len()).map(cell).collect() }
    }

    /// A single reading as a row: the figures in the order of the columns; NaN: not known. For events, the figure of a
    /// row is the sum of its readings, and its peak is that sum too.
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough for people")]
    pub fn reading(figures: &[f64]) -> Row {
        let cell = |figure: &f64| Cell { average: *figure as f32, peak: *figure as f32 };
        Row { slot: 0, flags: 0, count: 1, cells: figures.iter().map(cell).collect() }
    }

    /// The row of the readings of one fine slot, of whose events the number is the peak.
    pub fn of_readings(&self, slot: u64) -> Row {
        let mut row = self.row(slot);
        for (cell, column) in row.cells.iter_mut().zip(self.table.columns()) {
            if column.kind == Kind::Count {
                cell.peak = cell.average;
            }
        }
        row
    }
}

/// The bytes of a ring, wherever they are.
pub trait Disk {
    /// # Errors
    /// The bytes are not there or cannot be read.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// # Errors
    /// The bytes cannot be written; some of them may be.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
}

/// Rows that are read at once: 64 KiB of the host's.
const CHUNK: u64 = 256;

/// Passes on each row that is there, of the slots from `first` up to, not including, `end`, in order.
///
/// # Errors
/// The disk cannot be read.
pub fn rows(disk: &impl Disk, table: Table, first: u64, end: u64, mut each: impl FnMut(Row)) -> io::Result<()> {
    let mut at = first.max(end.saturating_sub(ROWS));
    let mut bytes = Vec::new();
    while at < end {
        // Up to the end of the file at most, where the ring goes on at its beginning.
        let count = CHUNK.min(end - at).min(ROWS - at % ROWS);
        bytes.resize(usize::try_from(count).unwrap_or_default() * table.row_bytes(), 0);
        disk.read_at(&mut bytes, place(table, at))?;
        for (slot, row) in (at..).zip(bytes.chunks(table.row_bytes())) {
            if let Some(row) = decode(table, row).filter(|row| row.slot == slot) {
                each(row);
            }
        }
        at += count;
    }
    Ok(())
}

/// The coarse row that holds a fine slot, from the fine rows that are there.
///
/// # Errors
/// The disk cannot be read.
pub fn folded(fine: &impl Disk, table: Table, slot: u64) -> io::Result<Row> {
    let coarse = slot / FOLD;
    let mut fold = Fold::new(table);
    rows(fine, table, coarse * FOLD, (coarse + 1) * FOLD, |row| fold.add(&row))?;
    Ok(fold.row(coarse))
}

/// Clears the rows after slot `now`, up to one round ahead: the clock was set back, and another row of those slots will
/// be the right one. Rows that are further ahead stay: a clock that is that wrong will be set again.
///
/// Returns the newest slot that is left.
///
/// # Errors
/// The disk cannot be read or written.
pub fn clear_after(disk: &mut impl Disk, table: Table, now: u64) -> io::Result<u64> {
    let blank = vec![0; table.row_bytes()];
    let mut newest = 0;
    let mut bytes = vec![0; usize::try_from(CHUNK).unwrap_or_default() * table.row_bytes()];
    let mut at = 0;
    while at < ROWS {
        let count = CHUNK.min(ROWS - at);
        bytes.resize(usize::try_from(count).unwrap_or_default() * table.row_bytes(), 0);
        disk.read_at(&mut bytes, place(table, at))?;
        for (index, row) in (at..).zip(bytes.chunks(table.row_bytes())) {
            let Some(Row { slot, .. }) = decode(table, row) else { continue };
            if slot > now && slot <= now + ROWS {
                disk.write_at(&blank, place(table, index))?;
            } else if slot <= now {
                newest = newest.max(slot);
            }
        }
        at += count;
    }
    Ok(newest)
}

#[cfg(test)]
mod tests;
