//! Which nodes fetch which images next. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::NotFetched;
use super::daily::{self, Due, Holder};
use crate::images;
use crate::images::{Fetch, Fetching};
use crate::placement::filter::{HostFigures, may_run};
use crate::placement::index::{Fleet, HostView};
use crate::runtime::images::PullCause;
use crate::types::{BootInstant, ImageReference, Moment, Name, NodeId, PullPolicy, Resources, Workspace};

/// Nodes that pull from one registry at the same time. More would be slow for each, and meet its limits sooner.
const PER_REGISTRY: usize = 2;
/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 60);
/// How long an image that a node has pulled ahead is not asked for again: until then the node's report has it.
const REPORTED_WITHIN: Duration = Duration::from_secs(60);
/// How long a node that was asked about a newer image is not asked again. Its report says at once that it was; one whose
/// clock is wrong by a day would be asked without end.
const CHECKED_FOR: Duration = Duration::from_secs(3600);

/// What a turn depends on besides the turns before.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub now: Moment,
    /// What hosts reported.
    pub fleet: &'a Fleet,
    /// The hosts that answer.
    pub reached: &'a BTreeSet<NodeId>,
    pub workspaces: &'a BTreeMap<Name, Arc<Workspace>>,
}

/// What one node is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub node: NodeId,
    pub image: ImageReference,
    pub how: Fetch,
}

/// The leader's orders in progress, and what failed.
#[derive(Debug, Default)]
pub struct Turns {
    /// One a node.
    running: BTreeMap<NodeId, Order>,
    nodes: BTreeMap<Key, Pause>,
    registries: BTreeMap<String, Pause>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Pause {
    /// Failures in a row.
    failures: u32,
    until: BootInstant,
}

/// A node, an image, and whether it is pulled ahead or checked.
type Key = (NodeId, ImageReference, bool);

/// An image of the catalogue, and the workspaces that need it.
struct Wanted<'a> {
    /// As its workspaces name it, and as hosts report it.
    texts: BTreeSet<String>,
    workspaces: Vec<&'a Workspace>,
}

impl Turns {
    /// The orders to give now. They count as given.
    pub fn next(&mut self, situation: Situation<'_>) -> Vec<Order> {
        let wanted = wanted(situation.workspaces);
        self.forget(&situation, &wanted);
        let mut candidates = Vec::new();
        for (image, wanted) in &wanted {
            candidates.extend(ahead(image, wanted, &situation));
            candidates.extend(self.checks(image, wanted, &situation));
        }
        // The sort is stable. Nodes that failed come last, so that they keep no other node from its turn.
        candidates.sort_by_key(|order| (rank(&order.how), self.failures(order)));
        let mut given = Vec::new();
        for order in candidates {
            if self.may_give(&order, situation.now.boot) {
                self.running.insert(order.node, order.clone());
                given.push(order);
            }
        }
        given
    }

    /// Takes a node's answer. Returns whether its pull still runs: the caller asks again, and the order goes on.
    pub fn answered(&mut self, node: &NodeId, answer: &Result<Fetching, NotFetched>, now: BootInstant) -> bool {
        let Some(order) = self.running.get(node) else { return false };
        if matches!(answer, Ok(Fetching::Runs)) {
            return true;
        }
        let (key, registry) = (order.key(), order.image.registry().to_owned());
        match answer {
            Ok(_) => {
                let span = if order.how == Fetch::Missing { REPORTED_WITHIN } else { CHECKED_FOR };
                self.nodes.insert(key, Pause { failures: 0, until: now.plus(span) });
                if uses_registry(&order.how) {
                    self.registries.remove(&registry);
                }
            }
            Err(error) => {
                self.nodes.entry(key).or_default().again(now);
                if is_of_registry(error) {
                    self.registries.entry(registry).or_default().again(now);
                }
            }
        }
        self.running.remove(node);
        false
    }

    /// The registries from which no node is to pull now: they limit pulls, or failed lately.
    pub fn limited(&self, now: BootInstant) -> BTreeSet<&str> {
        let failing = self.registries.iter().filter(|(_, pause)| pause.until > now);
        failing.map(|(registry, _)| registry.as_str()).collect()
    }

    /// This node leads no more. Orders that were given go on at their nodes.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What the daily check of an image has nodes do.
    fn checks(&self, image: &ImageReference, wanted: &Wanted<'_>, situation: &Situation<'_>) -> Vec<Order> {
        let daily: Vec<&Workspace> =
            wanted.workspaces.iter().copied().filter(|workspace| workspace.pull == PullPolicy::Daily).collect();
        // A digest means the same image for ever.
        if daily.is_empty() || image.digest().is_some() {
            return Vec::new();
        }
        let checked = |host: &'_ HostView| wanted.texts.iter().find_map(|text| host.images.get(text)?.clone());
        let checked: Vec<(NodeId, images::Checked)> =
            situation.fleet.hosts.iter().filter_map(|(id, host)| Some((*id, checked(host)?))).collect();
        let holders: Vec<Holder<'_>> = checked.iter().map(|(node, checked)| Holder { node: *node, checked }).collect();
        let may = |node: &NodeId| situation.may_run(node, &daily);
        let refresh = |node: NodeId| Order { node, image: image.clone(), how: Fetch::Refresh };
        match daily::due(image, &holders, situation.now.wall) {
            Due::Nothing => Vec::new(),
            Due::Ask(nodes) => {
                let asks = self.running.values().any(|order| order.image == *image && order.how == Fetch::Refresh);
                let first = nodes.into_iter().filter(may).map(refresh);
                let mut free = first.filter(|order| self.may_give(order, situation.now.boot));
                free.next().filter(|_| !asks).into_iter().collect()
            }
            Due::Follow { pull, note } => {
                let note = note.into_iter().filter(|(node, _)| may(node)).map(|(node, digest)| Order {
                    node,
                    image: image.clone(),
                    how: Fetch::Checked { digest },
                });
                pull.into_iter().filter(may).map(refresh).chain(note).collect()
            }
        }
    }

