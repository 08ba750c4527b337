use super::*;
use crate::gossip::fixture::{by_id, id, profile, session};
use crate::gossip::keys::Heard;
use crate::types::Timestamp;

const SECOND: Duration = Duration::from_secs(1);

fn moment(secs: u64) -> Moment {
    let start = Moment { wall: Timestamp::from_millis(1_000_000), boot: BootInstant::from_millis(0), boot_id: 1 };
    start.plus(SECOND * u32::try_from(secs).unwrap())
}

fn entry(n: u8, live: bool) -> Entry {
    let mut ended = (*session(n, 1)).clone();
    ended.state = SessionState::Stopped;
    let heard = Heard {
        profile: Some(Arc::new(profile(n))),
        sessions: by_id(&[session(n, 0), Arc::new(ended)]),
        mode: Some(ClusterMode::Available),
        ..Heard::default()
    };
    let address = format!("127.0.0.1:{}", 1000 + u16::from(n)).parse().unwrap();
    Entry { id: id(n), incarnation: 5, address, live, heard: Arc::new(heard) }
}

fn left(n: u8) -> Entry {
    let entry = entry(n, true);
    Entry { heard: Arc::new(Heard { left: true, ..(*entry.heard).clone() }), ..entry }
}

fn membership() -> Membership {
    Membership::new(id(0), 5, true, BTreeMap::new(), moment(0))
}

fn state(view: &ClusterView, n: u8) -> NodeState {
    view.members[&id(n)].state
}

fn session_states(view: &ClusterView, n: u8) -> BTreeSet<SessionState> {
    view.members[&id(n)].sessions.values().map(|session| session.state).collect()
}

#[test]
fn a_silent_node_is_suspect_then_unknown_and_can_return() {
    let mut membership = membership();
    let (all, one_silent) = ([1, 2, 3].map(|n| entry(n, true)), [1, 2, 3].map(|n| entry(n, n != 2)));
    let view = membership.look(&all, moment(0));
    assert_eq!([1, 2, 3].map(|n| state(&view, n)), [NodeState::Alive; 3]);
    assert_eq!(session_states(&view, 2), [SessionState::Running, SessionState::Stopped].into());
    for (at, expected) in [(1, NodeState::Suspect), (10, NodeState::Suspect), (11, NodeState::Unknown)] {
        let view = membership.look(&one_silent, moment(at));
        assert_eq!((state(&view, 2), state(&view, 1)), (expected, NodeState::Alive), "after {at} s");
        assert_eq!(view.members[&id(2)].last_seen, moment(0).wall);
        assert_eq!(session_states(&view, 2), [SessionState::Unknown, SessionState::Stopped].into());
    }
    let view = membership.look(&all, moment(12));
    assert_eq!(state(&view, 2), NodeState::Alive);
    assert_eq!(session_states(&view, 2), [SessionState::Running, SessionState::Stopped].into());
}

#[test]
fn nodes_that_fall_silent_together_stay_suspect_for_longer() {
    let mut membership = membership();
    membership.look(&[1, 2, 3].map(|n| entry(n, true)), moment(0));
    membership.look(&[1, 2, 3].map(|n| entry(n, n != 1)), moment(1));
    let most = [1, 2, 3].map(|n| entry(n, n == 3));
    membership.look(&most, moment(3)); // the failure detector reports nodes one by one
    for (at, expected) in [(12, NodeState::Suspect), (30, NodeState::Suspect), (33, NodeState::Unknown)] {
        let view = membership.look(&most, moment(at));
        assert_eq!([1, 2].map(|n| state(&view, n)), [expected; 2], "after {at} s");
    }
}

#[test]
fn half_of_the_nodes_is_not_most_of_them() {
    let mut membership = membership();
    membership.look(&[1, 2].map(|n| entry(n, true)), moment(0));
    let half = [1, 2].map(|n| entry(n, n == 2));
    assert_eq!(state(&membership.look(&half, moment(1)), 1), NodeState::Suspect);
    assert_eq!(state(&membership.look(&half, moment(11)), 1), NodeState::Unknown);
}

