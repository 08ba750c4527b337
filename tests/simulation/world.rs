//! A cluster of elections, their disks and the network between them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use ostler::election::state::{Election, Stored};
use ostler::election::{Answer, Config, Leadership, Members, Request, Stale};
use ostler::types::{Ballot, BootInstant, ClusterMode, NodeId};

use crate::network::{Network, Random};

/// One host.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    /// `None` while it is down.
    pub(crate) election: Option<Election>,
    pub(crate) disk: Option<Ballot>,
    /// It is frozen until this time, as under SIGSTOP.
    pub(crate) frozen_until: u64,
    /// It crashes right after its next write, before it sends anything.
    pub(crate) crashes_at_write: bool,
    /// Milliseconds by which its boot clock is ahead of the simulation's: hosts boot at different times.
    pub(crate) ahead: u64,
    members: Members,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Message {
    Request(Box<WireRequest>),
    Answer(Box<WireRequest>, Box<WireAnswer>),
}

// Part of an ordered queue entry, whose time and number alone decide its order, the same in every run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireRequest(pub(crate) Request);
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireAnswer(pub(crate) Answer);

macro_rules! unordered {
    ($($name:ident),*) => { $(
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $name {
            // Every message has its own number, so contents are never compared.
            fn cmp(&self, _: &Self) -> std::cmp::Ordering {
                std::cmp::Ordering::Equal
            }
        }
    )* };
}
unordered!(WireRequest, WireAnswer);

/// A message in flight: its arrival, its number, its sender and its receiver.
type Flight = (u64, u64, usize, usize, Message);

