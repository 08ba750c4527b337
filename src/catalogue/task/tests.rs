//! Several owners, each with its own file, that reach each other unless the network is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::*;
use crate::catalogue::{Difference, ReplicaError, Versions};
use crate::election::Reign;
use crate::gossip::{ClusterView, Member};
use crate::types::{
    Actor, ApiTokenRequest, BootInstant, Bytes, ClusterMode, Cores, Moment, NodeState, NodeUsage, Role, Timestamp,
    sample,
};

const BOOT: Moment =
    Moment { wall: Timestamp::from_millis(1_000_000), boot: BootInstant::from_millis(60_000), boot_id: 1 };
/// Longer than any condition that a test waits for takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn workspace(text: &str, cores: u32) -> Workspace {
    let mut workspace = Workspace::new(name(text), Cores::whole(cores), Bytes::gib(1));
    workspace.image = Some("desktop:1".to_owned());
    workspace
}

fn put(text: &str, cores: u32) -> Edit {
    Edit::Put { workspace: Box::new(workspace(text, cores)), create_only: false }
}

fn token_request(body: serde_json::Value) -> Edit {
    Edit::CreateToken(serde_json::from_value::<ApiTokenRequest>(body).unwrap())
}

/// The network between the nodes.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<Wires>>);

#[derive(Default)]
struct Wires {
    nodes: BTreeMap<NodeId, Handle>,
    cut: BTreeSet<NodeId>,
    /// Calls that did not reach their node.
    lost: u32,
}

impl Network {
    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap()
    }

    fn cut(&self, n: u8) {
        self.wires().cut.insert(id(n));
    }

    fn mend(&self) {
        self.wires().cut.clear();
    }
}

struct Wire {
    from: NodeId,
    network: Network,
}

impl Wire {
    fn to(&self, node: &NodeId) -> Result<Handle, ReplicaError> {
        let mut wires = self.network.wires();
        let cut = |node| wires.cut.contains(node);
        let reached = wires.nodes.get(node).filter(|_| !cut(node) && !cut(&self.from)).cloned();
        wires.lost += u32::from(reached.is_none());
        reached.ok_or_else(|| ReplicaError::Unanswered("no answer".into()))
    }
}

#[async_trait]
impl Replicas for Wire {
    async fn keep(&self, node: &NodeId, entries: Vec<Entry>) -> Result<(), ReplicaError> {
        Ok(self.to(node)?.keep(entries).await?)
    }

    async fn compare(&self, node: &NodeId, versions: Versions) -> Result<Difference, ReplicaError> {
        Ok(self.to(node)?.compare(&versions))
    }
}

struct Catalogue {
    handle: Handle,
    leadership: watch::Sender<Arc<Leadership>>,
    view: watch::Sender<Arc<ClusterView>>,
    clock: Clock,
    directory: tempfile::TempDir,
    network: Network,
}

