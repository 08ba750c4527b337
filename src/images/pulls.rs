//! Which pull is next, and how long pulls from a registry wait. Pure.
//!
//! A registry that limits pulls (429) is left alone for a while, which doubles each time: each pull asks the other nodes
//! once, and waits. Then one pull tries the registry. A registry that fails is left alone for a shorter while by pulls that nobody waits for. A session's pull
//! asks it at once, since the session may start on another host.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{BootInstant, ImageReference};

/// Registries that are left alone at the same time. Of more, those that are due first are forgotten.
const MAX_REGISTRIES: usize = 256;
/// The pauses after a limit. Docker Hub counts over six hours, and no engine tells when a registry wants to be asked
/// again.
const LIMITED: Pauses = Pauses { first: Duration::from_secs(60), longest: Duration::from_secs(30 * 60) };
/// The pauses after another failure, which may be over in seconds.
const FAILING: Pauses = Pauses { first: Duration::from_secs(5), longest: Duration::from_secs(5 * 60) };
/// Up to this part of a pause is added to it, so that hosts do not all come back at once: a quarter.
const JITTER: u32 = 4;

struct Pauses {
    first: Duration,
    longest: Duration,
}

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

/// Who is asked for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Its registry, and the other nodes as the configuration says.
    Registry,
    /// Only the other nodes: its registry limits pulls.
    Peers,
}

/// Why a registry is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It limits pulls.
    Limits,
    /// It cannot be reached, or fails.
    Fails,
}

/// A registry that is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alone {
    trouble: Trouble,
    until: BootInstant,
    /// Without the jitter.
    pause: Duration,
}

/// A pull that waits or runs.
#[derive(Debug, Clone, Copy)]
struct Entry {
    urgency: Urgency,
    /// The order in which the pulls came.
    came: u64,
    /// The other nodes were asked in vain since the registry was last asked.
    asked_peers: bool,
}

/// The pulls of this host, one for each reference.
#[derive(Debug, Default)]
pub struct Pulls {
    waiting: BTreeMap<ImageReference, Entry>,
    running: BTreeMap<ImageReference, (Entry, Via)>,
    came: u64,
    alone: BTreeMap<String, Alone>,
}

impl Pulls {
    /// Asks for a pull, unless there is one already. Returns whether there was none.
    pub fn ask(&mut self, image: &ImageReference, urgency: Urgency) -> bool {
        let running = self.running.get_mut(image).map(|(entry, _)| entry);
        if let Some(known) = self.waiting.get_mut(image).or(running) {
            known.urgency = urgency.max(known.urgency);
            return false;
        }
        self.came += 1;
        self.waiting.insert(image.clone(), Entry { urgency, came: self.came, asked_peers: false });
        true
    }

    /// The next pull to start while fewer than `most` run. It counts as running from then on. `may_copy`: whether the
    /// image may come from another node.
    pub fn next(
        &mut self,
        most: usize,
        now: BootInstant,
        may_copy: impl Fn(&ImageReference) -> bool,
    ) -> Option<(ImageReference, Via)> {
        if self.running.len() >= most {
            return None;
        }
        let via = |(image, entry)| Some((image, entry, self.via(image, entry, now, &may_copy)?));
        let ready = self.waiting.iter().filter_map(via);
        let first = ready.max_by_key(|(_, entry, _)| (entry.urgency, std::cmp::Reverse(entry.came)));
        let (image, via) = first.map(|(image, _, via)| (image.clone(), via))?;
        let entry = self.waiting.remove(&image)?;
        let entry = if via == Via::Registry { Entry { asked_peers: false, ..entry } } else { entry };
        self.running.insert(image.clone(), (entry, via));
        Some((image, via))
    }

    /// Who may be asked for the image now; `None`: nobody.
    fn via(
        &self,
        image: &ImageReference,
        entry: &Entry,
        now: BootInstant,
        may_copy: impl Fn(&ImageReference) -> bool,
    ) -> Option<Via> {
        let Some(alone) = self.alone.get(image.registry()) else { return Some(Via::Registry) };
        match alone.trouble {
            // Only one finds out whether the limit is over.
            Trouble::Limits if now >= alone.until && !self.asks(image.registry()) => Some(Via::Registry),
            Trouble::Limits => (!entry.asked_peers && may_copy(image)).then_some(Via::Peers),
            Trouble::Fails => (now >= alone.until || entry.urgency == Urgency::Demand).then_some(Via::Registry),
        }
    }

    /// Whether a pull asks this registry now.
    fn asks(&self, registry: &str) -> bool {
        self.running.iter().any(|(image, (_, via))| *via == Via::Registry && image.registry() == registry)
    }

