//! `ostler init`: the first node of a cluster.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::output::Output;
use super::{node, service};
use crate::config::{Config, MESH_PORT};
use crate::identity;
use crate::types::{List, Node};

/// Create a cluster token, and start the first node of a cluster with it.
///
/// Writes the token to the file that the configuration names (cluster.token_file). The file must not exist: a host
/// that has a token already belongs to a cluster. Starts the systemd service if this host has it.
#[derive(Debug, Args)]
#[command(after_help = "Example, and then on each other host:
  ostler init
  ssh root@host-b ostler join host-a --token-file - < /etc/ostler/token")]
pub(super) struct InitArgs {
    /// Configuration file [default: /etc/ostler/ostler.toml if it exists, otherwise built-in defaults].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(args: &InitArgs, out: &Output) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), true).map_err(|e| Failure::Failed(e.to_string()))?;
    let file = &config.cluster.token_file;
    let token = identity::generate().map_err(|e| Failure::Failed(e.to_string()))?;
    identity::write_new(file, &token).map_err(|e| match e {
        identity::Error::Exists(_) => Failure::Refused(format!("{e}: this host already belongs to a cluster")),
        e => Failure::Failed(e.to_string()),
    })?;
    out.note(format!("The cluster token is in {}. Keep it secret: it gives root on every host.", file.display()));
    if service::start(args.config.as_deref(), out).await? {
        let nodes = service::met(&config.http.socket, 1).await?;
        out.answer(&nodes, |list: &List<Node>| node::describe(&list.items, &out.terminal))?;
    }
    let here = match (config.cluster.advertise, config.cluster.listen.port()) {
        (Some(address), _) => address.to_string(),
        (None, MESH_PORT) => config.node.name.to_string(),
        (None, port) => format!("{}:{port}", config.node.name),
    };
    out.note(format!("Then run on each other host: ostler join {here} --token-file - < TOKEN"));
    Ok(())
}
