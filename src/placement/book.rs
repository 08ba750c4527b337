//! What a leader decides with, and its decisions. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::filter::{Host, runs};
use super::index::{Fleet, Index};
use super::plan::{Candidate, Offers, Wanted, plan};
use super::{Config, Error};
use crate::election::Reign;
use crate::gossip::ClusterView;
use crate::sessions;
use crate::types::{
    Ballot, BootInstant, Invalid, Name, Node, NodeId, NodeReason, NodeState, OnUnknown, Reason, Resources, Session,
    SessionId, SessionState, User, Workspace,
};

/// How long a host that did not answer an offer is the only one that the session is offered to.
const UNCERTAIN_FOR: Duration = Duration::from_secs(60);

/// A session that somebody asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Begin {
    pub session: SessionId,
    pub user: User,
    /// The workspace as the request wants it, or what is wrong with it.
    pub workspace: Result<Workspace, Error>,
    /// The key was drawn for this very request: it cannot be known anywhere.
    pub drawn: bool,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// Offer it around. It counts as on its way until its end is told.
    Offer { ballot: Ballot, offers: Offers },
    /// This host has it.
    Known { host: NodeId, session: Option<Box<Session>> },
    /// A host has it that cannot be asked now. It is never placed again.
    Unknown(Box<Session>),
    /// Somebody asks for the same at this moment, or the hosts have not told yet what they have: later.
    Wait(Error),
}

/// How an offer ended, for the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Taken,
    NotTaken,
    /// The host that was asked last may have it.
    Uncertain,
}

/// Everything that the leader knows.
#[derive(Debug)]
pub struct Book {
    config: Config,
    index: Index,
    flights: BTreeMap<SessionId, Flight>,
}

/// A session that was offered, until its host tells that it has it.
#[derive(Debug)]
struct Flight {
    user: User,
    resources: Resources,
    host: Option<Candidate>,
    state: FlightState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlightState {
    Offered,
    Taken,
    Uncertain { until: BootInstant },
}

/// What the book is read with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub now: BootInstant,
    pub reign: &'a Reign,
    pub view: &'a ClusterView,
}

impl Book {
    pub fn new(config: Config) -> Self {
        Self { config, index: Index::default(), flights: BTreeMap::new() }
    }

    pub const fn index(&self) -> &Index {
        &self.index
    }

    pub const fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// It leads no more: what it was told is nobody's any more.
    pub fn clear(&mut self) {
        self.index.clear();
        self.flights.clear();
    }

    /// What is to be done about a request.
    pub fn begin(&mut self, begin: &Begin, cx: Context<'_>) -> Result<Begun, Error> {
        self.settle(cx.now);
        if let Some(known) = self.known(&begin.session, cx) {
            return Ok(known);
        }
        let certain = match self.flights.get(&begin.session).map(|flight| (flight.state, flight.host.clone())) {
            None => None,
            Some((FlightState::Uncertain { .. }, host)) => host,
            Some((FlightState::Taken, Some(host))) => return Ok(Begun::Known { host: host.id, session: None }),
            Some(_) => return Ok(Begun::Wait(Error::NoLeader("the same session is being placed just now".to_owned()))),
        };
        let workspace = begin.workspace.as_ref().map_err(Clone::clone)?;
        let missing = self.unheard(begin.drawn, cx);
        if certain.is_none() && !missing.is_empty() && !begin.drawn {
            return Ok(Begun::Wait(Error::Indexing { waiting_for: missing }));
        }
        self.check_quota(&begin.user)?;
        let offers = match certain {
            Some(host) => Offers { candidates: vec![host], refusals: Vec::new() },
            None => self.offers(&begin.session, &begin.user, workspace, cx)?,
        };
        if offers.candidates.is_empty() {
            let untold = self.unheard(false, cx);
            // Who has not told yet may have room.
            let heard_all = untold.is_empty();
            let error = super::plan::nobody(offers.refusals);
            return if heard_all { Err(error) } else { Ok(Begun::Wait(error)) };
        }
        let flight = Flight {
            user: begin.user.clone(),
            resources: workspace.resources(),
            host: offers.candidates.first().cloned(),
            state: FlightState::Offered,
        };
        self.flights.insert(begin.session.clone(), flight);
        Ok(Begun::Offer { ballot: cx.reign.ballot.clone(), offers })
    }