#[test]
fn only_nodes_that_are_still_silent_and_were_not_silent_long_before_fell_silent_together() {
    type Looks = &'static [(u64, &'static [u8])]; // when, and which nodes are silent
    let cases: [(&str, u8, Looks); 2] = [
        ("the others are back", 3, &[(0, &[]), (1, &[1, 2]), (2, &[]), (3, &[3])]),
        ("the others are silent for 10 s", 5, &[(0, &[]), (1, &[1, 2, 3]), (2, &[1, 2]), (11, &[1, 2, 5])]),
    ];
    for (what, last, looks) in cases {
        let mut membership = membership();
        let mut look = |at, silent: &[u8]| {
            let entries: Vec<_> = (1..=last).map(|n| entry(n, !silent.contains(&n))).collect();
            state(&membership.look(&entries, moment(at)), last)
        };
        let states: Vec<_> = looks.iter().map(|(at, silent)| look(*at, silent)).collect();
        assert_eq!(states.last(), Some(&NodeState::Suspect), "{what}");
        let (at, silent) = looks.last().unwrap();
        assert_eq!(look(at + 10, silent), NodeState::Unknown, "{what}");
    }
}

#[test]
fn late_news_of_a_silent_node_are_shown() {
    let mut membership = membership();
    membership.look(&[entry(1, true)], moment(0));
    let late =
        Entry { heard: Arc::new(Heard { sessions: by_id(&[]), ..(*entry(1, true).heard).clone() }), ..entry(1, false) };
    assert!(membership.look(&[late], moment(1)).members[&id(1)].sessions.is_empty());
}

#[test]
fn a_node_that_leaves_stays_left_when_chitchat_forgets_it() {
    let mut membership = membership();
    membership.look(&[entry(1, true), entry(2, true)], moment(0));
    let view = membership.look(&[left(1), entry(2, true)], moment(1));
    assert_eq!(state(&view, 1), NodeState::Left);
    assert_eq!(session_states(&view, 1), [SessionState::Unknown, SessionState::Stopped].into());
    let view = membership.look(&[entry(2, true)], moment(1000));
    assert_eq!(state(&view, 1), NodeState::Left);
    let back = Entry { incarnation: 6, ..entry(1, true) };
    let view = membership.look(&[left(1), back], moment(1001));
    assert_eq!((state(&view, 1), view.members[&id(1)].incarnation), (NodeState::Alive, 6));
}

#[test]
fn the_latest_incarnation_counts() {
    let mut membership = membership();
    let later = Entry {
        incarnation: 6,
        address: "127.0.0.1:9".parse().unwrap(),
        heard: Arc::new(Heard::default()),
        ..entry(1, false)
    };
    membership.look(&[entry(1, true)], moment(0));
    let view = membership.look(&[later.clone(), entry(1, true)], moment(1));
    let member = &view.members[&id(1)];
    assert_eq!((member.incarnation, member.address, member.state), (6, later.address, NodeState::Alive));
    assert!(member.profile.is_some(), "what was known stays until more is heard");
    assert_eq!(member.sessions.len(), 2);
    let view = membership.look(&[later, entry(1, false)], moment(2));
    assert_eq!(state(&view, 1), NodeState::Suspect, "no life of it has a heartbeat");
    let view = membership.look(&[entry(1, false)], moment(3));
    assert_eq!(view.members[&id(1)].incarnation, 6, "an older life does not replace a later one");
}

#[test]
fn of_two_entries_of_one_incarnation_the_live_one_counts() {
    let other = |live| Entry { address: "127.0.0.1:9".parse().unwrap(), ..entry(1, live) };
    for (entries, expected) in
        [([entry(1, true), other(false)], entry(1, true)), ([entry(1, false), other(true)], other(true))]
    {
        let view = membership().look(&entries, moment(0));
        assert_eq!(view.members[&id(1)].address, expected.address);
    }
}

