//! The hosts' resources, and the workspaces.

use std::collections::BTreeMap;

use ostler::types::{Bytes, Cores, Name, OnHostRestart, Port, Protocol, Resources, VolumeMount, Workspace};

use crate::network::Random;

/// Few cores, so that hosts fill up soon.
pub(crate) fn physical(random: &mut Random) -> Resources {
    let gpus = if random.chance(60) { 1 + u32::try_from(random.below(2)).unwrap() } else { 0 };
    Resources::new(Cores::whole(4), Bytes::gib(6), gpus)
}

pub(crate) fn workspaces() -> BTreeMap<Name, Workspace> {
    let workspace = |name: &str, cores: u32, change: &dyn Fn(&mut Workspace)| {
        let mut workspace = Workspace::new(name.parse().unwrap(), Cores::whole(cores), Bytes::gib(1));
        workspace.image = Some("desktop:1".to_owned());
        workspace.ports = vec![Port { container_port: 80, protocol: Protocol::Tcp }];
        change(&mut workspace);
        (workspace.name.clone(), workspace)
    };
    [
        workspace("desktop", 1, &|_| {}),
        workspace("large", 3, &|_| {}),
        workspace("trainer", 1, &|workspace| workspace.gpus = 1),
        workspace("brief", 1, &|workspace| workspace.ttl_seconds = Some(6)),
        workspace("home", 1, &|workspace| {
            let (name, path) = ("{user}".to_owned(), "/home".to_owned());
            workspace.volumes = vec![VolumeMount { name, path, read_only: false, roam: false }];
        }),
        workspace("frail", 1, &|workspace| workspace.on_host_restart = OnHostRestart::Stop),
    ]
    .into()
}
