use super::*;
use crate::gpu::answer::{Instance, Xid};
use crate::gpu::device::{Process, Processes, Recovery};

const BOOT: Option<u64> = Some(7);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// A GPU at index `n` and at an address of its own.
fn gpu(uuid: &str, n: u32) -> Found {
    let uuid = Some(uuid.to_owned());
    let pci_address = Some(format!("0000:{n:02x}:00.0"));
    Found { uuid, index: n, minor: Some(n), pci_address, model: "H100".to_owned(), ..Found::default() }
}

fn mig(uuid: &str, n: u32, instances: &[&str]) -> Found {
    let instance = |uuid: &&str| Instance { uuid: (*uuid).to_owned(), model: "1g".to_owned(), memory_total: None };
    Found { mig: Mig::On(instances.iter().map(instance).collect()), ..gpu(uuid, n) }
}

fn known(found: &[Found]) -> Known {
    let mut known = Known::restore(Records::new(), BOOT);
    known.see(found, at(0));
    known
}

fn read(uuid: &str, measured: Measured) -> Readings {
    Readings { devices: [(uuid.to_owned(), measured)].into(), xids: Vec::new() }
}

fn fine(uuid: &str) -> Readings {
    read(uuid, Measured::Read(Box::default()))
}

fn fault(uuid: &str, code: u64) -> Readings {
    Readings { xids: vec![Xid { uuid: uuid.to_owned(), code }], ..Readings::default() }
}

/// `uuid` of a present device, `uuid: why` of a lost one.
fn shown(known: &Known) -> Vec<String> {
    let one = |device: &Device| match &device.presence {
        Presence::Present => device.uuid.clone(),
        Presence::Lost { why, .. } => format!("{}: {why}", device.uuid),
    };
    known.devices().map(one).collect()
}

fn device<'a>(known: &'a Known, uuid: &str) -> &'a Device {
    known.devices().find(|device| device.uuid == uuid).unwrap()
}

#[test]
fn devices_are_in_the_order_of_their_uuids_whatever_their_numbers() {
    let known = known(&[gpu("c", 0), gpu("a", 1), gpu("b", 2)]);
    assert_eq!(shown(&known), ["a", "b", "c"]);
    assert_eq!((device(&known, "c").index, device(&known, "c").minor), (0, Some(0)));
}

#[test]
fn a_device_that_vanished_is_lost_since_then_and_back_once_it_is_read() {
    let mut known = known(&[gpu("a", 0), gpu("b", 1)]);
    assert!(!known.read(&fine("a"), None, at(1)));
    // `b` is renumbered, and stays where it is.
    let renumbered = Found { index: 0, ..gpu("b", 1) };
    known.see(std::slice::from_ref(&renumbered), at(5));
    known.see(std::slice::from_ref(&renumbered), at(9));
    assert_eq!(shown(&known), ["a: the driver finds no GPU at PCI address 0000:00:00.0", "b"]);
    assert_eq!(device(&known, "b").index, 0);
    assert!(matches!(device(&known, "a").presence, Presence::Lost { since, .. } if since == at(5)));
    assert_eq!(device(&known, "a").read_at, None, "nothing is known of it");

    known.read(&fine("a"), None, at(10));
    assert!(!device(&known, "a").is_present(), "no inventory has it");
    known.see(&[gpu("a", 3), renumbered], at(11));
    assert!(known.has_returning() && !device(&known, "a").is_present());
    known.read(&fine("a"), None, at(12));
    assert!(device(&known, "a").is_present() && !known.has_lost() && !known.has_returning());
    assert_eq!(device(&known, "a").index, 3);
}

