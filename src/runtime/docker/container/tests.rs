//! For every request, the agent sends the engine only what the allow-list permits.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use bollard::models::{ContainerConfig, PortSummaryTypeEnum};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::runtime::docker::gpus::fields::Graphics;
use crate::runtime::gpus::Way;
use crate::runtime::{Mount, Oom};
use crate::types::{GpuCapability, Init, Protocol, PullPolicy};

fn config(cpu_mode: CpuMode) -> Config {
    Config {
        cluster: "lab".parse().unwrap(),
        node: "k3f7q2m5x6a4b7c2".parse().unwrap(),
        host: "unix:///var/run/docker.sock".to_owned(),
        cpu_mode,
        cap_allow: super::super::DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
        publish_address: "127.0.0.1".parse().unwrap(),
        network_subnet: None,
        idle_ignore: Vec::new(),
        hand_over: crate::runtime::HandOver::Auto,
        gpu_class: crate::types::NVIDIA_CLASS.to_owned(),
        images_path: None,
    }
}

/// Text as a hostile caller would send it.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,20}",
        "[A-Z_]{1,8}",
        Just("ostler.session".to_owned()),
        Just("--privileged".to_owned()),
        Just(r#"","Privileged":true,"x":""#.to_owned()),
        Just("/:/host".to_owned()),
        Just("NVIDIA_VISIBLE_DEVICES".to_owned()),
        Just("NVIDIA_VISIBLE_DEVICES=all".to_owned()),
        Just("host".to_owned()),
    ]
}

fn port() -> impl Strategy<Value = PortBinding> {
    (any::<u16>(), any::<bool>(), any::<u16>()).prop_map(|(container_port, udp, host_port)| PortBinding {
        container_port,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        host_port,
    })
}

fn program() -> impl Strategy<Value = (Vec<String>, Option<String>, Vec<String>)> {
    let words = || proptest::collection::vec(hostile(), 0..3);
    (words(), proptest::option::of(hostile()), words())
}

prop_compose! {
    fn launch()(
        key in hostile(),
        user in "[A-Za-z|ö][A-Za-z0-9._@+|{} ö\\\\-]{0,18}[A-Za-z|ö]",
        image in proptest::option::of(hostile()),
        command in proptest::collection::vec(hostile(), 0..4),
        env in proptest::collection::btree_map(hostile(), hostile(), 0..5),
        cores in any::<u64>(), memory in any::<u64>(), gpus in any::<u32>(), shm in any::<u64>(),
        gpu_uuids in proptest::collection::vec(hostile(), 0..3),
        ports in proptest::collection::vec(port(), 0..4),
        volumes in proptest::collection::vec((hostile(), hostile(), any::<bool>()), 0..3),
        network in proptest::option::of("[a-z0-9]{1,8}|host"),
        (entrypoint, run_as, tmpfs) in program(),
        read_only in any::<bool>(),
    ) -> Launch {
        Launch {
            session: SessionId::of_key(&"lab".parse().unwrap(), &key),
            user: user.parse().unwrap(),
            workspace: "desktop".parse().unwrap(),
            image,
            pull: PullPolicy::Missing,
            command,
            env,
            resources: Resources::new(Cores::from_milli(cores), Bytes::new(memory), gpus),
            gpu_uuids,
            gpu_capabilities: Vec::new(),
            gpu_memory: None,
            ports,
            volumes: volumes
                .into_iter()
                .map(|(name, path, read_only)| Mount { name, path, read_only, user: None })
                .collect(),
            shm: Bytes::new(shm),
            stop_grace: Duration::from_secs(10),
            entrypoint,
            run_as,
            init: Init::Auto,
            tmpfs,
            read_only,
            network: network.map(|name| name.parse().unwrap()),
        }
    }
}

fn around<'a>(volumes: &'a [String]) -> Surroundings<'a> {
    static NONE: LazyLock<Fields> = LazyLock::new(Fields::none);
    Surroundings { network: "ostler-lab", volumes, brings_init: false, engine_cores: Cores::whole(8), gpus: &NONE }
}

