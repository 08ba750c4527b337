use std::sync::Arc;

use super::*;
use crate::gossip::Member;
use crate::placement::HostReport;
use crate::placement::flights::REMEMBERED_FOR;
use crate::sessions::{Changes, Have, Held};
use crate::types::{Bytes, ClusterMode, Cores, NodeProfile, SessionProfile, Strategy, Timestamp, VolumeMount, sample};

const NOW: BootInstant = BootInstant::from_millis(1_000_000);
const NAMES: [&str; 3] = ["a", "b", "c"];

fn id(host: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(host).unwrap(); 10])
}

fn workspace() -> Workspace {
    let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(2), Bytes::gib(1));
    workspace.command = vec!["sleep".to_owned()];
    workspace
}

/// A leader of three hosts of four cores.
struct Leader {
    book: Book,
    reign: Reign,
    view: ClusterView,
}

impl Leader {
    fn new(config: Config) -> Self {
        let all: BTreeSet<NodeId> = (0..3).map(id).collect();
        let ballot = Ballot { term: 7, node: id(0) };
        let reign = Reign { ballot, electorate: all.clone(), reached: all, needed: 2, lease: NOW.plus(REMEMBERED_FOR) };
        Self { book: Book::new(config), reign, view: ClusterView::default() }
    }

    fn that_heard(hosts: &[usize]) -> Self {
        let mut leader = Self::new(config());
        hosts.iter().for_each(|host| leader.hear(*host, Vec::new()));
        leader
    }

    fn hear(&mut self, host: usize, held: Vec<Held>) {
        let mut profile = sample::profile(NAMES[host], id(host).as_str());
        profile.physical = Resources::new(Cores::whole(4), Bytes::gib(64), 0);
        profile.effective = profile.physical;
        let now = Have { incarnation: 1, version: 1 };
        let changes = Changes { now, whole: true, held, forgotten: Vec::new() };
        let (usage, at) = (sample::usage(), Timestamp::default());
        let report = HostReport { profile, images: crate::images::Here::new(), version: 0, usage, at, changes };
        self.book.index_mut().apply(&id(host), report);
    }

    fn lose(&mut self, host: usize) {
        self.reign.reached.remove(&id(host));
        self.book.note_silence(&self.reign, NOW);
    }

    fn begin(&mut self, key: &str, drawn: bool, now: BootInstant) -> Result<Begun, Error> {
        let begin = Begin {
            session: sample::session_id(key),
            user: "alice".parse().unwrap(),
            workspace: Ok(workspace()),
            drawn,
        };
        let situation = Situation { now, reign: &self.reign, view: &self.view };
        self.book.begin(&begin, situation)
    }

    /// The names of the hosts that it offers the session to, sorted.
    fn offers(&mut self, key: &str) -> Vec<String> {
        match self.begin(key, true, NOW).unwrap() {
            Begun::Offer { offers, .. } => names(&offers),
            other => panic!("it is not offered: {other:?}"),
        }
    }

    fn again(&mut self, key: &str, tried: &[usize]) -> Result<Vec<String>, Error> {
        let again = Again {
            platform: None,
            session: sample::session_id(key),
            host: id(tried[0]),
            user: "alice".parse().unwrap(),
            workspace: workspace(),
            tried: tried.iter().map(|host| id(*host)).collect(),
        };
        let situation = Situation { now: NOW, reign: &self.reign, view: &self.view };
        self.book.begin_again(&again, situation).map(|(_, offers)| names(&offers))
    }

    fn dry_run(&self, workspace: &Workspace) -> Result<Offers, Error> {
        let situation = Situation { now: NOW, reign: &self.reign, view: &self.view };
        self.book.dry_run(&sample::session_id("k"), &"alice".parse().unwrap(), workspace, situation)
    }

    /// The number of hosts that it offers the session to.
    fn offered_at(&mut self, key: &str, now: BootInstant) -> usize {
        match self.begin(key, false, now).unwrap() {
            Begun::Offer { offers, .. } => offers.candidates.len(),
            other => panic!("it is not offered: {other:?}"),
        }
    }