impl Catalogue {
    fn start(n: u8, network: &Network) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), n, network, BOOT)
    }

    fn start_in(directory: tempfile::TempDir, n: u8, network: &Network, now: Moment) -> Self {
        let (store, stored) = Store::open(directory.path(), &id(n), now.wall).unwrap();
        Self::start_on(directory, store, stored, n, network, now)
    }

    fn start_on(
        directory: tempfile::TempDir,
        store: Store,
        stored: Contents,
        n: u8,
        network: &Network,
        now: Moment,
    ) -> Self {
        let nobody = Leadership { leader: None, ballot: None, reign: None };
        let (leadership, led) = watch::channel(Arc::new(nobody));
        let (view, seen) = watch::channel(Arc::default());
        let clock = Clock::manual(now);
        let (handle, _) = spawn(Parts {
            store,
            stored,
            me: id(n),
            leadership: led,
            view: seen,
            replicas: Arc::new(Wire { from: id(n), network: network.clone() }),
            events: crate::events::recorder::nowhere(),
            clock: clock.clone(),
        });
        network.wires().nodes.insert(id(n), handle.clone());
        Self { handle, leadership, view, clock, directory, network: network.clone() }
    }

    /// A node that is its own leader.
    fn alone() -> Self {
        let catalogue = Self::start(1, &Network::default());
        catalogue.leads(1, &[1], 1);
        catalogue
    }

    /// Makes this node the leader of an electorate.
    fn leads(&self, term: u64, electorate: &[u8], needed: usize) {
        let ballot = Ballot { term, node: self.handle.me };
        let electorate: BTreeSet<NodeId> = electorate.iter().copied().map(id).collect();
        let (reached, lease) = (electorate.clone(), BootInstant::from_millis(u64::MAX));
        let reign = Some(Arc::new(Reign { ballot, electorate, reached, needed, lease }));
        let leader = Some(self.handle.me);
        self.leadership.send_replace(Arc::new(Leadership { leader, ballot: Some(ballot), reign }));
    }

    fn follows(&self, leader: u8) {
        self.leadership.send_replace(Arc::new(Leadership { leader: Some(id(leader)), ballot: None, reign: None }));
    }

    /// Brings another node's digest to this node, as gossip does.
    fn hears(&self, of: &Self) {
        let member = Member {
            address: "127.0.0.1:1".parse().unwrap(),
            incarnation: 1,
            state: NodeState::Alive,
            mode: ClusterMode::Available,
            last_seen: Timestamp::default(),
            profile: Some(Arc::new(sample::profile("other", of.handle.me.as_str()))),
            usage: NodeUsage::default(),
            sessions: BTreeMap::new(),
            catalogue: Some(of.handle.snapshot().digest.clone()),
        };
        let heard = of.handle.me;
        self.view.send_modify(|view| drop(Arc::make_mut(view).members.insert(heard, Arc::new(member))));
    }

    /// Stops the owner, and starts another one with the same file.
    async fn restart(self, now: Moment) -> Self {
        let Self { handle, directory, network, .. } = self;
        let me = handle.me;
        network.wires().nodes.clear();
        drop(handle);
        let store = loop {
            // The stopped owner may not have closed its file yet.
            match Store::open(directory.path(), &me, now.wall) {
                Err(crate::store::Error::InUse(_)) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        };
        Self::start_on(directory, store.0, store.1, 1, &network, now)
    }

    fn role_of(&self, secret: &str, now: Moment) -> Option<Role> {
        self.handle.snapshot().token_of(secret, now).map(|token| token.role)
    }

    fn workspaces(&self) -> Vec<(String, Cores)> {
        self.handle.snapshot().workspaces.values().map(|w| (w.name.to_string(), w.cores)).collect()
    }

    async fn has(&self, what: &str, is_so: impl Fn(&Snapshot) -> bool) {
        let mut watch = self.handle.watch();
        let seen = tokio::time::timeout(PATIENCE, watch.wait_for(|snapshot| is_so(snapshot))).await;
        seen.unwrap_or_else(|_| panic!("never {what}: {:?}", self.handle.snapshot())).unwrap();
    }
}

fn root() -> Actor {
    crate::types::sample::root()
}

/// Whether a workspace of this name is stored, with any value.
fn has_workspace(text: &str) -> impl Fn(&Snapshot) -> bool {
    let wanted = name(text);
    move |snapshot| snapshot.workspaces.contains_key(&wanted)
}

#[tokio::test]
async fn workspaces_are_added_replaced_removed_and_survive_a_restart() {
    let catalogue = Catalogue::alone();
    let edit = |edit| catalogue.handle.edit(edit, root());
    assert_eq!(edit(put("a", 1)).await, Ok(Edited::Put { new: true }));
    assert_eq!(edit(put("a", 1)).await, Ok(Edited::Put { new: false }), "nothing new");
    assert_eq!(edit(put("a", 2)).await, Ok(Edited::Put { new: false }));
    let create = Edit::Put { workspace: Box::new(workspace("a", 3)), create_only: true };
    assert_eq!(edit(create).await, Err(Error::WorkspaceExists(name("a"))));
    edit(put("b", 1)).await.unwrap();
    assert_eq!(edit(Edit::Delete(name("b"))).await, Ok(Edited::Done));
    assert_eq!(edit(Edit::Delete(name("b"))).await, Err(Error::NoWorkspace(name("b"))));
    let unusable = Workspace { cores: Cores::default(), ..workspace("c", 1) };
    let invalid = edit(Edit::Put { workspace: Box::new(unusable), create_only: false }).await;
    assert!(matches!(invalid, Err(Error::Invalid(_))), "{invalid:?}");

    let digest = catalogue.handle.snapshot().digest.clone();
    let again = catalogue.restart(BOOT).await;
    assert_eq!(again.workspaces(), [("a".to_owned(), Cores::whole(2))]);
    assert_eq!(again.handle.snapshot().digest, digest, "tombstones are kept, too");
}

