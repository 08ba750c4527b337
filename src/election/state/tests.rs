use super::*;

const NOW: BootInstant = BootInstant::from_millis(1_000_000);
const BEAT: Duration = Duration::from_millis(200);

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

/// Node 0, just elected by nodes 1 and 2, and the time of its election.
fn elected() -> (Election, BootInstant) {
    let config = Config { mode: ClusterMode::Available, heartbeat: BEAT };
    let mut election = Election::new(config, id(0), Stored::default(), NOW, 1);
    election.members(Members { voters: [id(1), id(2)].into(), known: 2, untried: false }, NOW);
    let now = election.poll_timeout();
    election.tick(now);
    while !matches!(election.role, Role::Leader(_)) {
        let (peer, request) = election.poll_send().expect("it asks until it is elected");
        let answer = Answer { granted: true, highest: None, round: 0 };
        election.answer(&peer, &request, &answer, now);
    }
    (election, now)
}

#[test]
fn a_voter_counts_as_reached_until_it_has_missed_its_heartbeats() {
    let (election, now) = elected();
    let reached = |at: BootInstant| election.leadership(at).reign.unwrap().reached.clone();
    assert_eq!(reached(now), [id(0), id(1), id(2)].into());
    let missed = now.plus(BEAT * REACHED_BEATS);
    assert_eq!(reached(missed), [id(0)].into(), "neither has answered a heartbeat");
}

#[test]
fn a_pre_vote_does_not_raise_the_term_of_the_next_campaign() {
    let (mut election, now) = elected();
    let term = |election: &Election| election.leadership(now).reign.unwrap().ballot.term;
    let before = term(&election);
    election.request(Request::PreVote { ballot: Ballot { term: before + 100, node: id(1) } }, now);
    election.follow_nobody(now);
    election.campaign(now);
    let sent: Vec<Request> = std::iter::from_fn(|| election.poll_send()).map(|(_, request)| request).collect();
    let own = Request::PreVote { ballot: Ballot { term: before + 1, node: id(0) } };
    assert!(sent.contains(&own), "{sent:?}");
}

fn quorum(known: usize, stored: Stored) -> Election {
    let config = Config { mode: ClusterMode::Quorum { expected_nodes: 3 }, heartbeat: BEAT };
    let mut election = Election::new(config, id(0), stored, NOW, 1);
    election.members(Members { voters: [id(1), id(2)].into(), known, untried: false }, NOW);
    election
}

fn ballot(term: u64, node: u8) -> Ballot {
    Ballot { term, node: id(node) }
}

fn beat(election: &mut Election, ballot: Ballot, now: BootInstant) -> bool {
    election.request(Request::Beat { ballot, round: 1, electorate: 3 }, now).granted
}

fn would_vote(election: &mut Election, ballot: Ballot, now: BootInstant) -> bool {
    election.request(Request::PreVote { ballot }, now).granted
}

fn sent(election: &mut Election) -> Vec<(NodeId, Request)> {
    std::iter::from_fn(|| election.poll_send()).collect()
}

/// What this node still grants just before `span` is over, and when it is over.
fn around(from: BootInstant, span: Duration) -> [BootInstant; 2] {
    [from.plus(span - Duration::from_millis(1)), from.plus(span)]
}

#[test]
fn a_voter_counts_as_reached_for_five_heartbeats_and_no_longer() {
    let (election, now) = elected();
    let reached = around(now, BEAT * 5).map(|at| election.leadership(at).reign.unwrap().reached.len());
    assert_eq!(reached, [3, 1]);
}

#[test]
fn a_follower_votes_for_no_other_node_until_its_leader_is_silent_for_a_timeout() {
    let mut election = quorum(2, Stored::default());
    assert!(beat(&mut election, ballot(1, 1), NOW));
    let votes = around(NOW, BEAT * 2).map(|at| would_vote(&mut election, ballot(2, 2), at));
    assert_eq!(votes, [false, true]);
}

#[test]
fn a_leader_votes_for_no_other_node_until_a_majority_is_silent_for_a_timeout() {
    let (mut election, now) = elected();
    let votes = around(now, BEAT * 2).map(|at| would_vote(&mut election, ballot(9, 2), at));
    assert_eq!(votes, [false, true]);
}

