//! A leader's work on placement, sans-io: requests, the hosts' answers and time go in; calls to hosts and answers
//! to callers come out.
//!
//! [`Placement`] holds what every host reported and every placement in progress. The owner
//! ([`task`](super::task)) carries its calls out over the mesh; the simulation does it on virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::book::{Again, Begin, Begun, Book, Situation};
use super::flights::End;
use super::index::{Duplicate, Fleet};
use super::offer::{Offer, Step};
use super::plan::{Candidate, Offers};
use super::{Config, Error, Have, HostReport, Offered};
use crate::election::{Reign, Stale};
use crate::gossip::ClusterView;
use crate::sessions::{self, Admit, Admitted, Asked, Claimed};
use crate::types::{
    Actor, Ballot, BootInstant, Name, NodeId, NodeVerdict, Session, SessionId, SessionState, User, Workspace,
};

/// Placements in progress, of about 2 KiB each. Beyond that the leader answers that it is busy.
const MAX_PLACINGS: usize = 8192;
/// Requests that wait for a host's first report, or for another request of the same session. Beyond that the leader
/// answers at once, and the caller retries.
const MAX_PARKED: usize = 4096;
/// How long such a request waits.
const PARKED_FOR: Duration = Duration::from_secs(4);
/// How often waiting requests are tried again if nothing else happens.
const UNPARK_EVERY: Duration = Duration::from_millis(100);
/// How often the leader repeats the order to remove duplicates: a host that hung may not have received the first one.
const REMIND_EVERY: Duration = Duration::from_secs(3);
/// How often the leader looks for sessions to place again if no host reports anything new.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pause before a host that did not answer is asked for its report again.
const REPORT_AGAIN: Duration = Duration::from_millis(100);
/// Sessions placed again at the same time. An image that no registry has makes many fail together.
const MAX_MOVES: usize = 32;
/// The first offer of a session.
const FIRST_ATTEMPT: u32 = 1;
/// How often a host may answer that it does not have a session that it reported.
const MAX_MISUNDERSTANDINGS: u32 = 3;

/// A request for a session.
#[derive(Debug, Clone)]
pub struct Place {
    pub begin: Begin,
    /// The fingerprint of the request: a retry must have the same.
    pub fingerprint: String,
    /// The actor who asks.
    pub by: Option<Actor>,
}

/// A call of the leader to one host.
#[derive(Debug, Clone, PartialEq)]
pub enum HostCall {
    /// Report, as soon as something differs from `have`.
    Report { ballot: Ballot, have: Option<Have> },
    /// Admit a session, or reject it.
    Admit(Box<Admit>),
    /// Return a session that the host has reported.
    Find { session: SessionId, fingerprint: String },
    /// Hand over a session that the host could not start.
    Claim { ballot: Ballot, session: SessionId },
    /// End a session that the host could not start, since no other host admits it.
    GiveUp { session: SessionId, claim: u32 },
    /// Remove a session of which another host has the newer copy.
    DropDuplicate(SessionId),
}

/// How a host answered a [`HostCall`].
#[derive(Debug)]
pub enum HostAnswer {
    Report(Result<Box<HostReport>, Stale>),
    Admit(Offered),
    Find(Box<Result<Option<Session>, sessions::Error>>),
    Claim(Result<Box<Claimed>, sessions::Error>),
    /// The call was made. It has no answer to read.
    Done,
}

/// Why a host did not answer a [`HostCall`]. The cause is an error of the [way to the hosts](super::Hosts).
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The call did not reach the host: nothing was done.
    #[error("the host cannot be reached: {0}")]
    Undelivered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host may have done it.
    #[error("the host did not answer: {0}")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Something for the owner to do.
#[derive(Debug)]
pub enum Output<R> {
    /// Call the host, then pass its answer to [`Placement::answered`] under this number, or the failure to
    /// [`Placement::unanswered`].
    Ask { call: u64, host: NodeId, what: HostCall },
    /// Answer the caller.
    Answer { to: R, placed: Box<Result<Admitted, Error>> },
}

