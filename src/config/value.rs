//! Values: one function per kind, from TOML to the type. The error says what is expected.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use toml::de::DeValue;

use super::MESH_PORT;
use super::document::nearest;
use crate::images;
use crate::ledger::PortRange;
use crate::runtime::docker::Subnet;
use crate::types::{
    Bytes, Cores, EventKind, GpuSharing, Name, Period, Prune, RuntimeKind, SettingsPatch, check_gpu_class,
};

/// Bytes of the longest path of a unix socket: `sun_path` has 108, one of them for the final NUL.
const MAX_SOCKET_PATH: usize = 107;
/// Characters of the longest DNS name.
const MAX_HOST: usize = 253;
/// Characters of the longest login name that `useradd` accepts.
const MAX_LOGIN: usize = 32;
/// The limits of a device's temperature that are useful, in °C: idle devices have 30, and none works above 120.
const CELSIUS: std::ops::RangeInclusive<f64> = 30.0..=120.0;

/// The capabilities of Linux, without the prefix `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

type Value<'t> = DeValue<'t>;

pub(super) fn name(value: &Value<'_>) -> Result<Name, String> {
    parsed(value, "1 to 63 characters of a-z, 0-9, `.`, `_` and `-`, first and last a letter or digit")
}

pub(super) fn boolean(value: &Value<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "expected true or false".to_owned())
}

/// A whole number, 0 included.
pub(super) fn count(value: &Value<'_>) -> Result<u32, String> {
    whole(value)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| format!("expected a whole number from 0 to {}", u32::MAX))
}

/// Pulls at the same time: none would mean that no session gets an image.
pub(super) fn pulls(value: &Value<'_>) -> Result<u32, String> {
    let wanted = count(value).ok().filter(|number| (1..=images::MAX_PULLS).contains(number));
    wanted.ok_or_else(|| format!("expected a whole number from 1 to {}", images::MAX_PULLS))
}

/// A kind of events.
pub(super) fn event_kind(value: &Value<'_>) -> Result<EventKind, String> {
    let all = || EventKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("expected kinds of events, which are {}", all()))
}

/// How much of a disk may be used.
pub(super) fn percent(value: &Value<'_>) -> Result<u32, String> {
    let wanted = count(value).ok().filter(|number| (1..=100).contains(number));
    wanted.ok_or_else(|| "expected whole percent from 1 to 100".to_owned())
}

/// Cores of a host.
pub(super) fn cores(value: &Value<'_>) -> Result<Cores, String> {
    let read = match value {
        DeValue::String(text) => text.parse().ok(),
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => whole(value).and_then(|number| number.to_string().parse().ok()),
    };
    let cores = read.ok_or("expected a number of cores with at most 3 decimals, for example 12, 0.5 or \"250m\"")?;
    within_bounds(SettingsPatch { cores_override: Some(cores), ..SettingsPatch::default() })?;
    Ok(cores)
}

/// Memory of a host.
pub(super) fn memory(value: &Value<'_>) -> Result<Bytes, String> {
    let memory = bytes(value)?;
    within_bounds(SettingsPatch { memory_override_bytes: Some(memory), ..SettingsPatch::default() })?;
    Ok(memory)
}

/// GPUs of a host.
pub(super) fn gpus(value: &Value<'_>) -> Result<u32, String> {
    let gpus = count(value)?;
    within_bounds(SettingsPatch { gpus_override: Some(gpus), ..SettingsPatch::default() })?;
    Ok(gpus)
}

/// A class of GPUs, as CDI names it.
pub(super) fn gpu_class(value: &Value<'_>) -> Result<String, String> {
    let class = value.as_str().filter(|class| check_gpu_class("", class).is_ok());
    class.map(str::to_owned).ok_or_else(|| "expected a class of GPUs, for example \"amd.com/gpu\"".to_owned())
}

