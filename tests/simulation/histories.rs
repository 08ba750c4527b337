//! Histories of whole clusters: clients request sessions, under every kind of fault.

use ostler::types::{ClusterMode, Cores, SessionRequest};

use crate::cluster::Cluster;
use crate::each_seed;
use crate::host::Crash;
use crate::network::{Network, Random};
use crate::safety::Witness;

/// Milliseconds of trouble.
const TROUBLE: u64 = 8000;
/// Milliseconds after the last fault within which every key is one session and every client has an answer.
const HEALED: u64 = 30_000;
/// A day, in milliseconds.
const DAY: i64 = 24 * 3600 * 1000;
/// Longer than any memory of a minute lasts.
const LONG_TROUBLE: u64 = 150_000;
/// One in this many seeds has a long history.
const LONG: u64 = 20;
/// One in this many seeds runs twice, to compare.
const LIVED_TWICE: u64 = 10;

/// Milliseconds within which clients retry: at once, or much later.
pub(crate) const OFTEN: u64 = 1000;
const RARELY: u64 = 100_000;

/// The number of lost orders is below this. The leader repeats an order every few seconds, so one arrives well within
/// [`HEALED`].
const ORDERS_LOST: u64 = 6;

/// The faults of a history.
#[derive(Debug, Clone, Copy)]
struct Faults {
    wall_jumps: bool,
    reboots: bool,
    /// Milliseconds between two faults, at most.
    apart: u64,
}

const ALL: Faults = Faults { wall_jumps: true, reboots: true, apart: 1000 };

/// A cluster, and clients that start within `span` milliseconds.
fn begin(seed: u64, quorum: bool, span: u64) -> (Cluster, Random) {
    let mut random = Random(seed ^ 0x0f1ee7);
    let size = 1 + random.pick(5);
    let mode = if quorum {
        ClusterMode::Quorum { expected_nodes: u32::try_from(size).unwrap() }
    } else {
        ClusterMode::Available
    };
    let network = Network::of(&mut random);
    let mut cluster = Cluster::new(size, mode, network, seed);
    if std::env::var_os("OSTLER_LOG").is_some() {
        cluster.log = Some(Vec::new());
    }
    for c in 0..4 + random.below(10) {
        let workspaces = ["desktop", "desktop", "large", "trainer", "trainer", "brief", "frail", "home"];
        let workspace = workspaces[random.pick(workspaces.len())].parse().unwrap();
        let user = ["alice", "bob", "carol"][random.pick(3)].parse().unwrap();
        // Some clients share a key, like one user on two machines.
        let key = match random.below(10) {
            0 | 1 => None,
            2 => Some("shared".to_owned()),
            _ => Some(format!("key {c}")),
        };
        let request = if key.as_deref() == Some("shared") {
            SessionRequest::new("desktop".parse().unwrap(), "alice".parse().unwrap())
        } else {
            SessionRequest::new(workspace, user)
        };
        cluster.add_client(random.below(span), key, request);
    }
    (cluster, random)
}

/// Runs the cluster under faults for `span` milliseconds.
fn trouble(cluster: &mut Cluster, random: &mut Random, span: u64, faults: Faults) {
    let end = cluster.now() + span;
    let mut elections = Witness::default();
    let mut trouble = cluster.now() + random.below(1000);
    while cluster.now() < end {
        if cluster.now() >= trouble {
            make_trouble(cluster, random, faults);
            trouble = cluster.now() + 1 + random.below(faults.apart);
        }
        cluster.step(trouble.min(end));
        elections.look(&cluster.world);
    }
}

