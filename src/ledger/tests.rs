//! Literal cases of the rules of admission, and properties that hold for any sequence of requests.

use proptest::prelude::*;

use std::collections::BTreeMap;

use super::*;
use crate::types::{Bytes, Cores, GpuState, NVIDIA_CLASS};

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

const fn asks(user: &User, resources: Resources) -> Request<'_> {
    Request { user, resources, gpu_memory: None, gpu_class: NVIDIA_CLASS, same_gpus: None }
}

/// A host of `physical`, overridden to `effective`.
struct Host {
    physical: Resources,
    effective: Resources,
    gpus: Vec<gpus::Offered>,
    sharing: GpuSharing,
    withheld: Option<&'static str>,
    ledger: Ledger,
}

impl Host {
    fn new(physical: Resources, effective: Resources) -> Self {
        let device = |uuid: String| gpus::Offered {
            uuid,
            class: NVIDIA_CLASS.to_owned(),
            state: GpuState::Ok,
            slots: 0,
            memory: Some(gpus::Memory { total: Bytes::gib(80), free: Bytes::gib(80), foreign: Bytes::ZERO }),
        };
        let gpus = devices(physical.gpus).into_iter().map(device).collect();
        let ledger = Ledger::default();
        let mut host = Self { physical, effective, gpus, sharing: GpuSharing::SameUser, withheld: None, ledger };
        host.offer(effective);
        host
    }

    /// Changes the override.
    fn offer(&mut self, effective: Resources) {
        self.effective = effective;
        let slots = crate::capacity::effective::slots_per_device(self.physical.gpus, effective.gpus);
        self.gpus.iter_mut().zip(slots).for_each(|(gpu, slots)| gpu.slots = slots);
    }

    fn capacity(&self) -> Capacity<'_> {
        Capacity {
            physical: self.physical,
            effective: self.effective,
            gpus: &self.gpus,
            gpu_sharing: self.sharing,
            gpus_withheld: self.withheld,
        }
    }

    fn admit(&mut self, key: impl ToString, who: &str, wanted: Resources) -> Result<Vec<String>, Refusal> {
        self.ask(key, asks(&user(who), wanted))
    }

    fn ask(&mut self, key: impl ToString, request: Request<'_>) -> Result<Vec<String>, Refusal> {
        let mut ledger = std::mem::take(&mut self.ledger);
        let admitted = ledger.admit(&id(key), request, &self.capacity());
        self.ledger = ledger;
        admitted
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
    host.offer(request(3, 64, 0));
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
    let (alice, same) = (user("alice"), vec!["GPU-0".to_owned()]);
    let again = || Request { same_gpus: Some(&same), ..asks(&alice, request(1, 1, 1)) };
    assert_eq!(host.ask("a", again()).unwrap_err().reason, Reason::NoCapacity);
    host.ledger.release(&id("b"));
    assert_eq!(host.ask("a", again()), Ok(same.clone()));
}

#[test]
fn a_session_that_may_still_be_on_its_gpus_keeps_them_and_nothing_else() {
    let mut host = Host::new(request(4, 4, 1), request(4, 4, 1));
    host.admit("a", "alice", request(4, 4, 1)).unwrap();
    let left = host.ledger.release(&id("a")).unwrap();
    host.ledger.restore_leaving(id("a"), left);
    assert_eq!((host.ledger.allocated(), host.ledger.len()), (request(0, 0, 1), 0));
    assert_eq!(host.admit("b", "bob", request(1, 1, 0)), Ok(vec![]));
    assert_eq!(host.admit("c", "bob", request(1, 1, 1)).unwrap_err().reason, Reason::NoCapacity);
    // It may come back to them itself; a refusal leaves them as they are.
    assert_eq!(host.admit("a", "alice", request(4, 1, 1)).unwrap_err().dimension, Dimension::Cores);
    assert_eq!(host.ledger.gpu_held("GPU-0").slots, 1);
    assert_eq!(host.admit("a", "alice", request(1, 1, 1)), Ok(devices(1)));
    assert_eq!((host.ledger.gpu_held("GPU-0").slots, host.ledger.free_gpus(&id("a"))), (1, None));
}

#[test]
fn a_device_that_takes_no_sessions_gives_its_slots_to_no_other() {
    let mut host = Host::new(request(64, 64, 2), request(64, 64, 4));
    for key in ["a", "b"] {
        host.admit(key, "alice", request(1, 1, 1)).unwrap();
    }
    host.gpus[0].state = GpuState::Lost;
    assert_eq!(host.ledger.offered_gpus(&host.capacity()), 3, "the one in use there, and two of the other");
    assert_eq!(host.admit("c", "alice", request(1, 1, 1)), Ok(vec!["GPU-1".to_owned()]));
    let refusal = host.admit("d", "alice", request(1, 1, 1)).unwrap_err();
    assert_eq!((refusal.reason, refusal.message.as_deref()), (Reason::NoCapacity, Some("1 of 2 GPUs is lost")));
    let refusal = host.admit("d", "alice", request(1, 1, 2)).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoCapacity, "a lost GPU may return");
    assert_eq!(host.admit("d", "alice", request(1, 1, 3)).unwrap_err().reason, Reason::ExceedsPhysical);
    host.gpus[0].state = GpuState::Ok;
    assert_eq!(host.admit("d", "alice", request(1, 1, 1)), Ok(vec!["GPU-0".to_owned()]));
}

