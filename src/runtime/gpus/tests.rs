use proptest::prelude::*;

use super::*;
use crate::gpu::DriverVersions;
use crate::gpu::device::Presence;
use crate::types::Timestamp;

fn gpu(n: u32) -> Device {
    Device { minor: Some(n), ..Device::new(format!("GPU-{n}"), n, "L4".to_owned()) }
}

fn mig(n: u32) -> Device {
    Device {
        mig_parent: Some("GPU-0".to_owned()),
        minor: Some(0),
        ..Device::new(format!("MIG-{n}"), n, "1g".to_owned())
    }
}

fn toolkit(version: [u32; 3]) -> Toolkit {
    Toolkit { version: Some(version), ..Toolkit::default() }
}

fn listed(devices: &[(&str, &[&str])]) -> Option<BTreeMap<String, CdiDevice>> {
    let device = |(name, nodes): &(&str, &[&str])| {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        (format!("nvidia.com/gpu={name}"), CdiDevice { nodes, ..CdiDevice::default() })
    };
    Some(devices.iter().map(device).collect())
}

fn way(engine: &EngineGpus, devices: &[&Device]) -> Result<Way, Lack> {
    GpuSupport::from(engine.clone()).way(devices, &Driver::Unknown).map(Option::unwrap)
}

/// A host with these devices and nothing known of its driver.
fn on(devices: &[Device]) -> Snapshot {
    Snapshot { devices: devices.to_vec(), ..Snapshot::default() }
}

/// The driver runs in this version.
fn driver(version: &str) -> Driver {
    Driver::Up(DriverVersions { driver: version.to_owned(), ..DriverVersions::default() })
}

fn cdi(names: &[&str]) -> Result<Way, Lack> {
    Ok(Way::Cdi(names.iter().map(|name| format!("nvidia.com/gpu={name}")).collect()))
}

#[test]
fn a_current_runtime_comes_before_cdi_and_cdi_before_an_older_runtime() {
    let (jit, older) = (Ok(Way::Runtime { jit: true }), Ok(Way::Runtime { jit: false }));
    let with = |toolkit, cdi| EngineGpus { toolkit, cdi, ..EngineGpus::default() };
    let list = || listed(&[("GPU-0", &[])]);
    assert_eq!(way(&with(Some(toolkit([1, 18, 0])), list()), &[&gpu(0)]), jit);
    assert_eq!(way(&with(Some(toolkit([2, 0, 0])), None), &[&gpu(0)]), jit);
    for old in [toolkit([1, 17, 9]), Toolkit::default(), toolkit([0, 19, 0])] {
        assert_eq!(way(&with(Some(old.clone()), list()), &[&gpu(0)]), cdi(&["GPU-0"]), "{old:?}");
        assert_eq!(way(&with(Some(old.clone()), None), &[&gpu(0)]), older, "{old:?}");
        assert_eq!(way(&with(Some(old), list()), &[&gpu(0), &gpu(1)]), older, "one is not listed");
    }
    let legacy = Toolkit { mode: Some("legacy".to_owned()), ..toolkit([1, 19, 0]) };
    assert_eq!(way(&with(Some(legacy.clone()), list()), &[&gpu(0)]), cdi(&["GPU-0"]));
    assert_eq!(way(&with(Some(legacy), None), &[&gpu(0)]), older);
    let silent = Toolkit { ignores_env: true, ..toolkit([1, 19, 0]) };
    assert_eq!(way(&with(Some(silent.clone()), list()), &[&gpu(0)]), cdi(&["GPU-0"]));
    let lack = way(&with(Some(silent), None), &[&gpu(0)]).unwrap_err().to_string();
    assert!(lack.contains("accept-nvidia-visible-devices-envvar-when-unprivileged = true"), "{lack}");
}

