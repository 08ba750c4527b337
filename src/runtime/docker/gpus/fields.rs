//! The part of a container that hands it the GPUs of its session. Pure.

use std::collections::BTreeSet;

use bollard::models::DeviceRequest;

use crate::runtime::Launch;
use crate::runtime::gpus::Way;
use crate::types::GpuCapability;

/// The name under which the engine knows NVIDIA's container runtime.
pub(in crate::runtime::docker) const RUNTIME: &str = "nvidia";
/// The driver of the engine's device requests that takes full names of CDI devices.
const CDI: &str = "cdi";
/// With this value NVIDIA's container runtime adds no device, whatever the image asks for.
const NOTHING: &str = "void";

/// The graphics nodes of one GPU, where the driver has made them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::runtime::docker) struct Graphics {
    /// As `/dev/dri/card0`.
    pub(in crate::runtime::docker) card: Option<String>,
    /// As `/dev/dri/renderD128`.
    pub(in crate::runtime::docker) render: Option<String>,
    /// The groups that may use them, by number.
    pub(in crate::runtime::docker) groups: BTreeSet<u32>,
}

/// What the configuration of a container has because of GPUs.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::runtime::docker) struct Fields {
    /// They take precedence over the workspace's, whose names they are not.
    pub(in crate::runtime::docker) env: Vec<(&'static str, String)>,
    /// They hold where the workspace sets none.
    pub(in crate::runtime::docker) env_defaults: Vec<(&'static str, String)>,
    pub(in crate::runtime::docker) runtime: Option<String>,
    pub(in crate::runtime::docker) requests: Option<Vec<DeviceRequest>>,
    pub(in crate::runtime::docker) groups: Option<Vec<String>>,
}

/// The variable that is set for Kasm's images where they can draw with the GPU.
pub(in crate::runtime::docker) const EGL_CARD: &str = "KASM_EGL_CARD";

/// Whether its programs draw.
pub(in crate::runtime::docker) fn wants_graphics(launch: &Launch) -> bool {
    launch.gpu_capabilities.iter().any(|of| matches!(of, GpuCapability::Graphics | GpuCapability::Display))
}

impl Fields {
    /// Of a container that gets no GPU. Images for GPUs ask for all of them by default, and the engine's default
    /// runtime may be NVIDIA's.
    pub(in crate::runtime::docker) fn none() -> Self {
        Self {
            env: vec![("NVIDIA_VISIBLE_DEVICES", NOTHING.to_owned())],
            env_defaults: Vec::new(),
            runtime: None,
            requests: None,
            groups: None,
        }
    }

    /// Of a container whose session holds GPUs. `are_owned`: their nodes will belong to the container's user.
    pub(in crate::runtime::docker) fn of(launch: &Launch, way: &Way, are_owned: bool, graphics: &[Graphics]) -> Self {
        let groups: BTreeSet<u32> = graphics.iter().flat_map(|nodes| nodes.groups.iter().copied()).collect();
        let groups = (!groups.is_empty()).then(|| groups.iter().map(ToString::to_string).collect());
        let env_defaults = if are_owned { kasm(graphics) } else { Vec::new() };
        match way {
            Way::Runtime { .. } => Self {
                env: vec![
                    ("NVIDIA_VISIBLE_DEVICES", launch.gpu_uuids.join(",")),
                    ("NVIDIA_DRIVER_CAPABILITIES", capabilities(launch)),
                ],
                env_defaults,
                runtime: Some(RUNTIME.to_owned()),
                requests: None,
                groups,
            },
            Way::Cdi(names) => Self { env_defaults, requests: Some(vec![request(names)]), groups, ..Self::none() },
        }
    }
}

/// Why programs of the session cannot draw with its GPUs, or not all of them can, for people. `has_variables`: its
/// container has [`EGL_CARD`].
pub(in crate::runtime::docker) fn without_graphics(graphics: &[Graphics], has_variables: bool) -> Option<String> {
    let no_nodes = "programs cannot draw with a GPU: no GPU of the session has both a card and a render node in /dev/dri; \
                    load nvidia_drm with modeset=1 on the host (a MIG instance never has them)";
    let not_owned = "Kasm's images draw without the GPU: the container engine leaves the nodes in /dev/dri to root, so \
                     KASM_EGL_CARD and KASM_RENDERD are not set; use nvidia-container-toolkit 1.18 or later, or Docker \
                     29.5 or later";
    let why = if kasm(graphics).is_empty() { Some(no_nodes) } else { (!has_variables).then_some(not_owned) };
    why.map(str::to_owned)
}

/// The images of Kasm use these two if the nodes are owned by their user. They use one GPU: the first that has both.
fn kasm(graphics: &[Graphics]) -> Vec<(&'static str, String)> {
    let both = graphics.iter().find_map(|nodes| nodes.card.clone().zip(nodes.render.clone()));
    both.map(|(card, render)| vec![(EGL_CARD, card), ("KASM_RENDERD", render)]).unwrap_or_default()
}

fn capabilities(launch: &Launch) -> String {
    launch.gpu_capabilities.iter().map(|capability| capability.as_str()).collect::<Vec<_>>().join(",")
}

fn request(names: &[String]) -> DeviceRequest {
    DeviceRequest { driver: Some(CDI.to_owned()), device_ids: Some(names.to_vec()), ..DeviceRequest::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_cannot_draw_with_its_gpus_is_told_why() {
        let (card, render) = (|| Some("/dev/dri/card1".to_owned()), || Some("/dev/dri/renderD129".to_owned()));
        let whole = || Graphics { card: card(), render: render(), ..Graphics::default() };
        let half = || Graphics { card: card(), ..Graphics::default() };
        for none in [&[][..], &[Graphics::default()], &[half()]] {
            assert!(without_graphics(none, false).unwrap().contains("nvidia_drm"), "{none:?}");
        }
        assert_eq!(without_graphics(&[Graphics::default(), whole()], true), None, "one is enough");
        assert!(without_graphics(&[whole()], false).unwrap().contains("KASM_EGL_CARD and KASM_RENDERD are not set"));
    }
}