#[test]
fn a_host_that_withholds_its_gpus_says_why() {
    let mut host = Host::new(request(64, 64, 1), request(64, 64, 1));
    host.withheld = Some("the driver does not answer");
    let refusal = host.admit("a", "alice", request(1, 1, 1)).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoCapacity);
    assert_eq!(refusal.message.as_deref(), Some("the driver does not answer"));
    assert_eq!(host.admit("a", "alice", request(1, 1, 0)), Ok(vec![]));
}

#[test]
fn declared_memory_adds_up_beside_what_others_use_and_must_be_free_now() {
    let mut host = Host::new(request(64, 64, 1), request(64, 64, 9));
    let alice = user("alice");
    let wants = |gib| Request { gpu_memory: Some(Bytes::gib(gib)), ..asks(&alice, request(1, 1, 1)) };
    let reason = |host: &mut Host, gib| {
        let refusal = host.ask("x", wants(gib)).unwrap_err();
        (refusal.reason, refusal.dimension, refusal.available.map(|bytes| bytes / f64::from(1 << 30)))
    };
    let memory = |free, foreign| {
        Some(gpus::Memory { total: Bytes::gib(80), free: Bytes::gib(free), foreign: Bytes::gib(foreign) })
    };
    assert_eq!(reason(&mut host, 81), (Reason::ExceedsPhysical, Dimension::GpuMemoryBytes, Some(80.0)));
    host.ask("a", wants(50)).unwrap();
    assert_eq!(reason(&mut host, 31), (Reason::NoCapacity, Dimension::GpuMemoryBytes, Some(30.0)));
    host.gpus[0].memory = memory(70, 10);
    assert_eq!(reason(&mut host, 21), (Reason::NoCapacity, Dimension::GpuMemoryBytes, Some(20.0)));
    host.gpus[0].memory = memory(15, 0);
    assert_eq!(reason(&mut host, 16), (Reason::NoCapacity, Dimension::GpuMemoryBytes, Some(15.0)));
    // A session that declares nothing is not measured.
    host.admit("b", "alice", request(1, 1, 1)).unwrap();
    host.gpus[0].memory = None;
    assert_eq!(reason(&mut host, 1), (Reason::GpuMemoryUnknown, Dimension::GpuMemoryBytes, None));
    host.ledger.release(&id("a"));
    assert_eq!(host.ledger.gpu_held("GPU-0").declared, Bytes::ZERO);
}

#[test]
fn a_session_gets_devices_of_its_class() {
    let mut host = Host::new(request(64, 64, 2), request(64, 64, 2));
    let alice = user("alice");
    let wants = |class, gpus| Request { gpu_class: class, ..asks(&alice, request(1, 1, gpus)) };
    assert_eq!(host.ask("a", wants("amd.com/gpu", 1)).unwrap_err().reason, Reason::GpuClass);
    host.gpus[1].class = "amd.com/gpu".to_owned();
    assert_eq!(host.ask("a", wants("amd.com/gpu", 2)).unwrap_err().reason, Reason::ExceedsPhysical);
    assert_eq!(host.ask("a", wants("amd.com/gpu", 1)), Ok(vec!["GPU-1".to_owned()]));
}

