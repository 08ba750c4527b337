//! Host ports: a session keeps its ports for its whole life, stopped or running.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::SessionId;

/// Host ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub const fn len(&self) -> usize {
        (self.last - self.first) as usize + 1
    }

    pub const fn is_empty(&self) -> bool {
        false
    }

    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Which ports sessions hold.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    held: BTreeSet<u16>,
    by_session: BTreeMap<SessionId, Vec<u16>>,
    /// Where the next search starts. A released port is assigned again only after all others, so that a user's
    /// old address does not soon lead to another user's session.
    next: u16,
}

impl Ports {
    /// Assigns `count` ports to the session, each of them `usable` on the host. If the range has fewer left,
    /// returns `None` and changes nothing.
    pub fn assign(
        &mut self,
        session: &SessionId,
        count: usize,
        range: PortRange,
        usable: impl Fn(u16) -> bool,
    ) -> Option<Vec<u16>> {
        let start = if range.contains(self.next) { self.next } else { range.first };
        let candidates = (start..=range.last).chain(range.first..start);
        let ports: Vec<u16> =
            candidates.filter(|port| !self.held.contains(port) && usable(*port)).take(count).collect();
        if ports.len() < count {
            return None;
        }
        if let Some(last) = ports.last() {
            self.next = last.saturating_add(1);
        }
        self.restore(*session, ports.clone());
        Some(ports)
    }

    /// Enters ports that were assigned before.
    pub fn restore(&mut self, session: SessionId, ports: Vec<u16>) {
        self.held.extend(&ports);
        self.by_session.insert(session, ports);
    }

    pub fn release(&mut self, session: &SessionId) {
        for port in self.by_session.remove(session).unwrap_or_default() {
            self.held.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Name;

    const RANGE: PortRange = PortRange { first: 10, last: 13 };

    fn session(key: &str) -> SessionId {
        SessionId::of_key(&"c".parse::<Name>().unwrap(), key)
    }

    #[test]
    fn a_range_includes_both_ends() {
        assert_eq!((RANGE.len(), RANGE.is_empty()), (4, false));
        assert_eq!([9, 10, 13, 14].map(|port| RANGE.contains(port)), [false, true, true, false]);
    }

    #[test]
    fn ports_are_held_until_released_and_reused_last() {
        let mut ports = Ports::default();
        assert_eq!(ports.assign(&session("a"), 2, RANGE, |_| true), Some(vec![10, 11]));
        assert_eq!(ports.assign(&session("b"), 1, RANGE, |port| port != 12), Some(vec![13]));
        assert_eq!(ports.assign(&session("c"), 2, RANGE, |_| true), None);
        ports.release(&session("a"));
        assert_eq!(ports.assign(&session("c"), 2, RANGE, |_| true), Some(vec![10, 11]));
        assert_eq!(ports.assign(&session("d"), 1, RANGE, |_| true), Some(vec![12]));
        assert_eq!(ports.assign(&session("e"), 0, RANGE, |_| true), Some(vec![]));
    }
}
