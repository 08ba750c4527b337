use std::fmt::Write as _;
use std::path::Path;

use proptest::prelude::{Just, prop_assert, prop_oneof, proptest};
use proptest::strategy::Strategy as _;

use super::*;
use crate::types::{Cores, FromPeers, GpuSharing, Prune};

const SHIPPED: &str = include_str!("../../config/ostler.toml");
const FILE: &str = "/etc/ostler/ostler.toml";

fn environment() -> Environment {
    Environment { host_name: "desk-1".to_owned(), docker_host: None, log_level: None }
}

fn parse(text: &str, dev: bool) -> Result<Config, Error> {
    Config::parse(text, Some(Path::new(FILE)), dev, &environment())
}

fn problems(text: &str) -> Vec<Problem> {
    match parse(text, false) {
        Err(Error::Invalid { problems, .. }) => problems,
        other => panic!("expected problems of {text:?}, got {other:?}"),
    }
}

/// The shipped file with its commented keys and tables enabled. Prose stays a comment.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| {
        let key = line.split(" = ").next().filter(|key| key.len() < line.len());
        key.is_some_and(|key| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')) || line.starts_with('[')
    };
    let mut out = String::new();
    for line in text.lines() {
        let _ = writeln!(out, "{}", line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line));
    }
    out
}

#[test]
fn the_shipped_file_has_the_defaults() {
    let environment = Environment { host_name: host_name(), ..environment() };
    let shipped = Config::parse(SHIPPED, None, false, &environment).unwrap();
    assert_eq!(shipped, Config::default());
}

#[test]
fn the_shipped_file_has_every_key() {
    let all = uncommented(SHIPPED);
    let config = parse(&all, true).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.node.declared.fields().len(), 7);
    assert_eq!(config.dev.physical_cores, Some(Cores::whole(6)));
    let mut document = document::Document::parse(&all).unwrap();
    read::config(&mut document, Config::default(), true, &environment());
    assert!(document.known().len() > 30);
    for key in document.known() {
        assert!(document.is_written(key), "{key} is not in config/ostler.toml");
    }
}

#[test]
fn every_kind_of_value_is_read() {
    let text = r#"
        node.name = "rack3.desk_1"
        [settings]
        enabled = false
        prune = "aggressive"
        cores_override = "12500m"
        memory_override = "12GiB"
        gpus_override = 0x0a
        gpu_sharing = "any"
        [settings.labels]
        rack = "3"
        "example.com/tier" = "gold"
        [http]
        listen = "[::]:7481"
        status_listen = "0.0.0.0:7482"
        tls_cert = "/c"
        tls_key = "/k"
        allowed_hosts = ["desk.example.com", "2001:db8::1"]
        [runtime]
        cpu_mode = "shares"
        cap_allow = ["cap_chown", "SYS_PTRACE"]
        networks = ["lan"]
        port_range = "30000 - 30009"
        publish_address = "::1"
        network_subnet = "10.80.0.0/16"
        idle_ignore = ["10.0.0.9", "10.1.2.3/16", "2001:db8::/32"]
        [images]
        from_peers = "prefer"
        peer_bandwidth = "20MiB"
        [gpu]
        nvml_library = "/opt/nvidia/libnvidia-ml.so.1"
        max_temperature_celsius = 87.5
        class = "k8s.intel-gpu.com/gpu_2"
        max_foreign_memory = "2GiB"
        [limits]
        keep_ended = "1h30m"
        min_free_disk = 0
        [log]
        level = "warn,ostler=debug"
        format = "json"
    "#;
    let config = parse(text, false).unwrap_or_else(|e| panic!("{e}"));
    let declared = &config.node.declared;
    assert_eq!(config.node.name.as_str(), "rack3.desk_1");
    assert_eq!(config.node.file.as_deref(), Some(Path::new(FILE)));
    assert_eq!((declared.enabled, declared.prune), (Some(false), Some(Prune::Aggressive)));
    assert_eq!(declared.cores_override, Some(Cores::from_milli(12_500)));
    assert_eq!((declared.memory_override_bytes, declared.gpus_override), (Some(Bytes::gib(12)), Some(10)));
    assert_eq!(declared.gpu_sharing, Some(GpuSharing::Any));
    let labels = declared.labels.clone().unwrap();
    assert_eq!(labels["rack"].as_deref(), Some("3"));
    assert_eq!(labels["example.com/tier"].as_deref(), Some("gold"));
    assert_eq!(config.http.listen.to_string(), "[::]:7481");
    assert_eq!(config.http.status_listen, Some("0.0.0.0:7482".parse().unwrap()));
    assert_eq!(config.http.tls, Some(http::Tls { cert: "/c".into(), key: "/k".into() }));
    assert_eq!(config.http.allowed_hosts, ["desk.example.com", "2001:db8::1"]);
    assert_eq!(config.runtime.cpu_mode, docker::CpuMode::Shares);
    assert_eq!(config.runtime.cap_allow, ["CHOWN", "SYS_PTRACE"]);
    assert_eq!(config.sessions.port_range, PortRange { first: 30_000, last: 30_009 });
    assert_eq!(config.gpu.nvml_library.as_deref(), Some(Path::new("/opt/nvidia/libnvidia-ml.so.1")));
    assert_eq!(config.gpu.max_temperature_celsius, Some(87.5));
    assert_eq!(config.gpu.class, "k8s.intel-gpu.com/gpu_2");
    assert_eq!((config.images.from_peers, config.images.peer_bandwidth), (FromPeers::Prefer, Bytes::mib(20)));
    assert_eq!(config.sessions.keep_ended, Period::secs(5400));
    assert!(config.sessions.min_free_disk.is_zero());
    assert_eq!(config.sessions.max_foreign_gpu_memory, Bytes::gib(2));
    assert_eq!((config.log.level.as_str(), config.log.format), ("warn,ostler=debug", logging::Format::Json));
}