    /// The session is offered to this host now.
    pub fn offering(&mut self, session: &SessionId, host: Candidate) {
        if let Some(flight) = self.flights.get_mut(session) {
            flight.host = Some(host);
        }
    }

    pub fn end(&mut self, session: &SessionId, end: End, now: BootInstant) {
        match end {
            End::NotTaken => drop(self.flights.remove(session)),
            End::Taken => self.set_state(session, FlightState::Taken),
            End::Uncertain => self.set_state(session, FlightState::Uncertain { until: now.plus(UNCERTAIN_FOR) }),
        }
        self.settle(now);
    }

    /// Where the session would go.
    pub fn dry_run(
        &self,
        session: &SessionId,
        user: &User,
        workspace: &Workspace,
        cx: Context<'_>,
    ) -> Result<Offers, Error> {
        self.offers(session, user, workspace, cx)
    }

    fn set_state(&mut self, session: &SessionId, state: FlightState) {
        if let Some(flight) = self.flights.get_mut(session) {
            flight.state = state;
        }
    }

    /// Forgets flights that have landed: their host tells of them by now.
    pub fn settle(&mut self, now: BootInstant) {
        let index = &self.index;
        self.flights.retain(|session, flight| match flight.state {
            FlightState::Offered => true,
            FlightState::Taken => index.holder(session).is_none(),
            FlightState::Uncertain { until } => index.holder(session).is_none() && now < until,
        });
    }

    fn known(&self, session: &SessionId, cx: Context<'_>) -> Option<Begun> {
        if let Some((host, held)) = self.index.holder(session) {
            let session = Box::new(held.session.clone());
            return Some(if cx.reign.reached.contains(host) {
                Begun::Known { host: host.clone(), session: Some(session) }
            } else {
                Begun::Unknown(as_unknown(session))
            });
        }
        // What a host has that has not told this leader yet, others may remember.
        let (host, remembered) =
            cx.view.members.iter().find_map(|(host, member)| Some((host, member.sessions.get(session)?)))?;
        if self.index.knows(host) {
            return None; // it has told, and does not have it any more
        }
        let session = Box::new((**remembered).clone());
        Some(if cx.reign.reached.contains(host) {
            Begun::Known { host: host.clone(), session: Some(session) }
        } else {
            Begun::Unknown(as_unknown(session))
        })
    }

    /// The nodes that must tell what they hold before a key is placed that they may know.
    fn unheard(&self, drawn: bool, cx: Context<'_>) -> Vec<Name> {
        if drawn {
            return Vec::new();
        }
        let silent_matter = self.config.on_unknown == OnUnknown::Fail;
        let mut needed: BTreeSet<&NodeId> = cx.reign.electorate.iter().collect();
        if silent_matter {
            let left = |state: NodeState| state == NodeState::Left;
            needed.extend(cx.view.members.iter().filter(|(_, member)| !left(member.state)).map(|(id, _)| id));
        } else {
            needed.retain(|node| cx.reign.reached.contains(*node));
        }
        let unheard = needed.into_iter().filter(|node| !self.index.knows(node));
        unheard.map(|node| name_of(node, cx.view)).collect()
    }

    fn check_quota(&self, user: &User) -> Result<(), Error> {
        let limit = self.config.max_sessions_per_user;
        let on_their_way = self.flights.values().filter(|flight| flight.user == *user).count();
        let has = self.index.sessions_of(user) + on_their_way;
        if limit == 0 || has < usize::try_from(limit).unwrap_or(usize::MAX) {
            return Ok(());
        }
        Err(Error::Host(sessions::Error::Quota { user: user.clone(), limit }))
    }

