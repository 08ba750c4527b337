//! `ostler node refresh`: has agents read their configuration again.

use clap::Args;

use super::selection::{Selection, Selector};
use crate::cli::client::Call;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::cli::table::{NONE, joined};
use crate::cli::{Context, Failures};
use crate::types::Refreshed;

/// Read the configuration of nodes again, with the files that it names, without a restart of the agent.
///
/// Shows which keys were applied and which need a restart. If the file or one of the files that it names is not valid,
/// nothing changes. `systemctl reload` and SIGHUP do the same.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler node refresh
  ostler node refresh host-a host-b
  ostler node refresh -l rack=3")]
pub(in crate::cli) struct RefreshArgs {
    /// Names, ids or id prefixes of nodes [default: the node that answers].
    #[arg(value_name = "NODE", conflicts_with = "selector")]
    nodes: Vec<String>,
    /// Every node with all of these labels, for example rack=3 or rack=3,disk=ssd.
    #[arg(short = 'l', long, value_name = "KEY=VALUE")]
    selector: Option<Selector>,
}

pub(super) async fn run(args: &RefreshArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for node in Selection::or_self(&args.nodes, args.selector.as_ref()).resolve(&client).await? {
        match client.send(Call::post(Route::new(&["nodes", &node, "refresh"]))).await {
            Ok(answer) => context.out.answer(&answer.body, |refreshed| describe(&node, refreshed))?,
            Err(failure) => failures.add(&node, &failure),
        }
    }
    failures.into_result()
}

fn describe(node: &str, refreshed: &Refreshed) -> String {
    let keys = |keys: &[String]| if keys.is_empty() { NONE.to_owned() } else { joined(keys) };
    format!(
        "{node}\n  applied        {}\n  needs restart  {}\n  unchanged      {}",
        keys(&refreshed.applied),
        keys(&refreshed.needs_restart),
        keys(&refreshed.unchanged)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_every_key() {
        let refreshed = Refreshed {
            applied: vec!["log.level".to_owned(), "limits.keep_ended".to_owned()],
            needs_restart: Vec::new(),
            unchanged: vec!["node.name".to_owned()],
        };
        let expected =
            "host-a\n  applied        log.level, limits.keep_ended\n  needs restart  -\n  unchanged      node.name";
        assert_eq!(describe("host-a", &refreshed), expected);
    }
}
