//! The keys: one function per section, then the rules between keys.

use std::net::SocketAddr;

use super::document::Document;
use super::http::Tls;
use super::{Cluster, Config, Environment, Placement, Runtime, docker, http, value};
use crate::capacity::DevFigures;
use crate::images::pressure::Watermarks;
use crate::logging::{self, Format};
use crate::runtime::HandOver;
use crate::types::{ClusterMode, FromPeers, OnUnknown, Period, RuntimeKind, SettingsPatch, Strategy};
use crate::{events, gpu, images, node, sessions};

/// Takes every valid key. An absent or invalid key keeps its value of `default`; an invalid one becomes a problem.
pub(super) fn config(document: &mut Document<'_>, default: Config, dev: bool, environment: &Environment) -> Config {
    let config = Config {
        node: node(document, default.node),
        data_dir: document.take("node.data_dir", value::path).unwrap_or(default.data_dir),
        cluster: cluster(document, default.cluster),
        placement: placement(document, default.placement),
        http: http(document, default.http),
        runtime: runtime(document, default.runtime, environment),
        images: images(document, default.images),
        events: events::Config {
            hook: document.take("events.hook", value::path),
            hook_kinds: document.take_list("events.hook_kinds", value::event_kind).unwrap_or_default(),
        },
        gpu: gpu(document, default.gpu),
        sessions: sessions(document, default.sessions),
        log: log(document, default.log, environment),
        dev: dev_figures(document),
    };
    check_exposure(document, &config.http);
    check_ports(document, &config);
    if !dev {
        refuse_dev(document, config.runtime.kind);
    }
    config
}

fn node(document: &mut Document<'_>, default: node::Config) -> node::Config {
    let name = document.take("node.name", value::name).unwrap_or(default.name);
    node::Config { name, declared: settings(document), file: default.file }
}

/// The declared settings: those that the file has. None has a default.
fn settings(document: &mut Document<'_>) -> SettingsPatch {
    SettingsPatch {
        enabled: document.take("settings.enabled", value::boolean),
        prune: document.take("settings.prune", value::prune),
        cores_override: document.take("settings.cores_override", value::cores),
        memory_override_bytes: document.take("settings.memory_override", value::memory),
        gpus_override: document.take("settings.gpus_override", value::gpus),
        gpu_sharing: document.take("settings.gpu_sharing", value::gpu_sharing),
        labels: labels(document),
    }
}

fn labels(document: &mut Document<'_>) -> Option<crate::types::LabelsPatch> {
    let labels = document.take_table("settings.labels", value::label)?.into_iter().collect();
    // `take_table` checked each label by itself; this checks their number.
    let all = SettingsPatch { labels: Some(labels), ..SettingsPatch::default() };
    if let Err(message) = value::within_bounds(all.clone()) {
        document.refuse("settings.labels", message);
    }
    all.labels
}

fn cluster(document: &mut Document<'_>, default: Cluster) -> Cluster {
    Cluster {
        name: document.take("cluster.name", value::name).unwrap_or(default.name),
        token_file: document.take("cluster.token_file", value::path).unwrap_or(default.token_file),
        listen: document.take("cluster.listen", value::socket_address).unwrap_or(default.listen),
        advertise: document.take("cluster.advertise", value::reachable_address),
        seeds: document.take_list("cluster.seeds", value::seed).unwrap_or(default.seeds),
        mode: mode(document),
    }
}

/// Reads `cluster.mode` and `cluster.expected_nodes`, which must fit each other.
fn mode(document: &mut Document<'_>) -> ClusterMode {
    let quorum = document
        .take("cluster.mode", |given| value::word(given, [("available", false), ("quorum", true)].into_iter()))
        .unwrap_or(false);
    let expected_nodes = document.take("cluster.expected_nodes", value::count).unwrap_or(0);
    match (quorum, expected_nodes) {
        (false, 0) => ClusterMode::Available,
        (false, _) => {
            let message = "only cluster.mode = \"quorum\" uses it; expected 0, or that mode";
            document.refuse("cluster.expected_nodes", message);
            ClusterMode::Available
        }
        (true, 0) => {
            let message = "a quorum needs the number of nodes of the cluster: set cluster.expected_nodes";
            document.refuse("cluster.mode", message);
            ClusterMode::Available
        }
        (true, expected_nodes) => ClusterMode::Quorum { expected_nodes },
    }
}

fn placement(document: &mut Document<'_>, default: Placement) -> Placement {
    let strategies = Strategy::ALL.iter().map(|known| (known.as_str(), *known));
    let answers = OnUnknown::ALL.iter().map(|known| (known.as_str(), *known));
    Placement {
        strategy: document
            .take("placement.strategy", |given| value::word(given, strategies))
            .unwrap_or(default.strategy),
        on_unknown: document.take("placement.on_unknown", |given| value::word(given, answers)),
    }
}

