//! The end-to-end tests, in one binary: the runtimes on real processes and a real engine, and the
//! real agent through its API and its command line.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // test helpers panic on failure, and print skipped tests

mod addresses;
mod bad_input;
mod capacity;
mod catalogue;
mod cluster;
mod crash;
mod demo;
mod disk;
mod docker;
mod docker_runtime;
mod doctor;
mod events;
mod found;
mod gpu_commands;
mod gpu_probe;
mod gpus;
mod health;
mod history;
mod metrics;
mod netns;
mod process_runtime;
mod proxy;
mod reach;
mod refresh;
mod relay;
mod schemathesis;
mod session;
mod support;
mod tls;
mod token;
mod top;
