//! Instants and durations. Nothing here reads a clock: [`crate::clock`] gives the [`Moment`]s.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

/// Wall-clock time in milliseconds since 1970, shown as RFC 3339 in UTC. It is for people; deadlines do not use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, ToSchema)]
#[schema(value_type = String, format = "date-time")]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The day in UTC, as `2026-01-31`.
    pub fn day(self) -> String {
        let text = self.to_string();
        text.split_once('T').map_or_else(|| text.clone(), |(day, _)| day.to_owned())
    }

    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => f.pad(&format!("{time:.3}")),
            Err(_) => f.pad("out of range"),
        }
    }
}

impl FromStr for Timestamp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let time: jiff::Timestamp =
            text.parse().map_err(|_| format!("`{text}` is not a time; expected RFC 3339: 2026-01-31T12:00:00Z"))?;
        Ok(Self(time.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// Time since this host booted, time in suspend included. It never jumps, and means nothing after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BootInstant {
    millis: u64,
}

impl BootInstant {
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    pub fn plus(self, span: Duration) -> Self {
        Self { millis: self.millis.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)) }
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.millis.saturating_sub(earlier.millis))
    }
}

/// One reading of both clocks. Cores get a `Moment` as an argument and never read a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub wall: Timestamp,
    pub boot: BootInstant,
    /// The boot that `boot` counts from: the first 64 bits of the kernel's boot id.
    pub boot_id: u64,
}

impl Moment {
    /// The same moment `span` later.
    pub fn plus(self, span: Duration) -> Self {
        Self { wall: self.wall.plus(span), boot: self.boot.plus(span), boot_id: self.boot_id }
    }

    /// How long ago `earlier` was. Within one boot by the boot clock; after a reboot by the wall clock, and at least the
    /// time since the reboot, so that a wrong wall clock cannot make it shorter than that.
    pub fn since(self, earlier: Self) -> Duration {
        if self.boot_id == earlier.boot_id {
            return self.boot.since(earlier.boot);
        }
        self.wall.since(earlier.wall).max(self.boot.since(BootInstant::default()))
    }
}

/// A jump of the wall clock moves a displayed deadline in steps of this.
const SHOWN_STEP_MILLIS: i64 = 1000;

/// A point in time that survives jumps of the wall clock and reboots.
///
/// Within one boot only the boot clock counts. After a reboot, the time that remained when the deadline was set is
/// shortened by the difference of the wall clocks, clamped to `[0, remaining]`, so that a wrong wall clock can neither
/// end a session early by more than its span nor keep it for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    boot_id: u64,
    at: BootInstant,
    set_at: Timestamp,
    remaining_millis: u64,
}

impl Deadline {
    pub fn after(now: Moment, span: Duration) -> Self {
        Self {
            boot_id: now.boot_id,
            at: now.boot.plus(span),
            set_at: now.wall,
            remaining_millis: u64::try_from(span.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The time until it is due; zero once it is.
    pub fn remaining(&self, now: Moment) -> Duration {
        if now.boot_id == self.boot_id {
            return self.at.since(now.boot);
        }
        let remaining = Duration::from_millis(self.remaining_millis);
        remaining.saturating_sub(now.wall.since(self.set_at))
    }

    pub fn is_due(&self, now: Moment) -> bool {
        self.remaining(now).is_zero()
    }

    /// The wall-clock time of the deadline, for people: the time when it was set plus its span. Two calls return the
    /// same time unless the wall clock jumped in between.
    ///
    /// Within one boot the time follows a jump of the wall clock in whole seconds, so it is within half a second of
    /// the wall-clock time at which the deadline is due. Smaller jumps, and the milliseconds between the readings of
    /// the two clocks, do not change it. After a reboot the time stays until the deadline is
    /// [rebased](Self::rebased).
    pub fn shown(&self, now: Moment) -> Timestamp {
        let due = self.set_at.millis().saturating_add_unsigned(self.remaining_millis);
        let jumped = if now.boot_id == self.boot_id { self.jumped(now) } else { 0 };
        Timestamp::from_millis(due.saturating_add(rounded(jumped, SHOWN_STEP_MILLIS)))
    }

    /// Milliseconds that the wall clock has gained on the boot clock since the deadline was set.
    fn jumped(&self, now: Moment) -> i64 {
        let signed = |millis: u64| i64::try_from(millis).unwrap_or(i64::MAX);
        let set = signed(self.at.millis.saturating_sub(self.remaining_millis));
        now.wall.millis().saturating_sub(self.set_at.millis()).saturating_sub(signed(now.boot.millis) - set)
    }

    /// The same deadline on the clock of this boot, so that the boot clock decides again.
    pub fn rebased(&self, now: Moment) -> Self {
        if now.boot_id == self.boot_id { *self } else { Self::after(now, self.remaining(now)) }
    }
}

/// The nearest multiple of `step`.
const fn rounded(millis: i64, step: i64) -> i64 {
    millis.saturating_add(step / 2).div_euclid(step).saturating_mul(step)
}

/// A duration in the syntax of configuration and command line: `90s`, `15m`, `1h`, `30d`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

impl Period {
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// 100 years: a longer duration is a typing error and would overflow clocks.
    pub const MAX: Self = Self::secs(100 * 365 * 86400);

    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration; expected for example 90s, 15m, 1h30m or 30d");
        if text.is_empty() {
            return Err(wrong());
        }
        let mut total = Duration::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..unit_at].parse().map_err(|_| wrong())?;
            let unit_end = rest[unit_at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| unit_at + end);
            let millis_each = match &rest[unit_at..unit_end] {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(wrong()),
            };
            let part = Duration::from_millis(number.checked_mul(millis_each).ok_or_else(wrong)?);
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = &rest[unit_end..];
        }
        if total > Self::MAX.0 { Err(wrong()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.pad("0s");
        }
        let mut text = String::new();
        for (unit, each) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if millis >= each {
                text.push_str(&format!("{}{unit}", millis / each));
                millis %= each;
            }
        }
        f.pad(&text)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86400);

