//! What the mesh and the catalogue know of this node's place in the cluster, for its conditions.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::catalogue::{Key, Snapshot};
use crate::gossip::ClusterView;
use crate::net::Net;
use crate::node::ClusterSigns;
use crate::types::{ClusterMode, NodeState};

/// Starts the owner. It ends when the last reader of the signs is dropped.
pub fn spawn(
    mode: ClusterMode,
    net: Option<Net>,
    view: watch::Receiver<Arc<ClusterView>>,
    catalogue: watch::Receiver<Arc<Snapshot>>,
    publish: watch::Sender<Arc<ClusterSigns>>,
) -> JoinHandle<()> {
    // Without a mesh this node meets no duplicate.
    let met = net.map_or_else(|| watch::channel(None).1, |net| net.duplicate());
    tokio::spawn(run(mode, met, view, catalogue, publish))
}

async fn run(
    mode: ClusterMode,
    mut met: watch::Receiver<Option<SocketAddr>>,
    mut view: watch::Receiver<Arc<ClusterView>>,
    mut catalogue: watch::Receiver<Arc<Snapshot>>,
    publish: watch::Sender<Arc<ClusterSigns>>,
) {
    loop {
        let now = signs(mode, *met.borrow_and_update(), &view.borrow_and_update(), &catalogue.borrow_and_update());
        publish.send_if_modified(|before| {
            let news = **before != now;
            if news {
                *before = Arc::new(now);
            }
            news
        });
        tokio::select! {
            () = publish.closed() => return,
            // `changed` fails once the sender is dropped, which disables its branch.
            Ok(()) = met.changed() => {}
            Ok(()) = view.changed() => {}
            Ok(()) = catalogue.changed() => {}
        }
    }
}

fn signs(mode: ClusterMode, met: Option<SocketAddr>, view: &ClusterView, catalogue: &Snapshot) -> ClusterSigns {
    let there = view.members.values().filter(|member| member.state == NodeState::Alive && member.mode != mode);
    let named = there.filter_map(|member| Some(member.profile.as_ref()?.name.clone()));
    let conflicts = catalogue.contents.conflicts().map(|conflict| match &conflict.previous.key {
        Key::Workspace(name) => format!("workspace {name}"),
        Key::Token(id) => format!("API token {id}"),
    });
    ClusterSigns {
        duplicate: met.or(view.duplicate).map(|address| address.to_string()),
        alone: view.alone.then(|| "no seed has answered yet; the agent's log says why".to_owned()),
        mode_mismatch: named.collect(),
        conflicts: conflicts.collect(),
    }
}
