//! The sizes of the demo's nodes and workspaces, chosen so that every step works on this host. Pure.

use serde::{Deserialize, Serialize};

use super::plan::NODES;
use crate::types::{Bytes, Cores};

/// The number of sessions that fill a node.
pub(super) const FULL: u64 = 2;
/// Millicores; the smallest share of a core that can be limited.
const CORES_STEP: u64 = 10;
/// Millicores; tenths of a core are easier to read, and are used if a share is that large.
const CORES_TENTH: u64 = 100;
/// Upper bounds of a page's reservation. A page needs little, on a large host too.
const MOST_CORES: Cores = Cores::whole(1);
const MOST_MEMORY: Bytes = Bytes::mib(256);
/// Lower bound of a page's reservation. Less is too little for any program.
const LEAST_MEMORY: Bytes = Bytes::mib(8);
/// A page reserves an eighth of a node's memory, so that no step fails for lack of memory.
const MEMORY_SHARE: u64 = 8;

/// Made-up figures for the demo's nodes: the nodes share one host, and each would count all of it.
/// Together they claim no more than the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sizes {
    /// The physical resources that each node reports.
    pub(super) node_cores: Cores,
    pub(super) node_memory: Bytes,
    /// The reservation of a page: [`FULL`] of them fit on a node, and no more.
    pub(super) page_cores: Cores,
    pub(super) page_memory: Bytes,
    /// The override that the demo sets: twice what a node has.
    pub(super) offered_cores: Cores,
    /// The request of the workspace `giant`: more than a node has, and less than `offered_cores`.
    pub(super) giant_cores: Cores,
}

impl Sizes {
    /// Figures for nodes on a host that has this much.
    pub(super) fn of(cores: Cores, memory: Bytes) -> Self {
        let share = cores.milli() / (NODES * FULL);
        let step = if share < CORES_TENTH { CORES_STEP } else { CORES_TENTH };
        let page = Cores::from_milli((share / step * step).clamp(CORES_STEP, MOST_CORES.milli()));
        let node = Cores::from_milli(page.milli() * FULL);
        let share = memory.get() / (NODES * MEMORY_SHARE);
        // A power of two is easy to read.
        let power = share.checked_ilog2().map_or(0, |log| 1 << log);
        let page_memory = Bytes::new(power.clamp(LEAST_MEMORY.get(), MOST_MEMORY.get()));
        Self {
            node_cores: node,
            node_memory: Bytes::new(page_memory.get() * MEMORY_SHARE),
            page_cores: page,
            page_memory,
            offered_cores: node + node,
            giant_cores: node + page,
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
        assert_eq!((sizes.node_cores, sizes.page_cores), (Cores::from_milli(600), Cores::from_milli(300)));
        assert_eq!((sizes.node_memory, sizes.page_memory), (Bytes::gib(1), Bytes::mib(128)));
        let sizes = Sizes::of(Cores::whole(64), Bytes::gib(512));
        assert_eq!((sizes.node_cores, sizes.page_cores), (Cores::whole(2), Cores::whole(1)));
        assert_eq!((sizes.node_memory, sizes.page_memory), (Bytes::gib(2), Bytes::mib(256)));
        assert_eq!((sizes.offered_cores, sizes.giant_cores), (Cores::whole(4), Cores::whole(3)));
    }

    #[test]
    fn a_host_with_unknown_resources_gets_figures_too() {
        let sizes = Sizes::of(Cores::ZERO, Bytes::ZERO);
        assert!(sizes.page_cores > Cores::ZERO && sizes.page_memory == LEAST_MEMORY);
    }

    proptest! {
        #[test]
        fn every_step_works_on_any_host(milli in 100..=1_000_000_u64, mib in 256..=4_000_000_u64) {
            let (cores, memory) = (Cores::from_milli(milli), Bytes::mib(mib));
            let sizes = Sizes::of(cores, memory);
            let (page, node) = (sizes.page_cores.milli(), sizes.node_cores.milli());
            prop_assert!(FULL * page <= node && (FULL + 1) * page > node, "exactly FULL pages fit on a node");
            prop_assert!((FULL + 1) * page <= sizes.offered_cores.milli(), "one more fits with the override");
            prop_assert!((FULL + 2) * sizes.page_memory.get() <= sizes.node_memory.get(), "memory suffices");
            prop_assert!(sizes.giant_cores > sizes.node_cores && sizes.giant_cores <= sizes.offered_cores);
            prop_assert!(NODES * node <= milli, "the nodes have no more than the host");
            prop_assert!(NODES * sizes.node_memory.get() <= memory.get());
        }
    }
}
