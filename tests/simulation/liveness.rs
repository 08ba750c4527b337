//! What must happen once the faults are over.

use ostler::types::{ClusterMode, NodeId};

use crate::each_seed;
use crate::network::{Network, Random};
use crate::world::World;

/// L2: one leader, followed by everybody, so soon after the last fault.
const HEALED: u64 = 10_000;
/// L1: a new leader so soon after the old one was killed.
const SUCCESSION: u64 = 5_000;
/// L3: how long a cut that stays is watched.
const FIVE_MINUTES: u64 = 300_000;

fn mode(size: usize, random: &mut Random) -> ClusterMode {
    let expected_nodes = u32::try_from(size).unwrap();
    if random.chance(50) { ClusterMode::Available } else { ClusterMode::Quorum { expected_nodes } }
}

/// Runs until somebody leads everybody, and says who.
fn settle(world: &mut World, within: u64) -> NodeId {
    let end = world.now + within;
    while world.now < end {
        world.step(end);
        if let Some(leader) = world.settled() {
            return leader;
        }
    }
    panic!("nobody leads everybody after {within} ms: {:#?}", world.picture());
}

#[test]
fn after_any_trouble_one_leader_is_followed_by_all() {
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

/// A cluster of three nodes or more that has just lost the leader that it followed, and who that was.
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
fn a_killed_leader_is_succeeded_in_time() {
    each_seed(|seed| {
        let (mut world, leader) = with_its_leader_killed(seed);
        assert_ne!(settle(&mut world, SUCCESSION), leader);
    });
}

#[test]
fn a_killed_leader_is_not_waited_for() {
    let took = std::sync::Mutex::new(Vec::new());
    each_seed(|seed| {
        let (mut world, _) = with_its_leader_killed(seed);
        let killed = world.now;
        settle(&mut world, SUCCESSION);
        took.lock().unwrap().push(world.now - killed);
    });
    let mut took = took.into_inner().unwrap();
    took.sort_unstable();
    // The first of some timeouts of 400 to 800 ms, and a few messages: whoever died could only be waited for longer.
    let median = took[took.len() / 2];
    assert!(median <= 550, "it took {median} ms until another was followed");
}

#[test]
fn under_loss_and_delay_nobody_is_unseated() {
    each_seed(|seed| {
        let mut random = Random(seed ^ 0x1055);
        let size = 2 + random.pick(4);
        let mode = mode(size, &mut random);
        // 80 ms there and back, and one in ten lost.
        let network = Network { loss: 10, twice: 2, delay: 35, jitter: 10, again: Some(150), ..Network::good() };
        let mut world = World::new(size, mode, network, seed);
        settle(&mut world, 2 * HEALED);
        let changes = leader_changes(&mut world, 30_000);
        // One message in a thousand is lost three times running, which is as long as a timeout.
        assert!(changes <= 2, "{changes} changes of leader in 30 s: {:#?}", world.picture());
    });
}

#[test]
fn a_one_way_cut_does_not_unseat_leaders_for_ever() {
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
fn a_bridge_between_two_sides_does_not_unseat_leaders_for_ever() {
    each_long_history(0xb41d, 5, |world, mut random| {
        let size = world.size();
        // The sides may have been apart before, each with a leader of its own.
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
        // Who led may lose its majority with the cut.
        let cut = world.now + HEALED;
        while world.step(cut) {}
        let changes = leader_changes(world, FIVE_MINUTES);
        assert!(changes <= 2, "{changes} changes of leader with n{bridge} between {side:?}: {:#?}", world.picture());
    });
}

/// Of every twentieth seed a cluster of three nodes or more that follows a leader: five minutes of virtual time take
/// their time.
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

/// How often another node began to rule.
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
