//! A host as the leader: [`Placement`] decides, and the simulated network carries its calls.

use std::time::Duration;

use ostler::placement::Config;
use ostler::placement::book::Begin;
use ostler::placement::state::{HostAnswer, HostCall, Output, Place, Placement, Unanswered};
use ostler::sessions::Command;
use ostler::types::{BootInstant, SessionId, SessionRequest};

use crate::call::{Answer, Call, Caller, Failure, Then};
use crate::cluster::Cluster;
use crate::event::Event;
use crate::host::cluster_name;

/// How long the mesh waits for an answer, as in `cluster/mesh.rs`.
const REPORT_WITHIN: Duration = Duration::from_secs(8);
const ADMIT_WITHIN: Duration = Duration::from_secs(3);
const QUICK: Duration = Duration::from_secs(2);

/// The placement of one agent.
pub(crate) struct Leader {
    placement: Placement<Caller>,
    /// When its next timer is due.
    wakes_at: Option<BootInstant>,
}

impl Leader {
    pub(crate) fn new(config: Config) -> Self {
        Self { placement: Placement::new(cluster_name(), config), wakes_at: None }
    }
}

impl Cluster {
    /// Runs a decision of a host's placement, and makes the calls and sends the answers that follow.
    fn lead(&mut self, i: usize, decide: impl FnOnce(&mut Placement<Caller>, BootInstant)) {
        let now = self.world.clock(i);
        let host = &mut self.hosts[i];
        let placement = &mut host.life.as_mut().unwrap().leader.placement;
        placement.set_view(host.view.clone());
        decide(placement, now);
        while let Some(output) = self.placement_of(i).poll() {
            match output {
                Output::Ask { call, host, what } => self.ask_host(i, call, self.index_of(&host), what),
                Output::Answer { to, placed } => self.answer(i, to, Answer::Place(placed)),
            }
        }
        let host = &self.hosts[i];
        let offered = host.life.as_ref().unwrap().leader.placement.being_offered();
        self.witness.still_offers(&host.id, &offered.collect());
        let due = self.placement_of(i).poll_timeout();
        let leader = &mut self.hosts[i].life.as_mut().unwrap().leader;
        if let Some(due) = due.filter(|due| leader.wakes_at.is_none_or(|at| *due < at)) {
            leader.wakes_at = Some(due);
            let wait = u64::try_from(due.since(now).as_millis()).unwrap();
            let at = self.at(i);
            self.put_in(wait, Event::Lead(at));
        }
    }

    fn placement_of(&mut self, i: usize) -> &mut Placement<Caller> {
        &mut self.hosts[i].life.as_mut().unwrap().leader.placement
    }

    /// A timer of placement is due.
    pub(crate) fn wake_leader(&mut self, i: usize) {
        let now = self.world.clock(i);
        let leader = &mut self.hosts[i].life.as_mut().unwrap().leader;
        // A timer that was set later may be due sooner, so an earlier one may still be waiting.
        if leader.wakes_at.is_some_and(|at| at <= now) {
            leader.wakes_at = None;
        }
        self.lead(i, Placement::tick);
    }

    /// The host's leadership may have changed.
    pub(crate) fn follow_leadership(&mut self, i: usize) {
        let Some(leadership) = self.world.leadership(i) else { return };
        self.lead(i, |placement, now| placement.follow(leadership.reign, now));
    }

    /// Places a session if this host leads.
    pub(crate) fn place(&mut self, i: usize, caller: Caller, session: SessionId, drawn: bool, request: SessionRequest) {
        let leadership = self.world.leadership(i).unwrap();
        if leadership.reign.is_none() {
            let me = &self.hosts[i].id;
            let other = leadership.leader.filter(|leader| leader != me);
            return self.answer(i, caller, Answer::NotLeader(other));
        }
        let workspace = self.workspaces[&request.workspace].resolve(&request);
        let fingerprint = request.fingerprint();
        let begin = Begin { session, user: request.user, workspace: Ok(workspace), drawn };
        self.lead(i, |placement, now| placement.place(Box::new(Place { begin, fingerprint, by: None }), caller, now));
    }

    fn ask_host(&mut self, i: usize, call: u64, to: usize, what: HostCall) {
        let then = Then::Host { call };
        match what {
            HostCall::Report { ballot, have } => self.call(i, to, Call::Report { ballot, have }, REPORT_WITHIN, then),
            HostCall::Admit(admit) => {
                let reached = self.world.leadership(i).and_then(|known| known.reign).map(|reign| reign.reached.clone());
                self.witness.offers(&admit, reached.unwrap_or_default());
                self.note(i, "offers", &admit.session, || format!("to n{to}, attempt {}", admit.asked.attempt));
                self.call(i, to, Call::Admit(admit), ADMIT_WITHIN, then);
            }
            HostCall::Find { session, fingerprint } => {
                self.call(i, to, Call::Find { session, fingerprint }, QUICK, then);
            }
            HostCall::Claim { ballot, session } => {
                self.note(i, "claims", &session, || format!("on n{to}"));
                self.call(i, to, Call::Claim { ballot, session }, ADMIT_WITHIN, then);
            }
            HostCall::GiveUp { session, claim } => {
                self.note(i, "gives up", &session, || format!("on n{to}"));
                self.call(i, to, Call::Command { session, command: Command::GiveUp { claim } }, QUICK, then);
            }
            HostCall::DropDuplicate(session) => {
                self.note(i, "drops", &session, || format!("on n{to}"));
                if self.orders_lost > 0 {
                    self.orders_lost -= 1;
                    return;
                }
                self.call(i, to, Call::Command { session, command: Command::Duplicate }, QUICK, Then::Nothing);
            }
        }
    }

    /// Passes a host's answer, or its failure, to placement.
    pub(crate) fn host_answered(&mut self, i: usize, call: u64, answer: Result<Answer, Failure>) {
        let answer = match answer {
            Ok(Answer::Host(answer)) => Ok(*answer),
            Ok(Answer::Command) => Ok(HostAnswer::Done),
            Ok(Answer::NotLeader(_) | Answer::Place(_)) => return,
            Err(Failure::Unreachable) => Err(Unanswered::Undelivered("the network drops it".into())),
            Err(Failure::NoAnswer) => Err(Unanswered::NoAnswer("the network drops it".into())),
        };
        self.lead(i, |placement, now| match answer {
            Ok(answer) => placement.answered(call, answer, now),
            Err(why) => placement.unanswered(call, why, now),
        });
    }
}
