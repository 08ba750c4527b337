//! Whether a node could admit a session, as far as the leader knows. Each rule gives its reason.

use crate::ledger::gpus::{self, Candidate, Memory, Wish};
use crate::ledger::{self, Refusal};
use crate::types::{
    Bytes, Dimension, GpuProfile, NodeProfile, NodeReason, Platform, Reason, Resources, RuntimeKind, User, Workspace,
};

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
pub fn refusal(host: &HostFigures<'_>, wanted: &Workspace, user: &User) -> Option<Reason> {
    let short = short(host, wanted.resources());
    let no_gpu = choose_gpus(host.node, wanted, user).err().map(|refusal| refusal.reason);
    let for_good = [short, no_gpu].into_iter().flatten().find(|reason| reason.is_for_good());
    for_good.or_else(|| unfit(host, wanted)).or(short).or(no_gpu)
}

/// Whether the node may run sessions of the workspace, of some user, with room for one now or not.
pub fn may_run(host: &HostFigures<'_>, wanted: &Workspace) -> bool {
    let too_large = short(host, wanted.resources()).is_some_and(Reason::is_for_good);
    let lacks_gpus = wanted.gpus > 0 && gpus::large_enough(&candidates(host.node), wish(wanted)).is_err();
    !too_large && !lacks_gpus && unfit(host, wanted).is_none()
}

/// The first reason other than room why the node takes no session of the workspace.
fn unfit(host: &HostFigures<'_>, wanted: &Workspace) -> Option<Reason> {
    let node = host.node;
    let rules = [
        (has_labels(node, wanted), Reason::Constraint),
        (runs(node.runtime.kind, wanted), Reason::Runtime),
        (node.settings.enabled, Reason::Disabled),
        (node.drain.is_none(), Reason::Draining),
        (host.heard, Reason::Unreachable),
        (node.runtime.available, Reason::RuntimeUnavailable),
    ];
    rules.into_iter().find(|(holds, _)| !holds).map(|(_, reason)| reason)
}

/// The refusal with the node's name, and with the figures where it is about room. Of many nodes that refuse, few are
/// told to anybody: only those are explained.
pub fn explain(host: &HostFigures<'_>, wanted: &Workspace, user: &User, reason: Reason) -> NodeReason {
    let name = host.node.name.clone();
    let [request, allocated, physical, effective] = figures(host, wanted.resources());
    let refusals =
        [ledger::fits(request, allocated, physical, effective).err(), choose_gpus(host.node, wanted, user).err()];
    match refusals.into_iter().flatten().find(|refusal| refusal.reason == reason) {
        Some(refusal) => Refusal { message: why_no_gpu(&refusal, host.node), ..refusal }.on(name),
        None => NodeReason::plain(name, reason),
    }
}

/// What the figures of a refusal for GPUs do not say.
fn why_no_gpu(refusal: &Refusal, node: &NodeProfile) -> Option<String> {
    let is_for_now = refusal.reason == Reason::NoCapacity && refusal.dimension == Dimension::Gpus;
    is_for_now.then(|| gpus::why_not(node.gpus.iter().map(|gpu| &gpu.state))).flatten()
}

/// The devices that the node would give to a session, by the same rules as the node. What is free of their memory now
/// only the node knows.
fn choose_gpus(node: &NodeProfile, wanted: &Workspace, user: &User) -> Result<(), Refusal> {
    if wanted.gpus == 0 {
        return Ok(());
    }
    gpus::choose(&candidates(node), user, wish(wanted), node.settings.gpu_sharing).map(drop)
}

fn wish(wanted: &Workspace) -> Wish<'_> {
    Wish { count: wanted.gpus, memory: wanted.gpu_memory_bytes, class: wanted.gpu_class(), same: None }
}

fn candidates(node: &NodeProfile) -> Vec<Candidate<'_>> {
    node.gpus.iter().map(candidate).collect()
}

fn candidate(gpu: &GpuProfile) -> Candidate<'_> {
    let memory = gpu.memory_total_bytes;
    Candidate {
        uuid: &gpu.uuid,
        class: &gpu.class,
        state: gpu.state,
        slots: gpu.slots,
        used: gpu.slots_used,
        holder: gpu.holder.as_ref(),
        declared: gpu.memory_declared_bytes,
        memory: memory.map(|total| Memory { total, free: total, foreign: Bytes::ZERO }),
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