#[test]
fn a_node_that_had_a_leader_before_its_restart_votes_for_nobody_for_a_timeout() {
    let mut election = quorum(2, Stored { highest: Some(ballot(1, 1)), lost: false });
    let votes = around(NOW, BEAT * 2).map(|at| would_vote(&mut election, ballot(2, 2), at));
    assert_eq!(votes, [false, true]);
    let mut new = quorum(2, Stored::default());
    assert!(would_vote(&mut new, ballot(2, 2), NOW), "a new node had no leader");
}

#[test]
fn a_node_beyond_the_expected_number_does_not_vote_or_campaign() {
    for (known, votes) in [(2, true), (3, false), (4, false)] {
        let mut election = quorum(known, Stored::default());
        assert_eq!(would_vote(&mut election, ballot(1, 1), NOW), votes, "{known} other nodes");
        let due = election.poll_timeout();
        election.tick(due);
        assert_eq!(!sent(&mut election).is_empty(), votes, "{known} other nodes");
    }
}

#[test]
fn a_leader_steps_down_when_more_nodes_are_known_than_expected() {
    let (mut election, now) = elected();
    election.config.mode = ClusterMode::Quorum { expected_nodes: 3 };
    election.tick(now);
    assert_eq!(election.leadership(now).leader, Some(id(0)));
    election.members(Members { voters: [id(1), id(2)].into(), known: 3, untried: false }, now);
    election.tick(now);
    assert_eq!(election.leadership(now).leader, None);
}

#[test]
fn a_node_that_lost_its_votes_votes_again_after_it_followed_one_leader_for_four_timeouts() {
    let over = BEAT * 2 * 4;
    let follow = |changes: bool, at: BootInstant| {
        let mut election = quorum(2, Stored { highest: None, lost: true });
        assert!(!would_vote(&mut election, ballot(9, 2), NOW));
        beat(&mut election, ballot(1, 1), NOW);
        if changes {
            beat(&mut election, ballot(2, 2), NOW.plus(BEAT));
            beat(&mut election, ballot(2, 2), at);
        } else {
            beat(&mut election, ballot(1, 1), NOW.plus(BEAT));
            beat(&mut election, ballot(1, 1), at);
        }
        // Its leader is silent by then, so that only its probation is in the way.
        would_vote(&mut election, ballot(9, 2), at.plus(BEAT * 10))
    };
    assert_eq!(around(NOW, over).map(|at| follow(false, at)), [false, true]);
    assert!(!follow(true, NOW.plus(over)), "another leader starts the time again");
    assert!(follow(true, NOW.plus(BEAT + over)));
}

#[test]
fn only_the_followed_leader_of_this_ballot_can_resign() {
    let resign = |by: Ballot, successor: u8| {
        let mut election = quorum(2, Stored::default());
        beat(&mut election, ballot(1, 1), NOW);
        let granted = election.request(Request::Resign { ballot: by, successor: id(successor) }, NOW).granted;
        (granted, election.leadership(NOW).leader, sent(&mut election).len())
    };
    assert_eq!(resign(ballot(1, 1), 0), (true, None, 2), "the successor asks both nodes for their votes");
    assert_eq!(resign(ballot(1, 1), 2), (true, None, 0), "another node is the successor");
    assert_eq!(resign(ballot(1, 2), 0), (false, Some(id(1)), 0), "it follows another node");
    assert_eq!(resign(ballot(0, 1), 0), (false, Some(id(1)), 0), "it follows another ballot");
}

#[test]
fn a_ballot_that_cannot_be_written_is_not_campaigned_for() {
    let (mut election, now) = elected();
    assert!(!election.outgoing.is_empty());
    election.persist_failed(now);
    assert_eq!((election.leadership(now).leader, sent(&mut election)), (None, Vec::new()));
}

#[test]
fn a_leader_sends_heartbeats_at_once_when_the_nodes_change_and_not_when_they_stay() {
    let (mut election, now) = elected();
    let members = |voters: &[u8]| Members {
        voters: voters.iter().map(|n| id(*n)).collect(),
        known: voters.len(),
        untried: false,
    };
    let later = now.plus(Duration::from_millis(1));
    election.members(members(&[1, 2]), later);
    assert_eq!(election.poll_timeout(), now.plus(BEAT));
    election.members(members(&[1, 2, 3]), later);
    assert_eq!(election.poll_timeout(), later);
}

