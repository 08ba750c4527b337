//! Chooses the nodes to offer a session to, best first, or explains why there are none. Pure.

use super::Error;
use super::filter::{self, HostFigures};
use super::score::{Rank, Ties, Worth, worth};
use crate::types::{
    Name, NodeId, NodeProfile, NodeReason, NodeVerdict, Plan, Platform, Reason, SessionId, Strategy, User, Workspace,
};

/// Candidates of one plan. If so many hosts reject, the cluster has changed and the plan is out of date.
const MAX_CANDIDATES: usize = 16;
/// Reasons in one answer at most.
const MAX_REASONS: usize = 1000;
/// Verdicts stored with an offer at most, to explain it later.
const MAX_VERDICTS: usize = 100;

/// The nodes to offer a session to, best first, and why the others are not among them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Offers {
    pub candidates: Vec<Candidate>,
    /// Up to `MAX_VERDICTS` nodes, or `MAX_REASONS` if there are no candidates; at least one node of every reason.
    pub refusals: Vec<NodeReason>,
    /// The candidate did not answer an earlier offer, so it may have the session.
    pub uncertain: bool,
}

/// A node that may take the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: NodeId,
    pub name: Name,
}

/// The session to place.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub session: &'a SessionId,
    pub user: &'a User,
    pub workspace: &'a Workspace,
    pub strategy: Strategy,
    /// The node that has its volumes.
    pub pinned: Option<&'a NodeId>,
    /// The nodes that could not start it.
    pub tried: &'a [NodeId],
    /// The platform of its image, where it is known.
    pub platform: Option<&'a Platform>,
}

/// Which nodes to ask for this session.
pub fn plan<'a>(hosts: impl Iterator<Item = HostFigures<'a>>, wanted: Wanted<'_>) -> Offers {
    let ties = Ties::of(wanted.session);
    let mut best = Best::default();
    let mut refusals = Refusals::default();
    for host in hosts {
        let id = &host.node.id;
        let plain = |holds: bool, reason| holds.then_some(reason);
        let refused = plain(wanted.tried.contains(id), Reason::StartFailed)
            .or_else(|| filter::refusal(&host, wanted.workspace, wanted.user))
            .or_else(|| plain(!filter::runs_platform(host.node, wanted.platform), Reason::Platform))
            .or_else(|| plain(wanted.pinned.is_some_and(|pinned| pinned != id), Reason::Volume));
        if let Some(refused) = refused {
            refusals.add(host, refused, if best.0.is_empty() { MAX_REASONS } else { MAX_VERDICTS });
            continue;
        }
        let worth = worth(&host, wanted.workspace, wanted.strategy);
        if best.wants(&worth) {
            best.add(Rank { worth, tie: ties.with(id) }, host.node);
        }
    }
    let named = if best.0.is_empty() { MAX_REASONS } else { MAX_VERDICTS };
    let refusals = refusals.explained(wanted, named);
    Offers { candidates: best.candidates(), refusals, uncertain: false }
}

/// The best nodes so far, in their order.
#[derive(Default)]
struct Best<'a>(Vec<(Rank, &'a NodeProfile)>);

impl<'a> Best<'a> {
    /// Whether a node of this worth may be among the best. Most nodes are not, which saves their tie-break.
    fn wants(&self, worth: &Worth) -> bool {
        self.0.len() < MAX_CANDIDATES || self.0.last().is_some_and(|(last, _)| *worth <= last.worth)
    }

    fn add(&mut self, rank: Rank, node: &'a NodeProfile) {
        let at = self.0.partition_point(|(better, _)| *better <= rank);
        self.0.insert(at, (rank, node));
        self.0.truncate(MAX_CANDIDATES);
    }

    fn candidates(self) -> Vec<Candidate> {
        self.0.into_iter().map(|(_, node)| Candidate { id: node.id, name: node.name.clone() }).collect()
    }
}

/// The nodes that would reject: the first ones, and at least one of every reason, since the resulting error must not
/// depend on the number of nodes.
#[derive(Default)]
struct Refusals<'a> {
    kept: Vec<(HostFigures<'a>, Reason)>,
    reasons: Vec<Reason>,
}

impl<'a> Refusals<'a> {
    fn add(&mut self, host: HostFigures<'a>, reason: Reason, most: usize) {
        let new = is_new(&mut self.reasons, reason);
        if new || self.kept.len() < most {
            self.kept.push((host, reason));
        }
    }

