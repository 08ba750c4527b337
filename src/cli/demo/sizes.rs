//! How large the demo's workspaces are, so that its story holds on this host. Pure.

use crate::types::{Bytes, Cores};

/// So many sessions fill the node.
pub(super) const FULL: u64 = 4;
/// The finest share of a core that can be limited.
const CORES_STEP: u64 = 10;
/// A page needs little. On a large host it does not pretend to need more.
const MOST_MEMORY: Bytes = Bytes::gib(1);
/// What is left of memory for what the story does not fill: a page takes an eighth at most.
const MEMORY_SHARE: u64 = 8;

/// Figures for a host, from what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// What a page reserves: [`FULL`] of them fit, and no more.
    pub(super) page_cores: Cores,
    pub(super) page_memory: Bytes,
    /// Twice what there is.
    pub(super) offered_cores: Cores,
    /// More than there is, and less than is offered then.
    pub(super) giant_cores: Cores,
}

impl Sizes {
    pub(super) fn of(cores: Cores, memory: Bytes) -> Self {
        let share = memory.get() / MEMORY_SHARE;
        let half = cores.milli() / 2 / CORES_STEP * CORES_STEP;
        let page = cores.milli() / FULL / CORES_STEP * CORES_STEP;
        Self {
            page_cores: Cores::from_milli(page.max(CORES_STEP)),
            page_memory: Bytes::mib(share.min(MOST_MEMORY.get()) >> 20),
            offered_cores: cores + cores,
            giant_cores: cores + Cores::from_milli(half.max(CORES_STEP)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_hosts_get_ordinary_figures() {
        let sizes = Sizes::of(Cores::whole(2), Bytes::gib(4));
        assert_eq!((sizes.page_cores, sizes.page_memory), (Cores::from_milli(500), Bytes::mib(512)));
        assert_eq!(Sizes::of(Cores::whole(64), Bytes::gib(512)).page_memory, Bytes::gib(1));
        assert_eq!(Sizes::of(Cores::whole(6), Bytes::gib(8)).page_cores, Cores::from_milli(1500));
        assert_eq!(Sizes::of(Cores::whole(6), Bytes::gib(8)).giant_cores, Cores::whole(9));
    }

    proptest! {
        #[test]
        fn the_story_holds_on_any_host(milli in 100..=1_000_000_u64, mib in 64..=4_000_000_u64) {
            let (cores, memory) = (Cores::from_milli(milli), Bytes::mib(mib));
            let sizes = Sizes::of(cores, memory);
            let page = sizes.page_cores.milli();
            prop_assert!(FULL * page <= milli && (FULL + 1) * page > milli, "exactly four fit");
            prop_assert!((FULL + 1) * page <= sizes.offered_cores.milli(), "the fifth does once more is offered");
            prop_assert!((FULL + 1) * sizes.page_memory.get() <= memory.get(), "memory is not in its way");
            prop_assert!(sizes.page_memory >= Bytes::mib(6));
            prop_assert!(sizes.giant_cores > cores && sizes.giant_cores <= sizes.offered_cores);
        }
    }
}