fn make_trouble(cluster: &mut Cluster, random: &mut Random, faults: Faults) {
    let size = cluster.size();
    let i = random.pick(size);
    match random.below(24) {
        0..=2 => cluster.world.network.partition(size, random),
        3 | 4 => cluster.world.network.cut.clear(),
        5 => cluster.crash(i),
        6 => {
            let until = cluster.now() + random.below(5000);
            cluster.say(|| format!("n{i} is frozen until {until}"));
            cluster.world.hosts[i].frozen_until = until;
        }
        7 => cluster.world.hosts[i].crashes_at_write = true,
        8 => cluster.hosts[i].crashes = Some(Crash::BeforeWrite),
        9 => cluster.hosts[i].crashes = Some(Crash::AfterWrite),
        10 => cluster.hosts[i].journal_fails ^= true,
        11 => {
            let cut = cluster.world.network.cut.clone();
            cluster.world.network = Network { cut, ..Network::of(random) };
        }
        12 => {
            let days = if random.chance(50) { DAY } else { -DAY };
            cluster.hosts[i].wall_ahead += if faults.wall_jumps { days } else { 0 };
        }
        13 if faults.reboots => cluster.reboot(i),
        14 => {
            // From less than the allocated resources to more than the physical ones.
            let cores = u32::try_from(random.below(7)).unwrap();
            let gpus = u32::try_from(random.below(8)).unwrap();
            let settings = &mut cluster.hosts[i].state.settings;
            (settings.cores_override, settings.gpus_override) = (Cores::whole(cores), gpus);
            if cluster.is_up(i) {
                cluster.look_at_watchers(i);
            }
        }
        15 => cluster.hosts[i].state.settings.enabled ^= true,
        16 => {
            let code = i64::from(random.chance(50));
            cluster.end_by_itself(i, code);
        }
        17 => cluster.hosts[i].failing = random.below(100),
        18 | 19 => cluster.toggle_drain(i, random),
        _ if !cluster.is_up(i) => cluster.start(i),
        _ => {}
    }
    cluster.say(String::new);
}

/// Ends all faults.
fn heal(cluster: &mut Cluster) {
    cluster.say(|| "the faults are over".to_owned());
    cluster.world.network = Network::good();
    if std::mem::replace(&mut cluster.retries_within, OFTEN) != OFTEN {
        // Clients that would retry late retry now.
        cluster.everybody_acts();
    }
    for i in 0..cluster.size() {
        cluster.world.hosts[i].frozen_until = 0;
        cluster.world.hosts[i].crashes_at_write = false;
        let host = &mut cluster.hosts[i];
        host.journal_fails = false;
        host.crashes = None;
        host.failing = 0;
        host.state.settings.enabled = true;
        host.state.drain = None;
        if !cluster.is_up(i) {
            cluster.start(i);
        }
    }
}

fn safe(seed: u64, quorum: bool) {
    let (mut cluster, mut random) = begin(seed, quorum, TROUBLE);
    trouble(&mut cluster, &mut random, TROUBLE, ALL);
}

#[test]
fn in_quorum_mode_a_key_is_never_two_sessions_and_nothing_is_over_committed_or_lost() {
    each_seed(|seed| safe(seed, true));
}

#[test]
fn in_available_mode_nothing_is_over_committed_or_lost() {
    each_seed(|seed| safe(seed, false));
}

#[test]
fn after_any_faults_every_key_is_one_session_and_every_client_has_an_answer() {
    each_seed(|seed| {
        let (mut cluster, mut random) = begin(seed, seed.is_multiple_of(2), TROUBLE);
        trouble(&mut cluster, &mut random, TROUBLE, ALL);
        get_well(&mut cluster);
    });
}

#[test]
fn after_long_outages_every_key_is_one_session_and_every_client_has_an_answer() {
    each_seed(|seed| {
        if seed.is_multiple_of(LONG) {
            let (mut cluster, mut random) = begin(seed, (seed / LONG).is_multiple_of(2), LONG_TROUBLE);
            trouble(&mut cluster, &mut random, LONG_TROUBLE, Faults { apart: 8000, ..ALL });
            get_well(&mut cluster);
        }
    });
}

