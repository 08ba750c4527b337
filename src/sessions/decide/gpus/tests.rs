//! GPUs of sessions: concrete cases, and what holds after any events.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::gpu::device::Presence;
use crate::observe::view;
use crate::placement::filter::{self, HostFigures};
use crate::runtime::Health;
use crate::sessions::decide::testing::{Host, admit, command, exit, id, live, offer, record, run, saw, workspace};
use crate::sessions::lifecycle::Sight;
use crate::sessions::{Command, Snapshot};
use crate::types::{
    Ballot, Cores, GpuSharing, NodeId, NodeProfile, NodeReason, Reason, RuntimeKind, SessionState, Timestamp, User,
    Workspace,
};

/// A host of many cores with these GPUs, whose driver lists processes.
fn host(uuids: &[&str]) -> Host {
    let mut host = Host::new();
    host.report.physical = Resources::new(Cores::whole(640), Bytes::gib(640), 0);
    let devices = uuids.iter().zip(0..).map(|(uuid, index)| device(uuid, index)).collect();
    change(&mut host, |gpus| gpus.devices = devices);
    host
}

fn device(uuid: &str, index: u32) -> Device {
    let mut device = Device::new(uuid.to_owned(), index, "L4".to_owned());
    device.memory_total = Some(Bytes::gib(24));
    device.reading.memory_free = Some(Bytes::gib(24));
    device.processes = Some(Processes::default());
    device
}

fn change(host: &mut Host, change: impl FnOnce(&mut crate::gpu::Snapshot)) {
    change(Arc::make_mut(&mut host.report.gpus));
    host.report.physical.gpus = u32::try_from(host.report.gpus.devices.len()).unwrap();
}

fn change_device(host: &mut Host, index: usize, what: impl FnOnce(&mut Device)) {
    change(host, |gpus| what(&mut gpus.devices[index]));
}

/// The driver was asked now, and lists these processes on the first device.
fn look(host: &mut Host, list: Vec<Process>, memory_used: Option<Bytes>) {
    let now = host.now.boot;
    change(host, |gpus| {
        gpus.devices[0].processes = Some(Processes { list, memory_used });
        gpus.devices[0].processes_at = Some(now);
    });
    host.decide(|registry, cx| registry.gpus_seen(cx));
}

fn pass(host: &mut Host, seconds: u64) {
    host.now = host.now.plus(Duration::from_secs(seconds));
    host.decide(|registry, cx| registry.gpus_seen(cx));
}

fn process(pid: u32, marks: &str, memory: Option<Bytes>) -> Process {
    Process { pid, command: "python".to_owned(), memory, marks: vec![marks.to_owned()] }
}

fn on_a_gpu() -> Workspace {
    Workspace { gpus: 1, ports: Vec::new(), ..workspace() }
}

/// A host with one session that runs on its one GPU, in the container `c0ffee`.
fn with_session() -> Host {
    let mut host = host(&["GPU-1"]);
    admit(&mut host, "a", on_a_gpu()).unwrap();
    let created = super::super::Report::Created { container_id: "c0ffee".to_owned() };
    host.decide(|registry, cx| registry.report(&id("a"), created, cx));
    saw(&mut host, "a", Sight::Running(run(1)));
    host
}

/// Stops the session and sees it end.
fn end(host: &mut Host) {
    command(host, "a", Command::Stop).unwrap();
    pass(host, 1);
    saw(host, "a", Sight::Stopped(Some(exit(1, 0))));
}

fn refused(host: &mut Host, key: &str, workspace: Workspace) -> NodeReason {
    match admit(host, key, workspace) {
        Err(Error::Refused(reason)) => *reason,
        other => panic!("it should be refused: {other:?}"),
    }
}

fn state(host: &mut Host) -> (GpuState, Option<String>) {
    host.decide(|registry, cx| {
        let device = &cx.report.gpus.devices[0];
        judge(device, registry.quarantine(device, cx).as_deref(), registry.foreign_use(&device.uuid).as_deref())
    })
}