pub(crate) struct World {
    pub(crate) mode: ClusterMode,
    pub(crate) now: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) random: Random,
    /// The host that acted last.
    pub(crate) touched: usize,
    flying: BinaryHeap<Reverse<Flight>>,
    sent: u64,
    /// A log of what was sent and delivered, if requested.
    pub(crate) log: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(size: usize, mode: ClusterMode, network: Network, seed: u64) -> Self {
        let mut random = Random(seed);
        let ids: Vec<NodeId> = (0..size).map(|i| NodeId::from_bytes([u8::try_from(i).unwrap(); 10])).collect();
        let hosts = ids
            .iter()
            .map(|id| Host {
                id: *id,
                election: None,
                disk: None,
                frozen_until: 0,
                crashes_at_write: false,
                ahead: random.below(1 << 30),
                members: Members {
                    voters: ids.iter().filter(|other| *other != id).copied().collect(),
                    known: size - 1,
                    untried: false,
                },
            })
            .collect();
        let flying = BinaryHeap::new();
        let mut world = Self { mode, now: 1000, hosts, network, random, touched: 0, flying, sent: 0, log: None };
        (0..size).for_each(|i| world.start(i));
        world
    }

    pub(crate) fn size(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) fn start(&mut self, i: usize) {
        let seed = self.random.draw();
        let now = self.clock(i);
        let host = &mut self.hosts[i];
        let stored = Stored { highest: host.disk, lost: false };
        let mut election = Election::new(Config::new(self.mode), host.id, stored, now, seed);
        election.members(host.members.clone(), now);
        host.election = Some(election);
        host.frozen_until = 0;
    }

    /// Crashes the host, which loses everything but its disk.
    pub(crate) fn crash(&mut self, i: usize) {
        self.hosts[i].election = None;
        self.hosts[i].crashes_at_write = false;
    }

    pub(crate) fn clock(&self, i: usize) -> BootInstant {
        BootInstant::from_millis(self.now + self.hosts[i].ahead)
    }

    /// The leadership, as this host knows it. `None` while it is down.
    pub(crate) fn leadership(&self, i: usize) -> Option<Leadership> {
        Some(self.hosts[i].election.as_ref()?.leadership(self.clock(i)))
    }

    /// Makes a ballot the host's highest. `None`: the host crashed during the write.
    pub(crate) fn adopt(&mut self, i: usize, ballot: &Ballot) -> Option<Result<(), Stale>> {
        let now = self.clock(i);
        let adopted = self.hosts[i].election.as_mut()?.adopt(ballot, now);
        self.flush(i).then_some(adopted)
    }

    /// Runs the next event up to `until`. Returns whether there was one.
    pub(crate) fn step(&mut self, until: u64) -> bool {
        let due = |i: usize, host: &Host, world: &Self| {
            let election = host.election.as_ref()?;
            let wait = election.poll_timeout().since(world.clock(i)).as_millis();
            Some((world.now + u64::try_from(wait).unwrap()).max(host.frozen_until))
        };
        let tick = (0..self.size()).filter_map(|i| Some((due(i, &self.hosts[i], self)?, i))).min();
        let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
        match (tick, arrival) {
            (Some((at, i)), arrival) if at <= until && arrival.is_none_or(|arrival| at < arrival) => {
                self.now = self.now.max(at);
                self.touched = i;
                let now = self.clock(i);
                self.hosts[i].election.as_mut().unwrap().tick(now);
                self.flush(i);
                true
            }
            (_, Some(at)) if at <= until => {
                self.now = self.now.max(at);
                let Reverse((_, _, from, to, message)) = self.flying.pop().unwrap();
                self.touched = to;
                self.arrive(from, to, message);
                true
            }
            _ => {
                self.now = until;
                false
            }
        }
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        if self.hosts[to].frozen_until > self.now {
            // It waits in the socket until the host continues.
            let at = self.hosts[to].frozen_until;
            self.put(at, from, to, message);
            return;
        }
        let now = self.clock(to);
        let sender = self.hosts[from].id;
        let Some(election) = &mut self.hosts[to].election else { return };
        match message {
            Message::Request(request) => {
                let answer = election.request(request.0.clone(), now);
                self.note(|| format!("n{from} > n{to} {} : {}", shown(&request.0), verdict(&answer)));
                if self.flush(to) {
                    self.send(to, from, Message::Answer(request, Box::new(WireAnswer(answer))));
                }
            }
            Message::Answer(request, answer) => {
                election.answer(&sender, &request.0, &answer.0, now);
                self.flush(to);
            }
        }
    }

    /// Writes the ballot if it changed, then sends what waits. Returns false if the host crashed in between.
    fn flush(&mut self, i: usize) -> bool {
        let host = &mut self.hosts[i];
        let election = host.election.as_mut().unwrap();
        if let Some(ballot) = election.poll_persist() {
            host.disk = Some(ballot);
            election.persisted(ballot);
            if std::mem::take(&mut host.crashes_at_write) {
                self.crash(i);
                return false;
            }
        }
        let mut outgoing = Vec::new();
        while let Some((to, request)) = self.hosts[i].election.as_mut().unwrap().poll_send() {
            outgoing.push((to, request));
        }
        for (to, request) in outgoing {
            let to = self.hosts.iter().position(|host| host.id == to).unwrap();
            self.send(i, to, Message::Request(Box::new(WireRequest(request))));
        }
        true
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        for delay in self.network.carry(from, to, &mut self.random) {
            self.put(self.now + delay, from, to, message.clone());
        }
    }

    fn put(&mut self, at: u64, from: usize, to: usize, message: Message) {
        self.sent += 1;
        self.flying.push(Reverse((at, self.sent, from, to, message)));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let at = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{at:>6} ms  {}", line()));
        }
    }

    /// The leader, if every running host follows it and it knows that it leads.
    pub(crate) fn settled(&self) -> Option<NodeId> {
        let known: Vec<Leadership> = (0..self.size()).filter_map(|i| self.leadership(i)).collect();
        let leader = known.first()?.leader?;
        let rules = known.iter().any(|known| known.reign.as_ref().is_some_and(|reign| reign.ballot.node == leader));
        (rules && known.iter().all(|known| known.leader.as_ref() == Some(&leader))).then_some(leader)
    }

    /// The leadership as each host knows it, for messages of failures.
    pub(crate) fn picture(&self) -> BTreeMap<usize, String> {
        (0..self.size()).map(|i| (i, format!("{:?}", self.leadership(i)))).collect()
    }
}

fn shown(request: &Request) -> String {
    let (name, ballot) = match request {
        Request::PreVote { ballot } => ("would you vote for", ballot),
        Request::Vote { ballot } => ("vote for", ballot),
        Request::Beat { ballot, .. } => ("follow", ballot),
        Request::Resign { ballot, .. } => ("I resign", ballot),
    };
    format!("{name} term {}", ballot.term)
}

const fn verdict(answer: &Answer) -> &'static str {
    if answer.granted { "yes" } else { "no" }
}
