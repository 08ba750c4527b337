//! The progress of a pull, from the engine's messages. Pure.

use std::collections::HashMap;

use bollard::models::CreateImageInfo;

use crate::runtime::images::PullProgress;
use crate::types::Bytes;

/// Layers of one image that are counted. Engines allow at most 127.
const MAX_LAYERS: usize = 512;

/// The layers of one pull, as far as the engine has reported them.
#[derive(Debug, Default)]
pub(super) struct Layers {
    layers: HashMap<String, Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    fetched: u64,
    size: u64,
    /// It is downloaded and unpacked.
    ready: bool,
}

impl Layers {
    /// Applies one message of the engine.
    pub(super) fn apply(&mut self, message: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&message.id, message.status.as_deref()) else { return };
        // The first message of a pull has the tag in place of a layer's id.
        if status.starts_with("Pulling from") || (!self.layers.contains_key(id) && self.layers.len() >= MAX_LAYERS) {
            return;
        }
        let layer = self.layers.entry(id.clone()).or_default();
        let detail = message.progress_detail.as_ref();
        let figure = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        match status {
            "Downloading" => {
                layer.fetched = figure(detail.and_then(|d| d.current)).unwrap_or(layer.fetched);
                layer.size = figure(detail.and_then(|d| d.total)).unwrap_or(layer.size).max(layer.fetched);
            }
            "Verifying Checksum" | "Download complete" | "Extracting" => layer.fetched = layer.size,
            "Pull complete" | "Already exists" => {
                layer.fetched = layer.size;
                layer.ready = true;
            }
            _ => {}
        }
    }

    pub(super) fn progress(&self) -> PullProgress {
        let sum = |figure: fn(&Layer) -> u64| self.layers.values().map(figure).fold(0, u64::saturating_add);
        let count = |layers: usize| u32::try_from(layers).unwrap_or(u32::MAX);
        PullProgress {
            fetched: Bytes::new(sum(|layer| layer.fetched)),
            size: Bytes::new(sum(|layer| layer.size)),
            layers_ready: count(self.layers.values().filter(|layer| layer.ready).count()),
            layers: count(self.layers.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn message(id: &str, status: &str, figures: Option<(i64, i64)>) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: figures
                .map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) }),
            error_detail: None,
        }
    }

    #[test]
    fn layers_are_summed_up() {
        const MIB: i64 = 1 << 20;
        let mut layers = Layers::default();
        assert_eq!(layers.progress().to_string(), "pulling");
        layers.apply(&message("latest", "Pulling from library/x", None));
        assert_eq!(layers.progress().to_string(), "pulling");
        layers.apply(&message("a", "Downloading", Some((15 * MIB, 20 * MIB))));
        layers.apply(&message("b", "Downloading", Some((20 * MIB, 100 * MIB))));
        assert_eq!(layers.progress().to_string(), "pulling 35 MiB of 120 MiB");
        layers.apply(&message("a", "Download complete", None));
        assert_eq!(layers.progress().to_string(), "pulling 40 MiB of 120 MiB");
        layers.apply(&message("a", "Extracting", Some((MIB, 20 * MIB))));
        layers.apply(&message("b", "Download complete", None));
        layers.apply(&message("a", "Pull complete", None));
        assert_eq!(layers.progress().to_string(), "unpacking, 1 of 2 layers done");
    }

    #[test]
    fn wrong_figures_neither_panic_nor_use_unbounded_memory() {
        let mut layers = Layers::default();
        for n in 0..2 * MAX_LAYERS {
            layers.apply(&message(&n.to_string(), "Downloading", Some((i64::MAX, -1))));
        }
        assert_eq!(layers.layers.len(), MAX_LAYERS);
        assert!(!layers.progress().to_string().is_empty());
    }
}