#[test]
fn a_gpu_is_free_once_the_driver_was_asked_after_the_end_and_lists_no_process_of_the_session() {
    let mut host = with_session();
    end(&mut host);
    assert_eq!(live(&host, "a").status.state, SessionState::Stopped);
    assert_eq!(host.registry.ledger().allocated(), Resources { gpus: 1, ..Resources::ZERO }, "its memory is free");
    assert_eq!(refused(&mut host, "b", on_a_gpu()).reason, Reason::NoCapacity);
    assert!(host.decide(|registry, cx| registry.is_leaving_gpus(cx)), "the driver is to be asked");

    // A look that began before the end, or at the same moment, says nothing.
    let now = host.now;
    look(&mut host, Vec::new(), None);
    assert_eq!(refused(&mut host, "b", on_a_gpu()).reason, Reason::NoCapacity);
    host.now = now.plus(Duration::from_secs(1));
    look(&mut host, vec![process(7, "12:devices:/docker/c0ffee", None)], None);
    assert_eq!(refused(&mut host, "b", on_a_gpu()).reason, Reason::NoCapacity);
    pass(&mut host, 1);
    look(&mut host, vec![process(7, "0::/system.slice/docker-beef.scope", None)], None);
    assert_eq!(admit(&mut host, "b", on_a_gpu()), Ok(false));
    assert!(!host.decide(|registry, cx| registry.is_leaving_gpus(cx)));
}

#[test]
fn a_process_that_stays_puts_its_gpu_in_quarantine_until_it_is_gone() {
    let mut host = with_session();
    Arc::make_mut(&mut host.report.gpus).devices.push(device("GPU-2", 1));
    host.report.physical.gpus = 2;
    host.node.settings.gpus_override = 4;
    end(&mut host);
    pass(&mut host, 29);
    look(&mut host, vec![process(7, "/docker/c0ffee", None)], None);
    assert_eq!(state(&mut host).0, GpuState::Ok, "it has the slot, and others may still come beside it");
    pass(&mut host, 1);
    let (quarantined, why) = state(&mut host);
    assert_eq!(quarantined, GpuState::Quarantined);
    let why = why.unwrap();
    assert!(why.contains("process 7 (python)") && why.contains(id("a").as_str()), "{why}");
    assert_eq!(admit(&mut host, "b", on_a_gpu()), Ok(false));
    assert_eq!(live(&host, "b").status.gpu_uuids, ["GPU-2"]);
    assert_eq!(
        refused(&mut host, "c", Workspace { gpus: 2, ..on_a_gpu() }).message.unwrap(),
        "1 of 2 GPUs is quarantined"
    );
    let refusal = command(&mut host, "a", Command::Start).unwrap_err();
    assert!(matches!(refusal, Error::Refused(_)), "nor does the session itself get it: {refusal}");

    pass(&mut host, 600);
    look(&mut host, Vec::new(), None);
    assert_eq!(state(&mut host).0, GpuState::Ok);
    assert_eq!(admit(&mut host, "c", Workspace { gpus: 2, ..on_a_gpu() }), Ok(false));
}

#[test]
fn each_gpu_of_a_session_is_free_as_soon_as_it_was_left() {
    let mut host = host(&["GPU-1", "GPU-2"]);
    admit(&mut host, "a", Workspace { gpus: 2, ..on_a_gpu() }).unwrap();
    saw(&mut host, "a", Sight::Running(run(1)));
    end(&mut host);
    pass(&mut host, 1);
    let now = host.now.boot;
    change_device(&mut host, 1, |device| device.processes_at = Some(now));
    look(&mut host, vec![process(7, id("a").as_str(), None)], None);
    assert_eq!(host.registry.ledger().allocated().gpus, 1);
    assert_eq!(admit(&mut host, "b", on_a_gpu()), Ok(false));
    assert_eq!(live(&host, "b").status.gpu_uuids, ["GPU-2"]);
}

#[test]
fn a_driver_that_does_not_answer_is_no_proof() {
    let mut host = with_session();
    end(&mut host);
    pass(&mut host, 60);
    let (quarantined, why) = state(&mut host);
    assert_eq!(quarantined, GpuState::Quarantined);
    assert!(why.unwrap().contains("the driver does not say"));
    assert!(!host.decide(|registry, cx| registry.is_leaving_gpus(cx)), "no more often than otherwise");
}

