use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use chitchat::ChitchatMessage;
use chitchat::transport::{ChannelTransport, Socket};

use super::*;
use crate::election::Members;
use crate::gossip::fixture::{id, profile, published, session};
use crate::gossip::{ClusterView, Directory, Member, Places};
use crate::types::{BootInstant, ClusterMode, Moment, SessionState, Timestamp};

const ROUND: Duration = Duration::from_millis(50);
/// Longer than any condition that a test waits for takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any silent node is suspect.
const LONG: Duration = Duration::from_secs(31);

struct Agent {
    handle: Handle,
    owner: JoinHandle<()>,
    said: Arc<Mutex<Published>>,
    places: watch::Sender<Places>,
    directory: watch::Receiver<Arc<Directory>>,
    view: watch::Receiver<Arc<ClusterView>>,
    members: watch::Receiver<Arc<Members>>,
}

fn clock() -> Clock {
    Clock::manual(Moment { wall: Timestamp::from_millis(1_000_000), boot: BootInstant::from_millis(1000), boot_id: 1 })
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::from(n)))
}

async fn start(n: u8, seeds: &[u8], transport: &(impl Transport + Clone), directory: &Path, clock: &Clock) -> Agent {
    let (places, places_seen) = watch::channel(Places {
        advertise: Some(address(n)),
        seeds: seeds.iter().map(|seed| address(*seed).to_string()).collect(),
    });
    let config = Config {
        me: id(n),
        cluster: "c".parse().unwrap(),
        bound: SocketAddr::from(([0, 0, 0, 0], u16::from(n))),
        route: |_| None,
        places: places_seen,
        mode: ClusterMode::Available,
        interval: ROUND,
    };
    let said = Arc::new(Mutex::new(published(n, 1)));
    let source: Source = {
        let said = Arc::clone(&said);
        Arc::new(move || said.lock().unwrap().clone())
    };
    let (say_directory, directory_seen) = watch::channel(Arc::default());
    let (say_view, view) = watch::channel(Arc::default());
    let (say_members, members) = watch::channel(Arc::default());
    let channels = Channels { directory: say_directory, view: say_view, members: say_members };
    let kept = roster::Store::open(directory, clock.now().wall).unwrap();
    let (handle, owner) =
        spawn(config, Arc::new(transport.clone()), source, kept, channels, clock.clone()).await.unwrap();
    Agent { handle, owner, said, places, directory: directory_seen, view, members }
}

impl Agent {
    /// Waits until the view meets a condition, and returns it.
    async fn sees(&mut self, what: &str, is_so: impl Fn(&ClusterView) -> bool) -> Arc<ClusterView> {
        let seen = tokio::time::timeout(PATIENCE, self.view.wait_for(|view| is_so(view))).await;
        Arc::clone(&*seen.unwrap_or_else(|_| panic!("never seen: {what}")).expect("the owner goes on"))
    }

    async fn sees_state(&mut self, n: u8, state: NodeState) -> Arc<Member> {
        let is_so = |view: &ClusterView| {
            view.members.get(&id(n)).is_some_and(|member| member.state == state && member.profile.is_some())
        };
        let view = self.sees(&format!("node {n} {state}"), is_so).await;
        Arc::clone(&view.members[&id(n)])
    }

    /// Ends the agent as a crash does. Its address and files are free afterwards.
    async fn kill(self) {
        self.owner.abort();
        assert!(self.owner.await.unwrap_err().is_cancelled());
    }
}

/// Waits until the transport has freed an address, which takes a moment after its user is gone.
async fn is_free(n: u8, transport: &ChannelTransport) {
    while transport.open(address(n)).await.is_err() {
        tokio::task::yield_now().await;
    }
}

fn session_states(member: &Member) -> Vec<SessionState> {
    member.sessions.values().map(|session| session.state).collect()
}

