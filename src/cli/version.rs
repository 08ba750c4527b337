//! `ostler version`.

use serde::Serialize;

use super::failure::Failure;
use super::output::Output;

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// Prints the version of this program. `ostler status` shows that of the agent.
pub(super) fn run(out: &Output) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    out.value(&Version { version }, || format!("ostler {version}"))
}
