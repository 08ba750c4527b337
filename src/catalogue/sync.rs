//! Merges catalogues that differ: with the leader's at once after a start, and with the catalogue of any node whose
//! digest still differs after its changes had time to spread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Handle, ReplicaError, Request, Weak};
use crate::election::Leadership;
use crate::gossip::ClusterView;
use crate::types::{NodeId, NodeState};

/// How often this node compares its digest with those of the others.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a digest must differ before the catalogues are compared: gossip spreads the digest later than the leader
/// sends the entries.
const DIFFERS_FOR: Duration = Duration::from_secs(2);

/// The nodes whose digest differs from this node's, with the digest and since when it differs.
type Differing = BTreeMap<NodeId, (String, Instant)>;

/// Runs as long as there is another handle.
pub(super) async fn run(
    catalogue: Weak,
    leadership: watch::Receiver<Arc<Leadership>>,
    mut view: watch::Receiver<Arc<ClusterView>>,
) {
    let mut differing = Differing::new();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(catalogue) = catalogue.upgrade() else { return };
        let leader = leadership.borrow().leader;
        if !catalogue.snapshot().synced && first_sync(&catalogue, leader.as_ref()).await {
            continue;
        }
        let members = view.borrow_and_update().clone();
        note(&mut differing, &members, &catalogue.snapshot().digest);
        if let Some(node) = next(&differing, leader.as_ref(), &catalogue.me) {
            exchange(&catalogue, &node).await;
            differing.remove(&node);
        }
    }
}

/// Compares with the leader for the first time. Returns whether the leader is known, so that it was tried.
async fn first_sync(catalogue: &Handle, leader: Option<&NodeId>) -> bool {
    let Some(leader) = leader else { return false };
    if *leader == catalogue.me || exchange(catalogue, leader).await {
        // If the owner is gone, there is nothing to tell it.
        let _ = catalogue.requests.send(Request::Synced).await;
    }
    true
}

fn note(differing: &mut Differing, view: &ClusterView, ours: &str) {
    let alive = view.members.iter().filter(|(_, member)| member.state == NodeState::Alive);
    let now: BTreeMap<NodeId, String> = alive
        .filter_map(|(id, member)| Some((*id, member.catalogue.clone()?)))
        .filter(|(_, digest)| digest != ours)
        .collect();
    differing.retain(|id, (digest, _)| now.get(id) == Some(digest));
    for (id, digest) in now {
        differing.entry(id).or_insert_with(|| (digest, Instant::now()));
    }
}

/// The node to compare with: the leader first, then the node that has differed longest. Of two nodes that differ, the
/// node with the smaller id begins, unless the other is the leader.
fn next(differing: &Differing, leader: Option<&NodeId>, me: &NodeId) -> Option<NodeId> {
    let mut due: Vec<_> = differing.iter().filter(|(_, (_, since))| since.elapsed() >= DIFFERS_FOR).collect();
    due.sort_by_key(|(id, (_, since))| (leader != Some(*id), *since));
    due.into_iter().map(|(id, _)| id).find(|id| leader == Some(*id) || me < *id).copied()
}

/// Gets the entries that are newer there, and sends those that are newer here. Returns whether both succeeded.
async fn exchange(catalogue: &Handle, node: &NodeId) -> bool {
    let ours = catalogue.snapshot();
    let exchanged = async {
        let difference = catalogue.replicas.compare(node, ours.contents.versions()).await?;
        // As it is before what is newer there replaces it: what lost is told there, too.
        let wanted = ours.contents.of_keys(&difference.wanted);
        catalogue.keep(difference.newer).await?;
        if wanted.is_empty() { Ok(()) } else { catalogue.replicas.keep(node, wanted).await }
    };
    let outcome: Result<(), ReplicaError> = exchanged.await;
    if let Err(error) = &outcome {
        tracing::debug!(%node, %error, "cannot compare catalogues with a node");
    }
    outcome.is_ok()
}
