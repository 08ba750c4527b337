//! Whole hosts, the calls between them, and their engines, on one virtual time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use ostler::gossip::Member;
use ostler::node::DrainState;
use ostler::placement::{self, HostAnswer, Offered};
use ostler::sessions;
use ostler::sessions::state::Request;
use ostler::types::{
    Actor, Ballot, ClusterMode, Deadline, Moment, Name, NodeId, NodeProfile, NodeState, NodeUsage, OnUnknown,
    SessionId, SessionProfile, Strategy, Timestamp, Workspace,
};

use crate::call::{Answer, Call, Caller, Failure, Place, Then};
use crate::client::{Client, Told};
use crate::event::{At, Event, Queue};
use crate::host::{Back, Callers, Host, Input};
use crate::invariants::Witness;
use crate::network::{Network, Random};
use crate::world::World;

/// How often deadlines are checked.
const TICK: u64 = 1000;
/// How often the engine's containers are listed.
const RELIST: u64 = 5000;
/// How often a host gossips to another.
const GOSSIP: u64 = 500;
/// The percentage of messages inside an agent that others overtake, and by how many milliseconds at most.
const OVERTAKEN: u64 = 5;
const OVERTAKEN_BY: u64 = 400;
/// The wall clock at the start of a history.
const WALL: i64 = 1_700_000_000_000;

/// A whole cluster.
pub(crate) struct Cluster {
    /// The elections, the network and the time.
    pub(crate) world: World,
    pub(crate) hosts: Vec<Host>,
    pub(crate) random: Random,
    pub(crate) workspaces: BTreeMap<Name, Workspace>,
    pub(crate) placement: placement::Config,
    pub(crate) clients: Vec<Client>,
    /// Milliseconds within which a client without a certain answer retries.
    pub(crate) retries_within: u64,
    /// Clients send no commands to their sessions.
    pub(crate) people_rest: bool,
    /// The number of orders to remove a duplicate that do not arrive, as if its host hung.
    pub(crate) orders_lost: u64,
    pub(crate) witness: Witness,
    pub(crate) calls: u64,
    queue: Queue,
    history: DefaultHasher,
    /// The log of the history, under `OSTLER_LOG`.
    pub(crate) log: Option<Vec<String>>,
}

/// Prints the log, also after a failure.
impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            println!("{}", log.join("\n"));
        }
    }
}

impl Cluster {
    pub(crate) fn new(size: usize, mode: ClusterMode, network: Network, seed: u64) -> Self {
        let mut random = Random(seed ^ 0xc105_7e12);
        let world = World::new(size, mode, network, seed);
        let hosts = world.hosts.iter().enumerate().map(|(i, host)| {
            let physical = crate::fleet::physical(&mut random);
            Host::new(i, host.id, physical)
        });
        let hosts = hosts.collect();
        let placement = placement::Config {
            strategy: if random.chance(50) { Strategy::Spread } else { Strategy::Binpack },
            on_unknown: OnUnknown::of(mode),
            max_sessions_per_user: if random.chance(20) { 3 } else { 0 },
        };
        let mut cluster = Self {
            world,
            hosts,
            random,
            workspaces: crate::fleet::workspaces(),
            placement,
            clients: Vec::new(),
            retries_within: crate::histories::OFTEN,
            people_rest: false,
            orders_lost: 0,
            witness: Witness::default(),
            calls: 0,
            queue: Queue::default(),
            history: DefaultHasher::new(),
            log: None,
        };
        (0..size).for_each(|i| Arc::make_mut(&mut cluster.hosts[i].view).members = cluster.heard_of(i));
        (0..size).for_each(|i| cluster.begin_life(i));
        cluster
    }

