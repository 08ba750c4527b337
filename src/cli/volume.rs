//! `ostler volume`: the named volumes of sessions on nodes.

use clap::{Args, Subcommand};

use crate::types::{List, Name, Node, Volume};

use super::client::{Call, Client};
use super::failure::Failure;
use super::output::Body;
use super::route::Route;
use super::table::{joined, one_line, short_ids, table};
use super::{Context, Failures};

/// Commands about volumes.
#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// List named volumes, and the sessions that use them.
    Ls(LsArgs),
    /// Remove named volumes and the data on them.
    ///
    /// A volume that a session uses, running or stopped, cannot be removed.
    #[command(after_help = "Examples:\n  ostler volume rm host-a home-alice")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// List only the volumes of these nodes [default: every node].
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// The node that has the volumes.
    #[arg(value_name = "NODE")]
    on: String,
    /// The volumes' names, as `ostler volume ls` shows them.
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
}

pub(super) async fn run(command: &VolumeCommand, context: &Context) -> Result<(), Failure> {
    match command {
        VolumeCommand::Ls(args) => list(args, context).await,
        VolumeCommand::Rm(args) => remove(args, context).await,
    }
}

/// Lists the volumes of every node that answers. A node that does not answer is reported as a failure.
async fn list(args: &LsArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let nodes = if args.nodes.is_empty() { every_node(&client).await? } else { args.nodes.clone() };
    let mut all = Body::of(&List::<Volume> { items: Vec::new(), next_cursor: None })?;
    let mut failures = Failures::default();
    for node in &nodes {
        match client.list(Route::new(&["nodes", node, "volumes"])).await {
            Ok(volumes) => all = all.followed_by(&volumes)?,
            Err(failure) => failures.add(node, &failure),
        }
    }
    context.out.answer(&all, |list: &List<Volume>| describe(&list.items))?;
    failures.into_result()
}

async fn every_node(client: &Client) -> Result<Vec<String>, Failure> {
    let nodes: List<Node> = client.list(Route::new(&["nodes"])).await?.read()?;
    Ok(nodes.items.iter().map(|node| &node.name).map(Name::to_string).collect())
}

async fn remove(args: &RmArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for volume in &args.volumes {
        match client.send(Call::delete(Route::new(&["nodes", &args.on, "volumes", volume]))).await {
            Ok(_) => context.out.done(volume)?,
            Err(failure) => failures.add(volume, &failure),
        }
    }
    failures.into_result()
}

fn describe(volumes: &[Volume]) -> String {
    let rows = volumes
        .iter()
        .map(|volume| vec![volume.node.to_string(), one_line(&volume.name), joined(short_ids(&volume.sessions))]);
    table(&["NODE", "VOLUME", "SESSIONS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_name_their_sessions() {
        let volume = |name: &str, sessions: Vec<crate::types::SessionId>| Volume {
            name: name.to_owned(),
            node: "a".parse().unwrap(),
            sessions,
        };
        let used = volume("home-alice", vec!["mfrggzdfmztwq2lknnwg23tpob".parse().unwrap()]);
        let expected = "\
NODE   VOLUME       SESSIONS
a      home-alice   mfrggzdf
a      scratch      -";
        assert_eq!(describe(&[used, volume("scratch", Vec::new())]), expected);
    }
}
