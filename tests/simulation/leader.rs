//! What a host does while it leads: listens to every host, and takes requests to the host that admits them.
//! As `placement/task.rs` and `placement/placer.rs` do it, on virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ostler::placement::book::{Begin, Begun, Book, Context};
use ostler::placement::flights::End;
use ostler::placement::index::Duplicate;
use ostler::placement::offer::{Offer, Step};
use ostler::placement::{Config, Error, Have, Offered, Placed};
use ostler::sessions::{self, Admit, Asked, Command};
use ostler::types::{Ballot, NodeId, NodeVerdict, Session, SessionId, SessionRequest, SessionState, Workspace};

use crate::call::{Answer, Call, Caller, Failure, Refused, Then};
use crate::cluster::Cluster;
use crate::event::{At, Event};
use crate::host::cluster_name;

const PARKED_FOR: u64 = 4000;
const TICK: u64 = 100;
const ASK_AGAIN: u64 = 100;
const REMIND: u64 = 3000;
const FIRST_ATTEMPT: u32 = 1;
const MAX_MISUNDERSTANDINGS: u32 = 3;
const REPORT_WITHIN: Duration = Duration::from_secs(8);
const ADMIT_WITHIN: Duration = Duration::from_secs(3);
const QUICK: Duration = Duration::from_secs(2);

/// What an agent leads with.
pub(crate) struct Leader {
    pub(crate) book: Book,
    /// By which it leads.
    ballot: Option<Ballot>,
    listening: BTreeSet<NodeId>,
    /// Placings that wait, and until when.
    parked: Vec<(u64, u64)>,
    placings: BTreeMap<u64, Placing>,
}

/// A request on its way.
struct Placing {
    caller: Caller,
    session: SessionId,
    drawn: bool,
    request: SessionRequest,
    misunderstandings: u32,
    /// What is said of it where its host does not answer.
    known: Option<Box<Session>>,
    offer: Option<(Offer, Ballot)>,
    /// Whom it is offered to next.
    asks: Option<(ostler::placement::plan::Candidate, Vec<NodeVerdict>)>,
}

impl Leader {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            book: Book::new(config),
            ballot: None,
            listening: BTreeSet::new(),
            parked: Vec::new(),
            placings: BTreeMap::new(),
        }
    }
}

impl Cluster {
    fn leader(&mut self, i: usize) -> &mut Leader {
        &mut self.hosts[i].life.as_mut().unwrap().leader
    }

    /// Begins, goes on or ends to listen to hosts, as who leads whom has changed.
    pub(crate) fn follow_leadership(&mut self, i: usize) {
        let Some(leadership) = self.world.leadership(i) else { return };
        let reign = leadership.reign;
        let ballot = reign.as_ref().map(|reign| reign.ballot);
        let leader = self.leader(i);
        if leader.ballot == ballot && ballot.is_none() {
            return;
        }
        let changed = leader.ballot != ballot;
        if changed {
            leader.listening.clear();
            leader.book.clear();
            leader.ballot = ballot;
        }
        if let Some(reign) = &reign {
            let hosts = reign.electorate.union(&reign.reached);
            let new: Vec<NodeId> = hosts.filter(|host| !leader.listening.contains(*host)).copied().collect();
            for host in new {
                self.leader(i).listening.insert(host);
                let to = self.index_of(&host);
                self.listen(i, to, reign.ballot, None);
            }
        }
        if changed {
            self.unpark(i);
        }
    }

    /// Asks a host what it holds.
    pub(crate) fn listen(&mut self, i: usize, to: usize, ballot: Ballot, have: Option<Have>) {
        if self.leader(i).ballot.as_ref() != Some(&ballot) {
            return;
        }
        let then = Then::Heard { host: to, ballot, have };
        self.call(i, to, Call::Report { ballot, have }, REPORT_WITHIN, then);
    }

    pub(crate) fn heard(
        &mut self,
        i: usize,
        host: usize,
        ballot: Ballot,
        have: Option<Have>,
        answer: Result<Answer, Failure>,
    ) {
        if self.leader(i).ballot.as_ref() != Some(&ballot) {
            return;
        }
        let Ok(Answer::Report(Ok(report))) = answer else {
            let at = self.at(i);
            return self.put_in(ASK_AGAIN, Event::Listen(at, host, ballot, have));
        };
        let (id, now) = (self.hosts[host].id, self.world.clock(i));
        let has = report.have();
        let leader = self.leader(i);
        let applied = leader.book.index_mut().apply(&id, *report);
        leader.book.settle(now);
        let have = applied.is_some().then_some(has);
        self.put_away(i, applied.unwrap_or_default());
        if have.is_some() {
            self.unpark(i);
        }
        self.listen(i, host, ballot, have);
    }