#[test]
fn a_device_without_a_uuid_is_the_one_at_its_address_and_lost() {
    let mut known = known(&[gpu("a", 0), gpu("b", 1)]);
    known.see(&[Found { uuid: None, ..gpu("", 0) }, gpu("b", 1)], at(1));
    assert_eq!(shown(&known), ["a: the GPU at PCI address 0000:00:00.0 does not answer the driver", "b"]);
    assert_eq!(known.nameless(), 0);
    known.see(&[Found { uuid: None, ..gpu("", 5) }, gpu("b", 1)], at(1));
    assert_eq!(shown(&known)[0], "a: the driver finds no GPU at PCI address 0000:00:00.0");
    assert_eq!(known.nameless(), 1);
    known.see(&[Found { uuid: Some("a\n".to_owned()), ..gpu("", 9) }], at(1));
    assert_eq!((known.devices().count(), known.nameless()), (2, 1), "not a UUID");
}

#[test]
fn another_card_at_the_same_address_is_another_device() {
    let mut known = known(&[gpu("a", 0)]);
    known.command("a", Command::Cordon).unwrap();
    known.see(&[gpu("x", 0)], at(1));
    assert_eq!(shown(&known), ["a: another GPU is at its PCI address 0000:00:00.0: x", "x"]);
    assert!(!device(&known, "x").cordoned, "a cordon is of a card, not of a slot");
}

#[test]
fn a_gpu_in_mig_mode_is_its_instances() {
    let mut known = known(&[gpu("a", 0), mig("b", 1, &["m2", "m1", ""])]);
    assert_eq!(shown(&known), ["a", "m1", "m2"]);
    let instance = device(&known, "m1");
    assert_eq!((instance.mig_parent.as_deref(), instance.minor, instance.model.as_str()), (Some("b"), Some(1), "1g"));
    assert_eq!(instance.pci_address.as_deref(), Some("0000:01:00.0"));

    known.see(&[mig("a", 0, &["m0"]), mig("b", 1, &["m1"])], at(1));
    let mode = "a: it is in MIG mode now: its instances are used instead";
    assert_eq!(shown(&known), [mode, "m0", "m1", "m2: MIG instance not found on b"]);
    known.see(&[mig("a", 0, &["m0"]), gpu("b", 1)], at(2));
    assert!(shown(&known).contains(&"m1: MIG mode of b is off: the GPU itself is used instead".to_owned()));

    known.read(&fault("a", 79), None, at(3));
    let failing = device(&known, "m0").failing.as_deref().unwrap();
    assert!(failing.contains("--gpu-reset -i a,"), "a reset is of the GPU: {failing}");
}

#[test]
fn an_instance_has_the_temperature_and_the_health_of_its_gpu() {
    let mut known = known(&[mig("b", 1, &["m"])]);
    let own = Reading { memory_used: Some(Bytes::gib(1)), ..Reading::default() };
    let gpu = Reading {
        temperature_celsius: Some(85.0),
        power_watts: Some(300.0),
        memory_used: Some(Bytes::gib(9)),
        recovery: Some(Recovery::Reset),
        ..Reading::default()
    };
    let mut readings = read("b", Measured::Read(Box::new(gpu)));
    readings.devices.insert("m".to_owned(), Measured::Read(Box::new(own)));
    known.read(&readings, Some(80.0), at(1));
    let instance = device(&known, "m");
    assert!(instance.hot && instance.failing.is_some());
    assert_eq!((instance.reading.memory_used, instance.reading.power_watts), (Some(Bytes::gib(1)), None));
    known.read(&read("b", Measured::Lost { why: "GPU is lost".to_owned() }), None, at(2));
    assert_eq!(shown(&known), ["m: GPU is lost"]);
}

#[test]
fn a_device_that_the_driver_says_is_lost_is_lost_until_it_is_read() {
    let mut known = known(&[gpu("a", 0)]);
    let gone = read("a", Measured::Lost { why: "GPU is lost".to_owned() });
    assert!(known.read(&gone, None, at(1)), "worth an inventory");
    assert!(!known.read(&gone, None, at(2)), "no news");
    known.see(&[gpu("a", 0)], at(3));
    assert_eq!(shown(&known), ["a: GPU is lost"], "it enumerates, and does not answer");
    known.read(&fine("a"), None, at(4));
    assert_eq!(shown(&known), ["a"]);
    known.lose_all("no driver", at(5));
    assert_eq!(shown(&known), ["a: no driver"]);
}

