use super::*;
use crate::election::Reign;
use crate::types::{Ballot, BootInstant, ClusterMode, EventKind, NodeUsage, sample};

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn member(n: u8, state: NodeState) -> Arc<Member> {
    Arc::new(Member {
        address: "10.0.0.1:7480".parse().unwrap(),
        incarnation: 1,
        state,
        mode: ClusterMode::Available,
        last_seen: at(100),
        profile: Some(Arc::new(sample::profile(&format!("n{n}"), id(n).as_str()))),
        usage: NodeUsage::default(),
        sessions: BTreeMap::new(),
        catalogue: None,
    })
}

fn view(members: &[(u8, NodeState)]) -> ClusterView {
    let members = members.iter().map(|(n, state)| (id(*n), member(*n, *state))).collect();
    ClusterView { members, ..ClusterView::default() }
}

/// Node `leader` leads in this term. Node 1 is this node.
fn led(leader: Option<u8>, term: u64) -> Leadership {
    let ballot = leader.map(|leader| Ballot { term, node: id(leader) });
    let reign = ballot.filter(|ballot| ballot.node == id(1)).map(|ballot| {
        let (electorate, reached) = ([id(1)].into(), [id(1)].into());
        Arc::new(Reign { ballot, electorate, reached, needed: 1, lease: BootInstant::from_millis(0) })
    });
    Leadership { leader: leader.map(id), ballot, reign }
}

fn news(view: &ClusterView) -> News {
    News::new(id(1), "n1".parse().unwrap(), view)
}

fn kinds(told: &[Happening]) -> Vec<EventKind> {
    told.iter().map(|happening| happening.kind).collect()
}

#[test]
fn a_leader_tells_who_joins_is_lost_leaves_and_is_back() {
    use EventKind::{LeaderElected, NodeBack, NodeJoined, NodeLeft, NodeLost};
    use NodeState::{Alive, Left, Suspect, Unknown};
    let mut news = news(&view(&[]));
    let leads = led(Some(1), 3);
    assert_eq!(kinds(&news.see(&leads, &view(&[]), at(0))), [LeaderElected]);
    for (state, expected) in [
        (Alive, vec![NodeJoined]),
        (Suspect, vec![]),
        (Alive, vec![]),
        (Suspect, vec![]),
        (Unknown, vec![NodeLost]),
        (Unknown, vec![]),
        (Alive, vec![NodeBack]),
        (Left, vec![NodeLeft]),
        (Alive, vec![NodeBack]),
    ] {
        let told = news.see(&leads, &view(&[(2, state)]), at(122));
        assert_eq!(kinds(&told), expected, "{state}");
        if let Some(lost) = told.iter().find(|happening| happening.kind == NodeLost) {
            assert_eq!(
                (lost.data["silent_seconds"].as_u64(), lost.target.as_ref().unwrap().name.as_deref()),
                (Some(22), Some("n2"))
            );
        }
    }
    assert_eq!(kinds(&news.see(&leads, &view(&[]), at(0))), [], "it is told where it was forgotten");
    assert_eq!(kinds(&news.see(&leads, &view(&[(2, Alive)]), at(0))), [NodeJoined]);
}

#[test]
fn a_follower_tells_nothing_and_the_next_leader_what_happened_without_one() {
    use NodeState::{Alive, Unknown};
    let before = view(&[(2, Alive), (3, Alive)]);
    let mut news = news(&view(&[]));
    assert_eq!(news.see(&led(Some(2), 1), &before, at(0)), []);
    let lost = view(&[(2, Unknown), (3, Alive)]);
    assert_eq!(news.see(&led(None, 1), &lost, at(122)), [], "there is no leader");
    let told = news.see(&led(Some(1), 2), &lost, at(122));
    assert_eq!(kinds(&told), [EventKind::LeaderElected, EventKind::NodeLost]);
    assert_eq!(told[0].data["previous"], "n2");
    assert_eq!(told[0].message, "n1 leads after n2, in term 2");
}

#[test]
fn nodes_of_an_earlier_life_are_no_news_and_a_leader_that_steps_down_says_so() {
    use NodeState::{Alive, Unknown};
    let mut news = news(&view(&[(2, Unknown)]));
    assert_eq!(
        kinds(&news.see(&led(Some(1), 1), &view(&[(2, Alive)]), at(0))),
        [EventKind::LeaderElected, EventKind::NodeBack]
    );
    assert_eq!(kinds(&news.see(&led(None, 1), &view(&[(2, Alive)]), at(0))), [EventKind::LeaderLost]);
    let again = news.see(&led(Some(1), 2), &view(&[(2, Alive)]), at(0));
    assert_eq!((kinds(&again), again[0].data.get("previous")), (vec![EventKind::LeaderElected], None));
    assert_eq!(
        kinds(&news.see(&led(Some(1), 4), &view(&[(2, Alive)]), at(0))),
        [EventKind::LeaderLost, EventKind::LeaderElected]
    );
}

#[test]
fn a_new_node_joins_though_it_is_unknown_at_first_and_one_of_an_earlier_life_is_back() {
    use NodeState::{Alive, Unknown};
    let leads = led(Some(1), 3);
    let mut news = news(&view(&[(2, Unknown)]));
    let first = view(&[(2, Unknown), (3, Unknown)]);
    assert_eq!(kinds(&news.see(&leads, &first, at(0))), [EventKind::LeaderElected]);
    let told = news.see(&leads, &view(&[(2, Alive), (3, Alive)]), at(1));
    assert_eq!(kinds(&told), [EventKind::NodeBack, EventKind::NodeJoined]);
    let told = news.see(&leads, &view(&[(2, Alive), (3, Unknown)]), at(122));
    assert_eq!(kinds(&told), [EventKind::NodeLost]);
    assert_eq!(kinds(&news.see(&leads, &view(&[(2, Alive), (3, Alive)]), at(123))), [EventKind::NodeBack]);
}
