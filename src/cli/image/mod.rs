//! `ostler image`: the images of nodes.

mod change;
mod list;
mod nodes;
mod prune;
mod pull;

use clap::Subcommand;

use super::Context;
use super::failure::Failure;
pub(super) use pull::everywhere as pull_everywhere;

/// Commands about images.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    Ls(list::LsArgs),
    Pull(pull::PullArgs),
    /// Make an image ostler's, with the names that it has: pulls may replace it, and prunes may remove it.
    ///
    /// ostler never replaces or removes an image that another program or person brought to a node.
    #[command(after_help = "Examples:
  ostler image adopt alpine:mine
  ostler image adopt 3f57d9401f8d host-a")]
    Adopt(change::ChangeArgs),
    /// Let no prune remove an image of ostler's.
    #[command(after_help = "Examples:\n  ostler image pin busybox:1.36\n  ostler image pin busybox:1.36 host-a")]
    Pin(change::ChangeArgs),
    /// Let prunes remove an image of ostler's again.
    #[command(after_help = "Examples:\n  ostler image unpin busybox:1.36 host-a")]
    Unpin(change::ChangeArgs),
    Prune(prune::PruneArgs),
}

pub(super) async fn run(command: &ImageCommand, context: &Context) -> Result<(), Failure> {
    match command {
        ImageCommand::Ls(args) => list::run(args, context).await,
        ImageCommand::Pull(args) => pull::run(args, context).await,
        ImageCommand::Adopt(args) => change::run("adopt", args, context).await,
        ImageCommand::Pin(args) => change::run("pin", args, context).await,
        ImageCommand::Unpin(args) => change::run("unpin", args, context).await,
        ImageCommand::Prune(args) => prune::run(args, context).await,
    }
}
