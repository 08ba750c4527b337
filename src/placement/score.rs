//! Ranks the nodes that could admit a session. The lowest rank is the best. Pure.

use super::filter::HostFigures;
use crate::types::{ConditionKind, NodeId, SessionId, Strategy, Workspace};

/// The unit of a share: figures are compared in millionths of the whole.
const WHOLE: u64 = 1_000_000;

/// The cost of a pull, as a share of a node: a node without the image is preferred only if it is emptier by more.
const PULL: u64 = WHOLE / 4;

/// How good a node is for a session; the most important field comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub worth: Worth,
    /// Breaks ties, always the same way for the same session.
    pub tie: u64,
}

/// The rank that follows from a node's figures, without the tie-break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worth {
    /// Sessions keep failing to start there. Without this a broken node, which is always empty, would attract every
    /// session.
    fails_starts: bool,
    /// It has GPUs and the session does not request any: keep them for sessions that do.
    wastes_gpus: bool,
    /// How full it would be (spread) or how empty (binpack), plus [`PULL`] if it must pull the image.
    fill: u64,
}

pub fn worth(host: &HostFigures<'_>, wanted: &Workspace, strategy: Strategy) -> Worth {
    let fill = fill(host, wanted);
    let pull = if wanted.image.is_some() && !host.has_image { PULL } else { 0 };
    let fails = |condition: &crate::types::Condition| condition.kind == ConditionKind::FailingStarts;
    Worth {
        fails_starts: host.node.conditions.iter().any(fails),
        wastes_gpus: wanted.gpus == 0 && host.node.physical.gpus > 0,
        fill: match strategy {
            Strategy::Spread => fill,
            Strategy::Binpack => WHOLE.saturating_sub(fill),
        }
        .saturating_add(pull),
    }
}

/// How full the node would be in its fullest dimension, in millionths.
fn fill(host: &HostFigures<'_>, wanted: &Workspace) -> u64 {
    let offered = &host.node.effective;
    let used = host.node.allocated.saturating_add(wanted.resources().saturating_add(host.in_flight));
    // Amounts up to 16 TiB fit a 64-bit division, which costs a fraction of a 128-bit one.
    let part = |used: u64, of: u64| match used.checked_mul(WHOLE) {
        Some(parts) => parts / of.max(1),
        None => u64::try_from(u128::from(used) * u128::from(WHOLE) / u128::from(of.max(1))).unwrap_or(u64::MAX),
    };
    let cores = part(used.cores.milli(), offered.cores.milli());
    let memory = part(used.memory.get(), offered.memory.get());
    let gpus = match wanted.gpus {
        0 => 0,
        _ => part(u64::from(used.gpus), u64::from(offered.gpus)),
    };
    cores.max(memory).max(gpus)
}

/// The tie-break of one session.
#[derive(Debug, Clone, Copy)]
pub struct Ties(u64);

impl Ties {
    pub fn of(session: &SessionId) -> Self {
        Self(hash(0, session.as_str()))
    }

    pub fn with(self, node: &NodeId) -> u64 {
        hash(self.0, node.as_str())
    }
}

/// Hashes eight bytes at a time. Ids are random, so the hash need not be strong. It is the same on every node.
pub fn hash(seed: u64, text: &str) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(GOLDEN);
        mixed ^ (mixed >> 32)
    };
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(seed, mix).wrapping_mul(GOLDEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Cores, NodeProfile, Resources, sample};

    /// How full the node would be with a session of one core and 1 GiB.
    fn filled(node: &NodeProfile) -> u64 {
        let host = HostFigures { node, in_flight: Resources::default(), heard: true, has_image: false };
        fill(&host, &Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1)))
    }

    #[test]
    fn the_fill_is_exact_for_any_amount_of_memory() {
        let mut node = sample::profile("a", "aabb222222222222");
        for gib in [8, 128, 128 << 10] {
            node.effective = Resources::new(Cores::whole(4), Bytes::gib(gib), 0);
            node.allocated = Resources::new(Cores::ZERO, Bytes::gib(gib / 2 - 1), 0);
            assert_eq!(filled(&node), WHOLE / 2, "{gib} GiB");
        }
    }

    #[test]
    fn gpus_count_only_for_sessions_that_request_them() {
        let mut node = sample::profile("a", "aabb222222222222");
        (node.effective.gpus, node.allocated.gpus) = (2, 2);
        assert_eq!(filled(&node), WHOLE / 4);
    }
}