#[tokio::test]
async fn only_the_leader_changes_the_catalogue() {
    let catalogue = Catalogue::start(1, &Network::default());
    assert_eq!(catalogue.handle.edit(put("a", 1), root()).await, Err(Error::NoLeader));
    catalogue.follows(2);
    assert_eq!(catalogue.handle.edit(put("a", 1), root()).await, Err(Error::NoLeader));
    assert_eq!(catalogue.workspaces(), []);
}

#[tokio::test]
async fn tokens_are_created_shown_once_and_revoked() {
    let catalogue = Catalogue::alone();
    let edit = |edit| catalogue.handle.edit(edit, root());
    let Ok(Edited::Token(new)) = edit(token_request(json!({"name": "ci", "role": "read"}))).await else { panic!() };
    assert_eq!(catalogue.role_of(&new.secret, BOOT), Some(Role::Read));
    assert_eq!(catalogue.role_of("ost_nonsense_x", BOOT), None);
    let twice = edit(token_request(json!({"name": "ci", "role": "admin"}))).await;
    assert_eq!(twice, Err(Error::TokenExists(name("ci"))));
    assert_eq!(edit(Edit::RevokeToken("ci".to_owned())).await, Ok(Edited::Done));
    assert_eq!(catalogue.role_of(&new.secret, BOOT), None);
    assert_eq!(edit(Edit::RevokeToken("ci".to_owned())).await, Err(Error::NoToken("ci".to_owned())));
}

