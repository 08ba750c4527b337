//! The images of other nodes, for the owner of the images.

use async_trait::async_trait;
use futures_util::StreamExt;

use super::mesh::Peers;
use super::{QUICK, SLOW, ViewWatch};
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

#[async_trait]
impl images::Peers for Copies {
    fn nodes(&self) -> Vec<(NodeId, String)> {
        let Some(net) = &self.peers.0 else { return Vec::new() };
        let view = self.view.borrow();
        let alive = view.members.iter().filter(|(_, member)| member.state == NodeState::Alive);
        let name = |node: &NodeId, profile: Option<&crate::types::NodeProfile>| {
            profile.map_or_else(|| node.to_string(), |profile| profile.name.to_string())
        };
        let mut nodes: Vec<(NodeId, String)> =
            alive.map(|(node, member)| (*node, name(node, member.profile.as_deref()))).collect();
        // To dial a node takes longer than to ask one that is connected.
        nodes.sort_by_key(|(node, _)| net.hello_of(node).is_none());
        nodes
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
