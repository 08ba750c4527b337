//! Reads the files in which the container device interface (CDI) lists devices. Pure.
//!
//! A file is JSON or YAML. Of two files, the one in the later directory wins; two files of one directory that list the
//! same device make it unusable, as for the engine.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_yaml_ng::Value;

use crate::runtime::gpus::{CdiDevice, HostNode, stale};

/// The characters of the longest file that is read. The specification of eight GPUs in 56 MIG instances has about
/// 200 KiB.
pub(in crate::runtime::docker) const MAX_FILE: u64 = 4 << 20;
/// Devices of one host at most; no host has more. What comes after them is not handed over.
const MAX_DEVICES: usize = 1024;

/// A device's full name, as `nvidia.com/gpu=0`, and what the files say of it.
pub(in crate::runtime::docker) type Devices = BTreeMap<String, CdiDevice>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    kind: String,
    /// For every device of the file.
    #[serde(default)]
    container_edits: Edits,
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
    /// They name the driver's libraries. Every text in them is looked at, so that no form of theirs is an error.
    #[serde(default)]
    mounts: Value,
    #[serde(default)]
    hooks: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    /// The same path as in the container if it is absent.
    host_path: Option<String>,
    /// `c` unless it says otherwise.
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
}

impl Node {
    fn on_host(&self) -> HostNode {
        let path = self.host_path.as_ref().unwrap_or(&self.path).clone();
        let number = self.major().zip(u32::try_from(self.minor.unwrap_or(0)).ok());
        HostNode { path, number }
    }

    /// The engine takes 0 for absent, and looks at the host's node then.
    fn major(&self) -> Option<u32> {
        u32::try_from(self.major?).ok().filter(|major| *major != 0)
    }
}

/// The devices that one file lists.
///
/// # Errors
/// It is not a specification, with the place of the mistake.
pub(in crate::runtime::docker) fn devices_of(text: &str) -> Result<Devices, String> {
    // Every JSON text is YAML.
    let specification: Specification = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let (drivers, majors) = (specification.container_edits.drivers(), specification.container_edits.majors());
    let device = |listed: Listed| {
        let name = match listed.name {
            Label::Text(name) => name,
            Label::Number(number) => number.to_string(),
        };
        let edits = listed.container_edits;
        let device = CdiDevice {
            libraries: only(&drivers | &edits.drivers()),
            majors: majors.clone().into_iter().chain(edits.majors()).collect(),
            host_nodes: edits.device_nodes.iter().map(Node::on_host).collect(),
            nodes: edits.device_nodes.into_iter().map(|node| node.path).collect(),
            ..CdiDevice::default()
        };
        (format!("{}={name}", specification.kind), device)
    };
    Ok(specification.devices.into_iter().map(device).collect())
}

impl Edits {
    /// The versions of the driver whose libraries they bring.
    fn drivers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for value in [&self.mounts, &self.hooks] {
            each_text(value, &mut |text| found.extend(stale::drivers_in(text)));
        }
        found
    }

    fn majors(&self) -> BTreeMap<String, u32> {
        let is_character = |node: &&Node| node.kind.as_deref().is_none_or(|kind| matches!(kind, "" | "c" | "u"));
        let nodes = self.device_nodes.iter().filter(is_character);
        nodes.filter_map(|node| Some((node.path.clone(), node.major()?))).collect()
    }
}

/// Calls `with` for every text in it. The parser bounds how deep it is.
fn each_text(value: &Value, with: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => with(text),
        Value::Sequence(values) => values.iter().for_each(|value| each_text(value, with)),
        Value::Mapping(values) => values.values().for_each(|value| each_text(value, with)),
        _ => {}
    }
}