#[test]
fn a_later_life_of_a_copy_counts_as_outlived_once_it_has_been_silent_for_long() {
    let copy = |live| Entry { incarnation: 90, ..entry(0, live) };
    let mut membership = membership();
    let outlived = |membership: &mut Membership, entries: &[Entry], at| {
        membership.look(entries, moment(at));
        membership.outlived(moment(at))
    };
    assert_eq!(outlived(&mut membership, &[copy(false)], 0), None, "it may only have begun");
    assert_eq!(outlived(&mut membership, &[copy(true)], 29), None);
    assert_eq!(outlived(&mut membership, &[copy(false)], 40), None);
    assert_eq!(outlived(&mut membership, &[copy(false)], 69), None);
    assert_eq!(outlived(&mut membership, &[copy(false)], 70), Some(90));
    membership.begin_life(91);
    assert_eq!(outlived(&mut membership, &[copy(false)], 200), None);
    assert_eq!(outlived(&mut membership, &[entry(0, false)], 300), None, "an earlier life of this node");
}

#[test]
fn a_node_with_the_same_id_is_detected_and_a_previous_life_is_not_taken_for_one() {
    let twin = |incarnation, live| Entry { incarnation, ..entry(0, live) };
    let mut membership = membership();
    assert_eq!(membership.look(&[twin(9, false)], moment(0)).duplicate, None);
    let view = membership.look(&[twin(9, true)], moment(1));
    assert_eq!(view.duplicate, Some(twin(9, true).address));
    assert!(view.members.is_empty(), "this node is not its own peer");
    membership.look(&[], moment(2));
    assert_eq!(membership.look(&[twin(4, true)], moment(3)).duplicate, None);
    assert_eq!(membership.look(&[twin(4, true)], moment(20)).duplicate, None);
    assert!(membership.look(&[twin(4, true)], moment(33)).duplicate.is_some());
}

#[test]
fn a_node_that_hears_no_other_node_is_alone() {
    let mut membership = membership();
    assert!(!membership.look(&[], moment(4)).alone && membership.is_untried(moment(4)));
    assert!(membership.look(&[], moment(5)).alone && !membership.is_untried(moment(5)));
    assert!(!membership.look(&[entry(1, false)], moment(6)).alone);
    assert!(!membership.look(&[], moment(60)).alone, "it was heard once");
    let mut unexpecting = Membership::new(id(0), 5, false, BTreeMap::new(), moment(0));
    assert!(!unexpecting.look(&[], moment(60)).alone && !unexpecting.is_untried(moment(0)));
}

#[test]
fn nodes_known_before_the_start_are_unknown_until_they_are_heard() {
    let known = membership().look(&[entry(1, true), left(2)], moment(0)).members;
    let mut membership = Membership::new(id(0), 6, false, known, moment(100));
    assert!(membership.is_untried(moment(100)));
    let view = membership.look(&[], moment(100));
    assert_eq!([1, 2].map(|n| state(&view, n)), [NodeState::Unknown, NodeState::Left]);
    assert_eq!(view.members[&id(1)].last_seen, moment(0).wall);
    assert_eq!(session_states(&view, 1), [SessionState::Unknown, SessionState::Stopped].into());
    assert_eq!(state(&membership.look(&[entry(1, true)], moment(101)), 1), NodeState::Alive);
}

#[test]
fn a_forgotten_node_is_back_only_once_it_is_heard_for_long_enough() {
    let mut membership = membership();
    membership.look(&[entry(1, true)], moment(0));
    membership.look(&[entry(1, false)], moment(1));
    assert!(membership.forget(&id(1)).is_some() && membership.forget(&id(1)).is_none());
    let view = membership.look(&[entry(1, false)], moment(2));
    assert!(view.members.is_empty() && view.has_forgotten(&id(1), &session(1, 0).id));
    for second in 3..33 {
        let view = membership.look(&[entry(1, true)], moment(second));
        assert!(view.members.is_empty(), "after {second} s it may be an old heartbeat");
    }
    let view = membership.look(&[entry(1, true)], moment(33));
    assert_eq!(state(&view, 1), NodeState::Alive);
    assert!(!view.has_forgotten(&id(1), &session(1, 0).id));
}