    /// Whether the node, its pause and the registry allow an order now.
    fn may_give(&self, order: &Order, now: BootInstant) -> bool {
        if self.running.contains_key(&order.node) {
            return false;
        }
        let paused = self.nodes.get(&order.key()).is_some_and(|pause| pause.until > now);
        let registry = order.image.registry();
        let pulls =
            self.running.values().filter(|given| uses_registry(&given.how) && given.image.registry() == registry);
        let is_free = || pulls.count() < PER_REGISTRY && !self.limited(now).contains(registry);
        !paused && (!uses_registry(&order.how) || is_free())
    }

    fn failures(&self, order: &Order) -> u32 {
        self.nodes.get(&order.key()).map_or(0, |pause| pause.failures)
    }

    /// Forgets the pauses of nodes and images that are not there any more.
    fn forget(&mut self, situation: &Situation<'_>, wanted: &BTreeMap<ImageReference, Wanted<'_>>) {
        self.nodes.retain(|(node, image, _), _| situation.fleet.hosts.contains_key(node) && wanted.contains_key(image));
        self.registries.retain(|registry, _| wanted.keys().any(|image| image.registry() == registry));
    }
}

impl Order {
    fn key(&self) -> Key {
        (self.node, self.image.clone(), self.how == Fetch::Missing)
    }
}

impl Pause {
    /// One more failure.
    fn again(&mut self, now: BootInstant) {
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        self.until = now.plus(doubled.min(LONGEST_PAUSE));
    }
}

impl Situation<'_> {
    /// Whether a node answers and may run sessions of one of these workspaces.
    fn may_run(&self, node: &NodeId, workspaces: &[&Workspace]) -> bool {
        let Some(host) = self.fleet.hosts.get(node) else { return false };
        let figures = HostFigures {
            node: &host.profile,
            in_flight: Resources::default(),
            heard: self.reached.contains(node),
            has_image: false,
        };
        workspaces.iter().any(|workspace| may_run(&figures, workspace))
    }
}

/// Every image of the catalogue.
fn wanted(workspaces: &BTreeMap<Name, Arc<Workspace>>) -> BTreeMap<ImageReference, Wanted<'_>> {
    let mut all: BTreeMap<ImageReference, Wanted<'_>> = BTreeMap::new();
    for workspace in workspaces.values() {
        let Some(text) = workspace.image_reference() else { continue };
        let Ok(image) = ImageReference::parse(&text) else { continue };
        let empty = || Wanted { texts: BTreeSet::new(), workspaces: Vec::new() };
        let wanted = all.entry(image).or_insert_with(empty);
        wanted.texts.insert(text);
        wanted.workspaces.push(workspace);
    }
    all
}

/// The nodes that are to have an image before a session needs it, and do not have it.
fn ahead(image: &ImageReference, wanted: &Wanted<'_>, situation: &Situation<'_>) -> Vec<Order> {
    let prepull: Vec<&Workspace> = wanted.workspaces.iter().copied().filter(|workspace| workspace.prepull).collect();
    if prepull.is_empty() {
        return Vec::new();
    }
    let lacks = |host: &HostView| !wanted.texts.iter().any(|text| host.images.contains_key(text));
    let nodes = situation.fleet.hosts.iter().filter(|(_, host)| lacks(host)).map(|(id, _)| *id);
    let may = nodes.filter(|node| situation.may_run(node, &prepull));
    may.map(|node| Order { node, image: image.clone(), how: Fetch::Missing }).collect()
}

/// What a session would wait for comes first.
const fn rank(how: &Fetch) -> u8 {
    match how {
        Fetch::Missing => 0,
        Fetch::Checked { .. } => 1,
        Fetch::Refresh => 2,
    }
}

const fn uses_registry(how: &Fetch) -> bool {
    match how {
        Fetch::Missing | Fetch::Refresh => true,
        Fetch::Checked { .. } => false,
    }
}

/// Whether other nodes would fail in the same way.
const fn is_of_registry(error: &NotFetched) -> bool {
    match error {
        NotFetched::Refused(images::Error::Pull(error)) => {
            matches!(error.cause, PullCause::Limited | PullCause::Registry | PullCause::Stalled)
        }
        NotFetched::Refused(_) | NotFetched::Unanswered(_) => false,
    }
}

#[cfg(test)]
mod tests;
