//! The election's protocol, pure: messages and the time go in, messages and records to write come out.
//!
//! It is the leader election of Raft (Ongaro 2014, §3.4, §6.4, §9.6) without its log: terms, pre-votes,
//! votes that are on disk before they are sent, followers that hold on to a leader while they hear it, leaders
//! that step down when they do not hear a majority. It differs in two ways. A ballot is a term *and* a node,
//! so no ballot ever has two holders. And in the `available` mode the majority is counted of the nodes that
//! answered, so that a part of the cluster goes on when the rest is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{Answer, Config, Leadership, Members, Reign, Request, Stale};
use crate::types::{Ballot, BootInstant, ClusterMode, NodeId, words};

/// Heartbeats that a leader sends per second at most, however many nodes there are.
const BEATS_A_SECOND: usize = 500;
/// The smallest election timeout, in heartbeats. The largest is twice as long.
const TIMEOUT_BEATS: u32 = 2;
/// A node counts as reached until it has not answered for this many heartbeats. That leaves time to send a lost
/// heartbeat again.
const REACHED_BEATS: u32 = 5;
/// Rounds that a candidate repeats before it accepts an electorate of at most half of the last one.
const LOYAL_ROUNDS: u32 = 3;
/// Rounds whose send time is kept: answers to older ones come too late to count.
const ROUNDS_KEPT: usize = 16;

/// What this node found on disk at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The highest ballot that this node voted for or followed.
    pub highest: Option<Ballot>,
    /// The record is lost: this node may have voted without knowing it.
    pub lost: bool,
}

/// How an election ended in which this node asked for votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Won,
    Lost,
}
words!(Outcome { Won => "won", Lost => "lost" });

/// One node's part in the election.
#[derive(Debug)]
pub struct Election {
    config: Config,
    me: NodeId,
    members: Members,
    random: u64,
    started: BootInstant,
    highest: Option<Ballot>,
    /// The highest ballot on disk.
    durable: Option<Ballot>,
    /// The highest term in any message from another node.
    seen: u64,
    /// Set while this node may not vote because it lost its votes: the leader that it follows, and since when.
    probation: Option<Option<(NodeId, BootInstant)>>,
    /// The size of the last leader's electorate.
    last_electorate: usize,
    /// Rounds in a row that found at most half of the last electorate.
    loyal_rounds: u32,
    role: Role,
    outgoing: VecDeque<(NodeId, Request)>,
    /// How this node's elections ended since they were taken.
    outcomes: Vec<Outcome>,
}

#[derive(Debug)]
enum Role {
    Follower {
        /// The leader that it follows, and when it last heard from it.
        leader: Option<(NodeId, BootInstant)>,
        /// When it campaigns.
        deadline: BootInstant,
    },
    /// It collects pre-votes.
    Asking {
        ballot: Ballot,
        answered: BTreeSet<NodeId>,
        granted: BTreeSet<NodeId>,
        /// The leader that it followed until now. It campaigns because this leader is silent, so it does not wait
        /// for its answer.
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

/// A leader's state.
#[derive(Debug)]
struct Rule {
    ballot: Ballot,
    electorate: BTreeSet<NodeId>,
    round: u64,
    /// The last rounds, each with its send time.
    sent: VecDeque<(u64, BootInstant)>,
    /// For each node, the send time of the newest round that it answered.
    answered: BTreeMap<NodeId, BootInstant>,
    /// When it was elected. Answers are not missed before nodes had time to send them.
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
            outcomes: Vec::new(),
        };
        election.follow_nobody(now);
        election
    }

    /// Takes over a change of the known nodes.
    pub fn members(&mut self, members: Members, now: BootInstant) {
        let news = members != self.members;
        let looked = self.members.untried && !members.untried;
        self.members = members;
        if looked && matches!(self.role, Role::Follower { leader: None, .. }) {
            self.follow_nobody(now);
        }
        if let Role::Leader(rule) = &mut self.role {
            let (voters, me) = (&self.members.voters, &self.me);
            // A node that left in good order no longer counts; a node that vanished still does.
            rule.electorate.retain(|node| node == me || voters.contains(node));
            rule.answered.retain(|node, _| voters.contains(node));
            if news {
                rule.next_beat = now;
            }
        }
    }

