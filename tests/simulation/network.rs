//! A network that loses, delays, repeats and cuts off messages, by its seed.

use std::collections::BTreeSet;

/// SplitMix64: the same seed gives the same history.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick(&mut self, nodes: usize) -> usize {
        usize::try_from(self.below(u64::try_from(nodes).unwrap())).unwrap()
    }
}

/// The quality of the network.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// The percentages of messages that are lost, or arrive twice.
    pub(crate) loss: u64,
    pub(crate) twice: u64,
    /// The delay in milliseconds: at least `delay`, and less than `jitter` more.
    pub(crate) delay: u64,
    pub(crate) jitter: u64,
    /// Milliseconds after which a lost message is sent again, as QUIC does. `None`: it never arrives.
    pub(crate) again: Option<u64>,
    /// Pairs of nodes: no message of the first reaches the second.
    pub(crate) cut: BTreeSet<(usize, usize)>,
}

impl Network {
    pub(crate) fn good() -> Self {
        Self { loss: 0, twice: 0, delay: 1, jitter: 2, again: None, cut: BTreeSet::new() }
    }

    pub(crate) fn of(random: &mut Random) -> Self {
        Self {
            loss: random.below(20),
            twice: random.below(10),
            delay: random.below(40),
            jitter: 1 + random.below(120),
            again: random.chance(50).then_some(150),
            cut: BTreeSet::new(),
        }
    }

    /// The delay of each copy of a message. Empty: the message is lost.
    pub(crate) fn carry(&self, from: usize, to: usize, random: &mut Random) -> Vec<u64> {
        if self.cut.contains(&(from, to)) {
            return Vec::new();
        }
        let mut delay = self.delay;
        while random.chance(self.loss) {
            let Some(again) = self.again else { return Vec::new() };
            delay += again;
        }
        let copies = 1 + usize::from(random.chance(self.twice));
        (0..copies).map(|_| delay + random.below(self.jitter)).collect()
    }

    /// Cuts the nodes in two sides, in both directions or one, with or without a bridge.
    pub(crate) fn partition(&mut self, nodes: usize, random: &mut Random) {
        self.cut.clear();
        let side: Vec<bool> = (0..nodes).map(|_| random.chance(50)).collect();
        let bridge = random.chance(30).then(|| random.pick(nodes));
        let one_way = random.chance(30);
        for from in 0..nodes {
            for to in 0..nodes {
                let crosses = side[from] != side[to] && bridge != Some(from) && bridge != Some(to);
                if crosses && (!one_way || side[from]) {
                    self.cut.insert((from, to));
                }
            }
        }
    }
}
