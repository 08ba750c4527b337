//! The leader's knowledge of hosts and sessions, and its decisions on placement. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::time::Duration;

use super::filter::{HostFigures, runs};
use super::flights::{End, Flight, Flights, State};
use super::index::{Fleet, Index};
use super::plan::{Candidate, Offers, Wanted, plan};
use super::{Config, Error};
use crate::election::Reign;
use crate::gossip::ClusterView;
use crate::sessions;
use crate::types::{
    Ballot, BootInstant, Invalid, Name, NodeId, NodeReason, NodeState, OnUnknown, Platform, Reason, Resources, Session,
    SessionId, SessionState, User, Workspace,
};

/// How long the sessions of a silent host still count against their users' limits.
const COUNTED_FOR: Duration = Duration::from_secs(300);

/// A caller's request for a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Begin {
    pub session: SessionId,
    pub user: User,
    /// The workspace with the request's values, or why it is not valid.
    pub workspace: Result<Workspace, Error>,
    /// The key was drawn for this request alone, so no host can have a session of it.
    pub drawn: bool,
}

/// A session that its host could not start.
#[derive(Debug, Clone, PartialEq)]
pub struct Again {
    pub session: SessionId,
    /// The last host that could not start it. Its record is still there.
    pub host: NodeId,
    pub user: User,
    pub workspace: Workspace,
    /// The hosts that could not start it.
    pub tried: Vec<NodeId>,
    /// The platform of its image, if one of them found that out.
    pub platform: Option<Platform>,
}

/// What hosts that could not start a session found out about it.
#[derive(Debug, Clone, Copy, Default)]
struct Found<'a> {
    tried: &'a [NodeId],
    platform: Option<&'a Platform>,
}

/// What the leader does about a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// Offer the session to the candidates. It counts as in flight until [`Book::end`].
    Offer { ballot: Ballot, offers: Offers },
    /// This host has it.
    Known { host: NodeId, session: Option<Box<Session>> },
    /// Its host does not answer now. The session is not placed a second time.
    Unknown(Box<Session>),
    /// Try again later: another request for the same session is in progress, or not every host has reported yet.
    Wait(Error),
}

/// Everything that the leader knows about hosts and sessions.
#[derive(Debug)]
pub struct Book {
    config: Config,
    index: Index,
    flights: Flights,
    /// Hosts that have reported and do not answer now, and since when.
    silent: BTreeMap<NodeId, BootInstant>,
}

/// What every decision of the book depends on besides the book.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    pub now: BootInstant,
    pub reign: &'a Reign,
    pub view: &'a ClusterView,
}

impl Book {
    pub fn new(config: Config) -> Self {
        Self { config, index: Index::default(), flights: Flights::default(), silent: BTreeMap::new() }
    }

    /// Follows a change of the configuration. It decides what comes.
    pub const fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    pub const fn index(&self) -> &Index {
        &self.index
    }

    pub const fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// Forgets everything: the node no longer leads, or leads under another ballot.
    pub fn clear(&mut self) {
        self.index.clear();
        self.flights.clear();
        self.silent.clear();
    }

    /// Notes which hosts answer and which do not.
    pub fn note_silence(&mut self, reign: &Reign, now: BootInstant) {
        self.silent.retain(|host, _| !reign.reached.contains(host));
        for host in self.index.fleet().hosts.keys().filter(|host| !reign.reached.contains(*host)) {
            self.silent.entry(*host).or_insert(now);
        }
    }

