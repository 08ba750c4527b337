//! Whether a node could admit a session, as far as the leader knows. Each rule gives its reason.

use crate::ledger;
use crate::types::{NodeProfile, NodeReason, Platform, Reason, Resources, RuntimeKind, Workspace};

/// A host, as the plan reads it.
#[derive(Debug, Clone, Copy)]
pub struct HostFigures<'a> {
    pub node: &'a NodeProfile,
    /// The resources of all sessions in flight to it.
    pub in_flight: Resources,
    /// It has reported to this leader, and answers.
    pub heard: bool,
    /// It has the image already.
    pub has_image: bool,
}

/// The first reason why the node would not take the session. What can never be is said before what is only not
/// possible now: "it is too large" must not hide behind "it is disabled".
pub fn refusal(host: &HostFigures<'_>, wanted: &Workspace) -> Option<Reason> {
    let node = host.node;
    let short = short(host, wanted.resources());
    if short == Some(Reason::ExceedsPhysical) {
        return short;
    }
    let rules = [
        (has_labels(node, wanted), Reason::Constraint),
        (runs(node.runtime.kind, wanted), Reason::Runtime),
        (node.settings.enabled, Reason::Disabled),
        (node.drain.is_none(), Reason::Draining),
        (host.heard, Reason::Unreachable),
        (node.runtime.available, Reason::RuntimeUnavailable),
    ];
    rules.into_iter().find(|(holds, _)| !holds).map(|(_, reason)| reason).or(short)
}

/// The refusal with the node's name, and with the figures where it is about room. Of many nodes that refuse, few are
/// told to anybody: only those are explained.
pub fn explain(host: &HostFigures<'_>, wanted: &Workspace, reason: Reason) -> NodeReason {
    let name = host.node.name.clone();
    let [request, allocated, physical, effective] = figures(host, wanted.resources());
    match ledger::fits(request, allocated, physical, effective) {
        Err(refusal) if refusal.reason == reason => refusal.on(name),
        _ => NodeReason::plain(name, reason),
    }
}

/// Whether the workspace has what this kind of runtime starts: an image, or a command.
pub const fn runs(kind: RuntimeKind, wanted: &Workspace) -> bool {
    match kind {
        RuntimeKind::Docker => wanted.image.is_some(),
        RuntimeKind::Process => !wanted.command.is_empty() || !wanted.entrypoint.is_empty(),
    }
}

/// Whether the node runs images of this platform, as far as both are known.
pub fn runs_platform(node: &NodeProfile, wanted: Option<&Platform>) -> bool {
    let known = node.runtime.platform.as_ref().zip(wanted);
    known.is_none_or(|(host, image)| host.runs(image))
}

fn has_labels(node: &NodeProfile, wanted: &Workspace) -> bool {
    wanted.constraints.iter().all(|(key, value)| node.settings.labels.get(key) == Some(value))
}

fn short(host: &HostFigures<'_>, request: Resources) -> Option<Reason> {
    let [request, allocated, physical, effective] = figures(host, request);
    ledger::lacks(request, allocated, physical, effective).map(|(reason, _)| reason)
}

/// What is compared: the request, what is taken, what there is, and what is offered.
fn figures(host: &HostFigures<'_>, request: Resources) -> [Resources; 4] {
    let NodeProfile { physical, effective, allocated, .. } = host.node;
    [request, allocated.saturating_add(host.in_flight), *physical, *effective]
}
