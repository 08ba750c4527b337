//! Where an engine keeps its images on this host.

use std::path::{Path, PathBuf};

use bollard::models::SystemInfo;

use crate::runtime::images::ImageStoreKind;

/// The sockets of the containerd that a distribution starts.
const SYSTEM_SOCKETS: [&str; 2] = ["/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock"];
/// Its configuration, and where it keeps its content if that does not say.
const SYSTEM_CONFIG: &str = "/etc/containerd/config.toml";
const SYSTEM_ROOT: &str = "/var/lib/containerd";
/// Where a containerd that the engine starts itself keeps its content, under the engine's own directory.
const OWN_ROOT: &str = "containerd/daemon";

/// The directory of the images; `None`: it is not known, or not on this host. `data_root`: the engine's own directory.
pub(in crate::runtime::docker) async fn path(
    said: &SystemInfo,
    kind: ImageStoreKind,
    data_root: Option<&Path>,
) -> Option<PathBuf> {
    let candidates = match kind {
        ImageStoreKind::GraphDriver => return data_root.map(Path::to_owned),
        ImageStoreKind::Containerd => {
            let address = said.containerd.as_ref().and_then(|containerd| containerd.address.as_deref());
            let config = tokio::fs::read_to_string(SYSTEM_CONFIG).await.unwrap_or_default();
            candidates(address, data_root, system_root(&config))
        }
    };
    for candidate in candidates {
        if tokio::fs::try_exists(&candidate).await.unwrap_or(false) {
            return Some(candidate);
        }
    }
    None
}

/// Where the content of a containerd may be, by the address of its socket. Engines before 25 do not tell the address: a
/// containerd of their own has left its directory.
fn candidates(address: Option<&str>, data_root: Option<&Path>, system_root: PathBuf) -> Vec<PathBuf> {
    let own = data_root.map(|root| root.join(OWN_ROOT));
    match address {
        Some(address) if SYSTEM_SOCKETS.contains(&address) => vec![system_root],
        Some(_) => own.into_iter().collect(),
        None => own.into_iter().chain([system_root]).collect(),
    }
}

/// The directory that a configuration of containerd names: its key `root`, before the first table.
fn system_root(config: &str) -> PathBuf {
    let keys = config.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let named = keys.filter_map(|line| {
        let value = line.strip_prefix("root")?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        value.get(1..)?.split(quote).next().filter(|root| root.starts_with('/'))
    });
    named.last().map_or_else(|| SYSTEM_ROOT.into(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_tells_whose_containerd_it_is() {
        let root = Path::new("/data/docker");
        let found = |address| candidates(address, Some(root), "/big/containerd".into());
        assert_eq!(found(Some("/run/containerd/containerd.sock")), [Path::new("/big/containerd")]);
        let own = Path::new("/data/docker/containerd/daemon");
        assert_eq!(found(Some("/var/run/docker/containerd/containerd.sock")), [own]);
        assert_eq!(found(None), [own, Path::new("/big/containerd")]);
    }

    #[test]
    fn the_configuration_of_containerd_names_its_directory() {
        assert_eq!(system_root("version = 2\nroot = \"/big/containerd\"\n"), Path::new("/big/containerd"));
        assert_eq!(system_root("root = '/big'  # moved\n[plugins]\nroot = \"/other\"\n"), Path::new("/big"));
        for text in ["", "version = 2", "root = \"\"", "root = 1", "[plugins]\nroot = \"/other\"", "rooted = \"/x\""] {
            assert_eq!(system_root(text), Path::new(SYSTEM_ROOT), "{text}");
        }
    }
}
