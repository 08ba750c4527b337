//! The progress of a pull, from the engine's messages. Pure.

use std::collections::HashMap;

use serde::Deserialize;

use crate::runtime::images::{Patience, PullProgress};
use crate::types::Bytes;

/// Layers of one image that are counted. Engines allow at most 127.
const MAX_LAYERS: usize = 512;
/// Characters of a layer's status that are compared. Those of engines are shorter.
const MAX_STATUS: usize = 64;
const DOWNLOADING: &str = "Downloading";
const EXTRACTING: &str = "Extracting";

/// One message of a pull.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Message {
    /// Of a layer; the tag in the first message.
    id: Option<String>,
    pub(super) status: Option<String>,
    progress_detail: Option<Detail>,
    error: Option<String>,
    error_detail: Option<ErrorDetail>,
}

#[derive(Debug, Default, Deserialize)]
struct Detail {
    current: Option<i64>,
    total: Option<i64>,
    /// `s`: seconds, as stores of containerd count the time of unpacking. Otherwise bytes.
    units: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ErrorDetail {
    code: Option<i64>,
    message: Option<String>,
}

impl Message {
    /// The engine's error, with its status if it tells one.
    pub(super) fn error(&mut self) -> Option<(Option<u16>, String)> {
        let detail = self.error_detail.take();
        let code = detail.as_ref().and_then(|detail| u16::try_from(detail.code?).ok()).filter(|code| *code != 0);
        let message = detail.and_then(|detail| detail.message).or_else(|| self.error.take())?;
        Some((code, message))
    }
}

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
    status: String,
    /// The bytes of its last message.
    current: Option<i64>,
}

impl Layers {
    /// Applies one message of the engine. Returns whether it tells anything new: an engine may repeat what it told.
    pub(super) fn apply(&mut self, message: &Message) -> bool {
        let Some(status) = message.status.as_deref() else { return false };
        let Some(id) = &message.id else { return true };
        // The first message of a pull has the tag in place of a layer's id.
        if status.starts_with("Pulling from") {
            return true;
        }
        if !self.layers.contains_key(id) && self.layers.len() >= MAX_LAYERS {
            return false;
        }
        let layer = self.layers.entry(id.clone()).or_default();
        layer.count(status, message.progress_detail.as_ref());
        layer.changes_to(status, message.progress_detail.as_ref())
    }

    /// How long nothing new may come.
    pub(super) fn patience(&self, patience: &Patience) -> std::time::Duration {
        let unpacks = self.layers.values().any(|layer| layer.status == EXTRACTING);
        if unpacks { patience.unpacking.max(patience.fetching) } else { patience.fetching }
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

impl Layer {
    fn count(&mut self, status: &str, detail: Option<&Detail>) {
        let figure = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        match status {
            DOWNLOADING => {
                self.fetched = figure(detail.and_then(|d| d.current)).unwrap_or(self.fetched);
                self.size = figure(detail.and_then(|d| d.total)).unwrap_or(self.size).max(self.fetched);
            }
            "Verifying Checksum" | "Download complete" | EXTRACTING => self.fetched = self.size,
            "Pull complete" | "Already exists" => {
                self.fetched = self.size;
                self.ready = true;
            }
            _ => {}
        }
    }

    /// Seconds that pass are no progress.
    fn changes_to(&mut self, status: &str, detail: Option<&Detail>) -> bool {
        let current = detail.filter(|detail| detail.units.as_deref() != Some("s")).and_then(|detail| detail.current);
        let status: String = status.chars().take(MAX_STATUS).collect();
        let is_news = self.status != status || self.current != current;
        (self.status, self.current) = (status, current);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(id: &str, status: &str, figures: Option<(i64, i64)>) -> Message {
        Message {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: figures.map(|(current, total)| Detail {
                current: Some(current),
                total: Some(total),
                units: None,
            }),
            ..Message::default()
        }
    }

    fn read(line: &str) -> Message {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn what_is_repeated_is_no_progress() {
        let mut layers = Layers::default();
        assert!(layers.apply(&read(r#"{"status":"Pulling from x","id":"1"}"#)));
        let mut apply = |status: &str, figures| layers.apply(&message("a", status, figures));
        assert!(apply("Downloading", Some((1, 9))));
        assert!(!apply("Downloading", Some((1, 9))), "no byte came");
        assert!(apply("Downloading", Some((2, 9))));
        assert!(apply("Retrying in 5 seconds", None) && apply("Retrying in 4 seconds", None));
        assert!(layers.apply(&read(r#"{"status":"Extracting","id":"a","progressDetail":{"current":1,"units":"s"}}"#)));
        let later = r#"{"status":"Extracting","id":"a","progressDetail":{"current":2,"units":"s"},"progress":"2 s"}"#;
        assert!(!layers.apply(&read(later)), "only time has passed");
        assert!(layers.apply(&read(r#"{"status":"Digest: sha256:1"}"#)));
    }

    #[test]
    fn a_layer_that_is_unpacked_gets_more_time() {
        let patience = Patience { fetching: Duration::from_secs(1), unpacking: Duration::from_secs(9) };
        let mut layers = Layers::default();
        layers.apply(&message("a", "Downloading", Some((1, 9))));
        assert_eq!(layers.patience(&patience), patience.fetching);
        layers.apply(&message("a", "Extracting", Some((1, 9))));
        assert_eq!(layers.patience(&patience), patience.unpacking);
        layers.apply(&message("a", "Pull complete", None));
        assert_eq!(layers.patience(&patience), patience.fetching);
    }

    #[test]
    fn an_error_comes_with_its_status_or_without() {
        for (line, error) in [
            (r#"{"errorDetail":{"message":"a"},"error":"b"}"#, Some((None, "a"))),
            (r#"{"errorDetail":{"code":429,"message":"a"},"error":"a"}"#, Some((Some(429), "a"))),
            (r#"{"errorDetail":{"code":0,"message":"a"}}"#, Some((None, "a"))),
            (r#"{"error":"b"}"#, Some((None, "b"))),
            (r#"{"status":"Waiting","id":"a","progressDetail":{}}"#, None),
        ] {
            let error = error.map(|(code, message)| (code, message.to_owned()));
            assert_eq!(read(line).error(), error, "{line}");
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