#[test]
fn a_failing_device_is_well_after_it_was_lost_or_uncordoned() {
    let mut known = known(&[gpu("a", 0), gpu("b", 1)]);
    for uuid in ["a", "b"] {
        assert!(known.read(&fault(uuid, 79), None, at(1)));
        assert!(device(&known, uuid).failing.is_some());
    }
    known.see(&[gpu("b", 1)], at(2));
    known.see(&[gpu("a", 0), gpu("b", 1)], at(3));
    known.read(&fine("a"), None, at(4));
    assert_eq!(device(&known, "a").failing, None);
    known.command("b", Command::Uncordon).unwrap();
    assert_eq!(device(&known, "b").failing, None);
    assert!(known.read(&fault("nobody", 79), None, at(5)), "an unknown device is worth an inventory");
}

#[test]
fn heat_is_judged_by_each_reading_and_by_another_limit() {
    let mut known = known(&[gpu("a", 0)]);
    let reading = Reading { temperature_celsius: Some(85.0), recovery: Some(Recovery::None), ..Reading::default() };
    known.read(&read("a", Measured::Read(Box::new(reading))), Some(80.0), at(1));
    assert!(device(&known, "a").hot);
    known.limit(Some(90.5));
    assert!(!device(&known, "a").hot);
    known.limit(Some(84.0));
    assert!(device(&known, "a").hot);
    known.see(&[], at(2));
    assert!(!device(&known, "a").hot, "nothing is known of a lost device");
}

#[test]
fn processes_are_those_of_the_last_list_that_has_the_device() {
    let mut known = known(&[gpu("a", 0), gpu("b", 1)]);
    let process = Process { pid: 4, command: "x".to_owned(), memory: None, marks: Vec::new() };
    let processes = Processes { list: vec![process], memory_used: None };
    let (first, second) = (BootInstant::from_millis(1), BootInstant::from_millis(2));
    assert!(known.list([("a".to_owned(), Some(processes.clone())), ("b".to_owned(), None)].into(), first));
    assert_eq!((device(&known, "a").processes.as_ref(), &device(&known, "b").processes), (Some(&processes), &None));
    assert!(!known.list([("b".to_owned(), Some(Processes::default()))].into(), second));
    let (a, b) = (device(&known, "a"), device(&known, "b"));
    assert_eq!((a.processes.as_ref(), a.processes_at), (Some(&processes), Some(first)), "nothing is known anew");
    assert_eq!((b.processes.as_ref(), b.processes_at), (Some(&Processes::default()), Some(second)));
    known.see(&[gpu("b", 1)], at(3));
    assert_eq!((&device(&known, "a").processes, device(&known, "a").processes_at), (&None, None));
    assert!(known.list([("b".to_owned(), None)].into(), second), "a lost device is not waited for");
}

#[test]
fn only_a_lost_device_is_forgotten_and_its_cordon_is_not() {
    let mut known = known(&[gpu("a", 0)]);
    assert_eq!(known.command("a", Command::Forget), Err(Error::Present("a".to_owned())));
    for command in [Command::Cordon, Command::Uncordon, Command::Forget] {
        assert_eq!(known.command("b", command), Err(Error::NotFound("b".to_owned())));
    }
    known.command("a", Command::Cordon).unwrap();
    known.command("a", Command::Cordon).unwrap();
    known.see(&[], at(1));
    known.command("a", Command::Forget).unwrap();
    assert!(known.is_empty());
    known.command("a", Command::Cordon).unwrap();
    known.see(&[gpu("a", 0)], at(2));
    assert!(device(&known, "a").cordoned);

    known.see(&[], at(3));
    known.command("a", Command::Forget).unwrap();
    known.command("a", Command::Uncordon).unwrap();
    assert_eq!(known.records(), Records::new());
}

