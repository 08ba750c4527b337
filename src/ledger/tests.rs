//! Literal cases of the rules of admission, and properties that hold for any sequence of requests.

use proptest::prelude::*;

use super::*;
use crate::types::{Bytes, Cores};

fn id(key: impl ToString) -> SessionId {
    SessionId::of_key(&"c".parse().unwrap(), &key.to_string())
}

fn user(name: &str) -> User {
    name.parse().unwrap()
}

const fn request(cores: u32, gib: u64, gpus: u32) -> Resources {
    Resources::new(Cores::whole(cores), Bytes::gib(gib), gpus)
}

fn devices(count: u32) -> Vec<String> {
    (0..count).map(|i| format!("GPU-{i}")).collect()
}

/// A host of `physical`, overridden to `effective`.
struct Host {
    physical: Resources,
    effective: Resources,
    gpus: Vec<String>,
    sharing: GpuSharing,
    ledger: Ledger,
}

impl Host {
    fn new(physical: Resources, effective: Resources) -> Self {
        let gpus = devices(physical.gpus);
        Self { physical, effective, gpus, sharing: GpuSharing::SameUser, ledger: Ledger::default() }
    }

    fn admit(&mut self, key: impl ToString, who: &str, wanted: Resources) -> Result<Vec<String>, Refusal> {
        let capacity = Capacity {
            physical: self.physical,
            effective: self.effective,
            gpus: &self.gpus,
            gpu_sharing: self.sharing,
        };
        self.ledger.admit(&id(key), &user(who), wanted, None, &capacity)
    }

    /// How many equal sessions of one user the host admits before it rejects one, and the reason of the rejection.
    fn fill(&mut self, wanted: Resources) -> (usize, Refusal) {
        for n in 0.. {
            if let Err(refusal) = self.admit(n, "alice", wanted) {
                return (n, refusal);
            }
        }
        unreachable!("a host always fills up")
    }
}

#[test]
fn six_cores_overridden_to_twelve_with_sessions_of_two_and_three_show_five_of_twelve() {
    let mut host = Host::new(request(6, 64, 0), request(12, 64, 0));
    host.admit("a", "alice", request(2, 1, 0)).unwrap();
    host.admit("b", "bob", request(3, 1, 0)).unwrap();
    assert_eq!(host.ledger.allocated().cores, Cores::whole(5));
    assert!(!host.ledger.is_empty());
}

#[test]
fn six_cores_and_six_gib_take_six_until_both_are_overridden() {
    let six = request(6, 6, 0);
    let each = request(1, 1, 0);
    assert_eq!(Host::new(six, six).fill(each).0, 6);
    let (taken, refusal) = Host::new(six, request(12, 6, 0)).fill(each);
    assert_eq!((taken, refusal.reason, refusal.dimension), (6, Reason::NoCapacity, Dimension::MemoryBytes));
    assert_eq!(Host::new(six, request(12, 12, 0)).fill(each).0, 12);
}

#[test]
fn one_gpu_overridden_to_ten_takes_ten_sessions_and_never_one_of_ten() {
    let physical = request(64, 64, 1);
    let mut host = Host::new(physical, request(64, 64, 10));
    let (taken, refusal) = host.fill(request(1, 1, 1));
    assert_eq!((taken, refusal.reason, refusal.dimension), (10, Reason::NoCapacity, Dimension::Gpus));
    let mut host = Host::new(physical, request(64, 64, 10));
    let refusal = host.admit("a", "alice", request(1, 1, 10)).unwrap_err();
    assert_eq!((refusal.reason, refusal.physical), (Reason::ExceedsPhysical, Some(1.0)));
}

#[test]
fn an_override_below_physical_reserves_the_rest() {
    let mut host = Host::new(request(6, 64, 4), request(4, 64, 2));
    assert_eq!(host.fill(request(1, 1, 0)).0, 4);
    let mut host = Host::new(request(64, 64, 4), request(64, 64, 2));
    assert_eq!(host.fill(request(1, 1, 1)).0, 2);
    // A single session, too, gets at most what the host offers, even if the host has more.
    let refusal = Host::new(request(6, 64, 0), request(4, 64, 0)).admit("a", "alice", request(5, 1, 0)).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoCapacity);
}

#[test]
fn an_override_lowered_under_use_admits_nothing_more_and_takes_nothing_away() {
    let mut host = Host::new(request(6, 64, 0), request(6, 64, 0));
    host.admit("a", "alice", request(5, 1, 0)).unwrap();
    host.effective = request(3, 64, 0);
    assert_eq!(host.admit("b", "alice", request(1, 1, 0)).unwrap_err().reason, Reason::NoCapacity);
    assert_eq!(host.ledger.allocated().cores, Cores::whole(5));
    assert_eq!(host.admit("a", "alice", request(5, 1, 0)), Ok(vec![]), "what is held stays held");
}

