//! How fast a leader finds a host for a session, compared with a bare scan of the same figures.
//!
//! `cargo bench --bench placement`. One item is one session placed: nodes filtered, ranked, and put in order.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;

use divan::{Bencher, counter::ItemsCount};
use ostler::election::Reign;
use ostler::gossip::ClusterView;
use ostler::placement::book::{Begin, Begun, Book, Situation};
use ostler::placement::filter::HostFigures;
use ostler::placement::flights::End;
use ostler::placement::plan::{Wanted, plan};
use ostler::placement::{Config, HostReport};
use ostler::sessions::{Changes, Have};
use ostler::types::{
    Ballot, BootInstant, Bytes, Cores, Name, NodeId, NodeProfile, NodeUsage, OnUnknown, Resources, RuntimeKind,
    RuntimeStatus, SessionId, Settings, Strategy, Timestamp, Workspace,
};

const NODES: [usize; 4] = [10, 100, 1_000, 10_000];
/// Of this many nodes, one is full, and one has no GPU.
const ONE_OF: usize = 4;
const CORES: u32 = 64;
const MEMORY: Bytes = Bytes::gib(256);
const GPUS: u32 = 8;
const NOW: BootInstant = BootInstant::from_millis(1_000_000);

fn main() {
    divan::main();
}

/// The minimum to place a session: compares every figure of every node, and ranks the nodes that fit by their fullest
/// dimension. The figures are contiguous in memory.
#[divan::bench(args = NODES)]
fn bare_scan(bencher: Bencher<'_, '_>, nodes: usize) {
    let figures: Vec<Packed> = fleet(nodes).iter().map(|node| Packed::of(node)).collect();
    let wanted = workspace(1).resources();
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| best(black_box(&figures).iter().copied(), black_box(wanted)));
}

/// The same, on the nodes as they are stored.
#[divan::bench(args = NODES)]
fn bare_scan_of_nodes(bencher: Bencher<'_, '_>, nodes: usize) {
    let fleet = fleet(nodes);
    let wanted = workspace(1).resources();
    let figures = |fleet: &[Arc<NodeProfile>]| best(fleet.iter().map(|node| Packed::of(node)), black_box(wanted));
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| figures(black_box(&fleet)));
}

/// A session with a GPU: some nodes have no GPU, some have no room.
#[divan::bench(args = NODES)]
fn plan_on_a_gpu(bencher: Bencher<'_, '_>, nodes: usize) {
    measure_plan(bencher, nodes, &workspace(1));
}

/// A session that is too large for every node: the plan gives a reason for each.
#[divan::bench(args = NODES)]
fn plan_that_everybody_refuses(bencher: Bencher<'_, '_>, nodes: usize) {
    let mut workspace = workspace(1);
    workspace.cores = Cores::whole(CORES + 1);
    measure_plan(bencher, nodes, &workspace);
}

/// The leader's whole decision: the plan, the known keys, and the offers in progress.
#[divan::bench(args = NODES)]
fn book_on_a_gpu(bencher: Bencher<'_, '_>, nodes: usize) {
    let mut book =
        Book::new(Config { strategy: Strategy::Spread, on_unknown: OnUnknown::Place, max_sessions_per_user: 0 });
    let fleet = fleet(nodes);
    let all: BTreeSet<NodeId> = fleet.iter().map(|node| node.id).collect();
    for node in fleet {
        let now = Have { incarnation: 1, version: 1 };
        let changes = Changes { now, whole: true, held: Vec::new(), forgotten: Vec::new() };
        let id = node.id;
        let profile = NodeProfile::clone(&node);
        let (images, usage, at) = (ostler::images::Here::new(), NodeUsage::default(), Timestamp::default());
        book.index_mut().apply(&id, HostReport { profile, images, version: 0, usage, at, changes });
    }
    let ballot = Ballot { term: 1, node: id(0) };
    let reign = Reign { ballot, electorate: all.clone(), needed: all.len() / 2 + 1, reached: all, lease: NOW };
    let view = ClusterView::default();
    let workspace = workspace(1);
    let mut key = 0_u64;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        key += 1;
        let session = SessionId::of_key(&name("bench"), &key.to_string());
        let user = "bench".parse().expect("a good user");
        let begin = Begin { session, user, workspace: Ok(workspace.clone()), drawn: false };
        let begun = book.begin(&begin, Situation { now: NOW, reign: &reign, view: &view });
        assert!(matches!(begun, Ok(Begun::Offer { .. })), "there is room");
        book.end(&begin.session, &reign.ballot, End::NotTaken, NOW);
    });
}

