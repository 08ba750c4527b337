//! Several owners with their own files, which call each other directly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::store::failing::Switch;
use crate::types::{Ballot, ClusterMode};

/// More than any election takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

/// The network between the nodes: a node in the map can be called.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<BTreeMap<NodeId, Handle>>>);

#[async_trait]
impl Peers for Network {
    async fn ask(&self, peer: &NodeId, request: Request, within: Duration) -> Option<Answer> {
        let handle = self.0.lock().unwrap().get(peer).cloned()?;
        tokio::time::timeout(within, handle.answer(request)).await.ok()?.ok()
    }
}

struct Node {
    n: u8,
    handle: Handle,
    network: Network,
    task: JoinHandle<()>,
    _members: watch::Sender<Arc<Members>>,
}

impl Node {
    fn start(n: u8, others: &[u8], store: Store, stored: Stored, network: &Network) -> Self {
        let voters: BTreeSet<NodeId> = others.iter().copied().filter(|other| *other != n).map(id).collect();
        let known = voters.len();
        let (say_members, members) = watch::channel(Arc::new(Members { voters, known, untried: false }));
        let (handle, task) = spawn(Parts {
            config: Config { mode: ClusterMode::Available, heartbeat: Duration::from_millis(50) },
            me: id(n),
            store,
            stored,
            members,
            peers: Arc::new(network.clone()),
            clock: Clock::system().unwrap(),
            seed: u64::from(n),
        });
        network.0.lock().unwrap().insert(id(n), handle.clone());
        Self { n, handle, network: network.clone(), task, _members: say_members }
    }

    fn on_disk(n: u8, others: &[u8], directory: &tempfile::TempDir, network: &Network) -> Self {
        let now = Clock::system().unwrap().now().wall;
        let (store, stored) = Store::open(directory.path(), now).unwrap();
        Self::start(n, others, store, stored, network)
    }

    fn on_failing_disk(n: u8, others: &[u8], network: &Network) -> (Self, Switch) {
        let (store, switch) = Store::failing();
        let stored = Stored { highest: None, lost: false };
        (Self::start(n, others, store, stored, network), switch)
    }

    async fn sees(&self, what: &str, is_so: impl Fn(&Leadership) -> bool) -> Arc<Leadership> {
        let mut leadership = self.handle.leadership();
        let seen = tokio::time::timeout(PATIENCE, leadership.wait_for(|now| is_so(now))).await;
        Arc::clone(&*seen.unwrap_or_else(|_| panic!("node {} never saw {what}", self.n)).unwrap())
    }

    /// Ends the node as `kill -9` does.
    async fn kill(self) {
        self.network.0.lock().unwrap().remove(&id(self.n));
        self.task.abort();
        let _ = self.task.await;
    }
}

/// The index in `nodes` of the leader that all of them follow.
async fn leader_of(nodes: &[Node]) -> usize {
    let mut leaders = BTreeSet::new();
    for node in nodes {
        leaders.extend(node.sees("a leader", |now| now.leader.is_some()).await.leader);
    }
    assert_eq!(leaders.len(), 1, "they agree");
    nodes.iter().position(|node| leaders.contains(&id(node.n))).unwrap()
}

fn directories() -> [tempfile::TempDir; 3] {
    [(); 3].map(|()| tempfile::tempdir().unwrap())
}

fn cluster(directories: &[tempfile::TempDir; 3], network: &Network) -> Vec<Node> {
    (1..).zip(directories).map(|(n, directory)| Node::on_disk(n, &[1, 2, 3], directory, network)).collect()
}

#[tokio::test]
async fn after_a_leader_is_killed_another_leads_in_a_higher_term() {
    let (directories, network) = (directories(), Network::default());
    let mut nodes = cluster(&directories, &network);
    let first = leader_of(&nodes).await;
    let before = nodes[first].handle.leadership().borrow().ballot.unwrap();
    let killed = nodes.remove(first);
    let (n, gone) = (killed.n, id(killed.n));
    killed.kill().await;
    for node in &nodes {
        let now = node.sees("another leader", |now| now.leader.as_ref().is_some_and(|other| *other != gone)).await;
        assert!(now.ballot.as_ref().unwrap().term > before.term);
    }
    let back = Node::on_disk(n, &[1, 2, 3], &directories[usize::from(n) - 1], &network);
    let kept = back.handle.leadership().borrow().ballot;
    assert!(kept.is_some_and(|kept| kept >= before), "its promise survived the kill");
    back.sees("the new leader", |now| now.leader.as_ref().is_some_and(|other| *other != gone)).await;
}

#[tokio::test]
async fn a_leader_hands_over_before_it_stops() {
    let (directories, network) = (directories(), Network::default());
    let nodes = cluster(&directories, &network);
    let first = leader_of(&nodes).await;
    nodes[first].handle.hand_over().await;
    let handed_over = nodes[first].handle.leadership().borrow().clone();
    assert_eq!(handed_over.reign, None);
    let old = id(nodes[first].n);
    nodes[first].sees("its successor", |now| now.leader.as_ref().is_some_and(|leader| *leader != old)).await;
}

#[tokio::test]
async fn a_node_that_cannot_write_promises_nothing() {
    let network = Network::default();
    let (node, switch) = Node::on_failing_disk(1, &[1, 2], &network);
    switch.set(true);
    let vote = Request::Vote { ballot: Ballot { term: 9, node: id(2) } };
    let voted = node.handle.answer(vote.clone()).await;
    assert!(matches!(voted, Err(Error::Store(_))), "{voted:?}");
    assert!(node.handle.adopt(&Ballot { term: 9, node: id(2) }).await.is_err());
    switch.set(false);
    let adopted = node.handle.adopt(&Ballot { term: 10, node: id(2) }).await;
    assert_eq!(adopted, Ok(()));
    assert_eq!(node.handle.leadership().borrow().ballot, Some(Ballot { term: 10, node: id(2) }));
}

#[tokio::test]
async fn a_node_refuses_a_lower_ballot_than_the_one_on_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::on_disk(1, &[1, 2, 3], &directory, &Network::default());
    let of = |term, n| Ballot { term, node: id(n) };
    assert_eq!(node.handle.adopt(&of(7, 2)).await, Ok(()));
    assert_eq!(node.handle.adopt(&of(7, 2)).await, Ok(()), "the same again");
    let refused = node.handle.adopt(&of(6, 3)).await;
    assert_eq!(refused, Err(Stale { highest: of(7, 2) }));
    node.kill().await;
    let again = Node::on_disk(1, &[1, 2, 3], &directory, &Network::default());
    assert_eq!(again.handle.adopt(&of(6, 3)).await, Err(Stale { highest: of(7, 2) }), "after a restart, too");
}
