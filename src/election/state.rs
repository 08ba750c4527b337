//! The election's protocol, pure: messages and the time go in, messages and what to write come out.
//!
//! It is the leader election of Raft (Ongaro 2014, §3.4, §6.4, §9.6) without its log: terms, pre-votes,
//! votes that are on disk before they are told, followers that hold on to a leader they hear, leaders
//! that step down when they do not hear a majority. What is different: a ballot is a term *and* a node,
//! so no ballot ever has two holders; and in the `available` mode the majority is one of those who
//! answered, so that a part of the cluster goes on when the rest is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{Answer, Config, Leadership, Members, Reign, Request, Stale};
use crate::types::{Ballot, BootInstant, ClusterMode, NodeId};

/// Heartbeats that a leader sends a second at most, however many nodes there are.
const BEATS_A_SECOND: usize = 500;
/// The smallest election timeout, in heartbeats. The largest is twice as long.
const TIMEOUT_BEATS: u32 = 2;
/// A node that has not answered for so many heartbeats is not reached any more: one that was lost is sent again.
const REACHED_BEATS: u32 = 5;
/// How often a node tries again before it does with no more than half of the electorate that it knew.
const LOYAL_ROUNDS: u32 = 3;
/// Rounds whose sending time is remembered: answers to older ones come too late to count.
const ROUNDS_KEPT: usize = 16;

/// What was on disk at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The highest ballot that this node voted for or followed.
    pub highest: Option<Ballot>,
    /// What was kept is lost: this node may have voted, and does not know.
    pub lost: bool,
}

/// One node's part in the election.
#[derive(Debug)]
pub struct Election {
    config: Config,
    me: NodeId,
    members: Members,
    random: u64,
    started: BootInstant,
    highest: Option<Ballot>,
    /// What of it is on disk.
    durable: Option<Ballot>,
    /// The highest term that anybody was heard to have.
    seen: u64,
    /// Lost its votes: whom it has followed since, before it may vote again.
    probation: Option<Option<(NodeId, BootInstant)>>,
    /// How large the electorate of the last leader was.
    last_electorate: usize,
    /// Rounds in a row that found no more than half of it.
    loyal_rounds: u32,
    role: Role,
    outgoing: VecDeque<(NodeId, Request)>,
}

#[derive(Debug)]
enum Role {
    Follower {
        /// Whom it follows, and when it last heard of them.
        leader: Option<(NodeId, BootInstant)>,
        /// It campaigns then.
        deadline: BootInstant,
    },
    /// It asks who would vote for it.
    Asking {
        ballot: Ballot,
        answered: BTreeSet<NodeId>,
        granted: BTreeSet<NodeId>,
        /// Whom it followed until just now: it campaigns because they are silent, so they are not waited for.
        silent: Option<NodeId>,
        deadline: BootInstant,
    },
    Candidate {
        ballot: Ballot,
        electorate: BTreeSet<NodeId>,
        granted: BTreeSet<NodeId>,
        deadline: BootInstant,
    },
    Leader(Rule),
}

/// A leader's book.
#[derive(Debug)]
struct Rule {
    ballot: Ballot,
    electorate: BTreeSet<NodeId>,
    round: u64,
    /// When each of the last rounds was sent.
    sent: VecDeque<(u64, BootInstant)>,
    /// When the newest round was sent that each node answered.
    answered: BTreeMap<NodeId, BootInstant>,
    /// When it was elected: nobody is missed before they could answer.
    since: BootInstant,
    next_beat: BootInstant,
}

impl Election {
    pub fn new(config: Config, me: NodeId, stored: Stored, now: BootInstant, seed: u64) -> Self {
        let lost = stored.lost && matches!(config.mode, ClusterMode::Quorum { .. });
        let mut election = Self {
            config,
            me,
            members: Members { untried: true, ..Members::default() },
            random: seed,
            started: now,
            seen: stored.highest.as_ref().map_or(0, |ballot| ballot.term),
            durable: stored.highest,
            highest: stored.highest,
            probation: lost.then_some(None),
            last_electorate: 0,
            loyal_rounds: 0,
            role: Role::Follower { leader: None, deadline: now },
            outgoing: VecDeque::new(),
        };
        election.follow_nobody(now);
        election
    }

