//! The leader's work, driven without a network: what it asks hosts and answers callers.

use super::*;
use crate::sessions::{Changes, Held};
use crate::types::{Bytes, Cores, OnUnknown, Resources, Strategy, Timestamp, sample};

const NOW: BootInstant = BootInstant::from_millis(1_000_000);
const NAMES: [&str; 3] = ["a", "b", "c"];

fn id(host: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(host).unwrap(); 10])
}

fn after(millis: u64) -> BootInstant {
    NOW.plus(Duration::from_millis(millis))
}

fn workspace() -> Workspace {
    let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(2), Bytes::gib(1));
    workspace.command = vec!["sleep".to_owned()];
    workspace
}

fn held(key: &str, host: usize, unplaced: bool) -> Held {
    let state = if unplaced { SessionState::Pending } else { SessionState::Running };
    let mut session = sample::session_profile(key, "desktop", "alice", state);
    session.node_id = id(host);
    let (activity, ballot) = (sample::activity(), Ballot { term: 1, node: id(0) });
    Held { session, activity, ballot, gone: false, unplaced, reserved: true }
}

fn report(host: usize, held: Vec<Held>) -> HostAnswer {
    let mut profile = sample::profile(NAMES[host], id(host).as_str());
    profile.physical = Resources::new(Cores::whole(4), Bytes::gib(64), 0);
    profile.effective = profile.physical;
    let changes =
        Changes { now: sessions::Have { incarnation: 1, version: 1 }, whole: true, held, forgotten: Vec::new() };
    let (usage, at) = (sample::usage(), Timestamp::default());
    HostAnswer::Report(Ok(Box::new(HostReport {
        profile,
        images: crate::images::Here::new(),
        version: 0,
        usage,
        at,
        changes,
    })))
}

fn claimed(key: &str, claim: u32, tried: &[usize]) -> HostAnswer {
    let asked = Asked {
        platform: None,
        user: "alice".parse().unwrap(),
        fingerprint: key.to_owned(),
        workspace: workspace(),
        attempt: 2,
        tried: tried.iter().map(|host| id(*host)).collect(),
        secret: None,
        by: None,
    };
    HostAnswer::Claim(Ok(Box::new(Claimed { asked, claim })))
}

fn no_answer() -> Unanswered {
    Unanswered::NoAnswer("the time is up".into())
}

/// A leader of three hosts of four cores. Callers are numbers.
struct Leader {
    placement: Placement<u32>,
    reign: Reign,
    view: ClusterView,
}

/// What the leader asks a host: the number of the call, the host, and the question.
type Question = (u64, NodeId, HostCall);
/// A caller and its answer.
type Answer = (u32, Result<Admitted, Error>);

impl Leader {
    /// Of these hosts it has the reports.
    fn that_heard(hosts: &[usize]) -> Self {
        let all: BTreeSet<NodeId> = (0..3).map(id).collect();
        let ballot = Ballot { term: 7, node: id(0) };
        let reign = Reign { ballot, electorate: all.clone(), reached: all, needed: 2, lease: after(60_000) };
        let config = Config { strategy: Strategy::Spread, on_unknown: OnUnknown::Place, max_sessions_per_user: 0 };
        let placement = Placement::new("test".parse().unwrap(), config);
        let mut leader = Self { placement, reign, view: ClusterView::default() };
        leader.follow();
        hosts.iter().for_each(|host| leader.hear(*host, Vec::new(), NOW));
        leader.placement.tick(NOW);
        leader
    }

    fn follow(&mut self) {
        self.placement.set_view(Arc::new(self.view.clone()));
        self.placement.follow(Some(Arc::new(self.reign.clone())), NOW);
    }

    /// The host answers the call that waits for its report.
    fn hear(&mut self, host: usize, held: Vec<Held>, now: BootInstant) {
        let of_host = |purpose: &Purpose| matches!(purpose, Purpose::Report { host: on, .. } if *on == id(host));
        let call = self.placement.calls.iter().rev().find(|(_, purpose)| of_host(purpose)).map(|(call, _)| *call);
        self.placement.answered(call.expect("the host is asked for a report"), report(host, held), now);
    }

    fn place(&mut self, caller: u32, key: &str) {
        let (user, session) = ("alice".parse().unwrap(), sample::session_id(key));
        let begin = Begin { session, user, workspace: Ok(workspace()), drawn: false };
        let place = Place { begin, fingerprint: key.to_owned(), by: None };
        self.placement.place(Box::new(place), caller, NOW);
    }

    /// What came out since the last call: questions, and answers to callers.
    fn outputs(&mut self) -> (Vec<Question>, Vec<Answer>) {
        let (mut questions, mut answers) = (Vec::new(), Vec::new());
        while let Some(output) = self.placement.poll() {
            match output {
                Output::Ask { call, host, what } => questions.push((call, host, what)),
                Output::Answer { to, placed } => answers.push((to, *placed)),
            }
        }
        (questions, answers)
    }

    fn questions(&mut self) -> Vec<Question> {
        let (questions, answers) = self.outputs();
        assert!(answers.is_empty(), "{answers:?}");
        questions
    }