    /// Offers the session to a host that does not answer. Returns that host.
    fn doubt(&mut self, key: &str) -> usize {
        let Ok(Begun::Offer { offers, .. }) = self.begin(key, true, NOW) else { panic!("it is offered") };
        self.end(key, End::Uncertain);
        (0..3).find(|host| id(*host) == offers.candidates[0].id).unwrap()
    }

    fn end(&mut self, key: &str, end: End) {
        self.book.end(&sample::session_id(key), &self.reign.ballot, end, NOW);
    }
}

fn config() -> Config {
    Config { strategy: Strategy::Spread, on_unknown: OnUnknown::Place, max_sessions_per_user: 0 }
}

fn names(offers: &Offers) -> Vec<String> {
    let mut names: Vec<String> = offers.candidates.iter().map(|candidate| candidate.name.to_string()).collect();
    names.sort_unstable();
    names
}

fn held(key: &str, host: usize, unplaced: bool) -> Held {
    let state = if unplaced { SessionState::Pending } else { SessionState::Running };
    let mut session = sample::session_profile(key, "desktop", "alice", state);
    session.node_id = id(host);
    let (activity, ballot) = (sample::activity(), Ballot { term: 1, node: id(0) });
    Held { session, activity, ballot, gone: false, unplaced, reserved: true }
}

/// A node that gossip tells of.
fn member(state: NodeState, profile: Option<NodeProfile>, sessions: Vec<SessionProfile>) -> Arc<Member> {
    Arc::new(Member {
        address: "127.0.0.1:7000".parse().unwrap(),
        incarnation: 1,
        state,
        mode: ClusterMode::Available,
        last_seen: Timestamp::default(),
        profile: profile.map(Arc::new),
        usage: sample::usage(),
        sessions: sessions.into_iter().map(|session| (session.id, Arc::new(session))).collect(),
        catalogue: None,
    })
}

fn holder(begun: Result<Begun, Error>) -> NodeId {
    match begun {
        Ok(Begun::Known { host, .. }) => host,
        other => panic!("no host has it: {other:?}"),
    }
}

#[test]
fn a_session_in_flight_takes_room_until_its_host_reports() {
    let mut leader = Leader::that_heard(&[0]);
    assert_eq!(leader.offers("one"), ["a"]);
    assert_eq!(leader.offers("two"), ["a"]);
    assert!(matches!(leader.begin("three", true, NOW), Ok(Begun::Wait(_))), "an unreported host may have room");
    leader.end("two", End::NotTaken);
    assert_eq!(leader.offers("three"), ["a"], "a rejected session takes no room");
    leader.end("one", End::Taken);
    assert_eq!(holder(leader.begin("one", false, NOW)), id(0));
}

#[test]
fn a_session_that_was_taken_is_remembered_until_its_host_reports_it_or_a_minute_has_passed() {
    let mut leader = Leader::that_heard(&[0]);
    assert_eq!(leader.offers("one"), ["a"]);
    leader.end("one", End::Taken);
    leader.hear(0, vec![held("one", 0, false)]);
    assert_eq!((leader.offers("two"), leader.offers("three")), (vec!["a".to_owned()], vec!["a".to_owned()]));

    let mut leader = Leader::that_heard(&[0, 1, 2]);
    leader.begin("k", true, NOW).unwrap();
    leader.end("k", End::Taken);
    holder(leader.begin("k", false, NOW.plus(REMEMBERED_FOR - Duration::from_secs(1))));
    assert_eq!(leader.offered_at("k", NOW.plus(REMEMBERED_FOR)), 3);
}

#[test]
fn a_leader_under_another_ballot_knows_nothing_of_earlier_offers() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    leader.begin("k", true, NOW).unwrap();
    assert!(matches!(leader.begin("k", false, NOW), Ok(Begun::Wait(Error::BeingPlaced))));
    leader.book.clear();
    (0..3).for_each(|host| leader.hear(host, Vec::new()));
    assert_eq!(leader.offered_at("k", NOW), 3);
}