/// The version, if there is exactly one.
fn only(mut versions: BTreeSet<String>) -> Option<String> {
    versions.pop_first().filter(|_| versions.is_empty())
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
  - args: [nvidia-cdi-hook, create-symlinks, --link, "libcuda.so.1::/usr/lib/libcuda.so"]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - {hostPath: /usr/lib/libcuda.so.580.65.06, containerPath: /usr/lib/libcuda.so.580.65.06, options: [ro, nosuid]}
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
        let on_host = |&path: &&str| HostNode { path: path.to_owned(), number: None };
        CdiDevice {
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
            host_nodes: nodes.iter().map(on_host).collect(),
            ..CdiDevice::default()
        }
    }

    fn devices(of: &[(&str, &[&str])]) -> Devices {
        of.iter().map(|(name, nodes)| ((*name).to_owned(), device(nodes))).collect()
    }

    #[test]
    fn yaml_and_json_list_names_and_nodes() {
        let mut expected = devices(&[
            ("nvidia.com/gpu=0", &["/dev/nvidia0", "/dev/dri/card1"]),
            ("nvidia.com/gpu=GPU-8f6a", &["/dev/nvidia0"]),
            ("nvidia.com/gpu=1", &[]),
        ]);
        expected.values_mut().for_each(|device| device.libraries = Some("580.65.06".to_owned()));
        assert_eq!(devices_of(YAML), Ok(expected));
        let json = r#"{"cdiVersion": "0.6.0", "kind": "amd.com/gpu",
            "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/dri/renderD128"}]}}]}"#;
        assert_eq!(devices_of(json), Ok(devices(&[("amd.com/gpu=0", &["/dev/dri/renderD128"])])));
    }

    #[test]
    fn a_device_has_the_libraries_and_numbers_of_its_file_and_its_own() {
        let of = |file: &str, own: &str| {
            let text =
                format!("kind: a\ncontainerEdits: {{{file}}}\ndevices:\n- {{name: 0, containerEdits: {{{own}}}}}");
            devices_of(&text).unwrap().remove("a=0").unwrap()
        };
        let libraries = |file: &str, own: &str| of(file, own).libraries;
        let mount = |version: &str| format!("mounts: [{{hostPath: /lib/libnvidia-ml.so.{version}}}]");
        assert_eq!(libraries(&mount("550.54"), "").as_deref(), Some("550.54"));
        assert_eq!(libraries("", &mount("550.54")).as_deref(), Some("550.54"));
        assert_eq!(libraries(&mount("550.54"), &mount("550.54")).as_deref(), Some("550.54"));
        assert_eq!(libraries(&mount("550.54"), &mount("580.1")), None, "which one counts is not known");
        let hook = "hooks: [{args: [x, 755, --link, libcuda.so.550.54::/lib/libcuda.so.1]}]";
        assert_eq!(libraries(hook, "mounts: null").as_deref(), Some("550.54"));
        assert_eq!(libraries("mounts: 7", "hooks: {a: [b]}"), None);

        let file = "deviceNodes: [{path: /dev/nvidia-uvm, major: 511}, {path: /dev/nvidiactl}]";
        let own = "deviceNodes: [{path: /dev/nvidia0, type: c, major: 195}, {path: /dev/b, type: b, major: 8}, \
                   {path: /dev/p, major: -1}]";
        let expected = [("/dev/nvidia-uvm".to_owned(), 511), ("/dev/nvidia0".to_owned(), 195)];
        assert_eq!(of(file, own).majors, expected.into());
    }

    #[test]
    fn a_node_of_the_host_may_have_another_path_and_a_number_of_its_own() {
        let text = "{kind: a.com/gpu, devices: [{name: 0, containerEdits: {deviceNodes: [
            {path: /dev/a, hostPath: /dev/dri/renderD129}, {path: /dev/b, type: c, major: 226, minor: 1},
            {path: /dev/c, major: 0, minor: 7}, {path: /dev/d, major: 226}]}}]}";
        let device = devices_of(text).unwrap().remove("a.com/gpu=0").unwrap();
        let nodes = [("/dev/dri/renderD129", None), ("/dev/b", Some((226, 1))), ("/dev/c", None)];
        let expected = nodes.into_iter().chain([("/dev/d", Some((226, 0)))]);
        let expected: Vec<_> = expected.map(|(path, number)| HostNode { path: path.to_owned(), number }).collect();
        assert_eq!(device.host_nodes, expected);
        assert!(device.nodes.contains("/dev/a") && device.nodes.len() == 4);
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
