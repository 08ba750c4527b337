//! Whose fault it is that a session does not start, from the engine's own words. Pure.
//!
//! The engine has one status for most of its errors, so only the text tells them apart. What is not recognised is the
//! host's: the session is tried elsewhere.

mod pull;

use super::engine::Failure;
use crate::runtime::gpus::{CONFIGURE, GENERATE, GENERATE_OTHER};
use crate::runtime::{Error, Fault};
use crate::types::NVIDIA_CLASS;

pub(super) use pull::of_pull;

/// What the engine and its OCI runtime say of a command that no host can execute.
const BAD_COMMANDS: [&str; 9] = [
    "No command specified",
    "no command specified",
    "executable file not found",
    "stat /",
    "permission denied: unknown",
    "exec format error",
    "is a directory: unknown",
    "unable to find user",
    "unable to find group",
];
/// What the engine says when it cannot hand over GPUs.
const UNLISTED_GPU: &str = "unresolvable CDI devices";
const NO_CDI: &str = "could not select device driver";
const NO_RUNTIME: &str = "unknown or invalid runtime name";
/// The names of the toolkit's own programs begin with one of these. Why one cannot be executed reads like a bad command.
const TOOLKIT: [&str; 3] = ["nvidia-container-", "nvidia-ctk", "nvidia-cdi-hook"];

/// Why a container was not created.
pub(super) fn of_create(failure: Failure) -> Error {
    match failure {
        Failure::Said { message, .. } if is_missing_network(&message) => network(message),
        Failure::Said { status: 404, message } if message.contains("mage") => Error::start(Fault::Image, message),
        Failure::Said { message, .. } if let Some(advice) = gpu_advice(&message) => {
            Error::start(Fault::Host, format!("cannot hand over GPUs: {message}; {advice}"))
        }
        Failure::Said { message, .. } if is_bad_command(&message) => command(&message),
        Failure::Said { status: 503, message } => Error::Unavailable(message),
        Failure::Said { message, .. } => Error::start(Fault::Host, format!("cannot create the container: {message}")),
        lost @ (Failure::Lost(_) | Failure::Unsupported(_)) => lost.into(),
    }
}

/// Why a container was not started.
pub(super) fn of_start(failure: Failure) -> Error {
    match failure {
        Failure::Said { status: 404, message } if message.starts_with("No such container") => Error::NotFound(message),
        Failure::Said { status: 503, message } => Error::Unavailable(message),
        Failure::Said { message, .. } if is_taken_port(&message) => {
            Error::start(Fault::Host, format!("a port of the session is already in use on this host: {message}"))
        }
        Failure::Said { message, .. } if is_missing_network(&message) => network(message),
        Failure::Said { message, .. } if let Some(advice) = gpu_advice(&message) => {
            Error::start(Fault::Host, format!("cannot hand over GPUs: {message}; {advice}"))
        }
        Failure::Said { message, .. } if is_bad_command(&message) => command(&message),
        Failure::Said { message, .. } => Error::start(Fault::Host, format!("cannot start the container: {message}")),
        lost @ (Failure::Lost(_) | Failure::Unsupported(_)) => lost.into(),
    }
}

/// Why a network was not made, or not found.
pub(super) fn of_network(failure: Failure) -> Error {
    match failure {
        Failure::Said { status: 503, message } => Error::Unavailable(message),
        Failure::Said { message, .. } => network(message),
        lost @ (Failure::Lost(_) | Failure::Unsupported(_)) => lost.into(),
    }
}

/// Why a volume was not made.
pub(super) fn of_volume(failure: Failure) -> Error {
    match failure {
        Failure::Said { status: 503, message } => Error::Unavailable(message),
        Failure::Said { message, .. } => Error::start(Fault::Host, format!("cannot create a volume: {message}")),
        lost @ (Failure::Lost(_) | Failure::Unsupported(_)) => lost.into(),
    }
}

/// Whether the engine did not find a network.
pub(super) fn is_missing_network(message: &str) -> bool {
    message.contains("network") && message.contains("not found")
}

fn is_taken_port(message: &str) -> bool {
    message.contains("port is already allocated") || message.contains("address already in use")
}

fn is_bad_command(message: &str) -> bool {
    BAD_COMMANDS.iter().any(|words| message.contains(words))
}

/// What mends an engine that cannot hand over GPUs; `None`: it says nothing of GPUs.
fn gpu_advice(message: &str) -> Option<String> {
    let has = |words: &str| message.contains(words);
    if has(UNLISTED_GPU) {
        let mend = if has(NVIDIA_CLASS) { format!("run: {GENERATE}") } else { GENERATE_OTHER.to_owned() };
        Some(format!("the engine's CDI list is out of date: {mend}"))
    } else if has(NO_CDI) {
        Some("the engine has no CDI, or it is off: set gpu.hand_over = \"auto\"".to_owned())
    } else if has(NO_RUNTIME) {
        Some(format!("run: {CONFIGURE}"))
    } else if TOOLKIT.iter().any(|name| has(name)) {
        Some("NVIDIA's container toolkit failed: run: nvidia-container-cli info".to_owned())
    } else {
        None
    }
}