#[test]
fn a_session_that_only_gossip_tells_of_is_where_it_was_until_its_host_reports() {
    let mut leader = Leader::that_heard(&[1, 2]);
    let remembered = member(NodeState::Alive, None, vec![held("k", 0, false).session]);
    leader.view.members.insert(id(0), remembered);
    assert_eq!(holder(leader.begin("k", false, NOW)), id(0));
    leader.lose(0);
    let begun = leader.begin("k", false, NOW);
    assert!(matches!(begun, Ok(Begun::Unknown(session)) if session.state == SessionState::Unknown));
    leader.hear(0, Vec::new());
    assert_eq!(leader.offered_at("k", NOW), 2, "it has reported since, without this session");
}

#[test]
fn a_key_waits_until_every_host_that_may_have_its_session_has_reported() {
    let mut leader = Leader::that_heard(&[0, 1]);
    let Ok(Begun::Wait(Error::Indexing { waiting_for })) = leader.begin("k", false, NOW) else {
        panic!("the third host may have it")
    };
    assert_eq!(waiting_for, [id(2).into()]);
    assert!(matches!(leader.begin("drawn", true, NOW), Ok(Begun::Offer { .. })), "no host can have this one");
    let mut ended = held("ended", 2, false);
    ended.session.state = SessionState::Stopped;
    leader.hear(2, vec![held("k", 2, false), ended]);
    assert_eq!(holder(leader.begin("k", false, NOW)), id(2));
    leader.lose(2);
    let mut state = |key: &str| match leader.begin(key, false, NOW) {
        Ok(Begun::Unknown(session)) => session.state,
        other => panic!("it is placed a second time: {other:?}"),
    };
    assert_eq!((state("k"), state("ended")), (SessionState::Unknown, SessionState::Stopped));
}

#[test]
fn the_leader_waits_for_a_silent_host_only_under_on_unknown_fail() {
    let mut leader = Leader::that_heard(&[0, 1]);
    leader.lose(2);
    assert!(matches!(leader.begin("k", false, NOW), Ok(Begun::Offer { .. })));
    let mut leader = Leader::new(Config { on_unknown: OnUnknown::Fail, ..config() });
    leader.hear(0, Vec::new());
    leader.hear(1, Vec::new());
    leader.lose(2);
    assert!(matches!(leader.begin("k", false, NOW), Ok(Begun::Wait(Error::Indexing { .. }))));
}

#[test]
fn only_the_host_that_may_have_it_is_asked_again() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    let Ok(Begun::Offer { offers, .. }) = leader.begin("k", true, NOW) else { panic!("it is offered") };
    let asked = offers.candidates[1].clone();
    leader.book.offering(&sample::session_id("k"), &leader.reign.ballot, asked.clone());
    assert!(matches!(leader.begin("k", false, NOW), Ok(Begun::Wait(_))), "it is being placed");
    leader.end("k", End::Uncertain);
    let Ok(Begun::Offer { offers, .. }) = leader.begin("k", false, NOW) else { panic!("it is offered") };
    assert_eq!(offers.candidates, [asked]);
}

#[test]
fn only_the_host_that_did_not_answer_is_asked_for_a_minute_however_often_callers_retry() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    let mut offered_at = |now: BootInstant| {
        let Ok(Begun::Offer { offers, ballot }) = leader.begin("k", false, now) else { panic!("it is offered") };
        leader.book.end(&sample::session_id("k"), &ballot, End::Uncertain, now);
        offers.candidates.len()
    };
    assert_eq!(offered_at(NOW), 3);
    for seconds in [10, 20, 59] {
        assert_eq!(offered_at(NOW.plus(Duration::from_secs(seconds))), 1, "after {seconds} s");
    }
    assert_eq!(offered_at(NOW.plus(REMEMBERED_FOR)), 3);
}