    pub fn ended(&mut self, image: &ImageReference) {
        self.running.remove(image);
    }

    /// A pull that ran waits again, where it waited before.
    pub fn again(&mut self, image: &ImageReference) {
        if let Some((entry, _)) = self.running.remove(image) {
            self.waiting.insert(image.clone(), entry);
        }
    }

    /// A pull that ran waits again until its registry may be asked: no other node gave the image.
    pub fn wait(&mut self, image: &ImageReference) {
        if let Some((entry, _)) = self.running.remove(image) {
            self.waiting.insert(image.clone(), Entry { asked_peers: true, ..entry });
        }
    }

    /// How soon a pull that waits or runs is needed.
    pub fn urgency(&self, image: &ImageReference) -> Option<Urgency> {
        let running = self.running.get(image).map(|(entry, _)| entry);
        self.waiting.get(image).or(running).map(|entry| entry.urgency)
    }

    /// The registry is in trouble: it is left alone. Returns for how long. `random` is any number, for the jitter.
    pub fn failed(&mut self, registry: &str, trouble: Trouble, now: BootInstant, random: u32) -> Duration {
        let pauses = trouble.pauses();
        let pause = match self.alone.get(registry) {
            // Pulls that were under way together fail together.
            Some(known) if known.trouble == trouble && now < known.until => return known.until.since(now),
            // A limit says more than a failure.
            Some(known) if known.trouble == Trouble::Limits && now < known.until => return known.until.since(now),
            Some(known) if known.trouble == trouble && !known.is_forgotten(now) => {
                (known.pause * 2).min(pauses.longest)
            }
            _ => pauses.first,
        };
        let jitter = (pause / JITTER).mul_f64(f64::from(random) / f64::from(u32::MAX));
        let until = now.plus(pause + jitter);
        self.leave_alone(registry, Alone { trouble, until, pause }, now);
        until.since(now)
    }

    /// Another host was told that the registry limits pulls for this long.
    pub fn hold(&mut self, registry: &str, pause: Duration, now: BootInstant) {
        let known = self.alone.get(registry).filter(|known| known.trouble == Trouble::Limits);
        let until = now.plus(pause.min(LIMITED.longest * 2)).max(known.map_or(now, |known| known.until));
        let pause = known.filter(|known| !known.is_forgotten(now)).map_or(LIMITED.first, |known| known.pause);
        self.leave_alone(registry, Alone { trouble: Trouble::Limits, until, pause }, now);
    }

    fn leave_alone(&mut self, registry: &str, alone: Alone, now: BootInstant) {
        self.alone.retain(|_, known| !known.is_forgotten(now));
        if self.alone.len() >= MAX_REGISTRIES && !self.alone.contains_key(registry) {
            let first = self.alone.iter().min_by_key(|(_, known)| known.until).map(|(name, _)| name.clone());
            first.map(|name| self.alone.remove(&name));
        }
        self.alone.insert(registry.to_owned(), alone);
    }

    /// The registry gave an image.
    pub fn worked(&mut self, registry: &str) {
        self.alone.remove(registry);
    }

    /// Until when everything from this registry waits, because it limits pulls.
    pub fn limited_until(&self, registry: &str) -> Option<BootInstant> {
        let alone = self.alone.get(registry).filter(|alone| alone.trouble == Trouble::Limits);
        alone.map(|alone| alone.until)
    }

    /// The registries that limit pulls, and until when. It holds beyond that while a pull finds out whether the limit is
    /// over.
    pub fn limited(&self, now: BootInstant) -> impl Iterator<Item = (&str, BootInstant)> {
        let limits = self.alone.iter().filter(|(_, alone)| alone.trouble == Trouble::Limits);
        let hold = limits.filter(move |(registry, alone)| {
            now < alone.until || self.all().any(|image| image.registry() == registry.as_str())
        });
        hold.map(|(registry, alone)| (registry.as_str(), alone.until))
    }

    /// When a registry is no longer left alone, if one is.
    pub fn due(&self, now: BootInstant) -> Option<BootInstant> {
        self.alone.values().map(|alone| alone.until).filter(|until| now < *until).min()
    }

    /// Those that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &ImageReference> {
        self.waiting.keys()
    }

    /// Those that wait or run.
    pub fn all(&self) -> impl Iterator<Item = &ImageReference> {
        self.waiting.keys().chain(self.running.keys())
    }
}

impl Trouble {
    const fn pauses(self) -> Pauses {
        match self {
            Self::Limits => LIMITED,
            Self::Fails => FAILING,
        }
    }
}