#[test]
fn a_restart_remembers_devices_and_a_reboot_only_cordons() {
    let mut known = known(&[gpu("a", 0), gpu("b", 1), mig("c", 2, &["m"])]);
    known.command("b", Command::Cordon).unwrap();
    known.read(&fault("a", 79), None, at(1));
    known.see(&[gpu("a", 0), mig("c", 2, &["m"])], at(2));
    let json = serde_json::to_vec(&known.records()).unwrap();
    let stored: Records = serde_json::from_slice(&json).unwrap();
    let restored = Known::restore(stored.clone(), BOOT);
    assert_eq!(restored.devices().collect::<Vec<_>>(), known.devices().collect::<Vec<_>>());

    let mut rebooted = Known::restore(stored, Some(8));
    assert!(rebooted.is_empty());
    assert_eq!(rebooted.records().into_keys().collect::<Vec<_>>(), ["b"]);
    rebooted.see(&[gpu("a", 0), gpu("b", 1)], at(3));
    assert!(device(&rebooted, "b").cordoned && device(&rebooted, "a").failing.is_none());
}

#[test]
fn devices_beyond_the_bound_are_not_taken_and_no_cordon_is_dropped_for_them() {
    let many: Vec<Found> = (0..u32::try_from(MAX_KNOWN).unwrap()).map(|n| gpu(&format!("g{n:04}"), n)).collect();
    let mut known = known(&many);
    known.see(&[gpu("x", 1)], at(1));
    assert_eq!((known.untaken(), known.devices().count()), (1, MAX_KNOWN));
    known.command("g0000", Command::Cordon).unwrap();
    known.command("g0000", Command::Forget).unwrap();
    known.see(&[gpu("x", 1), gpu("g0000", 0)], at(2));
    assert_eq!((known.untaken(), device(&known, "g0000").cordoned), (1, true), "it has its place");
    known.command("g0001", Command::Forget).unwrap();
    known.see(&[gpu("x", 1)], at(3));
    assert_eq!((known.untaken(), known.devices().count()), (0, MAX_KNOWN));
}

#[test]
fn of_devices_that_are_made_up_only_cordons_are_stored() {
    let mut known = Known::restore(Records::new(), None);
    known.see(&[gpu("a", 0), gpu("b", 1)], at(0));
    known.command("a", Command::Cordon).unwrap();
    let records = known.records();
    assert_eq!(records.keys().collect::<Vec<_>>(), ["a"]);
    assert!(Known::restore(records, BOOT).is_empty());
}

#[test]
fn listed_gpus_of_another_maker_are_lost_return_at_once_and_are_remembered_with_their_class() {
    const AMD: &str = "amd.com/gpu";
    let found = |uuids: &[&str]| -> Vec<Found> {
        uuids.iter().map(|&uuid| Found { uuid: Some(uuid.to_owned()), ..Found::default() }).collect()
    };
    let mut known = Known::of_class(AMD, Records::new(), BOOT);
    known.see_listed(&found(&["a", "b"]), at(0));
    known.command("a", Command::Cordon).unwrap();
    known.see_listed(&found(&["b"]), at(0));
    let Presence::Lost { why, .. } = &device(&known, "a").presence else { panic!("it is lost") };
    assert!(why.contains("CDI list does not have it"), "{why}");
    assert_eq!(known.command("b", Command::Forget), Err(Error::Present("b".to_owned())));

    let restored = Known::of_class(AMD, known.records(), BOOT);
    assert_eq!(restored.records(), known.records());
    known.see_listed(&found(&["a", "b"]), at(0));
    assert!(known.devices().all(|device| device.is_present() && device.class == AMD && device.read_at.is_none()));

    let mut other = Known::restore(known.records(), BOOT);
    assert!(other.is_empty(), "a device of another class is not known, so it is not lost either");
    other.see(&found(&["a"]), at(0));
    assert!(device(&other, "a").cordoned, "a cordon is remembered");
}