/// Text, the line of the problem, its key, and a part of its message.
const WRONG: &[(&str, usize, &str, &str)] = &[
    ("[settings]\n\ncores_overide = 2", 3, "settings.cores_overide", "unknown key; did you mean cores_override?"),
    ("[settings]\nmemory = \"1G\"", 2, "settings.memory", "did you mean memory_override?"),
    ("[settings]\nxyz = 1", 2, "settings.xyz", "[settings] has enabled, prune, cores_override"),
    ("[http]\ncpu_mode = \"quota\"", 2, "http.cpu_mode", "did you mean runtime.cpu_mode?"),
    ("[http]\nListen = \"127.0.0.1:1\"", 2, "http.Listen", "did you mean listen?"),
    ("listen = \"127.0.0.1:1\"", 1, "listen", "did you mean cluster.listen or http.listen?"),
    ("fnord = 1", 1, "fnord", "every key belongs in a table"),
    ("\n[htpp]\nlisten = 1", 2, "htpp", "unknown table; did you mean [http]?"),
    ("[fnord]", 1, "fnord", "unknown table; expected one of [cluster], [dev]"),
    ("http = 3", 1, "http", "expected a table: [http]"),
    ("[[http]]\nlisten = \"127.0.0.1:1\"", 1, "http", "expected a table: [http]"),
    ("[http]\nlisten = \"foo\"", 2, "http.listen", "\"foo\": expected an address and port, for example 127.0.0.1:7481"),
    ("[http]\nlisten = 7481", 2, "http.listen", "7481: expected an address and port"),
    ("[http]\nlisten = \"0.0.0.0:7481\"", 2, "http.listen", "set http.tls_cert and http.tls_key"),
    ("[http]\nlisten = \"[::]:7481\"", 2, "http.listen", "this address needs TLS"),
    ("[http]\ntls_cert = \"/c\"", 2, "http.tls_cert", "TLS also needs http.tls_key"),
    ("[http]\ntls_key = \"/k\"", 2, "http.tls_key", "TLS also needs http.tls_cert"),
    ("[http]\nsocket = \"ostler.sock\"", 2, "http.socket", "expected an absolute path"),
    ("[http]\nstatus_listen = \"0.0.0.0:7481\"", 2, "http.status_listen", "http.listen uses this port already"),
    ("[http]\nallowed_hosts = \"a\"", 2, "http.allowed_hosts", "expected a list"),
    ("[http]\nallowed_hosts = [\n\"a\",\n\"https://b\"\n]", 4, "http.allowed_hosts[1]", "without scheme and port"),
    ("[node]\nname = \"Desk 1\"", 2, "node.name", "\"Desk 1\": expected 1 to 63 characters"),
    ("[node]\ndata_dir = \"\"", 2, "node.data_dir", "\"\": expected an absolute path"),
    ("[settings]\nenabled = \"yes\"", 2, "settings.enabled", "\"yes\": expected true or false"),
    ("[settings]\nprune = \"agressive\"", 2, "settings.prune", "did you mean \"aggressive\"?"),
    (
        "[settings]\ngpu_sharing = \"all\"",
        2,
        "settings.gpu_sharing",
        "expected one of \"none\", \"same_user\", \"any\"",
    ),
    ("[settings]\ncores_override = 0.0001", 2, "settings.cores_override", "0.0001: expected a number of cores"),
    ("[settings]\ncores_override = -1", 2, "settings.cores_override", "-1: expected a number of cores"),
    ("[settings]\ncores_override = nan", 2, "settings.cores_override", "nan: expected a number of cores"),
    ("[settings]\ncores_override = 70000", 2, "settings.cores_override", "out of range"),
    ("[settings]\nmemory_override = \"4X\"", 2, "settings.memory_override", "\"4X\": expected a size"),
    ("[settings]\nmemory_override = \"2048TiB\"", 2, "settings.memory_override", "out of range"),
    ("[settings]\ngpus_override = 1.5", 2, "settings.gpus_override", "1.5: expected a whole number"),
    ("[gpu]\nmax_temperature_celsius = 8.5", 2, "gpu.max_temperature_celsius", "expected a temperature from 30 to 120"),
    ("[gpu]\nmax_temperature_celsius = \"85\"", 2, "gpu.max_temperature_celsius", "for example 85"),
    ("[gpu]\nnvml_library = \"libnvidia-ml.so.1\"", 2, "gpu.nvml_library", "expected an absolute path"),
    ("[settings]\ngpus_override = 1025", 2, "settings.gpus_override", "out of range"),
    ("[gpu]\nmax_foreign_memory = \"4X\"", 2, "gpu.max_foreign_memory", "\"4X\": expected a size"),
    ("[settings]\nlabels = 3", 2, "settings.labels", "expected a table"),
    ("[settings.labels]\na = \"1\"\nb = 2", 3, "settings.labels.b", "2: expected a string"),
    ("[settings.labels]\nexample.com = \"1\"", 2, "settings.labels.example", "needs quotes"),
    ("[settings.labels]\n\"a b\" = \"1\"", 2, "settings.labels.\"a b\"", "expected 1 to 63 characters"),
    ("[runtime]\nkind = \"podman\"", 2, "runtime.kind", "expected one of \"docker\", \"process\""),
    ("[runtime]\nkind = \"process\"", 2, "runtime.kind", "under --dev"),
    ("[runtime]\ndocker_host = \"tcp://1.2.3.4:2375\"", 2, "runtime.docker_host", "expected a unix socket"),
    ("[gpu]\nclass = \"amd\"", 2, "gpu.class", "expected a class of GPUs, for example"),
    ("[gpu]\nclass = 7", 2, "gpu.class", "expected a class of GPUs"),
    ("[gpu]\nhand_over = \"cd\"", 2, "gpu.hand_over", "did you mean \"cdi\"?"),
    ("[runtime]\ncpu_mode = \"share\"", 2, "runtime.cpu_mode", "did you mean \"shares\"?"),
    ("[runtime]\ncap_allow = [\"CHOWN\", \"NET_ADMN\"]", 2, "runtime.cap_allow[1]", "did you mean \"NET_ADMIN\"?"),
    ("[runtime]\ncap_allow = [\"ALL\"]", 2, "runtime.cap_allow[0]", "expected the name of one"),
    ("[runtime]\nnetworks = [\"host\"]", 2, "runtime.networks[0]", "cannot use the host network"),
    ("[runtime]\nport_range = \"200-100\"", 2, "runtime.port_range", "the smaller first"),
    ("[runtime]\nport_range = \"0-100\"", 2, "runtime.port_range", "expected two ports"),
    (
        "[runtime]\nport_range = \"7000-8000\"",
        2,
        "runtime.port_range",
        "contains the port of http.listen, 127.0.0.1:7481",
    ),
    ("[http]\nlisten = \"127.0.0.1:20001\"", 2, "http.listen", "in runtime.port_range, 20000-29999"),
    ("[runtime]\npublish_address = \"0.0.0.0:80\"", 2, "runtime.publish_address", "without a port"),
    ("[runtime]\nnetwork_subnet = \"10.80.0.1/16\"", 2, "runtime.network_subnet", "write 10.80.0.0/16"),
    ("[runtime]\nidle_ignore = [\"10.0.0.9\", \"monitor\"]", 2, "runtime.idle_ignore[1]", "for example 10.0.0.5 or"),
    ("[runtime]\nidle_ignore = [10]", 2, "runtime.idle_ignore[0]", "expected an address"),
    ("[runtime]\nendpoint_host = \"http://x\"", 2, "runtime.endpoint_host", "without scheme"),
    ("[runtime]\nprocess_user = \"root\"", 2, "runtime.process_user", "cannot run as root"),
    ("[limits]\nmax_sessions_per_user = -1", 2, "limits.max_sessions_per_user", "-1: expected a whole number"),
    ("[limits]\nkeep_ended = \"1w\"", 2, "limits.keep_ended", "\"1w\": expected a duration"),
    ("[limits]\nkeep_ended = 3600", 2, "limits.keep_ended", "3600: expected a duration"),
    ("[log]\nlevel = \"inof\"", 2, "log.level", "\"inof\": expected off, error, warn"),
    ("[log]\nformat = \"xml\"", 2, "log.format", "expected one of \"text\", \"json\""),
    ("[dev]\nphysical_cores = 6", 2, "dev.physical_cores", "under --dev"),
    ("[http]\nlisten = ", 2, "", "expected"),
    ("[http]\n\nsocket = \"/a\"\nsocket = \"/b\"", 4, "socket", "duplicate key"),
    ("[log]\n[http]\n[log]", 3, "log", "duplicate key"),
];

