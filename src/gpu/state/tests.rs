use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::gpu::answer::{Inventory, Measured, Readings, Xid};
use crate::gpu::device::{Device, Presence, Reading, Recovery};
use crate::types::{NVIDIA_CLASS, Timestamp};

fn start() -> Moment {
    Moment { wall: Timestamp::from_millis(1_000_000), boot: BootInstant::from_millis(1_000_000), boot_id: 1 }
}

fn secs(secs: u64) -> Moment {
    start().plus(Duration::from_secs(secs))
}

fn found(uuids: &[&str]) -> Vec<Found> {
    let found = |(n, uuid): (usize, &&str)| Found {
        uuid: Some((*uuid).to_owned()),
        index: u32::try_from(n).unwrap(),
        pci_address: Some(format!("0000:{n:02x}:00.0")),
        ..Found::default()
    };
    uuids.iter().enumerate().map(found).collect()
}

fn versions() -> DriverVersions {
    DriverVersions { driver: "580.65.06".to_owned(), cuda: None, nvml: None }
}

fn inventory(uuids: &[&str]) -> Answer {
    Answer::Inventory(Inventory { versions: versions(), devices: found(uuids) })
}

fn fine(uuids: &[&str]) -> Answer {
    let read = |uuid: &&str| ((*uuid).to_owned(), Measured::Read(Box::default()));
    Answer::Readings(Readings { devices: uuids.iter().map(read).collect(), xids: Vec::new() })
}

/// Answers for these devices as long as something is asked now.
fn answer_all(state: &mut State, uuids: &[&str], now: Moment) {
    loop {
        match state.next(now) {
            Step::Start => state.started(Ok(()), now),
            Step::Ask(Ask::Inventory) => state.answered(inventory(uuids), now),
            Step::Ask(Ask::Readings) => state.answered(fine(uuids), now),
            Step::Ask(Ask::Processes) => {
                let listed = uuids.iter().map(|uuid| ((*uuid).to_owned(), None));
                state.answered(Answer::Processes(listed.collect()), now);
            }
            Step::Abandon => {}
            Step::Check => state.checked(true),
            Step::Wait(_) => return,
        }
    }
}

fn up(uuids: &[&str]) -> State {
    let mut state = State::new(Records::new(), None, start());
    answer_all(&mut state, uuids, start());
    state
}

/// The first question of a new child is not answered.
fn hang(state: &mut State, now: Moment) {
    assert_eq!(state.next(now), Step::Start);
    state.started(Ok(()), now);
    assert!(matches!(state.next(now), Step::Ask(_)));
    state.hung(now);
    assert_eq!(state.next(now), Step::Abandon);
}

fn is_present(state: &State, uuid: &str) -> bool {
    state.snapshot(start()).device(uuid).unwrap().is_present()
}