impl Alone {
    /// Whether its last pause is over for so long that the next one is a first one.
    fn is_forgotten(&self, now: BootInstant) -> bool {
        now.since(self.until) > self.trouble.pauses().longest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    const fn at(seconds: u64) -> BootInstant {
        BootInstant::from_millis(seconds * 1000)
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The next pull of a node that has no others.
    fn next(pulls: &mut Pulls, most: usize, now: BootInstant) -> Option<ImageReference> {
        pulls.next(most, now, |_| false).map(|(image, _)| image)
    }

    #[test]
    fn a_reference_is_pulled_once_however_many_ask() {
        let mut pulls = Pulls::default();
        assert!(pulls.ask(&image("x"), Urgency::Refresh));
        assert!(!pulls.ask(&image("x:latest"), Urgency::Demand), "it waits");
        assert_eq!(next(&mut pulls, 2, at(0)), Some(image("x")));
        assert!(!pulls.ask(&image("x"), Urgency::Demand), "it runs");
        assert_eq!(next(&mut pulls, 2, at(0)), None);
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
        let order: Vec<_> = std::iter::from_fn(|| next(&mut pulls, 9, at(0))).collect();
        assert_eq!(order, ["a", "c", "d", "b"].map(image));
        for text in ["d", "c"] {
            pulls.again(&image(text));
        }
        assert_eq!(next(&mut pulls, 9, at(0)), Some(image("c")), "it keeps its place");
    }

    #[test]
    fn no_more_than_the_limit_run_at_once() {
        let mut pulls = Pulls::default();
        for text in ["a", "b", "c"] {
            pulls.ask(&image(text), Urgency::Demand);
        }
        let mut started = || next(&mut pulls, 2, at(0));
        assert_eq!((started(), started(), started()), (Some(image("a")), Some(image("b")), None));
        assert_eq!(pulls.all().count(), 3);
        pulls.ended(&image("a"));
        assert_eq!(next(&mut pulls, 2, at(0)), Some(image("c")));
    }

    #[test]
    fn everything_from_a_registry_that_limits_pulls_waits_and_then_one_tries() {
        let mut pulls = Pulls::default();
        for text in ["a", "b", "r.example/x"] {
            pulls.ask(&image(text), Urgency::Demand);
        }
        assert_eq!(next(&mut pulls, 9, at(0)), Some(image("a")));
        assert_eq!(pulls.failed("docker.io", Trouble::Limits, at(0), 0), seconds(60));
        pulls.again(&image("a"));
        assert_eq!(next(&mut pulls, 9, at(0)), Some(image("r.example/x")), "another registry");
        assert_eq!((next(&mut pulls, 9, at(59)), pulls.due(at(0)), pulls.due(at(60))), (None, Some(at(60)), None));
        assert_eq!(pulls.limited(at(59)).collect::<Vec<_>>(), [("docker.io", at(60))]);
        assert_eq!(
            (next(&mut pulls, 9, at(60)), next(&mut pulls, 9, at(60))),
            (Some(image("a")), None),
            "one finds out"
        );
        assert_eq!(pulls.limited(at(70)).count(), 1, "it is not known to be over");
        pulls.worked("docker.io");
        pulls.ended(&image("a"));
        assert_eq!((next(&mut pulls, 9, at(61)), pulls.limited(at(61)).count()), (Some(image("b")), 0));
    }

    #[test]
    fn while_a_registry_limits_pulls_the_other_nodes_are_asked_once() {
        let mut pulls = Pulls::default();
        for text in ["a", "b", "c"] {
            pulls.ask(&image(text), Urgency::Demand);
        }
        pulls.hold("docker.io", seconds(60), at(0));
        let may_copy = |wanted: &ImageReference| *wanted != image("b");
        let started = |pulls: &mut Pulls, now| pulls.next(9, at(now), may_copy);
        assert_eq!(started(&mut pulls, 0), Some((image("a"), Via::Peers)));
        assert_eq!(started(&mut pulls, 0), Some((image("c"), Via::Peers)));
        pulls.again(&image("a"));
        assert_eq!(started(&mut pulls, 1), Some((image("a"), Via::Peers)), "the disk was full");
        pulls.wait(&image("a"));
        assert_eq!(started(&mut pulls, 59), None, "no other node has it");
        // What comes from other nodes does not ask the registry.
        assert_eq!(started(&mut pulls, 60), Some((image("a"), Via::Registry)));
        assert_eq!(started(&mut pulls, 60), None);
        pulls.failed("docker.io", Trouble::Limits, at(60), 0);
        pulls.wait(&image("a"));
        assert_eq!(started(&mut pulls, 61), None, "the other nodes were asked when the registry had refused");
        assert_eq!(started(&mut pulls, 180), Some((image("a"), Via::Registry)));
    }

    #[test]
    fn the_pauses_double_up_to_the_longest_and_begin_anew_after_a_while() {
        let mut pulls = Pulls::default();
        let mut now = 0;
        for (trouble, expected) in [
            (Trouble::Limits, vec![60, 120, 240, 480, 960, 1800, 1800]),
            (Trouble::Fails, vec![5, 10, 20, 40, 80, 160, 300, 300]),
        ] {
            for pause in expected {
                assert_eq!(pulls.failed("r", trouble, at(now), 0), seconds(pause), "{trouble:?}");
                assert_eq!(pulls.failed("r", trouble, at(now + 1), 0), seconds(pause - 1), "they were under way");
                now += pause;
            }
        }
        assert_eq!(pulls.failed("r", Trouble::Fails, at(now + 301), 0), seconds(5), "it had worked long enough");
        assert_eq!(Pulls::default().failed("r", Trouble::Limits, at(0), u32::MAX), seconds(75), "the most jitter");
    }

    #[test]
    fn only_pulls_that_nobody_waits_for_leave_a_failing_registry_alone() {
        let mut pulls = Pulls::default();
        for (text, urgency) in [("a", Urgency::Ahead), ("b", Urgency::Demand), ("c", Urgency::Refresh)] {
            pulls.ask(&image(text), urgency);
        }
        pulls.failed("docker.io", Trouble::Fails, at(0), 0);
        assert_eq!((next(&mut pulls, 9, at(0)), next(&mut pulls, 9, at(4))), (Some(image("b")), None));
        assert_eq!(pulls.limited(at(0)).count(), 0);
        assert_eq!((next(&mut pulls, 9, at(5)), next(&mut pulls, 9, at(5))), (Some(image("a")), Some(image("c"))));
    }

    #[test]
    fn what_another_host_met_holds_here_too() {
        let mut pulls = Pulls::default();
        pulls.ask(&image("a"), Urgency::Demand);
        pulls.hold("docker.io", seconds(40), at(0));
        pulls.hold("docker.io", seconds(10), at(5));
        assert_eq!((next(&mut pulls, 9, at(39)), pulls.limited_until("docker.io")), (None, Some(at(40))));
        assert_eq!(next(&mut pulls, 9, at(40)), Some(image("a")));
        assert_eq!(pulls.failed("docker.io", Trouble::Limits, at(41), 0), seconds(120), "it is still limited");
        pulls.hold("docker.io", seconds(1_000_000), at(200));
        assert_eq!(pulls.limited_until("docker.io"), Some(at(200 + 3600)), "a host cannot hold others for ever");
    }

    proptest! {
        #[test]
        fn what_waits_runs_at_the_latest_when_every_pause_is_over(
            steps in prop::collection::vec((0_u8..6, 0_usize..6, any::<u32>(), 0_u64..4000), 0..60)
        ) {
            let names = ["a", "b", "r1/x:1", "r.example/y", "r.example/z", "s.example:5000/x"].map(image);
            let mut pulls = Pulls::default();
            let mut now = at(0);
            for (step, which, random, passed) in steps {
                now = now.plus(seconds(passed));
                let (image, registry) = (&names[which], names[which].registry());
                match step {
                    0 => drop(pulls.ask(image, Urgency::Demand)),
                    1 => drop(pulls.ask(image, Urgency::Refresh)),
                    2 => {
                        let pause = pulls.failed(registry, Trouble::Limits, now, random);
                        prop_assert!(pause <= seconds(30 * 60 * 5 / 4) || pulls.limited_until(registry).is_some());
                        pulls.again(image);
                    }
                    3 => drop(pulls.failed(registry, Trouble::Fails, now, random)),
                    4 => pulls.hold(registry, seconds(u64::from(random)), now),
                    _ => drop(next(&mut pulls, 3, now)),
                }
                let limits = |image: &ImageReference| pulls.limited_until(image.registry()).is_some_and(|until| now < until);
                let mut others = Pulls { alone: pulls.alone.clone(), ..Pulls::default() };
                for image in &names {
                    others.ask(image, Urgency::Demand);
                }
                while let Some(started) = next(&mut others, 9, now) {
                    prop_assert!(!limits(&started), "{started} is limited");
                }
            }
            // Nothing waits for ever.
            let mut left: Vec<ImageReference> = pulls.all().cloned().collect();
            while !left.is_empty() {
                now = pulls.due(now).unwrap_or(now);
                let running: Vec<_> = left.iter().filter(|image| !pulls.waiting.contains_key(*image)).cloned().collect();
                running.iter().for_each(|image| pulls.ended(image));
                left.retain(|image| !running.contains(image));
                let _ = next(&mut pulls, 9, now);
            }
        }
    }
}
