//! Whose fault it is that a session does not start. It decides what happens to the session. Pure.

use serde::{Deserialize, Serialize};

use crate::types::{EndReason, Platform};

/// What is at fault when a session does not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The workspace asks for what no host can start, such as a command that its image does not have.
    Workspace,
    /// No registry has the image.
    Image,
    /// The image is for another platform than the host.
    Platform {
        /// What the image needs.
        image: Platform,
    },
    /// The registry does not give the image.
    Registry,
    /// The registry limits pulls, on every host.
    RegistryLimited,
    /// The host cannot make the session's network.
    Network,
    /// Anything else on the host.
    Host,
}

impl Fault {
    pub const fn end_reason(&self) -> EndReason {
        match self {
            Self::Image | Self::Platform { .. } | Self::Registry | Self::RegistryLimited => EndReason::ImageFailed,
            Self::Workspace | Self::Network | Self::Host => EndReason::StartFailed,
        }
    }

    /// Whether another host may be able to start the session. One that would pull its image from a registry that limits
    /// pulls would only make that worse.
    pub const fn is_local(&self) -> bool {
        !matches!(self, Self::Workspace | Self::RegistryLimited)
    }

    /// Whether the session can be started as soon as the fault is mended or over.
    pub const fn is_for_now(&self) -> bool {
        !matches!(self, Self::Workspace)
    }

    /// Whether it says something of the host, so that it counts as one of the host's failing starts. A host that no
    /// registry answers counts too: otherwise it would stay empty, and be the first to be offered every session.
    pub const fn is_the_hosts(&self) -> bool {
        matches!(self, Self::Registry | Self::Network | Self::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_workspace_that_no_host_can_start_stays_where_it_is() {
        let platform = Fault::Platform { image: Platform::new("linux", "arm64") };
        for fault in [Fault::Image, platform.clone(), Fault::Registry, Fault::Network, Fault::Host] {
            assert!(fault.is_local());
        }
        for fault in [Fault::Workspace, Fault::RegistryLimited] {
            assert!(!fault.is_local());
        }
        assert!(Fault::RegistryLimited.is_for_now() && !Fault::Workspace.is_for_now());
        for fault in [Fault::Workspace, Fault::Image, platform, Fault::RegistryLimited] {
            assert!(!fault.is_the_hosts(), "{fault:?} says nothing of the host");
        }
    }
}
