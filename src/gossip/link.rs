//! The adapter to chitchat.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::transport::Transport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, spawn_chitchat};
use tokio::sync::watch;

use super::keys::{self, Heard};
use super::{Config, Entry, StartError};

/// A node counts as dead once it is silent for this many times the mean interval between its heartbeats. The mean is
/// short, since each message carries the heartbeats of every node.
const PHI: f64 = 14.0;
/// Intervals in the mean, in addition to five of the initial interval. They are few, so that in a large cluster, where
/// messages are frequent, a moment without one is not taken for a death.
const SAMPLES: usize = 20;
/// Rounds: a longer interval between two heartbeats is not counted in the mean.
const MAX_INTERVAL_ROUNDS: u32 = 10;
/// Rounds for which a dead life of a node is kept and spread. Each restart of an agent leaves one behind.
const DEAD_ROUNDS: u32 = 600;
/// Rounds for which the deletion of a key is spread. A node that misses it is sent all keys again.
const DELETED_ROUNDS: u32 = 180;
/// The longest time for each of the two above, however slow the rounds are.
const MAX_GRACE: Duration = Duration::from_secs(600);

/// The version of a node's keys.
type Version = (u64, u64);
/// What chitchat publishes when a node joins, dies or changes its keys.
pub(super) type Changes = watch::Receiver<BTreeMap<ChitchatId, NodeState>>;

/// A running chitchat. It ends when the link is dropped.
pub(super) struct Link {
    chitchat: ChitchatHandle,
    /// What has been read of each life, with the version of its keys.
    read: HashMap<ChitchatId, (Version, Arc<Heard>)>,
    /// The keys of this node.
    said: BTreeMap<String, String>,
}

/// Why chitchat ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("it was shut down")]
    ShutDown,
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

/// A node's state; the keys only where they were not read yet.
struct State {
    id: ChitchatId,
    live: bool,
    version: Version,
    keys: Option<Vec<(String, String)>>,
}

impl Link {
    /// Starts chitchat with these keys. It gossips with no node before [`Link::dial`] gives it an address.
    pub(super) async fn start(
        config: &Config,
        address: SocketAddr,
        incarnation: u64,
        keys: BTreeMap<String, String>,
        transport: &dyn Transport,
    ) -> Result<Self, StartError> {
        let grace = |rounds: u32| config.interval.saturating_mul(rounds).min(MAX_GRACE);
        let failure_detector_config = FailureDetectorConfig {
            phi_threshold: PHI,
            sampling_window_size: SAMPLES,
            max_interval: config.interval.saturating_mul(MAX_INTERVAL_ROUNDS),
            initial_interval: config.interval,
            dead_node_grace_period: grace(DEAD_ROUNDS),
        };
        let chitchat = ChitchatConfig {
            chitchat_id: ChitchatId::new(config.me.as_str(), incarnation, address),
            cluster_id: config.cluster.to_string(),
            gossip_interval: config.interval,
            listen_addr: address,
            seed_nodes: Vec::new(), // with names here, chitchat would wait for a name server before it starts
            failure_detector_config,
            marked_for_deletion_grace_period: grace(DELETED_ROUNDS),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let initial = keys.clone().into_iter().collect();
        let started = spawn_chitchat(chitchat, initial, transport).await;
        let chitchat = started.map_err(|error| StartError(error.into()))?;
        Ok(Self { chitchat, read: HashMap::new(), said: keys })
    }

    /// The keys of this node.
    pub(super) fn said(&self) -> &BTreeMap<String, String> {
        &self.said
    }

    /// Publishes these keys in place of the previous ones.
    pub(super) async fn say(&mut self, keys: BTreeMap<String, String>) {
        if keys == self.said {
            return;
        }
        let before = &self.said;
        self.chitchat
            .with_chitchat(|chitchat| {
                let own = chitchat.self_node_state();
                for (key, value) in keys.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
                    own.set(key, value);
                }
                before.keys().filter(|key| !keys.contains_key(*key)).for_each(|key| own.delete(key));
            })
            .await;
        self.said = keys;
    }

    /// Every known life of every node, except this one.
    pub(super) async fn entries(&mut self) -> Vec<Entry> {
        let states = self.states().await;
        let known: HashSet<ChitchatId> = states.iter().map(|state| state.id.clone()).collect();
        self.read.retain(|id, _| known.contains(id));
        states.into_iter().filter_map(|state| self.entry(state)).collect()
    }

