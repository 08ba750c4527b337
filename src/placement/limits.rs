//! The registries that limit pulls, as hosts told the leader: a host asks before it pulls, so that not every host has to
//! find out by itself. Pure.
//!
//! Only memory: a new leader hears of a limit when the next host meets it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::BootInstant;

/// Registries at most. Of more, the one whose limit ends first is forgotten.
const MAX_REGISTRIES: usize = 256;
/// Characters of the longest name: a host name and a port.
const MAX_NAME: usize = 300;
/// A host leaves a registry alone for half an hour at most, and a quarter more.
const MAX_PAUSE: Duration = Duration::from_secs(40 * 60);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    until: BTreeMap<String, BootInstant>,
}

impl Limits {
    /// A host leaves this registry alone for so long. What another host told holds on.
    pub fn tell(&mut self, registry: &str, pause: Duration, now: BootInstant) {
        self.until.retain(|_, until| now < *until);
        if registry.len() > MAX_NAME {
            return;
        }
        let until = now.plus(pause.min(MAX_PAUSE));
        let known = self.until.entry(registry.to_owned()).or_insert(until);
        *known = until.max(*known);
        if self.until.len() > MAX_REGISTRIES {
            let first = self.until.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone());
            first.map(|name| self.until.remove(&name));
        }
    }

    /// How long the registry is still to be left alone; `None`: no host told of a limit, or it is over.
    pub fn ask(&self, registry: &str, now: BootInstant) -> Option<Duration> {
        self.until.get(registry).map(|until| until.since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> BootInstant {
        BootInstant::from_millis(seconds * 1000)
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_limit_holds_for_as_long_as_the_longest_that_a_host_told() {
        let mut limits = Limits::default();
        limits.tell("r", seconds(60), at(0));
        limits.tell("r", seconds(10), at(5));
        assert_eq!((limits.ask("r", at(50)), limits.ask("s", at(50))), (Some(seconds(10)), None));
        assert_eq!(limits.ask("r", at(60)), None);
        limits.tell("r", seconds(1_000_000), at(60));
        assert_eq!(limits.ask("r", at(60)), Some(MAX_PAUSE), "a host cannot hold the others for ever");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut limits = Limits::default();
        for n in 0..2 * u64::try_from(MAX_REGISTRIES).unwrap() {
            limits.tell(&format!("r{n}"), seconds(60 + n), at(0));
        }
        assert_eq!((limits.until.len(), limits.ask("r0", at(0))), (MAX_REGISTRIES, None));
        assert!(limits.ask(&format!("r{}", 2 * MAX_REGISTRIES - 1), at(0)).is_some());
        limits.tell(&"x".repeat(MAX_NAME + 1), seconds(60), at(0));
        assert_eq!(limits.ask(&"x".repeat(MAX_NAME + 1), at(0)), None);
        limits.tell("r", seconds(1), at(10_000));
        assert_eq!(limits.until.len(), 1, "those that are over are gone");
    }
}