#[tokio::test]
async fn nodes_find_each_other_through_one_seed() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut agents = Vec::new();
    for (n, directory) in (1..).zip(&directories) {
        agents.push(start(n, &[1], &transport, directory.path(), &clock).await);
    }
    for (n, agent) in (1..).zip(&mut agents) {
        for other in (1..=3).filter(|other| *other != n) {
            let member = agent.sees_state(other, NodeState::Alive).await;
            assert_eq!((member.address, member.incarnation), (address(other), 1_000_000));
            assert_eq!(member.catalogue, Some(format!("digest {other}")));
            assert_eq!(member.profile.as_ref().unwrap().name, profile(other).name);
            assert_eq!(session_states(&member), [SessionState::Running]);
        }
        let expected: Directory =
            (1..=3).filter(|other| *other != n).map(|other| (id(other), address(other))).collect();
        assert_eq!(**agent.directory.borrow(), expected);
        let members = agent.members.borrow().clone();
        assert_eq!((members.voters.len(), members.known, members.untried), (2, 2, false));
        assert!(!agent.view.borrow().alone && agent.view.borrow().duplicate.is_none());
    }
}

#[tokio::test]
async fn what_a_node_publishes_reaches_the_others() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let mut two = start(2, &[1], &transport, directories[1].path(), &clock).await;
    two.sees_state(1, NodeState::Alive).await;
    one.said.lock().unwrap().sessions.push(session(1, 7));
    two.sees("another session", |view| view.members[&id(1)].sessions.len() == 2).await;
    {
        let mut said = one.said.lock().unwrap();
        said.sessions.clear();
        said.catalogue = "another".to_owned();
        Arc::make_mut(&mut said.profile).settings.enabled = false;
    }
    let is_so = |view: &ClusterView| {
        let member = &view.members[&id(1)];
        let disabled = member.profile.as_ref().is_some_and(|profile| !profile.settings.enabled);
        disabled && member.sessions.is_empty() && member.catalogue.as_deref() == Some("another")
    };
    two.sees("no sessions, another catalogue, a node that is disabled", is_so).await;
}

#[tokio::test]
async fn a_killed_node_is_suspect_then_unknown_and_back_after_a_restart() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let _two = start(2, &[1], &transport, directories[1].path(), &clock).await;
    let three = start(3, &[1], &transport, directories[2].path(), &clock).await;
    one.sees_state(2, NodeState::Alive).await;
    let first = one.sees_state(3, NodeState::Alive).await;

    three.kill().await;
    let suspect = one.sees_state(3, NodeState::Suspect).await;
    assert_eq!(session_states(&suspect), [SessionState::Unknown]);
    clock.advance(LONG);
    let unknown = one.sees_state(3, NodeState::Unknown).await;
    assert_eq!((session_states(&unknown), unknown.incarnation), (vec![SessionState::Unknown], first.incarnation));

    is_free(3, &transport).await;
    let mut three = start(3, &[], &transport, directories[2].path(), &clock).await;
    let next = one.sees_state(3, NodeState::Alive).await;
    assert!(next.incarnation > first.incarnation);
    assert_eq!(session_states(&next), [SessionState::Running]);
    assert_eq!(one.view.borrow().members.len(), 2);
    three.sees_state(1, NodeState::Alive).await;
    assert_eq!(three.view.borrow().duplicate, None, "its previous life is no twin");
}

#[tokio::test]
async fn a_node_that_leaves_is_shown_as_left() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let mut two = start(2, &[1], &transport, directories[1].path(), &clock).await;
    one.sees_state(2, NodeState::Alive).await;
    two.sees_state(1, NodeState::Alive).await;
    two.handle.leave().await.unwrap();
    assert_eq!(two.handle.leave().await, Err(Error::Stopping));
    two.owner.await.unwrap();
    one.sees_state(2, NodeState::Left).await;
    let members = one.members.borrow().clone();
    assert_eq!((members.voters.len(), members.known), (0, 0));

    one.kill().await;
    let kept = roster::Store::open(directories[0].path(), clock.now().wall).unwrap().1;
    assert_eq!(kept.nodes[&id(2)].state, NodeState::Left, "across a restart");
}

#[tokio::test]
async fn the_roster_finds_the_others_without_a_seed() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let mut two = start(2, &[1], &transport, directories[1].path(), &clock).await;
    two.sees_state(1, NodeState::Alive).await;
    one.kill().await;
    two.kill().await;
    is_free(1, &transport).await;
    is_free(2, &transport).await;

    let mut two = start(2, &[], &transport, directories[1].path(), &clock).await;
    two.sees_state(1, NodeState::Unknown).await;
    assert!(two.members.borrow().untried);
    clock.advance(LONG);
    two.sees("nobody", |view| view.alone).await;
    assert!(!two.members.borrow().untried);
    // It knows no other node, so only the other's roster lets them meet.
    let _one = start(1, &[], &transport, directories[2].path(), &clock).await;
    two.sees_state(1, NodeState::Alive).await;
    two.sees("somebody", |view| !view.alone).await;
}

