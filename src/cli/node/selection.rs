//! The nodes that a command acts on, selected by name or by label.

use std::str::FromStr;

use clap::Args;

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::types::{Labels, List, Name, Node};

/// How a path of the API names the node that answers.
pub(in crate::cli) const SELF: &str = "self";

/// Nodes by name, or by their labels.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(in crate::cli) struct Selection {
    /// Names, ids or id prefixes of nodes.
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Every node with all of these labels, for example rack=3 or rack=3,disk=ssd.
    #[arg(short = 'l', long, value_name = "KEY=VALUE")]
    selector: Option<Selector>,
}

/// Labels, all of which a node must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Selector(Labels);

impl Selection {
    /// The nodes with these names or with all of these labels; without either, the node that answers.
    pub(in crate::cli) fn or_self(nodes: &[String], selector: Option<&Selector>) -> Self {
        let is_self = nodes.is_empty() && selector.is_none();
        let nodes = if is_self { vec![SELF.to_owned()] } else { nodes.to_vec() };
        Self { nodes, selector: selector.cloned() }
    }

    /// The names of the selected nodes, as given on the command line or as the cluster lists them.
    ///
    /// # Errors
    /// [`Failure::Failed`] if no node has the labels.
    pub(in crate::cli) async fn resolve(&self, client: &Client) -> Result<Vec<String>, Failure> {
        let Some(selector) = &self.selector else { return Ok(self.nodes.clone()) };
        let nodes: List<Node> = client.list(Route::new(&["nodes"])).await?.read()?;
        let matching = nodes.items.iter().filter(|node| selector.matches(&node.settings.labels));
        let names: Vec<String> = matching.map(|node| &node.name).map(Name::to_string).collect();
        if names.is_empty() { Err(Failure::Failed("no node has these labels".to_owned())) } else { Ok(names) }
    }
}

impl Selector {
    pub(super) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a selector; expected KEY=VALUE pairs, separated by commas");
        let mut labels = Labels::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(wrong)?;
            // No node has two values of one label: an error is clearer than an empty selection.
            if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
                return Err(format!("no node has two values of the label `{key}`"));
            }
        }
        Ok(Self(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_selector_matches_nodes_with_all_of_its_labels() {
        let selector: Selector = "rack=3,disk=ssd".parse().unwrap();
        assert!(selector.matches(&labels(&[("rack", "3"), ("disk", "ssd"), ("x", "y")])));
        assert!(!selector.matches(&labels(&[("rack", "3")])));
        assert!(!selector.matches(&labels(&[("rack", "30"), ("disk", "ssd")])));
        assert!("a=".parse::<Selector>().unwrap().matches(&labels(&[("a", "")])));
    }

    #[test]
    fn an_incomplete_selector_is_rejected() {
        for wrong in ["", "rack", "rack=3,", "=3", "rack=3,rack=4"] {
            assert!(wrong.parse::<Selector>().is_err(), "{wrong}");
        }
    }
}
