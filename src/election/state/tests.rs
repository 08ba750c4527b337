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