#[test]
fn without_a_list_of_processes_the_word_of_the_runtime_counts() {
    let gone = |device: &mut Device| {
        device.presence = Presence::Lost { since: Timestamp::default(), why: "gone".to_owned() };
    };
    let unlisted = |device: &mut Device| {
        (device.processes, device.processes_at) = (None, Some(BootInstant::from_millis(1)));
    };
    for what in [unlisted, gone] {
        let mut host = with_session();
        change_device(&mut host, 0, what);
        end(&mut host);
        assert_eq!(host.registry.ledger().allocated(), Resources::ZERO);
        // The same if the list goes away while the session waits for it.
        let mut host = with_session();
        end(&mut host);
        change_device(&mut host, 0, what);
        pass(&mut host, 1);
        assert_eq!(host.registry.ledger().allocated(), Resources::ZERO);
    }
}

#[test]
fn what_is_left_on_a_gpu_outlives_the_container_the_record_and_the_agent() {
    let mut host = with_session();
    let stays = || vec![process(7, "/docker/c0ffee", None)];
    end(&mut host);
    command(&mut host, "a", Command::Remove).unwrap();
    saw(&mut host, "a", Sight::Gone);
    pass(&mut host, 7200);
    look(&mut host, stays(), None);
    host.decide(|registry, cx| registry.expire(cx));
    assert!(record(&host, "a").live().is_none(), "what is remembered of it stays longer than it would");
    host.restart();
    host.decide(|registry, cx| registry.rebase_deadlines(cx));
    // The driver is not asked at once, which proves nothing.
    change_device(&mut host, 0, |device| (device.processes, device.processes_at) = (None, None));
    pass(&mut host, 1);
    assert_eq!(refused(&mut host, "b", on_a_gpu()).reason, Reason::NoCapacity);
    look(&mut host, stays(), None);
    assert_eq!(refused(&mut host, "b", on_a_gpu()).reason, Reason::NoCapacity);
    pass(&mut host, 31);
    look(&mut host, stays(), None);
    assert_eq!(state(&mut host).0, GpuState::Quarantined);
    pass(&mut host, 1);
    look(&mut host, Vec::new(), None);
    host.decide(|registry, cx| registry.expire(cx));
    assert!(host.registry.record(&id("a")).is_none());
    assert_eq!(admit(&mut host, "b", on_a_gpu()), Ok(false));
}

#[test]
fn a_write_that_fails_leaves_the_gpu_with_the_session() {
    let mut host = with_session();
    end(&mut host);
    pass(&mut host, 1);
    let now = host.now.boot;
    change_device(&mut host, 0, |device| device.processes_at = Some(now));
    host.decide_unwritten(|registry, cx| registry.gpus_seen(cx));
    host.registry.roll_back();
    assert_eq!(host.registry.ledger().allocated().gpus, 1);
    pass(&mut host, 1);
    assert_eq!(host.registry.ledger().allocated().gpus, 0, "it is tried again");
}

#[test]
fn a_session_that_starts_again_at_once_does_not_wait_for_the_driver() {
    let mut host = with_session();
    end(&mut host);
    command(&mut host, "a", Command::Start).unwrap();
    assert_eq!((host.registry.ledger().allocated().gpus, &live(&host, "a").status.gpus_leaving), (1, &None));
}

#[test]
fn memory_that_others_use_keeps_sessions_off_above_the_limit() {
    let mut host = with_session();
    let ours = || process(7, "/docker/c0ffee", Some(Bytes::gib(4)));
    look(&mut host, vec![ours(), process(9, "/user.slice", Some(Bytes::gib(1)))], Some(Bytes::gib(5)));
    assert_eq!(state(&mut host), (GpuState::Ok, None), "1 GiB is the limit");
    pass(&mut host, 10);
    look(&mut host, vec![ours(), process(9, "/user.slice", None)], Some(Bytes::gib(6)));
    let (foreign, why) = state(&mut host);
    assert_eq!(foreign, GpuState::Foreign);
    assert_eq!(why.unwrap(), "2 GiB of its memory is used by 9 (python), more than gpu.max_foreign_memory (1 GiB)");
    // What a session of ours uses is not known: then neither is what others use.
    pass(&mut host, 10);
    look(&mut host, vec![process(7, "/docker/c0ffee", None), process(9, "/", None)], Some(Bytes::gib(20)));
    assert_eq!(state(&mut host), (GpuState::Ok, None));
    host.registry.config.max_foreign_gpu_memory = Bytes::ZERO;
    assert_eq!(state(&mut host).0, GpuState::Foreign, "with a limit of 0, any process counts");
    let gpus = host.decide(|registry, cx| registry.gpus(cx));
    assert_eq!(gpus.devices["GPU-1"].foreign, None);
}

