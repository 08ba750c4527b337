//! Checks of what must happen once the faults are over.

use ostler::types::{ClusterMode, NodeId};

use crate::each_seed;
use crate::network::{Network, Random};
use crate::world::World;

/// L2: milliseconds after the last fault within which every node follows one leader.
const HEALED: u64 = 10_000;
/// L1: milliseconds within which a killed leader has a successor.
const SUCCESSION: u64 = 5_000;
/// L3: milliseconds for which a permanent cut is watched.
const FIVE_MINUTES: u64 = 300_000;

fn mode(size: usize, random: &mut Random) -> ClusterMode {
    let expected_nodes = u32::try_from(size).unwrap();
    if random.chance(50) { ClusterMode::Available } else { ClusterMode::Quorum { expected_nodes } }
}

/// Runs until every node follows one leader, and returns that leader.
fn settle(world: &mut World, within: u64) -> NodeId {
    let end = world.now + within;
    while world.now < end {
        world.step(end);
        if let Some(leader) = world.settled() {
            return leader;
        }
    }
    panic!("no leader is followed by every node after {within} ms: {:#?}", world.picture());
}

#[test]
fn after_any_faults_every_node_follows_one_leader() {
    each_seed(|seed| {
        let mut random = Random(seed ^ 0x11fe);
        let size = 1 + random.pick(6);
        let network = Network::of(&mut random);
        let mode = mode(size, &mut random);
        let mut world = World::new(size, mode, network, seed);
        for _ in 0..1 + random.below(5) {
            let i = random.pick(size);
            match random.below(3) {
                0 => world.network.partition(size, &mut random),
                1 => world.crash(i),
                _ => world.hosts[i].frozen_until = world.now + random.below(3000),
            }
            let end = world.now + random.below(3000);
            while world.step(end) {}
        }
        world.network = Network::good();
        for i in 0..size {
            world.hosts[i].frozen_until = 0;
            if world.hosts[i].election.is_none() {
                world.start(i);
            }
        }
        settle(&mut world, HEALED);
    });
}

/// A cluster of three nodes or more whose leader was just killed, and that leader.
fn with_its_leader_killed(seed: u64) -> (World, NodeId) {
    let mut random = Random(seed ^ 0xdead);
    let size = 3 + random.pick(4);
    let mode = mode(size, &mut random);
    let mut world = World::new(size, mode, Network::good(), seed);
    let leader = settle(&mut world, HEALED);
    world.crash(world.hosts.iter().position(|host| host.id == leader).unwrap());
    (world, leader)
}

#[test]
fn a_killed_leader_has_a_successor_in_time() {
    each_seed(|seed| {
        let (mut world, leader) = with_its_leader_killed(seed);
        assert_ne!(settle(&mut world, SUCCESSION), leader);
    });
}

#[test]
fn an_election_does_not_wait_for_the_killed_leader() {
    let took = std::sync::Mutex::new(Vec::new());
    each_seed(|seed| {
        let (mut world, _) = with_its_leader_killed(seed);
        let killed = world.now;
        settle(&mut world, SUCCESSION);
        took.lock().unwrap().push(world.now - killed);
    });
    let mut took = took.into_inner().unwrap();
    took.sort_unstable();
    // The shortest of some timeouts of 400 to 800 ms, and a few messages. Waiting for the dead node would take longer.
    let median = took[took.len() / 2];
    assert!(median <= 550, "the median election took {median} ms");
}

#[test]
fn loss_and_delay_do_not_change_the_leader() {
    each_seed(|seed| {
        let mut random = Random(seed ^ 0x1055);
        let size = 2 + random.pick(4);
        let mode = mode(size, &mut random);
        // A round trip of 80 ms, and a loss of one message in ten.
        let network = Network { loss: 10, twice: 2, delay: 35, jitter: 10, again: Some(150), ..Network::good() };
        let mut world = World::new(size, mode, network, seed);
        settle(&mut world, 2 * HEALED);
        let changes = leader_changes(&mut world, 30_000);
        // One message in a thousand is lost three times running, which is as long as a timeout.
        assert!(changes <= 2, "{changes} changes of leader in 30 s: {:#?}", world.picture());
    });
}

#[test]
fn a_one_way_cut_does_not_keep_changing_the_leader() {
    each_long_history(0x0ea1, 3, |world, mut random| {
        let size = world.size();
        let from = random.pick(size);
        let to = (from + 1 + random.pick(size - 1)) % size;
        world.network.cut.insert((from, to));
        let changes = leader_changes(world, FIVE_MINUTES);
        assert!(changes <= 2, "{changes} changes of leader with n{from} cut from n{to}: {:#?}", world.picture());
    });
}

#[test]
fn a_bridge_between_two_sides_does_not_keep_changing_the_leader() {
    each_long_history(0xb41d, 5, |world, mut random| {
        let size = world.size();
        // The sides may have been apart before, each with its own leader.
        let side: Vec<bool> = (0..size).map(|_| random.chance(50)).collect();
        let bridge = random.pick(size);
        let across = |bridge: Option<usize>| {
            let pairs = (0..size).flat_map(|from| (0..size).map(move |to| (from, to)));
            let ends =
                |&(from, to): &(usize, usize)| side[from] != side[to] && bridge != Some(from) && bridge != Some(to);
            pairs.filter(ends).collect()
        };
        if random.chance(50) {
            world.network.cut = across(None);
            let apart = world.now + HEALED;
            while world.step(apart) {}
        }
        world.network.cut = across(Some(bridge));
        // The leader may lose its majority with the cut.
        let cut = world.now + HEALED;
        while world.step(cut) {}
        let changes = leader_changes(world, FIVE_MINUTES);
        assert!(changes <= 2, "{changes} changes of leader with n{bridge} between {side:?}: {:#?}", world.picture());
    });
}

/// Runs every twentieth seed with a cluster of three nodes or more that follows a leader. Five minutes of virtual time
/// are too slow to simulate for every seed.
fn each_long_history(salt: u64, sizes: usize, live: impl Fn(&mut World, Random) + std::panic::RefUnwindSafe) {
    each_seed(|seed| {
        if seed.is_multiple_of(20) {
            let mut random = Random(seed ^ salt);
            let size = 3 + random.pick(sizes);
            let mode = mode(size, &mut random);
            let mut world = World::new(size, mode, Network::good(), seed);
            settle(&mut world, HEALED);
            live(&mut world, random);
        }
    });
}

/// How often another node began to lead.
fn leader_changes(world: &mut World, span: u64) -> usize {
    let end = world.now + span;
    let rulers = |world: &World| -> Vec<NodeId> {
        let reigns = (0..world.size()).filter_map(|i| world.leadership(i)?.reign);
        reigns.map(|reign| reign.ballot.node).collect()
    };
    let mut last = rulers(world);
    let mut changes = 0;
    while world.step(end) {
        let now = rulers(world);
        changes += now.iter().filter(|ruler| !last.contains(ruler)).count();
        if !now.is_empty() {
            last = now;
        }
    }
    changes
}
