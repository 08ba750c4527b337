//! The images of other nodes, for the owner of the images.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;

use super::mesh::Peers;
use super::{QUICK, SLOW, ViewWatch};
use crate::gossip::{ClusterView, Member};
use crate::images::offers::{Offer, Wanted};
use crate::images::{self, NotGiven};
use crate::runtime::ByteStream;
use crate::types::{ImageReference, NodeId, NodeState};
use crate::wire::message::{CopyImage, OfferImage};

/// The other nodes, as those that may have images.
pub struct Copies {
    peers: Peers,
    view: ViewWatch,
}

impl Copies {
    pub const fn new(peers: Peers, view: ViewWatch) -> Self {
        Self { peers, view }
    }
}

/// The nodes that may answer, with their names. A suspect node is one of them: on a busy host gossip may not hear a node
/// for a moment. Those that answer soonest come first: to dial a node takes longer than to ask one that is connected.
fn may_answer(view: &ClusterView, is_connected: impl Fn(&NodeId) -> bool) -> Vec<(NodeId, String)> {
    let may = |member: &Member| matches!(member.state, NodeState::Alive | NodeState::Suspect);
    let mut nodes: Vec<(&NodeId, &Arc<Member>)> = view.members.iter().filter(|(_, member)| may(member)).collect();
    nodes.sort_by_key(|(node, member)| (member.state != NodeState::Alive, !is_connected(node)));
    let name = |node: &NodeId, member: &Member| {
        member.profile.as_ref().map_or_else(|| node.to_string(), |profile| profile.name.to_string())
    };
    nodes.into_iter().map(|(node, member)| (*node, name(node, member))).collect()
}

#[async_trait]
impl images::Peers for Copies {
    fn nodes(&self) -> Vec<(NodeId, String)> {
        let Some(net) = &self.peers.0 else { return Vec::new() };
        may_answer(&self.view.borrow(), |node| net.hello_of(node).is_some())
    }

    async fn offer(&self, node: &NodeId, image: &ImageReference) -> Option<Offer> {
        self.peers.call(node, OfferImage(image.clone()), None, QUICK).await.ok()?
    }

    async fn take(&self, node: &NodeId, wanted: Wanted) -> Result<ByteStream, NotGiven> {
        let unanswered = |error: &dyn std::error::Error| NotGiven::Unanswered(error.to_string());
        let Some(net) = &self.peers.0 else { return Err(unanswered(&crate::net::Cause::Alone)) };
        let asked = net.call_stream(node, CopyImage(wanted), None, SLOW).await;
        let (answer, archive) = asked.map_err(|error| unanswered(&error))?;
        answer?;
        Ok(archive.boxed())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::{ClusterMode, Timestamp, sample};

    #[test]
    fn a_suspect_node_is_asked_after_those_that_are_alive_and_connected_nodes_first() {
        let mut view = ClusterView::default();
        for (byte, name, state) in [
            (1, "suspect", NodeState::Suspect),
            (2, "alive", NodeState::Alive),
            (3, "connected", NodeState::Alive),
            (4, "unknown", NodeState::Unknown),
            (5, "left", NodeState::Left),
        ] {
            let id = NodeId::from_bytes([byte; 10]);
            let member = Member {
                address: "127.0.0.1:7000".parse().unwrap(),
                incarnation: 1,
                state,
                mode: ClusterMode::Available,
                last_seen: Timestamp::default(),
                profile: Some(Arc::new(sample::profile(name, id.as_ref()))),
                usage: sample::usage(),
                sessions: BTreeMap::new(),
                catalogue: None,
            };
            view.members.insert(id, Arc::new(member));
        }
        let connected = NodeId::from_bytes([3; 10]);
        let names: Vec<String> =
            may_answer(&view, |node| *node == connected).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["connected", "alive", "suspect"]);
    }
}