#[test]
fn the_first_answers_make_a_snapshot() {
    let mut state = State::new(Records::new(), None, start());
    assert_eq!(state.snapshot(start()), Snapshot::default());
    answer_all(&mut state, &["b", "a"], start());
    let snapshot = state.snapshot(start());
    assert_eq!(snapshot.driver, Driver::Up(versions()));
    assert_eq!(snapshot.devices.iter().map(|device| &*device.uuid).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((snapshot.processes_at, snapshot.withheld), (Some(start().boot), None));
}

#[test]
fn a_driver_that_is_installed_later_is_found_within_a_minute() {
    let mut state = State::new(Records::new(), None, start());
    assert_eq!(state.next(start()), Step::Start);
    state.started(Ok(()), start());
    assert_eq!(state.next(start()), Step::Ask(Ask::Inventory));
    state.answered(Answer::Closed(Closed::Absent { why: "no library".to_owned() }), start());
    assert_eq!(state.snapshot(start()).driver, Driver::Absent { why: "no library".to_owned() });
    answer_all(&mut state, &["a"], secs(59));
    assert!(state.snapshot(secs(59)).devices.is_empty());
    answer_all(&mut state, &["a"], secs(60));
    assert!(is_present(&state, "a"));
}

#[test]
fn an_unloaded_driver_loses_its_devices_and_a_loaded_one_brings_them_back() {
    let mut state = up(&["a"]);
    assert_eq!(state.next(secs(5)), Step::Ask(Ask::Readings));
    state.answered(Answer::Closed(Closed::Absent { why: "no module".to_owned() }), secs(5));
    let snapshot = state.snapshot(secs(500));
    assert!(!snapshot.devices[0].is_present());
    assert_eq!(snapshot.withheld, None, "the device says why");
    answer_all(&mut state, &["a"], secs(5));
    answer_all(&mut state, &["a"], secs(6));
    answer_all(&mut state, &["a"], secs(65));
    assert!(is_present(&state, "a"));
}

#[test]
fn after_an_upgrade_the_devices_stay_and_no_new_session_is_admitted() {
    let mut state = up(&["a"]);
    state.next(secs(5));
    let (library, module) = (Some("580.2".to_owned()), Some("575.1".to_owned()));
    state.answered(Answer::Closed(Closed::Mismatch { library, module }), secs(5));
    let snapshot = state.snapshot(secs(5));
    assert!(snapshot.devices[0].is_present());
    let withheld = snapshot.withheld.unwrap();
    assert!(withheld.contains("580.2") && withheld.contains("575.1") && withheld.contains("reboot"), "{withheld}");
    answer_all(&mut state, &["a"], secs(5));
    answer_all(&mut state, &["a"], secs(6));
    answer_all(&mut state, &["a"], secs(65));
    assert_eq!(state.snapshot(secs(65)).withheld, None);
}

#[test]
fn a_silent_child_loses_no_device_and_is_trusted_for_ninety_seconds() {
    let mut state = up(&["a"]);
    assert_eq!(state.next(secs(5)), Step::Ask(Ask::Readings));
    assert_eq!(state.next(secs(5)), Step::Wait(Some(secs(90).boot)), "the snapshot changes then");
    state.hung(secs(10));
    assert_eq!(state.next(secs(10)), Step::Abandon);
    assert_eq!(state.snapshot(secs(10)).driver, Driver::Up(versions()), "it may have been slow");
    for second in 11..200 {
        assert_eq!(state.next(secs(second)), Step::Check);
        state.checked(false);
        let snapshot = state.snapshot(secs(second));
        assert_eq!(snapshot.driver, Driver::Hung { since: secs(5).boot });
        assert!(snapshot.devices[0].is_present());
        assert_eq!(snapshot.withheld.is_some(), second >= 90, "{second}");
    }
    answer_all(&mut state, &["a"], secs(200));
    let snapshot = state.snapshot(secs(200));
    assert_eq!((snapshot.driver, snapshot.withheld), (Driver::Up(versions()), None));
}

#[test]
fn three_hangs_in_a_row_are_a_driver_that_hangs_until_a_child_is_sound() {
    let mut state = State::new(Records::new(), None, start());
    for at in [0, 60, 180] {
        assert_eq!(state.snapshot(secs(at)).driver, Driver::Unknown, "{at}");
        hang(&mut state, secs(at));
        assert_eq!(state.next(secs(at + 1)), Step::Check);
        state.checked(true);
    }
    assert_eq!(state.snapshot(secs(181)).driver, Driver::Hung { since: start().boot });
    answer_all(&mut state, &["a"], secs(500));
    assert_eq!(state.snapshot(secs(500)).driver, Driver::Up(versions()));
    assert_eq!(state.hung_since, None);
}

#[test]
fn three_deaths_in_a_row_are_a_driver_that_fails() {
    let mut state = up(&["a"]);
    let mut now = secs(5);
    for _ in 0..3 {
        assert_eq!(state.snapshot(now).driver, Driver::Up(versions()), "one reading is lost");
        loop {
            match state.next(now) {
                Step::Start => state.started(Ok(()), now),
                Step::Check => state.checked(true),
                Step::Wait(at) => now = now.plus(at.unwrap().since(now.boot)),
                Step::Ask(_) => break state.died("signal 11".to_owned(), now),
                Step::Abandon => {}
            }
        }
    }
    let Driver::Failed { why } = state.snapshot(now).driver else { panic!("it fails") };
    assert_eq!(why, "signal 11");
    assert!(state.snapshot(now).devices[0].is_present());
}

#[test]
fn an_answer_that_was_not_asked_for_is_the_end_of_the_child() {
    let mut state = up(&["a"]);
    assert_eq!(state.next(secs(5)), Step::Ask(Ask::Readings));
    state.answered(inventory(&[]), secs(5));
    assert!(is_present(&state, "a"));
    assert_eq!(state.next(secs(5)), Step::Abandon);
}

#[test]
fn known_devices_take_no_session_before_the_driver_has_answered() {
    let state = State::new(up(&["a"]).records(), None, secs(1));
    let snapshot = state.snapshot(secs(1));
    assert!(snapshot.devices[0].is_present() && snapshot.withheld.unwrap().contains("since the agent started"));
}

#[test]
fn devices_that_are_made_up_are_cordoned_and_never_asked_for() {
    let mut state = State::fictitious(NVIDIA_CLASS, Records::new(), 2, start());
    assert_eq!(state.next(secs(1000)), Step::Wait(None));
    state.look(secs(1000));
    assert_eq!(state.next(secs(1000)), Step::Wait(None));
    assert_eq!(state.snapshot(secs(1000)), Snapshot::fictitious(2));
    state.command("GPU-dev-0001", Command::Cordon).unwrap();
    let restarted = State::fictitious(NVIDIA_CLASS, state.records(), 2, start()).snapshot(start());
    assert_eq!(restarted.devices.iter().map(|device| device.cordoned).collect::<Vec<_>>(), [false, true]);
}

fn listed(names: &[&str]) -> Vec<Listed> {
    names.iter().map(|name| Listed { name: format!("amd.com/gpu={name}"), pci_address: None }).collect()
}

#[test]
fn gpus_of_another_maker_are_what_the_engine_lists_and_no_child_is_started() {
    let node: NodeId = "k3f7q2m5x6a4b7c2".parse().unwrap();
    let mut state = State::of_class("amd.com/gpu", Records::new(), node, start());
    assert_eq!((state.snapshot(start()).driver, state.next(secs(1000))), (Driver::Unknown, Step::Wait(None)));
    state.listed(&listed(&["0", "1"]), secs(1));
    let snapshot = state.snapshot(secs(1000));
    assert_eq!((&snapshot.driver, &snapshot.withheld), (&Driver::NotAsked, &None));
    let uuids: Vec<_> = snapshot.devices.iter().map(|device| &*device.uuid).collect();
    assert_eq!(uuids, ["0-k3f7q2m5x6a4b7c2", "1-k3f7q2m5x6a4b7c2"]);
    let unknown =
        |device: &Device| device.read_at.is_none() && device.processes.is_none() && device.memory_total.is_none();
    assert!(snapshot.devices.iter().all(unknown));
    state.look(secs(1000));
    assert_eq!(state.next(secs(1000)), Step::Wait(None));
    state.listed(&listed(&["1"]), secs(2));
    assert!(!is_present(&state, "0-k3f7q2m5x6a4b7c2") && is_present(&state, "1-k3f7q2m5x6a4b7c2"));

    let mut restarted = State::of_class("amd.com/gpu", state.records(), node, secs(3));
    let withheld = restarted.snapshot(secs(3)).withheld.unwrap();
    assert!(withheld.contains("has not listed its GPUs since the agent started"), "{withheld}");
    restarted.listed(&listed(&["0", "1"]), secs(4));
    let snapshot = restarted.snapshot(secs(4));
    assert!(snapshot.withheld.is_none() && snapshot.devices.iter().all(Device::is_present));
}

#[test]
fn what_the_engine_lists_counts_only_for_another_class() {
    let mut state = up(&["a"]);
    let before = state.snapshot(secs(1));
    state.listed(&listed(&["0"]), secs(1));
    assert_eq!(state.snapshot(secs(1)), before);
}

/// What the driver would answer, and what is known of the past: the model that the state is compared with.
#[derive(Debug, Clone, Default)]
struct World {
    /// The devices that are there: their address, their UUID, and whether it can be read.
    here: BTreeMap<u8, (u8, bool)>,
    /// What the state must know: seen since the boot and not forgotten.
    known: BTreeSet<String>,
    cordoned: BTreeSet<String>,
    /// Devices that the driver has said are lost, or not listed, since they were last read.
    may_be_lost: BTreeSet<String>,
    closed: Option<Closed>,
    child: bool,
    abandoned: bool,
}

#[derive(Debug, Clone)]
enum Operation {
    /// Puts a card into a slot: a new one, one that returns, or one in the place of another.
    Put(u8, u8),
    Pull(u8),
    /// Moves a card: its number and address change.
    Move(u8, u8),
    Readable(u8, bool),
    Closed(Option<Closed>),
    /// What becomes of the next question, or of the next start.
    Answer,
    Fault(u8, u64, Option<Recovery>),
    Heat(u8, Option<f64>),
    Lose(u8),
    Hang,
    Die,
    FailStart,
    Thaw,
    Pass(u64),
    Restart,
    Reboot,
    Command(u8, Command),
    Look,
    Limit(Option<f64>),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let closed = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Closed::Absent { why: "none".to_owned() })),
        1 => Just(Some(Closed::Mismatch { library: None, module: None })),
        1 => Just(Some(Closed::Failed { why: "why".to_owned() })),
    ];
    let recovery = prop_oneof![Just(None), Just(Some(Recovery::None)), Just(Some(Recovery::Reset))];
    let code = prop_oneof![Just(31_u64), Just(48), Just(79), Just(9999)];
    let command = prop_oneof![Just(Command::Cordon), Just(Command::Uncordon), Just(Command::Forget)];
    let celsius = prop_oneof![Just(None), Just(Some(75.0)), Just(Some(78.0)), Just(Some(90.0))];
    prop_oneof![
        3 => (0..5u8, 0..8u8).prop_map(|(slot, card)| O::Put(slot, card)),
        1 => (0..5u8).prop_map(O::Pull),
        1 => (0..5u8, 0..5u8).prop_map(|(from, to)| O::Move(from, to)),
        1 => (0..5u8, any::<bool>()).prop_map(|(slot, can)| O::Readable(slot, can)),
        1 => closed.prop_map(O::Closed),
        12 => Just(O::Answer),
        2 => (0..8u8, code, recovery).prop_map(|(card, code, recovery)| O::Fault(card, code, recovery)),
        2 => (0..8u8, celsius).prop_map(|(card, celsius)| O::Heat(card, celsius)),
        1 => (0..8u8).prop_map(O::Lose),
        2 => Just(O::Hang),
        2 => Just(O::Die),
        1 => Just(O::FailStart),
        3 => Just(O::Thaw),
        8 => (0..100_000u64).prop_map(O::Pass),
        1 => Just(O::Restart),
        1 => Just(O::Reboot),
        3 => (0..8u8, command).prop_map(|(card, command)| O::Command(card, command)),
        1 => Just(O::Look),
        1 => proptest::option::of(Just(80.0)).prop_map(O::Limit),
    ]
}

