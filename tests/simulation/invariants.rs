//! The checks during a history and at its end. The assertions name the invariants by number: I1 reservations fit the
//! host, I2 a GPU has one user, I3 ballots only rise, I5 a key is one session, I6 no acknowledged session is lost, I8
//! every running container has its reservation, I9 nothing is answered or created that is not on disk.

use std::collections::{BTreeMap, BTreeSet};

use ostler::sessions::lifecycle::Wish;
use ostler::sessions::{Admit, Live, Origin, Record, Status};
use ostler::types::{Ballot, ClusterMode, EndReason, NodeId, Resources, SessionId};

use crate::client::is_certain;
use crate::cluster::Cluster;
use crate::host::Host;

/// What the checks have seen so far.
#[derive(Default)]
pub(crate) struct Witness {
    /// The ballot that each host has promised: no lower one may admit on it.
    promised: BTreeMap<usize, Ballot>,
    /// The hosts that a leader reached when it began to offer a session.
    begun: BTreeMap<(SessionId, Ballot), BTreeSet<NodeId>>,
    /// The offers in progress.
    offers: BTreeSet<(SessionId, Ballot)>,
    /// The last decision under which a host has admitted a session durably: ballot and attempt.
    admitted: BTreeMap<SessionId, (Ballot, u32)>,
    /// Whether a drain stopped sessions.
    pub(crate) drained: bool,
    acknowledged: BTreeSet<SessionId>,
    /// Sessions that ended for a known reason and whose records were removed: their keys are free.
    forgotten: BTreeSet<SessionId>,
    pub(crate) ended_by_itself: BTreeSet<SessionId>,
    /// The number of rejected offers.
    pub(crate) refused: u64,
}

impl Witness {
    /// An agent starts. Its host keeps its promises.
    pub(crate) fn starts(&mut self, i: usize, disk: Option<&Ballot>) {
        if let Some(disk) = disk {
            self.fenced(i, disk);
        }
        // A starting agent knows only the ballot on disk, so it must never have promised a higher one.
        assert!(self.promised.get(&i).is_none_or(|promised| disk >= Some(promised)), "I3: n{i} forgot a ballot");
    }

    /// A host has reported to a leader: no earlier leader may place on it any more.
    pub(crate) fn fenced(&mut self, i: usize, ballot: &Ballot) {
        let promised = self.promised.entry(i).or_insert_with(|| *ballot);
        if *promised < *ballot {
            *promised = *ballot;
        }
    }

    /// A leader offers a session to a host.
    pub(crate) fn offers(&mut self, admit: &Admit, reached: BTreeSet<NodeId>) {
        let offer = (admit.session, admit.ballot);
        if self.offers.insert(offer) {
            self.begun.insert(offer, reached);
        }
    }

    /// Keeps the offers in progress of a leader. A later offer of another session counts as a new one.
    pub(crate) fn still_offers(&mut self, leader: &NodeId, sessions: &BTreeSet<SessionId>) {
        self.offers.retain(|(session, ballot)| ballot.node != *leader || sessions.contains(session));
    }

    /// A host answers that it has admitted a session.
    pub(crate) fn admitted(&mut self, host: &Host, session: &SessionId) {
        let Some(record) = host.registry().record(session) else { return };
        let last = self.admitted.entry(*session).or_insert(placed(record));
        *last = (*last).max(placed(record));
    }

    /// The sum of a host's reservations.
    pub(crate) fn reserved(&self, host: &Host) -> Resources {
        let records = host.registry().records().filter(|record| record.is_reserved());
        records.fold(Resources::ZERO, |sum, record| sum.saturating_add(record.origin().workspace.resources()))
    }