#[tokio::test]
async fn a_token_expires_and_its_name_is_free_again() {
    let catalogue = Catalogue::alone();
    let request = || token_request(json!({"name": "ci", "role": "read", "expires_in_seconds": 60}));
    let Ok(Edited::Token(new)) = catalogue.handle.edit(request(), root()).await else { panic!() };
    let later = Moment { boot: BOOT.boot.plus(Duration::from_secs(61)), ..BOOT };
    assert_eq!(catalogue.role_of(&new.secret, later), None);
    assert_eq!(
        catalogue.handle.edit(request(), root()).await,
        Err(Error::TokenExists(name("ci"))),
        "it is not yet due"
    );
    catalogue.clock.advance(Duration::from_secs(61));
    assert!(catalogue.handle.edit(request(), root()).await.is_ok());
    assert_eq!(catalogue.handle.snapshot().tokens.len(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_written_is_not_made() {
    let (store, switch) = Store::failing();
    let directory = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::start_on(directory, store, Contents::default(), 1, &Network::default(), BOOT);
    catalogue.leads(1, &[1], 1);
    switch.set(true);
    assert!(matches!(catalogue.handle.edit(put("a", 1), root()).await, Err(Error::Store(_))));
    assert_eq!(catalogue.workspaces(), []);
    let entry = Entry {
        key: Key::Workspace(name("b")),
        version: crate::catalogue::Version { edits: 1, ballot: Ballot { term: 1, node: id(2) }, seq: 1 },
        changed_at: BOOT.wall,
        value: Value::Workspace(Box::new(workspace("b", 1))),
    };
    assert!(matches!(catalogue.handle.keep(vec![entry.clone()]).await, Err(Error::Store(_))), "it is not acknowledged");
    switch.set(false);
    assert_eq!(catalogue.handle.edit(put("a", 1), root()).await, Ok(Edited::Put { new: true }));
    catalogue.handle.keep(vec![entry]).await.unwrap();
    assert_eq!(catalogue.workspaces().len(), 2);
}

#[tokio::test]
async fn an_edit_is_answered_once_a_majority_has_it_and_reaches_every_node() {
    let network = Network::default();
    let nodes = [1, 2, 3].map(|n| Catalogue::start(n, &network));
    nodes[0].leads(1, &[1, 2, 3], 2);
    network.cut(3);
    nodes[0].handle.edit(put("a", 1), root()).await.unwrap();
    assert_eq!(nodes[1].workspaces().len(), 1, "a majority of three is one more");
    network.cut(2);
    let unknown = nodes[0].handle.edit(put("b", 1), root()).await;
    assert_eq!(unknown, Err(Error::OutcomeUnknown { acknowledged: 1, needed: 2 }));
    network.mend();
    assert_eq!(
        nodes[0].handle.edit(put("b", 1), root()).await,
        Ok(Edited::Put { new: false }),
        "asked again, it is brought"
    );
    nodes[1].has("b", has_workspace("b")).await;
    nodes[2].has("b", has_workspace("b")).await;
}

#[tokio::test]
async fn a_node_that_starts_gets_the_changes_that_it_missed_from_the_leader() {
    let network = Network::default();
    let (leader, other) = (Catalogue::start(1, &network), Catalogue::start(2, &network));
    leader.leads(1, &[1], 1);
    leader.handle.edit(put("a", 1), root()).await.unwrap();
    assert!(!other.handle.snapshot().synced);
    other.follows(1);
    other.has("synced", |snapshot| snapshot.synced).await;
    assert_eq!(other.workspaces(), leader.workspaces());
}

#[tokio::test]
async fn an_edit_waits_for_nodes_that_are_not_connected_yet() {
    let network = Network::default();
    let nodes = [1, 2, 3].map(|n| Catalogue::start(n, &network));
    nodes[0].leads(1, &[1, 2, 3], 2);
    network.cut(2);
    network.cut(3);
    let handle = nodes[0].handle.clone();
    let edit = tokio::spawn(async move { handle.edit(put("a", 1), root()).await });
    let both_lost = async {
        while network.wires().lost < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, both_lost).await.unwrap();
    network.mend();
    assert_eq!(edit.await.unwrap(), Ok(Edited::Put { new: true }));
}

#[tokio::test]
async fn after_a_partition_both_sides_merge_and_remember_the_lost_change() {
    let network = Network::default();
    let (one, two) = (Catalogue::start(1, &network), Catalogue::start(2, &network));
    network.cut(1);
    one.leads(1, &[1], 1);
    two.leads(2, &[2], 1);
    one.handle.edit(put("both", 1), root()).await.unwrap();
    two.handle.edit(put("both", 2), root()).await.unwrap();
    one.handle.edit(put("ours", 1), root()).await.unwrap();
    two.handle.edit(put("theirs", 1), root()).await.unwrap();
    network.mend();
    one.follows(2);
    one.hears(&two);
    two.hears(&one);
    let together = |snapshot: &Snapshot| snapshot.workspaces.len() == 3 && snapshot.contents.conflicts().count() == 1;
    one.has("together", together).await;
    two.has("together", together).await;
    assert_eq!(one.handle.snapshot().digest, two.handle.snapshot().digest);
    assert_eq!(one.workspaces()[0], ("both".to_owned(), Cores::whole(2)), "the higher ballot's");
    let snapshot = two.handle.snapshot();
    let conflict = snapshot.contents.conflicts().next().unwrap();
    assert_eq!(conflict.previous.value, Value::Workspace(Box::new(workspace("both", 1))), "what lost is kept");
}

#[tokio::test]
async fn an_entry_removed_while_a_node_was_away_does_not_come_back() {
    let network = Network::default();
    let (leader, away) = (Catalogue::start(1, &network), Catalogue::start(2, &network));
    leader.leads(1, &[1, 2], 2);
    leader.handle.edit(put("a", 1), root()).await.unwrap();
    away.has("a", has_workspace("a")).await;
    network.cut(2);
    leader.leads(2, &[1], 1);
    leader.handle.edit(Edit::Delete(name("a")), root()).await.unwrap();
    network.mend();
    away.hears(&leader);
    leader.hears(&away);
    away.has("removed", |snapshot| snapshot.workspaces.is_empty()).await;
    assert_eq!(leader.workspaces(), []);
}