fn uuid(card: u8) -> String {
    format!("GPU-{card}")
}

/// A history: the state, the model, and the time.
struct History {
    state: State,
    world: World,
    now: Moment,
}

impl History {
    fn new() -> Self {
        Self { state: State::new(Records::new(), None, start()), world: World::default(), now: start() }
    }

    fn inventory(&self) -> Inventory {
        let found = |(slot, (card, can)): (&u8, &(u8, bool))| Found {
            uuid: can.then(|| uuid(*card)),
            index: u32::from(*slot),
            pci_address: Some(format!("0000:{slot:02x}:00.0")),
            ..Found::default()
        };
        Inventory { versions: versions(), devices: self.world.here.iter().map(found).collect() }
    }

    fn readable(&self) -> BTreeSet<String> {
        self.world.here.values().filter(|(_, can)| *can).map(|(card, _)| uuid(*card)).collect()
    }

    /// Answers a question as the world is, with `readings` in the place of what would be read.
    fn answer(&mut self, ask: Ask, readings: Option<Readings>) {
        if let Some(closed) = self.world.closed.clone() {
            if matches!(closed, Closed::Absent { .. }) {
                self.world.may_be_lost.extend(self.world.known.clone());
            }
            return self.state.answered(Answer::Closed(closed), self.now);
        }
        let readable = self.readable();
        let answer = match ask {
            Ask::Inventory => {
                self.world.may_be_lost.extend(self.world.known.difference(&readable).cloned());
                self.world.known.extend(readable);
                Answer::Inventory(self.inventory())
            }
            Ask::Readings => {
                let well = readable.iter().map(|uuid| (uuid.clone(), Measured::Read(Box::default())));
                let readings = readings.unwrap_or(Readings { devices: well.collect(), xids: Vec::new() });
                for (uuid, measured) in &readings.devices {
                    if matches!(measured, Measured::Lost { .. }) {
                        self.world.may_be_lost.insert(uuid.clone());
                    }
                }
                Answer::Readings(readings)
            }
            Ask::Processes => Answer::Processes(readable.into_iter().map(|uuid| (uuid, None)).collect()),
        };
        self.state.answered(answer, self.now);
    }

