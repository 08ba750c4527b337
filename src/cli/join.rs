//! `ostler join`: another node of a cluster.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use super::connection::Connection;
use super::failure::Failure;
use super::output::Output;
use super::{node, service};
use crate::config::{Config, DEFAULT_FILE, add_seed};
use crate::identity::{self, Token};
use crate::types::{List, Node};

/// A token has at most a few hundred bytes: more is something else.
const MAX_TOKEN: u64 = 4096;

/// Make this host a node of a cluster.
///
/// Writes the cluster's token to the file that the configuration names (cluster.token_file) and the node to begin
/// with to its cluster.seeds, starts the service where this host has one, and shows the members. The token comes
/// from --token-file, `-` being standard input; it is never an argument. What is done already is left as it is.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  ssh root@host-a cat /etc/ostler/token | ostler join host-a --token-file -")]
pub(super) struct JoinArgs {
    /// Any node of the cluster, as host or host:port.
    #[arg(value_name = "HOST")]
    host: String,
    /// The configuration; left out: /etc/ostler/ostler.toml.
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
                "{} holds another token: this host belongs to another cluster. Remove the file first to leave that one",
                kept.display()
            )));
        }
        Err(identity::Error::Missing(_)) => false,
        Err(wrong) => return Err(Failure::Failed(wrong.to_string())),
    };
    // The token last: with it the service may start.
    if add_seed(&file, &args.host).map_err(|e| Failure::Failed(e.to_string()))? {
        out.note(format!("{}: {} is a seed now.", file.display(), args.host));
    }
    if !belongs {
        identity::write_new(kept, &token).map_err(|e| Failure::Failed(e.to_string()))?;
        out.note(format!("The cluster's token is in {}.", kept.display()));
    }
    if !service::start(args.config.as_deref(), out).await? {
        return Ok(());
    }
    let nodes = service::met(&config.http.socket, 2).await?;
    out.answer(&nodes, |list: &List<Node>| node::describe(&list.items, &out.terminal))
}

fn token(connection: &Connection) -> Result<Token, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::Failed(format!("this is not a cluster's token: {e}"));
    match &connection.token_file {
        None => {
            Err(Failure::Usage("the cluster's token is wanted: --token-file FILE, or - for standard input".to_owned()))
        }
        Some(file) if file == Path::new("-") => {
            let mut text = String::new();
            std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text).map_err(|e| wrong(&e))?;
            text.parse().map_err(|e| wrong(&e))
        }
        Some(file) => identity::read(file).map_err(|e| Failure::Failed(e.to_string())),
    }
}
