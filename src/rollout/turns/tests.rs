use proptest::prelude::*;

use super::*;
use crate::images::{Checked, Here};
use crate::runtime::images::PullError;
use crate::types::{Bytes, Cores, RuntimeKind, Timestamp, sample};

const DAY: i64 = 24 * 3600 * 1000;

fn id(n: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(n).unwrap(); 10])
}

fn at(seconds: u64) -> Moment {
    let wall = Timestamp::from_millis(1_767_571_200_000 + i64::try_from(seconds).unwrap() * 1000);
    Moment { wall, boot: BootInstant::from_millis(seconds * 1000), boot_id: 1 }
}

fn workspace(name: &str, image: &str) -> Workspace {
    let mut workspace = Workspace::new(name.parse().unwrap(), Cores::whole(1), Bytes::gib(1));
    (workspace.image, workspace.prepull) = (Some(image.to_owned()), true);
    workspace
}

fn host(n: usize, images: Here) -> HostView {
    let mut profile = sample::profile(&format!("n{n}"), id(n).as_str());
    profile.physical = Resources::new(Cores::whole(4), Bytes::gib(64), 0);
    (profile.effective, profile.runtime.kind, profile.runtime.available) =
        (profile.physical, RuntimeKind::Docker, true);
    HostView {
        profile: Arc::new(profile),
        usage: sample::usage(),
        last_seen: Timestamp::default(),
        sessions: BTreeMap::new(),
        images,
        have: None,
    }
}

/// A leader, its hosts and the catalogue.
struct Cluster {
    turns: Turns,
    fleet: Fleet,
    reached: BTreeSet<NodeId>,
    workspaces: BTreeMap<Name, Arc<Workspace>>,
}

impl Cluster {
    fn of(hosts: usize, workspaces: impl IntoIterator<Item = Workspace>) -> Self {
        let all = (0..hosts).map(|n| (id(n), Arc::new(host(n, Here::new()))));
        let fleet = Fleet { hosts: all.collect(), unplaced: BTreeMap::new() };
        let workspaces = workspaces.into_iter().map(|one| (one.name.clone(), Arc::new(one))).collect();
        Self { turns: Turns::default(), reached: (0..hosts).map(id).collect(), fleet, workspaces }
    }

    fn next(&mut self, now: Moment) -> Vec<Order> {
        let Self { turns, fleet, reached, workspaces } = self;
        turns.next(Situation { now, fleet, reached, workspaces })
    }

    /// The nodes of the next orders, each with its image.
    fn told(&mut self, now: u64) -> Vec<(usize, String)> {
        let orders = self.next(at(now));
        let node = |order: &Order| (0..self.fleet.hosts.len()).find(|n| id(*n) == order.node).unwrap();
        orders.iter().map(|order| (node(order), order.image.to_string())).collect()
    }

    fn change(&mut self, n: usize, change: impl FnOnce(&mut HostView)) {
        change(Arc::make_mut(self.fleet.hosts.get_mut(&id(n)).unwrap()));
    }

    /// The node has fetched the image, and its report has it.
    fn done(&mut self, n: usize, image: &str, digest: &str, now: u64) {
        assert!(!self.turns.answered(&id(n), &Ok(Fetching::Done), at(now).boot));
        let checked = Checked { digest: Some(digest.to_owned()), at: at(now).wall };
        self.change(n, |host| drop(host.images.insert(image.to_owned(), Some(checked))));
    }

    fn fail(&mut self, n: usize, cause: PullCause, now: u64) {
        let error = images::Error::Pull(PullError { cause, message: "it failed".to_owned() });
        assert!(!self.turns.answered(&id(n), &Err(NotFetched::Refused(error)), at(now).boot));
    }
}

fn pairs(all: &[(usize, &str)]) -> Vec<(usize, String)> {
    all.iter().map(|(node, image)| (*node, (*image).to_owned())).collect()
}

