//! Which of the nodes that could take a session should. Pure: the lowest rank is the best.

use super::filter::Host;
use crate::types::{ConditionKind, NodeId, SessionId, Strategy, Workspace};

/// Parts in a whole that figures are compared in.
const WHOLE: u64 = 1_000_000;

/// What a pull is worth, of a whole node: one that is so much emptier is better though it must pull the image.
const PULL: u64 = WHOLE / 4;

/// How good a node is for a session, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Sessions keep failing to start there: a broken, empty node must not swallow everything.
    fails_starts: bool,
    /// It has GPUs that the session does not want and others might.
    wastes_gpus: bool,
    /// How full it would be, or how empty, as the strategy has it; more where the image must be pulled.
    fill: u64,
    /// Ties fall the same way for the same session.
    tie: u64,
}

pub fn rank(host: &Host<'_>, wanted: &Workspace, session: &SessionId, strategy: Strategy) -> Rank {
    let fill = fill(host, wanted);
    let pull = if wanted.image.is_some() && !host.has_image { PULL } else { 0 };
    let fails = |condition: &crate::types::Condition| condition.kind == ConditionKind::FailingStarts;
    Rank {
        fails_starts: host.node.conditions.iter().any(fails),
        wastes_gpus: wanted.gpus == 0 && host.node.resources.gpus.physical > 0,
        fill: match strategy {
            Strategy::Spread => fill,
            Strategy::Binpack => WHOLE.saturating_sub(fill),
        }
        .saturating_add(pull),
        tie: tie(session, &host.node.id),
    }
}

/// How full the node would be in its fullest dimension, in millionths.
fn fill(host: &Host<'_>, wanted: &Workspace) -> u64 {
    let (has, more) = (&host.node.resources, wanted.resources().saturating_add(host.in_flight));
    let part = |used: u64, of: u64| {
        let used = u128::from(used) * u128::from(WHOLE);
        u64::try_from(used / u128::from(of.max(1))).unwrap_or(u64::MAX)
    };
    let cores = part(has.cores.allocated.saturating_add(more.cores).milli(), has.cores.effective.milli());
    let memory = part(has.memory_bytes.allocated.saturating_add(more.memory).get(), has.memory_bytes.effective.get());
    let gpus = part(u64::from(has.gpus.allocated.saturating_add(more.gpus)), u64::from(has.gpus.effective));
    let gpus = if wanted.gpus == 0 { 0 } else { gpus };
    cores.max(memory).max(gpus)
}

/// FNV-1a of both ids.
fn tie(session: &SessionId, node: &NodeId) -> u64 {
    let bytes = session.as_str().bytes().chain(node.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
