//! The catalogue on many nodes: edited on both sides of a partition, then merged.

use std::collections::{BTreeMap, BTreeSet};

use ostler::catalogue::{Contents, Entry, Key, Value, Version};
use ostler::types::{Ballot, Bytes, Cores, Name, NodeId, Timestamp, Workspace};

use crate::each_seed;
use crate::network::Random;

/// Steps of one history.
const STEPS: u64 = 120;
/// Names that are edited: few, so that two sides often edit the same one.
const NAMES: u64 = 4;

/// Nodes with their catalogues. The nodes of one side reach each other, and one of them leads.
struct Replicas {
    nodes: Vec<Contents>,
    side: Vec<bool>,
    /// The leader of each side.
    leaders: BTreeMap<bool, (usize, Ballot)>,
    term: u64,
    seq: u64,
    /// Every version that a leader wrote.
    written: BTreeSet<(Key, Version)>,
    random: Random,
}

impl Replicas {
    fn new(random: Random) -> Self {
        let mut random = random;
        let size = 2 + random.pick(4);
        let mut replicas = Self {
            nodes: vec![Contents::default(); size],
            side: vec![false; size],
            leaders: BTreeMap::new(),
            term: 0,
            seq: 0,
            written: BTreeSet::new(),
            random,
        };
        replicas.elect();
        replicas
    }

    /// Each side elects one of its nodes, under a new ballot.
    fn elect(&mut self) {
        self.leaders.clear();
        for side in [false, true] {
            let own: Vec<usize> = (0..self.nodes.len()).filter(|node| self.side[*node] == side).collect();
            if own.is_empty() {
                continue;
            }
            // Two sides may elect leaders of the same term.
            self.term += u64::from(self.random.chance(60));
            let leader = own[self.random.pick(own.len())];
            let id = NodeId::from_bytes([u8::try_from(leader).unwrap(); 10]);
            self.leaders.insert(side, (leader, Ballot { term: self.term, node: id }));
        }
        self.term += 1;
    }

    /// The leader of a side changes an entry, and sends it to some of the nodes that it reaches.
    fn edit(&mut self) {
        let side = self.random.chance(50);
        let Some((leader, ballot)) = self.leaders.get(&side).copied() else { return };
        let name: Name = format!("w{}", self.random.below(NAMES)).parse().unwrap();
        let key = Key::Workspace(name.clone());
        self.seq += 1;
        let version = self.nodes[leader].next_version(&key, ballot, self.seq);
        let mut workspace = Workspace::new(name, Cores::whole(1), Bytes::gib(1));
        workspace.description = self.random.below(3).to_string();
        let removed = self.random.chance(30);
        let value = if removed { Value::Tombstone } else { Value::Workspace(Box::new(workspace)) };
        let at = Timestamp::from_millis(i64::try_from(self.seq).unwrap());
        let entry = Entry { key: key.clone(), version: version.clone(), changed_at: at, value };
        self.written.insert((key, version));
        assert!(self.nodes[leader].merge(entry.clone()), "a leader's write is newer than its entry");
        for node in 0..self.nodes.len() {
            if self.side[node] == side && self.random.chance(70) {
                self.keep(node, vec![entry.clone()]);
            }
        }
    }

    /// A node stores newer entries, and never goes back to an older version.
    fn keep(&mut self, node: usize, entries: Vec<Entry>) {
        let before = self.nodes[node].versions();
        for entry in entries {
            self.nodes[node].merge(entry);
        }
        for (key, version) in before {
            let now = self.nodes[node].entry(&key).unwrap();
            assert!(now.version >= version, "{key:?} went back from {version:?} to {:?}", now.version);
        }
    }

    /// Two nodes compare and exchange entries, as `catalogue/sync.rs` does. The exchange may stop halfway, as after a
    /// crash.
    fn exchange(&mut self, one: usize, other: usize) {
        let difference = self.nodes[other].difference(&self.nodes[one].versions());
        let wanted = self.nodes[one].of_keys(&difference.wanted);
        self.keep(one, difference.newer);
        if !self.random.chance(10) {
            self.keep(other, wanted);
        }
    }