#[test]
fn a_problem_has_line_key_value_and_what_is_expected() {
    for (text, line, key, message) in WRONG {
        let found = problems(text);
        let [problem] = found.as_slice() else { panic!("expected one problem of {text:?}, got {found:?}") };
        assert_eq!((problem.place, problem.key.as_str()), (Place::Line(*line), *key), "{text:?}: {problem:?}");
        assert!(problem.message.contains(message), "{text:?}: {}", problem.message);
    }
}

#[test]
fn the_number_of_labels_is_bounded() {
    let labels = |count| (0..count).fold("[settings.labels]\n".to_owned(), |text, n| format!("{text}l{n} = \"1\"\n"));
    assert_eq!(parse(&labels(64), false).unwrap().node.declared.labels.unwrap().len(), 64);
    let found = problems(&labels(65));
    assert_eq!((found.len(), found[0].key.as_str()), (1, "settings.labels"));
    assert!(found[0].message.contains("at most 64"), "{}", found[0].message);
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = "[http]\nlisten = \"foo\"\nsockt = \"/s\"\n\n[log]\nlevel = \"loud\"\n";
    let said = parse(text, false).unwrap_err().to_string();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[0],
        r#"/etc/ostler/ostler.toml:2: http.listen: "foo": expected an address and port, for example 127.0.0.1:7481"#
    );
    assert_eq!(lines[1], "/etc/ostler/ostler.toml:3: http.sockt: unknown key; did you mean socket?");
    assert!(lines[2].starts_with("/etc/ostler/ostler.toml:6: log.level: \"loud\": expected off"), "{}", lines[2]);
}