#[test]
fn election_timeouts_differ_between_nodes_and_are_less_than_twice_the_smallest() {
    let timeouts: BTreeSet<Duration> = (0..200)
        .map(|seed| {
            let config = Config { mode: ClusterMode::Available, heartbeat: BEAT };
            let mut election = Election::new(config, id(0), Stored::default(), NOW, seed);
            election.members(Members { voters: [id(1)].into(), known: 1, untried: false }, NOW);
            election.poll_timeout().since(NOW)
        })
        .collect();
    let smallest = BEAT * 2;
    assert!(timeouts.iter().all(|timeout| (smallest..smallest * 2).contains(timeout)), "{timeouts:?}");
    assert!(timeouts.len() > 50, "{timeouts:?}");
}

#[test]
fn a_change_of_nodes_does_not_postpone_a_campaign() {
    let mut election = quorum(2, Stored::default());
    let due = election.poll_timeout();
    election.members(Members { voters: [id(1)].into(), known: 1, untried: false }, NOW.plus(BEAT));
    assert_eq!(election.poll_timeout(), due);
}

#[test]
fn a_candidate_without_votes_gives_up_and_campaigns_again() {
    let mut election = quorum(2, Stored::default());
    let due = election.poll_timeout();
    election.tick(due);
    for (peer, request) in sent(&mut election) {
        election.answer(&peer, &request, &Answer { granted: true, highest: None, round: 0 }, due);
    }
    assert!(matches!(election.role, Role::Candidate { .. }), "{:?}", election.role);
    let due = election.poll_timeout();
    election.tick(due);
    assert!(matches!(election.role, Role::Follower { leader: None, .. }), "{:?}", election.role);
    assert!(election.poll_timeout() > due);
}

#[test]
fn a_campaign_waits_half_a_timeout_for_answers() {
    let mut election = quorum(2, Stored::default());
    let due = election.poll_timeout();
    election.tick(due);
    assert_eq!(election.poll_timeout(), due.plus(BEAT));
}

#[test]
fn a_node_that_left_is_no_longer_in_the_electorate_and_the_leader_is() {
    let (mut election, now) = elected();
    election.members(Members { voters: [id(1)].into(), known: 1, untried: false }, now);
    assert_eq!(election.leadership(now).reign.unwrap().electorate, [id(0), id(1)].into());
}

#[test]
fn answers_to_another_ballot_do_not_count() {
    let granted = Answer { granted: true, highest: None, round: 1 };
    let mut election = quorum(2, Stored::default());
    let due = election.poll_timeout();
    election.tick(due);
    let old = ballot(90, 0);
    for node in [1, 2] {
        election.answer(&id(node), &Request::PreVote { ballot: old }, &granted, due);
    }
    assert!(matches!(election.role, Role::Asking { .. }), "{:?}", election.role);
    for (peer, request) in sent(&mut election) {
        election.answer(&peer, &request, &granted, due);
    }
    for node in [1, 2] {
        election.answer(&id(node), &Request::Vote { ballot: old }, &granted, due);
    }
    assert!(matches!(election.role, Role::Candidate { .. }), "{:?}", election.role);
    for (peer, request) in sent(&mut election) {
        election.answer(&peer, &request, &granted, due);
    }
    let lease = |election: &Election| election.leadership(due).reign.unwrap().lease;
    let before = lease(&election);
    for node in [1, 2] {
        election.answer(&id(node), &Request::Beat { ballot: old, round: 1, electorate: 3 }, &granted, due);
    }
    assert_eq!(lease(&election), before);
}

#[test]
fn a_leader_steps_down_for_a_higher_ballot_only() {
    let leader_after = |highest: fn(Ballot) -> Ballot| {
        let (mut election, now) = elected();
        let own = election.leadership(now).reign.unwrap().ballot;
        let refused = Answer { granted: false, highest: Some(highest(own)), round: 1 };
        election.answer(&id(1), &Request::Beat { ballot: own, round: 1, electorate: 3 }, &refused, now);
        election.leadership(now).leader
    };
    assert_eq!(leader_after(|own| own), Some(id(0)));
    assert_eq!(leader_after(|own| Ballot { term: own.term + 1, ..own }), None);
}