    fn step(&mut self) {
        let (one, other) = (self.random.pick(self.nodes.len()), self.random.pick(self.nodes.len()));
        match self.random.below(20) {
            0 => {
                self.side.fill_with(|| self.random.chance(50));
                self.elect();
            }
            1 => {
                self.side.fill(false);
                self.elect();
            }
            2 => self.elect(),
            3..=9 => self.edit(),
            _ if one != other && self.side[one] == self.side[other] => self.exchange(one, other),
            _ => {}
        }
    }

    /// Ends the partition, and lets all pairs of nodes that differ exchange entries.
    fn heal(&mut self) {
        self.side.fill(false);
        for _ in 0..self.nodes.len() * self.nodes.len() * 4 {
            for one in 0..self.nodes.len() {
                for other in one + 1..self.nodes.len() {
                    if self.nodes[one].digest() != self.nodes[other].digest() {
                        self.exchange(one, other);
                    }
                }
            }
        }
    }

    fn check(&self) {
        let first = &self.nodes[0];
        for node in &self.nodes {
            assert!(node.entries().eq(first.entries()), "two catalogues still differ");
        }
        let highest: BTreeMap<&Key, &Version> = self.written.iter().map(|(key, version)| (key, version)).collect();
        for (key, version) in highest {
            // The set is sorted, so the last version of a key is its highest.
            let entry = first.entry(key).unwrap();
            assert_eq!(entry.version, *version, "{key:?}: a later change, or a removal, was undone");
        }
    }
}

#[test]
fn catalogues_merge_after_a_partition_and_keep_every_latest_change() {
    each_seed(|seed| {
        let mut replicas = Replicas::new(Random(seed ^ 0xca7a));
        for _ in 0..STEPS {
            replicas.step();
        }
        replicas.heal();
        replicas.check();
    });
}

#[test]
fn a_node_whose_edit_lost_to_another_keeps_it_as_a_conflict() {
    each_seed(|seed| {
        let mut replicas = Replicas::new(Random(seed ^ 0xb07b));
        let size = replicas.nodes.len();
        while replicas.written.is_empty() {
            replicas.edit();
        }
        replicas.heal();
        replicas.side = (0..size).map(|node| node % 2 == 0).collect();
        replicas.elect();
        // Each side edits the same entry once, from the same version.
        let key = replicas.written.first().unwrap().0.clone();
        let Key::Workspace(name) = key.clone() else { unreachable!("only workspaces are edited here") };
        let mut entries = Vec::new();
        for (side, cores) in [(false, 2), (true, 3)] {
            let (leader, ballot) = replicas.leaders[&side];
            replicas.seq += 1;
            let version = replicas.nodes[leader].next_version(&key, ballot, replicas.seq);
            let workspace = Workspace::new(name.clone(), Cores::whole(cores), Bytes::gib(1));
            let changed_at = Timestamp::from_millis(0);
            let value = Value::Workspace(Box::new(workspace));
            let entry = Entry { key: key.clone(), version, changed_at, value };
            replicas.keep(leader, vec![entry.clone()]);
            entries.push(entry);
        }
        entries.sort_by(|a, b| a.version.cmp(&b.version));
        replicas.side.fill(false);
        let [one, other] = [&false, &true].map(|side| replicas.leaders[side].0);
        let (one, other) = if replicas.random.chance(50) { (one, other) } else { (other, one) };
        while replicas.nodes[one].digest() != replicas.nodes[other].digest() {
            replicas.exchange(one, other);
        }
        for node in [one, other] {
            assert_eq!(**replicas.nodes[node].entry(&key).unwrap(), entries[1], "the higher version wins");
        }
        let lost = replicas.leaders.values().find(|(_, ballot)| *ballot == entries[0].version.ballot).unwrap().0;
        let told = replicas.nodes[lost].conflict(&key).map(|conflict| (&conflict.previous, &conflict.won));
        assert_eq!(told, Some((&entries[0], &entries[1].version)), "n{lost} has no conflict of the edit that lost");
    });
}
