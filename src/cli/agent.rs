//! `ostler agent`: the daemon itself.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::config::Config;
use crate::{daemon, logging};

/// Run the agent of this host in the foreground, as the systemd service does.
///
/// It stops on SIGTERM and Ctrl-C. Sessions keep running without it; the next agent takes them over. On SIGHUP it reads
/// its configuration again, as with `ostler node refresh`.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Configuration file [default: /etc/ostler/ostler.toml if it exists, otherwise built-in defaults].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Allow settings that are only for trying ostler out: made-up figures (`[dev]`) and sessions without containers.
    #[arg(long)]
    dev: bool,
}

pub(super) async fn run(args: &AgentArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), args.dev).map_err(|e| Failure::Usage(e.to_string()))?;
    let source = daemon::Source { file: args.config.clone(), dev: args.dev };
    logging::init(&config.log).map_err(|e| Failure::Failed(e.to_string()))?;
    daemon::run(config, source).await.map_err(|e| Failure::Failed(format!("{e:#}")))
}
