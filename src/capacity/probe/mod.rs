//! Readings of this host, one source each.

pub mod cgroup;
pub mod disk;
pub mod host;
pub mod pressure;

use crate::types::{Bytes, Cores};

/// The cores and memory that processes of the agent can use: the host's, bounded by the agent's own
/// cgroup. Zero if the kernel does not report them.
pub fn host_bounds() -> (Cores, Bytes) {
    let host = host::Sampler::new().sample();
    let bounds = cgroup::own();
    (bounds.limit_cores(host.cores), bounds.limit_memory(host.memory))
}