    /// Answers another node. The answer may be sent once the ballot of [`Self::poll_persist`] is on disk.
    pub fn request(&mut self, request: Request, now: BootInstant) -> Answer {
        if !matches!(request, Request::PreVote { .. }) {
            // A pre-vote starts no term: pre-votes must not raise each other's terms.
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

    /// Takes another node's answer to a request of this one.
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

    /// Makes `ballot` the highest, unless this node has a higher one.
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

    /// Stops leading, if this node leads, and makes the node with the newest answer campaign.
    pub fn hand_over(&mut self, now: BootInstant) {
        let Role::Leader(rule) = &self.role else { return };
        let best = rule.answered.iter().max_by_key(|(_, at)| **at).map(|(node, _)| *node);
        if let Some(successor) = best {
            let resign = Request::Resign { ballot: rule.ballot, successor };
            self.outgoing.extend(self.members.voters.iter().map(|node| (*node, resign.clone())));
        }
        self.follow_nobody(now);
    }

    /// Does what is due at `now`: campaigns, sends heartbeats, steps down.
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

    /// The ballot that must be on disk before any answer or request is sent.
    pub fn poll_persist(&self) -> Option<Ballot> {
        if self.durable == self.highest { None } else { self.highest }
    }

    /// The ballot is on disk.
    pub fn persisted(&mut self, ballot: Ballot) {
        self.durable = Some(ballot);
    }

    /// The ballot could not be written: drops the requests that waited for it, and stops leading or following.
    pub fn persist_failed(&mut self, now: BootInstant) {
        self.outgoing.clear();
        self.follow_nobody(now);
    }

    pub fn poll_send(&mut self) -> Option<(NodeId, Request)> {
        self.outgoing.pop_front()
    }

    /// How this node's elections ended since the last call.
    pub fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// Which node leads, as far as this node knows.
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
        // A node that has just voted is reachable, and may have sessions that no other node knows of.
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

    /// The send time of the newest round that a majority has answered; the earliest instant if no majority has.
    fn quorum_heard(&self, rule: &Rule, now: BootInstant) -> BootInstant {
        let others = rule.answered.iter().filter(|(node, _)| rule.electorate.contains(*node)).map(|(_, at)| *at);
        let mut heard: Vec<BootInstant> = others.chain([now]).collect();
        heard.sort_unstable_by(|a, b| b.cmp(a));
        let needed = self.needed(rule.electorate.len());
        heard.get(needed - 1).copied().unwrap_or_default()
    }

    fn would_vote(&self, ballot: &Ballot, now: BootInstant) -> bool {
        // One vote per term, although a term can have several ballots: so a term has at most one leader.
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
        let deadline = now.plus(self.random_timeout());
        self.turn_to(Role::Follower { leader: Some((leader, now)), deadline });
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

    /// Whether this node hears a leader, or a majority hears this node lead. Then it votes for no other node, so
    /// that a node that hears no leader cannot unseat the one that all others follow.
    fn holds_on(&self, now: BootInstant) -> bool {
        match &self.role {
            Role::Follower { leader: Some((_, heard)), .. } => now.since(*heard) < self.timeout(),
            Role::Leader(rule) => now.since(self.quorum_heard(rule, now).max(rule.since)) < self.timeout(),
            // It may have heard its leader just before its restart.
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

    /// Whether this node may vote and campaign at all.
    fn may_vote(&self) -> bool {
        match self.config.mode {
            ClusterMode::Available => true,
            ClusterMode::Quorum { expected_nodes } => {
                let expected = usize::try_from(expected_nodes).unwrap_or(usize::MAX);
                self.probation.is_none() && self.members.known < expected
            }
        }
    }

    /// A node that lost its votes may vote again once it has followed one leader for two of the longest timeouts:
    /// by then every election that it may have voted in is over.
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
            // Other nodes may be there: after its start, a node does not lead alone before it has tried them.
            wait += self.timeout() * 2;
        }
        self.turn_to(Role::Follower { leader: None, deadline: now.plus(wait) });
    }

    /// Every way out of an election: it is won by whoever leads then.
    fn turn_to(&mut self, role: Role) {
        if matches!(self.role, Role::Candidate { .. }) {
            let won = matches!(role, Role::Leader(_));
            self.outcomes.push(if won { Outcome::Won } else { Outcome::Lost });
        }
        self.role = role;
    }

    fn campaign(&mut self, now: BootInstant) {
        if !self.may_vote() {
            return self.follow_nobody(now);
        }
        let silent = self.follows_since_start().copied();
        let ballot = Ballot { term: self.seen + 1, node: self.me };
        let ask = Request::PreVote { ballot };
        self.outgoing.extend(self.members.voters.iter().map(|node| (*node, ask.clone())));
        // Half a timeout: live nodes answer by then, and this node does not wait for the others.
        let deadline = now.plus(self.timeout() / 2);
        self.role = Role::Asking { ballot, answered: BTreeSet::new(), granted: BTreeSet::new(), silent, deadline };
        if self.members.voters.is_empty() {
            self.count_pre_votes(now);
        }
    }

    fn count_pre_votes(&mut self, now: BootInstant) {
        let Role::Asking { ballot, answered, granted, .. } = &self.role else { return };
        let electorate: BTreeSet<NodeId> = answered.iter().copied().chain([self.me]).collect();
        // A node that refuses holds on to a leader. If that leader and this node do not hear each other, but a node
        // between them hears both, each may have a majority of the nodes that answer it, and the two would unseat
        // each other for ever. So after a refusal the majority is counted of all known nodes: only one side can have
        // that.
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

    /// Whether this electorate is at most half of the last one, and it is too early to accept that.
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
        let rule = Rule {
            ballot: *ballot,
            electorate: electorate.clone(),
            round: 0,
            sent: VecDeque::new(),
            answered: BTreeMap::new(),
            since: now,
            next_beat: now,
        };
        self.turn_to(Role::Leader(rule));
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

    /// The time between two heartbeats: longer in large clusters, to bound the leader's load.
    fn beat_every(&self) -> Duration {
        let spread = Duration::from_secs(1) * u32::try_from(self.members.voters.len()).unwrap_or(u32::MAX)
            / u32::try_from(BEATS_A_SECOND).unwrap_or(u32::MAX);
        self.config.heartbeat.max(spread)
    }

    /// The smallest election timeout.
    fn timeout(&self) -> Duration {
        self.beat_every() * TIMEOUT_BEATS
    }

    /// Shorter, by an eighth, than a follower holds on to its leader, because clocks run at different speeds.
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
    /// Records that a node answered a round, and so follows.
    fn heard(&mut self, from: &NodeId, round: u64) {
        let Some((_, at)) = self.sent.iter().find(|(sent, _)| *sent == round) else { return };
        let newest = self.answered.entry(*from).or_default();
        *newest = (*newest).max(*at);
        self.electorate.insert(*from);
    }
}

#[cfg(test)]
mod tests;
