//! What integration tests share.

pub(crate) mod agent;
pub(crate) mod cluster;
pub(crate) mod docker;
pub(crate) mod http;
pub(crate) mod netns;
pub(crate) mod random;
pub(crate) mod relay;

use std::io::Write;

/// Says that a test was not done for want of something, or fails where `OSTLER_REQUIRE` (a list
/// with commas, of what the machine is known to have) names it: `skip("…", "docker")`.
///
/// # Panics
/// `OSTLER_REQUIRE` lists `needs`.
pub(crate) fn skip(test: &str, needs: &str) {
    let required = std::env::var("OSTLER_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|what| what.trim() == needs),
        "{test} needs {needs}, which OSTLER_REQUIRE demands"
    );
    // Past the harness, which swallows what a passing test prints.
    let _ = writeln!(std::io::stdout(), "SKIPPED: {test}: needs {needs}");
}