#[test]
fn the_leader_waits_for_a_silent_host_that_may_have_the_session_only_under_on_unknown_fail() {
    for (on_unknown, candidates) in [(OnUnknown::Place, 2), (OnUnknown::Fail, 1)] {
        let mut leader = Leader::new(Config { on_unknown, ..config() });
        (0..3).for_each(|host| leader.hear(host, Vec::new()));
        let Ok(Begun::Offer { offers, .. }) = leader.begin("k", true, NOW) else { panic!("it is offered") };
        let asked = (0..3).find(|host| id(*host) == offers.candidates[0].id).unwrap();
        leader.end("k", End::Uncertain);
        leader.lose(asked);
        let Ok(Begun::Offer { offers, .. }) = leader.begin("k", false, NOW) else { panic!("it is offered") };
        assert_eq!(offers.candidates.len(), candidates, "{on_unknown:?}");
    }
}

#[test]
fn a_session_that_a_host_could_not_start_goes_to_another() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    leader.hear(0, vec![held("k", 0, true)]);
    assert_eq!(leader.book.index().fleet().unplaced, [(sample::session_id("k"), id(0))].into());
    assert_eq!(leader.again("k", &[0]).unwrap(), ["b", "c"]);
    assert!(matches!(leader.again("k", &[0]), Err(Error::BeingPlaced)), "it is being placed");
    assert_eq!(holder(leader.begin("k", false, NOW)), id(0), "a retry finds it where it is");
    leader.book.offering(
        &sample::session_id("k"),
        &leader.reign.ballot,
        Candidate { id: id(1), name: "b".parse().unwrap() },
    );
    leader.end("k", End::Taken);
    assert_eq!(holder(leader.begin("k", false, NOW)), id(1), "a retry finds it on its new host");
    let second = held("k", 1, false);
    leader.hear(1, vec![Held { session: SessionProfile { attempt: 2, ..second.session.clone() }, ..second }]);
    assert!(leader.book.index().fleet().unplaced.is_empty(), "though the first host has not put it away yet");
    assert!(matches!(leader.again("k", &[0]), Err(Error::PlacedElsewhere)), "it has been placed");
    leader.hear(0, Vec::new());
    assert_eq!(holder(leader.begin("k", false, NOW)), id(1));
    assert!(matches!(leader.again("l", &[0, 1, 2]), Err(Error::NoCapacity(_))), "no host is left");
    let mut young = Leader::that_heard(&[0]);
    assert!(matches!(young.again("l", &[0]), Err(Error::Indexing { .. })), "other hosts may still admit it");
}

#[test]
fn sessions_of_a_host_that_has_been_silent_for_long_do_not_count_against_their_user() {
    let mut leader = Leader::new(Config { max_sessions_per_user: 1, ..config() });
    (0..2).for_each(|host| leader.hear(host, Vec::new()));
    leader.hear(2, vec![held("old", 2, false)]);
    let refused = |begun| matches!(begun, Err(Error::Host(sessions::Error::Quota { limit: 1, .. })));
    assert!(refused(leader.begin("new", true, NOW)));
    leader.lose(2);
    assert!(refused(leader.begin("new", true, NOW)));
    leader.book.note_silence(&leader.reign, NOW.plus(Duration::from_secs(10))); // it has been silent since `NOW`
    let later = NOW.plus(COUNTED_FOR);
    assert!(matches!(leader.begin("new", true, later), Ok(Begun::Offer { .. })));
    assert!(refused(leader.begin("newer", true, later)), "a session in flight counts");
}

#[test]
fn a_host_that_may_have_a_session_is_certain_not_to_have_it_after_its_second_report() {
    for (reports, candidates) in [(1, 1), (2, 3)] {
        let mut leader = Leader::new(Config { on_unknown: OnUnknown::Fail, ..config() });
        (0..3).for_each(|host| leader.hear(host, Vec::new()));
        let asked = leader.doubt("k");
        (0..reports).for_each(|_| leader.hear(asked, Vec::new()));
        assert_eq!(leader.offered_at("k", NOW.plus(REMEMBERED_FOR)), candidates, "after {reports} reports");
    }
}