#[test]
fn a_session_that_uses_more_than_it_declared_is_told_after_thirty_seconds_and_goes_on() {
    let mut host = host(&["GPU-1"]);
    admit(&mut host, "a", Workspace { gpu_memory_bytes: Some(Bytes::gib(8)), ..on_a_gpu() }).unwrap();
    let uses = |gib| vec![process(7, id("a").as_str(), Some(Bytes::gib(gib)))];
    let told = |host: &mut Host| host.decide(|registry, cx| registry.gpus(cx).exceeded);
    look(&mut host, uses(9), None);
    pass(&mut host, 29);
    look(&mut host, uses(10), None);
    assert_eq!(told(&mut host), []);
    pass(&mut host, 1);
    let (session, gpu) = (id("a"), "GPU-1".to_owned());
    assert_eq!(told(&mut host), [Exceeded { session, gpu, declared: Bytes::gib(8), used: Bytes::gib(10) }]);
    pass(&mut host, 1);
    look(&mut host, uses(8), None);
    assert_eq!(told(&mut host), []);
    assert!(live(&host, "a").reserved);
}

#[test]
fn a_lost_gpu_is_told_to_its_sessions_and_takes_no_others_until_it_returns() {
    let mut host = with_session();
    host.node.settings.gpus_override = 2;
    host.registry.take_unpublished();
    change_device(&mut host, 0, |device| {
        device.presence = Presence::Lost { since: Timestamp::default(), why: "gone".to_owned() };
    });
    pass(&mut host, 1);
    assert_eq!(host.registry.take_unpublished(), [id("a")].into());
    assert_eq!(host.registry.lost_gpus(record(&host, "a")).collect::<Vec<_>>(), ["GPU-1"]);
    assert!(live(&host, "a").reserved);
    assert_eq!(refused(&mut host, "b", on_a_gpu()).reason, Reason::NoCapacity);
    change_device(&mut host, 0, |device| device.presence = Presence::Present);
    pass(&mut host, 1);
    assert_eq!(host.registry.lost_gpus(record(&host, "a")).count(), 0);
    assert_eq!(admit(&mut host, "b", on_a_gpu()), Ok(false));
}

/// Something that happens on a host with GPUs.
#[derive(Debug, Clone)]
enum Op {
    Offer {
        key: u8,
        user: u8,
        gpus: u32,
        memory: Option<u64>,
        leader: u8,
    },
    Stop(u8),
    Start(u8),
    Remove(u8),
    Override(u32),
    Sharing(GpuSharing),
    Vanish(usize),
    Return(usize),
    Renumber,
    /// A device that was not known.
    Appear,
    Cordon(usize, bool),
    Hot(usize, bool),
    Withhold(bool),
    /// The driver is asked; of these sessions processes are left.
    Look(Vec<u8>),
    Pass(u64),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..16u8;
    let sharing = prop_oneof![Just(GpuSharing::None), Just(GpuSharing::SameUser), Just(GpuSharing::Any)];
    let offer = (key(), 0..3u8, 0..4u32, prop::option::weighted(0.3, 1..30u64), 0..2u8);
    prop_oneof![
        8 => offer.prop_map(|(key, user, gpus, memory, leader)| Op::Offer { key, user, gpus, memory, leader }),
        3 => key().prop_map(Op::Stop),
        2 => key().prop_map(Op::Start),
        2 => key().prop_map(Op::Remove),
        2 => (0..14u32).prop_map(Op::Override),
        1 => sharing.prop_map(Op::Sharing),
        1 => (0..4usize).prop_map(Op::Vanish),
        2 => (0..4usize).prop_map(Op::Return),
        1 => Just(Op::Renumber),
        1 => Just(Op::Appear),
        1 => (0..4usize, any::<bool>()).prop_map(|(at, on)| Op::Cordon(at, on)),
        1 => (0..4usize, any::<bool>()).prop_map(|(at, on)| Op::Hot(at, on)),
        1 => any::<bool>().prop_map(Op::Withhold),
        3 => prop::collection::vec(key(), 0..3).prop_map(Op::Look),
        2 => (1..40u64).prop_map(Op::Pass),
        1 => Just(Op::Restart),
    ]
}

