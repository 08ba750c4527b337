//! Clients, and the nodes that receive their requests and send them on, as `cluster/mod.rs` and `cluster/sessions.rs`
//! do, on virtual time.

use std::time::Duration;

use ostler::placement::Error;
use ostler::sessions::{Admitted, Command};
use ostler::types::{NodeId, SessionId, SessionRequest};

use crate::call::{Answer, Call, Failure, Place, Then};
use crate::cluster::Cluster;
use crate::event::Event;
use crate::host::cluster_name;

const LEADER_PATIENCE: u64 = 6000;
const SLOW: Duration = Duration::from_secs(15);
const AGAIN: u64 = 50;
/// Milliseconds after which a client without an answer retries.
const IMPATIENCE: u64 = 25_000;
/// The percentage of a client's actions that request the session it already has once more.
const REPLAYS: u64 = 40;

/// A client, which retries with its idempotency key until it gets an answer.
pub(crate) struct Client {
    /// `None`: a new key is drawn for every attempt, and the client does not retry.
    pub(crate) key: Option<String>,
    pub(crate) request: SessionRequest,
    /// The number of the attempt in progress. Even: there is none.
    pub(crate) attempt: u64,
    /// The session and its host, once a node has acknowledged it.
    pub(crate) has: Option<(SessionId, NodeId)>,
    /// Whether the client has sent a stop or a remove.
    pub(crate) asked_to_end: bool,
    /// When the last certain answer came.
    pub(crate) answered_at: Option<u64>,
    pub(crate) last_error: Option<Error>,
}

/// A request on the node that received it.
pub(crate) struct Entry {
    pub(crate) client: usize,
    pub(crate) attempt: u64,
    place: Place,
    /// The leader that a node named which does not lead itself.
    named: Option<NodeId>,
    deadline: u64,
    /// The first round of a drawn key: no retry as drawn once a leader may have received it.
    once: bool,
    last: Option<Error>,
}

/// An answer to a client.
#[derive(Debug)]
pub(crate) enum Told {
    Placed(Box<Result<Admitted, Error>>),
    /// The connection broke.
    Lost,
}

impl Client {
    pub(crate) fn new(key: Option<String>, request: SessionRequest) -> Self {
        Self { key, request, attempt: 0, has: None, asked_to_end: false, answered_at: None, last_error: None }
    }
}

impl Cluster {
    /// Adds a client that starts after `wait` milliseconds.
    pub(crate) fn add_client(&mut self, wait: u64, key: Option<String>, request: SessionRequest) {
        self.clients.push(Client::new(key, request));
        self.put_in(wait, Event::Client(self.clients.len() - 1));
    }

    /// Makes every client act within a second.
    pub(crate) fn everybody_acts(&mut self) {
        for c in 0..self.clients.len() {
            self.act_again(c, 1000);
        }
    }

    /// A client acts.
    pub(crate) fn act(&mut self, c: usize) {
        let i = self.random.pick(self.size());
        let replays = self.random.chance(REPLAYS);
        let client = &mut self.clients[c];
        if client.attempt % 2 == 1 {
            // The attempt has no answer, and may never get one.
            client.attempt += 1;
        }
        if let Some((session, node)) = client.has
            && (!replays || client.key.is_none())
        {
            return self.command(c, i, session, &node);
        }
        if !self.is_up(i) {
            return self.put_in(100, Event::Client(c));
        }
        let client = &mut self.clients[c];
        client.attempt += 1;
        let attempt = client.attempt;
        let drawn = client.key.is_none();
        let key = client.key.clone().unwrap_or_else(|| format!("drawn {c} {attempt}"));
        let session = SessionId::of_key(&cluster_name(), &key);
        let place = Place { session, drawn, request: client.request.clone() };
        self.calls += 1;
        let id = self.calls;
        let deadline = self.now() + LEADER_PATIENCE;
        self.note(i, "is asked for", &place.session, || format!("by {c}"));
        let entry = Entry { client: c, attempt, place, named: None, deadline, once: drawn, last: None };
        self.hosts[i].life.as_mut().unwrap().entries.insert(id, entry);
        let at = self.at(i);
        self.put_in(0, Event::Enter(at, id));
        self.put_in(IMPATIENCE, Event::Told(c, attempt, Told::Lost));
    }

