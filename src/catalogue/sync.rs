//! Merges catalogues that differ: with the leader's directly after a start, and with those of nodes whose digest
//! still differs after changes have had the time to spread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Handle, Request, Weak};
use crate::election::Leadership;
use crate::gossip::ClusterView;
use crate::types::{NodeId, NodeState};

/// How often the digests of other nodes are compared.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a digest must differ before the catalogues are compared: a digest spreads by gossip, more slowly than the
/// leader replicates the entries.
const DIFFERS_FOR: Duration = Duration::from_secs(2);

/// The nodes whose digest differs from this node's: the digest, and since when.
type Differing = BTreeMap<NodeId, (String, Instant)>;

/// Runs as long as a [`Handle`] exists.
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

/// Compares with the leader for the first time. True if there is a leader, whether the comparison succeeded or not.
async fn first_sync(catalogue: &Handle, leader: Option<&NodeId>) -> bool {
    let Some(leader) = leader else { return false };
    if *leader == catalogue.me || exchange(catalogue, leader).await {
        // Fails only if the owner has ended, which ends this task too.
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

/// The next node to compare with: the leader first, then the node that has differed longest. Of two followers that
/// differ, the one with the smaller id compares, so that only one of them does.
fn next(differing: &Differing, leader: Option<&NodeId>, me: &NodeId) -> Option<NodeId> {
    let mut due: Vec<_> = differing.iter().filter(|(_, (_, since))| since.elapsed() >= DIFFERS_FOR).collect();
    due.sort_by_key(|(id, (_, since))| (leader != Some(*id), *since));
    due.into_iter().map(|(id, _)| id).find(|id| leader == Some(*id) || me < *id).copied()
}

/// Fetches the newer entries of the other node, and sends it the newer entries of this one.
async fn exchange(catalogue: &Handle, node: &NodeId) -> bool {
    let ours = catalogue.snapshot();
    let exchanged = async {
        let difference = catalogue.replicas.compare(node, ours.book.versions()).await?;
        // Read before newer entries replace them, so that the other node also learns of entries that lost.
        let wanted = ours.book.of_keys(&difference.wanted);
        catalogue.keep(difference.newer).await.map_err(|error| error.to_string())?;
        if wanted.is_empty() { Ok(()) } else { catalogue.replicas.keep(node, wanted).await }
    };
    let outcome: Result<(), String> = exchanged.await;
    if let Err(error) = &outcome {
        tracing::debug!(%node, %error, "cannot compare catalogues");
    }
    outcome.is_ok()
}
