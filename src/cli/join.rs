//! `ostler join`: another node of a cluster.

use std::path::{Path, PathBuf};

use clap::Args;

use super::connection::{Connection, read_token_input};
use super::failure::Failure;
use super::output::Output;
use super::{node, service};
use crate::config::{Config, DEFAULT_FILE, add_seed};
use crate::identity::{self, Token};
use crate::types::{List, Node};

/// Add this host to a cluster.
///
/// Writes the cluster token to the file that the configuration names (cluster.token_file), adds HOST to
/// cluster.seeds, starts the systemd service if this host has it, and lists the nodes. Reads the token from
/// --token-file, where `-` is standard input; no argument takes the token itself. Skips steps that are done already.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  ssh root@host-a cat /etc/ostler/token | ostler join host-a --token-file -")]
pub(super) struct JoinArgs {
    /// Any node of the cluster, as host or host:port.
    #[arg(value_name = "HOST")]
    host: String,
    /// Configuration file [default: /etc/ostler/ostler.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(args: &JoinArgs, connection: &Connection, out: &Output) -> Result<(), Failure> {
    let file = args.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let token = token(connection)?;
    let config = Config::load(args.config.as_deref(), true).map_err(|e| Failure::Failed(e.to_string()))?;
    let kept = &config.cluster.token_file;
    let belongs = match identity::read(kept) {
        Ok(known) if known == token => true,
        Ok(_) => {
            return Err(Failure::Refused(format!(
                "{} holds another token: this host belongs to another cluster; to leave that cluster, remove the file",
                kept.display()
            )));
        }
        Err(identity::Error::Missing(_)) => false,
        Err(wrong) => return Err(Failure::Failed(wrong.to_string())),
    };
    // The token is written last: once it exists, the service may start.
    if add_seed(&file, &args.host).map_err(|e| Failure::Failed(e.to_string()))? {
        out.note(format!("{}: added {} to cluster.seeds.", file.display(), args.host));
    }
    if !belongs {
        identity::write_new(kept, &token).map_err(|e| Failure::Failed(e.to_string()))?;
        out.note(format!("The cluster token is in {}.", kept.display()));
    }
    if !service::start(args.config.as_deref(), out).await? {
        return Ok(());
    }
    let nodes = service::met(&config.http.socket, 2).await?;
    out.answer(&nodes, |list: &List<Node>| node::describe(&list.items, &out.terminal))
}

fn token(connection: &Connection) -> Result<Token, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::Failed(format!("standard input is not a cluster token: {e}"));
    match &connection.token_file {
        None => Err(Failure::Usage("no cluster token; give --token-file FILE, or - for standard input".to_owned())),
        Some(file) if file == Path::new("-") => {
            let content = read_token_input(std::io::stdin()).map_err(|e| wrong(&e))?;
            Token::parse(&content).map_err(|e| wrong(&e))
        }
        Some(file) => identity::read(file).map_err(|e| Failure::Failed(e.to_string())),
    }
}