#[test]
fn two_nodes_pull_from_a_registry_and_each_one_image() {
    let hub = [workspace("a", "x:1"), workspace("b", "y:1")];
    let mut cluster = Cluster::of(3, hub.into_iter().chain([workspace("c", "ghcr.io/z:1")]));
    assert_eq!(cluster.told(0), pairs(&[(0, "ghcr.io/z:1"), (1, "ghcr.io/z:1"), (2, "x:1")]));
    assert_eq!(cluster.told(1), [], "every node has its order");
    cluster.done(0, "ghcr.io/z:1", "d", 2);
    assert_eq!(cluster.told(2), pairs(&[(0, "x:1")]));
    cluster.done(1, "ghcr.io/z:1", "d", 3);
    assert_eq!(cluster.told(3), [], "two nodes pull from Docker Hub");
    assert!(cluster.turns.answered(&id(2), &Ok(Fetching::Runs), at(9).boot), "it is asked again");
    cluster.done(2, "x:1", "d", 10);
    assert_eq!(cluster.told(10), pairs(&[(2, "ghcr.io/z:1"), (1, "x:1")]));
}

#[test]
fn only_nodes_that_may_run_the_workspace_pull() {
    let mut wanted = workspace("a", "x:1");
    wanted.constraints = [("rack".to_owned(), "3".to_owned())].into();
    let mut cluster = Cluster::of(10, [wanted]);
    for n in 0..10 {
        cluster.change(n, |host| {
            Arc::make_mut(&mut host.profile).settings.labels = [("rack".to_owned(), "3".to_owned())].into();
        });
    }
    let mut change = |n, change: fn(&mut crate::types::NodeProfile)| {
        cluster.change(n, |host| change(Arc::make_mut(&mut host.profile)));
    };
    change(0, |node| node.settings.labels.clear());
    change(1, |node| node.settings.enabled = false);
    change(2, |node| node.runtime.kind = RuntimeKind::Process);
    change(3, |node| node.runtime.available = false);
    change(4, |node| (node.physical.memory, node.effective.memory) = (Bytes::mib(1), Bytes::mib(1)));
    change(5, |node| {
        let since = Timestamp::default();
        let (deadline, message, blockers) = (None, None, Vec::new());
        node.drain = Some(crate::types::Drain { since, deadline, stop_sessions: false, message, blockers });
    });
    // It is full now, and will have room again.
    change(7, |node| node.allocated = node.effective);
    cluster.reached.remove(&id(6));
    cluster.change(8, |host| drop(host.images.insert("x:1".to_owned(), None)));
    assert_eq!(cluster.told(0), pairs(&[(7, "x:1"), (9, "x:1")]));
}

#[test]
fn without_prepull_nothing_is_pulled_ahead() {
    let no = Workspace { prepull: false, ..workspace("a", "x:1") };
    assert_eq!(Cluster::of(2, [no]).told(0), []);
}

#[test]
fn a_pinned_workspace_is_pulled_by_its_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let pinned = Workspace { image_digest: Some(digest.clone()), ..workspace("a", "x:1") };
    let mut cluster = Cluster::of(1, [pinned]);
    cluster.change(0, |host| drop(host.images.insert("x:1".to_owned(), None)));
    assert_eq!(cluster.told(0), vec![(0, format!("x@{digest}"))]);
}

#[test]
fn a_node_that_fails_waits_longer_each_time_and_keeps_no_other_from_its_turn() {
    let mut cluster = Cluster::of(1, [workspace("a", "x:1")]);
    let mut now = 0;
    for pause in [60, 120, 240, 480, 960, 1800, 1800] {
        assert_eq!(cluster.told(now), pairs(&[(0, "x:1")]));
        cluster.fail(0, PullCause::Absent, now);
        assert_eq!(cluster.told(now + pause - 1), [], "after {pause} s");
        now += pause;
    }
    let mut cluster = Cluster::of(4, [workspace("a", "x:1")]);
    assert_eq!(cluster.told(0), pairs(&[(0, "x:1"), (1, "x:1")]));
    cluster.fail(0, PullCause::DiskFull, 0);
    cluster.fail(1, PullCause::DiskFull, 0);
    assert_eq!(cluster.told(100), pairs(&[(2, "x:1"), (3, "x:1")]), "0 and 1 may go again, and come last");
}