    /// The other nodes as gossip knows them at the start: present, without a profile.
    fn heard_of(&self, i: usize) -> BTreeMap<NodeId, Arc<Member>> {
        let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != i);
        others.map(|(_, host)| (host.id, Arc::new(self.member(0, None, BTreeMap::new())))).collect()
    }

    fn member(
        &self,
        life: u64,
        profile: Option<Arc<NodeProfile>>,
        sessions: BTreeMap<SessionId, Arc<SessionProfile>>,
    ) -> Member {
        Member {
            address: ([127, 0, 0, 1], 1).into(),
            incarnation: life,
            state: NodeState::Alive,
            mode: self.world.mode,
            last_seen: Timestamp::default(),
            profile,
            usage: NodeUsage::default(),
            sessions,
            catalogue: None,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) const fn now(&self) -> u64 {
        self.world.now
    }

    pub(crate) fn moment(&self, i: usize) -> Moment {
        let host = &self.hosts[i];
        let wall = WALL + i64::try_from(self.world.now).unwrap() + host.wall_ahead;
        Moment { wall: Timestamp::from_millis(wall), boot: self.world.clock(i), boot_id: host.boot_id }
    }

    pub(crate) fn is_up(&self, i: usize) -> bool {
        self.hosts[i].life.is_some()
    }

    pub(crate) fn at(&self, host: usize) -> At {
        At { host, life: self.hosts[host].lives }
    }

    pub(crate) fn index_of(&self, node: &NodeId) -> usize {
        self.hosts.iter().position(|host| host.id == *node).unwrap()
    }

    /// A digest of the history: what was decided, where and when.
    pub(crate) fn digest(&self) -> u64 {
        self.history.finish()
    }

    /// Adds a decision or a sight to the history.
    pub(crate) fn note(&mut self, host: usize, what: &str, session: &SessionId, more: impl FnOnce() -> String) {
        let at = self.world.now;
        (at, host, what, session.as_str()).hash(&mut self.history);
        if let Some(log) = &mut self.log {
            log.push(format!("{at:>6} ms  n{host} {what} {} {}", &session.as_str()[..6], more()));
        }
    }

    /// Logs what the simulation does to the cluster. Not part of the history.
    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        let at = self.world.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{at:>6} ms  -- {}", what()));
        }
    }

    pub(crate) fn put(&mut self, at: u64, event: Event) {
        self.queue.put(at, event);
    }

    pub(crate) fn put_in(&mut self, wait: u64, event: Event) {
        self.put(self.world.now + wait, event);
    }

    /// Starts the agent, and with it its election.
    pub(crate) fn start(&mut self, i: usize) {
        self.world.start(i);
        self.begin_life(i);
    }

    fn begin_life(&mut self, i: usize) {
        self.say(|| format!("n{i} starts"));
        let fence = self.world.hosts[i].disk;
        self.witness.starts(i, fence.as_ref());
        let now = self.moment(i);
        self.hosts[i].start(fence, self.placement, now);
        let at = self.at(i);
        self.finish_turn(i);
        self.put_in(50, Event::Relist(at));
        self.put_in(TICK, Event::Tick(at));
        let first = self.random.below(GOSSIP);
        self.put_in(first, Event::Gossip(at));
    }

    /// Kills the agent. Its disk and its engine stay.
    pub(crate) fn crash(&mut self, i: usize) {
        self.say(|| format!("n{i} crashes"));
        self.world.crash(i);
        self.bury(i);
    }

    /// Drops the rest of an agent whose election is dropped.
    fn bury(&mut self, i: usize) {
        let Some(life) = self.hosts[i].life.take() else { return };
        for entry in life.entries.into_values() {
            self.told(entry.client, entry.attempt, Told::Lost);
        }
    }

    /// Restarts the host, which ends its containers.
    pub(crate) fn reboot(&mut self, i: usize) {
        self.say(|| format!("n{i} reboots"));
        self.crash(i);
        self.hosts[i].engine.reboot();
        self.hosts[i].boot_id += 1;
        self.world.hosts[i].ahead = self.random.below(1 << 30);
    }

    /// Drains a host, or ends its drain. Its sessions continue, or a deadline stops them.
    pub(crate) fn toggle_drain(&mut self, i: usize, random: &mut Random) {
        let now = self.moment(i);
        let stop_sessions = random.chance(30);
        let deadline = random.chance(50).then(|| Deadline::after(now, Duration::from_millis(random.below(3000))));
        let drain = DrainState { since: now.wall, deadline, stop_sessions, message: None };
        let state = &mut self.hosts[i].state;
        state.drain = if state.drain.is_some() { None } else { Some(drain) };
        self.witness.drained |= stop_sessions;
        self.say(|| format!("n{i} starts or ends a drain, stop_sessions: {stop_sessions}"));
        if self.is_up(i) {
            self.look_at_watchers(i);
        }
    }

    /// Runs the next event up to `until`. Returns whether there was one.
    pub(crate) fn step(&mut self, until: u64) -> bool {
        let due = self.queue.next_at();
        if self.world.step(due.unwrap_or(until).min(until)) {
            let i = self.world.touched;
            if self.world.hosts[i].election.is_none() {
                self.bury(i);
            } else {
                self.follow_leadership(i);
            }
            return true;
        }
        if due.is_none_or(|at| at > until) {
            return false;
        }
        let Some(event) = self.queue.pop() else { return false };
        if let Some(At { host, life }) = event.whose() {
            if self.hosts[host].life.as_ref().is_none_or(|now| life != 0 && now.number != life) {
                return true;
            }
            let until = self.world.hosts[host].frozen_until;
            if until > self.world.now {
                self.put(until, event);
                return true;
            }
        }
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, call } => self.serve(from, to, call),
            Event::Return { caller, answer } => self.returned(caller, answer),
            Event::Inbox(at, input) => self.tell_owner(at.host, input),
            Event::Turn(at) => self.turn(at.host),
            Event::Tick(at) => {
                self.tell_owner(at.host, Input::Tick);
                self.put_in(TICK, Event::Tick(at));
            }
            Event::Relist(at) => {
                let found = self.hosts[at.host].engine.list(&self.hosts[at.host].id);
                let since = self.moment(at.host).boot;
                self.put_in(5, Event::Inbox(at, Input::Listed(since, Ok(found))));
                self.put_in(RELIST, Event::Relist(at));
            }
            Event::Gossip(at) => self.gossip(at),
            Event::Patience(at) => self.look_at_watchers(at.host),
            Event::Did(at, session, serial, step) => self.did(at, session, serial, &step),
            Event::Outcome(at, session, serial, outcome) => self.outcome(at.host, session, serial, outcome),
            Event::Lead(at) => self.wake_leader(at.host),
            Event::Enter(at, entry) => self.enter(at.host, entry),
            Event::Client(client) => self.act(client),
            Event::Told(client, attempt, told) => self.hear(client, attempt, told),
        }
    }

    /// Calls a host, the caller included. `then`: what the caller does with the answer.
    pub(crate) fn call(&mut self, from: usize, to: usize, call: Call, within: Duration, then: Then) {
        self.calls += 1;
        let caller = Caller { host: from, life: self.hosts[from].lives, call: self.calls };
        let Some(life) = self.hosts[from].life.as_mut() else { return };
        if !matches!(then, Then::Nothing) {
            life.pending.insert(caller.call, then);
            let within = u64::try_from(within.as_millis()).unwrap();
            self.put_in(within, Event::Return { caller, answer: Err(Failure::NoAnswer) });
        }
        if from == to {
            return self.put_in(0, Event::Arrive { from: caller, to, call });
        }
        let away = !self.is_up(to) || self.world.network.cut.contains(&(from, to));
        if away && self.random.chance(50) {
            let wait = 1 + self.random.below(200);
            return self.put_in(wait, Event::Return { caller, answer: Err(Failure::Unreachable) });
        }
        if let Some(delay) = self.world.network.carry(from, to, &mut self.random).first() {
            self.put_in(*delay, Event::Arrive { from: caller, to, call });
        }
    }

    pub(crate) fn answer(&mut self, from: usize, caller: Caller, answer: Answer) {
        let answer = Event::Return { caller, answer: Ok(answer) };
        if from == caller.host {
            return self.put_in(0, answer);
        }
        if let Some(delay) = self.world.network.carry(from, caller.host, &mut self.random).first() {
            self.put_in(*delay, answer);
        }
    }

    /// A host serves a call.
    fn serve(&mut self, from: Caller, to: usize, call: Call) {
        match call {
            Call::Report { ballot, have } => match self.adopt(to, &ballot) {
                None => {}
                Some(Err(stale)) => self.answer_leader(to, from, HostAnswer::Report(Err(stale))),
                Some(Ok(())) => self.way_in(to, Request::Fence(ballot, Back::Report { caller: from, ballot, have })),
            },
            Call::Admit(admit) => match self.adopt(to, &admit.ballot) {
                None => {}
                Some(Err(stale)) => self.answer_leader(to, from, HostAnswer::Admit(Offered::Stale(stale))),
                Some(Ok(())) => self.way_in(to, Request::Admit(admit, Back::Call(from))),
            },
            Call::Claim { ballot, session } => match self.adopt(to, &ballot) {
                None => {}
                Some(Err(stale)) => {
                    self.answer_leader(to, from, HostAnswer::Claim(Err(sessions::Error::Stale(stale))));
                }
                Some(Ok(())) => self.way_in(to, Request::Claim(ballot, session, Back::Call(from))),
            },
            Call::Find { session, fingerprint } => {
                let life = self.hosts[to].life.as_ref().unwrap();
                if life.snapshot.sessions.contains_key(&session) {
                    self.way_in(to, Request::Find(session, fingerprint, Back::Call(from)));
                } else {
                    self.answer_leader(to, from, HostAnswer::Find(Box::new(Ok(None))));
                }
            }
            Call::Command { session, command } => self.way_in(
                to,
                Request::Command(session, command, Actor::Node { id: self.hosts[from.host].id }, Back::Call(from)),
            ),
            Call::Place(place) => {
                let Place { session, drawn, request } = *place;
                self.place(to, from, session, drawn, request);
            }
            Call::Gossip(id, member) => {
                Arc::make_mut(&mut self.hosts[to].view).members.insert(id, Arc::from(member));
            }
        }
    }

    /// Makes a ballot the host's highest. `None`: the host crashed during the write.
    fn adopt(&mut self, i: usize, ballot: &Ballot) -> Option<Result<(), ostler::election::Stale>> {
        let adopted = self.world.adopt(i, ballot);
        if adopted.is_none() {
            self.bury(i);
        } else {
            self.follow_leadership(i);
        }
        adopted
    }

    fn answer_leader(&mut self, i: usize, caller: Caller, answer: HostAnswer) {
        self.answer(i, caller, Answer::Host(Box::new(answer)));
    }

    /// Sends a request to the owner of sessions. Some requests are delayed.
    fn way_in(&mut self, i: usize, request: Request<Callers>) {
        let overtaken = self.random.chance(OVERTAKEN);
        let wait = if overtaken { self.random.below(OVERTAKEN_BY) } else { 0 };
        let at = self.at(i);
        self.put_in(wait, Event::Inbox(at, Input::Request(request)));
    }

    fn returned(&mut self, caller: Caller, answer: Result<Answer, Failure>) {
        let i = caller.host;
        let Some(then) = self.hosts[i].life.as_mut().unwrap().pending.remove(&caller.call) else { return };
        match then {
            Then::Nothing => {}
            Then::Host { call } => self.host_answered(i, call, answer),
            Then::Entry { entry } => self.entry_answered(i, entry, answer),
        }
    }

    fn gossip(&mut self, at: At) {
        self.put_in(GOSSIP, Event::Gossip(at));
        let i = at.host;
        let to = self.random.pick(self.size());
        if to == i {
            return;
        }
        let host = &self.hosts[i];
        let snapshot = &host.life.as_ref().unwrap().snapshot;
        let here = snapshot.sessions.iter().filter(|(id, _)| !snapshot.gone.contains(*id));
        let sessions = here.map(|(id, session)| (*id, Arc::clone(session))).collect();
        let member = self.member(at.life, Some(Arc::new(host.profile(self.moment(i)))), sessions);
        let gossip = Call::Gossip(host.id, Box::new(member));
        self.call(i, to, gossip, Duration::ZERO, Then::Nothing);
    }
}
