//! Hosts that this machine cannot be: one without IPv6, and one whose clock was never set.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::agent::Agent;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/foreign_host.c");

/// From its next start on, the kernel gives the agent no socket of IPv6. False, after printing SKIPPED, if this machine
/// cannot do that.
pub(crate) fn without_ipv6(test: &str, agent: &mut Agent) -> bool {
    let launcher = agent.directory().join("no-ipv6");
    if !compiled(&launcher, &[]) || !Command::new(&launcher).arg("/bin/true").status().is_ok_and(|s| s.success()) {
        super::skip(test, "seccomp");
        return false;
    }
    run_with(agent, &format!("exec {} {} \"$@\"", launcher.display(), program()));
    true
}

/// From its next start on, the agent reads a clock that was never set. False, after printing SKIPPED, if this machine
/// cannot do that.
pub(crate) fn with_clock_never_set(test: &str, agent: &mut Agent) -> bool {
    let library = agent.directory().join("clock.so");
    if !compiled(&library, &["-shared", "-fPIC", "-DCLOCK"]) {
        super::skip(test, "cc");
        return false;
    }
    run_with(agent, &format!("LD_PRELOAD={} exec {} \"$@\"", library.display(), program()));
    true
}

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_ostler")
}

fn compiled(into: &Path, options: &[&str]) -> bool {
    let compiled = Command::new("cc").args(options).arg("-o").arg(into).arg(SOURCE).output();
    compiled.is_ok_and(|output| output.status.success())
}

fn run_with(agent: &mut Agent, script: &str) {
    let path: PathBuf = agent.directory().join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    agent.run_with(&path);
}