#[test]
fn a_refusal_shows_the_figures_that_were_compared() {
    let mut host = Host::new(request(6, 6, 0), request(12, 4, 0));
    let shown = |refusal: Refusal| (refusal.reason, refusal.requested, refusal.available, refusal.physical);
    host.admit("a", "alice", request(5, 1, 0)).unwrap();
    // More than the host has: its physical figure, however much is offered and free.
    let too_large = host.admit("b", "alice", request(7, 1, 0)).unwrap_err();
    assert_eq!(shown(too_large), (Reason::ExceedsPhysical, 7.0, Some(6.0), Some(6.0)));
    // No room now: what is offered and not allocated.
    host.admit("c", "alice", request(5, 1, 0)).unwrap();
    let no_room = host.admit("d", "alice", request(3, 1, 0)).unwrap_err();
    assert_eq!(shown(no_room), (Reason::NoCapacity, 3.0, Some(2.0), Some(6.0)));
}

#[test]
fn a_figure_that_is_not_known_admits_nothing_and_is_never_too_small() {
    for unknown in [request(0, 6, 0), request(6, 0, 0), request(0, 0, 0)] {
        // An override does not make physical known.
        let mut host = Host::new(unknown, request(12, 12, 0));
        let refusal = host.admit("a", "alice", request(1, 1, 0)).unwrap_err();
        assert_eq!((refusal.reason, refusal.available, refusal.physical), (Reason::PhysicalUnknown, None, None));
    }
}

#[test]
fn a_gpu_is_never_shared_between_users_unless_the_operator_says_so() {
    let mut host = Host::new(request(64, 64, 2), request(64, 64, 4));
    assert_eq!(host.admit("a", "alice", request(1, 1, 1)), Ok(vec!["GPU-0".to_owned()]));
    assert_eq!(host.admit("b", "bob", request(1, 1, 1)), Ok(vec!["GPU-1".to_owned()]));
    assert_eq!(host.admit("c", "carol", request(1, 1, 1)).unwrap_err().reason, Reason::GpuSharing);
    host.sharing = GpuSharing::None;
    assert_eq!(host.admit("d", "alice", request(1, 1, 1)).unwrap_err().reason, Reason::GpuSharing);
    host.sharing = GpuSharing::Any;
    assert_eq!(host.admit("c", "carol", request(1, 1, 2)), Ok(devices(2)));
}

#[test]
fn a_user_whose_last_session_left_a_gpu_no_longer_shares_it() {
    let mut host = Host::new(request(64, 64, 1), request(64, 64, 2));
    host.sharing = GpuSharing::Any;
    host.admit("a", "alice", request(1, 1, 1)).unwrap();
    host.admit("b", "bob", request(1, 1, 1)).unwrap();
    host.ledger.release(&id("a"));
    host.sharing = GpuSharing::SameUser;
    assert_eq!(host.admit("c", "bob", request(1, 1, 1)), Ok(devices(1)));
}

#[test]
fn no_device_takes_more_sessions_than_its_slots() {
    // Three slots on two devices: the first has two of them, for every user.
    let mut host = Host::new(request(64, 64, 2), request(64, 64, 3));
    assert_eq!(host.admit("a", "bob", request(1, 1, 1)), Ok(vec!["GPU-0".to_owned()]));
    assert_eq!(host.admit("b", "alice", request(1, 1, 1)), Ok(vec!["GPU-1".to_owned()]));
    assert_eq!(host.admit("c", "alice", request(1, 1, 1)).unwrap_err().reason, Reason::GpuSharing);
    assert_eq!(host.admit("d", "bob", request(1, 1, 1)), Ok(vec!["GPU-0".to_owned()]));
}

#[test]
fn a_session_that_starts_again_gets_the_same_gpus_or_none() {
    let mut host = Host::new(request(64, 64, 2), request(64, 64, 2));
    host.admit("a", "alice", request(1, 1, 1)).unwrap();
    host.ledger.release(&id("a"));
    host.admit("b", "bob", request(1, 1, 1)).unwrap();
    let capacity =
        Capacity { physical: host.physical, effective: host.effective, gpus: &host.gpus, gpu_sharing: host.sharing };
    let same = vec!["GPU-0".to_owned()];
    let again = host.ledger.clone().admit(&id("a"), &user("alice"), request(1, 1, 1), Some(&same), &capacity);
    assert_eq!(again.unwrap_err().reason, Reason::NoCapacity);
    host.ledger.release(&id("b"));
    assert_eq!(host.ledger.admit(&id("a"), &user("alice"), request(1, 1, 1), Some(&same), &capacity), Ok(same));
}