#[test]
fn the_operator_decides_otherwise() {
    let with = |hand_over| EngineGpus {
        hand_over,
        toolkit: Some(toolkit([1, 14, 0])),
        cdi: listed(&[("GPU-0", &[])]),
        ..EngineGpus::default()
    };
    assert_eq!(way(&with(HandOver::Runtime), &[&gpu(0)]), Ok(Way::Runtime { jit: false }));
    let best = EngineGpus { toolkit: Some(toolkit([1, 18, 0])), ..with(HandOver::Cdi) };
    assert_eq!(way(&best, &[&gpu(0)]), cdi(&["GPU-0"]));
    assert_eq!(way(&best, &[&gpu(1)]), Err(Lack::NotListed("GPU-1".to_owned())), "nothing else is taken for it");
    let none = EngineGpus { hand_over: HandOver::Runtime, ..EngineGpus::default() };
    assert!(way(&none, &[&gpu(0)]).unwrap_err().to_string().contains("nvidia-ctk runtime configure"));
    let off = EngineGpus { hand_over: HandOver::Cdi, ..EngineGpus::default() };
    assert!(way(&off, &[&gpu(0)]).unwrap_err().to_string().contains("features"));
}

#[test]
fn an_index_counts_only_if_its_nodes_are_those_of_the_gpu() {
    let name = |nodes: &[(&str, &[&str])], device: &Device| {
        way(&EngineGpus { cdi: listed(nodes), ..EngineGpus::default() }, &[device])
    };
    let renumbered: &[(&str, &[&str])] = &[
        ("0", &["/dev/nvidia1", "/dev/dri/card1", "/dev/nvidiactl"]),
        ("1", &["/dev/nvidia0"]),
        ("all", &["/dev/nvidia0", "/dev/nvidia1"]),
    ];
    assert_eq!(name(renumbered, &gpu(0)), cdi(&["1"]));
    assert_eq!(name(renumbered, &gpu(1)), cdi(&["0"]));
    assert!(name(renumbered, &gpu(2)).is_err());
    assert!(name(renumbered, &Device { minor: None, ..gpu(0) }).is_err(), "its minor number is not known");
    assert!(name(&[("0", &[])], &gpu(0)).is_err(), "the file cannot be read");
    assert!(name(&[("all", &["/dev/nvidia0"])], &gpu(0)).is_err());
    assert!(name(&[("0", &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12"])], &gpu(0)).is_err(), "a part of it");
    let other = Device { class: "amd.com/gpu".to_owned(), ..gpu(0) };
    assert!(name(renumbered, &other).is_err(), "the list is of another class");
}

#[test]
fn a_mig_instance_is_known_by_its_uuid_only() {
    let list = listed(&[("0", &["/dev/nvidia0"]), ("0:0", &["/dev/nvidia0"]), ("MIG-1", &["/dev/nvidia0"])]);
    let by_cdi = EngineGpus { cdi: list, ..EngineGpus::default() };
    assert_eq!(way(&by_cdi, &[&mig(1)]), cdi(&["MIG-1"]));
    assert_eq!(way(&by_cdi, &[&mig(2)]), Err(Lack::MigNotListed("MIG-2".to_owned())));
    let by_runtime = EngineGpus { toolkit: Some(toolkit([1, 14, 0])), ..by_cdi.clone() };
    assert_eq!(way(&by_runtime, &[&mig(2)]), Ok(Way::Runtime { jit: false }));
    let conditions = GpuSupport::from(by_cdi).conditions(&on(&[mig(1), mig(2)]));
    let [(ConditionKind::MigUnsupported, message)] = &conditions[..] else { panic!("{conditions:?}") };
    assert!(message.contains("MIG-2; run: nvidia-ctk cdi generate") && !message.contains("MIG-1"), "{message}");
}

#[test]
fn a_host_whose_engine_has_no_way_says_so_and_offers_none() {
    let nothing = GpuSupport::from(EngineGpus::default());
    let [(ConditionKind::GpuRuntimeMissing, message)] = &nothing.conditions(&on(&[gpu(0), gpu(1)]))[..] else {
        panic!()
    };
    assert!(message.contains("nvidia-ctk runtime configure --runtime=docker"), "{message}");
    assert_eq!(nothing.withheld(&on(&[gpu(0), gpu(1)])).as_ref(), Some(message));
    let dev = Device::new("GPU-dev-0000".to_owned(), 0, "dev".to_owned());
    let lost = Device { presence: Presence::Lost { since: Timestamp::from_millis(0), why: String::new() }, ..gpu(0) };
    for none in [&[][..], &[dev], &[lost]] {
        assert_eq!((nothing.withheld(&on(none)), nothing.conditions(&on(none))), (None, Vec::new()), "{none:?}");
    }
    assert_eq!(GpuSupport::Direct.withheld(&on(&[gpu(0)])), None, "the process runtime needs no way");

    let half = GpuSupport::from(EngineGpus { cdi: listed(&[("GPU-0", &[])]), ..EngineGpus::default() });
    assert_eq!(half.withheld(&on(&[gpu(0), gpu(1)])), None);
    let conditions = half.conditions(&on(&(0..6).map(gpu).collect::<Vec<_>>()));
    let [(ConditionKind::GpuRuntimeMissing, message)] = &conditions[..] else { panic!("{conditions:?}") };
    assert!(message.contains("GPU-1, GPU-2, GPU-3 and 2 more; run: nvidia-ctk cdi generate"), "{message}");
}

/// An engine whose list was made for driver 550.54 and has six GPUs.
fn of_550(toolkit: Option<Toolkit>) -> EngineGpus {
    let names: Vec<String> = (0..6).map(|n| format!("GPU-{n}")).collect();
    let mut cdi = listed(&names.iter().map(|name| (name.as_str(), &[][..])).collect::<Vec<_>>()).unwrap();
    cdi.values_mut().for_each(|device| device.libraries = Some("550.54".to_owned()));
    EngineGpus { toolkit, cdi: Some(cdi), ..EngineGpus::default() }
}

#[test]
fn a_list_of_another_driver_hands_nothing_over_and_a_condition_names_the_command() {
    let support = GpuSupport::from(of_550(None));
    let gpus = |driver| Snapshot { driver, ..on(&(0..6).map(gpu).collect::<Vec<_>>()) };
    for unknown in [driver("550.54"), driver(""), Driver::Unknown, Driver::Absent { why: String::new() }] {
        assert_eq!(support.lack(&gpu(0), &unknown), None, "{unknown:?}");
        assert_eq!((support.withheld(&gpus(unknown.clone())), support.conditions(&gpus(unknown))), (None, Vec::new()));
    }
    let lack = support.lack(&gpu(1), &driver("580.65.06")).unwrap().to_string();
    assert!(lack.contains("out of date for GPU-1") && lack.contains("driver 550.54, "), "{lack}");
    let upgraded = gpus(driver("580.65.06"));
    assert!(support.withheld(&upgraded).unwrap().contains("out of date for GPU-0"));
    let [(ConditionKind::GpuRuntimeMissing, message)] = &support.conditions(&upgraded)[..] else { panic!() };
    let why =
        "GPU-0, GPU-1, GPU-2 and 3 more: it has the libraries of driver 550.54, and the host runs driver 580.65.06";
    assert!(
        message.contains(why) && message.ends_with("; run: nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml"),
        "{message}"
    );

    let mut half = of_550(None);
    half.cdi.as_mut().unwrap().remove("nvidia.com/gpu=GPU-5");
    let conditions = GpuSupport::from(half).conditions(&upgraded);
    let [(ConditionKind::GpuRuntimeMissing, message)] = &conditions[..] else { panic!("{conditions:?}") };
    assert!(message.contains("does not have GPU GPU-5") && message.contains("out of date for GPU-0"), "{message}");
}

#[test]
fn only_the_list_is_out_of_date_and_a_runtime_hands_over_all_the_same() {
    let way = |engine: EngineGpus| GpuSupport::from(engine).way(&[&gpu(0)], &driver("580.65.06"));
    assert_eq!(way(of_550(Some(toolkit([1, 18, 0])))), Ok(Some(Way::Runtime { jit: true })));
    let older = || Some(toolkit([1, 17, 0]));
    assert_eq!(way(of_550(older())), Ok(Some(Way::Runtime { jit: false })));
    let stale = |engine| matches!(way(engine), Err(Lack::Stale { .. }));
    assert!(stale(EngineGpus { hand_over: HandOver::Cdi, ..of_550(older()) }), "the operator wants nothing else");
    let systemd = GpuSupport::from(EngineGpus { has_systemd_cgroups: true, ..of_550(older()) });
    let kinds = |driver| {
        let conditions = systemd.conditions(&Snapshot { driver, ..on(&[gpu(0)]) });
        conditions.into_iter().map(|(kind, _)| kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(driver("550.54")), [], "CDI is used");
    assert_eq!(kinds(driver("580.65.06")), [ConditionKind::GpuReloadHazard], "the older runtime is used");

    let mut renumbered = of_550(None);
    renumbered.majors = Majors::of("195 nvidia\n511 nvidia-uvm\n");
    let uvm = |listed: &mut CdiDevice| listed.majors = [("/dev/nvidia-uvm".to_owned(), 510)].into();
    renumbered.cdi.iter_mut().flatten().for_each(|(_, listed)| uvm(listed));
    let lack = GpuSupport::from(renumbered).lack(&gpu(0), &Driver::Unknown).unwrap().to_string();
    assert!(lack.contains("/dev/nvidia-uvm the major number 510") && lack.contains("cdi generate"), "{lack}");
}

#[test]
fn an_older_runtime_is_a_hazard_under_systemd_cgroups() {
    let hazard = |toolkit, cdi, has_systemd_cgroups| {
        let engine = EngineGpus { toolkit: Some(toolkit), cdi, has_systemd_cgroups, ..EngineGpus::default() };
        let conditions = GpuSupport::from(engine).conditions(&on(&[gpu(0)]));
        conditions.iter().any(|(kind, _)| *kind == ConditionKind::GpuReloadHazard)
    };
    let mode = |mode: &str| Toolkit { mode: Some(mode.to_owned()), ..toolkit([1, 16, 0]) };
    assert!(hazard(toolkit([1, 17, 0]), None, true) && hazard(Toolkit::default(), None, true));
    assert!(hazard(Toolkit { version: Some([1, 18, 0]), ..mode("legacy") }, None, true));
    assert!(!hazard(toolkit([1, 17, 0]), None, false), "the cgroupfs driver keeps the devices");
    assert!(!hazard(toolkit([1, 18, 0]), None, true));
    assert!(!hazard(toolkit([1, 17, 0]), listed(&[("GPU-0", &[])]), true), "CDI is used");
    assert!(!hazard(mode("cdi"), None, true));
}

#[test]
fn the_way_is_told_in_words() {
    let text = |engine: EngineGpus| GpuSupport::from(engine).to_string();
    let by = |toolkit| EngineGpus { toolkit: Some(toolkit), ..EngineGpus::default() };
    assert_eq!(text(by(toolkit([1, 18, 0]))), "GPUs by the nvidia runtime 1.18.0");
    assert_eq!(text(by(Toolkit::default())), "GPUs by the nvidia runtime of a version that is not known");
    let legacy = Toolkit { mode: Some("legacy".to_owned()), ..toolkit([1, 18, 0]) };
    assert_eq!(text(by(legacy)), "GPUs by the nvidia runtime 1.18.0 in legacy mode");
    assert_eq!(text(EngineGpus { cdi: listed(&[("0", &[])]), ..EngineGpus::default() }), "GPUs by CDI");
    assert_eq!(text(EngineGpus { cdi: listed(&[]), ..EngineGpus::default() }), "");
    assert_eq!(text(EngineGpus::default()) + &GpuSupport::Direct.to_string(), "");
}

/// The GPUs of AMD in the list, with where they are.
fn amd(devices: &[(&str, Place, &[&str])]) -> EngineGpus {
    let device = |(name, place, nodes): &(&str, Place, &[&str])| {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        (format!("amd.com/gpu={name}"), CdiDevice { nodes, place: place.clone(), ..CdiDevice::default() })
    };
    EngineGpus {
        class: "amd.com/gpu".to_owned(),
        cdi: Some(devices.iter().map(device).chain(listed(&[("0", &["/dev/nvidia0"])]).unwrap()).collect()),
        // Neither is for GPUs of other makers.
        toolkit: Some(toolkit([1, 18, 0])),
        hand_over: HandOver::Runtime,
        ..EngineGpus::default()
    }
}

fn pci(addresses: &[&str]) -> Place {
    Place::Pci(addresses.iter().map(|&address| address.to_owned()).collect())
}

fn amd_device(name: &str, address: Option<&str>) -> Device {
    let device = Device::new(format!("{name}-node"), 0, format!("amd.com/gpu={name}"));
    Device { class: "amd.com/gpu".to_owned(), pci_address: address.map(str::to_owned), ..device }
}

const ONE: &str = "0000:03:00.0";
const TWO: &str = "0000:43:00.0";

#[test]
fn the_gpus_of_another_maker_are_the_single_ones_of_its_class_that_are_there() {
    let engine = amd(&[
        ("0", pci(&[ONE]), &[]),
        ("1", Place::Unknown, &[]),
        ("2", Place::Missing, &[]),
        ("all", Place::Unknown, &[]),
        ("both", pci(&[ONE, TWO]), &[]),
        ("the-first-again", pci(&[ONE]), &[]),
    ]);
    let names = |engine: EngineGpus| {
        let listed = GpuSupport::from(engine).listed();
        listed.into_iter().map(|listed| (listed.name, listed.pci_address)).collect::<Vec<_>>()
    };
    let expected = [("amd.com/gpu=0".to_owned(), Some(ONE.to_owned())), ("amd.com/gpu=1".to_owned(), None)];
    assert_eq!(names(engine.clone()), expected);
    assert_eq!(names(EngineGpus { class: NVIDIA_CLASS.to_owned(), ..engine }), [], "the driver lists those");
    assert_eq!(GpuSupport::Direct.listed(), []);
}

#[test]
fn a_gpu_of_another_maker_is_handed_over_by_its_address_whatever_its_name_was() {
    let engine = amd(&[("0", pci(&[TWO]), &[]), ("1", pci(&[ONE]), &[]), ("card2", Place::Unknown, &[])]);
    let name = |device: &Device| match way(&engine, &[device]) {
        Ok(Way::Cdi(names)) => names.concat(),
        other => format!("{other:?}"),
    };
    assert_eq!(name(&amd_device("0", Some(ONE))), "amd.com/gpu=1", "the list counts otherwise now");
    assert_eq!(name(&amd_device("card2", None)), "amd.com/gpu=card2");
    let gone = amd_device("3", Some("0000:99:00.0"));
    assert_eq!(way(&engine, &[&gone]), Err(Lack::OtherNotListed("3-node".to_owned())));
    let other = Device { class: "intel.com/gpu".to_owned(), ..amd_device("card2", None) };
    assert!(way(&engine, &[&other]).is_err());
    assert_eq!(GpuSupport::from(engine).to_string(), "GPUs by CDI");
}

#[test]
fn the_nodes_of_a_gpu_are_those_that_no_other_has_alone() {
    let both: &[&str] = &["/dev/dri/renderD128", "/dev/dri/renderD129", "/dev/kfd"];
    let engine = GpuSupport::from(amd(&[
        ("0", pci(&[ONE]), &["/dev/dri/renderD128", "/dev/kfd"]),
        ("1", pci(&[TWO]), &["/dev/dri/renderD129", "/dev/kfd"]),
        ("all", pci(&[ONE, TWO]), both),
        ("2", Place::Unknown, &[]),
    ]));
    let one = engine.nodes(&[&amd_device("0", Some(ONE))]).unwrap();
    let of = |nodes: BTreeSet<String>| nodes.into_iter().collect::<Vec<_>>();
    assert_eq!((of(one.own), of(one.others)), (vec![both[0].to_owned(), both[2].to_owned()], vec![both[1].to_owned()]));
    let two = engine.nodes(&[&amd_device("0", Some(ONE)), &amd_device("1", Some(TWO))]).unwrap();
    assert_eq!((two.own.len(), two.others.len()), (3, 0));
    assert_eq!(engine.nodes(&[&amd_device("2", None)]), None, "the files do not tell");
    assert_eq!(engine.nodes(&[&gpu(0)]), None, "that is a GPU of NVIDIA's");
}

#[test]
fn a_host_without_the_gpus_of_its_class_says_what_is_absent() {
    let only = |engine: EngineGpus, devices: &[Device]| {
        let conditions = GpuSupport::from(engine).conditions(&on(devices));
        let [(ConditionKind::GpuRuntimeMissing, message)] = &conditions[..] else { panic!("{conditions:?}") };
        message.clone()
    };
    let text = only(amd(&[("0", Place::Missing, &[])]), &[]);
    assert!(text.contains("no amd.com/gpu") && text.contains("amd-ctk cdi generate"), "{text}");
    let off = EngineGpus { cdi: None, ..amd(&[]) };
    for devices in [vec![], vec![amd_device("0", None)]] {
        let text = only(off.clone(), &devices);
        assert!(text.contains("\"features\": {\"cdi\": true}") && !text.contains("hand_over"), "{text}");
    }
    let text = only(amd(&[("0", pci(&[ONE]), &[])]), &[amd_device("1", Some(TWO))]);
    assert!(text.contains("does not have GPU 1-node"), "{text}");
    let dev = Device::new("GPU-dev-0000".to_owned(), 0, "dev".to_owned());
    for (engine, devices) in [(amd(&[("0", pci(&[ONE]), &[])]), [amd_device("0", Some(ONE))]), (amd(&[]), [dev])] {
        assert_eq!(GpuSupport::from(engine).conditions(&on(&devices)), []);
    }
}

fn of_nodes(nodes: BTreeSet<String>) -> CdiDevice {
    CdiDevice { nodes, ..CdiDevice::default() }
}

prop_compose! {
    fn engine()(
        hand_over in prop_oneof![Just(HandOver::Auto), Just(HandOver::Runtime), Just(HandOver::Cdi)],
        version in proptest::option::of((0..3u32, 0..30u32, 0..3u32).prop_map(|(a, b, c)| [a, b, c])),
        has_toolkit: bool, ignores_env: bool, systemd: bool,
        mode in proptest::option::of("auto|legacy|cdi|csv"),
        names in proptest::option::of(proptest::collection::btree_map(
            "(nvidia|amd).com/gpu=(GPU-)?[0-3]", proptest::collection::btree_set("/dev/nvidia[0-3]", 0..3), 0..5,
        )),
    ) -> EngineGpus {
        EngineGpus {
            hand_over,
            toolkit: has_toolkit.then_some(Toolkit { version, mode, ignores_env }),
            cdi: names.map(|names| names.into_iter().map(|(name, nodes)| (name, of_nodes(nodes))).collect()),
            class: NVIDIA_CLASS.to_owned(),
            cdi_nodes_are_owned: false,
            majors: Majors::default(),
            has_systemd_cgroups: systemd,
        }
    }
}

proptest! {
    /// The way gives each device by a name that is its own, and a device without a way is named by a condition.
    #[test]
    fn each_device_is_given_by_its_own_name_or_named_by_a_condition(
        engine in engine(), which in proptest::sample::subsequence(vec![0, 1, 2, 3], 1..4),
    ) {
        let devices: Vec<Device> = which.into_iter().map(gpu).collect();
        let support = GpuSupport::from(engine.clone());
        match support.way(&devices.iter().collect::<Vec<_>>(), &Driver::Unknown) {
            Ok(Some(Way::Cdi(names))) => {
                prop_assert_eq!(names.len(), devices.len());
                let listed = engine.cdi.unwrap();
                for (name, device) in names.iter().zip(&devices) {
                    let minors: Vec<_> = listed[name].nodes.iter().collect();
                    let is_its_node = minors == [&format!("/dev/nvidia{}", device.minor.unwrap())];
                    prop_assert!(name == &format!("nvidia.com/gpu={}", device.uuid) || is_its_node, "{name}");
                }
            }
            Ok(way) => {
                prop_assert!(way.is_some() && engine.toolkit.is_some());
                prop_assert!(engine.hand_over != HandOver::Cdi);
            }
            Err(_) => {
                let conditions = support.conditions(&on(&devices));
                prop_assert!(conditions.iter().any(|(kind, _)| *kind == ConditionKind::GpuRuntimeMissing));
            }
        }
    }
}