    fn offers(
        &self,
        session: &SessionId,
        user: &User,
        workspace: &Workspace,
        cx: Context<'_>,
    ) -> Result<Offers, Error> {
        let in_flight = self.in_flight();
        let nodes = self.nodes(cx);
        if !nodes.is_empty() && !nodes.iter().any(|(node, _)| runs(node.runtime.kind, workspace)) {
            return Err(Error::Invalid(not_runnable(workspace)));
        }
        let hosts = nodes.iter().map(|(node, heard)| Host {
            node,
            in_flight: in_flight.get(&node.id).copied().unwrap_or_default(),
            heard: *heard,
        });
        let pinned = self.pinned(user, workspace);
        let wanted = Wanted { session, workspace, strategy: self.config.strategy, pinned: pinned.as_ref() };
        let mut offers = plan(hosts, wanted);
        // A node that was only heard of may be large enough: nobody can say that it is not.
        let nameless = cx.view.members.iter().filter(|(id, member)| member.node.is_none() && !self.index.knows(id));
        let nameless = nameless.filter(|(_, member)| member.state != NodeState::Left);
        offers.refusals.extend(nameless.map(|(id, _)| NodeReason::plain(name_of(id, cx.view), Reason::Unreachable)));
        Ok(offers)
    }

    /// Every node that is known, with whether it told this leader and answers.
    fn nodes(&self, cx: Context<'_>) -> Vec<(Arc<Node>, bool)> {
        let fleet: &Fleet = self.index.fleet();
        let told = fleet.hosts.iter().map(|(id, host)| (Arc::clone(&host.node), cx.reign.reached.contains(id)));
        let heard_of = cx
            .view
            .members
            .iter()
            .filter(|(id, member)| !fleet.hosts.contains_key(*id) && member.state != NodeState::Left);
        let heard_of = heard_of.filter_map(|(_, member)| Some((Arc::clone(member.node.as_ref()?), false)));
        told.chain(heard_of).collect()
    }

    /// What the offers on their way would take, by host.
    fn in_flight(&self) -> BTreeMap<NodeId, Resources> {
        let mut sums: BTreeMap<NodeId, Resources> = BTreeMap::new();
        for flight in self.flights.values() {
            if let Some(host) = &flight.host {
                let sum = sums.entry(host.id.clone()).or_default();
                *sum = sum.saturating_add(flight.resources);
            }
        }
        sums
    }

    /// The node that the user's volumes of this workspace are on: that of their last session there.
    fn pinned(&self, user: &User, workspace: &Workspace) -> Option<NodeId> {
        if !workspace.volumes.iter().any(|volume| !volume.roam) {
            return None;
        }
        let hosts = self.index.fleet().hosts.iter();
        let sessions = hosts.flat_map(|(id, host)| host.sessions.values().map(move |held| (id, &held.session)));
        let own = sessions.filter(|(_, s)| s.user == *user && s.workspace == workspace.name);
        own.max_by_key(|(id, session)| (session.created_at, *id)).map(|(id, _)| id.clone())
    }
}

fn as_unknown(session: Box<Session>) -> Box<Session> {
    if session.state.has_ended() { session } else { Box::new(Session { state: SessionState::Unknown, ..*session }) }
}

fn name_of(node: &NodeId, view: &ClusterView) -> Name {
    let known = view.members.get(node).and_then(|member| member.node.as_ref()).map(|node| node.name.clone());
    known.unwrap_or_else(|| node.as_str().parse().expect("an id of letters and digits is a name, too"))
}

fn not_runnable(workspace: &Workspace) -> Invalid {
    let what =
        if workspace.image.is_none() { "image, and the Docker runtime" } else { "command, and the process runtime" };
    Invalid::new("workspace", format!("{} has no {what} needs one", workspace.name))
}