#[test]
fn the_number_of_reported_problems_is_bounded() {
    let text = (0..1000).fold(String::new(), |text, n| format!("{text}key{n} = 1\n"));
    let said = parse(&text, false).unwrap_err().to_string();
    assert_eq!(said.lines().count(), 33);
    assert!(said.ends_with("and 968 more"));
}

#[test]
fn dev_allows_the_process_runtime_and_dev_figures() {
    let text = "[runtime]\nkind = \"process\"\n[dev]\nphysical_cores = 6\nphysical_memory = \"6GB\"\nphysical_gpus = 1";
    assert_eq!(problems(text).len(), 4);
    let config = parse(text, true).unwrap();
    assert_eq!(config.runtime.kind, RuntimeKind::Process);
    assert_eq!(config.dev.physical_memory, Some(Bytes::new(6_000_000_000)));
    assert!(parse("[dev]\nphysical_gpus = 4000000000", true).is_err());
}

#[test]
fn docker_host_of_the_environment_is_used_unless_the_file_has_one() {
    let docker = |text: &str, variable: &str| {
        let environment = Environment { docker_host: Some(variable.to_owned()), ..environment() };
        Config::parse(text, None, true, &environment).map(|config| config.runtime.docker_host)
    };
    let written = "[runtime]\ndocker_host = \"unix:///file.sock\"";
    assert_eq!(parse(written, false).unwrap().runtime.docker_host, "unix:///file.sock");
    assert_eq!(docker("", "unix:///env.sock").unwrap(), "unix:///env.sock");
    assert_eq!(docker(written, "unix:///env.sock").unwrap(), "unix:///file.sock");
    assert_eq!(docker(written, "tcp://elsewhere:2375").unwrap(), "unix:///file.sock");
    assert!(docker("[runtime]\nkind = \"process\"", "tcp://elsewhere:2375").is_ok());
    let said = docker("", "tcp://elsewhere:2375").unwrap_err().to_string();
    assert!(said.starts_with("environment: DOCKER_HOST: \"tcp://elsewhere:2375\": expected a unix socket"), "{said}");
}