fn network(message: String) -> Error {
    let full = message.contains("address pool");
    let advice = if full { "; set runtime.network_subnet to a free range" } else { "" };
    Error::start(Fault::Network, format!("cannot use the session's network: {message}{advice}"))
}

/// The part of the engine's message that names the command: what comes before it names the engine's own steps.
fn command(message: &str) -> Error {
    let useful = message.rsplit_once("container process: ").map_or(message, |(_, useful)| useful);
    let useful = useful.trim_end_matches(": unknown");
    Error::start(Fault::Workspace, format!("cannot start the container: {useful}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ImageReference;

    fn said(status: u16, message: &str) -> Failure {
        Failure::Said { status, message: message.to_owned() }
    }

    fn fault(error: &Error) -> Fault {
        let Error::Start { fault, .. } = error else { panic!("{error:?} is nobody's fault") };
        fault.clone()
    }

    #[test]
    fn a_command_that_cannot_be_executed_is_the_workspaces_fault() {
        let runc = |why: &str| {
            format!(
                "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: {why}: unknown"
            )
        };
        for why in [
            r#"exec: "nope": executable file not found in $PATH"#,
            r#"exec: "/nope": stat /nope: no such file or directory"#,
            r#"exec: "/plain": permission denied"#,
            "exec /garbage: exec format error",
        ] {
            let error = of_start(said(400, &runc(why)));
            assert_eq!(
                (fault(&error), error.to_string()),
                (Fault::Workspace, format!("cannot start the container: {why}"))
            );
        }
        assert_eq!(fault(&of_create(said(400, "No command specified"))), Fault::Workspace);
        let group = "unable to find group desk: no matching entries in group file";
        assert_eq!(fault(&of_start(said(400, group))), Fault::Workspace);
    }

    #[test]
    fn what_the_host_lacks_is_the_hosts_fault() {
        let taken = "driver failed programming external connectivity: Bind for 127.0.0.1:8080 failed: port is already allocated";
        let error = of_start(said(500, taken));
        assert_eq!(fault(&error), Fault::Host);
        assert!(error.to_string().starts_with("a port of the session is already in use"));
        assert_eq!(fault(&of_start(said(500, "no space left on device"))), Fault::Host);
        assert_eq!(fault(&of_create(said(409, "something else"))), Fault::Host);
        assert_eq!(fault(&of_volume(said(404, "plugin not found"))), Fault::Host);
        for failure in [said(404, "network ostler-lab not found"), said(404, "plugin \"x\" not found")] {
            assert_eq!(fault(&of_network(failure)), Fault::Network);
        }
        assert_eq!(fault(&of_create(said(404, "network ostler-lab not found"))), Fault::Network);
        let full = "could not find an available, non-overlapping IPv4 address pool among the defaults";
        assert!(of_network(said(403, full)).to_string().ends_with("set runtime.network_subnet to a free range"));
    }

    #[test]
    fn a_gpu_that_is_not_handed_over_is_the_hosts_fault_and_the_message_names_the_command() {
        for (said_by_engine, command) in [
            ("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1", "nvidia-ctk cdi generate"),
            ("CDI device injection failed: unresolvable CDI devices amd.com/gpu=0", "tool of the GPUs' maker"),
            (r#"could not select device driver "cdi" with capabilities: []"#, "gpu.hand_over"),
            ("unknown or invalid runtime name: nvidia", "nvidia-ctk runtime configure"),
            (
                r#"exec: "nvidia-container-runtime-hook": executable file not found in $PATH"#,
                "nvidia-container-cli info",
            ),
            ("nvidia-container-cli: device error: GPU-1: unknown device: unknown", "nvidia-container-cli info"),
        ] {
            for error in [of_start(said(500, said_by_engine)), of_create(said(400, said_by_engine))] {
                assert_eq!(fault(&error), Fault::Host, "{said_by_engine}");
                assert!(error.to_string().contains(command), "{error}");
            }
        }
        let own = r#"unable to start container process: exec: "nvidia-smi": executable file not found in $PATH"#;
        assert_eq!(fault(&of_start(said(400, own))), Fault::Workspace, "the image does not have it");
    }

    #[test]
    fn a_container_that_is_gone_and_an_engine_that_does_not_answer_are_nobodys_fault() {
        assert!(matches!(of_start(said(404, "No such container: x")), Error::NotFound(_)));
        assert_eq!(fault(&of_create(said(404, "No such image: x:1"))), Fault::Image);
        let lost = || Failure::Lost("silence".to_owned());
        let x = ImageReference::parse("x").unwrap();
        for error in
            [of_start(lost()), of_create(lost()), of_network(lost()), of_volume(lost()), of_pull(&x, lost()).into()]
        {
            assert!(matches!(error, Error::Unavailable(_)));
        }
    }
}