    /// The questions other than those for reports.
    fn orders(&mut self) -> Vec<Question> {
        let is_order = |(_, _, what): &Question| !matches!(what, HostCall::Report { .. });
        self.questions().into_iter().filter(is_order).collect()
    }

    fn order(&mut self) -> Question {
        let mut orders = self.orders();
        assert_eq!(orders.len(), 1, "{orders:?}");
        orders.remove(0)
    }

    fn orders_at(&mut self, now: BootInstant) -> Vec<Question> {
        self.placement.tick(now);
        self.orders()
    }

    fn answer(&mut self) -> Answer {
        let (_, mut answers) = self.outputs();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    fn sessions_on(&self, host: usize) -> Option<usize> {
        self.placement.book.index().fleet().hosts.get(&id(host)).map(|view| view.sessions.len())
    }
}

#[test]
fn only_reports_under_the_present_ballot_count() {
    let mut leader = Leader::that_heard(&[]);
    let before = leader.questions();
    let call = |questions: &[Question], host: usize| questions.iter().find(|(_, on, _)| *on == id(host)).unwrap().0;
    leader.placement.unanswered(call(&before, 1), no_answer(), NOW);
    leader.reign.ballot.term = 8;
    leader.follow();
    let present = leader.questions();
    assert!(leader.placement.take_news().is_some_and(|fleet| fleet.hosts.is_empty()));

    leader.placement.answered(call(&before, 0), report(0, Vec::new()), NOW);
    assert_eq!(leader.placement.take_news(), None, "the report was for the earlier ballot");
    leader.placement.tick(after(100));
    assert_eq!(leader.questions(), [], "no host is asked under the earlier ballot");

    leader.placement.unanswered(call(&present, 1), no_answer(), after(100));
    leader.placement.tick(after(199));
    assert_eq!(leader.questions(), []);
    leader.placement.tick(after(200));
    let again = leader.questions();
    let ballot = leader.reign.ballot;
    assert!(matches!(&again[..], [(_, host, HostCall::Report { ballot: by, .. })] if *host == id(1) && *by == ballot));
}

#[test]
fn news_comes_with_reports_and_with_what_is_forgotten() {
    let mut leader = Leader::that_heard(&[2]);
    leader.hear(0, vec![held("k", 0, false)], NOW);
    leader.hear(1, vec![held("l", 1, false)], NOW);
    assert!(leader.placement.take_news().is_some_and(|fleet| fleet.hosts.len() == 3));
    assert_eq!(leader.placement.take_news(), None);

    leader.reign.reached = [id(0)].into();
    leader.follow();
    assert_eq!(leader.placement.take_news(), None, "nodes that failed are not forgotten");

    let forgotten = |host, key| (id(host), BTreeSet::from([sample::session_id(key)]));
    leader.view.forgotten = [forgotten(0, "k"), forgotten(1, "l")].into();
    leader.follow();
    assert!(leader.placement.take_news().is_some());
    assert_eq!((leader.sessions_on(0), leader.sessions_on(1)), (Some(1), Some(0)), "the first host has returned");

    leader.reign.electorate.remove(&id(2));
    leader.follow();
    assert!(leader.placement.take_news().is_some_and(|fleet| !fleet.hosts.contains_key(&id(2))));
}

#[test]
fn a_dry_run_names_the_hosts_that_would_be_asked() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    let (session, user) = (sample::session_id("k"), "alice".parse().unwrap());
    let offers = leader.placement.dry_run(&session, &user, &workspace(), NOW).unwrap();
    assert_eq!(offers.candidates.len(), 3);
    leader.placement.follow(None, NOW);
    assert_eq!(leader.placement.dry_run(&session, &user, &workspace(), NOW), Err(Error::NotLeader));
}

#[test]
fn a_request_waits_four_seconds_for_missing_reports() {
    let mut leader = Leader::that_heard(&[0, 1]);
    leader.place(1, "k");
    assert_eq!(leader.orders(), []);
    assert_eq!(leader.placement.poll_timeout(), Some(after(100)));
    assert_eq!(leader.orders_at(after(50)), []);
    assert_eq!(leader.placement.poll_timeout(), Some(after(100)), "its next try is not put off");
    assert_eq!(leader.orders_at(after(3900)), []);
    leader.placement.tick(after(4000));
    assert!(matches!(leader.answer(), (1, Err(Error::Indexing { .. }))));

    leader.place(2, "l");
    assert_eq!(leader.orders(), []);
    leader.hear(2, Vec::new(), after(50));
    let (call, host, HostCall::Admit(admit)) = leader.order() else { panic!("it is offered") };
    assert_eq!((admit.session, admit.destination), (sample::session_id("l"), host));
    let session = sample::session("l", "desktop", "alice", SessionState::Pending);
    let admitted = Admitted { session, replayed: false };
    leader.placement.answered(call, HostAnswer::Admit(Offered::Accepted(Box::new(admitted.clone()))), after(50));
    assert_eq!(leader.answer(), (2, Ok(admitted)));
}