    /// What is to be done about a request.
    pub fn begin(&mut self, begin: &Begin, situation: Situation<'_>) -> Result<Begun, Error> {
        self.settle(situation.now);
        self.flights.forget_removed(|host| is_removed(host, situation), situation.now);
        let flight = self.flights.get(&begin.session).map(|flight| (flight.state, flight.host.clone()));
        // The index may still show a session that was placed again on its former host.
        if let Some((State::Taken { .. }, Some(host))) = flight {
            return Ok(Begun::Known { host: host.id, session: None });
        }
        if let Some(known) = self.known(&begin.session, situation) {
            return Ok(known);
        }
        let certain = match flight {
            None => None,
            // The leader waits for a host that is silent for so long only under `on_unknown = fail`.
            Some((State::Uncertain { .. }, host)) => host.filter(|host| self.waits_for(&host.id, situation)),
            Some(_) => return Ok(Begun::Wait(Error::BeingPlaced)),
        };
        let workspace = begin.workspace.as_ref().map_err(Clone::clone)?;
        let missing = self.unheard(begin.drawn, situation);
        if certain.is_none() && !missing.is_empty() && !begin.drawn {
            return Ok(Begun::Wait(Error::Indexing { waiting_for: missing }));
        }
        self.check_quota(&begin.user, situation.now)?;
        let offers = match certain {
            Some(host) => Offers { candidates: vec![host], refusals: Vec::new(), uncertain: true },
            None => self.offers(&begin.session, &begin.user, workspace, Found::default(), situation)?,
        };
        if offers.candidates.is_empty() {
            let untold = self.unheard(false, situation);
            // Who has not told yet may have room.
            let heard_all = untold.is_empty();
            let error = super::plan::nobody(offers.refusals);
            return if heard_all { Err(error) } else { Ok(Begun::Wait(error)) };
        }
        let ballot = situation.reign.ballot;
        self.take_off(&begin.session, &ballot, &begin.user, workspace, &offers);
        Ok(Begun::Offer { ballot, offers })
    }

    /// The other hosts to offer a session to that its host could not start.
    ///
    /// # Errors
    /// No other host takes it; or that [cannot be said](Error::is_undecided) now.
    pub fn begin_again(&mut self, again: &Again, situation: Situation<'_>) -> Result<(Ballot, Offers), Error> {
        self.may_begin_again(&again.session, &again.host, situation)?;
        let found = Found { tried: &again.tried, platform: again.platform.as_ref() };
        let offers = self.offers(&again.session, &again.user, &again.workspace, found, situation)?;
        if offers.candidates.is_empty() {
            return Err(super::plan::nobody(offers.refusals));
        }
        let ballot = situation.reign.ballot;
        self.take_off(&again.session, &ballot, &again.user, &again.workspace, &offers);
        Ok((ballot, offers))
    }

    /// Whether a session that this host could not start may be placed again now.
    ///
    /// # Errors
    /// It is being placed ([`Error::BeingPlaced`]), or has been ([`Error::PlacedElsewhere`]); or an earlier leader may
    /// have placed it on a node that has not reported yet ([`Error::Indexing`]).
    pub fn may_begin_again(
        &mut self,
        session: &SessionId,
        host: &NodeId,
        situation: Situation<'_>,
    ) -> Result<(), Error> {
        self.settle(situation.now);
        // Until its host has removed its copy, a session that was placed again looks as if it still waited.
        if self.index.holder(session).is_some_and(|(holder, _)| holder != host) {
            return Err(Error::PlacedElsewhere);
        }
        if self.flights.get(session).is_some() {
            return Err(Error::BeingPlaced);
        }
        let waiting_for = self.unheard(false, situation);
        if waiting_for.is_empty() { Ok(()) } else { Err(Error::Indexing { waiting_for }) }
    }

    /// Notes that the session is being offered from now on.
    fn take_off(&mut self, session: &SessionId, ballot: &Ballot, user: &User, workspace: &Workspace, offers: &Offers) {
        let flight = Flight {
            ballot: *ballot,
            user: user.clone(),
            resources: workspace.resources(),
            host: offers.candidates.first().cloned(),
            state: State::Offered,
            doubted_until: None,
        };
        self.flights.take_off(*session, flight);
    }

    /// Notes that the session is now offered to this host.
    pub fn offering(&mut self, session: &SessionId, ballot: &Ballot, host: Candidate) {
        self.flights.offering(session, ballot, host);
    }

    /// Notes how the offer under this ballot ended.
    pub fn end(&mut self, session: &SessionId, ballot: &Ballot, end: End, now: BootInstant) {
        self.flights.end(session, ballot, end, &self.index, now);
        self.settle(now);
    }

