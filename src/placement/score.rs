//! Which of the nodes that could take a session should. Pure: the lowest rank is the best.

use super::filter::HostFigures;
use crate::types::{ConditionKind, NodeId, SessionId, Strategy, Workspace};

/// Parts in a whole that figures are compared in.
const WHOLE: u64 = 1_000_000;

/// What a pull is worth, of a whole node: one that is so much emptier is better though it must pull the image.
const PULL: u64 = WHOLE / 4;

/// How good a node is for a session, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub worth: Worth,
    /// Ties fall the same way for the same session.
    pub tie: u64,
}

/// What a node's figures say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worth {
    /// Sessions keep failing to start there: a broken, empty node must not swallow everything.
    fails_starts: bool,
    /// It has GPUs that the session does not want and others might.
    wastes_gpus: bool,
    /// How full it would be, or how empty, as the strategy has it; more where the image must be pulled.
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
    // Up to 16 TiB a division of 64 bits does, which costs a fraction of one of 128.
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

/// How the ties of one session fall.
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

/// Eight bytes at a time, each word mixed into all that came before: ids are random, so this need not be strong.
fn hash(seed: u64, text: &str) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(GOLDEN);
        mixed ^ (mixed >> 32)
    };
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(seed, mix).wrapping_mul(GOLDEN)
}
