//! The owners of this node's part in the cluster: the election, placement, gossip and the cluster's signs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;

use super::{Start, address};
use crate::cluster::{Host, Leader, Mesh, news, signs};
use crate::net::Net;
use crate::net::gossip::GossipTransport;
use crate::node::ClusterSigns;
use crate::placement::Placer;
use crate::types::{ClusterMode, NodeId};
use crate::{election, gossip, placement, rollout};

/// Between two rounds of gossip. It is read once at start, and what it costs grows with the cluster.
const GOSSIP_EVERY: Duration = Duration::from_secs(1);

impl Start {
    pub(super) fn election(
        &mut self,
        (store, stored): (election::store::Store, election::state::Stored),
    ) -> election::Handle {
        let started = election::task::spawn(election::task::Parts {
            config: election::Config::new(self.base.config.cluster.mode),
            me: self.base.me,
            store,
            stored,
            members: self.watches.members.clone(),
            peers: Arc::new(self.peers.clone()),
            clock: self.base.clock.clone(),
            seed: seed_of(&self.base.me, self.base.incarnation),
        });
        let election = self.owners.add("the owner of the election", started);
        self.metrics.add(election.metrics());
        election
    }

    /// Starts the owner of placement: what this node does while it leads.
    pub(super) fn placement(&mut self, host: &Host, hosts: &Mesh) -> Leader {
        let config = &self.base.config;
        let (cluster, leadership) = (config.cluster.name.clone(), host.election.leadership());
        let view = self.watches.view.clone();
        let started = placement::task::spawn(placement::task::Parts {
            cluster: cluster.clone(),
            config: self.followed.placement.clone(),
            leadership: leadership.clone(),
            view: view.clone(),
            hosts: Arc::new(hosts.clone()),
            clock: self.base.clock.clone(),
        });
        let placement = self.owners.add("the owner of placements", started);
        self.metrics.add(placement.metrics());
        let fleet = placement.fleet();
        let placer = Placer::new(cluster, host.catalogue.clone(), placement);
        Leader { host: host.clone(), placer, fleet, leadership, view }
    }

    /// Starts the owner of the rollout of images: what this node does about them while it leads.
    pub(super) fn rollout(&mut self, hosts: &Mesh, leader: &Leader) {
        let task = rollout::task::spawn(rollout::task::Parts {
            leadership: leader.leadership.clone(),
            fleet: leader.fleet.clone(),
            catalogue: leader.host.catalogue.watch(),
            hosts: Arc::new(hosts.clone()),
            clock: self.base.clock.clone(),
        });
        self.owners.add("the owner of the rollout of images", ((), task));
    }

    /// Starts gossip, which tells the others of this host. It starts after the owners that it tells of.
    pub(super) async fn gossip(
        &mut self,
        net: &Net,
        host: &Host,
        roster: (gossip::roster::Store, gossip::roster::Stored),
        channels: gossip::Channels,
    ) -> Result<gossip::Handle> {
        let cluster = &self.base.config.cluster;
        let config = gossip::Config {
            me: self.base.me,
            cluster: cluster.name.clone(),
            bound: net.local_addr().context("the mesh's own address is not known")?,
            route: address::source_towards,
            places: self.followed.places.clone(),
            mode: cluster.mode,
            interval: GOSSIP_EVERY,
        };
        let (source, transport) = (published(host.clone(), cluster.mode), Arc::new(GossipTransport(net.clone())));
        let started = gossip::task::spawn(config, transport, source, roster, channels, self.base.clock.clone());
        let gossip = self.owners.add("the owner of gossip", started.await?);
        // It is set this once.
        let _ = host.gossip.set(gossip.clone());
        Ok(gossip)
    }

    /// Starts what tells the event log of nodes and leaders.
    pub(super) fn news(&mut self, host: &Host) {
        let me = (self.base.me, self.base.config.node.name.clone());
        let (leadership, view) = (host.election.leadership(), self.watches.view.clone());
        let task = news::spawn(me, leadership, view, self.events.clone(), self.base.clock.clone());
        self.owners.add("the watch over the cluster", ((), task));
    }

    /// Starts the owner of the cluster's signs, last: it reads what gossip and the catalogue publish.
    pub(super) fn signs(&mut self, net: Option<Net>, host: &Host, publish: watch::Sender<Arc<ClusterSigns>>) {
        let (mode, view) = (self.base.config.cluster.mode, self.watches.view.clone());
        let task = signs::spawn(mode, net, view, host.catalogue.watch(), publish);
        self.owners.add("the owner of the cluster's signs", ((), task));
    }
}

/// What gossip tells of this node.
fn published(host: Host, mode: ClusterMode) -> gossip::task::Source {
    Arc::new(move || {
        let sessions = host.sessions.snapshot();
        let here = sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        gossip::keys::Published {
            profile: host.observer.observed().profile,
            usage: host.observer.usage(),
            sessions: here.map(|(_, session)| Arc::clone(session)).collect(),
            catalogue: host.catalogue.snapshot().digest.clone(),
            mode,
        }
    })
}

/// Different on every node and at every start.
fn seed_of(me: &NodeId, incarnation: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (me.as_str(), incarnation).hash(&mut hasher);
    hasher.finish()
}