    /// The hosts that the session would be offered to. Changes nothing.
    pub fn dry_run(
        &self,
        session: &SessionId,
        user: &User,
        workspace: &Workspace,
        situation: Situation<'_>,
    ) -> Result<Offers, Error> {
        self.offers(session, user, workspace, Found::default(), situation)
    }

    /// Forgets the flights whose hosts have reported the session, and those that timed out.
    pub fn settle(&mut self, now: BootInstant) {
        self.flights.settle(&self.index, self.config.on_unknown == OnUnknown::Fail, now);
    }

    /// Whether a host that may have a session is the only one that it is offered to.
    fn waits_for(&self, host: &NodeId, situation: Situation<'_>) -> bool {
        self.config.on_unknown == OnUnknown::Fail || situation.reign.reached.contains(host)
    }

    fn known(&self, session: &SessionId, situation: Situation<'_>) -> Option<Begun> {
        if let Some((host, held)) = self.index.holder(session) {
            let session = Box::new(held.document());
            return Some(if situation.reign.reached.contains(host) {
                Begun::Known { host: *host, session: Some(session) }
            } else {
                Begun::Unknown(as_unknown(session))
            });
        }
        // The host may not have reported to this leader yet, but gossip may know the session.
        let (host, remembered) =
            situation.view.members.iter().find_map(|(host, member)| Some((host, member.sessions.get(session)?)))?;
        if self.index.knows(host) {
            return None; // the host has reported since, without this session
        }
        let session = Box::new(Session::of(remembered, None));
        Some(if situation.reign.reached.contains(host) {
            Begun::Known { host: *host, session: Some(session) }
        } else {
            Begun::Unknown(as_unknown(session))
        })
    }

    /// The nodes that must tell what they hold before a key is placed that they may know.
    fn unheard(&self, drawn: bool, situation: Situation<'_>) -> Vec<Name> {
        if drawn {
            return Vec::new();
        }
        let (electorate, told) = (situation.reign.electorate.iter(), self.index.fleet().hosts.keys());
        let mut told = Along::new(told);
        let unheard: BTreeSet<&NodeId> = if self.config.on_unknown == OnUnknown::Fail {
            let left = |state: NodeState| state == NodeState::Left;
            let members = situation.view.members.iter().filter(|(_, member)| !left(member.state)).map(|(id, _)| id);
            let needed: BTreeSet<&NodeId> = electorate.chain(members).collect();
            needed.into_iter().filter(|node| !told.has(node)).collect()
        } else {
            electorate.filter(|node| !told.has(node) && situation.reign.reached.contains(*node)).collect()
        };
        let unheard = unheard.into_iter();
        unheard.map(|node| name_of(node, situation.view)).collect()
    }

    fn check_quota(&self, user: &User, now: BootInstant) -> Result<(), Error> {
        let limit = self.config.max_sessions_per_user;
        if limit == 0 {
            return Ok(());
        }
        let counts = |host: &NodeId| self.silent.get(host).is_none_or(|since| now.since(*since) < COUNTED_FOR);
        let has = self.index.sessions_of(user, counts) + self.flights.of_user(user);
        if has < usize::try_from(limit).unwrap_or(usize::MAX) {
            return Ok(());
        }
        Err(Error::Host(sessions::Error::Quota { user: user.clone(), limit }))
    }

    fn offers(
        &self,
        session: &SessionId,
        user: &User,
        workspace: &Workspace,
        found: Found<'_>,
        situation: Situation<'_>,
    ) -> Result<Offers, Error> {
        let in_flight = self.flights.by_host();
        let nodes = self.nodes(workspace, situation);
        if !nodes.is_empty() && !nodes.iter().any(|host| runs(host.node.runtime.kind, workspace)) {
            return Err(Error::Invalid(not_runnable(workspace)));
        }
        let hosts = nodes
            .iter()
            .map(|host| HostFigures { in_flight: in_flight.get(&host.node.id).copied().unwrap_or_default(), ..*host });
        let pinned = self.pinned(user, workspace);
        let Found { tried, platform } = found;
        let (strategy, pinned) = (self.config.strategy, pinned.as_ref());
        let wanted = Wanted { session, user, workspace, strategy, pinned, tried, platform };
        let mut offers = plan(hosts, wanted);
        // A node that was only heard of may be large enough: nobody can say that it is not.
        let nameless =
            situation.view.members.iter().filter(|(id, member)| member.profile.is_none() && !self.index.knows(id));
        let nameless = nameless.filter(|(_, member)| member.state != NodeState::Left);
        offers
            .refusals
            .extend(nameless.map(|(id, _)| NodeReason::plain(name_of(id, situation.view), Reason::Unreachable)));
        Ok(offers)
    }