#[tokio::test]
async fn a_node_that_is_not_alive_can_be_removed() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let two = start(2, &[1], &transport, directories[1].path(), &clock).await;
    one.sees_state(2, NodeState::Alive).await;
    assert_eq!(one.handle.forget(id(2), None, crate::types::sample::root()).await, Err(Error::Alive(id(2))));
    two.kill().await;
    one.sees_state(2, NodeState::Suspect).await;
    one.handle.forget(id(2), None, crate::types::sample::root()).await.unwrap();
    assert!(one.view.borrow().members.is_empty() && one.directory.borrow().is_empty());
    assert_eq!(one.handle.forget(id(2), None, crate::types::sample::root()).await, Err(Error::NotFound(id(2))));
    one.kill().await;
    assert!(roster::Store::open(directories[0].path(), clock.now().wall).unwrap().1.nodes.is_empty());
}

#[tokio::test]
async fn another_node_with_the_same_id_is_detected() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut one = start(1, &[9], &transport, directories[0].path(), &clock).await;
    clock.advance(LONG);
    let twin = Transplanted { transport: transport.clone(), to: address(9) };
    let _twin = start(1, &[], &twin, directories[1].path(), &clock).await;
    let view = one.sees("a twin", |view| view.duplicate.is_some()).await;
    assert_eq!(view.duplicate, Some(address(1)));
}

#[tokio::test]
async fn a_node_that_moves_is_heard_at_its_new_address_and_stays_alive() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let mut two = start(2, &[1], &transport, directories[1].path(), &clock).await;
    let before = one.sees_state(2, NodeState::Alive).await;
    two.sees_state(1, NodeState::Alive).await;
    let was_alive = tokio::spawn({
        let mut view = two.view.clone();
        async move {
            view.wait_for(|view| view.members[&id(1)].state != NodeState::Alive).await.ok();
        }
    });

    two.places.send_modify(|places| places.advertise = Some(address(7)));

    let view = one.sees("the new address", |view| view.members[&id(2)].address == address(7)).await;
    let after = &view.members[&id(2)];
    assert_eq!(after.state, NodeState::Alive);
    assert!(after.incarnation > before.incarnation);
    assert_eq!(session_states(after), [SessionState::Running], "its sessions are not in doubt");
    let (_, stored) = {
        two.said.lock().unwrap().catalogue = "after the move".to_owned();
        one.sees("what it says under the new address", |view| {
            view.members[&id(2)].catalogue.as_deref() == Some("after the move")
        })
        .await;
        assert!(!was_alive.is_finished(), "the others were not silent for it meanwhile");
        was_alive.abort();
        two.kill().await;
        roster::Store::open(directories[1].path(), clock.now().wall).unwrap()
    };
    assert!(stored.incarnation > after.incarnation, "the next life has a later number");
}

#[tokio::test]
async fn seeds_that_the_operator_adds_are_contacted() {
    let (transport, clock) = (ChannelTransport::default(), clock());
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut one = start(1, &[], &transport, directories[0].path(), &clock).await;
    let _two = start(2, &[], &transport, directories[1].path(), &clock).await;
    one.places.send_modify(|places| places.seeds = vec![address(2).to_string()]);
    one.sees_state(2, NodeState::Alive).await;
}

/// A copy of a host, its id included: the address that it advertises is not its own.
#[derive(Clone)]
struct Transplanted {
    transport: ChannelTransport,
    to: SocketAddr,
}

#[async_trait]
impl Transport for Transplanted {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        self.transport.open(self.to).await
    }
}

/// A transport that fails at once.
#[derive(Clone)]
struct Broken;

#[async_trait]
impl Transport for Broken {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(Self))
    }
}

#[async_trait]
impl Socket for Broken {
    async fn send(&mut self, _: SocketAddr, _: ChitchatMessage) -> anyhow::Result<()> {
        anyhow::bail!("broken")
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        anyhow::bail!("broken")
    }
}

#[tokio::test]
async fn the_owner_ends_when_chitchat_ends() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(1, &[], &Broken, directory.path(), &clock()).await;
    tokio::time::timeout(PATIENCE, agent.owner).await.unwrap().unwrap();
    assert_eq!(agent.handle.leave().await, Err(Error::Stopping));
}
