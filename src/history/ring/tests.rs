use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TABLE: Table = Table::Gpu;

/// A file in memory that stops in the middle of a write.
#[derive(Debug, Clone)]
struct Memory {
    bytes: Vec<u8>,
    /// Bytes that are written before the crash.
    left: usize,
}

impl Memory {
    fn new(table: Table) -> Self {
        Self { bytes: vec![0; usize::try_from(file_bytes(table)).unwrap()], left: usize::MAX }
    }
}

impl Disk for Memory {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        bytes.copy_from_slice(&self.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (at, written) = (usize::try_from(at).unwrap(), bytes.len().min(self.left));
        self.bytes[at..at + written].copy_from_slice(&bytes[..written]);
        if self.left != usize::MAX {
            self.left -= written;
        }
        if written < bytes.len() { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

fn row(slot: u64, figure: f32) -> Row {
    let cell = Cell { average: figure, peak: figure + 1.0 };
    Row { slot, flags: 0, count: 2, cells: vec![cell; TABLE.columns().len()] }
}

fn read(disk: &Memory, first: u64, end: u64) -> BTreeMap<u64, f32> {
    let mut found = BTreeMap::new();
    rows(disk, TABLE, first, end, |row| {
        assert!(row.cells.iter().all(|cell| cell.peak == cell.average + 1.0));
        assert_eq!(found.insert(row.slot, row.cells[0].average), None);
    })
    .unwrap();
    found
}

#[test]
fn the_layout_is_fixed() {
    assert_eq!(file_bytes(Table::Host) + file_bytes(Table::Host), 2 * 2_215_936);
    assert_eq!(ROWS % FOLD, 0);
    let bytes = encode(TABLE, &row(0x0102_0304, 1.5));
    assert_eq!(&bytes[..8], [4, 3, 2, 1, 0, 0, 2, 0]);
    assert_eq!(&bytes[60..], [4, 3, 2, 1]);
    let text = String::from_utf8(header(TABLE, Step::Coarse, "GPU-1")).unwrap();
    let expected = "ostler history 1\nof GPU-1\nstep 300\nrows 8640\nrow_bytes 64\ncolumns gpu.utilization ";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(text.len(), HEADER);
}

#[test]
fn averages_are_weighted_peaks_stay_and_events_add_up() {
    let table = Table::Host;
    let (cores, created) = (table.find("cores.utilized").unwrap(), table.find("sessions.created").unwrap());
    let row = |count: u16, average: f32, peak: f32, events: f32| {
        let mut cells = vec![Cell::UNKNOWN; table.columns().len()];
        cells[cores] = Cell { average, peak };
        cells[created] = Cell { average: events, peak: events };
        Row { slot: 1, flags: 0, count, cells }
    };
    let mut fold = Fold::new(table);
    fold.add(&row(1, 1.0, 5.0, 2.0));
    fold.add(&row(3, 2.0, 3.0, 4.0));
    fold.add(&Row { cells: vec![Cell::UNKNOWN; table.columns().len()], ..row(2, 0.0, 0.0, 0.0) });
    assert_eq!(fold.figures(cores), Some((1.75, 5.0)));
    assert_eq!(fold.figures(created), Some((6.0, 4.0)));
    assert_eq!(fold.figures(0), None);
    assert_eq!(fold.row(7).count, 6);
    assert!(fold.row(7).cells[0].average.is_nan());
    let mut readings = Fold::new(table);
    for events in [1.0, 2.0] {
        let mut figures = vec![f64::NAN; table.columns().len()];
        figures[created] = events;
        readings.add(&Fold::reading(&figures));
    }
    assert_eq!(readings.of_readings(7).cells[created], Cell { average: 3.0, peak: 3.0 });
}

/// A turn of the history of a ring.
#[derive(Debug, Clone)]
enum Turn {
    /// So many slots later, write; the write stops after so many bytes.
    Write { after: u64, figure: f32, torn: Option<usize> },
    /// The clock is set back by so many slots, which is noticed, or forward.
    Step(i64),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let torn = prop_oneof![4 => Just(None), 1 => (0_usize..64).prop_map(Some)];
    let after = prop_oneof![8 => 0_u64..3, 1 => 0..20_000_u64];
    let write = (after, -1000_i16..1000, torn).prop_map(|(after, figure, torn)| Turn::Write {
        after,
        figure: f32::from(figure),
        torn,
    });
    let step = prop_oneof![-50_i64..50, -20_000_i64..20_000].prop_map(Turn::Step);
    proptest::collection::vec(prop_oneof![9 => write, 1 => step], 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is read of a slot was written for it last, and after a restart the newest whole rows are there.
    #[test]
    fn a_ring_reads_back_what_was_written_or_a_gap(turns in turns()) {
        let mut disk = Memory::new(TABLE);
        // What was written for a slot, and nothing that was cleared or torn. `None` is a gap.
        let mut written: BTreeMap<u64, Option<f32>> = BTreeMap::new();
        let mut now = 1_000_000_u64;
        for turn in turns {
            match turn {
                Turn::Write { after, figure, torn } => {
                    now += after;
                    disk.left = torn.unwrap_or(usize::MAX);
                    let wrote = disk.write_at(&encode(TABLE, &row(now, figure)), place(TABLE, now));
                    disk.left = usize::MAX;
                    // It takes the place of the rows of other rounds.
                    let there = usize::try_from(place(TABLE, now)).unwrap();
                    let left = decode(TABLE, &disk.bytes[there..there + TABLE.row_bytes()]).map(|row| row.slot);
                    written.retain(|slot, _| *slot % ROWS != now % ROWS || *slot == now || Some(*slot) == left);
                    let intact = read(&disk, now, now + 1).contains_key(&now);
                    written.insert(now, (wrote.is_ok() || intact).then_some(figure));
                    if let (Err(_), true) = (wrote, intact) {
                        // A torn write that changed nothing that counts leaves the row before it.
                        written.insert(now, read(&disk, now, now + 1).get(&now).copied());
                    }
                }
                Turn::Step(slots) => {
                    now = now.saturating_add_signed(slots).max(1);
                    let newest = clear_after(&mut disk, TABLE, now).unwrap();
                    prop_assert!(newest <= now);
                    written.retain(|slot, _| *slot <= now || *slot > now + ROWS);
                }
            }
            let seen = read(&disk, (now + 1).saturating_sub(ROWS), now + 1);
            let expected: BTreeMap<u64, f32> = written
                .range((now + 1).saturating_sub(ROWS)..=now)
                .filter_map(|(slot, figure)| Some((*slot, (*figure)?)))
                .collect();
            prop_assert_eq!(seen, expected);
        }
    }

    /// A write over a row of the same slot that stops at any byte leaves the old row, the new one or none.
    #[test]
    fn a_torn_row_is_never_a_mixture(old in -9_i8..9, new in -9_i8..9, cut in 0_usize..=64, slot in 1_u64..9_000_000) {
        let (old, new) = (f32::from(old), f32::from(new));
        let mut disk = Memory::new(TABLE);
        disk.write_at(&encode(TABLE, &row(slot, old)), place(TABLE, slot)).unwrap();
        disk.left = cut;
        let _ = disk.write_at(&encode(TABLE, &row(slot, new)), place(TABLE, slot));
        let seen = read(&disk, slot, slot + 1).get(&slot).copied();
        prop_assert!(seen.is_none_or(|seen| seen == old || seen == new), "{seen:?}");
        prop_assert!(cut < 64 || seen == Some(new));
    }

    /// Rows that are folded say the same as their readings.
    #[test]
    fn a_coarse_row_has_the_average_and_the_peak_of_its_fine_rows(figures in proptest::collection::vec(
        proptest::option::of(0_u16..1000), 30))
    {
        let mut disk = Memory::new(TABLE);
        let first = FOLD * 12_345;
        for (slot, figure) in (first..).zip(&figures) {
            if let Some(figure) = figure {
                disk.write_at(&encode(TABLE, &row(slot, f32::from(*figure))), place(TABLE, slot)).unwrap();
            }
        }
        let known: Vec<f32> = figures.iter().flatten().map(|figure| f32::from(*figure)).collect();
        let folded = folded(&disk, TABLE, first + 7).unwrap();
        prop_assert_eq!((folded.slot, usize::from(folded.count)), (12_345, 2 * known.len()));
        if known.is_empty() {
            prop_assert!(folded.cells[0].average.is_nan());
        } else {
            let average = known.iter().sum::<f32>() / known.len() as f32;
            prop_assert!((folded.cells[0].average - average).abs() < 0.01);
            prop_assert_eq!(folded.cells[0].peak, known.iter().copied().fold(0.0, f32::max) + 1.0);
        }
    }
}