    /// Every node that is known, without what is on its way there.
    fn nodes<'a>(&'a self, workspace: &Workspace, situation: Situation<'a>) -> Vec<HostFigures<'a>> {
        let fleet: &Fleet = self.index.fleet();
        let host = |node, heard, has_image| HostFigures { node, in_flight: Resources::default(), heard, has_image };
        let mut reached = Along::new(situation.reign.reached.iter());
        let image = workspace.image_reference();
        let told = fleet.hosts.iter().map(|(id, view)| {
            let has_image = image.as_ref().is_some_and(|image| view.images.contains_key(image));
            host(&*view.profile, reached.has(id), has_image)
        });
        let mut nodes: Vec<HostFigures<'a>> = Vec::with_capacity(fleet.hosts.len());
        nodes.extend(told);
        let mut known = Along::new(fleet.hosts.keys());
        let heard_of = situation.view.members.iter().filter(|(id, _)| !known.has(id));
        let heard_of = heard_of.filter(|(_, member)| member.state != NodeState::Left);
        nodes.extend(heard_of.filter_map(|(_, member)| Some(host(member.profile.as_deref()?, false, false))));
        nodes
    }

    /// The node that has the user's volumes of this workspace: the host of the user's last session of it.
    fn pinned(&self, user: &User, workspace: &Workspace) -> Option<NodeId> {
        if !workspace.volumes.iter().any(|volume| !volume.roam) {
            return None;
        }
        let hosts = self.index.fleet().hosts.iter();
        let sessions = hosts.flat_map(|(id, host)| host.sessions.values().map(move |held| (id, &held.session)));
        let own = sessions.filter(|(_, s)| s.user == *user && s.workspace == workspace.name);
        own.max_by_key(|(id, session)| (session.created_at, *id)).map(|(id, _)| *id)
    }
}

/// Membership in a sorted sequence of ids. Queries must come in the same order, so that all of them together take one
/// walk and not a search each.
struct Along<'a, I: Iterator<Item = &'a NodeId>>(Peekable<I>);

impl<'a, I: Iterator<Item = &'a NodeId>> Along<'a, I> {
    fn new(ids: I) -> Self {
        Self(ids.peekable())
    }

    fn has(&mut self, id: &NodeId) -> bool {
        while self.0.next_if(|next| *next < id).is_some() {}
        self.0.peek().is_some_and(|next| *next == id)
    }
}

fn is_removed(host: &NodeId, situation: Situation<'_>) -> bool {
    let left = || situation.view.members.get(host).is_none_or(|member| member.state == NodeState::Left);
    !situation.reign.electorate.contains(host) && left()
}

fn as_unknown(session: Box<Session>) -> Box<Session> {
    if session.state.has_ended() { session } else { Box::new(Session { state: SessionState::Unknown, ..*session }) }
}

fn name_of(node: &NodeId, view: &ClusterView) -> Name {
    let known = view.members.get(node).and_then(|member| member.profile.as_ref()).map(|node| node.name.clone());
    known.unwrap_or_else(|| Name::from(*node))
}

fn not_runnable(workspace: &Workspace) -> Invalid {
    let what =
        if workspace.image.is_none() { "image, and the Docker runtime" } else { "command, and the process runtime" };
    Invalid::new("workspace", format!("{} has no {what} needs one", workspace.name))
}

#[cfg(test)]
mod tests;
