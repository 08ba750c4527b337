//! The environment of a session's command: none of the agent's variables, all of the launch's.

use std::collections::BTreeMap;
use std::path::Path;

use super::directory::{Identity, Plan};
use crate::types::{NodeId, Protocol, SessionId};

/// `PATH` of the command, unless the workspace sets it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Every variable of the command. ostler's variables for ports and volumes override the launch's.
pub(super) fn of_command(identity: &Identity, plan: &Plan, user: &str, home: &Path) -> BTreeMap<String, String> {
    let launch = &identity.launch;
    let mut variables = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), home.display().to_string()),
        ("USER".to_owned(), user.to_owned()),
        ("LOGNAME".to_owned(), user.to_owned()),
    ]);
    variables.extend(launch.env.clone());
    // CUDA's convention: the process sees these devices in this order, and no others; of an empty list, none (CUDA
    // Programming Guide, "CUDA Environment Variables").
    variables.insert("CUDA_VISIBLE_DEVICES".to_owned(), launch.gpu_uuids.join(","));
    if launch.gpu_uuids.is_empty() {
        // What it starts through NVIDIA's container toolkit gets none either.
        variables.insert("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned());
    }
    for port in &launch.ports {
        let name = format!("OSTLER_PORT_{}", port.container_port);
        let host_port = port.host_port.to_string();
        match port.protocol {
            Protocol::Tcp => drop(variables.insert(name, host_port)),
            Protocol::Udp => {
                variables.insert(format!("{name}_UDP"), host_port.clone());
                variables.entry(name).or_insert(host_port);
            }
        }
    }
    variables.extend(plan.volumes.iter().map(|(name, path)| (name.clone(), path.display().to_string())));
    variables.extend(marks(&identity.node, &launch.session));
    variables
}

/// The variables that mark a session's processes, so that they are found whatever their parent is.
pub(super) fn marks(node: &NodeId, session: &SessionId) -> [(String, String); 2] {
    [("OSTLER_NODE".to_owned(), node.to_string()), ("OSTLER_SESSION".to_owned(), session.to_string())]
}

/// The variable that names a volume's directory: `OSTLER_VOLUME_HOME_ALICE`.
pub(super) fn volume_variable(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("OSTLER_VOLUME_{}", name.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::process::directory::tests::identity;
    use crate::runtime::{PortBinding, process::cgroup::Group};

    fn plan() -> Plan {
        let volumes = BTreeMap::from([("OSTLER_VOLUME_A".to_owned(), "/v/a".into())]);
        Plan { account: None, group: Group::default(), address_space_bytes: None, volumes }
    }

    #[test]
    fn the_launch_overrides_defaults_and_ostlers_assignments_override_the_launch() {
        let mut identity = identity();
        let port = |container_port, protocol, host_port| PortBinding { container_port, protocol, host_port };
        identity.launch.ports =
            vec![port(53, Protocol::Tcp, 1), port(53, Protocol::Udp, 2), port(54, Protocol::Udp, 3)];
        for (name, value) in [("PATH", "/mine"), ("OSTLER_PORT_53", "9"), ("OSTLER_SESSION", "x")] {
            identity.launch.env.insert(name.to_owned(), value.to_owned());
        }
        let variables = of_command(&identity, &plan(), "nobody", Path::new("/home"));
        for (name, value) in [
            ("PATH", "/mine"),
            ("PASSWORD", "secret"),
            ("HOME", "/home"),
            ("USER", "nobody"),
            ("OSTLER_PORT_53", "1"),
            ("OSTLER_PORT_53_UDP", "2"),
            ("OSTLER_PORT_54", "3"),
            ("OSTLER_VOLUME_A", "/v/a"),
            ("CUDA_VISIBLE_DEVICES", ""),
            ("NVIDIA_VISIBLE_DEVICES", "void"),
            ("OSTLER_SESSION", identity.launch.session.as_str()),
        ] {
            assert_eq!(variables[name], value, "{name}");
        }
    }

    #[test]
    fn a_session_with_gpus_sees_its_own() {
        let mut identity = identity();
        identity.launch.gpu_uuids = ["GPU-2", "GPU-1"].map(str::to_owned).to_vec();
        let variables = of_command(&identity, &plan(), "nobody", Path::new("/home"));
        assert_eq!(variables["CUDA_VISIBLE_DEVICES"], "GPU-2,GPU-1");
        assert!(!variables.contains_key("NVIDIA_VISIBLE_DEVICES"));
    }

    #[test]
    fn variables_of_volumes_are_valid_shell_names() {
        assert_eq!(volume_variable("home-alice@x.org"), "OSTLER_VOLUME_HOME_ALICE_X_ORG");
    }
}
