//! What the parts count and time, for Prometheus.
//!
//! A part keeps what it [counts](counters) in its file `metrics`; its owner counts there, and its handle gives a clone. A
//! [`Source`] registers its counters and figures by name for one [`Scrape`], which writes them as text. No label has a
//! value that grows with sessions, users or images. Only this part uses the library.

mod counters;
mod process;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

pub use counters::{Count, CountBy, Level, LevelBy, Raised, Times, TimesBy};
pub use process::Process;

/// What the names of ostler's own metrics begin with.
const PREFIX: &str = "ostler";

/// The labels of one value, beside the node's name.
pub type Labels = Vec<(&'static str, String)>;

/// A part of what a scrape answers.
pub trait Source: Send + Sync + 'static {
    fn register(&self, registry: &mut Registry<'_>);
}

/// Every source of an agent.
#[derive(Clone, Default)]
pub struct Sources(Vec<Arc<dyn Source>>);

impl Sources {
    pub fn add(&mut self, source: impl Source) {
        self.0.push(Arc::new(source));
    }
}

impl Source for Sources {
    fn register(&self, registry: &mut Registry<'_>) {
        self.0.iter().for_each(|source| source.register(registry));
    }
}

/// The answer to one scrape while it is made.
#[derive(Debug)]
pub struct Scrape(prometheus_client::registry::Registry);

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Scrape {
    /// Every value gets the label `node`.
    pub fn of(node: &str) -> Self {
        let label = ("node".into(), node.to_owned().into());
        Self(prometheus_client::registry::Registry::with_labels([label].into_iter()))
    }

    /// Adds metrics whose names begin with `ostler_`.
    pub fn add(&mut self, source: &dyn Source) {
        source.register(&mut Registry(self.0.sub_registry_with_prefix(PREFIX)));
    }

    /// Adds metrics whose names are those of every program, without a prefix.
    pub fn add_common(&mut self, source: &dyn Source) {
        source.register(&mut Registry(&mut self.0));
    }

    /// # Errors
    /// A value cannot be written as text.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut encoded = String::new();
        match format {
            Format::Prometheus => prometheus_text::encode(&mut encoded, &self.0)?,
            Format::OpenMetrics => text::encode(&mut encoded, &self.0)?,
        }
        Ok(encoded)
    }
}

/// Takes the metrics of a [`Source`]. Names have no prefix, and those of counters no `_total`: the formats add it.
#[derive(Debug)]
pub struct Registry<'a>(&'a mut prometheus_client::registry::Registry);

impl Registry<'_> {
    /// Figures that are read now, by their labels. A metric without values is omitted.
    pub fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return;
        }
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    /// A figure that is read now. An unknown one is omitted: it must not appear as 0.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        self.gauges(name, help, value.into().map(|value| (Labels::new(), value)));
    }
}

#[cfg(test)]
pub(crate) mod testing;