#[derive(Debug, Clone)]
enum Op {
    Admit {
        key: u8,
        user: u8,
        wanted: Resources,
    },
    Release {
        key: u8,
    },
    Override {
        effective: Resources,
    },
    Sharing(GpuSharing),
    /// The daemon restarts: the ledger is rebuilt from what was admitted.
    Restart,
}

fn resources(cores: u64, gib: u64, gpus: u32) -> impl Strategy<Value = Resources> {
    (0..=cores, 0..=gib, 0..=gpus)
        .prop_map(|(milli, gib, gpus)| Resources::new(Cores::from_milli(milli), Bytes::gib(gib), gpus))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..24u8, 0..3u8, resources(9000, 9, 5)).prop_map(|(key, user, wanted)| Op::Admit { key, user, wanted }),
        3 => (0..24u8).prop_map(|key| Op::Release { key }),
        1 => resources(20_000, 20, 12).prop_map(|effective| Op::Override { effective }),
        1 => prop_oneof![Just(GpuSharing::None), Just(GpuSharing::SameUser), Just(GpuSharing::Any)].prop_map(Op::Sharing),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    /// I1 and I2 hold at every admission, after any events. No reservation leaks, and the sums stay exact.
    #[test]
    fn no_sequence_of_events_breaks_the_rules_of_admission(ops in proptest::collection::vec(op(), 1..120)) {
        let mut host = Host::new(request(8, 8, 4), request(8, 8, 4));
        let mut held: std::collections::BTreeMap<u8, Reservation> = Default::default();
        for op in ops {
            match op {
                Op::Admit { key, user: who, wanted } => {
                    let name = format!("u{who}");
                    let before = host.ledger.allocated();
                    let admitted = host.admit(key, &name, wanted);
                    if held.contains_key(&key) {
                        prop_assert!(admitted.is_ok());
                        prop_assert_eq!(host.ledger.allocated(), before);
                    } else if let Ok(gpus) = admitted {
                        let after = before.saturating_add(wanted);
                        prop_assert_eq!(wanted.exceeds(&host.physical), None);
                        prop_assert!(wanted.cores.is_zero() || after.cores <= host.effective.cores);
                        prop_assert!(wanted.memory.is_zero() || after.memory <= host.effective.memory);
                        prop_assert!(wanted.gpus == 0 || after.gpus <= host.effective.gpus);
                        let distinct: std::collections::BTreeSet<_> = gpus.iter().collect();
                        prop_assert_eq!(distinct.len(), usize::try_from(wanted.gpus).unwrap());
                        let slots = crate::capacity::effective::slots_per_device(host.physical.gpus, host.effective.gpus);
                        for (gpu, slots) in host.gpus.iter().zip(slots).filter(|(gpu, _)| gpus.contains(gpu)) {
                            prop_assert!(host.ledger.gpu_slots_used(gpu) <= slots, "{gpu} has {slots} slots");
                        }
                        for other in held.values() {
                            let shares = other.gpus.iter().any(|gpu| gpus.contains(gpu));
                            prop_assert!(!shares || host.sharing != GpuSharing::None);
                            prop_assert!(!shares || host.sharing != GpuSharing::SameUser || other.user.as_str() == name);
                        }
                        held.insert(key, Reservation { user: user(&name), resources: wanted, gpus });
                    } else {
                        prop_assert_eq!(host.ledger.allocated(), before, "a refusal changes nothing");
                    }
                }
                Op::Release { key } => prop_assert_eq!(host.ledger.release(&id(key)), held.remove(&key)),
                Op::Override { effective } => host.effective = effective,
                Op::Sharing(sharing) => host.sharing = sharing,
                Op::Restart => {
                    host.ledger = Ledger::default();
                    for (key, reservation) in &held {
                        host.ledger.restore(id(key), reservation.clone());
                    }
                }
            }
            let sum = held.values().fold(Resources::ZERO, |sum, held| sum.saturating_add(held.resources));
            prop_assert_eq!(host.ledger.allocated(), sum);
            prop_assert_eq!(host.ledger.len(), held.len());
            for gpu in &host.gpus {
                let holders = held.values().filter(|held| held.gpus.contains(gpu)).count();
                prop_assert_eq!(host.ledger.gpu_slots_used(gpu), u32::try_from(holders).unwrap());
            }
        }
        for key in held.keys() {
            host.ledger.release(&id(key));
        }
        prop_assert_eq!(host.ledger.allocated(), Resources::ZERO);
        prop_assert!(host.ledger.is_empty());
    }
}