    /// Does the next step; of a question, what `then` says.
    fn step(&mut self, then: &Operation) {
        match self.state.next(self.now) {
            Step::Start => {
                assert!(!self.world.child && !self.world.abandoned, "two children");
                if matches!(then, Operation::FailStart) {
                    return self.state.started(Err("no memory".to_owned()), self.now);
                }
                self.world.child = true;
                self.state.started(Ok(()), self.now);
            }
            Step::Abandon => {
                assert!(self.world.child && !self.world.abandoned, "two abandoned children");
                (self.world.child, self.world.abandoned) = (false, true);
            }
            Step::Check => {
                assert!(self.world.abandoned);
                self.world.abandoned = !matches!(then, Operation::Thaw);
                self.state.checked(!self.world.abandoned);
            }
            Step::Wait(_) => {}
            Step::Ask(ask) => {
                assert!(self.world.child, "nobody is there to be asked");
                self.outcome(ask, then);
            }
        }
    }

    fn outcome(&mut self, ask: Ask, then: &Operation) {
        let read = |card: u8, measured| Readings { devices: [(uuid(card), measured)].into(), xids: Vec::new() };
        match then {
            Operation::Hang => self.state.hung(self.now),
            Operation::Die => self.state.died("signal 11".to_owned(), self.now),
            Operation::Lose(card) => {
                self.answer(ask, Some(read(*card, Measured::Lost { why: "lost".to_owned() })));
            }
            Operation::Fault(card, code, recovery) => {
                let reading = Reading { recovery: *recovery, ..Reading::default() };
                let xids = vec![Xid { uuid: uuid(*card), code: *code }];
                self.answer(ask, Some(Readings { xids, ..read(*card, Measured::Read(Box::new(reading))) }));
            }
            Operation::Heat(card, celsius) => {
                let reading = Reading { temperature_celsius: *celsius, ..Reading::default() };
                self.answer(ask, Some(read(*card, Measured::Read(Box::new(reading)))));
            }
            _ => self.answer(ask, None),
        }
    }