    /// I1 and I2, after a decision of a host. `before`: the sum of its reservations before it.
    pub(crate) fn check_sums(&self, host: &Host, before: Resources) {
        let (now, most) = (self.reserved(host), host.effective());
        if now == before {
            return;
        }
        let fine = (now.cores <= before.cores || now.cores <= most.cores)
            && (now.memory <= before.memory || now.memory <= most.memory)
            && (now.gpus <= before.gpus || now.gpus <= most.gpus);
        assert!(fine, "I1: {} holds {now:?} and offers {most:?}", host.state.name);
        let mut users = BTreeMap::new();
        for record in host.registry().records().filter(|record| record.is_reserved()) {
            let asked_by = &record.origin().user;
            for gpu in &record.status().gpu_uuids {
                let user = users.entry(gpu.clone()).or_insert_with(|| asked_by.clone());
                assert_eq!(user, asked_by, "I2: {gpu} is two users'");
            }
        }
    }

    /// I9: a session that is answered, or given to the engine, is on disk.
    pub(crate) fn check_durable(&self, host: &Host, session: &SessionId) {
        assert!(host.disk.contains_key(session), "I9: {session} is not on the disk of {}", host.state.name);
    }

    /// I8: every running container has its reservation. Checked only in the agent's first life, since the engine may
    /// still execute a step that an earlier life requested.
    pub(crate) fn check_running(&self, host: &Host) {
        if host.lives > 1 {
            return;
        }
        for session in host.engine.alive() {
            let reserved = host.registry().record(session).is_some_and(Record::is_reserved);
            assert!(reserved, "I8: {session} runs on {} without a reservation", host.state.name);
        }
    }
}

impl Cluster {
    /// I3 and I5, when a host admits a session that it did not have.
    pub(crate) fn check_admission(&mut self, i: usize, admit: &Admit) {
        let promised = self.witness.promised.get(&i);
        let stale = promised.filter(|promised| **promised > admit.ballot);
        assert!(stale.is_none(), "I3: n{i} admits under {:?} after {stale:?}", admit.ballot);
        let reached = self.witness.begun.get(&(admit.session, admit.ballot));
        for other in (0..self.size()).filter(|other| *other != i) {
            let Some(kept) = self.hosts[other].disk.get(&admit.session) else { continue };
            let id = &self.hosts[other].id;
            // In quorum mode a leader has the reports of a majority; in available mode, of all nodes that it reached.
            let must_know = match self.world.mode {
                ClusterMode::Quorum { .. } => true,
                ClusterMode::Available => {
                    kept.origin().ballot <= admit.ballot && reached.is_some_and(|reached| reached.contains(id))
                }
            };
            // A host that could not start the session keeps its copy until the new copy is reported.
            let ends = !is_live(kept) || kept.live().is_some_and(|live| live.wish == Wish::Remove);
            let handed_over = kept.origin().attempt < admit.asked.attempt && ends;
            let by = &admit.ballot;
            assert!(
                handed_over || !must_know,
                "I5: n{i} admits by {by:?} {}, what n{other} has: {}",
                admit.session,
                shown(kept)
            );
        }
    }

    /// A client was told that its session exists.
    pub(crate) fn acknowledged(&mut self, session: &SessionId) {
        let kept = self.hosts.iter().any(|host| host.disk.contains_key(session));
        assert!(kept, "I6: {session} was acknowledged and is on no disk");
        self.witness.acknowledged.insert(*session);
    }

    /// I6, when a record is removed from the disk: its session must have ended for a known reason.
    pub(crate) fn check_forgotten(&mut self, i: usize, session: &SessionId) {
        let record = &self.hosts[i].disk[session];
        let duplicate = record.status().end_reason == Some(EndReason::Duplicate);
        let rightly = record.live().is_none() && (duplicate || self.ended_rightly(record));
        assert!(rightly, "I6: n{i} forgets {session}: {}", shown(record));
        let last = self.witness.admitted.get(session).is_none_or(|last| placed(record) >= *last);
        if !duplicate && last {
            self.witness.forgotten.insert(*session);
        }
    }

    /// The hosts that have a record of a session on disk, and the records.
    fn copies(&self, session: &SessionId) -> Vec<(usize, &Record)> {
        (0..self.size()).filter_map(|i| Some((i, self.hosts[i].disk.get(session)?))).collect()
    }