    fn explained(self, wanted: Wanted<'_>, most: usize) -> Vec<NodeReason> {
        let mut reasons = Vec::new();
        let kept = self.kept.iter().enumerate();
        let kept = kept.filter(|(i, (_, reason))| is_new(&mut reasons, *reason) || *i < most);
        kept.map(|(_, (host, reason))| filter::explain(host, wanted.workspace, wanted.user, *reason)).collect()
    }
}

/// Adds a reason. Returns whether it is new.
fn is_new(reasons: &mut Vec<Reason>, reason: Reason) -> bool {
    let new = !reasons.contains(&reason);
    if new {
        reasons.push(reason);
    }
    new
}

impl Offers {
    /// The verdict on every node: the candidates in their order, then the nodes that would reject.
    pub fn verdicts(&self) -> Vec<NodeVerdict> {
        let ranked = self.candidates.iter().zip(1..).map(|(candidate, rank)| NodeVerdict {
            node: candidate.name.clone(),
            rank: Some(rank),
            refusal: None,
        });
        let filtered = self.refusals.iter().map(|refusal| NodeVerdict {
            node: refusal.node.clone(),
            rank: None,
            refusal: Some(refusal.clone()),
        });
        ranked.chain(filtered).take(MAX_VERDICTS).collect()
    }
}

impl From<Offers> for Plan {
    fn from(offers: Offers) -> Self {
        Self { node: offers.candidates.first().map(|best| best.name.clone()), nodes: offers.verdicts() }
    }
}

/// The error when no node admits a session. It is [`Error::ExceedsPhysical`] only if that is every node's reason.
pub(super) fn nobody(mut reasons: Vec<NodeReason>) -> Error {
    let kinds = Kinds::of(&reasons);
    reasons.sort_by(|a, b| a.node.cmp(&b.node));
    reasons.truncate(MAX_REASONS);
    if kinds.all_exceed {
        Error::ExceedsPhysical(reasons)
    } else if kinds.rest_disabled {
        Error::Disabled(reasons)
    } else if kinds.rest_without_engine {
        Error::RuntimeUnavailable(reasons)
    } else {
        Error::NoCapacity(reasons)
    }
}

/// What a list of reasons has in common.
struct Kinds {
    all_exceed: bool,
    rest_disabled: bool,
    rest_without_engine: bool,
}

