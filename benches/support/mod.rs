//! Code that the benchmarks of a whole agent share.

pub(crate) mod agent;
pub(crate) mod api;
pub(crate) mod engine;
pub(crate) mod figures;
pub(crate) mod http;
