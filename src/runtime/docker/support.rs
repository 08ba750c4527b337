//! Whether ostler works with an engine, by what it says of its versions. Pure.

use bollard::models::SystemVersion;

use super::engine::Failure;

/// What engines call themselves that speak Docker's API and differ in what ostler depends on: events, removals, ids.
const PODMAN: &str = "podman";
/// The answer of an engine that does not speak an API as old as the client's.
const TOO_OLD: &str = "Minimum supported API version is ";

/// Why ostler does not work with the engine; `None`: it does. `spoken`: the newest version of the API that ostler speaks.
pub(super) fn unsupported(said: &SystemVersion, spoken: &str) -> Option<String> {
    let mut components = said.components.iter().flatten();
    if let Some(podman) = components.find(|component| component.name.to_lowercase().contains(PODMAN)) {
        return Some(format!(
            "the container engine is {} {}, and ostler needs Docker: set runtime.docker_host to the socket of Docker",
            podman.name, podman.version
        ));
    }
    let oldest = said.min_api_version.as_deref()?;
    if parsed(oldest)? <= parsed(spoken)? {
        return None;
    }
    let version = said.version.as_deref().unwrap_or_default();
    Some(too_new(&format!("Docker {version}"), oldest, spoken))
}

/// The same, of an engine that refuses to tell its versions to so old a client.
pub(super) fn refused(failure: &Failure, spoken: &str) -> Option<String> {
    let Failure::Said { status: 400, message } = failure else { return None };
    let (_, rest) = message.split_once(TOO_OLD)?;
    let oldest = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.trim_end_matches('.');
    Some(too_new("the container engine", oldest, spoken))
}

fn too_new(engine: &str, oldest: &str, spoken: &str) -> String {
    format!(
        "{engine} speaks no version of its API below {oldest}, and this ostler speaks {spoken} at most: upgrade ostler"
    )
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use bollard::models::SystemVersionComponents;

    use super::*;

    fn engine(name: &str, oldest: &str) -> SystemVersion {
        let component = SystemVersionComponents {
            name: name.to_owned(),
            version: "4.9.3".to_owned(),
            ..SystemVersionComponents::default()
        };
        SystemVersion {
            components: Some(vec![component]),
            version: Some("31.0".to_owned()),
            min_api_version: Some(oldest.to_owned()),
            ..SystemVersion::default()
        }
    }

    #[test]
    fn an_engine_whose_api_begins_above_what_is_spoken_is_not_supported() {
        for oldest in ["1.12", "1.53", "nonsense"] {
            assert_eq!(unsupported(&engine("Engine", oldest), "1.53"), None, "{oldest}");
        }
        let told = "Docker 31.0 speaks no version of its API below 1.100, and this ostler speaks 1.53 at most: upgrade \
                    ostler";
        assert_eq!(unsupported(&engine("Engine", "1.100"), "1.53").as_deref(), Some(told));
        assert_eq!(unsupported(&SystemVersion::default(), "1.53"), None, "it says nothing");
    }

    #[test]
    fn podman_is_named_with_its_version() {
        let told = unsupported(&engine("Podman Engine", "1.24"), "1.53").unwrap();
        assert!(told.starts_with("the container engine is Podman Engine 4.9.3, and ostler needs Docker"), "{told}");
    }

    #[test]
    fn an_engine_that_refuses_to_answer_so_old_a_client_is_not_supported() {
        let said = |status, message: &str| Failure::Said { status, message: message.to_owned() };
        let text = "client version 1.53 is too old. Minimum supported API version is 1.60, please upgrade your client \
                    to a newer version";
        let told = refused(&said(400, text), "1.53").unwrap();
        assert!(told.contains("below 1.60, and this ostler speaks 1.53"), "{told}");
        let ended = "client version 1.53 is too old. Minimum supported API version is 1.60.";
        assert_eq!(refused(&said(400, ended), "1.53"), Some(told));
        assert_eq!(refused(&said(500, text), "1.53"), None);
        assert_eq!(refused(&said(400, "bad request"), "1.53"), None);
        assert_eq!(refused(&Failure::Lost(text.to_owned()), "1.53"), None);
    }
}