/// What other nodes see of the host.
fn shown(host: &mut Host) -> NodeProfile {
    let facts =
        crate::observe::Facts { address: "h:1".to_owned(), version: "0".to_owned(), runtime: RuntimeKind::Docker };
    let sessions = host.decide(|registry, cx| Snapshot {
        gpus: registry.gpus(cx),
        allocated: registry.ledger().allocated(),
        ..Snapshot::default()
    });
    let mut profile = view::profile(view::Inputs {
        state: &host.node,
        report: &host.report,
        sessions: &sessions,
        health: &Health::Unknown,
        conditions: &[],
        facts: &facts,
        now: host.now,
    });
    profile.runtime.available = true;
    profile
}

fn user(n: u8) -> User {
    format!("u{n}").parse().unwrap()
}

fn do_offer(host: &mut Host, op: &Op) -> Result<(), TestCaseError> {
    let Op::Offer { key, user: who, gpus, memory, leader } = op else { unreachable!("only offers come here") };
    let gpu_memory_bytes = memory.map(Bytes::gib);
    let workspace = Workspace { gpus: *gpus, gpu_memory_bytes, ports: Vec::new(), ..workspace() };
    let mut offer = offer(&key.to_string(), workspace.clone());
    offer.asked.user = user(*who);
    offer.ballot = Ballot { term: u64::from(*leader) + 1, node: NodeId::from_bytes([*leader; 10]) };
    let known = host.registry.record(&offer.session).is_some();
    let (profile, before) = (shown(host), host.registry.ledger().allocated());
    let fenced = host.registry.fence.is_some_and(|fence| fence > offer.ballot);
    let offered = profile.effective.gpus;
    let admitted = host.decide(|registry, cx| registry.admit(&offer, cx));
    if known || fenced {
        prop_assert_eq!(host.registry.ledger().allocated(), before);
        return Ok(());
    }
    // What is shown is what is admitted, for whoever would place the session by it. What is free of a device's memory
    // only the host knows, and why it withholds them all.
    let figures = HostFigures { node: &profile, in_flight: Resources::ZERO, heard: true, has_image: true };
    let expected = filter::refusal(&figures, &workspace, &offer.asked.user);
    match &admitted {
        Ok(_) => prop_assert_eq!(expected, None),
        Err(Error::Refused(refused)) => prop_assert_eq!(expected, Some(refused.reason), "{:?}", refused),
        Err(other) => prop_assert!(false, "{other:?}"),
    }
    if admitted.is_ok() {
        let record = host.registry.record(&offer.session).unwrap();
        let gpus = record.status().gpu_uuids.clone();
        let after = host.registry.ledger().allocated();
        prop_assert_eq!(BTreeSet::from_iter(&gpus).len(), workspace.gpus as usize, "distinct devices");
        prop_assert!(workspace.gpus == 0 || after.gpus <= offered, "I1: {} of {}", after.gpus, offered);
        for uuid in &gpus {
            let device = profile.gpus.iter().find(|gpu| gpu.uuid == *uuid).unwrap();
            prop_assert!(device.state.is_usable() && device.slots_used < device.slots, "{device:?}");
        }
    }
    Ok(())
}

/// The users on each device: of sessions that hold a reservation, and of those that have not left.
fn users_on(host: &Host) -> BTreeMap<String, BTreeSet<String>> {
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for record in host.registry.records() {
        let (status, user) = (record.status(), record.origin().user.to_string());
        let held = record.is_reserved().then_some(&status.gpu_uuids);
        let leaving = status.gpus_leaving.as_ref().map(|leaving| &leaving.gpus);
        for uuid in held.into_iter().chain(leaving).flatten() {
            users.entry(uuid.clone()).or_default().insert(user.clone());
        }
    }
    users
}