impl Kinds {
    fn of(reasons: &[NodeReason]) -> Self {
        // A node that can never admit the session does not count when the other nodes share one reason.
        let never =
            [Reason::ExceedsPhysical, Reason::GpuClass, Reason::GpuMemoryUnknown, Reason::Constraint, Reason::Runtime];
        let rest = || reasons.iter().filter(|reason| !never.contains(&reason.reason));
        let rest_all = |these: &[Reason]| rest().next().is_some() && rest().all(|r| these.contains(&r.reason));
        Self {
            all_exceed: !reasons.is_empty() && reasons.iter().all(|r| r.reason == Reason::ExceedsPhysical),
            rest_disabled: rest_all(&[Reason::Disabled, Reason::Draining, Reason::DuplicateNodeId]),
            rest_without_engine: rest_all(&[Reason::RuntimeUnavailable]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::types::{
        Bytes, Condition, ConditionKind, Cores, Dimension, GpuProfile, GpuSharing, GpuState, Resources, Settings,
        Timestamp, sample,
    };

    const FIRST: &str = "aabb222222222222";
    const SECOND: &str = "aacc222222222222";

    /// A node of this many cores, 64 GiB and no GPU.
    fn node(name: &str, id: &str, cores: u32, allocated: u32) -> NodeProfile {
        let mut node = sample::profile(name, id);
        node.physical = Resources::new(Cores::whole(cores), Bytes::gib(64), 0);
        node.effective = node.physical;
        node.allocated.cores = Cores::whole(allocated);
        node
    }

    fn a(cores: u32, allocated: u32) -> NodeProfile {
        node("a", FIRST, cores, allocated)
    }

    fn b(cores: u32, allocated: u32) -> NodeProfile {
        node("b", SECOND, cores, allocated)
    }

    fn disabled(node: NodeProfile) -> NodeProfile {
        NodeProfile { settings: Settings { enabled: false, ..node.settings }, ..node }
    }

    fn wanted(cores: u32) -> Workspace {
        let mut wanted = Workspace::new("desktop".parse().unwrap(), Cores::whole(cores), Bytes::gib(1));
        wanted.command = vec!["sleep".to_owned()];
        wanted
    }

    static ALICE: LazyLock<User> = LazyLock::new(|| "alice".parse().unwrap());

    fn asked<'a>(session: &'a SessionId, workspace: &'a Workspace) -> Wanted<'a> {
        let user = &*ALICE;
        Wanted { session, user, workspace, strategy: Strategy::Spread, pinned: None, tried: &[], platform: None }
    }

    fn heard(node: &NodeProfile) -> HostFigures<'_> {
        HostFigures { node, in_flight: Resources::default(), heard: true, has_image: false }
    }

    fn offers(nodes: &[NodeProfile], workspace: &Workspace) -> Offers {
        plan(nodes.iter().map(heard), asked(&sample::session_id("k"), workspace))
    }

    fn best(nodes: &[NodeProfile], workspace: &Workspace) -> String {
        offers(nodes, workspace).candidates[0].name.to_string()
    }

    fn refusal(node: &NodeProfile, workspace: &Workspace) -> Reason {
        offers(std::slice::from_ref(node), workspace).refusals[0].reason
    }

    fn nobody_takes(nodes: &[NodeProfile], workspace: &Workspace) -> Error {
        let offers = offers(nodes, workspace);
        assert!(offers.candidates.is_empty());
        nobody(offers.refusals)
    }

    #[test]
    fn a_session_exceeds_physical_only_if_it_exceeds_every_node() {
        assert!(matches!(nobody_takes(&[a(4, 0)], &wanted(5)), Error::ExceedsPhysical(_)));
        assert!(matches!(nobody_takes(&[a(4, 4)], &wanted(4)), Error::NoCapacity(_)));
        assert!(matches!(nobody_takes(&[a(4, 0), b(8, 8)], &wanted(5)), Error::NoCapacity(_)));
        let disabled = disabled(a(4, 0));
        assert!(matches!(nobody_takes(std::slice::from_ref(&disabled), &wanted(5)), Error::ExceedsPhysical(_)));
        assert!(matches!(nobody_takes(&[disabled], &wanted(1)), Error::Disabled(_)));
    }

    #[test]
    fn nodes_without_the_labels_do_not_hide_the_reason_of_the_others() {
        let mut on_rack_3 = wanted(1);
        on_rack_3.constraints.insert("rack".to_owned(), "3".to_owned());
        let mut disabled = disabled(a(4, 0));
        disabled.settings.labels.insert("rack".to_owned(), "3".to_owned());
        assert!(matches!(nobody_takes(&[disabled, b(4, 0)], &on_rack_3), Error::Disabled(_)));
        assert!(matches!(nobody_takes(&[b(4, 0)], &on_rack_3), Error::NoCapacity(_)));
    }

    #[test]
    fn a_silent_node_is_unreachable_and_not_too_small() {
        let node = a(4, 0);
        let silent = HostFigures { heard: false, ..heard(&node) };
        let offers = plan([silent].into_iter(), asked(&sample::session_id("k"), &wanted(1)));
        assert_eq!(offers.refusals[0].reason, Reason::Unreachable);
        assert!(matches!(nobody(offers.refusals), Error::NoCapacity(_)));
    }

    #[test]
    fn a_node_needs_the_labels_and_an_engine_that_runs_the_workspace() {
        let mut on_rack_3 = wanted(1);
        on_rack_3.constraints.insert("rack".to_owned(), "3".to_owned());
        let mut there = a(4, 0);
        assert_eq!(refusal(&there, &on_rack_3), Reason::Constraint);
        there.settings.labels.insert("rack".to_owned(), "3".to_owned());
        assert_eq!(best(std::slice::from_ref(&there), &on_rack_3), "a");
        there.runtime.available = false;
        assert!(matches!(nobody_takes(&[there], &on_rack_3), Error::RuntimeUnavailable(_)));
        let without_command = Workspace { command: Vec::new(), ..wanted(1) };
        assert_eq!(refusal(&a(4, 0), &without_command), Reason::Runtime);
    }

    #[test]
    fn a_session_in_flight_to_a_node_takes_room_there() {
        let node = a(4, 2);
        let busy = HostFigures { in_flight: wanted(2).resources(), ..heard(&node) };
        let offers = plan([busy].into_iter(), asked(&sample::session_id("k"), &wanted(1)));
        assert_eq!(offers.refusals[0].reason, Reason::NoCapacity);
    }

    #[test]
    fn a_refusal_has_figures_only_if_it_is_about_room() {
        let refused = |node: NodeProfile| offers(&[node], &wanted(3)).refusals[0].clone();
        let full = refused(a(4, 2));
        assert_eq!((full.reason, full.dimension), (Reason::NoCapacity, Some(Dimension::Cores)));
        assert_eq!((full.requested, full.available, full.physical), (Some(3.0), Some(2.0), Some(4.0)));
        assert_eq!(refused(disabled(a(4, 2))), NodeReason::plain("a".parse().unwrap(), Reason::Disabled));
    }

    #[test]
    fn sessions_are_spread_or_packed() {
        let nodes = [a(8, 4), b(8, 1)];
        let packed = |strategy| {
            let (session, workspace) = (sample::session_id("k"), wanted(1));
            let wanted = Wanted { strategy, ..asked(&session, &workspace) };
            plan(nodes.iter().map(heard), wanted).candidates[0].name.to_string()
        };
        assert_eq!((packed(Strategy::Spread), packed(Strategy::Binpack)), ("b".to_owned(), "a".to_owned()));
    }

    #[test]
    fn gpus_are_kept_for_sessions_that_request_them_and_a_broken_node_comes_last() {
        let mut with_gpus = a(8, 0);
        with_gpus.physical.gpus = 2;
        with_gpus.effective.gpus = 2;
        with_gpus.gpus = vec![sample::gpu("GPU-1", 0), sample::gpu("GPU-2", 1)];
        assert_eq!(best(&[with_gpus.clone(), b(8, 7)], &wanted(1)), "b");
        let on_a_gpu = Workspace { gpus: 1, ..wanted(1) };
        assert_eq!(best(&[with_gpus, b(8, 0)], &on_a_gpu), "a");

        let kind = ConditionKind::FailingStarts;
        let condition = Condition { kind, since: Timestamp::default(), message: String::new() };
        let broken = NodeProfile { conditions: vec![condition], ..a(8, 0) };
        assert_eq!(best(&[broken, b(8, 7)], &wanted(1)), "b");
    }

    /// A node with one GPU of two slots, one of them held by bob.
    fn with_gpu(name: &str, id: &str, change: impl FnOnce(&mut GpuProfile)) -> NodeProfile {
        let mut gpu =
            GpuProfile { slots: 2, slots_used: 1, holder: Some("bob".parse().unwrap()), ..sample::gpu("GPU-1", 0) };
        change(&mut gpu);
        let mut node = node(name, id, 8, 0);
        (node.physical.gpus, node.effective.gpus, node.allocated.gpus) = (1, 2, 1);
        NodeProfile { gpus: vec![gpu], ..node }
    }

    #[test]
    fn a_gpu_that_cannot_be_had_is_refused_without_an_offer_by_the_rule_that_the_host_has() {
        let on_a_gpu = Workspace { gpus: 1, ..wanted(1) };
        let reason = |node: NodeProfile| {
            let refusal = offers(&[node], &on_a_gpu).refusals.into_iter().next();
            refusal.map(|refusal| (refusal.reason, refusal.message))
        };
        let taken = with_gpu("a", FIRST, |_| {});
        assert_eq!(reason(taken.clone()), Some((Reason::GpuSharing, None)), "alice does not share with bob");
        let any = Settings { gpu_sharing: GpuSharing::Any, ..Settings::default() };
        assert_eq!(reason(NodeProfile { settings: any, ..taken }), None);
        assert_eq!(reason(with_gpu("a", FIRST, |gpu| gpu.holder = Some("alice".parse().unwrap()))), None);
        let hot = with_gpu("a", FIRST, |gpu| (gpu.slots_used, gpu.state) = (0, GpuState::Hot));
        assert_eq!(reason(hot), Some((Reason::NoCapacity, Some("1 of 1 GPU is hot".to_owned()))));
        let amd = with_gpu("a", FIRST, |gpu| gpu.class = "amd.com/gpu".to_owned());
        assert_eq!(reason(amd), Some((Reason::GpuClass, None)));
        // What can never be is said before that the node is disabled.
        let small = Workspace { gpu_memory_bytes: Some(Bytes::gib(81)), ..on_a_gpu.clone() };
        let refusal = offers(&[disabled(with_gpu("a", FIRST, |_| {}))], &small).refusals.remove(0);
        assert_eq!((refusal.reason, refusal.dimension), (Reason::ExceedsPhysical, Some(Dimension::GpuMemoryBytes)));
        assert!(matches!(nobody_takes(&[with_gpu("a", FIRST, |_| {})], &small), Error::ExceedsPhysical(_)));
    }

    #[test]
    fn a_session_with_a_volume_is_offered_only_to_the_node_of_the_volume() {
        let (session, workspace) = (sample::session_id("k"), wanted(1));
        let pinned: NodeId = SECOND.parse().unwrap();
        let wanted = Wanted { pinned: Some(&pinned), ..asked(&session, &workspace) };
        let offers = plan([a(8, 0), b(8, 7)].iter().map(heard), wanted);
        assert_eq!(offers.candidates.len(), 1);
        assert_eq!((offers.candidates[0].id, offers.refusals[0].reason), (pinned, Reason::Volume));
    }

    #[test]
    fn a_node_that_has_the_image_is_preferred_unless_it_is_much_fuller() {
        let (session, mut workspace) = (sample::session_id("k"), wanted(1));
        let first = |workspace: &Workspace, taken: u32| {
            let (has, pulls) = (a(8, taken), b(8, 1));
            let hosts = [HostFigures { has_image: true, ..heard(&has) }, heard(&pulls)];
            let hosts = hosts.map(|host| HostFigures { node: if host.has_image { &has } else { &pulls }, ..host });
            plan(hosts.into_iter(), asked(&session, workspace)).candidates[0].name.to_string()
        };
        assert_eq!(first(&workspace, 2), "b", "a session without an image goes to the emptier node");
        workspace.image = Some("desktop:1".to_owned());
        assert_eq!((first(&workspace, 2), first(&workspace, 4)), ("a".to_owned(), "b".to_owned()));
    }

    #[test]
    fn a_node_that_could_not_start_a_session_is_not_asked_again() {
        let (session, workspace) = (sample::session_id("k"), wanted(1));
        let tried: [NodeId; 1] = [FIRST.parse().unwrap()];
        let wanted = Wanted { tried: &tried, ..asked(&session, &workspace) };
        let offers = plan([a(8, 0), b(8, 7)].iter().map(heard), wanted);
        assert_eq!((offers.candidates.len(), offers.candidates[0].name.as_str()), (1, "b"));
        assert_eq!(offers.refusals[0].reason, Reason::StartFailed);
    }

    #[test]
    fn a_tie_is_broken_the_same_way_for_one_session_and_evenly_for_many() {
        let nodes = [a(8, 0), b(8, 0)];
        let of = |key: &str| {
            let (session, workspace) = (sample::session_id(key), wanted(1));
            plan(nodes.iter().map(heard), asked(&session, &workspace)).candidates[0].name.to_string()
        };
        assert!((0..20).all(|_| of("k") == of("k")));
        let on_a = (0..100).filter(|key| of(&key.to_string()) == "a").count();
        assert!((20..80).contains(&on_a), "{on_a} of 100 on one of two equal nodes");
    }

    #[test]
    fn only_the_best_candidates_are_kept_in_their_order() {
        let nodes: Vec<NodeProfile> = (0..40_u8)
            .map(|i| {
                let id = NodeId::from_bytes([i; 10]);
                node(&format!("n{i}"), id.as_str(), 100, u32::from(i).wrapping_mul(7) % 40)
            })
            .collect();
        let names: Vec<_> = offers(&nodes, &wanted(1)).candidates.iter().map(|c| c.name.to_string()).collect();
        let mut by_fill: Vec<_> = nodes.iter().collect();
        by_fill.sort_by_key(|node| node.allocated.cores);
        let expected: Vec<_> = by_fill.iter().take(MAX_CANDIDATES).map(|node| node.name.to_string()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn of_many_rejecting_nodes_some_are_named_and_at_least_one_of_every_reason() {
        let full = (0..200_u8).map(|i| node(&format!("n{i}"), NodeId::from_bytes([i; 10]).as_str(), 4, 4));
        let mut nodes: Vec<NodeProfile> = full.chain([disabled(node("z", FIRST, 4, 0))]).collect();
        assert_eq!(offers(&nodes, &wanted(1)).refusals.len(), nodes.len(), "no node admits it: all are named");
        nodes.push(b(4, 0));
        let offers = offers(&nodes, &wanted(1));
        let disabled = |refusal: &NodeReason| refusal.reason == Reason::Disabled;
        assert!(offers.refusals.iter().any(disabled), "a reason that comes late is named, too");
        assert_eq!((offers.candidates.len(), offers.refusals.len()), (1, MAX_VERDICTS + 1));
        assert_eq!(offers.verdicts().len(), MAX_VERDICTS);
    }

    #[test]
    fn a_plan_names_every_node() {
        let plan = Plan::from(offers(&[a(4, 4), b(4, 0)], &wanted(1)));
        assert_eq!(plan.node, Some("b".parse().unwrap()));
        assert_eq!(plan.nodes.iter().map(|v| v.rank).collect::<Vec<_>>(), [Some(1), None]);
    }
}
