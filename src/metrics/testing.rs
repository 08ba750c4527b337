//! A scrape, for tests.

use super::{Registry, Source};

/// The text of one source, without prefix and node.
pub(crate) fn scrape(source: &dyn Source) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    source.register(&mut Registry(&mut registry));
    let mut text = String::new();
    prometheus_client::encoding::prometheus_text::encode(&mut text, &registry).unwrap();
    text
}
