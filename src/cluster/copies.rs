//! The images of other nodes, for the owner of the images.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use futures_util::StreamExt;

use super::mesh::Peers;
use super::{QUICK, SLOW, ViewWatch};
use crate::gossip::ClusterView;
use crate::images::offers::{Offer, Wanted};
use crate::images::{self, NotGiven};
use crate::net::Net;
use crate::runtime::ByteStream;
use crate::types::{ImageReference, Name, NodeId, NodeState};
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

/// The nodes that may answer, with their names. Gossip does not tell all of them: it may not have heard of a new node yet,
/// or not hear a busy one for a moment. Those that answer soonest come first: to dial a node takes longer than to ask one
/// that is connected.
pub(super) fn may_answer(view: &ClusterView, connected: &BTreeMap<NodeId, Name>) -> Vec<(NodeId, String)> {
    let state = |node: &NodeId| view.members.get(node).map(|member| member.state);
    let rank = |node: &NodeId| match (state(node), connected.contains_key(node)) {
        (Some(NodeState::Left), _) => None,
        (Some(NodeState::Alive), true) => Some(0),
        (Some(NodeState::Alive), false) => Some(1),
        (_, true) => Some(2),
        (Some(NodeState::Suspect), false) => Some(3),
        (Some(NodeState::Unknown) | None, false) => None,
    };
    let profile = |node: &NodeId| view.members.get(node)?.profile.as_ref().map(|profile| profile.name.to_string());
    let name = |node: &NodeId| {
        connected.get(node).map(Name::to_string).or_else(|| profile(node)).unwrap_or_else(|| node.to_string())
    };
    let known: BTreeSet<&NodeId> = view.members.keys().chain(connected.keys()).collect();
    let mut nodes: Vec<(u8, &NodeId)> = known.into_iter().filter_map(|node| Some((rank(node)?, node))).collect();
    nodes.sort_unstable();
    nodes.into_iter().map(|(_, node)| (*node, name(node))).collect()
}

/// The connected nodes, with their names.
pub(super) fn connected(net: &Net) -> BTreeMap<NodeId, Name> {
    net.connected().into_iter().map(|hello| (hello.node, hello.name.clone())).collect()
}

#[async_trait]
impl images::Peers for Copies {
    fn nodes(&self) -> Vec<(NodeId, String)> {
        let Some(net) = &self.peers.0 else { return Vec::new() };
        may_answer(&self.view.borrow(), &connected(net))
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
    use std::sync::Arc;

    use super::*;
    use crate::gossip::Member;
    use crate::types::{ClusterMode, Timestamp, sample};

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 10])
    }

    #[test]
    fn nodes_that_gossip_does_not_hear_are_asked_after_those_that_it_does() {
        let mut view = ClusterView::default();
        for (byte, name, state) in [
            (1, "suspect", NodeState::Suspect),
            (2, "alive", NodeState::Alive),
            (3, "connected", NodeState::Alive),
            (4, "unknown", NodeState::Unknown),
            (5, "left", NodeState::Left),
            (6, "unknown-connected", NodeState::Unknown),
            (7, "left-connected", NodeState::Left),
        ] {
            let member = Member {
                address: "127.0.0.1:7000".parse().unwrap(),
                incarnation: 1,
                state,
                mode: ClusterMode::Available,
                last_seen: Timestamp::default(),
                profile: Some(Arc::new(sample::profile(name, id(byte).as_ref()))),
                usage: sample::usage(),
                sessions: BTreeMap::new(),
                catalogue: None,
            };
            view.members.insert(id(byte), Arc::new(member));
        }
        let name = |name: &str| name.parse::<Name>().unwrap();
        let connected = [
            (id(3), name("connected")),
            (id(6), name("unknown-connected")),
            (id(7), name("left-connected")),
            (id(8), name("new")),
        ];
        let names: Vec<String> = may_answer(&view, &connected.into()).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["connected", "alive", "unknown-connected", "new", "suspect"]);
    }
}