    /// I5, some time after the last fault.
    pub(crate) fn check_one_each(&self) {
        let mut live: BTreeMap<SessionId, Vec<usize>> = BTreeMap::new();
        for (i, host) in self.hosts.iter().enumerate() {
            for record in host.disk.values().filter(|record| is_live(record)) {
                live.entry(record.origin().id).or_default().push(i);
            }
        }
        for (session, hosts) in live {
            assert_eq!(hosts.len(), 1, "I5: {session} lives on {hosts:?}");
        }
    }

    /// I6: every acknowledged session exists, or ended for a known reason.
    pub(crate) fn check_nothing_lost(&self) {
        for session in self.witness.acknowledged.difference(&self.witness.forgotten) {
            let copies = self.copies(session);
            assert!(!copies.is_empty(), "I6: {session} was acknowledged and is gone");
            let last = self.witness.admitted.get(session);
            let has_last = last.is_none_or(|last| copies.iter().any(|(_, record)| placed(record) >= *last));
            assert!(has_last, "I6: {session} was admitted by {last:?} and that copy is gone");
            let lives = copies.iter().any(|(_, record)| is_live(record));
            let newest = copies.iter().max_by_key(|(_, record)| placed(record));
            let ended = newest.is_some_and(|(_, record)| self.ended_rightly(record));
            let copies: Vec<String> = copies.iter().map(|(i, record)| format!("n{i} {}", shown(record))).collect();
            assert!(lives || ended, "I6: {session} was acknowledged and ended for no reason: {copies:#?}");
        }
    }

    fn ended_rightly(&self, record: &Record) -> bool {
        let Origin { id, workspace, .. } = record.origin();
        let owners = self.clients.iter().filter(|client| client.has.as_ref().is_some_and(|(session, _)| session == id));
        match record.status().end_reason {
            Some(EndReason::UserStopped) => owners.into_iter().any(|client| client.asked_to_end),
            Some(EndReason::Exited) => self.witness.ended_by_itself.contains(id),
            Some(EndReason::TtlExpired) => workspace.ttl_seconds.is_some(),
            // Others start again, and stay stopped only where their host could not do that.
            Some(EndReason::HostRebooted) => {
                let tried = |live: &Live| live.ended_before == Some(EndReason::HostRebooted);
                workspace.name.as_str() == "frail" || record.live().is_none_or(tried)
            }
            Some(EndReason::Drained) => self.witness.drained,
            Some(EndReason::StartFailed | EndReason::ImageFailed) => true,
            _ => false,
        }
    }

    /// Every client with a key has a session, or a certain answer since `since`.
    pub(crate) fn check_answered(&self, since: u64) {
        for (c, client) in self.clients.iter().enumerate().filter(|(_, client)| client.key.is_some()) {
            let certain = client.last_error.as_ref().is_none_or(is_certain);
            let answered = client.has.is_some() || (certain && client.answered_at.is_some_and(|at| at >= since));
            assert!(answered, "client {c} was not answered: {:?}", client.last_error);
        }
    }

    /// I7, I8: every running container has its reservation, on every host.
    pub(crate) fn check_engines(&self) {
        for host in &self.hosts {
            for session in host.engine.alive() {
                let kept = host.disk.get(session);
                let reserved = kept.is_some_and(Record::is_reserved);
                assert!(reserved, "I8: {session} runs on {} as {:?}", host.state.name, kept.map(shown));
            }
        }
    }
}

/// Whether the session runs or will run on this host. A session that waits for another host will not.
fn is_live(record: &Record) -> bool {
    record.live().is_some_and(|live| !live.status.state.has_ended() && live.unplaced.is_none())
}

fn shown(record: &Record) -> String {
    let Status { state, end_reason, .. } = record.status();
    let life = record.live().map(|live| (live.wish, live.reserved));
    format!("{state} wish and reserved {life:?} reason {end_reason:?} by {:?}", record.origin().ballot)
}

/// Who placed it, and at which attempt: the order of copies of one session.
fn placed(record: &Record) -> (Ballot, u32) {
    let Origin { ballot, attempt, .. } = record.origin();
    (*ballot, *attempt)
}