#[test]
fn a_lease_is_an_eighth_shorter_than_followers_hold_on() {
    let (mut election, now) = elected();
    for (peer, request) in sent(&mut election) {
        let answer = Answer { granted: true, highest: None, round: 1 };
        election.answer(&peer, &request, &answer, now);
    }
    let lease = election.leadership(now).reign.unwrap().lease;
    assert_eq!(lease, now.plus(Duration::from_millis(350)), "of two heartbeats of 200 ms");
}

#[test]
fn after_a_refusal_a_majority_of_all_known_nodes_is_needed() {
    let config = Config { mode: ClusterMode::Available, heartbeat: BEAT };
    let campaign = |others: u8, granting: &[u8], refusing: &[u8]| {
        let mut election = Election::new(config, id(0), Stored::default(), NOW, 1);
        let voters = (1..=others).map(id).collect();
        election.members(Members { voters, known: usize::from(others), untried: false }, NOW);
        let due = election.poll_timeout();
        election.tick(due);
        let ask = Request::PreVote { ballot: ballot(1, 0) };
        for (nodes, granted) in [(granting, true), (refusing, false)] {
            for node in nodes {
                election.answer(&id(*node), &ask, &Answer { granted, highest: None, round: 0 }, due);
            }
        }
        let due = election.poll_timeout();
        election.tick(due);
        matches!(election.role, Role::Candidate { .. } | Role::Leader(_))
    };
    assert!(campaign(4, &[1, 2], &[]), "all nodes that answer grant it");
    assert!(campaign(4, &[1, 2], &[3]), "three of all five");
    assert!(!campaign(4, &[1], &[2]), "two of the three that answer, and of five");
    assert!(campaign(4, &[1], &[]), "two of the two that answer");
    assert!(!campaign(3, &[1], &[2]), "two of all four");
}

#[test]
fn in_available_mode_a_much_smaller_electorate_is_accepted_after_three_rounds() {
    let config = Config { mode: ClusterMode::Available, heartbeat: BEAT };
    // Does what is due, and lets the granting nodes answer until there is nothing more to send.
    let step = |election: &mut Election, granting: &[u8]| {
        let due = election.poll_timeout();
        election.tick(due);
        while let Some((peer, request)) = election.poll_send() {
            if granting.iter().any(|node| peer == id(*node)) && !matches!(request, Request::Beat { .. }) {
                election.answer(&peer, &request, &Answer { granted: true, highest: None, round: 0 }, due);
            }
        }
    };
    let rounds = |granting: &[u8], last_electorate: u32| {
        let mut election = Election::new(config, id(0), Stored::default(), NOW, 1);
        election.members(Members { voters: [id(1), id(2), id(3)].into(), known: 3, untried: false }, NOW);
        election.request(Request::Beat { ballot: ballot(1, 3), round: 1, electorate: last_electorate }, NOW);
        let mut rounds = 0;
        while !matches!(election.role, Role::Leader(_)) {
            rounds += 1;
            assert!(rounds < 10, "{:?}", election.role);
            step(&mut election, granting);
            if matches!(election.role, Role::Asking { .. }) {
                // The end of the wait for the nodes that do not answer.
                step(&mut election, granting);
            }
        }
        rounds
    };
    assert_eq!(rounds(&[1], 3), 1, "two nodes are more than half of three");
    assert_eq!(rounds(&[1], 4), 4, "two nodes are half of four");
    assert_eq!(rounds(&[1, 2], 5), 1, "three nodes are more than half of five");
    assert_eq!(rounds(&[1, 2], 6), 4, "three nodes are half of six");
}

#[test]
fn the_send_times_of_sixteen_rounds_are_kept() {
    let (mut election, now) = elected();
    let mut at = now;
    for _ in 0..ROUNDS_KEPT {
        at = election.poll_timeout();
        let Role::Leader(rule) = &mut election.role else { panic!("it leads") };
        // Elected just now, it does not step down though no node answers.
        rule.since = at;
        election.tick(at);
    }
    let Role::Leader(rule) = &election.role else { panic!("it leads") };
    let rounds: Vec<u64> = rule.sent.iter().map(|(round, _)| *round).collect();
    assert_eq!(rounds, (2..=17).collect::<Vec<u64>>(), "the first of seventeen is dropped");
    assert_eq!(rule.sent.back().map(|(_, sent)| *sent), Some(at));
}