/// Every leaf of a JSON document with its path. `[]` stands for any element, `*` for the key of a map.
fn leaves(path: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    const MAPS: [&str; 5] =
        ["Labels", "ExposedPorts", "HostConfig.PortBindings", "HostConfig.LogConfig.Config", "HostConfig.Tmpfs"];
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let shown = if MAPS.contains(&path) { "*" } else { key };
                let next = if path.is_empty() { shown.to_owned() } else { format!("{path}.{shown}") };
                leaves(&next, value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(&format!("{path}[]"), item, into)),
        leaf => into.push((path.to_owned(), leaf.clone())),
    }
}

fn graphics() -> impl Strategy<Value = Vec<Graphics>> {
    let nodes = (any::<bool>(), any::<bool>(), proptest::collection::btree_set(1..2000u32, 0..3)).prop_map(
        |(card, render, groups)| Graphics {
            card: card.then(|| "/dev/dri/card1".to_owned()),
            render: render.then(|| "/dev/dri/renderD129".to_owned()),
            groups,
        },
    );
    proptest::collection::vec(nodes, 0..3)
}

/// What a container may get because of GPUs, and how.
fn gpus() -> impl Strategy<Value = (Option<Way>, bool, Vec<Graphics>)> {
    let cdi = Just(Way::Cdi(vec!["nvidia.com/gpu=GPU-1".to_owned()]));
    let way = prop_oneof![any::<bool>().prop_map(|jit| Way::Runtime { jit }), cdi];
    (proptest::option::of(way), any::<bool>(), graphics())
}

/// Everything that may be sent to the engine. A line added here gives requests more power.
fn allowed(config: &Config, volumes: &[String], path: &str, value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    match path {
        // The caller's free choice: it is text inside the container, and nothing else.
        "Image" | "Entrypoint[]" | "Cmd[]" | "User" | "HostConfig.Mounts[].Target" | "Labels.*" => value.is_string(),
        "Env[]" => value.is_string() && !text.starts_with('='),
        "Hostname" => text.len() == HOSTNAME_LEN && text.bytes().all(|b| b.is_ascii_alphanumeric()),
        // Limits, always set.
        "HostConfig.Memory" | "HostConfig.NanoCpus" | "HostConfig.CpuShares" | "HostConfig.ShmSize" => {
            value.as_i64().is_some_and(|n| n >= 0)
        }
        "HostConfig.MemorySwap" => *value == SWAP_WITHOUT_LIMIT,
        "HostConfig.PidsLimit" => *value == PIDS,
        "HostConfig.LogConfig.Type" => text == "json-file",
        "HostConfig.LogConfig.Config.*" => [LOG_FILE_SIZE, LOG_FILES].contains(&text),
        "HostConfig.Init" | "HostConfig.ReadonlyRootfs" => value.is_boolean(),
        // The engine's own options for it: no devices, no programs with other users' rights.
        "HostConfig.Tmpfs.*" => text.is_empty(),
        "HostConfig.RestartPolicy.Name" => text == "no",
        // Confinement.
        "HostConfig.CapDrop[]" => text == "ALL",
        "HostConfig.CapAdd[]" => config.cap_allow.iter().any(|cap| cap == text),
        "HostConfig.SecurityOpt[]" => text == "no-new-privileges",
        "HostConfig.NetworkMode" => text == "ostler-lab",
        "HostConfig.Mounts[].Type" => text == "volume",
        "HostConfig.Mounts[].Source" => volumes.iter().any(|volume| volume == text),
        "HostConfig.Mounts[].ReadOnly" => value.is_boolean(),
        "HostConfig.PortBindings.*[].HostIp" => text == config.publish_address.to_string(),
        "HostConfig.PortBindings.*[].HostPort" => text.parse::<u16>().is_ok(),
        // GPUs, to sessions that hold them: by one runtime, or by full names, and never by number.
        "HostConfig.Runtime" => text == "nvidia",
        "HostConfig.DeviceRequests[].Driver" => text == "cdi",
        "HostConfig.DeviceRequests[].DeviceIDs[]" => text == "nvidia.com/gpu=GPU-1",
        // The groups of graphics nodes, by number, and never root's.
        "HostConfig.GroupAdd[]" => text.parse::<u32>().is_ok_and(|group| group > 0),
        _ => false,
    }
}

