//! How many events are written: a bucket of tokens, so that a storm fills neither the disk nor the log.

use crate::types::BootInstant;

/// Events a second, over any longer time.
const PER_SECOND: u64 = 50;
/// Events at once.
const BURST: u64 = 500;
/// A thousandth of an event is the unit, so that milliseconds are exact.
const UNIT: u64 = 1000;

#[derive(Debug)]
pub(super) struct Bucket {
    /// In thousandths of an event.
    level: u64,
    filled: BootInstant,
}

impl Bucket {
    pub(super) const fn full(now: BootInstant) -> Self {
        Self { level: BURST * UNIT, filled: now }
    }

    /// Whether one more event may be written.
    pub(super) fn take(&mut self, now: BootInstant) -> bool {
        let millis = u64::try_from(now.since(self.filled).as_millis()).unwrap_or(u64::MAX);
        self.level = self.level.saturating_add(millis.saturating_mul(PER_SECOND)).min(BURST * UNIT);
        self.filled = now;
        let may = self.level >= UNIT;
        if may {
            self.level -= UNIT;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_millis(millis)
    }

    fn taken(bucket: &mut Bucket, now: BootInstant, asked: usize) -> usize {
        (0..asked).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_burst_is_written_and_then_fifty_a_second() {
        let mut bucket = Bucket::full(at(0));
        assert_eq!(taken(&mut bucket, at(0), 600), 500);
        assert_eq!(taken(&mut bucket, at(19), 5), 0);
        assert_eq!(taken(&mut bucket, at(20), 5), 1, "after the refill of one");
        assert_eq!(taken(&mut bucket, at(1020), 600), 50);
        assert_eq!(taken(&mut bucket, at(100_000), 600), 500, "never more than a burst");
    }
}
