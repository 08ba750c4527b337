//! The owner of a host's sessions: takes in what waits, and persists, publishes, sets to work and replies.

use ostler::placement::{Have, HostReport};
use ostler::runtime::Container;
use ostler::sessions;
use ostler::types::{Ballot, NodeUsage, SessionId};

use crate::call::{Answer, Caller, Refused};
use crate::cluster::Cluster;
use crate::event::Event;
use crate::host::{Crash, Input, Watcher};
use crate::runner::RETRY;

/// How long a report waits for something to tell.
const REPORT_PATIENCE: u64 = 5000;

/// What is answered once a turn is on disk.
pub(crate) enum Turned {
    Admit(Caller, SessionId, Result<bool, sessions::Error>),
    Command(Caller),
    Fence(Caller, Ballot, Option<Have>, Result<(), ostler::election::Stale>),
    Report(SessionId, u64, Option<Container>),
}

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

    /// The owner of sessions takes in all that waits.
    pub(crate) fn turn(&mut self, i: usize) {
        let life = self.hosts[i].life.as_mut().unwrap();
        life.turn_due = false;
        let inputs = std::mem::take(&mut life.inbox);
        let mut answers = Vec::new();
        for input in inputs {
            self.decide(i, input, &mut answers);
        }
        self.finish_turn(i, answers);
    }

    fn decide(&mut self, i: usize, input: Input, answers: &mut Vec<Turned>) {
        let now = self.moment(i);
        let before = self.witness.reserved(&self.hosts[i]);
        let host = &mut self.hosts[i];
        match input {
            Input::Admit(admit, caller) => {
                let decided = host.decide(now, |book, cx| book.admit(&admit, cx));
                if decided == Ok(false) {
                    host.life.as_mut().unwrap().fresh.insert(admit.session);
                    self.check_admission(i, &admit);
                    self.note(i, "admits", &admit.session, || format!("under {}", admit.ballot.term));
                }
                answers.push(Turned::Admit(caller, admit.session, decided));
            }
            Input::Find(session, fingerprint, caller) => {
                let book = &host.life.as_ref().unwrap().book;
                let found = book.find(&session, &fingerprint).map(|record| record.is_some());
                let found = found.map(|found| found.then(|| host.session(&session, now)).flatten());
                self.answer(i, caller, Answer::Find(Box::new(found)));
            }
            Input::Command(session, command, caller) => {
                let decided = host.decide(now, |book, cx| book.command(&session, &command, cx));
                if decided.is_ok() {
                    self.note(i, "is told", &session, || format!("{command:?}"));
                }
                answers.push(Turned::Command(caller));
            }
            Input::Fence(ballot, have, caller) => {
                let fenced = host.life.as_mut().unwrap().book.fence(&ballot);
                answers.push(Turned::Fence(caller, ballot, have, fenced));
            }
            Input::Report(session, serial, report, known) => {
                host.decide(now, |book, cx| book.report(&session, report.clone(), cx));
                self.note(i, "saw", &session, || format!("{report:?}"));
                answers.push(Turned::Report(session, serial, known));
            }
            Input::Listed(found) => drop(host.decide(now, |book, cx| book.reconcile(found, cx))),
            Input::Tick => host.decide(now, |book, cx| book.expire(cx)),
        }
        self.witness.check_sums(&self.hosts[i], before);
    }

    /// Persist, publish, set to work, reply: in this order.
    pub(crate) fn finish_turn(&mut self, i: usize, answers: Vec<Turned>) {
        let crash = self.hosts[i].crashes;
        let host = &mut self.hosts[i];
        let book = &mut host.life.as_mut().unwrap().book;
        let mut written = Ok(());
        if book.must_commit() {
            if crash == Some(Crash::BeforeWrite) {
                return self.crash(i);
            }
            if host.journal_fails {
                book.roll_back();
                written = Err(sessions::Error::Journal("no space".to_owned()));
            } else {
                let written: Vec<(SessionId, Option<Vec<u8>>)> = book
                    .changes()
                    .map(|(id, record)| (*id, record.map(|record| serde_json::to_vec(record).unwrap())))
                    .collect();
                book.committed();
                for (id, record) in written {
                    match record {
                        Some(json) => drop(self.hosts[i].disk.insert(id.to_string(), json)),
                        None => {
                            if self.hosts[i].disk.contains_key(id.as_str()) {
                                self.check_forgotten(i, id.as_str());
                            }
                            self.hosts[i].disk.remove(id.as_str());
                        }
                    }
                }
            }
            if crash == Some(Crash::AfterWrite) {
                return self.crash(i);
            }
        }
        let now = self.moment(i);
        let changed = self.hosts[i].publish(now);
        for session in &changed {
            self.hosts[i].direct_runner(session);
        }
        self.hosts[i].life.as_mut().unwrap().fresh.clear();
        for session in &changed {
            self.advance(i, session);
        }
        if !changed.is_empty() {
            self.look_at_watchers(i);
        }
        self.witness.check_running(&self.hosts[i]);
        for turned in answers {
            self.reply(i, turned, written.clone());
        }
    }

    fn reply(&mut self, i: usize, turned: Turned, written: Result<(), sessions::Error>) {
        let now = self.moment(i);
        match turned {
            Turned::Admit(caller, session, decided) => {
                let admitted = written.and(decided).map(|replayed| {
                    self.witness.check_durable(&self.hosts[i], &session);
                    let session = self.hosts[i].session(&session, now).unwrap();
                    Box::new(sessions::Admitted { session, replayed })
                });
                self.witness.refused += u64::from(matches!(admitted, Err(sessions::Error::Refused(_))));
                let admitted = admitted.map_err(|error| match error {
                    sessions::Error::Stale(stale) => Refused::Stale(stale),
                    error => Refused::Host(error),
                });
                self.answer(i, caller, Answer::Admit(admitted));
            }
            Turned::Command(caller) => self.answer(i, caller, Answer::Command),
            Turned::Fence(caller, _, _, Err(stale)) => self.answer(i, caller, Answer::Report(Err(stale))),
            Turned::Fence(caller, ballot, have, Ok(())) => {
                self.witness.fenced(i, &ballot);
                let until = self.world.now + REPORT_PATIENCE;
                self.hosts[i].life.as_mut().unwrap().watchers.push(Watcher { caller, have, until });
                let at = self.at(i);
                self.put(until, Event::Patience(at));
                self.look_at_watchers(i);
            }
            Turned::Report(session, serial, known) => {
                if written.is_ok() {
                    self.go_on(i, &session, serial, known);
                } else {
                    let at = self.at(i);
                    self.put_in(RETRY, Event::Retry(at, session, serial));
                }
            }
        }
    }

    /// Tells leaders that wait what is new to them.
    pub(crate) fn look_at_watchers(&mut self, i: usize) {
        let (have, now) = (self.hosts[i].have(), self.world.now);
        let life = self.hosts[i].life.as_mut().unwrap();
        let due = |watcher: &Watcher| watcher.have != Some(have) || now >= watcher.until;
        let (due, rest) = std::mem::take(&mut life.watchers).into_iter().partition(due);
        life.watchers = rest;
        for Watcher { caller, have: known, .. } in due {
            let now = self.moment(i);
            let profile = self.hosts[i].profile(now);
            let changes = self.hosts[i].life.as_ref().unwrap().snapshot.since(known.map(|have| have.sessions));
            let (images, usage) = (std::collections::BTreeSet::new(), NodeUsage::default());
            let report = HostReport { profile, images, version: have.node, usage, at: now.wall, changes };
            self.answer(i, caller, Answer::Report(Ok(Box::new(report))));
        }
    }
}
