//! Helpers that the end-to-end tests share.

pub(crate) mod agent;
pub(crate) mod cluster;
pub(crate) mod docker;
pub(crate) mod engine_relay;
pub(crate) mod fake_engine;
pub(crate) mod foreign_host;
pub(crate) mod http;
pub(crate) mod netns;
pub(crate) mod nvml;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod registry_relay;
pub(crate) mod relay;
pub(crate) mod small_disk;

use std::io::Write;

/// Prints that a test is skipped because the machine lacks `needs`, for example `skip("…", "docker")`.
/// Fails instead if `OSTLER_REQUIRE`, a comma-separated list of what the machine must have, names it.
///
/// # Panics
/// `OSTLER_REQUIRE` lists `needs`.
pub(crate) fn skip(test: &str, needs: &str) {
    let required = std::env::var("OSTLER_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|what| what.trim() == needs),
        "{test} needs {needs}, which OSTLER_REQUIRE requires"
    );
    // Written past the test harness, which hides the output of passing tests.
    let _ = writeln!(std::io::stdout(), "SKIPPED: {test}: needs {needs}");
}
