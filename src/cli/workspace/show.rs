//! The text of `ostler workspace ls` and `show`. Pure.

use crate::cli::table::{NONE, fields, joined, one_line, or_none, table, yes_no};
use crate::types::{Period, Port, Ready, VolumeMount, Workspace};

pub(super) fn describe_all(workspaces: &[Workspace]) -> String {
    let rows = workspaces.iter().map(|workspace| {
        vec![
            workspace.name.to_string(),
            or_none(workspace.image.as_ref()),
            workspace.cores.to_string(),
            workspace.memory_bytes.to_string(),
            workspace.gpus.to_string(),
            joined(workspace.ports.iter().map(port)),
            one_line(&workspace.description),
        ]
    });
    table(&["NAME", "IMAGE", "CORES", "MEMORY", "GPUS", "PORTS", "DESCRIPTION"], rows)
}

/// `moved`: where the tag of a pinned image is now, if it is known to have moved.
pub(super) fn describe(workspace: &Workspace, moved: Option<String>) -> String {
    let span = |seconds: Option<u64>| or_none(seconds.map(Period::secs));
    let pairs = |(key, value): (&String, &String)| format!("{key}={}", one_line(value));
    let description = one_line(&workspace.description);
    fields(&[
        ("name", workspace.name.to_string()),
        ("description", if description.is_empty() { NONE.to_owned() } else { description }),
        ("image", or_none(workspace.image.as_ref())),
        ("pinned to", or_none(workspace.image_digest.as_ref())),
        ("tag moved to", or_none(moved)),
        (
            "command",
            if workspace.command.is_empty() { NONE.to_owned() } else { one_line(&workspace.command.join(" ")) },
        ),
        ("cores", workspace.cores.to_string()),
        ("memory", workspace.memory_bytes.to_string()),
        ("gpus", workspace.gpus.to_string()),
        ("gpu memory", or_none(workspace.gpu_memory_bytes)),
        ("gpu class", or_none(workspace.gpu_class.as_ref())),
        ("gpu capabilities", joined(&workspace.gpu_capabilities)),
        ("shared memory", workspace.shm_bytes.to_string()),
        ("ports", joined(workspace.ports.iter().map(port))),
        ("ready", or_none(workspace.ready.as_ref().map(ready))),
        ("env", joined(workspace.env.iter().map(pairs))),
        ("volumes", joined(workspace.volumes.iter().map(volume))),
        ("constraints", joined(workspace.constraints.iter().map(pairs))),
        ("network", or_none(workspace.network.as_ref())),
        ("pull", workspace.pull.to_string()),
        ("prepull", yes_no(workspace.prepull).to_owned()),
        ("ttl", span(workspace.ttl_seconds)),
        ("idle timeout", span(workspace.idle_timeout_seconds)),
        ("entry point", joined(&workspace.entrypoint)),
        ("run as", or_none(workspace.run_as.as_ref())),
        ("init", workspace.init.to_string()),
        ("read only", yes_no(workspace.read_only).to_owned()),
        ("tmpfs", joined(&workspace.tmpfs)),
        ("stop grace", Period::secs(workspace.stop_grace_seconds).to_string()),
        ("on host restart", workspace.on_host_restart.to_string()),
    ])
}

fn port(port: &Port) -> String {
    format!("{}/{}", port.container_port, port.protocol)
}

fn ready(ready: &Ready) -> String {
    let timeout = Period::secs(ready.timeout_seconds);
    format!("{}{} within {timeout}", ready.port, ready.path.as_deref().unwrap_or_default())
}

fn volume(volume: &VolumeMount) -> String {
    let read_only = if volume.read_only { ":ro" } else { "" };
    let roam = if volume.roam { ":roam" } else { "" };
    format!("{}:{}{read_only}{roam}", volume.name, volume.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Cores, Protocol};

    fn desktop() -> Workspace {
        let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::from_milli(2500), Bytes::gib(2));
        workspace.image = Some("kasmweb/desktop:1".to_owned());
        workspace.ports = vec![Port { container_port: 6901, protocol: Protocol::Tcp }];
        workspace.volumes = vec![VolumeMount {
            name: "home-{user}".to_owned(),
            path: "/home/kasm-user".to_owned(),
            read_only: true,
            roam: true,
        }];
        workspace.ttl_seconds = Some(28_800);
        workspace.gpu_memory_bytes = Some(Bytes::gib(8));
        workspace
    }

    #[test]
    fn the_catalogue_is_a_table() {
        let expected = "\
NAME      IMAGE               CORES   MEMORY   GPUS   PORTS      DESCRIPTION
desktop   kasmweb/desktop:1   2.5     2 GiB    0      6901/tcp";
        assert_eq!(describe_all(&[desktop()]), expected);
    }

    #[test]
    fn a_workspace_is_shown_in_the_syntax_of_the_flags() {
        let mut desktop = desktop();
        desktop.image_digest = Some("sha256:1".to_owned());
        let shown = describe(&desktop, Some("sha256:2 on a".to_owned()));
        assert!(shown.contains("\n  volumes           home-{user}:/home/kasm-user:ro:roam\n"), "{shown}");
        assert!(shown.contains("\n  ttl               8h\n"), "{shown}");
        assert!(shown.contains("\n  pinned to         sha256:1\n  tag moved to      sha256:2 on a\n"), "{shown}");
        assert!(shown.contains("\n  gpu memory        8 GiB\n  gpu class         -\n"), "{shown}");
    }
}
