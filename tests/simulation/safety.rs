//! Checks of what must never happen.

use std::collections::BTreeMap;

use ostler::types::{Ballot, ClusterMode, NodeId};

use crate::each_seed;
use crate::network::{Network, Random};
use crate::world::World;

/// Milliseconds of each history.
const SPAN: u64 = 15_000;

/// What the checks have seen so far.
#[derive(Default)]
pub(crate) struct Witness {
    leaders: BTreeMap<u64, NodeId>,
    disks: BTreeMap<usize, Ballot>,
}

impl Witness {
    pub(crate) fn look(&mut self, world: &World) {
        let mut sure = Vec::new();
        for i in 0..world.size() {
            self.disk_only_rises(world, i);
            let Some(reign) = world.leadership(i).and_then(|known| known.reign) else { continue };
            assert_eq!(reign.ballot.node, world.hosts[i].id, "a node leads by its own ballot");
            assert!(world.hosts[i].disk >= Some(reign.ballot), "a node leads only by a ballot on its disk");
            if world.clock(i) < reign.lease {
                sure.push((i, reign.clone()));
            }
            if let ClusterMode::Quorum { .. } = world.mode {
                // I4
                let first = self.leaders.entry(reign.ballot.term).or_insert_with(|| reign.ballot.node);
                assert_eq!(
                    *first,
                    reign.ballot.node,
                    "two leaders of term {}: {:#?}",
                    reign.ballot.term,
                    world.picture()
                );
            }
        }
        if let ClusterMode::Quorum { .. } = world.mode {
            assert!(sure.len() <= 1, "two nodes hold a lease: {sure:#?}");
        }
    }

    /// I3: the ballot on disk never falls, not even across crashes.
    fn disk_only_rises(&mut self, world: &World, i: usize) {
        let Some(now) = &world.hosts[i].disk else {
            assert!(!self.disks.contains_key(&i), "a disk was emptied");
            return;
        };
        if let Some(before) = self.disks.insert(i, *now) {
            assert!(*now >= before, "n{i} went back from {before:?} to {now:?}");
        }
    }
}

/// A history in which messages are lost, and hosts crash, freeze and are cut off.
fn troubled(seed: u64, mode: impl Fn(usize) -> ClusterMode) {
    let mut random = Random(seed ^ 0x5afe);
    let size = 1 + random.pick(6);
    let network = Network::of(&mut random);
    let mut world = World::new(size, mode(size), network, seed);
    let mut witness = Witness::default();
    let end = world.now + SPAN;
    let mut trouble = world.now + random.below(1000);
    while world.now < end {
        if world.now >= trouble {
            make_trouble(&mut world, &mut random);
            trouble = world.now + 1 + random.below(1200);
        }
        world.step(trouble.min(end));
        witness.look(&world);
    }
}

fn make_trouble(world: &mut World, random: &mut Random) {
    let i = random.pick(world.size());
    match random.below(9) {
        8 => world.hosts[i].crashes_at_write = true,
        0 | 1 => world.network.partition(world.size(), random),
        2 | 3 => world.network.cut.clear(),
        4 => world.crash(i),
        5 => world.hosts[i].frozen_until = world.now + random.below(5000),
        _ if world.hosts[i].election.is_none() => world.start(i),
        _ => world.network = Network { cut: world.network.cut.clone(), ..Network::of(random) },
    }
}

#[test]
fn in_quorum_mode_one_term_has_one_leader_and_one_lease_at_a_time() {
    each_seed(|seed| {
        troubled(seed, |size| ClusterMode::Quorum { expected_nodes: u32::try_from(size).unwrap() });
    });
}

#[test]
fn in_available_mode_ballots_only_rise() {
    each_seed(|seed| troubled(seed, |_| ClusterMode::Available));
}