#[test]
fn old_heartbeats_do_not_bring_a_forgotten_node_back() {
    let mut membership = membership();
    membership.look(&[entry(1, true)], moment(0));
    membership.forget(&id(1));
    for second in 1..100 {
        let echo = entry(1, second % 20 < 15);
        assert!(membership.look(&[echo], moment(second)).members.is_empty());
    }
}

#[test]
fn a_forgotten_session_is_back_with_its_host() {
    let mut membership = membership();
    let first = membership.look(&[entry(1, true)], moment(0));
    let sessions: Vec<SessionId> = first.members[&id(1)].sessions.keys().copied().collect();
    membership.look(&[entry(1, false)], moment(1));
    assert!(membership.forget_session(&id(1), &sessions[0]).is_some());
    assert!(membership.forget_session(&id(2), &sessions[0]).is_none());
    for second in 2..100 {
        let view = membership.look(&[entry(1, second % 20 < 15)], moment(second));
        assert!(view.members[&id(1)].sessions.keys().eq(&sessions[1..]), "after {second} s");
        assert_eq!(view.forgotten, [(id(1), [sessions[0]].into())].into());
        assert!(view.has_forgotten(&id(1), &sessions[0]) && !view.has_forgotten(&id(1), &sessions[1]));
    }
    let next = Entry { incarnation: 6, ..entry(1, true) };
    let view = membership.look(&[next], moment(100));
    assert!(view.members[&id(1)].sessions.keys().eq(&sessions));
    assert!(view.forgotten.is_empty());
}

#[test]
fn a_removed_node_that_starts_again_returns_at_once() {
    let mut membership = membership();
    membership.look(&[entry(1, true)], moment(0));
    membership.forget(&id(1));
    let next = Entry { incarnation: 6, ..entry(1, false) };
    assert_eq!(state(&membership.look(&[next], moment(4)), 1), NodeState::Unknown);
}

#[test]
fn time_alone_changes_the_view_only_every_five_seconds() {
    let mut membership = membership();
    let first = membership.look(&[entry(1, true)], moment(0));
    let same = membership.look(&[entry(1, true)], moment(4));
    assert!(Arc::ptr_eq(&first.members[&id(1)], &same.members[&id(1)]));
    let later = membership.look(&[entry(1, true)], moment(5));
    assert_eq!(later.members[&id(1)].last_seen, moment(5).wall);
}

#[test]
fn voters_have_the_same_mode_and_have_not_left() {
    let quorum = ClusterMode::Quorum { expected_nodes: 3 };
    let other = entry(2, true);
    let other = Entry { heard: Arc::new(Heard { mode: Some(quorum), ..(*other.heard).clone() }), ..other };
    let view = membership().look(&[entry(1, false), other, left(3)], moment(0));
    assert_eq!(directory(&view).len(), 3);
    let of_mode = |mode| members(&view, mode, true);
    let expected = |n| Members { voters: [id(n)].into(), known: 2, untried: true };
    assert_eq!(of_mode(ClusterMode::Available), expected(1));
    assert_eq!(of_mode(quorum), expected(2));
}

#[test]
fn above_the_bound_the_nodes_seen_longest_ago_are_forgotten() {
    let one = membership().look(&[entry(1, true)], moment(0)).members[&id(1)].clone();
    let numbered = |n: usize| {
        let mut bytes = [0xff; 10];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        let last_seen = Timestamp::from_millis(i64::try_from(n).unwrap());
        let member = Member { state: NodeState::Unknown, last_seen, ..(*one).clone() };
        (NodeId::from_bytes(bytes), Arc::new(member))
    };
    let known: BTreeMap<_, _> = (0..MAX_MEMBERS + 1).map(numbered).collect();
    let view = Membership::new(id(0), 5, true, known, moment(0)).look(&[entry(1, true)], moment(0));
    assert_eq!(view.members.len(), MAX_MEMBERS);
    assert!(!view.members.contains_key(&numbered(0).0) && !view.members.contains_key(&numbered(1).0));
    assert!(view.members.contains_key(&numbered(2).0) && view.members.contains_key(&id(1)));
}