    /// Who is there has changed.
    pub fn members(&mut self, members: Members, now: BootInstant) {
        let news = members != self.members;
        let looked = self.members.untried && !members.untried;
        self.members = members;
        if looked && matches!(self.role, Role::Follower { leader: None, .. }) {
            self.follow_nobody(now);
        }
        if let Role::Leader(rule) = &mut self.role {
            let (voters, me) = (&self.members.voters, &self.me);
            // Who left in good order is no longer counted; who only vanished is.
            rule.electorate.retain(|node| node == me || voters.contains(node));
            rule.answered.retain(|node, _| voters.contains(node));
            if news {
                rule.next_beat = now;
            }
        }
    }

    /// Answers another node. The answer may leave once what [`Self::poll_persist`] says is on disk.
    pub fn request(&mut self, request: Request, now: BootInstant) -> Answer {
        if !matches!(request, Request::PreVote { .. }) {
            // Who only asks who would vote has begun no term: such questions must not drive each other's terms up.
            self.seen = self.seen.max(request.ballot().term);
        }
        let (granted, round) = match request {
            Request::PreVote { ballot } => (self.would_vote(&ballot, now), 0),
            Request::Vote { ballot } => (self.vote(ballot, now), 0),
            Request::Beat { ballot, round, electorate } => (self.beat(ballot, electorate, now), round),
            Request::Resign { ballot, successor } => (self.resigned(&ballot, &successor, now), 0),
        };
        Answer { granted, highest: self.highest, round }
    }

    /// Takes another node's answer to what was sent to it.
    pub fn answer(&mut self, from: &NodeId, request: &Request, answer: &Answer, now: BootInstant) {
        if let Some(highest) = &answer.highest {
            self.seen = self.seen.max(highest.term);
        }
        match (&mut self.role, request) {
            (Role::Asking { ballot, answered, granted, silent, .. }, Request::PreVote { ballot: asked })
                if ballot == asked =>
            {
                answered.insert(*from);
                if answer.granted {
                    granted.insert(*from);
                }
                let waited_for = |node: &&NodeId| !answered.contains(*node) && silent.as_ref() != Some(*node);
                if !self.members.voters.iter().any(|node| waited_for(&node)) {
                    self.count_pre_votes(now);
                }
            }
            (Role::Candidate { ballot, granted, .. }, Request::Vote { ballot: asked }) if ballot == asked => {
                if answer.granted {
                    granted.insert(*from);
                }
                self.count_votes(now);
            }
            (Role::Leader(rule), Request::Beat { ballot, .. }) if rule.ballot == *ballot => {
                if answer.granted {
                    rule.heard(from, answer.round);
                } else if answer.highest.as_ref().is_some_and(|highest| *highest > rule.ballot) {
                    self.follow_nobody(now);
                }
            }
            _ => {}
        }
    }

    /// Makes `ballot` the highest, unless a higher one is there.
    pub fn adopt(&mut self, ballot: &Ballot, now: BootInstant) -> Result<(), Stale> {
        if let Some(highest) = self.highest.filter(|highest| highest > ballot) {
            return Err(Stale { highest });
        }
        if self.highest.as_ref() != Some(ballot) {
            self.raise(*ballot);
            self.follow_nobody(now);
        }
        Ok(())
    }

    /// Stops leading, if it does, and lets whoever answered last go on.
    pub fn hand_over(&mut self, now: BootInstant) {
        let Role::Leader(rule) = &self.role else { return };
        let best = rule.answered.iter().max_by_key(|(_, at)| **at).map(|(node, _)| *node);
        if let Some(successor) = best {
            let resign = Request::Resign { ballot: rule.ballot, successor };
            self.outgoing.extend(self.members.voters.iter().map(|node| (*node, resign.clone())));
        }
        self.follow_nobody(now);
    }

