//! ostler: containerised workspaces on a fleet of hosts, with no manager, no
//! database and no broker. `ARCHITECTURE.md` is the map of this crate.

pub mod capacity;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod election;
pub mod events;
pub mod gossip;
pub mod gpu;
pub mod history;
pub mod http;
pub mod identity;
pub mod images;
pub mod ledger;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod node;
pub mod observe;
pub mod placement;
pub mod retry;
pub mod rollout;
pub mod runtime;
pub mod sessions;
pub mod socket;
pub mod store;
pub mod types;
pub mod wire;
