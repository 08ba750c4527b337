//! Whether a container that was started has exactly the GPUs of its session. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::fields::RUNTIME;
use crate::runtime::gpus::{ENV_KEY, GENERATE, GENERATE_OTHER, gpu_minor};

/// A GPU that the session holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime::docker) struct Wanted {
    pub(in crate::runtime::docker) uuid: String,
    /// Of a MIG instance, its GPU's. `None`: not known.
    pub(in crate::runtime::docker) minor: Option<u32>,
}

/// A character device in `/dev` of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime::docker) struct Node {
    pub(in crate::runtime::docker) name: String,
    pub(in crate::runtime::docker) major: u32,
    pub(in crate::runtime::docker) minor: u32,
}

/// How the devices of a container differ from those of its session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::runtime::docker) struct Wrong {
    /// The UUIDs of the devices that it does not have, or the paths of their nodes.
    missing: Vec<String>,
    /// The nodes of other devices that it has.
    extra: Vec<String>,
    /// Nodes with a number that no device of the driver has: those of an earlier load of the driver.
    stale: Vec<String>,
}

/// Compares. `majors` are the numbers of NVIDIA's driver; empty: not known, and any number is right.
///
/// A device whose minor number is not known can be any node, so nothing is extra then.
pub(in crate::runtime::docker) fn check(wanted: &[Wanted], nodes: &[Node], majors: &[u32]) -> Result<(), Wrong> {
    let minors: BTreeSet<u32> = wanted.iter().filter_map(|wanted| wanted.minor).collect();
    let are_all_known = wanted.iter().all(|wanted| wanted.minor.is_some());
    let mut gpus: Vec<(&Node, u32)> = nodes.iter().filter_map(|node| Some((node, gpu_minor(&node.name)?))).collect();
    // In an order that a message can have twice: a directory has none.
    gpus.sort_by_key(|(_, named)| *named);
    let gpus = || gpus.iter().copied();
    let is_right = |node: &Node, named| node.minor == named && (majors.is_empty() || majors.contains(&node.major));
    let path = |node: &Node| format!("/dev/{}", node.name);
    let has = |minor: u32| gpus().any(|(node, named)| named == minor && is_right(node, named));
    let wrong = Wrong {
        missing: wanted
            .iter()
            .filter(|of| of.minor.is_some_and(|minor| !has(minor)))
            .map(|of| of.uuid.clone())
            .collect(),
        extra: gpus()
            .filter(|(node, named)| !minors.contains(named) || !minors.contains(&node.minor))
            .filter(|_| are_all_known)
            .map(|(node, _)| path(node))
            .collect(),
        stale: gpus()
            .filter(|(node, named)| minors.contains(named) && minors.contains(&node.minor) && !is_right(node, *named))
            .map(|(node, _)| path(node))
            .collect(),
    };
    if wrong == Wrong::default() { Ok(()) } else { Err(wrong) }
}

/// The same for GPUs of other makers, by paths in the container: which are the session's, which are those of other GPUs
/// only, and at which of both there is a device.
pub(in crate::runtime::docker) fn check_paths(
    own: &BTreeSet<String>,
    others: &BTreeSet<String>,
    present: &BTreeSet<String>,
) -> Result<(), Wrong> {
    let (missing, extra) = (own - present, others & present);
    let wrong = Wrong { missing: missing.into_iter().collect(), extra: extra.into_iter().collect(), stale: Vec::new() };
    if wrong == Wrong::default() { Ok(()) } else { Err(wrong) }
}

/// The sentence for the operator, of GPUs of other makers.
pub(in crate::runtime::docker) fn explain_other(wrong: &Wrong) -> String {
    format!(
        "the container did not get exactly the GPUs of its session: {wrong}; the engine's CDI list may be out of date: \
         {GENERATE_OTHER}"
    )
}

