//! What keeps sessions from starting on this host, besides their own workspaces. Pure.

use std::time::Duration;

use crate::runtime::Fault;
use crate::types::BootInstant;

/// How long a trouble is shown after it was last met, if no start since has shown that it is over.
const SHOWN_FOR: Duration = Duration::from_secs(600);

/// The last failures that are not the fault of a workspace, in the engine's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Sessions have no network. It is over once a container is created.
    pub network: Option<Trouble>,
    /// A registry does not give images. It is over once an image is pulled.
    pub registry: Option<Trouble>,
    /// Starts in a row that failed by the fault of this host.
    pub failing_starts: u32,
    /// When the last of them failed.
    failed_at: BootInstant,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub message: String,
    pub at: BootInstant,
}

impl Troubles {
    pub(super) fn note(&mut self, fault: &Fault, message: &str, at: BootInstant) {
        let trouble = || Some(Trouble { message: message.to_owned(), at });
        match fault {
            Fault::Network => self.network = trouble(),
            Fault::Registry => self.registry = trouble(),
            // `registry_limited` is shown by the owner of the images, which knows when it ends.
            Fault::RegistryLimited => {}
            Fault::Workspace | Fault::Image | Fault::Platform { .. } | Fault::Host => {}
        }
        if fault.is_the_hosts() {
            (self.failing_starts, self.failed_at) = (self.failing_starts.saturating_add(1), at);
        }
    }

    /// Forgets what was not met for long. Returns true if there was any.
    pub(super) fn expire(&mut self, now: BootInstant) -> bool {
        let is_over = |trouble: &mut Trouble| now.since(trouble.at) >= SHOWN_FOR;
        let over = [&mut self.network, &mut self.registry].map(|trouble| trouble.take_if(is_over).is_some());
        // Leaders offer sessions to this host last, so there may be no start to show that it is mended.
        let mended = self.failing_starts > 0 && now.since(self.failed_at) >= SHOWN_FOR;
        if mended {
            self.failing_starts = 0;
        }
        mended || over.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_shown_until_it_was_not_met_for_ten_minutes() {
        let (mut troubles, at) = (Troubles::default(), BootInstant::from_millis);
        troubles.note(&Fault::Host, "disk", at(0));
        let counted = Troubles { failing_starts: 1, ..Troubles::default() };
        assert_eq!(troubles, counted, "a host's own fault counts as a failing start");
        troubles.note(&Fault::Network, "full", at(0));
        troubles.note(&Fault::Registry, "429", at(1000));
        assert!(!troubles.expire(at(599_999)));
        assert!(troubles.expire(at(600_000)));
        assert_eq!((troubles.network.is_some(), troubles.registry.is_some()), (false, true));
        troubles.note(&Fault::Registry, "again", at(600_500));
        assert!(!troubles.expire(at(601_000)));
    }
}
