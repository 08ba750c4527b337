//! Counters, levels and times. All are cheap to clone, and clones count together.

use std::time::Duration;

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::{Labels, Registry};

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// Grows as long as the agent runs.
#[derive(Debug, Clone, Default)]
pub struct Count(Counter);

impl Count {
    pub fn inc(&self) {
        self.0.inc();
    }

    pub fn add(&self, more: u64) {
        self.0.inc_by(more);
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Counts by one label. All of its values are there from the start, as 0, so that the first count is an increase.
#[derive(Debug, Clone)]
pub struct CountBy {
    label: &'static str,
    words: Vec<&'static str>,
    family: Family<Label, Counter>,
}

impl CountBy {
    /// `words`: every value that the label may have.
    pub fn new(label: &'static str, words: impl IntoIterator<Item = &'static str>) -> Self {
        let count = Self { label, words: words.into_iter().collect(), family: Family::default() };
        count.words.iter().for_each(|word| drop(count.of(word)));
        count
    }

    /// The count of one word.
    pub fn of(&self, word: &'static str) -> Count {
        Count(self.family.get_or_create_owned(&[(self.label, word)]))
    }

    pub fn total(&self) -> u64 {
        self.words.iter().map(|word| self.of(word).get()).sum()
    }
}

/// Goes up and down, by one label. All of its values are there from the start.
#[derive(Debug, Clone)]
pub struct LevelBy {
    label: &'static str,
    family: Family<Label, Gauge>,
}

impl LevelBy {
    /// `words`: every value that the label may have.
    pub fn new(label: &'static str, words: impl IntoIterator<Item = &'static str>) -> Self {
        let level = Self { label, family: Family::default() };
        words.into_iter().for_each(|word| drop(level.of(word)));
        level
    }

    pub fn of(&self, word: &'static str) -> Level {
        Level(self.family.get_or_create_owned(&[(self.label, word)]))
    }
}

/// Goes up and down.
#[derive(Debug, Clone)]
pub struct Level(Gauge);

impl Level {
    /// Raises it by one until the answer is dropped.
    pub fn raise(&self) -> Raised {
        self.0.inc();
        Raised(self.0.clone())
    }
}

/// Keeps a [`Level`] up.
#[derive(Debug)]
pub struct Raised(Gauge);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How long something takes, in buckets.
#[derive(Debug, Clone)]
pub struct Times(Histogram);

impl Times {
    /// `buckets`: upper bounds in seconds, in rising order.
    pub fn new(buckets: &[f64]) -> Self {
        Self(Histogram::new(buckets.iter().copied()))
    }

    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// How long something takes, by labels. Only labels that were observed are there.
#[derive(Debug, Clone)]
pub struct TimesBy(Family<Labels, Histogram, Buckets>);

/// The upper bounds of [`TimesBy`].
#[derive(Debug, Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl TimesBy {
    /// `buckets`: upper bounds in seconds, in rising order.
    pub fn new(buckets: &'static [f64]) -> Self {
        Self(Family::new_with_constructor(Buckets(buckets)))
    }

    pub fn observe(&self, labels: &Labels, took: Duration) {
        self.0.get_or_create(labels).observe(took.as_secs_f64());
    }
}

impl Registry<'_> {
    pub fn count(&mut self, name: &str, help: &str, count: &Count) {
        self.0.register(name, help, count.0.clone());
    }

    pub fn count_by(&mut self, name: &str, help: &str, count: &CountBy) {
        self.0.register(name, help, count.family.clone());
    }

    /// A count that somebody else keeps.
    pub fn counted(&mut self, name: &str, help: &str, value: f64) {
        self.0.register(name, help, ConstCounter::new(value));
    }

    pub fn level_by(&mut self, name: &str, help: &str, level: &LevelBy) {
        self.0.register(name, help, level.family.clone());
    }

    pub fn times(&mut self, name: &str, help: &str, times: &Times) {
        self.0.register(name, help, times.0.clone());
    }

    pub fn times_by(&mut self, name: &str, help: &str, times: &TimesBy) {
        self.0.register(name, help, times.0.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::scrape;
    use crate::metrics::{Source, Sources};

    #[derive(Clone)]
    struct Doors {
        opened: CountBy,
        open: LevelBy,
        took: Times,
    }

    impl Source for Doors {
        fn register(&self, registry: &mut Registry<'_>) {
            registry.count_by("doors_opened", "Doors that were opened", &self.opened);
            registry.level_by("doors_open", "Doors that are open", &self.open);
            registry.times("door_duration_seconds", "How long a door is open", &self.took);
        }
    }

    #[test]
    fn what_was_not_counted_yet_is_zero_and_every_scrape_has_the_counts_so_far() {
        let names = ["front", "back"];
        let doors = Doors {
            opened: CountBy::new("door", names),
            open: LevelBy::new("door", names),
            took: Times::new(&[0.1, 1.0]),
        };
        let mut sources = Sources::default();
        sources.add(doors.clone());
        let before = scrape(&sources);
        assert!(before.contains("doors_opened_total{door=\"back\"} 0\n"), "{before}");
        assert!(before.contains("doors_open{door=\"back\"} 0\n"), "{before}");
        doors.opened.of("back").inc();
        doors.opened.of("back").add(2);
        assert_eq!((doors.opened.of("back").get(), doors.opened.total()), (3, 3));
        doors.took.observe(Duration::from_millis(100));
        doors.took.observe(Duration::from_secs(2));
        let _front = doors.open.of("front").raise();
        drop(doors.open.of("back").raise());
        let text = scrape(&sources);
        for line in [
            "doors_opened_total{door=\"front\"} 0",
            "doors_opened_total{door=\"back\"} 3",
            "doors_open{door=\"front\"} 1",
            "doors_open{door=\"back\"} 0",
            "door_duration_seconds_bucket{le=\"0.1\"} 1",
            "door_duration_seconds_bucket{le=\"1\"} 1",
            "door_duration_seconds_bucket{le=\"+Inf\"} 2",
            "door_duration_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
