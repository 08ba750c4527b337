//! The daily question whether an image is the newest of its name. Pure.
//!
//! Once a day, at a time of the day that follows from the image's name, one node asks the registry. The others compare:
//! one that has another digest pulls, and the rest only note that they were checked. Nothing of this is kept by the
//! leader: it follows from what the nodes report, so that it goes on under the next leader.
//!
//! It goes by the wall clocks of the hosts, since nothing else is common to them and outlives a leader. A clock that is
//! wrong by hours costs a question more or less a day.

use crate::images::Checked;
use crate::placement::score::hash;
use crate::types::{ImageReference, NodeId, Timestamp};

/// Milliseconds.
const DAY: u64 = 24 * 3600 * 1000;

/// A node that has the image from its registry.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    pub node: NodeId,
    pub checked: &'a Checked,
}

/// What is to be done about one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// One of these nodes asks the registry: the first that can.
    Ask(Vec<NodeId>),
    /// The registry was asked.
    Follow {
        /// Nodes with another digest, which pull.
        pull: Vec<NodeId>,
        /// Nodes with the digest that the registry gave.
        note: Vec<(NodeId, String)>,
    },
}

/// What is to be done about an image that these nodes have.
pub fn due(image: &ImageReference, holders: &[Holder<'_>], now: Timestamp) -> Due {
    let since = last_time(image, now);
    let (fresh, stale): (Vec<Holder<'_>>, Vec<Holder<'_>>) =
        holders.iter().partition(|holder| holder.checked.at >= since);
    if stale.is_empty() {
        return Due::Nothing;
    }
    if fresh.is_empty() {
        return Due::Ask(in_turn(image, &stale, since));
    }
    let newest = fresh.iter().filter(|holder| holder.checked.digest.is_some()).max_by_key(|holder| holder.checked.at);
    let digest = newest.and_then(|holder| holder.checked.digest.as_ref());
    let (note, pull): (Vec<Holder<'_>>, Vec<Holder<'_>>) =
        stale.iter().partition(|holder| digest.is_some() && holder.checked.digest.as_ref() == digest);
    Due::Follow {
        pull: pull.iter().map(|holder| holder.node).collect(),
        note: note.iter().filter_map(|holder| Some((holder.node, digest?.clone()))).collect(),
    }
}

/// The last time at which a registry was to be asked about this image.
fn last_time(image: &ImageReference, now: Timestamp) -> Timestamp {
    let day = i64::try_from(DAY).unwrap_or(i64::MAX);
    let of_day = i64::try_from(time_of_day(image)).unwrap_or_default();
    let into = (now.millis() - of_day).rem_euclid(day);
    Timestamp::from_millis(now.millis() - into)
}

/// Milliseconds after midnight, UTC.
fn time_of_day(image: &ImageReference) -> u64 {
    // The higher bits of the hash are the better ones.
    (hash(0, image.as_str()) >> 16) % DAY
}

/// The nodes in the order of the day: another one comes first each day.
fn in_turn(image: &ImageReference, stale: &[Holder<'_>], since: Timestamp) -> Vec<NodeId> {
    let seed = hash(since.millis().unsigned_abs(), image.as_str());
    let mut nodes: Vec<NodeId> = stale.iter().map(|holder| holder.node).collect();
    nodes.sort_by_key(|node| hash(seed, node.as_str()));
    nodes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MONDAY: i64 = 1_767_571_200_000;

    fn image(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    fn checked(digest: &str, at: i64) -> Checked {
        Checked { digest: Some(digest.to_owned()), at: Timestamp::from_millis(at) }
    }

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 10])
    }

    fn due_of(all: &[Checked], now: i64) -> Due {
        let holders = all.iter().zip(0..).map(|(checked, n)| Holder { node: id(n), checked });
        due(&image("x:1"), &holders.collect::<Vec<_>>(), Timestamp::from_millis(now))
    }

    /// The time of Tuesday at which `x:1` is to be asked about.
    fn tuesday() -> i64 {
        let time = last_time(&image("x:1"), Timestamp::from_millis(MONDAY + 2 * DAY as i64 - 1)).millis();
        assert!((MONDAY + DAY as i64..MONDAY + 2 * DAY as i64).contains(&time));
        time
    }

    #[test]
    fn one_node_asks_and_the_others_compare() {
        let time = tuesday();
        let old = checked("old", time - 5);
        assert_eq!(due_of(&[old.clone(), old.clone(), old.clone()], time - 1), Due::Nothing, "it was asked today");
        let Due::Ask(order) = due_of(&[old.clone(), old.clone(), old.clone()], time) else { panic!("it is due") };
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 3, "any of them may");
        // Node 1 asked and has the same; then node 1 asked and has a newer one.
        let follow = |digest| due_of(&[old.clone(), checked(digest, time + 1), old.clone()], time + 2);
        let same = vec![(id(0), "old".to_owned()), (id(2), "old".to_owned())];
        assert_eq!(follow("old"), Due::Follow { pull: vec![], note: same });
        assert_eq!(follow("new"), Due::Follow { pull: vec![id(0), id(2)], note: vec![] });
        let all = [checked("new", time + 3), checked("new", time + 1), checked("newer", time + 4)];
        assert_eq!(due_of(&all, time + 5), Due::Nothing, "each was asked since: the rest is for tomorrow");
    }

    /// The order of three nodes that were last asked before yesterday's time.
    fn in_order(now: i64) -> Vec<NodeId> {
        match due_of(&[checked("old", 0), checked("old", 0), checked("old", 0)], now) {
            Due::Ask(order) => order,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_without_a_digest_is_no_news_for_others() {
        let time = tuesday();
        let unknown = Checked { digest: None, at: Timestamp::from_millis(time) };
        let all = [unknown, checked("old", time - 1)];
        assert_eq!(due_of(&all, time), Due::Follow { pull: vec![id(1)], note: vec![] });
    }

    #[test]
    fn the_questions_are_spread_over_the_day() {
        let mut hours = [0_u32; 24];
        for n in 0..2400 {
            let hour =
                time_of_day(&image(&format!("registry.example.com/team/desktop-{}:{}", n / 10, n % 10))) / 3_600_000;
            hours[usize::try_from(hour).unwrap()] += 1;
        }
        assert!(hours.iter().all(|count| (50..=150).contains(count)), "{hours:?}");
    }

    #[test]
    fn each_node_has_its_days() {
        let first = |day: i64| in_order(tuesday() + day * DAY as i64)[0];
        let asked: BTreeSet<NodeId> = (0..30).map(first).collect();
        assert_eq!(asked.len(), 3);
    }

    proptest! {
        /// Three nodes, whichever answers first, and leaders that know only what nodes report.
        #[test]
        fn over_a_day_each_image_is_asked_about_once(
            name in "[a-z]{1,12}", start in 0..DAY as i64, looks in proptest::collection::vec(1..3_600_000_i64, 40..80),
            moves in any::<bool>(),
        ) {
            let image = image(&name);
            let mut nodes = vec![checked("old", MONDAY - 3 * DAY as i64); 3];
            let (mut now, mut asked) = (MONDAY + start, Vec::new());
            for look in looks {
                now += look;
                let holders: Vec<_> = nodes.iter().zip(0..).map(|(checked, n)| Holder { node: id(n), checked }).collect();
                let place = |node: NodeId| (0..3).find(|n| id(*n) == node).map(usize::from).unwrap();
                match due(&image, &holders, Timestamp::from_millis(now)) {
                    Due::Nothing => {}
                    Due::Ask(order) => {
                        asked.push(last_time(&image, Timestamp::from_millis(now)));
                        nodes[place(order[0])] = checked(if moves { "new" } else { "old" }, now);
                    }
                    Due::Follow { pull, note } => {
                        prop_assert!(moves || pull.is_empty());
                        let note = note.into_iter().map(|(node, _)| node);
                        for node in pull.into_iter().chain(note) {
                            nodes[place(node)] = checked(if moves { "new" } else { "old" }, now);
                        }
                    }
                }
            }
            let distinct: BTreeSet<_> = asked.iter().collect();
            prop_assert_eq!(distinct.len(), asked.len(), "once between two times of the day");
            let days = (now - MONDAY - start) / DAY as i64;
            prop_assert!(i64::try_from(asked.len()).unwrap() >= days, "and each day: {asked:?}");
        }
    }
}