    /// Looks again at what was to be put away and is still there.
    pub(crate) fn remind(&mut self, at: At) {
        self.put_in(REMIND, Event::Remind(at));
        if let Ok(left) = self.with_context(at.host, |book, _| book.index().all_duplicates()) {
            self.put_away(at.host, left);
        }
    }

    fn put_away(&mut self, i: usize, duplicates: Vec<Duplicate>) {
        for Duplicate { host, session } in duplicates {
            let to = self.index_of(&host);
            self.note(i, "drops", &session, || format!("on n{to}"));
            if self.orders_lost > 0 {
                self.orders_lost -= 1;
                continue;
            }
            self.call(i, to, Call::Command { session, command: Command::Duplicate }, QUICK, Then::Nothing);
        }
    }

    /// Places a session, where this host leads.
    pub(crate) fn place(&mut self, i: usize, caller: Caller, session: SessionId, drawn: bool, request: SessionRequest) {
        let leadership = self.world.leadership(i).unwrap();
        if leadership.reign.is_none() {
            let me = &self.hosts[i].id;
            let other = leadership.leader.filter(|leader| leader != me);
            return self.answer(i, caller, Answer::NotLeader(other));
        }
        self.calls += 1;
        let id = self.calls;
        let placing =
            Placing { caller, session, drawn, request, misunderstandings: 0, known: None, offer: None, asks: None };
        self.leader(i).placings.insert(id, placing);
        self.begin(i, id, self.now() + PARKED_FOR);
    }

    fn begin(&mut self, i: usize, id: u64, until: u64) {
        let placing = &self.leader(i).placings[&id];
        let (session, drawn, request) = (placing.session, placing.drawn, placing.request.clone());
        let begin = Begin { session, user: request.user.clone(), workspace: Ok(self.resolve(&request)), drawn };
        match self.with_context(i, |book, cx| book.begin(&begin, cx)).and_then(|begun| begun) {
            Ok(Begun::Wait(_)) if self.now() < until => {
                let leader = self.leader(i);
                leader.parked.push((id, until));
                if leader.parked.len() == 1 {
                    let at = self.at(i);
                    self.put_in(TICK, Event::Unpark(at));
                }
            }
            Ok(Begun::Wait(error)) | Err(error) => self.placed(i, id, Err(error)),
            Ok(Begun::Unknown(known)) => self.placed(i, id, Ok(Placed { session: *known, replayed: true })),
            Ok(Begun::Known { host, session: known }) => {
                self.leader(i).placings.get_mut(&id).unwrap().known = known;
                let to = self.index_of(&host);
                let find = Call::Find { session, fingerprint: request.fingerprint() };
                self.call(i, to, find, QUICK, Then::Found { placing: id });
            }
            Ok(Begun::Offer { ballot, offers }) => {
                let reached = self.world.leadership(i).and_then(|known| known.reign).unwrap().reached.clone();
                self.witness.begun.insert((session, ballot), reached);
                let mut offer = Offer::new(offers, self.world.clock(i));
                let step = offer.begin();
                self.leader(i).placings.get_mut(&id).unwrap().offer = Some((offer, ballot));
                self.go_on_offering(i, id, step);
            }
        }
    }

    /// Looks again at what waits.
    pub(crate) fn unpark(&mut self, i: usize) {
        for (id, until) in std::mem::take(&mut self.leader(i).parked) {
            self.begin(i, id, until);
        }
    }