    fn command(&mut self, c: usize, i: usize, session: SessionId, node: &NodeId) {
        if self.people_rest {
            return;
        }
        self.act_again(c, 4000);
        let (command, ends) = match self.random.below(8) {
            0 => (Command::Remove, true),
            1 => (Command::Stop, true),
            2 | 3 => (Command::Start, false),
            4 => (Command::Pause, false),
            5 => (Command::Resume, false),
            _ => return,
        };
        self.clients[c].asked_to_end |= ends;
        if self.is_up(i) {
            let to = self.index_of(node);
            self.call(i, to, Call::Command { session, command }, SLOW, Then::Nothing);
        }
    }

    fn act_again(&mut self, c: usize, within: u64) {
        let wait = 100 + self.random.below(within);
        self.put_in(wait, Event::Client(c));
    }

    /// Calls the leader, or waits for one.
    pub(crate) fn enter(&mut self, i: usize, id: u64) {
        let known = self.world.leadership(i).and_then(|known| known.leader);
        let Some(entry) = self.hosts[i].life.as_mut().unwrap().entries.get_mut(&id) else { return };
        match entry.named.take().or(known) {
            Some(leader) => {
                let place = Call::Place(Box::new(entry.place.clone()));
                let to = self.index_of(&leader);
                self.call(i, to, place, SLOW, Then::Entry { entry: id });
            }
            None => self.enter_again(i, id, Error::NotLeader),
        }
    }

    pub(crate) fn entry_answered(&mut self, i: usize, id: u64, answer: Result<Answer, Failure>) {
        let now = self.now();
        let Some(entry) = self.hosts[i].life.as_mut().unwrap().entries.get_mut(&id) else { return };
        match answer {
            Ok(Answer::Place(placed)) => self.leave(i, id, Told::Placed(placed)),
            Ok(Answer::NotLeader(other)) => {
                entry.named = other;
                self.enter_again(i, id, Error::NotLeader);
            }
            Err(Failure::NoAnswer) if entry.once => {
                // A leader may have received the key, so it no longer counts as drawn.
                entry.once = false;
                entry.place.drawn = false;
                entry.deadline = now + LEADER_PATIENCE;
                self.enter(i, id);
            }
            _ => self.enter_again(i, id, Error::NotLeader),
        }
    }

    fn enter_again(&mut self, i: usize, id: u64, last: Error) {
        let now = self.now();
        let entry = self.hosts[i].life.as_mut().unwrap().entries.get_mut(&id).unwrap();
        if now >= entry.deadline {
            return self.leave(i, id, Told::Placed(Box::new(Err(last))));
        }
        entry.last = Some(last);
        let wait = if entry.named.is_some() { 0 } else { AGAIN };
        let at = self.at(i);
        self.put_in(wait, Event::Enter(at, id));
    }

    fn leave(&mut self, i: usize, id: u64, told: Told) {
        if let Some(entry) = self.hosts[i].life.as_mut().unwrap().entries.remove(&id) {
            self.told(entry.client, entry.attempt, told);
        }
    }

    pub(crate) fn told(&mut self, client: usize, attempt: u64, told: Told) {
        self.put_in(1, Event::Told(client, attempt, told));
    }

    /// A client receives the outcome of a request.
    pub(crate) fn hear(&mut self, c: usize, attempt: u64, told: Told) {
        if self.clients[c].attempt != attempt {
            return;
        }
        self.clients[c].attempt += 1;
        let (now, retries) = (self.now(), self.retries_within);
        let client = &mut self.clients[c];
        match told {
            Told::Placed(placed) => match *placed {
                Ok(Admitted { session, .. }) => {
                    client.answered_at = Some(now);
                    client.last_error = None;
                    client.has = Some((session.id, session.node_id));
                    let on = self.index_of(&session.node_id);
                    self.note(on, "has", &session.id, || format!("for {c}"));
                    self.acknowledged(&session.id);
                    self.act_again(c, 4000);
                }
                Err(error) => {
                    let certain = is_certain(&error);
                    if certain {
                        client.answered_at = Some(now);
                    }
                    let asks_again = client.key.is_some();
                    self.say(|| format!("client {c} hears: {error}"));
                    self.clients[c].last_error = Some(error);
                    if asks_again {
                        self.act_again(c, if certain { 4000 } else { retries });
                    }
                }
            },
            Told::Lost if client.key.is_some() => self.act_again(c, retries),
            Told::Lost => {}
        }
    }
}

/// Whether the error means for certain that there is no session.
pub(crate) const fn is_certain(error: &Error) -> bool {
    matches!(
        error,
        Error::NoCapacity(_)
            | Error::ExceedsPhysical(_)
            | Error::Disabled(_)
            | Error::RuntimeUnavailable(_)
            | Error::Host(_)
    )
}