#[test]
fn the_environment_overrides_the_log_level() {
    let level = |variable: &str| {
        let environment = Environment { log_level: Some(variable.to_owned()), ..environment() };
        Config::parse("[log]\nlevel = \"warn\"", None, false, &environment).map(|config| config.log.level)
    };
    assert_eq!(level("debug").unwrap(), "debug");
    assert!(level("loud").unwrap_err().to_string().starts_with("environment: OSTLER_LOG: \"loud\": expected off"));
}

#[test]
fn a_named_file_must_exist_and_be_short_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ostler.toml");
    let said = Config::load(Some(&file), false).unwrap_err().to_string();
    assert!(said.contains("ostler.toml: No such file"), "{said}");
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(matches!(Config::load(Some(&file), false), Err(Error::Unreadable { .. })));
    std::fs::write(&file, "#".repeat(MAX_FILE + 1)).unwrap();
    assert!(Config::load(Some(&file), false).unwrap_err().to_string().contains("more than"));
    std::fs::write(&file, "[limits]\nmax_sessions_per_node = 7\n[runtime]\ndocker_host = \"unix:///d.sock\"").unwrap();
    let config = Config::load(Some(&file), false).unwrap();
    assert_eq!((config.sessions.max_sessions_per_node, config.node.file), (7, Some(file)));
}

#[test]
fn a_host_name_becomes_the_name_of_a_node() {
    for (host, node) in [
        ("Desk-1.Example.COM", "desk-1.example.com"),
        ("my host!", "my-host"),
        ("-_x", "x"),
        ("", "node"),
        ("(none)", "none"),
        ("ÄÖ", "node"),
    ] {
        assert_eq!(node_name(host).as_str(), node, "{host}");
    }
    assert_eq!(node_name(&"a".repeat(200)).as_str().len(), Name::MAX_LEN);
    assert_eq!(node_name(&format!("{}--b", "a".repeat(62))).as_str(), "a".repeat(62));
}

#[test]
fn ports_on_different_addresses_do_not_collide() {
    let text = "[http]\nlisten = \"127.0.0.1:7481\"\nstatus_listen = \"192.0.2.1:7481\"";
    assert!(parse(text, false).is_ok());
    let free = "[http]\nlisten = \"127.0.0.1:0\"\nstatus_listen = \"127.0.0.1:0\"";
    assert!(parse(free, false).is_ok());
}

/// Lines that are nearly valid, so that the generated text gets past the TOML parser.
fn nearly_right() -> impl proptest::strategy::Strategy<Value = String> {
    let keys: Vec<String> =
        uncommented(SHIPPED).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let value = prop_oneof![
        Just("\"\"".to_owned()),
        Just("[1, \"x\", {}]".to_owned()),
        Just("{ a.b = 1, c = [\n] }".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("0xffffffffffffffffff".to_owned()),
        Just("1e400".to_owned()),
        "\"[ -~]{0,20}\"",
        "[ -~äß]{0,8}",
    ];
    let line = (proptest::sample::select(keys), value, 0..4u8).prop_map(|(line, value, how)| match how {
        0 => format!("{}= {value}", line.split('=').next().unwrap_or_default()),
        1 => value,
        2 => line.replace(['a', 'e'], "é"),
        _ => line,
    });
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "\\PC{0,200}|[\\[\\]a-z.=\"'#{},0-9\n\r\t]{0,200}", dev: bool) {
        let _ = parse(&text, dev).map_err(|error| error.to_string());
    }

    #[test]
    fn nearly_right_text_is_a_configuration_or_an_error_on_a_line_of_it(text in nearly_right(), dev: bool) {
        if let Err(Error::Invalid { problems, .. }) = parse(&text, dev) {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                let Place::Line(line) = problem.place else { continue };
                prop_assert!((1..=text.lines().count() + 1).contains(&line), "{:?}", problem);
            }
        }
    }

    #[test]
    fn any_host_has_a_node_name(host in "\\PC{0,80}") {
        let _ = node_name(&host);
    }
}