#[test]
fn a_registry_that_limits_or_fails_is_left_alone() {
    let mut cluster = Cluster::of(4, [workspace("a", "x:1"), workspace("b", "ghcr.io/z:1")]);
    assert_eq!(cluster.told(0), pairs(&[(0, "ghcr.io/z:1"), (1, "ghcr.io/z:1"), (2, "x:1"), (3, "x:1")]));
    cluster.fail(2, PullCause::Limited, 0);
    cluster.done(0, "ghcr.io/z:1", "d", 0);
    assert_eq!(cluster.turns.limited(at(1).boot), ["docker.io"].into());
    assert_eq!(cluster.told(1), pairs(&[(2, "ghcr.io/z:1")]), "0 waits for Docker Hub");
    assert_eq!(cluster.turns.limited(at(60).boot), BTreeSet::new());
    assert_eq!(cluster.told(60), pairs(&[(0, "x:1")]));
}

#[test]
fn an_image_that_a_node_has_and_does_not_report_is_not_asked_for_without_end() {
    let mut cluster = Cluster::of(1, [workspace("a", "x:1")]);
    assert_eq!(cluster.told(0).len(), 1);
    assert!(!cluster.turns.answered(&id(0), &Ok(Fetching::Done), at(0).boot));
    assert_eq!((cluster.told(59).len(), cluster.told(60).len()), (0, 1));
}

/// Hosts that have `x:1` since three days ago.
fn holders(hosts: usize) -> Cluster {
    let daily = Workspace { prepull: false, ..workspace("a", "x:1") };
    let mut cluster = Cluster::of(hosts, [daily]);
    let old = Checked { digest: Some("old".to_owned()), at: Timestamp::from_millis(at(0).wall.millis() - 3 * DAY) };
    for n in 0..hosts {
        cluster.change(n, |host| drop(host.images.insert("x:1".to_owned(), Some(old.clone()))));
    }
    cluster
}

fn node_of(order: &Order, hosts: usize) -> usize {
    (0..hosts).find(|n| id(*n) == order.node).unwrap()
}

#[test]
fn one_node_asks_the_registry_and_the_others_follow_two_at_a_time() {
    let mut cluster = holders(6);
    let asks = cluster.next(at(0));
    let [Order { how: Fetch::Refresh, .. }] = asks.as_slice() else { panic!("{asks:?}") };
    let first = node_of(&asks[0], 6);
    assert_eq!(cluster.next(at(1)), [], "it is being asked");
    cluster.done(first, "x:1", "new", 2);
    let mut now = 2;
    let mut pulled = BTreeSet::from([first]);
    while pulled.len() < 6 {
        let orders = cluster.next(at(now));
        assert!(!orders.is_empty() && orders.len() <= PER_REGISTRY && orders.iter().all(|o| o.how == Fetch::Refresh));
        now += 1;
        for order in orders {
            let n = node_of(&order, 6);
            assert!(pulled.insert(n), "node {n} was asked twice");
            cluster.done(n, "x:1", "new", now);
        }
    }
    assert_eq!(cluster.next(at(now)), []);
}

#[test]
fn nodes_that_have_the_digest_ask_no_registry() {
    let mut cluster = holders(5);
    let first = node_of(&cluster.next(at(0))[0], 5);
    cluster.done(first, "x:1", "old", 1);
    let orders = cluster.next(at(1));
    assert_eq!(orders.len(), 4, "all at once");
    assert!(orders.iter().all(|order| order.how == Fetch::Checked { digest: "old".to_owned() }));
}

#[test]
fn if_a_node_cannot_ask_another_one_does() {
    let mut cluster = holders(3);
    let first = node_of(&cluster.next(at(0))[0], 3);
    cluster.fail(first, PullCause::Engine, 1);
    let again = cluster.next(at(1));
    assert!(again.len() == 1 && node_of(&again[0], 3) != first);
}