    /// Acts on the time: campaigns, beats, steps down.
    pub fn tick(&mut self, now: BootInstant) {
        match &self.role {
            Role::Follower { deadline, .. } if now >= *deadline => self.campaign(now),
            Role::Asking { deadline, .. } if now >= *deadline => self.count_pre_votes(now),
            Role::Candidate { deadline, .. } if now >= *deadline => self.follow_nobody(now),
            Role::Leader(rule) => {
                let missed = now.since(self.quorum_heard(rule, now).max(rule.since)) >= self.timeout() * 2;
                if missed || !self.may_vote() {
                    self.follow_nobody(now);
                } else if now >= rule.next_beat {
                    self.send_beats(now);
                }
            }
            _ => {}
        }
    }

    /// When [`Self::tick`] is due.
    pub const fn poll_timeout(&self) -> BootInstant {
        match &self.role {
            Role::Follower { deadline, .. } | Role::Asking { deadline, .. } | Role::Candidate { deadline, .. } => {
                *deadline
            }
            Role::Leader(rule) => rule.next_beat,
        }
    }

    /// What must be on disk before anything else leaves.
    pub fn poll_persist(&self) -> Option<Ballot> {
        if self.durable == self.highest { None } else { self.highest }
    }

    /// It is on disk.
    pub fn persisted(&mut self, ballot: Ballot) {
        self.durable = Some(ballot);
    }

    /// It could not be written: nothing that waited for it leaves, and nobody is led.
    pub fn persist_failed(&mut self, now: BootInstant) {
        self.outgoing.clear();
        self.follow_nobody(now);
    }

    pub fn poll_send(&mut self) -> Option<(NodeId, Request)> {
        self.outgoing.pop_front()
    }

    /// Who leads, as far as this node knows.
    pub fn leadership(&self, now: BootInstant) -> Leadership {
        let (leader, reign) = match &self.role {
            Role::Follower { leader, .. } => (leader.as_ref().map(|(node, _)| *node), None),
            Role::Asking { .. } | Role::Candidate { .. } => (None, None),
            Role::Leader(rule) => (Some(self.me), Some(std::sync::Arc::new(self.reign(rule, now)))),
        };
        Leadership { leader, ballot: self.durable, reign }
    }

    fn reign(&self, rule: &Rule, now: BootInstant) -> Reign {
        let recent = |at: &BootInstant| now.since(*at) < self.beat_every() * REACHED_BEATS;
        let answers = rule.answered.iter().filter(|(_, at)| recent(at)).map(|(node, _)| node);
        // Who has just voted is there, and may know what nobody else does.
        let voted = rule.electorate.iter().filter(|_| recent(&rule.since));
        let reached = answers.chain(voted).copied();
        Reign {
            ballot: rule.ballot,
            electorate: rule.electorate.clone(),
            reached: reached.chain([self.me]).collect(),
            needed: self.needed(rule.electorate.len()),
            lease: self.quorum_heard(rule, now).plus(self.lease()),
        }
    }

    /// The send time of the newest round that a majority has answered; never, where none has.
    fn quorum_heard(&self, rule: &Rule, now: BootInstant) -> BootInstant {
        let others = rule.answered.iter().filter(|(node, _)| rule.electorate.contains(*node)).map(|(_, at)| *at);
        let mut heard: Vec<BootInstant> = others.chain([now]).collect();
        heard.sort_unstable_by(|a, b| b.cmp(a));
        let needed = self.needed(rule.electorate.len());
        heard.get(needed - 1).copied().unwrap_or_default()
    }

    fn would_vote(&self, ballot: &Ballot, now: BootInstant) -> bool {
        // One vote a term, though ballots of one term differ: that keeps a term to one leader.
        let free = self.highest.as_ref().is_none_or(|highest| ballot.term > highest.term || ballot == highest);
        free && self.may_vote() && !self.holds_on(now)
    }

    fn vote(&mut self, ballot: Ballot, now: BootInstant) -> bool {
        if !self.would_vote(&ballot, now) {
            return false;
        }
        if self.highest.as_ref() != Some(&ballot) {
            self.raise(ballot);
            self.follow_nobody(now);
        }
        true
    }

