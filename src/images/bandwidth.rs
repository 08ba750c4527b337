//! Keeps a stream within a number of bytes a second. Pure.

use std::time::Duration;

/// What may pass at once after a pause, in time: short enough that other traffic hardly notices.
const BURST: Duration = Duration::from_millis(100);

/// A bucket of tokens, as the time at which it is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    paid_until: Duration,
}

impl Bucket {
    /// Takes so many bytes out, and returns how long to wait before they are sent. `rate`: bytes a second, 0: no limit.
    /// `now`: since any start.
    pub fn take(&mut self, bytes: u64, rate: u64, now: Duration) -> Duration {
        if rate == 0 {
            self.paid_until = now;
            return Duration::ZERO;
        }
        let from = self.paid_until.max(now.saturating_sub(BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        self.paid_until = from.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        self.paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stream_waits_for_its_rate_and_not_without_one() {
        let (mut bucket, second) = (Bucket::default(), Duration::from_secs(1));
        assert_eq!(bucket.take(1 << 30, 0, second), Duration::ZERO);
        assert_eq!(bucket.take(1000, 1000, second), second);
        assert_eq!(bucket.take(500, 1000, 2 * second), second / 2);
        assert_eq!(bucket.take(1000, 1000, 60 * second), second - BURST, "a pause saves little");
        assert!(bucket.take(u64::MAX, 1, 60 * second).as_secs() >= u64::MAX / 1_000_000_000, "no overflow");
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_allows(
            rate in 1_u64..1_000_000,
            steps in prop::collection::vec((0_u64..200_000, 0_u64..2_000), 1..50),
        ) {
            let (mut bucket, mut now, mut passed) = (Bucket::default(), Duration::from_secs(10), 0);
            let begun = now;
            for (bytes, pause) in steps {
                now += Duration::from_millis(pause);
                now += bucket.take(bytes, rate, now);
                passed += bytes;
                let most = u128::from(rate) * (now - begun + BURST).as_nanos() / 1_000_000_000 + 50;
                prop_assert!(u128::from(passed) <= most, "{passed} of {most}");
            }
        }
    }
}
