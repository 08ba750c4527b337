//! The owner of a host's sessions. The shipped [`Sessions`](ostler::sessions::state::Sessions) decides each turn; the
//! simulated disk may fail, and the agent may die in the middle of a turn.

use ostler::placement::{Have, HostAnswer, HostReport, Offered};
use ostler::sessions::state::{Answer as Turned, Request, Turn};
use ostler::sessions::{self, Record};
use ostler::types::{Ballot, NodeUsage, SessionId};

use crate::call::{Answer, Caller};
use crate::cluster::Cluster;
use crate::event::Event;
use crate::host::{Back, Callers, Crash, Input, Watcher};

/// How long a report waits for a change.
const REPORT_PATIENCE: u64 = 5000;

impl Cluster {
    pub(crate) fn tell_owner(&mut self, i: usize, input: Input) {
        let life = self.hosts[i].life.as_mut().unwrap();
        life.inbox.push(input);
        if !std::mem::replace(&mut life.turn_due, true) {
            let at = self.at(i);
            let wait = self.random.below(4);
            self.put_in(wait, Event::Turn(at));
        }
    }

    /// The owner of sessions takes all waiting inputs.
    pub(crate) fn turn(&mut self, i: usize) {
        let life = self.hosts[i].life.as_mut().unwrap();
        life.turn_due = false;
        for input in std::mem::take(&mut life.inbox) {
            self.take(i, input);
        }
        self.finish_turn(i);
    }

    fn take(&mut self, i: usize, input: Input) {
        let now = self.moment(i);
        let before = self.witness.reserved(&self.hosts[i]);
        let admit = match &input {
            Input::Request(Request::Admit(admit, _)) if !self.hosts[i].has(&admit.session) => Some(admit.clone()),
            _ => None,
        };
        self.hosts[i].with_sessions(now, |sessions, cx| sessions.take(input, cx));
        if let Some(admit) = admit.filter(|admit| self.hosts[i].has(&admit.session)) {
            self.check_admission(i, &admit);
            self.note(i, "admits", &admit.session, || format!("under {}", admit.ballot.term));
        }
        self.witness.check_sums(&self.hosts[i], before);
    }

    /// Persists, gives orders, publishes and replies.
    pub(crate) fn finish_turn(&mut self, i: usize) {
        let crash = self.hosts[i].crashes;
        let host = &mut self.hosts[i];
        let mut written = Ok(());
        let changes = host.life.as_ref().unwrap().sessions.changes().map(|changes| {
            let stored = |record| serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap();
            changes.map(|(id, record)| (*id, record.map(stored))).collect::<Vec<(SessionId, Option<Record>)>>()
        });
        if let Some(changes) = changes {
            if crash == Some(Crash::BeforeWrite) {
                return self.crash(i);
            }
            if host.journal_fails {
                written = Err(sessions::Error::Journal("no space".to_owned().into()));
            } else {
                self.write(i, changes);
            }
            if crash == Some(Crash::AfterWrite) {
                return self.crash(i);
            }
        }
        let now = self.moment(i);
        let Turn { told: _, snapshot, orders, nudge_all, look_at_gpus: _, ready: _, answers, measured: _ } =
            self.hosts[i].with_sessions(now, |sessions, cx| sessions.finish(written, cx));
        for order in orders {
            self.direct_runner(i, order);
        }
        if let Some(snapshot) = snapshot {
            self.hosts[i].life.as_mut().unwrap().snapshot = snapshot;
            self.look_at_watchers(i);
        }
        if nudge_all {
            self.nudge_all(i);
        }
        self.witness.check_running(&self.hosts[i]);
        for answer in answers {
            self.reply(i, answer);
        }
    }

    fn write(&mut self, i: usize, changes: Vec<(SessionId, Option<Record>)>) {
        for (id, record) in changes {
            match record {
                Some(record) => drop(self.hosts[i].disk.insert(id, record)),
                None => {
                    if self.hosts[i].disk.contains_key(&id) {
                        self.check_forgotten(i, &id);
                    }
                    self.hosts[i].disk.remove(&id);
                }
            }
        }
    }

    fn reply(&mut self, i: usize, turned: Turned<Callers>) {
        match turned {
            Turned::Admit(Back::Call(caller), admitted) => {
                let outcome = match admitted {
                    Ok(admitted) => {
                        self.witness.check_durable(&self.hosts[i], &admitted.session.id);
                        self.witness.admitted(&self.hosts[i], &admitted.session.id);
                        Offered::Accepted(Box::new(admitted))
                    }
                    Err(sessions::Error::Stale(stale)) => Offered::Stale(stale),
                    Err(error) => {
                        self.witness.refused += u64::from(matches!(error, sessions::Error::Refused(_)));
                        Offered::Refused(error)
                    }
                };
                self.answer(i, caller, Answer::Host(Box::new(HostAnswer::Admit(outcome))));
            }
            Turned::Find(Back::Call(caller), found) => {
                self.answer(i, caller, Answer::Host(Box::new(HostAnswer::Find(Box::new(found)))));
            }
            Turned::Claim(Back::Call(caller), claimed) => {
                self.answer(i, caller, Answer::Host(Box::new(HostAnswer::Claim(claimed.map(Box::new)))));
            }
            Turned::Command(Back::Call(caller), _) => self.answer(i, caller, Answer::Command),
            Turned::Fence(Back::Report { caller, ballot, have }, fenced) => match fenced {
                Ok(()) => self.wait_for_news(i, caller, &ballot, have),
                Err(stale) => self.answer(i, caller, Answer::Host(Box::new(HostAnswer::Report(Err(stale))))),
            },
            Turned::Report(Back::Runner(session, serial), taken) => self.report_taken(i, session, serial, taken),
            _ => unreachable!("the simulation sends no such request"),
        }
    }

    /// A leader waits for a change.
    fn wait_for_news(&mut self, i: usize, caller: Caller, ballot: &Ballot, have: Option<Have>) {
        self.witness.fenced(i, ballot);
        let until = self.world.now + REPORT_PATIENCE;
        self.hosts[i].life.as_mut().unwrap().watchers.push(Watcher { caller, have, until });
        let at = self.at(i);
        self.put(until, Event::Patience(at));
        self.look_at_watchers(i);
    }

    /// Answers the waiting leaders for which there is a change, or whose wait is over.
    pub(crate) fn look_at_watchers(&mut self, i: usize) {
        let (have, now) = (self.hosts[i].have(), self.world.now);
        let life = self.hosts[i].life.as_mut().unwrap();
        let feed = &life.snapshot.feed;
        let news = |known: Option<Have>| {
            known.is_none_or(|known| known.node != have.node || feed.is_news_to(Some(known.sessions)))
        };
        let due = |watcher: &Watcher| news(watcher.have) || now >= watcher.until;
        let (due, rest) = std::mem::take(&mut life.watchers).into_iter().partition(due);
        life.watchers = rest;
        for Watcher { caller, have: known, .. } in due {
            let now = self.moment(i);
            let profile = self.hosts[i].profile(now);
            let changes = self.hosts[i].life.as_ref().unwrap().snapshot.since(known.map(|have| have.sessions));
            let (images, usage) = (ostler::images::Here::new(), NodeUsage::default());
            let report = HostReport { profile, images, version: have.node, usage, at: now.wall, changes };
            self.answer(i, caller, Answer::Host(Box::new(HostAnswer::Report(Ok(Box::new(report))))));
        }
    }
}