#[test]
fn a_host_that_may_have_a_session_is_not_waited_for_once_it_was_removed() {
    let cases = [
        (true, None, 1),
        (true, Some(NodeState::Left), 1),
        (false, Some(NodeState::Suspect), 1),
        (false, Some(NodeState::Left), 2),
        (false, None, 2),
    ];
    for (elects, state, candidates) in cases {
        let mut leader = Leader::new(Config { on_unknown: OnUnknown::Fail, ..config() });
        (0..3).for_each(|host| leader.hear(host, Vec::new()));
        let asked = leader.doubt("k");
        leader.lose(asked);
        if !elects {
            leader.reign.electorate.remove(&id(asked));
        }
        leader.view.members.extend(state.map(|state| (id(asked), member(state, None, Vec::new()))));
        let offered = leader.offered_at("k", NOW.plus(REMEMBERED_FOR));
        assert_eq!(offered, candidates, "in the electorate: {elects}, state: {state:?}");
    }
}

#[test]
fn the_next_host_that_does_not_answer_is_waited_for_as_long_as_the_first() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    let asked = leader.doubt("k");
    leader.lose(asked);
    let later = NOW.plus(REMEMBERED_FOR / 2);
    assert_eq!(leader.offered_at("k", later), 2);
    leader.book.end(&sample::session_id("k"), &leader.reign.ballot, End::Uncertain, later);
    assert_eq!(leader.offered_at("k", NOW.plus(REMEMBERED_FOR)), 1);
}

#[test]
fn a_node_that_gossip_tells_of_and_that_has_not_reported_is_unreachable_unless_it_left() {
    let mut leader = Leader::that_heard(&[0, 1]);
    let profile = |name: &str, host: usize| Some(sample::profile(name, id(host).as_str()));
    leader.view.members = [
        (id(0), member(NodeState::Alive, profile("a", 0), Vec::new())),
        (id(1), member(NodeState::Alive, None, Vec::new())),
        (id(2), member(NodeState::Alive, profile("c", 2), Vec::new())),
        (id(3), member(NodeState::Alive, None, Vec::new())),
        (id(4), member(NodeState::Left, profile("e", 4), Vec::new())),
        (id(5), member(NodeState::Left, None, Vec::new())),
    ]
    .into();
    let offers = leader.dry_run(&workspace()).unwrap();
    assert_eq!(names(&offers), ["a", "b"]);
    let unreachable = |node| NodeReason::plain(node, Reason::Unreachable);
    assert_eq!(offers.refusals, [unreachable("c".parse().unwrap()), unreachable(id(3).into())]);
}

#[test]
fn a_workspace_that_no_known_node_can_run_is_invalid() {
    let without_command = Workspace { command: Vec::new(), ..workspace() };
    assert!(matches!(Leader::that_heard(&[0]).dry_run(&without_command), Err(Error::Invalid(_))));
    assert!(Leader::that_heard(&[]).dry_run(&without_command).unwrap().candidates.is_empty(), "no node is known");
}

#[test]
fn a_session_goes_to_the_host_of_the_last_session_of_its_user_and_workspace_if_a_volume_does_not_roam() {
    let mut leader = Leader::new(config());
    let made_at = |millis: i64, held: Held| {
        let session = SessionProfile { created_at: Timestamp::from_millis(millis), ..held.session };
        Held { session, ..held }
    };
    let mut of_bob = made_at(4, held("bob", 0, false));
    of_bob.session.user = "bob".parse().unwrap();
    let mut of_a_shell = made_at(3, held("shell", 0, false));
    of_a_shell.session.workspace = "shell".parse().unwrap();
    leader.hear(0, vec![of_bob, of_a_shell]);
    leader.hear(1, vec![made_at(2, held("new", 1, false))]);
    leader.hear(2, vec![made_at(1, held("old", 2, false))]);
    let hosts = |roam: bool| {
        let mount = VolumeMount { name: "home-{user}".to_owned(), path: "/home".to_owned(), read_only: false, roam };
        names(&leader.dry_run(&Workspace { volumes: vec![mount], ..workspace() }).unwrap())
    };
    assert_eq!((hosts(false), hosts(true)), (vec!["b".to_owned()], NAMES.map(str::to_owned).to_vec()));
}
