//! Reads the files in which the container device interface (CDI) lists devices. Pure.
//!
//! A file is JSON or YAML. Of two files, the one in the later directory wins; two files of one directory that list the
//! same device make it unusable, as for the engine.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::runtime::gpus::CdiDevice;

/// The characters of the longest file that is read. The specification of eight GPUs in 56 MIG instances has about
/// 200 KiB.
pub(in crate::runtime::docker) const MAX_FILE: u64 = 4 << 20;
/// Devices of one host at most; no host has more. What comes after them is not handed over.
const MAX_DEVICES: usize = 1024;

/// A device's full name, as `nvidia.com/gpu=0`, and what the files say of it.
pub(in crate::runtime::docker) type Devices = BTreeMap<String, CdiDevice>;

#[derive(Deserialize)]
struct Specification {
    kind: String,
    #[serde(default)]
    devices: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// YAML has `name: 0` for a number.
    name: Label,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Text(String),
    Number(u64),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(default)]
    device_nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    path: String,
}

/// The devices that one file lists.
///
/// # Errors
/// It is not a specification, with the place of the mistake.
pub(in crate::runtime::docker) fn devices_of(text: &str) -> Result<Devices, String> {
    // Every JSON text is YAML.
    let specification: Specification = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let device = |listed: Listed| {
        let name = match listed.name {
            Label::Text(name) => name,
            Label::Number(number) => number.to_string(),
        };
        let nodes = listed.container_edits.device_nodes.into_iter().map(|node| node.path).collect::<BTreeSet<_>>();
        (format!("{}={name}", specification.kind), CdiDevice { nodes })
    };
    Ok(specification.devices.into_iter().map(device).collect())
}

/// Joins the files of one directory after the other, in the order in which the engine reads them.
pub(in crate::runtime::docker) fn join(directories: impl IntoIterator<Item = Vec<Devices>>) -> Devices {
    let mut all = Devices::new();
    for files in directories {
        let (mut here, mut twice) = (Devices::new(), BTreeSet::new());
        for (name, device) in files.into_iter().flatten() {
            if here.insert(name.clone(), device).is_some() {
                twice.insert(name);
            }
        }
        all.extend(here);
        all.retain(|name, _| !twice.contains(name));
    }
    all.into_iter().take(MAX_DEVICES).collect()
}

/// The devices that the engine itself lists, with what the files say of them.
pub(in crate::runtime::docker) fn discovered(names: impl IntoIterator<Item = String>, mut files: Devices) -> Devices {
    let with_nodes = |name: String| {
        let device = files.remove(&name).unwrap_or_default();
        (name, device)
    };
    names.into_iter().take(MAX_DEVICES).map(with_nodes).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `nvidia-ctk cdi generate` writes it, shortened.
    const YAML: &str = r#"
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  env: [NVIDIA_VISIBLE_DEVICES=void]
  hooks:
  - args: [nvidia-cdi-hook, update-ldcache]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/card1
  name: "0"
- containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}
  name: GPU-8f6a
- name: 1
kind: nvidia.com/gpu
"#;

    fn device(nodes: &[&str]) -> CdiDevice {
        CdiDevice { nodes: nodes.iter().map(|&node| node.to_owned()).collect() }
    }

    fn devices(of: &[(&str, &[&str])]) -> Devices {
        of.iter().map(|(name, nodes)| ((*name).to_owned(), device(nodes))).collect()
    }

    #[test]
    fn yaml_and_json_list_names_and_nodes() {
        let expected = devices(&[
            ("nvidia.com/gpu=0", &["/dev/nvidia0", "/dev/dri/card1"]),
            ("nvidia.com/gpu=GPU-8f6a", &["/dev/nvidia0"]),
            ("nvidia.com/gpu=1", &[]),
        ]);
        assert_eq!(devices_of(YAML), Ok(expected));
        let json = r#"{"cdiVersion": "0.6.0", "kind": "amd.com/gpu",
            "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/dri/renderD128"}]}}]}"#;
        assert_eq!(devices_of(json), Ok(devices(&[("amd.com/gpu=0", &["/dev/dri/renderD128"])])));
    }

    #[test]
    fn what_is_no_specification_is_an_error() {
        for text in ["", "devices: []", "kind: [", "kind: x\ndevices: 7", "kind: x\ndevices: [{}]", "\u{0}"] {
            assert!(devices_of(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_later_directory_wins_and_two_files_of_one_exclude_each_other() {
        let etc = vec![devices(&[("a=0", &["/old"]), ("a=1", &["/old"])]), devices(&[("a=2", &["/old"])])];
        let run = vec![devices(&[("a=0", &["/new"]), ("a=1", &["/x"])]), devices(&[("a=1", &["/y"])])];
        assert_eq!(join([etc, run]), devices(&[("a=0", &["/new"]), ("a=2", &["/old"])]));
    }

    #[test]
    fn only_what_the_engine_lists_counts_where_it_lists() {
        let files = devices(&[("a=0", &["/0"]), ("a=1", &["/1"])]);
        let named = discovered(["a=1", "a=2"].map(str::to_owned), files);
        assert_eq!(named, devices(&[("a=1", &["/1"]), ("a=2", &[])]));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}", at in 0..YAML.len(), with in "[-{}\\[\\]:&*\" \n]{0,3}") {
            let _ = devices_of(&text);
            let mut changed = YAML.to_owned();
            changed.insert_str(at, &with);
            let _ = devices_of(&changed);
        }

        #[test]
        fn a_list_is_bounded(count in 0..3000usize) {
            let many = (0..count).map(|n| (format!("a={n}"), CdiDevice::default())).collect();
            prop_assert_eq!(join([vec![many]]).len(), count.min(MAX_DEVICES));
        }
    }
}