    fn apply(&mut self, operation: &Operation) {
        use Operation as O;
        match operation {
            O::Put(slot, card) => {
                self.world.here.retain(|_, (there, _)| there != card);
                self.world.here.insert(*slot, (*card, true));
            }
            O::Pull(slot) => drop(self.world.here.remove(slot)),
            O::Move(from, to) => {
                if let Some(card) = self.world.here.remove(from) {
                    self.world.here.insert(*to, card);
                }
            }
            O::Readable(slot, can) => {
                if let Some((_, readable)) = self.world.here.get_mut(slot) {
                    *readable = *can;
                }
            }
            O::Closed(closed) => self.world.closed.clone_from(closed),
            O::Pass(millis) => self.now = self.now.plus(Duration::from_millis(*millis)),
            O::Restart => self.restart(),
            O::Reboot => {
                self.now.boot_id += 1;
                self.world.known.clear();
                self.world.may_be_lost.clear();
                self.restart();
            }
            O::Command(card, command) => self.command(&uuid(*card), *command),
            O::Look => self.state.look(self.now),
            O::Limit(limit) => self.state.limit(*limit),
            O::Answer | O::Fault(..) | O::Heat(..) | O::Lose(_) | O::Hang | O::Die | O::FailStart | O::Thaw => {
                self.step(operation)
            }
        }
    }