    fn beat(&mut self, ballot: Ballot, electorate: u32, now: BootInstant) -> bool {
        if self.highest.as_ref().is_some_and(|highest| *highest > ballot) {
            return false;
        }
        let leader = ballot.node;
        if self.highest.as_ref() != Some(&ballot) {
            self.raise(ballot);
        }
        self.last_electorate = usize::try_from(electorate).unwrap_or(usize::MAX);
        self.loyal_rounds = 0;
        self.serve_probation(&leader, now);
        self.role = Role::Follower { leader: Some((leader, now)), deadline: now.plus(self.random_timeout()) };
        true
    }

    fn resigned(&mut self, ballot: &Ballot, successor: &NodeId, now: BootInstant) -> bool {
        let followed = matches!(&self.role, Role::Follower { leader: Some((leader, _)), .. } if *leader == ballot.node);
        if !followed || self.highest.as_ref() != Some(ballot) {
            return false;
        }
        self.follow_nobody(now);
        if *successor == self.me {
            self.campaign(now);
        }
        true
    }

    /// Whether this node still hears a leader, or rules itself: then it votes for nobody else, so that one
    /// who hears nobody does not unseat whom everybody else follows.
    fn holds_on(&self, now: BootInstant) -> bool {
        match &self.role {
            Role::Follower { leader: Some((_, heard)), .. } => now.since(*heard) < self.timeout(),
            Role::Leader(rule) => now.since(self.quorum_heard(rule, now).max(rule.since)) < self.timeout(),
            // Whom it followed before it was started, it may have heard just before.
            _ => self.highest.is_some() && self.outlived_no_lease(now),
        }
    }

    fn outlived_no_lease(&self, now: BootInstant) -> bool {
        self.follows_since_start().is_none() && now.since(self.started) < self.timeout()
    }

    const fn follows_since_start(&self) -> Option<&NodeId> {
        match &self.role {
            Role::Follower { leader: Some((leader, _)), .. } => Some(leader),
            _ => None,
        }
    }

    /// Whether it may vote and campaign at all.
    fn may_vote(&self) -> bool {
        match self.config.mode {
            ClusterMode::Available => true,
            ClusterMode::Quorum { expected_nodes } => {
                let expected = usize::try_from(expected_nodes).unwrap_or(usize::MAX);
                self.probation.is_none() && self.members.known < expected
            }
        }
    }

    /// Whoever lost its votes may vote again once it has followed one leader for two timeouts: what it may
    /// have voted for before is over by then.
    fn serve_probation(&mut self, leader: &NodeId, now: BootInstant) {
        let over = self.timeout() * 4;
        match &self.probation {
            Some(Some((followed, since))) if followed == leader && now.since(*since) >= over => self.probation = None,
            Some(Some((followed, _))) if followed == leader => {}
            Some(_) => self.probation = Some(Some((*leader, now))),
            None => {}
        }
    }

    fn raise(&mut self, ballot: Ballot) {
        self.seen = self.seen.max(ballot.term);
        self.highest = Some(ballot);
    }

    fn follow_nobody(&mut self, now: BootInstant) {
        let mut wait = self.random_timeout();
        if self.members.untried {
            // Others may be there: whoever starts does not lead alone before it has looked.
            wait += self.timeout() * 2;
        }
        self.role = Role::Follower { leader: None, deadline: now.plus(wait) };
    }

    fn campaign(&mut self, now: BootInstant) {
        if !self.may_vote() {
            return self.follow_nobody(now);
        }
        let silent = self.follows_since_start().copied();
        let ballot = Ballot { term: self.seen + 1, node: self.me };
        let ask = Request::PreVote { ballot };
        self.outgoing.extend(self.members.voters.iter().map(|node| (*node, ask.clone())));
        // Half a timeout: who is there answers by then, and who is not is not waited for.
        let deadline = now.plus(self.timeout() / 2);
        self.role = Role::Asking { ballot, answered: BTreeSet::new(), granted: BTreeSet::new(), silent, deadline };
        if self.members.voters.is_empty() {
            self.count_pre_votes(now);
        }
    }