#[test]
fn a_session_on_a_host_that_was_away_for_minutes_is_not_placed_again() {
    each_seed(|seed| {
        if !seed.is_multiple_of(LONG) {
            return;
        }
        let (mut cluster, mut random) = begin(seed, true, 3 * TROUBLE);
        cluster.world.network = Network::good();
        cluster.retries_within = RARELY;
        let away = random.pick(cluster.size());
        cluster.hosts[away].crashes = Some(Crash::AfterWrite);
        live(&mut cluster, LONG_TROUBLE);
        get_well(&mut cluster);
    });
}

#[test]
fn a_duplicate_is_removed_though_the_first_orders_are_lost() {
    each_seed(|seed| {
        if !seed.is_multiple_of(LIVED_TWICE) {
            return;
        }
        let (mut cluster, mut random) = begin(seed, false, TROUBLE);
        // No later change makes the hosts report the duplicates again.
        let slow = Network { delay: 30, jitter: 100, ..Network::good() };
        cluster.people_rest = true;
        cluster.orders_lost = random.below(ORDERS_LOST);
        for _ in 0..3 {
            cluster.world.network = slow.clone();
            cluster.world.network.partition(cluster.hosts.len(), &mut random);
            live(&mut cluster, random.below(TROUBLE));
            cluster.world.network = slow.clone();
            live(&mut cluster, random.below(3000));
        }
        get_well(&mut cluster);
    });
}

#[test]
fn no_host_rejects_an_offer_since_the_leader_counts_sessions_in_flight() {
    each_seed(|seed| {
        let mut random = Random(seed ^ 0xf117);
        let size = 2 + random.pick(4);
        let mut cluster = Cluster::new(size, ClusterMode::Available, Network::good(), seed);
        cluster.people_rest = true;
        live(&mut cluster, 5000);
        for c in 0..5 * size {
            let request = SessionRequest::new("desktop".parse().unwrap(), "alice".parse().unwrap());
            cluster.add_client(random.below(20), Some(format!("key {c}")), request);
        }
        live(&mut cluster, 2000);
        assert_eq!(cluster.witness.refused, 0, "hosts were offered sessions that do not fit");
    });
}

fn live(cluster: &mut Cluster, span: u64) {
    let end = cluster.now() + span;
    while cluster.step(end) {}
}

/// Ends all faults, and checks what must hold after them.
fn get_well(cluster: &mut Cluster) {
    heal(cluster);
    let healed = cluster.now();
    live(cluster, HEALED);
    assert!(cluster.world.settled().is_some(), "L2: {:#?}", cluster.world.picture());
    cluster.check_one_each();
    cluster.check_nothing_lost();
    cluster.check_answered(healed);
    cluster.check_engines();
}

/// The digest of a history under faults.
fn digest(seed: u64, faults: Faults) -> u64 {
    let (mut cluster, mut random) = begin(seed, (seed / LIVED_TWICE).is_multiple_of(2), TROUBLE);
    if !faults.reboots {
        // Hosts report the wall-clock time at which a session expires, and report it again when the clock jumps: one
        // more message changes when all later ones arrive.
        cluster.workspaces.values_mut().for_each(|workspace| workspace.ttl_seconds = None);
    }
    trouble(&mut cluster, &mut random, TROUBLE, faults);
    cluster.digest()
}

#[test]
fn the_same_seed_is_the_same_history() {
    each_seed(|seed| {
        if seed.is_multiple_of(LIVED_TWICE) {
            assert_eq!(digest(seed, ALL), digest(seed, ALL));
        }
    });
}

/// I10. Without reboots: across a reboot the wall clock shortens what remains of a deadline.
#[test]
fn a_wall_clock_that_jumps_by_days_changes_no_history() {
    each_seed(|seed| {
        if seed.is_multiple_of(LIVED_TWICE) {
            let steady = Faults { wall_jumps: false, reboots: false, ..ALL };
            assert_eq!(digest(seed, Faults { wall_jumps: true, ..steady }), digest(seed, steady));
        }
    });
}