    fn restart(&mut self) {
        let json = serde_json::to_vec(&self.state.records()).unwrap();
        self.state = State::new(serde_json::from_slice(&json).unwrap(), None, self.now);
        (self.world.child, self.world.abandoned) = (false, false);
    }

    fn command(&mut self, uuid: &str, command: Command) {
        let outcome = self.state.command(uuid, command);
        let is_known = self.world.known.contains(uuid);
        match command {
            Command::Cordon if is_known => drop(self.world.cordoned.insert(uuid.to_owned())),
            Command::Uncordon => drop(self.world.cordoned.remove(uuid)),
            Command::Forget if outcome.is_ok() => {
                assert!(self.world.known.remove(uuid), "only a known device is forgotten");
                self.world.may_be_lost.remove(uuid);
            }
            Command::Cordon | Command::Forget => {}
        }
    }

    fn check(&mut self) {
        let snapshot = self.state.snapshot(self.now);
        let uuids: Vec<String> = snapshot.devices.iter().map(|device| device.uuid.clone()).collect();
        assert_eq!(uuids, self.world.known.iter().cloned().collect::<Vec<_>>(), "known, each once, in order");
        for device in &snapshot.devices {
            assert_eq!(device.cordoned, self.world.cordoned.contains(&device.uuid), "{device:?}");
            let is_lost = matches!(device.presence, Presence::Lost { .. });
            assert!(!is_lost || self.world.may_be_lost.contains(&device.uuid), "silence is no loss: {device:?}");
            assert!(!is_lost || (device.processes.is_none() && device.read_at.is_none() && !device.hot));
        }
        let records = self.state.records();
        for cordoned in &self.world.cordoned {
            assert!(records[cordoned].cordoned, "a cordon is never lost");
        }
        // Another step is due, or a time is named at which one is.
        if let Step::Wait(until) = self.state.clone().next(self.now) {
            let until = until.expect("no question is open, so a step is scheduled");
            assert!(until > self.now.boot && until.since(self.now.boot) <= Duration::from_secs(600), "{until:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_known_device_and_no_cordon_is_dropped_and_at_most_one_child_runs(
        operations in prop::collection::vec(operation(), 100)
    ) {
        let mut history = History::new();
        for operation in &operations {
            history.apply(operation);
            history.check();
        }
    }
}
