//! Happenings that come again and again, told once a minute with their number.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Recorded;
use crate::types::{BootInstant, EventKind};

/// The time that one event counts for.
const WINDOW: Duration = Duration::from_secs(60);
/// Different happenings that are counted at once at most. What comes beyond them is told each time, and the rate of
/// the log bounds it.
const MAX_KEYS: usize = 256;

/// The counters of this minute.
#[derive(Default)]
pub(super) struct Tally {
    counted: BTreeMap<String, Counted>,
}

struct Counted {
    since: BootInstant,
    /// How often it came since it was last told.
    untold: u64,
    last: Recorded,
}

impl Tally {
    /// What is to be written of it now: the first in a minute at once, and nothing of the others until the minute ends.
    pub(super) fn take(&mut self, recorded: Recorded, now: BootInstant) -> Option<Recorded> {
        if !is_counted(recorded.happening.kind) {
            return Some(recorded);
        }
        let key = format!("{} {:?}", recorded.happening.message, recorded.by);
        if let Some(counted) = self.counted.get_mut(&key) {
            counted.untold += 1;
            counted.last = recorded;
            return None;
        }
        if self.counted.len() < MAX_KEYS {
            let last = Recorded { happening: recorded.happening.clone(), by: recorded.by.clone() };
            self.counted.insert(key, Counted { since: now, untold: 0, last });
        }
        Some(told(recorded, 1))
    }

    /// Ends the minutes that are over, and returns what came in them beside the first. What goes on begins a new minute.
    pub(super) fn due(&mut self, now: BootInstant) -> Vec<Recorded> {
        let mut due = Vec::new();
        self.counted.retain(|_, counted| {
            if now.since(counted.since) < WINDOW {
                return true;
            }
            let untold = std::mem::take(&mut counted.untold);
            counted.since = now;
            if untold > 0 {
                let Recorded { happening, by } = &counted.last;
                due.push(told(Recorded { happening: happening.clone(), by: by.clone() }, untold));
            }
            untold > 0
        });
        due
    }

    /// How long until a minute ends. `None`: nothing is counted.
    pub(super) fn next(&self, now: BootInstant) -> Option<Duration> {
        self.counted.values().map(|counted| WINDOW.saturating_sub(now.since(counted.since))).min()
    }
}

const fn is_counted(kind: EventKind) -> bool {
    matches!(kind, EventKind::Refused | EventKind::RequestRefused)
}

fn told(recorded: Recorded, count: u64) -> Recorded {
    let Recorded { mut happening, by } = recorded;
    if count > 1 {
        happening.message = format!("{} ({count} times in a minute)", happening.message);
    }
    Recorded { happening: happening.with("count", count), by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Happening;
    use crate::types::sample;

    fn at(seconds: u64) -> BootInstant {
        BootInstant::from_millis(seconds * 1000)
    }

    fn refused(reason: &str) -> Recorded {
        Recorded { happening: Happening::of(EventKind::Refused, format!("refused: {reason}")), by: None }
    }

    fn count(recorded: &Recorded) -> u64 {
        recorded.happening.data["count"].as_u64().unwrap()
    }

    #[test]
    fn the_first_is_told_at_once_and_the_others_at_the_end_of_their_minute() {
        let mut tally = Tally::default();
        assert_eq!(tally.next(at(0)), None);
        assert_eq!(tally.take(refused("full"), at(0)).map(|told| count(&told)), Some(1));
        assert!(tally.take(refused("full"), at(1)).is_none());
        assert!(tally.take(refused("full"), at(59)).is_none());
        assert_eq!(tally.next(at(59)), Some(Duration::from_secs(1)));
        assert!(tally.due(at(59)).is_empty());
        let due = tally.due(at(60));
        assert_eq!((due.len(), count(&due[0])), (1, 2));
        assert_eq!(due[0].happening.message, "refused: full (2 times in a minute)");
        assert!(tally.take(refused("full"), at(61)).is_none(), "it went on, so its next minute has begun");
        assert_eq!(tally.due(at(120)).len(), 1);
        assert!(tally.due(at(180)).is_empty());
        assert!(tally.take(refused("full"), at(181)).is_some(), "a minute without it has passed");
    }

    #[test]
    fn what_differs_is_counted_apart_and_other_kinds_are_never_counted() {
        let mut tally = Tally::default();
        assert!(tally.take(refused("full"), at(0)).is_some());
        assert!(tally.take(refused("off"), at(0)).is_some());
        let by = Recorded { by: Some(sample::root()), ..refused("full") };
        assert!(tally.take(by, at(0)).is_some(), "another actor");
        for _ in 0..2 {
            let happening = Happening::of(EventKind::NodeLost, "lost");
            assert!(tally.take(Recorded { happening, by: None }, at(0)).is_some());
        }
        for n in 0..2 * MAX_KEYS {
            assert!(tally.take(refused(&n.to_string()), at(0)).is_some());
        }
        assert!(tally.counted.len() <= MAX_KEYS);
    }
}