/// A leader's whole work on placement. `R` is where a caller waits for its answer.
pub struct Placement<R> {
    cluster: Name,
    book: Book,
    view: Arc<ClusterView>,
    reign: Option<Arc<Reign>>,
    /// The hosts that are asked for reports, while this node leads.
    listening: BTreeSet<NodeId>,
    placings: BTreeMap<u64, Placing<R>>,
    /// Placings that wait.
    parked: Vec<u64>,
    /// Sessions that are being placed again.
    moving: BTreeSet<SessionId>,
    /// What each call in progress is for.
    calls: BTreeMap<u64, Purpose>,
    timers: BTreeMap<(BootInstant, u64), Timer>,
    unpark_at: BootInstant,
    remind_at: BootInstant,
    look_at: BootInstant,
    outputs: VecDeque<Output<R>>,
    /// The fleet changed since the last [`Self::take_news`].
    news: bool,
    /// Numbers for placings, calls and timers.
    numbers: u64,
}

/// One session that is being placed.
struct Placing<R> {
    session: SessionId,
    origin: Origin<R>,
    stage: Stage,
}

/// Why a session is placed.
enum Origin<R> {
    /// A caller asks for it.
    Caller { place: Box<Place>, reply: R, misunderstandings: u32 },
    /// This host could not start it.
    Again { host: NodeId, claim: u32 },
}

enum Stage {
    /// It has not begun, or waits for reports or for another request.
    Parked {
        until: BootInstant,
    },
    /// Its host is asked for it. `known`: the session as last reported.
    Finding {
        known: Option<Box<Session>>,
    },
    /// The leader asks the host that could not start it to hand it over, or to end it.
    Claiming,
    Offering(Box<Offering>),
}

/// An offer in progress.
struct Offering {
    ballot: Ballot,
    asked: Asked,
    offer: Offer,
    /// The host to ask next, and the verdicts that its record is to keep.
    next: Option<(Candidate, Vec<NodeVerdict>)>,
}

enum Purpose {
    Report { host: NodeId, ballot: Ballot, have: Option<Have> },
    Placing(u64),
}

enum Timer {
    Report { host: NodeId, ballot: Ballot, have: Option<Have> },
    Offer(u64),
}

impl<R> Placement<R> {
    /// Follows a change of the configuration. It decides what comes.
    pub const fn set_config(&mut self, config: Config) {
        self.book.set_config(config);
    }

    pub fn new(cluster: Name, config: Config) -> Self {
        Self {
            cluster,
            book: Book::new(config),
            view: Arc::default(),
            reign: None,
            listening: BTreeSet::new(),
            placings: BTreeMap::new(),
            parked: Vec::new(),
            moving: BTreeSet::new(),
            calls: BTreeMap::new(),
            timers: BTreeMap::new(),
            unpark_at: BootInstant::default(),
            remind_at: BootInstant::default(),
            look_at: BootInstant::default(),
            outputs: VecDeque::new(),
            news: false,
            numbers: 0,
        }
    }

    /// What to do next. `None`: nothing, until the next input.
    pub fn poll(&mut self) -> Option<Output<R>> {
        self.outputs.pop_front()
    }