fn measure_plan(bencher: Bencher<'_, '_>, nodes: usize, workspace: &Workspace) {
    let fleet = fleet(nodes);
    let session = SessionId::of_key(&name("bench"), "key");
    let user: ostler::types::User = "bench".parse().expect("a good user");
    let wanted = Wanted {
        session: &session,
        user: &user,
        workspace,
        strategy: Strategy::Spread,
        pinned: None,
        tried: &[],
        platform: None,
    };
    let host = |node| HostFigures { node, in_flight: Resources::ZERO, heard: true, has_image: false };
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| plan(black_box(&fleet).iter().map(|node| host(&**node)), black_box(wanted)));
}

/// The figures of a node, and nothing else.
#[derive(Clone, Copy)]
struct Packed {
    physical: Resources,
    effective: Resources,
    allocated: Resources,
}

impl Packed {
    const fn of(node: &NodeProfile) -> Self {
        Self { physical: node.physical, effective: node.effective, allocated: node.allocated }
    }
}

/// The emptiest node that fits: the scan that every planner needs at least.
fn best(nodes: impl Iterator<Item = Packed>, wanted: Resources) -> Option<usize> {
    let mut best = None;
    for (i, node) in nodes.enumerate() {
        let sum = node.allocated.saturating_add(wanted);
        if wanted.exceeds(&node.physical).is_some() || sum.exceeds(&node.effective).is_some() {
            continue;
        }
        let cores = sum.cores.milli() * 1_000_000 / node.effective.cores.milli().max(1);
        let memory = (sum.memory.get() >> 20) * 1_000_000 / (node.effective.memory.get() >> 20).max(1);
        let gpus = u64::from(sum.gpus) * 1_000_000 / u64::from(node.effective.gpus.max(1));
        let fill = cores.max(memory).max(gpus);
        if best.is_none_or(|(least, _)| fill < least) {
            best = Some((fill, i));
        }
    }
    best.map(|(_, i)| i)
}

fn fleet(nodes: usize) -> Vec<Arc<NodeProfile>> {
    (0..nodes).map(|i| Arc::new(node(i))).collect()
}

fn node(i: usize) -> NodeProfile {
    let spread = u32::try_from(i).expect("a small number").wrapping_mul(2_654_435_761);
    let gpus = if i % ONE_OF == 1 { 0 } else { GPUS };
    let used = if i % ONE_OF == 2 { CORES } else { spread % (CORES / 2) };
    let memory = Bytes::gib(u64::from(spread % 100));
    let physical = Resources::new(Cores::whole(CORES), MEMORY, gpus);
    NodeProfile {
        id: id(i),
        name: name(&format!("node-{i}")),
        address: "192.0.2.1:7480".to_owned(),
        version: "0.1.0".to_owned(),
        runtime: RuntimeStatus {
            kind: RuntimeKind::Process,
            version: None,
            available: true,
            platform: None,
            message: None,
        },
        physical,
        effective: physical,
        allocated: Resources::new(Cores::whole(used), memory, gpus / 2),
        gpus: Vec::new(),
        sessions: used,
        settings: Settings::default(),
        declared_settings: Vec::new(),
        drain: None,
        conditions: Vec::new(),
    }
}

fn id(i: usize) -> NodeId {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&u64::try_from(i).expect("a small number").to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn name(text: &str) -> Name {
    text.parse().expect("a good name")
}

/// Two cores and 2 GiB.
fn workspace(gpus: u32) -> Workspace {
    let mut workspace = Workspace::new(name("bench"), Cores::whole(2), Bytes::gib(2));
    workspace.command = vec!["sleep".to_owned()];
    workspace.gpus = gpus;
    workspace
}
