use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::types::{EventId, NodeId, sample};

const DAY: i64 = 24 * 3600 * 1000;
/// 2026-01-31T00:00:00Z.
const START: i64 = 1_769_817_600_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(START + millis)
}

fn event(seq: u64, millis: i64) -> Event {
    let id = EventId { node: NodeId::from_bytes([1; 10]), seq };
    Event { id, ..sample::event(EventKind::SessionStarted, START + millis) }
}

fn names(log: &Log) -> Vec<String> {
    let name = |segment: &Segment| segment.path.file_name().unwrap().to_str().unwrap().to_owned();
    log.segments.iter().map(name).collect()
}

/// The numbers in all files, in their order.
fn seqs(directory: &Path) -> Vec<u64> {
    let log = Log::open(directory).unwrap();
    let read = log.segments.iter().flat_map(|segment| {
        let bytes = fs::read(&segment.path).unwrap();
        bytes.split(|byte| *byte == b'\n').filter_map(line::decode).map(|event| event.id.seq).collect::<Vec<_>>()
    });
    read.collect()
}

#[test]
fn a_day_has_a_file_and_the_numbers_go_on_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    assert_eq!((log.last(), log.is_unclean()), (0, false), "the first start is not one after a crash");
    log.append(&[event(1, 0), event(2, 10)]).unwrap();
    log.append(&[event(3, DAY)]).unwrap();
    drop(log);
    let mut log = Log::open(dir.path()).unwrap();
    assert_eq!((log.last(), log.is_unclean()), (3, true));
    log.append(&[Event { kind: EventKind::AgentStopped, ..event(4, DAY + 5) }]).unwrap();
    assert_eq!(names(&log), ["2026-01-31.jsonl", "2026-02-01.jsonl"]);
    assert!(!Log::open(dir.path()).unwrap().is_unclean());
    assert_eq!(seqs(dir.path()), [1, 2, 3, 4]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&log.segments[0].path).unwrap().permissions());
    assert_eq!(mode & 0o777, FILE_MODE);
}

#[test]
fn a_torn_last_line_is_cut_off_and_damage_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    log.append(&[event(1, 0), event(2, 1)]).unwrap();
    let path = log.segments[0].path.clone();
    drop(log);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    // As after a loss of power: a line of zeros, and the begin of another one.
    file.write_all(&[0, 0, 0, b'\n', b'{', b'"']).unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    assert_eq!(log.last(), 2);
    log.append(&[event(3, 2)]).unwrap();
    assert_eq!(seqs(dir.path()), [1, 2, 3]);
    fs::write(dir.path().join("2026-03-01.jsonl"), "nothing\n").unwrap();
    assert_eq!(Log::open(dir.path()).unwrap().last(), 3, "a file without an event is removed");
    assert!(!dir.path().join("2026-03-01.jsonl").exists());
}

#[test]
fn a_clock_that_is_a_little_behind_repeats_the_time_and_one_that_was_set_back_begins_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    assert_eq!(log.time(at(0)), at(0));
    log.append(&[event(1, 100_000)]).unwrap();
    assert_eq!(log.time(at(100_001)), at(100_001));
    assert_eq!(log.time(at(40_000)), at(100_000));
    assert_eq!(log.time(at(39_999)), at(39_999), "a minute is a clock that was set");
    log.append(&[event(2, 39_999)]).unwrap();
    assert_eq!(names(&log), ["2026-01-31.jsonl", "2026-01-31.2.jsonl"]);
    assert_eq!(seqs(dir.path()), [1, 2]);
}

#[test]
fn old_files_go_and_so_does_the_oldest_of_too_many_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    log.append(&[event(1, 0)]).unwrap();
    log.append(&[event(2, 30 * DAY)]).unwrap();
    assert_eq!(log.segments.len(), 2, "it is 30 days old");
    log.append(&[event(3, 31 * DAY)]).unwrap();
    assert_eq!(log.segments.len(), 2);
    let mut seq = 3;
    let long = "x".repeat(15_000);
    for _ in 0..80 {
        let batch: Vec<Event> =
            (1..=100).map(|n| Event { message: long.clone(), ..event(seq + n, 31 * DAY) }).collect();
        seq += 100;
        log.append(&batch).unwrap();
    }
    let bytes: u64 = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes + RESERVE <= MAX_BYTES, "{bytes}");
    assert!(bytes > MAX_BYTES / 2, "{bytes}");
    assert_eq!(log.last(), seq);
    let kept = seqs(dir.path());
    assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]) && kept.last() == Some(&seq));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However often the agent is killed within a write, and wherever: what was written to its end is read back, and
    /// the numbers have no gap.
    #[test]
    fn a_crash_at_any_byte_costs_what_was_not_written_to_its_end(
        crashes in proptest::collection::vec((1_u64..6, 0_usize..2000), 1..8)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut written = 0;
        for (count, torn) in crashes {
            let mut log = Log::open(dir.path()).unwrap();
            prop_assert_eq!(log.last(), written);
            let events: Vec<Event> = (1..=count).map(|n| event(written + n, (written + n) as i64)).collect();
            log.append(&events).unwrap();
            written += count;
            // The next write is torn.
            let path = log.segments.last().unwrap().path.clone();
            let next = line::encode(&event(written + 1, (written + 1) as i64));
            let torn = &next[..torn.min(next.len() - 1)];
            OpenOptions::new().append(true).open(path).unwrap().write_all(torn).unwrap();
        }
        prop_assert_eq!(seqs(dir.path()), (1..=written).collect::<Vec<_>>());
    }
}