    /// Copies the keys that have not been read yet under chitchat's lock. chitchat does not gossip meanwhile, so the
    /// keys are parsed afterwards.
    async fn states(&self) -> Vec<State> {
        let own = self.chitchat.chitchat_id();
        self.chitchat
            .with_chitchat(|chitchat| {
                let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
                let others = chitchat.node_states().iter().filter(|(id, _)| *id != own);
                let state = |(id, state): (&ChitchatId, &NodeState)| {
                    let version = state.monotonic_property();
                    let is_read = self.read.get(id).is_some_and(|(read, _)| *read == version);
                    let copy = || state.key_values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                    State { id: id.clone(), live: live.contains(id), version, keys: (!is_read).then(copy) }
                };
                others.map(state).collect()
            })
            .await
    }

    fn entry(&mut self, state: State) -> Option<Entry> {
        let id = state.id.node_id.parse().ok()?;
        let heard = match state.keys {
            Some(keys) => {
                let heard = keys::read(&id, keys.iter().map(|(key, value)| (key.as_str(), value.as_str())));
                let heard = Arc::new(heard);
                self.read.insert(state.id.clone(), (state.version, Arc::clone(&heard)));
                heard
            }
            None => self.read.get(&state.id).map(|(_, heard)| Arc::clone(heard)).unwrap_or_default(),
        };
        let (incarnation, address) = (state.id.generation_id, state.id.gossip_advertise_addr);
        Some(Entry { id, incarnation, address, live: state.live, heard })
    }

    /// Gossips once with the node at this address.
    pub(super) fn dial(&self, address: SocketAddr) {
        // This fails only after chitchat has ended, which `ended` reports.
        let _ = self.chitchat.gossip(address);
    }

    /// A watch that changes whenever a node joins, dies or changes its keys.
    pub(super) async fn changes(&self) -> Changes {
        self.chitchat.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await
    }

    /// Why chitchat ended, once it does.
    pub(super) fn ended(&self) -> impl Future<Output = Ended> + use<> {
        let ended = self.chitchat.termination_watcher();
        async move { ended.await.map_or_else(|error| Ended::Failed(error.into()), |()| Ended::ShutDown) }
    }

    /// Shuts chitchat down, and waits for its end. The transport is free afterwards.
    pub(super) async fn end(&self) {
        // This fails only if it has ended.
        let _ = self.chitchat.initiate_shutdown();
        let ended = self.ended().await;
        tracing::debug!(%ended, "gossip was shut down");
    }
}

#[cfg(test)]
mod tests {
    use chitchat::transport::ChannelTransport;

    use super::*;
    use crate::gossip::fixture::{id, published};
    use crate::types::ClusterMode;

    /// Short enough for a test to wait until deleted keys are forgotten.
    const ROUND: Duration = Duration::from_millis(5);

    async fn start(n: u8, transport: &ChannelTransport) -> Link {
        let config = Config {
            me: id(n),
            cluster: "c".parse().unwrap(),
            bound: SocketAddr::from(([127, 0, 0, 1], u16::from(n))),
            route: |_| None,
            places: watch::channel(crate::gossip::Places::default()).1,
            mode: ClusterMode::Available,
            interval: ROUND,
        };
        Link::start(&config, config.bound, 1, keys::write(&published(n, 0)), transport).await.unwrap()
    }

    /// The number of keys that chitchat keeps of each node, deleted ones included.
    async fn kept(link: &Link) -> Vec<usize> {
        let count = |state: &NodeState| state.key_values_including_deleted().count();
        link.chitchat.with_chitchat(|chitchat| chitchat.node_states().values().map(count).collect()).await
    }

    async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waited = async {
            while !is_so().await {
                tokio::time::sleep(ROUND).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap_or_else(|_| panic!("{what}"));
    }

    #[tokio::test]
    async fn keys_of_sessions_that_are_gone_are_forgotten_on_every_node() {
        let transport = ChannelTransport::default();
        let (mut one, mut two) = (start(1, &transport).await, start(2, &transport).await);
        two.dial(SocketAddr::from(([127, 0, 0, 1], 1)));
        let baseline = one.said().len();
        until("both know all keys", async || kept(&two).await == [baseline; 2]).await;
        for sessions in [40, 0, 25, 0] {
            one.say(keys::write(&published(1, sessions))).await;
            let expected = usize::try_from(sessions).unwrap();
            until("the other has the sessions", async || {
                two.entries().await.first().is_some_and(|entry| entry.heard.sessions.len() == expected)
            })
            .await;
        }
        until("nothing is left", async || kept(&one).await == [baseline; 2] && kept(&two).await == [baseline; 2]).await;
    }
}