fn http(document: &mut Document<'_>, default: http::Config) -> http::Config {
    let cert = document.take("http.tls_cert", value::path);
    let key = document.take("http.tls_key", value::path);
    http::Config {
        listen: document.take("http.listen", value::socket_address).unwrap_or(default.listen),
        status_listen: document.take("http.status_listen", value::socket_address),
        socket: document.take("http.socket", value::socket_path).unwrap_or(default.socket),
        tls: cert.zip(key).map(|(cert, key)| Tls { cert, key }),
        allowed_hosts: document.take_list("http.allowed_hosts", value::host).unwrap_or(default.allowed_hosts),
    }
}

fn runtime(document: &mut Document<'_>, default: Runtime, environment: &Environment) -> Runtime {
    let kind = document.take("runtime.kind", value::runtime_kind).unwrap_or(default.kind);
    let cpu_modes = [("quota", docker::CpuMode::Quota), ("shares", docker::CpuMode::Shares)];
    let ways = [("auto", HandOver::Auto), ("runtime", HandOver::Runtime), ("cdi", HandOver::Cdi)];
    Runtime {
        kind,
        docker_host: docker_host(document, kind, environment).unwrap_or(default.docker_host),
        cpu_mode: document
            .take("runtime.cpu_mode", |given| value::word(given, cpu_modes.into_iter()))
            .unwrap_or(default.cpu_mode),
        cap_allow: document.take_list("runtime.cap_allow", value::capability).unwrap_or(default.cap_allow),
        hand_over: document
            .take("gpu.hand_over", |given| value::word(given, ways.into_iter()))
            .unwrap_or(default.hand_over),
        images_path: document.take("images.path", value::path),
        publish_address: document.take("runtime.publish_address", value::address).unwrap_or(default.publish_address),
        network_subnet: document.take("runtime.network_subnet", value::subnet).or(default.network_subnet),
        idle_ignore: document.take_list("runtime.idle_ignore", value::clients).unwrap_or(default.idle_ignore),
        process_user: document.take("runtime.process_user", value::login).unwrap_or(default.process_user),
    }
}

fn images(document: &mut Document<'_>, default: images::Config) -> images::Config {
    let span = |period: Period| period.0;
    let from_peers = FromPeers::ALL.iter().map(|known| (known.as_str(), *known));
    images::Config {
        max_pulls: document.take("images.max_pulls", value::pulls).unwrap_or(default.max_pulls),
        registry_credentials: document.take("images.registry_credentials", value::path),
        from_peers: document
            .take("images.from_peers", |given| value::word(given, from_peers))
            .unwrap_or(default.from_peers),
        peer_bandwidth: document.take("images.peer_bandwidth", value::bytes).unwrap_or(default.peer_bandwidth),
        min_age: document.take("images.min_age", value::period).map_or(default.min_age, span),
        prune_interval: document.take("images.prune_interval", value::period).map_or(default.prune_interval, span),
        watermarks: watermarks(document, default.watermarks),
    }
}

/// The two marks, which must leave something to free between them.
fn watermarks(document: &mut Document<'_>, default: Watermarks) -> Watermarks {
    let high = document.take("images.high_watermark", value::percent).unwrap_or(default.high);
    let low = document.take("images.low_watermark", value::percent).unwrap_or(default.low);
    if low >= high {
        let key =
            if document.is_written("images.low_watermark") { "images.low_watermark" } else { "images.high_watermark" };
        let message =
            format!("images.low_watermark is {low} and images.high_watermark is {high}; expected a lower low one");
        document.refuse(key, message);
    }
    Watermarks { high, low }
}

fn gpu(document: &mut Document<'_>, default: gpu::Config) -> gpu::Config {
    gpu::Config {
        class: document.take("gpu.class", value::gpu_class).unwrap_or(default.class),
        nvml_library: document.take("gpu.nvml_library", value::path),
        max_temperature_celsius: document.take("gpu.max_temperature_celsius", value::celsius),
    }
}

/// The key of the file, else `DOCKER_HOST`. Another runtime ignores an invalid `DOCKER_HOST`.
fn docker_host(document: &mut Document<'_>, kind: RuntimeKind, environment: &Environment) -> Option<String> {
    let written = document.take("runtime.docker_host", value::docker_host);
    match environment.docker_host.as_deref() {
        Some(variable) if kind == RuntimeKind::Docker && !document.is_written("runtime.docker_host") => {
            value::docker_host_text(variable)
                .inspect_err(|message| document.refuse_variable("DOCKER_HOST", variable, message))
                .ok()
        }
        _ => written,
    }
}