    fn with_context<T>(&mut self, i: usize, decide: impl FnOnce(&mut Book, Context<'_>) -> T) -> Result<T, Error> {
        let now = self.world.clock(i);
        let Some(reign) = self.world.leadership(i).and_then(|known| known.reign) else {
            return Err(Error::NoLeader("this node does not lead".to_owned()));
        };
        if now >= reign.lease {
            return Err(Error::NoLeader("too few nodes have answered lately".to_owned()));
        }
        let host = &mut self.hosts[i];
        let cx = Context { now, reign: &reign, view: &host.view };
        Ok(decide(&mut host.life.as_mut().unwrap().leader.book, cx))
    }

    fn resolve(&self, request: &SessionRequest) -> Workspace {
        self.workspaces[&request.workspace].resolve(request)
    }

    fn go_on_offering(&mut self, i: usize, id: u64, step: Step) {
        match step {
            Step::Ask { host, after, considered } => {
                self.leader(i).placings.get_mut(&id).unwrap().asks = Some((host, considered));
                if after.is_zero() {
                    return self.ask(i, id);
                }
                let (at, after) = (self.at(i), u64::try_from(after.as_millis()).unwrap());
                self.put_in(after, Event::Ask(at, id));
            }
            Step::Done(outcome) => {
                let end = match &*outcome {
                    Ok(_) => End::Taken,
                    Err(Error::OutcomeUnknown { .. }) => End::Uncertain,
                    Err(_) => End::NotTaken,
                };
                let now = self.world.clock(i);
                let placing = self.leader(i).placings.get_mut(&id).unwrap();
                let (session, (_, ballot)) = (placing.session, placing.offer.take().unwrap());
                self.note(i, "offered", &session, || format!("{end:?}"));
                self.leader(i).book.end(&session, &ballot, end, now);
                let placed = outcome.map(|taken| Placed { session: taken.session, replayed: taken.replayed });
                self.placed(i, id, placed);
                self.unpark(i);
            }
        }
    }

    /// Offers the session to the host whose turn it is.
    pub(crate) fn ask(&mut self, i: usize, id: u64) {
        let leader = self.leader(i);
        let placing = leader.placings.get_mut(&id).unwrap();
        let (host, considered) = placing.asks.take().unwrap();
        let (session, request) = (placing.session, placing.request.clone());
        let ballot = placing.offer.as_ref().unwrap().1;
        leader.book.offering(&session, &ballot, host.clone());
        let to = self.index_of(&host.id);
        let admit = Admit {
            cluster: cluster_name(),
            ballot,
            destination: host.id,
            session,
            asked: Asked {
                user: request.user.clone(),
                fingerprint: request.fingerprint(),
                workspace: self.resolve(&request),
                attempt: FIRST_ATTEMPT,
                tried: Vec::new(),
                secret: None,
                by: None,
            },
            user_limit: None,
            considered,
        };
        self.call(i, to, Call::Admit(Box::new(admit)), ADMIT_WITHIN, Then::Offered { placing: id });
    }

    pub(crate) fn offered(&mut self, i: usize, id: u64, answer: Result<Answer, Failure>) {
        let outcome = match answer {
            Ok(Answer::Admit(Ok(admitted))) => Offered::Accepted(admitted),
            Ok(Answer::Admit(Err(Refused::Stale(stale)))) => Offered::Stale(stale),
            Ok(Answer::Admit(Err(Refused::Host(error)))) => Offered::Refused(error),
            Err(Failure::Unreachable) => Offered::Unreachable(String::new()),
            _ => Offered::Unknown(String::new()),
        };
        let now = self.world.clock(i);
        let (offer, _) = self.leader(i).placings.get_mut(&id).unwrap().offer.as_mut().unwrap();
        let step = offer.offered(outcome, now);
        self.go_on_offering(i, id, step);
    }

    pub(crate) fn found(&mut self, i: usize, id: u64, answer: Result<Answer, Failure>) {
        let found: Result<Option<Session>, Option<sessions::Error>> = match answer {
            Ok(Answer::Find(found)) => (*found).map_err(Some),
            _ => Err(None),
        };
        let until = self.now() + PARKED_FOR;
        let placing = self.leader(i).placings.get_mut(&id).unwrap();
        let known = placing.known.take();
        let placed = match (found, known) {
            (Ok(Some(session)), _) => Ok(Placed { session, replayed: true }),
            (Ok(None), _) => {
                placing.misunderstandings += 1;
                if placing.misunderstandings < MAX_MISUNDERSTANDINGS {
                    return self.begin(i, id, until);
                }
                Err(Error::NoLeader("what the hosts hold is changing just now".to_owned()))
            }
            (Err(Some(error)), _) => Err(Error::Host(error)),
            (Err(None), Some(known)) => {
                Ok(Placed { session: Session { state: SessionState::Unknown, ..*known }, replayed: true })
            }
            (Err(None), None) => Err(Error::NoLeader("the host of this session does not answer just now".to_owned())),
        };
        self.placed(i, id, placed);
    }

    fn placed(&mut self, i: usize, id: u64, placed: Result<Placed, Error>) {
        let placing = self.leader(i).placings.remove(&id).unwrap();
        self.answer(i, placing.caller, Answer::Place(Box::new(placed)));
    }
}
