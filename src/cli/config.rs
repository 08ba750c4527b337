//! `ostler config`: the configuration file.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output::Output;
use crate::config::{Config, DEFAULT_FILE};
use crate::images;

/// Commands about the configuration file.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    Check(CheckArgs),
}

/// Check a configuration file, and list every error in it.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The file to check [default: /etc/ostler/ostler.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check it as `ostler agent --dev` does.
    #[arg(long)]
    dev: bool,
}

pub(super) fn run(ConfigCommand::Check(args): &ConfigCommand, out: &Output) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), args.dev).map_err(|e| Failure::Failed(e.to_string()))?;
    if let Some(credentials) = &config.images.registry_credentials {
        images::credentials::check(credentials)
            .map_err(|e| Failure::Failed(format!("images.registry_credentials: {e}")))?;
    }
    let file = args.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    out.text(format_args!("{} is valid", file.display()))
}
