//! The events of several nodes as one list or one stream. Pure.
//!
//! The clocks of nodes differ, so the order between nodes is as good as their clocks. Of one node it is exact.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Paged;
use crate::types::{BootInstant, Event, EventPlace};

/// How long an event of a stream waits for earlier ones of other nodes.
const WAIT: Duration = Duration::from_millis(250);

/// The newest events of the pages of several nodes, the newest first, `limit` at most, and whether there are older ones.
pub fn newest(pages: Vec<Paged>, limit: usize) -> (Vec<Event>, bool) {
    // Of a page that ends early, what is older than its end is not known: it may belong between those of other nodes.
    let known = pages.iter().filter(|page| page.more).filter_map(|page| page.events.last().map(Event::place)).max();
    let mut more = known.is_some();
    let mut events: Vec<Event> = pages.into_iter().flat_map(|page| page.events).collect();
    events.retain(|event| known.is_none_or(|known| event.place() >= known));
    events.sort_by_key(|event| std::cmp::Reverse(event.place()));
    more |= events.len() > limit;
    events.truncate(limit);
    (events, more)
}

/// Puts the events of a stream in order, as far as they come in time.
#[derive(Debug, Default)]
pub struct Merger {
    held: BTreeMap<EventPlace, (BootInstant, Event)>,
    /// The latest place that was told.
    told: Option<EventPlace>,
}

impl Merger {
    pub fn push(&mut self, event: Event, now: BootInstant) {
        self.held.entry(event.place()).or_insert((now, event));
    }

    /// The events that have waited long enough, in their order, each marked if it comes too late for that.
    pub fn due(&mut self, now: BootInstant) -> Vec<Event> {
        let is_due = |(_, (since, _)): &(&EventPlace, &(BootInstant, Event))| now.since(*since) >= WAIT;
        let Some(latest) = self.held.iter().filter(is_due).map(|(place, _)| *place).max() else { return Vec::new() };
        // An event that is earlier than one that is due goes before it.
        let mut later = self.held.split_off(&latest);
        let last = later.remove(&latest);
        let due = std::mem::replace(&mut self.held, later).into_values().chain(last);
        due.map(|(_, event)| self.mark(event)).collect::<Vec<_>>()
    }

    fn mark(&mut self, mut event: Event) -> Event {
        let place = event.place();
        event.late = self.told.is_some_and(|told| place < told);
        self.told = self.told.max(Some(place));
        event
    }

    /// How long until an event is due. `None`: none is held.
    pub fn next(&self, now: BootInstant) -> Option<Duration> {
        self.held.values().map(|(since, _)| WAIT.saturating_sub(now.since(*since))).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{EventId, EventKind, NodeId, Timestamp, sample};

    fn event(node: u8, seq: u64, millis: i64) -> Event {
        let id = EventId { node: NodeId::from_bytes([node; 10]), seq };
        Event { id, time: Timestamp::from_millis(millis), ..sample::event(EventKind::SessionStarted, 0) }
    }

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_millis(millis)
    }

    proptest! {
        /// Page after page, every event of every node comes once and in order, whatever the nodes' pages hold.
        #[test]
        fn pages_neither_repeat_nor_skip_an_event(
            times in proptest::collection::vec((0_u8..4, 0_i64..50), 0..60),
            limit in 1_usize..9,
            pages_of in 1_usize..9,
        ) {
            let mut nodes: Vec<Vec<Event>> = vec![Vec::new(); 4];
            for (node, time) in times {
                let events = &mut nodes[usize::from(node)];
                let time = events.last().map_or(time, |last| time.max(last.time.millis()));
                events.push(event(node, events.len() as u64 + 1, time));
            }
            let mut expected: Vec<EventPlace> = nodes.iter().flatten().map(Event::place).collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            let (mut seen, mut before) = (Vec::new(), None);
            loop {
                let page = |events: &Vec<Event>| {
                    let older = events.iter().rev().filter(|event| before.is_none_or(|before| event.place() < before));
                    let older: Vec<Event> = older.cloned().collect();
                    Paged { more: older.len() > pages_of, events: older.into_iter().take(pages_of).collect() }
                };
                let (events, more) = newest(nodes.iter().map(page).collect(), limit);
                prop_assert!(events.len() <= limit && (!more || !events.is_empty()));
                before = events.last().map(Event::place).or(before);
                seen.extend(events.iter().map(Event::place));
                if !more {
                    break;
                }
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_stream_is_in_order_where_events_come_in_time_and_marks_those_that_do_not() {
        let mut merger = Merger::default();
        assert_eq!(merger.next(at(0)), None);
        merger.push(event(1, 1, 20), at(0));
        merger.push(event(2, 1, 10), at(100));
        merger.push(event(2, 2, 30), at(200));
        assert_eq!(merger.next(at(100)), Some(Duration::from_millis(150)));
        assert_eq!(merger.due(at(249)), []);
        let places = |events: Vec<Event>| -> Vec<(i64, bool)> {
            events.iter().map(|event| (event.time.millis(), event.late)).collect()
        };
        assert_eq!(places(merger.due(at(250))), [(10, false), (20, false)], "an earlier one goes along");
        merger.push(event(3, 1, 15), at(300));
        merger.push(event(2, 2, 30), at(300));
        assert_eq!(places(merger.due(at(1000))), [(15, true), (30, false)], "what comes twice is told once");
    }
}