#[test]
fn only_daily_images_that_came_from_a_registry_are_checked() {
    for pull in [PullPolicy::Missing, PullPolicy::Always] {
        let mut cluster = holders(2);
        Arc::make_mut(cluster.workspaces.values_mut().next().unwrap()).pull = pull;
        assert_eq!(cluster.next(at(0)), [], "{pull}");
    }
    let mut cluster = holders(2);
    for n in 0..2 {
        cluster.change(n, |host| drop(host.images.insert("x:1".to_owned(), None)));
    }
    assert_eq!(cluster.next(at(0)), []);
    let mut cluster = holders(2);
    let pinned = Arc::make_mut(cluster.workspaces.values_mut().next().unwrap());
    pinned.image_digest = Some(format!("sha256:{}", "a".repeat(64)));
    assert_eq!(cluster.next(at(0)), [], "a digest does not move");
    let mut cluster = holders(1);
    cluster.change(0, |host| Arc::make_mut(&mut host.profile).settings.enabled = false);
    assert_eq!(cluster.next(at(0)), []);
}

/// Seconds. No pull ends sooner.
const STEP: u64 = 61;

proptest! {
    /// Pulls that take any time and fail now and then, with one node that always fails.
    #[test]
    fn at_last_each_node_that_may_has_each_image_and_never_more_than_two_pull_from_a_registry(
        hosts in 1..8_usize, barred in proptest::collection::vec(any::<bool>(), 8), fates in proptest::collection::vec(0..10_u8, 0..40),
    ) {
        let names = ["x:1", "y:1", "ghcr.io/z:1"];
        let mut cluster = Cluster::of(hosts + 1, names.iter().enumerate().map(|(n, image)| workspace(&format!("w{n}"), image)));
        for n in (0..hosts).filter(|n| barred[*n]) {
            cluster.change(n, |host| Arc::make_mut(&mut host.profile).settings.enabled = false);
        }
        let mut running: Vec<Order> = Vec::new();
        let (mut now, mut fates) = (0, fates.into_iter().chain(std::iter::repeat(9)));
        // Each of the failures may cost the longest pause.
        let most = 40 * LONGEST_PAUSE.as_secs() / STEP + 1000;
        let mut steps = 0;
        let has_all = |cluster: &Cluster| {
            let has = |n: usize| cluster.fleet.hosts[&id(n)].images.len();
            (0..hosts).all(|n| has(n) == if barred[n] { 0 } else { names.len() })
        };
        while !has_all(&cluster) {
            steps += 1;
            prop_assert!(steps < most, "a node waits for ever");
            let orders = cluster.next(at(now));
            for order in &orders {
                prop_assert!(order.node == id(hosts) || !barred[node_of(order, hosts + 1)]);
                let limited = cluster.turns.limited(at(now).boot);
                prop_assert!(!uses_registry(&order.how) || !limited.contains(order.image.registry()));
            }
            running.extend(orders);
            for registry in ["docker.io", "ghcr.io"] {
                prop_assert!(running.iter().filter(|order| uses_registry(&order.how) && order.image.registry() == registry).count() <= PER_REGISTRY);
            }
            let nodes: BTreeSet<NodeId> = running.iter().map(|order| order.node).collect();
            prop_assert_eq!(nodes.len(), running.len(), "one image a node");
            now += STEP;
            for order in std::mem::take(&mut running) {
                let n = node_of(&order, hosts + 1);
                let cause = match fates.next().unwrap() {
                    _ if n == hosts => Some(PullCause::DiskFull),
                    0 => Some(PullCause::Limited),
                    1 => Some(PullCause::Absent),
                    2 => {
                        running.push(order);
                        continue;
                    }
                    _ => None,
                };
                match cause {
                    Some(cause) => cluster.fail(n, cause, now),
                    None => cluster.done(n, order.image.as_str(), "d", now),
                }
            }
        }
    }
}