#[test]
fn the_first_reason_against_a_device_is_its_state() {
    use crate::gpu::device::{Device, Presence};
    let device = Device {
        presence: Presence::Lost { since: crate::types::Timestamp::default(), why: "gone".to_owned() },
        failing: Some("XID 79".to_owned()),
        unlisted: Some("no CDI".to_owned()),
        cordoned: true,
        hot: true,
        ..Device::new("GPU-0".to_owned(), 0, "m".to_owned())
    };
    let state = |device: &Device, quarantined, foreign| gpus::judge(device, quarantined, foreign).0;
    assert_eq!(state(&device, Some("q"), Some("f")), GpuState::Lost);
    let device = Device { presence: Presence::Present, ..device };
    assert_eq!(state(&device, Some("q"), Some("f")), GpuState::Failing);
    let device = Device { failing: None, ..device };
    assert_eq!(state(&device, Some("q"), Some("f")), GpuState::Unlisted);
    let device = Device { unlisted: None, ..device };
    assert_eq!(state(&device, Some("q"), Some("f")), GpuState::Quarantined);
    assert_eq!(state(&device, None, Some("f")), GpuState::Cordoned);
    let device = Device { cordoned: false, ..device };
    assert_eq!(state(&device, None, Some("f")), GpuState::Hot);
    let mut device = Device { hot: false, ..device };
    device.reading.asleep = true;
    assert_eq!(state(&device, None, Some("f")), GpuState::Foreign);
    assert_eq!(state(&device, None, None), GpuState::Asleep);
    device.reading.asleep = false;
    assert_eq!(state(&device, None, None), GpuState::Ok);
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
    /// Something happens to a device.
    Device {
        index: usize,
        state: GpuState,
    },
    /// A session ends and may still be on its GPUs.
    Leave {
        key: u8,
    },
    Left {
        key: u8,
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
        2 => (0..4usize, prop::sample::select(GpuState::ALL)).prop_map(|(index, state)| Op::Device { index, state }),
        2 => (0..24u8).prop_map(|key| Op::Leave { key }),
        2 => (0..24u8).prop_map(|key| Op::Left { key }),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    /// I1 and I2 hold at every admission, after any events. No reservation leaks, and the sums stay exact.
    #[test]
    fn no_sequence_of_events_breaks_the_rules_of_admission(ops in proptest::collection::vec(op(), 1..120)) {
        let mut host = Host::new(request(8, 8, 4), request(8, 8, 4));
        let mut held: BTreeMap<u8, Reservation> = BTreeMap::new();
        let mut leaving: BTreeMap<u8, Reservation> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Admit { key, user: who, wanted } => {
                    let name = format!("u{who}");
                    let before = host.ledger.allocated();
                    let offered = host.ledger.offered_gpus(&host.capacity());
                    let admitted = host.admit(key, &name, wanted);
                    if held.contains_key(&key) {
                        prop_assert!(admitted.is_ok());
                        prop_assert_eq!(host.ledger.allocated(), before);
                    } else if let Ok(gpus) = admitted {
                        let own = leaving.remove(&key).map_or(Resources::ZERO, |left| left.resources);
                        let after = before.saturating_sub(own).saturating_add(wanted);
                        prop_assert_eq!(wanted.exceeds(&host.physical), None);
                        prop_assert!(wanted.cores.is_zero() || after.cores <= host.effective.cores);
                        prop_assert!(wanted.memory.is_zero() || after.memory <= host.effective.memory);
                        prop_assert!(wanted.gpus == 0 || after.gpus <= offered);
                        let distinct: std::collections::BTreeSet<_> = gpus.iter().collect();
                        prop_assert_eq!(distinct.len(), usize::try_from(wanted.gpus).unwrap());
                        for gpu in host.gpus.iter().filter(|gpu| gpus.contains(&gpu.uuid)) {
                            prop_assert!(host.ledger.gpu_held(&gpu.uuid).slots <= gpu.slots, "{gpu:?}");
                            prop_assert!(gpu.state.is_usable(), "{gpu:?}");
                        }
                        for other in held.values().chain(leaving.values()) {
                            let shares = other.gpus.iter().any(|gpu| gpus.contains(gpu));
                            prop_assert!(!shares || host.sharing != GpuSharing::None);
                            prop_assert!(!shares || host.sharing != GpuSharing::SameUser || other.user.as_str() == name);
                        }
                        let gpu_memory = Bytes::ZERO;
                        held.insert(key, Reservation { user: user(&name), resources: wanted, gpus, gpu_memory });
                    } else {
                        prop_assert_eq!(host.ledger.allocated(), before, "a refusal changes nothing");
                    }
                }
                Op::Release { key } => prop_assert_eq!(host.ledger.release(&id(key)), held.remove(&key)),
                Op::Leave { key } => {
                    if let Some(left) = host.ledger.release(&id(key)) {
                        held.remove(&key);
                        host.ledger.restore_leaving(id(key), left.clone());
                        let resources = Resources { gpus: left.resources.gpus, ..Resources::ZERO };
                        if !left.gpus.is_empty() {
                            leaving.insert(key, Reservation { resources, ..left });
                        }
                    }
                }
                Op::Left { key } => prop_assert_eq!(host.ledger.free_gpus(&id(key)), leaving.remove(&key)),
                Op::Override { effective } => host.offer(effective),
                Op::Device { index, state } => host.gpus[index].state = state,
                Op::Sharing(sharing) => host.sharing = sharing,
                Op::Restart => {
                    host.ledger = Ledger::default();
                    for (key, reservation) in &held {
                        host.ledger.restore(id(key), reservation.clone());
                    }
                    for (key, left) in &leaving {
                        host.ledger.restore_leaving(id(key), left.clone());
                    }
                }
            }
            let all = || held.values().chain(leaving.values());
            let sum = all().fold(Resources::ZERO, |sum, held| sum.saturating_add(held.resources));
            prop_assert_eq!(host.ledger.allocated(), sum);
            prop_assert_eq!(host.ledger.len(), held.len());
            for gpu in &host.gpus {
                let holders = all().filter(|held| held.gpus.contains(&gpu.uuid)).count();
                prop_assert_eq!(host.ledger.gpu_held(&gpu.uuid).slots, u32::try_from(holders).unwrap());
            }
            let offered = host.ledger.offered_gpus(&host.capacity());
            prop_assert!(offered <= host.effective.gpus);
            prop_assert!(offered == host.effective.gpus || !host.gpus.iter().all(|gpu| gpu.state.is_usable()));
        }
        for key in held.keys().chain(leaving.keys()) {
            host.ledger.release(&id(key));
            host.ledger.free_gpus(&id(key));
        }
        prop_assert_eq!(host.ledger.allocated(), Resources::ZERO);
        prop_assert!(host.ledger.is_empty());
    }
}
