//! Whether a node could take a session, as far as can be told from outside. Each rule explains itself.

use crate::ledger;
use crate::types::{Name, Node, NodeReason, NodeState, Reason, Resources, RuntimeKind, Workspace};

/// A node as placement looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    pub node: &'a Node,
    /// What offers that are on their way to it would take.
    pub in_flight: Resources,
    /// It has told this leader what it has and holds, and answers.
    pub heard: bool,
    /// It has the image already.
    pub has_image: bool,
}

/// Why a node would not take a session. Of many nodes, few are told to anybody: only those get their name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refused {
    Plain(Reason),
    Room(ledger::Refusal),
}

impl Refused {
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Plain(reason) => *reason,
            Self::Room(refusal) => refusal.reason,
        }
    }

    /// The refusal as this node's reason.
    pub fn on(self, node: Name) -> NodeReason {
        match self {
            Self::Plain(reason) => NodeReason::plain(node, reason),
            Self::Room(refusal) => refusal.on(node),
        }
    }
}

/// The first reason why the node would not take the session. What can never be is said before what is only not
/// possible now: "it is too large" must not hide behind "it is disabled".
pub fn refusal(host: &Host<'_>, wanted: &Workspace) -> Option<Refused> {
    let node = host.node;
    let room = room(host, wanted.resources());
    if let Err(refusal) = room
        && refusal.reason == Reason::ExceedsPhysical
    {
        return Some(Refused::Room(refusal));
    }
    let plain = |holds: bool, reason| (!holds).then_some(Refused::Plain(reason));
    plain(has_labels(node, wanted), Reason::Constraint)
        .or_else(|| plain(runs(node.runtime.kind, wanted), Reason::Runtime))
        .or_else(|| plain(node.enabled, Reason::Disabled))
        .or_else(|| plain(node.drain.is_none(), Reason::Draining))
        .or_else(|| plain(host.heard && node.state == NodeState::Alive, Reason::Unreachable))
        .or_else(|| plain(node.runtime.available, Reason::RuntimeUnavailable))
        .or_else(|| room.err().map(Refused::Room))
}

/// Whether a runtime of this kind finds in the workspace what it starts.
pub const fn runs(kind: RuntimeKind, wanted: &Workspace) -> bool {
    match kind {
        RuntimeKind::Docker => wanted.image.is_some(),
        RuntimeKind::Process => !wanted.command.is_empty(),
    }
}

fn has_labels(node: &Node, wanted: &Workspace) -> bool {
    wanted.constraints.iter().all(|(key, value)| node.settings.labels.get(key) == Some(value))
}

fn room(host: &Host<'_>, request: Resources) -> Result<(), ledger::Refusal> {
    let has = &host.node.resources;
    let allocated = Resources::new(has.cores.allocated, has.memory_bytes.allocated, has.gpus.allocated);
    ledger::fits(
        request,
        allocated.saturating_add(host.in_flight),
        Resources::new(has.cores.physical, has.memory_bytes.physical, has.gpus.physical),
        Resources::new(has.cores.effective, has.memory_bytes.effective, has.gpus.effective),
    )
}
