//! Everything that is tested from outside, in one binary: the runtimes on real processes and a real
//! engine, and the real agent by its API and its command line.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests too fail by panicking, and say what is skipped

mod bad_input;
mod capacity;
mod catalogue;
mod cluster;
mod crash;
mod demo;
mod docker;
mod docker_runtime;
mod found;
mod netns;
mod process_runtime;
mod relay;
mod schemathesis;
mod session;
mod support;
mod tls;
mod token;