fn apply(host: &mut Host, op: &Op) -> Result<(), TestCaseError> {
    let key = |key: &u8| key.to_string();
    let known = |host: &Host, n: &u8| host.registry.record(&id(&key(n))).is_some_and(|record| record.live().is_some());
    let at = |host: &Host, n: usize| n % host.report.gpus.devices.len();
    match op {
        Op::Offer { .. } => do_offer(host, op)?,
        Op::Stop(n) if known(host, n) => {
            saw(host, &key(n), Sight::Running(run(1)));
            drop(command(host, &key(n), Command::Stop));
            saw(host, &key(n), Sight::Stopped(Some(exit(1, 0))));
        }
        Op::Start(n) if known(host, n) => drop(command(host, &key(n), Command::Start)),
        Op::Remove(n) if known(host, n) => {
            drop(command(host, &key(n), Command::Remove));
            saw(host, &key(n), Sight::Stopped(None));
            saw(host, &key(n), Sight::Gone);
        }
        Op::Stop(_) | Op::Start(_) | Op::Remove(_) => {}
        Op::Override(gpus) => host.node.settings.gpus_override = *gpus,
        Op::Sharing(sharing) => host.node.settings.gpu_sharing = *sharing,
        Op::Vanish(n) => {
            let at = at(host, *n);
            let why = Presence::Lost { since: Timestamp::default(), why: "gone".to_owned() };
            change_device(host, at, |device| device.presence = why);
        }
        Op::Return(n) => {
            let at = at(host, *n);
            change_device(host, at, |device| device.presence = Presence::Present);
        }
        Op::Renumber => change(host, |gpus| gpus.devices.iter_mut().for_each(|device| device.index ^= 1)),
        Op::Appear => change(host, |gpus| {
            let count = gpus.devices.len();
            if count < 4 {
                // It comes before the others, in the order of the UUIDs.
                gpus.devices.insert(0, device(&format!("GPU-{}", 5 - count), 9));
            }
        }),
        Op::Cordon(n, on) => {
            let at = at(host, *n);
            change_device(host, at, |device| device.cordoned = *on);
        }
        Op::Hot(n, on) => {
            let at = at(host, *n);
            change_device(host, at, |device| device.hot = *on);
        }
        Op::Withhold(on) => host.report.gpus_withheld = on.then(|| "hung".to_owned()),
        Op::Look(left) => {
            let marks: Vec<Process> = left.iter().map(|n| process(1, id(&key(n)).as_str(), None)).collect();
            let now = host.now.boot;
            change(host, |gpus| {
                for device in &mut gpus.devices {
                    device.processes = Some(Processes { list: marks.clone(), memory_used: None });
                    device.processes_at = Some(now);
                }
            });
        }
        Op::Pass(seconds) => host.now = host.now.plus(Duration::from_secs(*seconds)),
        Op::Restart => {
            host.restart();
            host.decide(|registry, cx| registry.rebase_deadlines(cx));
        }
    }
    host.decide(|registry, cx| registry.gpus_seen(cx));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// I1, I2 and I8, whatever happens to devices, sessions, settings, leaders and the agent.
    #[test]
    fn no_sequence_of_events_shares_a_gpu_by_accident(ops in prop::collection::vec(op(), 40..100)) {
        let mut host = host(&["GPU-6", "GPU-7"]);
        let mut shared = BTreeMap::new();
        for op in &ops {
            apply(&mut host, op)?;
            let users = users_on(&host);
            for (uuid, users) in users.iter().filter(|(_, users)| users.len() > 1) {
                // Users that share a device do so by a rule that was in force when the last of them came.
                let before = shared.get(uuid).map_or(0, |users: &BTreeSet<String>| users.len());
                prop_assert!(users.len() <= before || host.node.settings.gpu_sharing == GpuSharing::Any, "I2: {users:?}");
            }
            shared = users;
            let profile = shown(&mut host);
            let slots: u32 = profile.gpus.iter().map(|gpu| gpu.slots).sum();
            let physical = profile.physical.gpus;
            let override_ = if profile.settings.gpus_override == 0 { physical } else { profile.settings.gpus_override };
            prop_assert_eq!(slots, override_, "each slot belongs to one device");
            prop_assert!(profile.effective.gpus <= override_);
            let all_usable = profile.gpus.iter().all(|gpu| gpu.state.is_usable());
            if all_usable && host.report.gpus_withheld.is_none() {
                prop_assert_eq!(profile.effective.gpus, override_);
            }
            let used: u32 = profile.gpus.iter().map(|gpu| gpu.slots_used).sum();
            prop_assert_eq!(used, profile.allocated.gpus, "what is shown is what is held");
            let mut uuids: Vec<&String> = profile.gpus.iter().map(|gpu| &gpu.uuid).collect();
            uuids.dedup();
            prop_assert!(uuids.is_sorted() && uuids.len() == profile.gpus.len());
        }
    }
}