proptest! {
    #[test]
    fn nothing_but_the_allow_list_is_ever_sent(
        launch in launch(), shares in any::<bool>(), (way, are_owned, graphics) in gpus(),
    ) {
        let config = config(if shares { CpuMode::Shares } else { CpuMode::Quota });
        let volumes: Vec<String> = (0..launch.volumes.len()).map(|i| format!("ostler-lab.v{i}")).collect();
        let fields = way.as_ref().map_or_else(Fields::none, |way| Fields::of(&launch, way, are_owned, &graphics));
        let around = Surroundings { gpus: &fields, ..around(&volumes) };
        let Ok(body) = body(&config, &launch, &around) else {
            let unnamed = |name: &String| name.is_empty() || name.contains(['=', '\0']);
            prop_assert!(launch.image.is_none() || launch.env.keys().any(unnamed));
            return Ok(());
        };
        let json = serde_json::to_value(&body).unwrap();
        let mut sent = Vec::new();
        leaves("", &json, &mut sent);
        for (path, value) in &sent {
            prop_assert!(allowed(&config, &volumes, path, value), "{path}: {value}");
        }
        // The fields that confine a session must be present, not only allowed.
        for path in ["CapDrop[]", "SecurityOpt[]", "Memory", "PidsLimit", "NetworkMode", "LogConfig.Type"] {
            prop_assert!(sent.iter().any(|(sent, _)| *sent == format!("HostConfig.{path}")), "{path}");
        }
        let ours: BTreeSet<&str> = json["Labels"].as_object().unwrap().keys().map(String::as_str).collect();
        prop_assert_eq!(ours, BTreeSet::from([
            LABEL_CLUSTER, LABEL_NODE, LABEL_SESSION, LABEL_WORKSPACE, LABEL_USER, LABEL_CORES, LABEL_MEMORY,
            LABEL_GPUS, LABEL_GPU_MEMORY, LABEL_GPU_UUIDS,
        ]));
        prop_assert_eq!(&json["Labels"][LABEL_SESSION], launch.session.as_str());
        let env: Vec<&str> = json["Env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let visible: Vec<_> = env.iter().filter_map(|entry| entry.strip_prefix("NVIDIA_VISIBLE_DEVICES=")).collect();
        let is_by_runtime = matches!(way, Some(Way::Runtime { .. }));
        let own = launch.gpu_uuids.join(",");
        prop_assert_eq!(visible, [if is_by_runtime { own.as_str() } else { "void" }]);
        let sent = |name: &str| sent.iter().any(|(path, _)| path.starts_with(&format!("HostConfig.{name}")));
        prop_assert_eq!(sent("Runtime"), is_by_runtime);
        prop_assert_eq!(sent("DeviceRequests"), matches!(way, Some(Way::Cdi(_))));
        prop_assert!(way.is_some() || !sent("GroupAdd"));
    }

    #[test]
    fn a_created_container_is_read_back_from_its_labels(launch in launch()) {
        let mut launch = launch;
        launch.image = Some("busybox:1".to_owned());
        launch.env.clear();
        launch.gpu_uuids = vec!["GPU-1".to_owned(), "GPU-2".to_owned()];
        launch.ports.sort();
        let config = config(CpuMode::Quota);
        let body = body(&config, &launch, &around(&[])).unwrap();
        let inspected = inspected(&config, &launch.session, body);
        prop_assert!(is_ours(&config, &launch.session, &inspected));
        let mut found = found(&config.cluster, &listed(&inspected)).unwrap();
        describe(&mut found, &inspected);
        prop_assert_eq!(&found.renamed, &None);
        prop_assert_eq!(found.container, Some(Container::Created));
        prop_assert_eq!(found.node, config.node);
        prop_assert_eq!(found.session, launch.session);
        prop_assert_eq!(found.user, launch.user);
        prop_assert_eq!(found.resources, launch.resources);
        prop_assert_eq!(found.gpu_uuids, launch.gpu_uuids);
        prop_assert_eq!(found.image, launch.image);
        prop_assert_eq!(found.ports, launch.ports);
    }
}

/// What the engine would report about a container created from `body`.
fn inspected(config: &Config, session: &SessionId, body: ContainerCreateBody) -> ContainerInspectResponse {
    ContainerInspectResponse {
        id: Some("c0ffee".to_owned()),
        name: Some(format!("/{}", container_name(&config.cluster, session))),
        config: Some(ContainerConfig { labels: body.labels, image: body.image, ..ContainerConfig::default() }),
        host_config: body.host_config,
        ..ContainerInspectResponse::default()
    }
}

/// The line of the engine's list about an inspected container.
fn listed(inspected: &ContainerInspectResponse) -> ContainerSummary {
    let config = inspected.config.clone().unwrap();
    ContainerSummary {
        id: inspected.id.clone(),
        names: inspected.name.clone().map(|name| vec![name]),
        image: config.image,
        labels: config.labels,
        ..ContainerSummary::default()
    }
}

fn some_launch() -> Launch {
    Launch {
        session: SessionId::of_key(&"lab".parse().unwrap(), "k"),
        user: "alice".parse().unwrap(),
        workspace: "desktop".parse().unwrap(),
        image: Some("busybox".to_owned()),
        pull: PullPolicy::Missing,
        command: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::new(Cores::from_milli(1500), Bytes::mib(64), 0),
        gpu_uuids: Vec::new(),
        gpu_capabilities: Vec::new(),
        gpu_memory: None,
        ports: Vec::new(),
        volumes: Vec::new(),
        shm: Bytes::mib(64),
        stop_grace: Duration::from_secs(10),
        entrypoint: Vec::new(),
        run_as: None,
        init: Init::Auto,
        tmpfs: Vec::new(),
        read_only: false,
        network: None,
    }
}

#[test]
fn a_quota_never_exceeds_the_engine_and_shares_are_per_core() {
    let cpu = |mode, cores| {
        let mut launch = some_launch();
        launch.resources.cores = cores;
        let host = body(&config(mode), &launch, &around(&[])).unwrap().host_config.unwrap();
        (host.nano_cpus, host.cpu_shares)
    };
    assert_eq!(cpu(CpuMode::Quota, Cores::from_milli(1500)), (Some(1_500_000_000), None));
    assert_eq!(cpu(CpuMode::Quota, Cores::whole(12)), (Some(8_000_000_000), None));
    assert_eq!(cpu(CpuMode::Shares, Cores::from_milli(1500)), (None, Some(1536)));
    assert_eq!(cpu(CpuMode::Shares, Cores::from_milli(1)), (None, Some(2)));
}

#[test]
fn the_engines_init_is_off_where_the_image_brings_one() {
    let init = |init, brings_init| {
        let launch = Launch { init, ..some_launch() };
        let around = Surroundings { brings_init, ..around(&[]) };
        body(&config(CpuMode::Quota), &launch, &around).unwrap().host_config.unwrap().init
    };
    assert_eq!([init(Init::Auto, false), init(Init::Auto, true)], [Some(true), Some(false)]);
    assert_eq!([init(Init::On, true), init(Init::Off, false)], [Some(true), Some(false)]);
    let is = |words: &[&str]| is_init(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
    for words in [&["/init"][..], &["/usr/bin/tini", "--", "/start"], &["/lib/systemd/systemd"], &["dumb-init", "x"]] {
        assert!(is(words), "{words:?}");
    }
    for words in [&[][..], &["/dockerstartup/vnc_startup.sh", "/init"], &["/bin/sh", "-c", "init"], &["/initialise"]] {
        assert!(!is(words), "{words:?}");
    }
}

#[test]
fn a_session_with_gpus_gets_the_variables_and_groups_of_its_way() {
    let mut launch = some_launch();
    launch.gpu_uuids = ["GPU-1", "GPU-2"].map(str::to_owned).to_vec();
    launch.gpu_capabilities = vec![GpuCapability::Compute, GpuCapability::Graphics];
    launch.env = BTreeMap::from([("KASM_RENDERD".to_owned(), "/dev/dri/mine".to_owned())]);
    let node = |card: Option<&str>, groups: &[u32]| Graphics {
        card: card.map(str::to_owned),
        render: card.map(|_| "/dev/dri/renderD128".to_owned()),
        groups: groups.iter().copied().collect(),
    };
    let graphics = [node(None, &[]), node(Some("/dev/dri/card0"), &[44, 105]), node(Some("/dev/dri/card1"), &[44])];
    let made = |way: Way, are_owned| {
        let fields = Fields::of(&launch, &way, are_owned, &graphics);
        let around = Surroundings { gpus: &fields, ..around(&[]) };
        let body = body(&config(CpuMode::Quota), &launch, &around).unwrap();
        assert_eq!(body.host_config.unwrap().group_add, Some(vec!["44".to_owned(), "105".to_owned()]));
        body.env.unwrap()
    };
    assert_eq!(
        made(Way::Runtime { jit: true }, true),
        [
            "KASM_EGL_CARD=/dev/dri/card0",
            "KASM_RENDERD=/dev/dri/mine",
            "NVIDIA_DRIVER_CAPABILITIES=compute,graphics",
            "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2",
        ]
    );
    let by_cdi = made(Way::Cdi(vec!["nvidia.com/gpu=0".to_owned()]), false);
    assert_eq!(by_cdi, ["KASM_RENDERD=/dev/dri/mine", "NVIDIA_VISIBLE_DEVICES=void"]);
}

#[test]
fn a_renamed_container_is_known_by_its_labels_and_has_both_names() {
    let config = config(CpuMode::Quota);
    let launch = some_launch();
    let mut inspected = inspected(&config, &launch.session, body(&config, &launch, &around(&[])).unwrap());
    inspected.name = Some("/mine".to_owned());
    let found = found(&config.cluster, &listed(&inspected)).unwrap();
    let expected = container_name(&config.cluster, &launch.session);
    assert_eq!(found.renamed, Some(Renamed { name: "mine".to_owned(), expected }));
}

#[test]
fn a_line_of_the_list_gives_the_ports_that_are_open() {
    let config = config(CpuMode::Quota);
    let launch = some_launch();
    let inspected = inspected(&config, &launch.session, body(&config, &launch, &around(&[])).unwrap());
    let port = |ip: &str, public_port| PortSummary {
        ip: Some(ip.to_owned()),
        private_port: 8080,
        public_port,
        typ: Some(PortSummaryTypeEnum::TCP),
    };
    let ports = vec![port("0.0.0.0", Some(20_000)), port("::", Some(20_000)), port("", None)];
    let found = found(&config.cluster, &ContainerSummary { ports: Some(ports), ..listed(&inspected) }).unwrap();
    let binding = PortBinding { container_port: 8080, protocol: Protocol::Tcp, host_port: 20_000 };
    assert_eq!((found.ports, found.container), (vec![binding], None));
}

#[test]
fn the_error_names_a_label_with_a_wrong_value() {
    let config = config(CpuMode::Quota);
    let launch = some_launch();
    let mut body = body(&config, &launch, &around(&[])).unwrap();
    body.labels.as_mut().unwrap().insert(LABEL_CORES.to_owned(), "many".to_owned());
    let inspected = inspected(&config, &launch.session, body);
    assert_eq!(found(&config.cluster, &listed(&inspected)).unwrap_err(), "its label ostler.cores_milli is `many`");
}

#[test]
fn each_state_of_the_engine_has_a_state_of_ours() {
    use ContainerStateStatusEnum as Status;
    let ended = |status, code| {
        state(&ContainerInspectResponse {
            state: Some(ContainerState {
                status: Some(status),
                started_at: Some("2026-01-31T12:00:00.5Z".to_owned()),
                finished_at: Some(NEVER.to_owned()),
                exit_code: Some(code),
                oom_killed: Some(true),
                ..ContainerState::default()
            }),
            ..ContainerInspectResponse::default()
        })
    };
    let state = |status| ended(status, 137);
    let run = || Run("2026-01-31T12:00:00.5Z".to_owned());
    let exited = Container::Exited(Exit { oom: Oom::Main, ..Exit::new(run(), 137) });
    assert_eq!(state(Status::CREATED), Container::Created);
    assert_eq!(state(Status::RUNNING), Container::Running(run()));
    assert_eq!(state(Status::PAUSED), Container::Paused(run()));
    assert_eq!(state(Status::EXITED), exited);
    for gone in [Status::REMOVING, Status::DEAD] {
        assert!(matches!(state(gone), Container::Removing(_)));
    }
    assert!(matches!(ended(Status::EXITED, 0), Container::Exited(exit) if exit.oom == Oom::Child));
}