fn sessions(document: &mut Document<'_>, default: sessions::Config) -> sessions::Config {
    sessions::Config {
        max_sessions_per_user: document
            .take("limits.max_sessions_per_user", value::count)
            .unwrap_or(default.max_sessions_per_user),
        max_sessions_per_node: document
            .take("limits.max_sessions_per_node", value::count)
            .unwrap_or(default.max_sessions_per_node),
        keep_ended: document.take("limits.keep_ended", value::period).unwrap_or(default.keep_ended),
        stopped_retention: document
            .take("limits.stopped_retention", value::period)
            .unwrap_or(default.stopped_retention),
        min_free_disk: document.take("limits.min_free_disk", value::bytes).unwrap_or(default.min_free_disk),
        max_foreign_gpu_memory: document
            .take("gpu.max_foreign_memory", value::bytes)
            .unwrap_or(default.max_foreign_gpu_memory),
        port_range: document.take("runtime.port_range", value::port_range).unwrap_or(default.port_range),
        networks: document.take_list("runtime.networks", value::network).unwrap_or(default.networks),
        endpoint_host: document.take("runtime.endpoint_host", value::host).unwrap_or(default.endpoint_host),
    }
}

fn log(document: &mut Document<'_>, default: logging::Config, environment: &Environment) -> logging::Config {
    let checked = |level: &str| logging::filter(level).map(|_| level.to_owned());
    let written = document.take("log.level", |given| checked(given.as_str().unwrap_or_default()));
    let variable = environment.log_level.as_deref().and_then(|level| {
        checked(level).inspect_err(|message| document.refuse_variable("OSTLER_LOG", level, message)).ok()
    });
    let formats = [("text", Format::Text), ("json", Format::Json)];
    logging::Config {
        level: variable.or(written).unwrap_or(default.level),
        format: document.take("log.format", |given| value::word(given, formats.into_iter())).unwrap_or(default.format),
    }
}

fn dev_figures(document: &mut Document<'_>) -> DevFigures {
    DevFigures {
        physical_cores: document.take("dev.physical_cores", value::cores),
        physical_memory: document.take("dev.physical_memory", value::memory),
        physical_gpus: document.take("dev.physical_gpus", value::gpus),
    }
}

/// Beyond loopback the API requires TLS, and TLS requires both of its files.
fn check_exposure(document: &mut Document<'_>, http: &http::Config) {
    let (cert, key) = (document.is_written("http.tls_cert"), document.is_written("http.tls_key"));
    if cert && !key {
        document.refuse("http.tls_cert", "TLS also needs http.tls_key");
    }
    if key && !cert {
        document.refuse("http.tls_key", "TLS also needs http.tls_cert");
    }
    if !http.listen.ip().to_canonical().is_loopback() && !cert && !key {
        let message = "this address needs TLS: set http.tls_cert and http.tls_key, or listen on 127.0.0.1";
        document.refuse("http.listen", message);
    }
}

/// Two listeners, or a listener and a session, cannot use the same port.
fn check_ports(document: &mut Document<'_>, config: &Config) {
    let listen = config.http.listen;
    if config.http.status_listen.is_some_and(|status| collide(status, listen)) {
        document.refuse("http.status_listen", format!("http.listen uses this port already: {listen}"));
    }
    let listeners = [("http.listen", Some(listen)), ("http.status_listen", config.http.status_listen)];
    let range = config.sessions.port_range;
    for (key, address) in listeners {
        let Some(address) = address.filter(|address| (range.first..=range.last).contains(&address.port())) else {
            continue;
        };
        if document.is_written("runtime.port_range") {
            let message = format!("contains the port of {key}, {address}; expected a range without it");
            document.refuse("runtime.port_range", message);
        } else {
            let message =
                format!("the port is in runtime.port_range, {}-{}, which is for sessions", range.first, range.last);
            document.refuse(key, message);
        }
    }
}

/// Whether two listeners need the same port. Port 0 stands for a free port that the kernel chooses.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && overlap
}

/// Rejects what is meant for a trial only, so that it is never in force by accident.
fn refuse_dev(document: &mut Document<'_>, kind: RuntimeKind) {
    for key in ["dev.physical_cores", "dev.physical_memory", "dev.physical_gpus"] {
        if document.is_written(key) {
            document.refuse(key, "allowed only under --dev: remove it, or run: ostler agent --dev");
        }
    }
    if kind == RuntimeKind::Process {
        let message = "\"process\" runs commands on the host itself and is allowed only under --dev: \
                       set \"docker\", or run: ostler agent --dev";
        document.refuse("runtime.kind", message);
    }
}