#[test]
fn requests_beyond_the_limits_are_answered_at_once() {
    let mut leader = Leader::that_heard(&[0, 1]);
    for waiting in 0..MAX_PARKED {
        leader.place(0, &waiting.to_string());
    }
    assert_eq!(leader.orders(), []);
    leader.place(1, "k");
    assert!(matches!(leader.answer(), (1, Err(Error::Indexing { .. }))));

    let mut leader = Leader::that_heard(&[0, 1]);
    leader.hear(0, vec![held("k", 0, false)], NOW);
    leader.orders();
    for _ in 0..MAX_PLACINGS {
        leader.place(0, "k");
    }
    assert_eq!(leader.orders().len(), MAX_PLACINGS);
    leader.place(1, "k");
    assert_eq!(leader.answer(), (1, Err(Error::Host(sessions::Error::Busy))));
}

#[test]
fn a_host_is_asked_three_times_for_a_session_that_it_reported() {
    let mut leader = Leader::that_heard(&[1, 2]);
    leader.hear(0, vec![held("k", 0, false)], NOW);
    leader.orders();
    let find = HostCall::Find { session: sample::session_id("k"), fingerprint: "k".to_owned() };
    leader.place(1, "k");
    for _ in 0..3 {
        let (call, host, what) = leader.order();
        assert_eq!((host, &what), (id(0), &find));
        leader.placement.answered(call, HostAnswer::Find(Box::new(Ok(None))), NOW);
    }
    assert_eq!(leader.answer(), (1, Err(Error::Changing)));

    leader.place(2, "k");
    let (call, ..) = leader.order();
    leader.placement.unanswered(call, no_answer(), NOW);
    let (2, Ok(Admitted { session, replayed: true })) = leader.answer() else { panic!("it is known by its report") };
    assert_eq!((session.id, session.state), (sample::session_id("k"), SessionState::Unknown));
}

#[test]
fn a_session_that_was_not_placed_again_is_claimed_a_second_later() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    let session = sample::session_id("k");
    let claim = HostCall::Claim { ballot: leader.reign.ballot, session };
    leader.hear(0, vec![held("k", 0, true)], NOW);
    let (call, host, what) = leader.order();
    assert_eq!((host, &what), (id(0), &claim));
    leader.placement.answered(call, HostAnswer::Claim(Err(sessions::Error::Busy)), NOW);
    assert_eq!(leader.orders_at(after(999)), []);
    leader.placement.tick(after(1000));
    let (call, _, what) = leader.order();
    assert_eq!(what, claim);
    leader.placement.unanswered(call, no_answer(), after(1000));
    leader.placement.tick(after(2000));
    let (call, _, what) = leader.order();
    assert_eq!(what, claim);

    leader.placement.answered(call, claimed("k", 5, &[0, 1, 2]), after(2000));
    let (call, host, what) = leader.order();
    assert_eq!((host, what), (id(0), HostCall::GiveUp { session, claim: 5 }), "no other host admits it");
    assert_eq!(leader.orders_at(after(3000)), [], "the host has not answered yet");
    leader.placement.answered(call, HostAnswer::Done, after(3000));
    leader.placement.tick(after(4000));
    assert_eq!(leader.order().2, claim, "the host still reports it");
}

#[test]
fn a_leader_that_is_outdated_does_not_give_up_a_session_that_it_claimed() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    leader.hear(0, vec![held("k", 0, true)], NOW);
    let call = leader.order().0;
    leader.placement.answered(call, claimed("k", 1, &[0]), NOW);
    let (call, _, what) = leader.order();
    assert!(matches!(what, HostCall::Admit(_)), "{what:?}");
    let highest = Ballot { term: 8, node: id(1) };
    leader.placement.answered(call, HostAnswer::Admit(Offered::Stale(Stale { highest })), NOW);
    assert_eq!(leader.orders(), [], "the next leader decides");
}

#[test]
fn only_so_many_sessions_are_placed_again_at_the_same_time() {
    let mut leader = Leader::that_heard(&[0, 1, 2]);
    leader.hear(0, (0..=MAX_MOVES).map(|key| held(&key.to_string(), 0, true)).collect(), NOW);
    let claims = leader.orders();
    assert_eq!(claims.len(), MAX_MOVES);
    leader.placement.answered(claims[0].0, HostAnswer::Claim(Err(sessions::Error::Busy)), NOW);
    assert_eq!(leader.orders_at(after(1000)).len(), 1);
}

#[test]
fn a_host_is_reminded_every_three_seconds_of_its_older_copy() {
    let mut leader = Leader::that_heard(&[2]);
    let is_order = |orders: Vec<Question>| {
        matches!(&orders[..], [(_, host, HostCall::DropDuplicate(session))]
            if *host == id(0) && *session == sample::session_id("k"))
    };
    leader.hear(0, vec![held("k", 0, false)], NOW);
    assert_eq!(leader.orders(), []);
    leader.hear(1, vec![held("k", 1, false)], NOW);
    assert!(is_order(leader.orders()));
    assert_eq!(leader.orders_at(after(2999)), []);
    assert!(is_order(leader.orders_at(after(3000))));
    assert_eq!(leader.orders_at(after(5999)), []);
    assert!(is_order(leader.orders_at(after(6000))));
}