/// A limit of the temperature of a device.
pub(super) fn celsius(value: &Value<'_>) -> Result<f64, String> {
    let read = match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => whole(value).and_then(|number| u32::try_from(number).ok()).map(f64::from),
    };
    let (least, most) = (CELSIUS.start(), CELSIUS.end());
    read.filter(|celsius| CELSIUS.contains(celsius))
        .ok_or_else(|| format!("expected a temperature from {least} to {most} °C, for example 85"))
}

pub(super) fn bytes(value: &Value<'_>) -> Result<Bytes, String> {
    let read = match value {
        DeValue::String(text) => text.parse().ok(),
        _ => whole(value).map(Bytes::new).filter(|bytes| *bytes <= Bytes::MAX),
    };
    read.ok_or_else(|| "expected a size, for example \"4GiB\", \"512M\" or 1073741824".to_owned())
}

pub(super) fn period(value: &Value<'_>) -> Result<Period, String> {
    parsed(value, "a duration, for example \"90s\", \"15m\", \"1h30m\" or \"7d\"")
}

pub(super) fn prune(value: &Value<'_>) -> Result<Prune, String> {
    word(value, Prune::ALL.iter().map(|known| (known.as_str(), *known)))
}

pub(super) fn gpu_sharing(value: &Value<'_>) -> Result<GpuSharing, String> {
    word(value, GpuSharing::ALL.iter().map(|known| (known.as_str(), *known)))
}

pub(super) fn runtime_kind(value: &Value<'_>) -> Result<RuntimeKind, String> {
    word(value, RuntimeKind::ALL.iter().map(|known| (known.as_str(), *known)))
}

/// An address that other nodes can connect to: of one host, with a port.
pub(super) fn reachable_address(value: &Value<'_>) -> Result<SocketAddr, String> {
    let address = socket_address(value)?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err("other nodes cannot reach it; expected an address of this host and a port other than 0".to_owned());
    }
    Ok(address)
}

/// A seed: `host`, `host:port`, `address` or `address:port`. The default port is [`MESH_PORT`].
pub(super) fn seed(value: &Value<'_>) -> Result<String, String> {
    let expected = || format!("expected a host and a port, for example \"host-a:{MESH_PORT}\" or \"192.0.2.7\"");
    let text = value.as_str().ok_or_else(expected)?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err(expected()) } else { Ok(address.to_string()) };
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, MESH_PORT).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected)?),
        None => (text, MESH_PORT),
    };
    if is_host(host) { Ok(format!("{host}:{port}")) } else { Err(expected()) }
}

/// One of a few words.
pub(super) fn word<'w, T>(value: &Value<'_>, words: impl Iterator<Item = (&'w str, T)>) -> Result<T, String> {
    let text = value.as_str().unwrap_or_default();
    let mut known = Vec::new();
    for (word, meaning) in words {
        if word == text {
            return Ok(meaning);
        }
        known.push(word);
    }
    let hint = nearest(text, known.iter().copied()).map(|meant| format!("; did you mean \"{meant}\"?"));
    Err(format!("expected one of \"{}\"{}", known.join("\", \""), hint.unwrap_or_default()))
}

pub(super) fn socket_address(value: &Value<'_>) -> Result<SocketAddr, String> {
    parsed(value, "an address and port, for example 127.0.0.1:7481")
}

pub(super) fn address(value: &Value<'_>) -> Result<IpAddr, String> {
    parsed(value, "an address without a port, for example 0.0.0.0")
}

pub(super) fn subnet(value: &Value<'_>) -> Result<Subnet, String> {
    value.as_str().ok_or_else(|| "expected a range of addresses, for example 10.80.0.0/16".to_owned())?.parse()
}

/// An address, or a range of addresses. Bits of the range behind its prefix are dropped.
pub(super) fn clients(value: &Value<'_>) -> Result<IpNet, String> {
    let text = value.as_str().unwrap_or_default();
    let range = text.parse().map(|range: IpNet| range.trunc()).or_else(|_| text.parse().map(|one: IpAddr| one.into()));
    range.map_err(|_| "expected an address or a range of addresses, for example 10.0.0.5 or 10.0.0.0/24".to_owned())
}

