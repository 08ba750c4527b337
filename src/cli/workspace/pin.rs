//! `ostler workspace pin` and `unpin`: the sessions of a workspace are made from one digest of its image.

use std::collections::BTreeMap;

use clap::Args;
use hyper::Method;

use crate::cli::Context;
use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::types::{DigestInUse, List, Name, Workspace};

/// Pin the sessions of a workspace to one digest of its image, or roll them back to an older one.
///
/// New sessions are made from that digest, wherever the tag moves, and running ones do not change. Without --digest it
/// is the digest that nodes and running sessions use now; where they differ, all are listed and nothing changes. An image
/// that came from no registry cannot be pinned.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler workspace pin desktop
  ostler workspace pin desktop --digest sha256:0a1b…")]
pub(in crate::cli) struct PinArgs {
    /// The workspace's name.
    name: Name,
    /// The digest, as `sha256:` and 64 hexadecimal digits; of an image for several platforms that of its index.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
}

/// Let new sessions of a workspace follow the tag of its image again.
#[derive(Debug, Args)]
pub(in crate::cli) struct UnpinArgs {
    /// The workspace's name.
    name: Name,
}

pub(super) async fn pin(args: &PinArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let workspace = workspace(&client, &args.name).await?;
    let digest = match &args.digest {
        Some(digest) => digest.clone(),
        None => chosen(&workspace, &in_use(&client, &args.name).await?)?,
    };
    let pinned = Workspace { image_digest: Some(digest.clone()), ..workspace };
    put(&client, &pinned, context, &format!("{} is pinned to {digest}", args.name)).await
}

pub(super) async fn unpin(args: &UnpinArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let workspace = Workspace { image_digest: None, ..workspace(&client, &args.name).await? };
    put(&client, &workspace, context, &format!("{} is not pinned", args.name)).await
}

/// Where the tag of a pinned workspace has moved, as nodes know: another digest, and the nodes that have it.
pub(super) async fn moved(client: &Client, workspace: &Workspace) -> Option<String> {
    let pinned = workspace.image_digest.as_deref()?;
    // What is known of other nodes is an addition: the workspace is shown without it.
    let rows = in_use(client, &workspace.name).await.ok()?;
    let of_tag: Vec<DigestInUse> = rows.into_iter().filter(|row| row.session.is_none()).collect();
    let mut others = by_digest(&of_tag);
    others.remove(pinned);
    (!others.is_empty()).then(|| listed(&others).join("; "))
}

async fn workspace(client: &Client, name: &Name) -> Result<Workspace, Failure> {
    client.get(Route::new(&["workspaces", name.as_str()])).await?.read()
}

async fn in_use(client: &Client, name: &Name) -> Result<Vec<DigestInUse>, Failure> {
    Ok(client.get(Route::new(&["workspaces", name.as_str(), "digests"])).await?.read::<List<DigestInUse>>()?.items)
}

async fn put(client: &Client, workspace: &Workspace, context: &Context, said: &str) -> Result<(), Failure> {
    workspace.validate()?;
    let route = Route::new(&["workspaces", workspace.name.as_str()]);
    let answer = client.send(Call::new(Method::PUT, route).json(workspace)?).await?;
    context.out.answer(&answer.body, |_: &Workspace| said.to_owned())
}

/// The one digest that is in use.
fn chosen(workspace: &Workspace, rows: &[DigestInUse]) -> Result<String, Failure> {
    let name = &workspace.name;
    let Some(image) = &workspace.image else {
        return Err(Failure::Refused(format!("workspace {name} has no image, so there is nothing to pin")));
    };
    let found = by_digest(rows);
    let mut digests = found.keys();
    match (digests.next(), digests.next()) {
        (Some(digest), None) => Ok((*digest).to_owned()),
        (Some(_), Some(_)) => {
            let all = listed(&found).join("\n  ");
            let message = format!("image {image} has more than one digest in use; choose one with --digest:\n  {all}");
            Err(Failure::Refused(message))
        }
        (None, _) if rows.is_empty() => {
            Err(Failure::Refused(format!("no node has image {image} yet; name its digest with --digest")))
        }
        (None, _) => {
            let nodes: Vec<&str> = rows.iter().map(|row| row.node.as_str()).collect();
            Err(Failure::Refused(format!(
                "image {image} came from no registry, as far as {} recorded, and cannot be pinned; push it to a registry",
                joined(&nodes)
            )))
        }
    }
}

/// Where each digest is used.
fn by_digest(rows: &[DigestInUse]) -> BTreeMap<&str, Vec<String>> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in rows {
        let Some(digest) = &row.digest else { continue };
        let place = match &row.session {
            Some(session) => format!("session {session} on {}", row.node),
            None => row.node.to_string(),
        };
        found.entry(digest).or_default().push(place);
    }
    found
}

fn listed(found: &BTreeMap<&str, Vec<String>>) -> Vec<String> {
    found.iter().map(|(digest, places)| format!("{digest} on {}", shortened(places))).collect()
}

/// Places that a line names at most.
const MAX_NAMED: usize = 5;

fn shortened(places: &[String]) -> String {
    let named: Vec<&str> = places.iter().take(MAX_NAMED).map(String::as_str).collect();
    match places.len().saturating_sub(MAX_NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn joined(nodes: &[&str]) -> String {
    let mut once = nodes.to_vec();
    once.dedup();
    shortened(&once.into_iter().map(str::to_owned).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Cores, NodeId, sample};

    fn workspace(image: Option<&str>) -> Workspace {
        let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        workspace.image = image.map(str::to_owned);
        workspace
    }

    fn row(node: &str, session: Option<&str>, digest: Option<&str>) -> DigestInUse {
        DigestInUse {
            node: node.parse().unwrap(),
            node_id: NodeId::from_bytes([1; 10]),
            session: session.map(sample::session_id),
            digest: digest.map(str::to_owned),
            checked_at: None,
        }
    }

    fn refused(image: Option<&str>, rows: &[DigestInUse]) -> String {
        match chosen(&workspace(image), rows) {
            Err(Failure::Refused(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_only_digest_in_use_is_chosen() {
        let rows = [row("a", None, Some("sha256:1")), row("a", Some("k"), Some("sha256:1")), row("b", None, None)];
        assert_eq!(chosen(&workspace(Some("x:1")), &rows).unwrap(), "sha256:1");
    }

    #[test]
    fn several_digests_are_listed_with_their_places() {
        let rows =
            [row("a", None, Some("sha256:2")), row("a", Some("k"), Some("sha256:1")), row("b", None, Some("sha256:2"))];
        let session = sample::session_id("k");
        let expected = format!(
            "image x:1 has more than one digest in use; choose one with --digest:\n  \
             sha256:1 on session {session} on a\n  sha256:2 on a, b"
        );
        assert_eq!(refused(Some("x:1"), &rows), expected);
    }

    #[test]
    fn what_cannot_be_pinned_says_why() {
        assert_eq!(refused(None, &[]), "workspace desktop has no image, so there is nothing to pin");
        assert_eq!(refused(Some("x:1"), &[]), "no node has image x:1 yet; name its digest with --digest");
        let built = [row("a", None, None), row("a", Some("k"), None)];
        let expected =
            "image x:1 came from no registry, as far as a recorded, and cannot be pinned; push it to a registry";
        assert_eq!(refused(Some("x:1"), &built), expected);
    }
}
