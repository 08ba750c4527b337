//! `ostler node label`.

use clap::Args;

use crate::cli::Context;
use crate::cli::arguments::LabelChange;
use crate::cli::failure::Failure;
use crate::types::{LabelsPatch, SettingsPatch};

use super::set;

/// Set or remove labels of a node.
///
/// Workspaces and sessions choose nodes by their labels, and so does the flag -l.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler node label host-a rack=3 disk=ssd\n  ostler node label host-a disk-")]
pub(in crate::cli) struct LabelArgs {
    /// A node's name, id or id prefix.
    #[arg(value_name = "NODE")]
    name: String,
    /// KEY=VALUE sets a label, KEY- removes it.
    #[arg(value_name = "CHANGE", required = true)]
    changes: Vec<LabelChange>,
}

pub(super) async fn run(args: &LabelArgs, context: &Context) -> Result<(), Failure> {
    let labels: LabelsPatch = args.changes.iter().map(|change| (change.key.clone(), change.value.clone())).collect();
    let change = SettingsPatch { labels: Some(labels), ..SettingsPatch::default() };
    change.validate()?;
    let answer = set::patch_one(&context.client()?, &args.name, &change).await?;
    set::show(&args.name, &answer, &context.out)
}