    /// When [`Self::tick`] is due if no other input comes first.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        let unpark = (!self.parked.is_empty()).then_some(self.unpark_at);
        let reign = self.reign.is_some().then(|| self.remind_at.min(self.look_at));
        [timer, unpark, reign].into_iter().flatten().min()
    }

    /// What every host reported, where it changed since the last call.
    pub fn take_news(&mut self) -> Option<Arc<Fleet>> {
        std::mem::take(&mut self.news).then(|| Arc::new(self.book.index().fleet().clone()))
    }

    /// The sessions that are offered to hosts now.
    pub fn being_offered(&self) -> impl Iterator<Item = SessionId> {
        let offered = self.placings.values().filter(|placing| matches!(placing.stage, Stage::Offering(_)));
        offered.map(|placing| placing.session)
    }

    /// Replaces the view of the nodes by gossip.
    pub fn set_view(&mut self, view: Arc<ClusterView>) {
        self.view = view;
    }

    /// Takes whether this node leads, and which hosts answer it. Starts or stops asking hosts for reports.
    pub fn follow(&mut self, reign: Option<Arc<Reign>>, now: BootInstant) {
        let ballot = |reign: &Option<Arc<Reign>>| reign.as_ref().map(|reign| reign.ballot);
        if ballot(&reign) != ballot(&self.reign) {
            self.listening.clear();
            self.book.clear();
            self.news = true;
            (self.remind_at, self.look_at) = (now.plus(REMIND_EVERY), now);
        }
        self.reign = reign;
        if let Some(reign) = self.reign.clone() {
            self.follow_hosts(&reign, now);
        }
        self.unpark(now);
    }

    fn follow_hosts(&mut self, reign: &Reign, now: BootInstant) {
        self.book.note_silence(reign, now);
        // A node that was removed for good is in none of these; a node that only failed is in at least one.
        let view = Arc::clone(&self.view);
        let stays = |host: &NodeId| {
            reign.electorate.contains(host) || reign.reached.contains(host) || view.members.contains_key(host)
        };
        self.news |= self.book.index_mut().retain(stays);
        for (host, sessions) in view.forgotten.iter().filter(|(host, _)| !reign.reached.contains(*host)) {
            self.news |= self.book.index_mut().forget(host, sessions);
        }
        for host in reign.electorate.union(&reign.reached) {
            if self.listening.insert(*host) {
                self.ask_for_report(*host, reign.ballot, None);
            }
        }
    }

    /// Places a session. The answer comes as an [`Output::Answer`].
    pub fn place(&mut self, place: Box<Place>, reply: R, now: BootInstant) {
        if self.placings.len() >= MAX_PLACINGS {
            return self
                .outputs
                .push_back(Output::Answer { to: reply, placed: Box::new(Err(Error::Host(sessions::Error::Busy))) });
        }
        let session = place.begin.session;
        let id = self.number();
        let origin = Origin::Caller { place, reply, misunderstandings: 0 };
        self.placings.insert(id, Placing { session, origin, stage: Stage::Parked { until: now.plus(PARKED_FOR) } });
        self.begin(id, now);
    }

    /// Says where the session would go, and changes nothing.
    ///
    /// # Errors
    /// No host would admit it, or this node does not lead.
    pub fn dry_run(
        &mut self,
        session: &SessionId,
        user: &User,
        workspace: &Workspace,
        now: BootInstant,
    ) -> Result<Offers, Error> {
        self.with_situation(now, |book, situation| book.dry_run(session, user, workspace, situation))?
    }

    /// Takes a host's answer.
    pub fn answered(&mut self, call: u64, answer: HostAnswer, now: BootInstant) {
        match (self.calls.remove(&call), answer) {
            (Some(Purpose::Report { host, ballot, have }), HostAnswer::Report(report)) => match report {
                Ok(report) => self.reported(host, ballot, *report, now),
                Err(stale) => self.not_reported(host, ballot, have, &stale, now),
            },
            (Some(Purpose::Placing(id)), HostAnswer::Admit(outcome)) => self.offered(id, outcome, now),
            (Some(Purpose::Placing(id)), HostAnswer::Find(found)) => self.found(id, Some(*found), now),
            (Some(Purpose::Placing(id)), HostAnswer::Claim(Ok(claimed))) => self.claimed(id, *claimed, now),
            (Some(Purpose::Placing(id)), HostAnswer::Claim(Err(error))) => self.not_claimed(id, &error),
            (Some(Purpose::Placing(id)), HostAnswer::Done) => self.forget_move(id),
            _ => {}
        }
    }

    /// Takes the failure of a call.
    pub fn unanswered(&mut self, call: u64, why: Unanswered, now: BootInstant) {
        match self.calls.remove(&call) {
            Some(Purpose::Report { host, ballot, have }) => self.not_reported(host, ballot, have, &why, now),
            Some(Purpose::Placing(id)) => match (self.placings.get(&id).map(|placing| &placing.stage), &why) {
                (Some(Stage::Offering(_)), Unanswered::Undelivered(_)) => self.offered(id, Offered::Unreachable, now),
                (Some(Stage::Offering(_)), Unanswered::NoAnswer(_)) => self.offered(id, Offered::Unknown, now),
                (Some(Stage::Finding { .. }), _) => self.found(id, None, now),
                _ => self.not_claimed(id, &why),
            },
            None => {}
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: BootInstant) {
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Timer::Report { host, ballot, have } if self.leads_by(ballot) => {
                    self.ask_for_report(host, ballot, have);
                }
                Timer::Report { .. } => {}
                Timer::Offer(id) => self.offer_next(id),
            }
        }
        if !self.parked.is_empty() && now >= self.unpark_at {
            self.unpark(now);
        }
        if self.reign.is_some() && now >= self.remind_at {
            self.remind_at = now.plus(REMIND_EVERY);
            if let Ok(left) = self.with_situation(now, |book, _| book.index().all_duplicates()) {
                self.put_away(left);
            }
        }
        if self.reign.is_some() && now >= self.look_at {
            self.place_again(now);
            self.look_at = now.plus(LOOK_EVERY);
        }
    }

    fn leads_by(&self, ballot: Ballot) -> bool {
        self.reign.as_ref().is_some_and(|reign| reign.ballot == ballot)
    }

    /// Decides with what the book is read with. Not where this node does not lead, or cannot be sure of it.
    fn with_situation<T>(
        &mut self,
        now: BootInstant,
        decide: impl FnOnce(&mut Book, Situation<'_>) -> T,
    ) -> Result<T, Error> {
        let reign = self.reign.clone().ok_or(Error::NotLeader)?;
        // Another node may have been elected since: this one has not heard of it, so it decides nothing.
        if now >= reign.lease {
            return Err(Error::LeaseExpired);
        }
        let view = Arc::clone(&self.view);
        Ok(decide(&mut self.book, Situation { now, reign: &reign, view: &view }))
    }

    fn ask(&mut self, host: NodeId, what: HostCall, purpose: Option<Purpose>) {
        let call = self.number();
        if let Some(purpose) = purpose {
            self.calls.insert(call, purpose);
        }
        self.outputs.push_back(Output::Ask { call, host, what });
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn set_timer(&mut self, at: BootInstant, timer: Timer) {
        let number = self.number();
        self.timers.insert((at, number), timer);
    }
}

/// Reports.
impl<R> Placement<R> {
    fn ask_for_report(&mut self, host: NodeId, ballot: Ballot, have: Option<Have>) {
        self.ask(host, HostCall::Report { ballot, have }, Some(Purpose::Report { host, ballot, have }));
    }

    fn reported(&mut self, host: NodeId, ballot: Ballot, report: HostReport, now: BootInstant) {
        if !self.leads_by(ballot) {
            return;
        }
        let have = report.have();
        let applied = self.book.index_mut().apply(&host, report);
        self.book.settle(now);
        // If the report builds on one that is not here, the host must report everything.
        self.ask_for_report(host, ballot, applied.is_some().then_some(have));
        if let Some(duplicates) = applied {
            self.news = true;
            self.put_away(duplicates);
            self.place_again(now);
            self.unpark(now);
        }
    }

    fn not_reported(
        &mut self,
        host: NodeId,
        ballot: Ballot,
        have: Option<Have>,
        why: &dyn std::error::Error,
        now: BootInstant,
    ) {
        tracing::debug!(%host, %why, "host did not report");
        self.set_timer(now.plus(REPORT_AGAIN), Timer::Report { host, ballot, have });
    }

    /// Has hosts remove the sessions of which another host has the newer copy.
    fn put_away(&mut self, duplicates: Vec<Duplicate>) {
        for Duplicate { host, session } in duplicates {
            tracing::warn!(%host, %session, "two hosts have this session; the host with the older copy removes it");
            self.ask(host, HostCall::DropDuplicate(session), None);
        }
    }
}

/// Requests for sessions.
impl<R> Placement<R> {
    /// Begins a placement, or parks it until more is known.
    fn begin(&mut self, id: u64, now: BootInstant) {
        let Some(Placing { origin: Origin::Caller { place, .. }, stage: Stage::Parked { until }, .. }) =
            self.placings.get(&id)
        else {
            return;
        };
        let (begin, until) = (place.begin.clone(), *until);
        let begun = self.with_situation(now, |book, situation| book.begin(&begin, situation)).and_then(|begun| begun);
        let begun = match begun {
            // A leader that was just elected, or got no answers for a moment, is sure with the next answers.
            Err(error @ Error::LeaseExpired) => Ok(Begun::Wait(error)),
            begun => begun,
        };
        match begun {
            Ok(Begun::Wait(_)) if now < until && self.parked.len() < MAX_PARKED => {
                if self.parked.is_empty() {
                    self.unpark_at = now.plus(UNPARK_EVERY);
                }
                self.parked.push(id);
            }
            Ok(Begun::Wait(error)) | Err(error) => self.answer(id, Err(error)),
            Ok(Begun::Unknown(known)) => self.answer(id, Ok(Admitted { session: *known, replayed: true })),
            Ok(Begun::Known { host, session }) => self.find(id, host, session),
            Ok(Begun::Offer { ballot, offers }) => match begin.workspace {
                Ok(workspace) => self.offer_first(id, ballot, &begin.user, workspace, offers, now),
                Err(error) => self.answer(id, Err(error)),
            },
        }
    }

    /// Tries the waiting requests again.
    fn unpark(&mut self, now: BootInstant) {
        self.unpark_at = now.plus(UNPARK_EVERY);
        for id in std::mem::take(&mut self.parked) {
            self.begin(id, now);
        }
    }

    fn find(&mut self, id: u64, host: NodeId, known: Option<Box<Session>>) {
        let Some(placing) = self.placings.get_mut(&id) else { return };
        placing.stage = Stage::Finding { known };
        let Origin::Caller { place, .. } = &placing.origin else { return };
        let what = HostCall::Find { session: placing.session, fingerprint: place.fingerprint.clone() };
        self.ask(host, what, Some(Purpose::Placing(id)));
    }

    /// Takes the host's answer about a session that it reported. `None`: the host did not answer.
    fn found(&mut self, id: u64, found: Option<Result<Option<Session>, sessions::Error>>, now: BootInstant) {
        let Some(placing) = self.placings.get_mut(&id) else { return };
        let Stage::Finding { known } = &mut placing.stage else { return };
        let known = known.take();
        let Origin::Caller { misunderstandings, .. } = &mut placing.origin else { return };
        let placed = match (found, known) {
            (Some(Ok(Some(session))), _) => Ok(Admitted { session, replayed: true }),
            // The host does not have it after all.
            (Some(Ok(None)), _) => {
                *misunderstandings += 1;
                if *misunderstandings < MAX_MISUNDERSTANDINGS {
                    placing.stage = Stage::Parked { until: now.plus(PARKED_FOR) };
                    return self.begin(id, now);
                }
                Err(Error::Changing)
            }
            (Some(Err(error)), _) => Err(Error::Host(error)),
            (None, Some(known)) => {
                Ok(Admitted { session: Session { state: SessionState::Unknown, ..*known }, replayed: true })
            }
            (None, None) => Err(Error::HostSilent),
        };
        self.answer(id, placed);
    }

    fn answer(&mut self, id: u64, placed: Result<Admitted, Error>) {
        if let Some(Placing { origin: Origin::Caller { reply, .. }, .. }) = self.placings.remove(&id) {
            self.outputs.push_back(Output::Answer { to: reply, placed: Box::new(placed) });
        }
    }
}

/// Offers.
impl<R> Placement<R> {
    fn offer_first(
        &mut self,
        id: u64,
        ballot: Ballot,
        user: &User,
        workspace: Workspace,
        offers: Offers,
        now: BootInstant,
    ) {
        let Some(Placing { origin: Origin::Caller { place, .. }, .. }) = self.placings.get(&id) else { return };
        let asked = Asked {
            user: user.clone(),
            fingerprint: place.fingerprint.clone(),
            workspace,
            attempt: FIRST_ATTEMPT,
            tried: Vec::new(),
            platform: None,
            secret: None,
            by: place.by.clone(),
        };
        self.offer(id, ballot, asked, offers, now);
    }

    /// Offers the session to the candidates in turn.
    fn offer(&mut self, id: u64, ballot: Ballot, asked: Asked, offers: Offers, now: BootInstant) {
        let Some(placing) = self.placings.get_mut(&id) else { return };
        let mut offer = Offer::new(offers, now);
        let step = offer.begin();
        placing.stage = Stage::Offering(Box::new(Offering { ballot, asked, offer, next: None }));
        self.go_on_offering(id, step, now);
    }

    fn go_on_offering(&mut self, id: u64, step: Step, now: BootInstant) {
        let Some(Placing { session, stage: Stage::Offering(offering), .. }) = self.placings.get_mut(&id) else {
            return;
        };
        match step {
            Step::Ask { host, after, considered } => {
                offering.next = Some((host, considered));
                if after.is_zero() {
                    self.offer_next(id);
                } else {
                    self.set_timer(now.plus(after), Timer::Offer(id));
                }
            }
            Step::Done(outcome) => {
                let end = match &*outcome {
                    Ok(_) => End::Taken,
                    Err(Error::OutcomeUnknown { .. }) => End::Uncertain,
                    Err(_) => End::NotTaken,
                };
                let (session, ballot) = (*session, offering.ballot);
                self.book.end(&session, &ballot, end, now);
                self.end(id, *outcome);
                self.unpark(now);
            }
        }
    }

    /// Asks the host whose turn it is.
    fn offer_next(&mut self, id: u64) {
        let Some(Placing { session, stage: Stage::Offering(offering), .. }) = self.placings.get_mut(&id) else {
            return;
        };
        let Some((host, considered)) = offering.next.take() else { return };
        let admit = Admit {
            cluster: self.cluster.clone(),
            ballot: offering.ballot,
            destination: host.id,
            session: *session,
            asked: offering.asked.clone(),
            considered,
        };
        let destination = host.id;
        self.book.offering(session, &offering.ballot, host);
        self.ask(destination, HostCall::Admit(Box::new(admit)), Some(Purpose::Placing(id)));
    }

    fn offered(&mut self, id: u64, outcome: Offered, now: BootInstant) {
        let Some(Placing { stage: Stage::Offering(offering), .. }) = self.placings.get_mut(&id) else { return };
        let step = offering.offer.offered(outcome, now);
        self.go_on_offering(id, step, now);
    }

    /// Ends the placement.
    fn end(&mut self, id: u64, placed: Result<Admitted, Error>) {
        match self.placings.get(&id).map(|placing| &placing.origin) {
            Some(Origin::Caller { .. }) => self.answer(id, placed),
            Some(Origin::Again { host, claim }) => {
                let (host, claim) = (*host, *claim);
                self.end_again(id, host, claim, placed);
            }
            None => {}
        }
    }
}

/// Sessions that their hosts could not start.
impl<R> Placement<R> {
    /// Starts to place waiting sessions again, up to [`MAX_MOVES`] at the same time.
    fn place_again(&mut self, now: BootInstant) {
        let Some(ballot) = self.reign.as_ref().map(|reign| reign.ballot) else { return };
        let waiting = self.book.index().fleet().unplaced.iter();
        let waiting = waiting.filter(|(session, _)| !self.moving.contains(*session)).map(|(s, host)| (*s, *host));
        for (session, host) in waiting.collect::<Vec<_>>() {
            if self.moving.len() >= MAX_MOVES {
                return;
            }
            // Each claim is a write on the host's disk: none is made that leads nowhere.
            match self.with_situation(now, |book, situation| book.may_begin_again(&session, &host, situation)).flatten()
            {
                Ok(()) => {}
                // A missing report holds up every session.
                Err(Error::Indexing { .. }) => return,
                Err(_) => continue,
            }
            self.moving.insert(session);
            let id = self.number();
            self.placings
                .insert(id, Placing { session, origin: Origin::Again { host, claim: 0 }, stage: Stage::Claiming });
            self.ask(host, HostCall::Claim { ballot, session }, Some(Purpose::Placing(id)));
        }
    }

    fn claimed(&mut self, id: u64, claimed: Claimed, now: BootInstant) {
        let Some(Placing { session, origin: Origin::Again { host, claim }, .. }) = self.placings.get_mut(&id) else {
            return;
        };
        *claim = claimed.claim;
        let (session, host, asked) = (*session, *host, claimed.asked);
        let again = Again {
            session,
            host,
            user: asked.user.clone(),
            workspace: asked.workspace.clone(),
            tried: asked.tried.clone(),
            platform: asked.platform.clone(),
        };
        match self.with_situation(now, |book, situation| book.begin_again(&again, situation)).and_then(|begun| begun) {
            Ok((ballot, offers)) => self.offer(id, ballot, asked, offers, now),
            Err(error) => self.end(id, Err(error)),
        }
    }

    fn not_claimed(&mut self, id: u64, why: &dyn std::error::Error) {
        if let Some(placing) = self.placings.get(&id) {
            tracing::debug!(session = %placing.session, %why, "host did not hand over the session");
        }
        self.forget_move(id);
    }

    fn end_again(&mut self, id: u64, host: NodeId, claim: u32, placed: Result<Admitted, Error>) {
        let Some(session) = self.placings.get(&id).map(|placing| placing.session) else { return };
        match placed {
            // The host that could not start it removes its copy once the new one is reported.
            Ok(placed) => tracing::info!(%session, node = %placed.session.node, "placed again"),
            // It is not known yet, or no more: the session stays as it is, and its host ends it in time.
            Err(error) if error.is_undecided() => {}
            Err(error) => {
                tracing::info!(%session, %error, "no other host admits the session");
                // The placement ends with the host's answer, so that the session is not claimed again before.
                return self.ask(host, HostCall::GiveUp { session, claim }, Some(Purpose::Placing(id)));
            }
        }
        self.forget_move(id);
    }

    fn forget_move(&mut self, id: u64) {
        if let Some(placing) = self.placings.remove(&id) {
            self.moving.remove(&placing.session);
        }
    }
}

#[cfg(test)]
mod tests;
