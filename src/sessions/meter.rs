//! Tells from the bytes of a session's network whether it is used, where connections cannot be seen. Pure.

use std::collections::VecDeque;

use super::runner::LOOK_INTERVAL;

/// A session is used if its network carries this much in a minute. Broadcasts and address resolution carry less than
/// 2 KiB a minute, a probe each 20 s some 6 KiB; a person who types in a terminal, or looks at a page, more than this.
pub(crate) const USE_BYTES: u64 = 16 * 1024;
/// Readings that cover a minute, both its ends included.
const READINGS: usize = 7;
const _: () = assert!(LOOK_INTERVAL.as_secs() * (READINGS as u64 - 1) == 60, "a minute");

/// The last readings of a counter, one each [`LOOK_INTERVAL`].
#[derive(Debug)]
pub(super) struct Meter {
    readings: VecDeque<u64>,
}

impl Meter {
    pub(super) const fn new() -> Self {
        Self { readings: VecDeque::new() }
    }

    /// Takes a reading, and says whether the session is used; `None`: the readings do not cover a minute yet.
    pub(super) fn read(&mut self, bytes: u64) -> Option<bool> {
        if self.readings.back().is_some_and(|last| *last > bytes) {
            // The counter began anew, with a new run of the container.
            self.readings.clear();
        }
        self.readings.push_back(bytes);
        let first = *self.readings.front()?;
        if bytes - first >= USE_BYTES {
            self.readings = VecDeque::from([bytes]);
            return Some(true);
        }
        if self.readings.len() < READINGS {
            return None;
        }
        self.readings.pop_front();
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(readings: impl IntoIterator<Item = u64>) -> Vec<Option<bool>> {
        let mut meter = Meter::new();
        readings.into_iter().map(|bytes| meter.read(bytes)).collect()
    }

    #[test]
    fn a_network_that_carries_little_is_idle_after_a_minute() {
        let quiet = (0..8).map(|n| 1_000_000 + n * 300);
        assert_eq!(verdicts(quiet), [None, None, None, None, None, None, Some(false), Some(false)]);
    }

    #[test]
    fn a_network_that_carries_much_within_a_minute_is_used() {
        assert_eq!(verdicts([0, USE_BYTES - 1, USE_BYTES]), [None, None, Some(true)]);
        // Just too slow: a sixth of the bytes each look, less one.
        let slow = (0..9).map(|n| n * (USE_BYTES / 6 - 1));
        assert!(!verdicts(slow).contains(&Some(true)));
        let enough = (0..9).map(|n| n * (USE_BYTES / 6 + 1));
        assert!(verdicts(enough).contains(&Some(true)));
    }

    #[test]
    fn use_is_counted_anew_after_each_use_and_each_start() {
        assert_eq!(verdicts([0, USE_BYTES, USE_BYTES + 1]), [None, Some(true), None]);
        assert_eq!(verdicts([5 * USE_BYTES, 0, 1]), [None, None, None]);
    }
}
