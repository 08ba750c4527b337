//! What the owner of the election counts.

use super::state::Outcome;
use crate::metrics::{CountBy, Registry, Source};

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    elections: CountBy,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { elections: CountBy::new("outcome", Outcome::ALL.iter().map(|outcome| outcome.as_str())) }
    }
}

impl Metrics {
    pub(super) fn ended(&self, outcome: Outcome) {
        self.elections.of(outcome.as_str()).inc();
    }
}

impl Source for Metrics {
    fn register(&self, registry: &mut Registry<'_>) {
        registry.count_by("elections", "Elections in which this node asked for votes, by outcome", &self.elections);
    }
}