    fn count_pre_votes(&mut self, now: BootInstant) {
        let Role::Asking { ballot, answered, granted, .. } = &self.role else { return };
        let electorate: BTreeSet<NodeId> = answered.iter().copied().chain([self.me]).collect();
        // Whoever says no holds on to a leader. Where it is between that leader and this node, which do not hear each
        // other, each of the two sides may be a majority of those who answer it, and would unseat the other for ever:
        // only one can be a majority of all that are known.
        let counted = if granted.len() < answered.len() { self.members.voters.len() + 1 } else { electorate.len() };
        let elected = granted.len() + 1 >= self.needed(counted);
        let ballot = *ballot;
        if self.forsakes(electorate.len()) && elected {
            self.loyal_rounds += 1;
            return self.follow_nobody(now);
        }
        if !elected {
            return self.follow_nobody(now);
        }
        let vote = Request::Vote { ballot };
        self.outgoing.extend(answered.iter().map(|node| (*node, vote.clone())));
        self.raise(ballot);
        let deadline = now.plus(self.random_timeout());
        self.role = Role::Candidate { ballot, electorate, granted: BTreeSet::new(), deadline };
        self.count_votes(now);
    }

    /// Whether so few would leave most of the last electorate behind, and it is too early for that.
    fn forsakes(&self, electorate: usize) -> bool {
        matches!(self.config.mode, ClusterMode::Available)
            && electorate * 2 <= self.last_electorate
            && self.loyal_rounds < LOYAL_ROUNDS
    }

    fn count_votes(&mut self, now: BootInstant) {
        let Role::Candidate { ballot, electorate, granted, .. } = &self.role else { return };
        if granted.len() + 1 < self.needed(electorate.len()) {
            return;
        }
        self.last_electorate = electorate.len();
        self.loyal_rounds = 0;
        self.role = Role::Leader(Rule {
            ballot: *ballot,
            electorate: electorate.clone(),
            round: 0,
            sent: VecDeque::new(),
            answered: BTreeMap::new(),
            since: now,
            next_beat: now,
        });
        self.send_beats(now);
    }

    fn send_beats(&mut self, now: BootInstant) {
        let every = self.beat_every();
        let Role::Leader(rule) = &mut self.role else { return };
        rule.round += 1;
        rule.sent.push_back((rule.round, now));
        if rule.sent.len() > ROUNDS_KEPT {
            rule.sent.pop_front();
        }
        rule.next_beat = now.plus(every);
        let electorate = u32::try_from(rule.electorate.len()).unwrap_or(u32::MAX);
        let beat = Request::Beat { ballot: rule.ballot, round: rule.round, electorate };
        self.outgoing.extend(self.members.voters.iter().map(|node| (*node, beat.clone())));
    }

    /// How many nodes are a majority of an electorate of this size.
    fn needed(&self, electorate: usize) -> usize {
        match self.config.mode {
            ClusterMode::Available => electorate / 2 + 1,
            ClusterMode::Quorum { expected_nodes } => usize::try_from(expected_nodes).unwrap_or(usize::MAX) / 2 + 1,
        }
    }

    /// Between two beats: longer in large clusters, so that a leader is not busy with them alone.
    fn beat_every(&self) -> Duration {
        let spread = Duration::from_secs(1) * u32::try_from(self.members.voters.len()).unwrap_or(u32::MAX)
            / u32::try_from(BEATS_A_SECOND).unwrap_or(u32::MAX);
        self.config.heartbeat.max(spread)
    }

    /// The smallest election timeout.
    fn timeout(&self) -> Duration {
        self.beat_every() * TIMEOUT_BEATS
    }

    /// Shorter than any follower holds on, by an eighth for clocks that do not run alike.
    fn lease(&self) -> Duration {
        self.timeout() - self.timeout() / 8
    }

    fn random_timeout(&mut self) -> Duration {
        let least = u64::try_from(self.timeout().as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(least + self.draw() % least)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    const fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Rule {
    /// A node answered a round: it is here, and follows.
    fn heard(&mut self, from: &NodeId, round: u64) {
        let Some((_, at)) = self.sent.iter().find(|(sent, _)| *sent == round) else { return };
        let newest = self.answered.entry(*from).or_default();
        *newest = (*newest).max(*at);
        self.electorate.insert(*from);
    }
}

#[cfg(test)]
mod tests;