/// The sentence for the operator, with the usual cause. `by_runtime`: NVIDIA's container runtime handed them over, and
/// not CDI.
pub(in crate::runtime::docker) fn explain(wrong: &Wrong, by_runtime: bool) -> String {
    let cause = match by_runtime {
        true if wrong.missing.is_empty() => format!(
            "the runtime `{RUNTIME}` adds devices that it was not asked for: set gpu.hand_over = \"cdi\", or mend \
             /etc/nvidia-container-runtime/config.toml"
        ),
        true => format!(
            "the runtime `{RUNTIME}` may ignore NVIDIA_VISIBLE_DEVICES of unprivileged containers: set {ENV_KEY}, or set \
             gpu.hand_over = \"cdi\""
        ),
        false => format!("the engine's CDI list may be out of date: run: {GENERATE}"),
    };
    format!("the container did not get exactly the GPUs of its session: {wrong}; {cause}")
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("it does not have ", &self.missing),
            ("it has devices of other sessions or of none, ", &self.extra),
            ("it has nodes of an earlier load of the driver, ", &self.stale),
        ];
        let parts = parts.iter().filter(|(_, what)| !what.is_empty());
        let texts: Vec<String> = parts.map(|(text, what)| format!("{text}{}", what.join(", "))).collect();
        f.write_str(&texts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(n: u32) -> Wanted {
        Wanted { uuid: format!("GPU-{n}"), minor: Some(n) }
    }

    fn node(name: &str, major: u32, minor: u32) -> Node {
        Node { name: name.to_owned(), major, minor }
    }

    fn gpu(n: u32) -> Node {
        node(&format!("nvidia{n}"), 195, n)
    }

    fn texts(of: &[&str]) -> Vec<String> {
        of.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn exactly_the_devices_of_the_session_are_right() {
        let around = [node("nvidiactl", 195, 255), node("nvidia-uvm", 510, 0), node("null", 1, 3)];
        let check = |of: &[u32], nodes: &[Node]| {
            let of: Vec<Wanted> = of.iter().copied().map(wanted).collect();
            super::check(&of, &[nodes, &around].concat(), &[195])
        };
        assert_eq!(check(&[0, 2], &[gpu(2), gpu(0)]), Ok(()));
        let missing = Wrong { missing: texts(&["GPU-2"]), ..Wrong::default() };
        assert_eq!(check(&[0, 2], &[gpu(0)]), Err(missing));
        let extra = Wrong { extra: texts(&["/dev/nvidia1", "/dev/nvidia2"]), ..Wrong::default() };
        assert_eq!(check(&[0], &[gpu(2), gpu(0), gpu(1)]), Err(extra));
        let other = check(&[0], &[node("nvidia0", 195, 1)]).unwrap_err();
        assert_eq!(
            (other.missing, other.extra),
            (texts(&["GPU-0"]), texts(&["/dev/nvidia0"])),
            "another under its name"
        );
        let stale = check(&[0], &[node("nvidia0", 511, 0)]).unwrap_err();
        assert_eq!((stale.missing, stale.stale), (texts(&["GPU-0"]), texts(&["/dev/nvidia0"])));
        assert_eq!(super::check(&[wanted(0)], &[node("nvidia0", 511, 0)], &[]), Ok(()), "the number is not known");
    }

    #[test]
    fn paths_are_right_if_those_of_the_session_are_there_and_no_others() {
        let set = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<BTreeSet<_>>();
        let (own, others) = (set(&["/dev/dri/renderD128", "/dev/kfd"]), set(&["/dev/dri/renderD129"]));
        let check = |present: &[&str]| check_paths(&own, &others, &set(present));
        assert_eq!(check(&["/dev/dri/renderD128", "/dev/kfd"]), Ok(()));
        let wrong = check(&["/dev/kfd", "/dev/dri/renderD129"]).unwrap_err();
        assert_eq!(
            (&wrong.missing, &wrong.extra),
            (&texts(&["/dev/dri/renderD128"]), &texts(&["/dev/dri/renderD129"]))
        );
        let text = explain_other(&wrong);
        assert!(text.contains("does not have /dev/dri/renderD128") && text.contains("amd-ctk cdi generate"), "{text}");
    }

    #[test]
    fn instances_of_one_gpu_share_its_node() {
        let instance = |uuid: &str| Wanted { uuid: uuid.to_owned(), minor: Some(0) };
        assert_eq!(check(&[instance("MIG-1"), instance("MIG-2")], &[gpu(0)], &[195]), Ok(()));
    }

    #[test]
    fn a_device_whose_number_is_not_known_can_be_any() {
        let unknown = Wanted { uuid: "GPU-9".to_owned(), minor: None };
        assert_eq!(check(&[wanted(0), unknown.clone()], &[gpu(0), gpu(4)], &[195]), Ok(()));
        assert!(check(&[wanted(0), unknown], &[gpu(4)], &[195]).is_err(), "what is known must be there");
    }

    #[test]
    fn the_message_names_the_usual_cause_and_what_mends_it() {
        let wrong = |missing: &[&str], extra: &[&str]| Wrong {
            missing: texts(missing),
            extra: texts(extra),
            ..Wrong::default()
        };
        let text = explain(&wrong(&["GPU-1"], &[]), true);
        assert!(text.contains("does not have GPU-1") && text.contains("envvar-when-unprivileged"), "{text}");
        let text = explain(&wrong(&[], &["/dev/nvidia1", "/dev/nvidia2"]), true);
        assert!(text.contains("/dev/nvidia1, /dev/nvidia2") && text.contains("gpu.hand_over = \"cdi\""), "{text}");
        assert!(explain(&wrong(&["GPU-1"], &[]), false).ends_with(GENERATE));
    }

    proptest! {
        /// A container is right exactly if the GPUs in it are those of its session.
        #[test]
        fn right_is_equal(
            held in proptest::collection::btree_set(0..6u32, 1..5), inside in proptest::collection::btree_set(0..6u32, 0..6),
        ) {
            let wanted: Vec<Wanted> = held.iter().copied().map(wanted).collect();
            let nodes: Vec<Node> = inside.iter().copied().map(gpu).collect();
            prop_assert_eq!(check(&wanted, &nodes, &[195]).is_ok(), held == inside);
        }
    }
}