    fn moment(wall: i64, boot: u64, boot_id: u64) -> Moment {
        Moment { wall: Timestamp::from_millis(wall), boot: BootInstant::from_millis(boot), boot_id }
    }

    #[test]
    fn durations_are_parsed_and_shown() {
        for (text, secs) in [("90s", 90), ("15m", 900), ("1h", 3600), ("30d", 2_592_000), ("1h30m", 5400), ("0s", 0)] {
            assert_eq!(text.parse::<Period>().unwrap().as_secs(), secs, "{text}");
        }
        for text in ["", "5", "s", "-1s", "1w", "1 h", "1.5h", "99999999d"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!(Period::secs(5400).to_string(), "1h30m");
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = Timestamp::from_millis(1_769_860_800_123);
        assert_eq!(time.to_string(), "2026-01-31T12:00:00.123Z");
        assert_eq!(time.to_string().parse::<Timestamp>(), Ok(time));
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn a_jump_of_the_wall_clock_moves_no_deadline() {
        let deadline = Deadline::after(moment(1_000_000_000, 5000, 1), Duration::from_secs(60));
        for jump in [-86_400_000, 0, 86_400_000] {
            assert_eq!(deadline.remaining(moment(1_000_000_000 + jump, 15_000, 1)), Duration::from_secs(50));
        }
    }

    proptest! {
        #[test]
        fn after_a_reboot_a_deadline_is_never_further_off_than_when_it_was_set(
            wall in 0..4_000_000_000_000i64, later in 0..4_000_000_000_000i64, secs in 0..1_000_000u64
        ) {
            let span = Duration::from_secs(secs);
            let deadline = Deadline::after(moment(wall, 7, 1), span);
            let after = moment(later, 3, 2);
            prop_assert!(deadline.remaining(after) <= span);
            let expected = if later >= wall + i64::try_from(span.as_millis()).unwrap() { Some(Duration::ZERO) } else if later <= wall { Some(span) } else { None };
            if let Some(expected) = expected {
                prop_assert_eq!(deadline.remaining(after), expected);
            }
            prop_assert_eq!(deadline.rebased(after).remaining(after.plus(DAY)), deadline.remaining(after).saturating_sub(DAY));
        }

        #[test]
        fn the_displayed_time_of_a_deadline_changes_only_with_jumps_of_the_wall_clock(
            wall in 0..4_000_000_000_000i64,
            boot in 0..4_000_000_000u64,
            secs in 0..3_000_000_000u64,
            passed in prop::collection::vec((0..10_000_000u64, -499..500i64), 1..20),
            jump in -4_000_000_000_000..4_000_000_000_000i64,
        ) {
            let deadline = Deadline::after(moment(wall, boot, 1), Duration::from_secs(secs));
            let due = Timestamp::from_millis(wall).plus(Duration::from_secs(secs));
            for (passed, apart) in passed {
                let later = wall + i64::try_from(passed).unwrap();
                prop_assert_eq!(deadline.shown(moment(later + apart, boot + passed, 1)), due);
                prop_assert_eq!(deadline.shown(moment(later + apart, passed, 2)), due, "after a reboot");
                let jumped = deadline.shown(moment(later + jump, boot + passed, 1));
                prop_assert!((jumped.millis() - due.millis() - jump).abs() <= 500);
            }
        }

        #[test]
        fn durations_survive_text(secs in 0..3_000_000_000u64) {
            prop_assert_eq!(Period::secs(secs).to_string().parse::<Period>(), Ok(Period::secs(secs)));
        }
    }
}