pub(super) fn path(value: &Value<'_>) -> Result<PathBuf, String> {
    value
        .as_str()
        .filter(|path| is_absolute(path))
        .map(PathBuf::from)
        .ok_or_else(|| "expected an absolute path".to_owned())
}

pub(super) fn socket_path(value: &Value<'_>) -> Result<PathBuf, String> {
    let path = path(value)?;
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(format!(
            "expected a path of at most {MAX_SOCKET_PATH} bytes, the most that the address of a unix socket holds"
        ));
    }
    Ok(path)
}

/// A host as in a URL: a name or an address, without scheme and port.
pub(super) fn host(value: &Value<'_>) -> Result<String, String> {
    value.as_str().filter(|text| is_host(text)).map(str::to_owned).ok_or_else(|| {
        "expected a host name or address without scheme and port, for example desk.example.com".to_owned()
    })
}

pub(super) fn is_host(text: &str) -> bool {
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    text.parse::<IpAddr>().is_ok() || (text.len() <= MAX_HOST && text.split('.').all(label))
}

pub(super) fn docker_host(value: &Value<'_>) -> Result<String, String> {
    docker_host_text(value.as_str().unwrap_or_default())
}

/// Accepts unix sockets only: the agent does not speak to a remote engine.
pub(super) fn docker_host_text(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix://") {
        Some(path) if is_absolute(path) && path.len() <= MAX_SOCKET_PATH => Ok(text.to_owned()),
        _ => Err("expected a unix socket of this host, for example unix:///var/run/docker.sock".to_owned()),
    }
}

/// A capability in the engine's spelling: upper case, without `CAP_`.
pub(super) fn capability(value: &Value<'_>) -> Result<String, String> {
    let upper = value.as_str().unwrap_or_default().to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if CAPABILITIES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(match nearest(name, CAPABILITIES.into_iter()) {
        Some(meant) => format!("not a Linux capability; did you mean \"{meant}\"?"),
        None => "not a Linux capability; expected the name of one, for example \"CHOWN\"".to_owned(),
    })
}

/// A network that workspaces may name. The host network is rejected: a container on it reaches every service of the
/// host.
pub(super) fn network(value: &Value<'_>) -> Result<Name, String> {
    let name = name(value)?;
    if name.as_str() == "host" {
        return Err("sessions cannot use the host network; expected the name of another Docker network".to_owned());
    }
    Ok(name)
}

pub(super) fn port_range(value: &Value<'_>) -> Result<PortRange, String> {
    let wrong = || "expected two ports, the smaller first, for example 20000-29999".to_owned();
    let (first, last) = value.as_str().and_then(|text| text.split_once('-')).ok_or_else(wrong)?;
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(PortRange { first, last }),
        _ => Err(wrong()),
    }
}

/// The user that the commands of the process runtime run as.
pub(super) fn login(value: &Value<'_>) -> Result<String, String> {
    let text = value.as_str().unwrap_or_default();
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if !first || text.len() > MAX_LOGIN || !text.bytes().all(inside) {
        return Err("expected the login name of a user of this host, for example nobody".to_owned());
    }
    if text == "root" {
        return Err("sessions cannot run as root; expected another user, for example nobody".to_owned());
    }
    Ok(text.to_owned())
}

/// The key and value of a label to set.
pub(super) fn label(key: &str, value: &Value<'_>) -> Result<(String, Option<String>), String> {
    let Some(text) = value.as_str() else {
        return Err("expected a string; a key with dots needs quotes, for example \"example.com/rack\"".to_owned());
    };
    let label = (key.to_owned(), Some(text.to_owned()));
    within_bounds(SettingsPatch { labels: Some([label.clone()].into()), ..SettingsPatch::default() })?;
    Ok(label)
}

/// Checks a setting against the bounds of the API.
pub(super) fn within_bounds(setting: SettingsPatch) -> Result<(), String> {
    setting.validate().map_err(|invalid| invalid.message)
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

fn parsed<T: FromStr>(value: &Value<'_>, expected: &str) -> Result<T, String> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| format!("expected {expected}"))
}

fn whole(value: &Value<'_>) -> Option<u64> {
    value.as_integer().and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
}
