//! Which pull is next. Pure.

use std::collections::BTreeMap;

use crate::types::ImageReference;

/// How soon a pull is needed. Those of a higher urgency come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// An image that is here may be newer in its registry.
    Refresh,
    /// A session may need it.
    Ahead,
    /// A session or a person waits for it.
    Demand,
}

/// The pulls of this host, one for each reference.
#[derive(Debug, Default)]
pub struct Pulls {
    /// Those that wait, with the order in which they came.
    waiting: BTreeMap<ImageReference, (Urgency, u64)>,
    running: std::collections::BTreeSet<ImageReference>,
    came: u64,
}

impl Pulls {
    /// Asks for a pull, unless there is one already. Returns whether there was none.
    pub fn ask(&mut self, image: &ImageReference, urgency: Urgency) -> bool {
        if self.running.contains(image) {
            return false;
        }
        if let Some((known, _)) = self.waiting.get_mut(image) {
            *known = urgency.max(*known);
            return false;
        }
        self.came += 1;
        self.waiting.insert(image.clone(), (urgency, self.came));
        true
    }

    /// The next pull to start while fewer than `most` run. It counts as running from then on.
    pub fn next(&mut self, most: usize) -> Option<ImageReference> {
        if self.running.len() >= most {
            return None;
        }
        let first = self.waiting.iter().max_by_key(|(_, (urgency, came))| (*urgency, std::cmp::Reverse(*came)));
        let image = first.map(|(image, _)| image.clone())?;
        self.waiting.remove(&image);
        self.running.insert(image.clone());
        Some(image)
    }

    pub fn ended(&mut self, image: &ImageReference) {
        self.running.remove(image);
    }

    /// Those that wait or run.
    pub fn all(&self) -> impl Iterator<Item = &ImageReference> {
        self.waiting.keys().chain(&self.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    #[test]
    fn a_reference_is_pulled_once_however_many_ask() {
        let mut pulls = Pulls::default();
        assert!(pulls.ask(&image("x"), Urgency::Refresh));
        assert!(!pulls.ask(&image("x:latest"), Urgency::Demand), "it waits");
        assert_eq!(pulls.next(2), Some(image("x")));
        assert!(!pulls.ask(&image("x"), Urgency::Demand), "it runs");
        assert_eq!(pulls.next(2), None);
        pulls.ended(&image("x"));
        assert!(pulls.ask(&image("x"), Urgency::Demand));
    }

    #[test]
    fn what_a_session_waits_for_comes_first_and_then_what_came_first() {
        let mut pulls = Pulls::default();
        for (text, urgency) in
            [("a", Urgency::Refresh), ("b", Urgency::Ahead), ("c", Urgency::Demand), ("d", Urgency::Demand)]
        {
            pulls.ask(&image(text), urgency);
        }
        pulls.ask(&image("a"), Urgency::Demand);
        let order: Vec<_> = std::iter::from_fn(|| pulls.next(9)).collect();
        assert_eq!(order, ["a", "c", "d", "b"].map(image));
    }

    #[test]
    fn no_more_than_the_limit_run_at_once() {
        let mut pulls = Pulls::default();
        for text in ["a", "b", "c"] {
            pulls.ask(&image(text), Urgency::Demand);
        }
        assert_eq!((pulls.next(2), pulls.next(2), pulls.next(2)), (Some(image("a")), Some(image("b")), None));
        assert_eq!(pulls.all().count(), 3);
        pulls.ended(&image("a"));
        assert_eq!(pulls.next(2), Some(image("c")));
    }
}
