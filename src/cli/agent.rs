//! `ostler agent`: the daemon itself.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::config::Config;
use crate::{daemon, logging};

/// Run the agent of this host in the foreground, as systemd does.
///
/// It stops on SIGTERM and Ctrl-C. Sessions go on without it, and are taken over by the next one.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// The configuration; left out: /etc/ostler/ostler.toml where it exists, else the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Allow what is only for trying ostler out: made-up figures (`[dev]`) and sessions without containers.
    #[arg(long)]
    dev: bool,
}

pub(super) async fn run(args: &AgentArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), args.dev).map_err(|e| Failure::Usage(e.to_string()))?;
    logging::init(&config.log).map_err(|e| Failure::Failed(e.to_string()))?;
    daemon::run(config, args.dev).await.map_err(|e| Failure::Failed(format!("{e:#}")))
}
