//! The nodes whose images a command acts on.

use clap::Args;

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::image::list::every_node;
use crate::cli::node::{Selection, Selector};
use crate::types::RuntimeKind;

/// Nodes by name or by their labels, or all of them.
#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// Names, ids or id prefixes of nodes [default: the node that answers].
    #[arg(value_name = "NODE", conflicts_with_all = ["selector", "all"])]
    nodes: Vec<String>,
    /// Every node with all of these labels, for example rack=3 or rack=3,disk=ssd.
    #[arg(short = 'l', long, value_name = "KEY=VALUE", conflicts_with = "all")]
    selector: Option<Selector>,
    /// Every node that runs sessions in containers.
    #[arg(long)]
    all: bool,
}

impl Nodes {
    /// Their names, as given on the command line or as the cluster lists them.
    ///
    /// # Errors
    /// No node has the labels, or the agent does not answer.
    pub(super) async fn resolve(&self, client: &Client) -> Result<Vec<String>, Failure> {
        if !self.all {
            return Selection::or_self(&self.nodes, self.selector.as_ref()).resolve(client).await;
        }
        let all = every_node(client).await?.into_iter().filter(|node| node.runtime.kind == RuntimeKind::Docker);
        Ok(all.map(|node| node.name.to_string()).collect())
    }
}
