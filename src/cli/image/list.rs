//! `ostler image ls`.

use clap::Args;

use crate::cli::arguments::one_of;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::node::SELF;
use crate::cli::output::Body;
use crate::cli::route::Route;
use crate::cli::table::{NONE, age, joined, one_line, table};
use crate::cli::{Context, Failures};
use crate::types::{Image, ImageOwner, ImagePull, ImagePullState, List, Name, Node, NodeImages, Timestamp};

/// Characters of an image's id that are shown, as Docker does.
const SHORT_ID: usize = 12;
/// Names of workspaces that are shown of one image; of more only the number.
const MAX_WORKSPACES: usize = 2;

/// List images, whose they are and what uses them.
///
/// ostler only removes images of its own: those that an agent pulled or an operator adopted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler image ls
  ostler image ls host-a --owner ostler
  ostler image ls --all -o json")]
pub(in crate::cli) struct LsArgs {
    /// The node, by its name, id or id prefix [default: the node that answers].
    #[arg(value_name = "NODE")]
    on: Option<String>,
    /// List the images of every node.
    #[arg(long, conflicts_with = "on")]
    all: bool,
    /// Only images of this owner.
    #[arg(long, value_parser = one_of::<ImageOwner>(ImageOwner::ALL.iter().map(|owner| owner.as_str())))]
    owner: Option<ImageOwner>,
}

pub(super) async fn run(args: &LsArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    if args.all {
        return run_all(args.owner, &client, context).await;
    }
    let body = of_node(&client, args.on.as_deref().unwrap_or(SELF), args.owner).await?;
    context.out.answer(&body, |node: &NodeImages| describe(std::slice::from_ref(node), false, context.out.now))
}

/// Lists the images of every node by its own answer. A node that does not answer is reported as a failure.
async fn run_all(owner: Option<ImageOwner>, client: &Client, context: &Context) -> Result<(), Failure> {
    let (mut answers, mut failures) = (Vec::new(), Failures::default());
    for node in every_node(client).await? {
        match of_node(client, node.name.as_str(), owner).await.and_then(|body| body.read::<NodeImages>()) {
            Ok(images) => answers.push(images),
            Err(failure) => failures.add(node.name.as_str(), &failure),
        }
    }
    let all = Body::of(&List { items: answers, next_cursor: None })?;
    context.out.answer(&all, |all: &List<NodeImages>| describe(&all.items, true, context.out.now))?;
    failures.into_result()
}

async fn of_node(client: &Client, node: &str, owner: Option<ImageOwner>) -> Result<Body, Failure> {
    client.list(Route::new(&["nodes", node, "images"]).with_any("owner", owner)).await
}

pub(super) async fn every_node(client: &Client) -> Result<Vec<Node>, Failure> {
    Ok(client.list(Route::new(&["nodes"])).await?.read::<List<Node>>()?.items)
}

/// The table, with a column for the node if there may be several; below it what all images take together.
fn describe(nodes: &[NodeImages], several: bool, now: Timestamp) -> String {
    let mut header = vec!["NAME", "ID", "SIZE", "OWNER", "USED BY", "LAST USED", "NOTE"];
    if several {
        header.insert(0, "NODE");
    }
    let rows = nodes.iter().flat_map(|images| {
        rows(images, now).into_iter().map(|mut row| {
            if several {
                row.insert(0, images.node.to_string());
            }
            row
        })
    });
    let totals: Vec<String> = nodes.iter().map(|images| total(images, several, now)).collect();
    format!("{}\n\n{}", table(&header, rows), totals.join("\n"))
}

/// By name; images without a name come last, after those that are only being pulled.
fn rows(images: &NodeImages, now: Timestamp) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = images.items.iter().map(|image| row(image, &images.pulls, now)).collect();
    let is_here = |pull: &&ImagePull| images.items.iter().any(|image| image.names.contains(&pull.image));
    rows.extend(images.pulls.iter().filter(|pull| !is_here(pull)).map(|pull| {
        let [id, size, owner, used_by, last_used] = [NONE; 5].map(str::to_owned);
        vec![one_line(&pull.image), id, size, owner, used_by, last_used, doing(pull)]
    }));
    rows.sort_by_key(|row| (row[0] == NONE, row[0].clone()));
    rows
}

fn row(image: &Image, pulls: &[ImagePull], now: Timestamp) -> Vec<String> {
    let names = image.names.iter().map(|name| one_line(name)).chain(named_by_digest(image));
    vec![
        joined(names),
        short_id(&image.id),
        image.size_bytes.to_string(),
        image.owner.to_string(),
        used_by(image),
        image.last_used_at.map_or_else(|| NONE.to_owned(), |at| format!("{} ago", age(at, now))),
        note(image, pulls),
    ]
}

/// `busybox@sha256:3f57d9401f8d`, if the image has no other name.
fn named_by_digest(image: &Image) -> Option<String> {
    let (repository, digest) = image.digests.first().filter(|_| image.names.is_empty())?.split_once('@')?;
    Some(one_line(&format!("{repository}@sha256:{}", short_id(digest))))
}

/// A name of the image, or its short id.
pub(super) fn name_of(image: &Image) -> String {
    image.names.first().map_or_else(|| short_id(&image.id), |name| one_line(name))
}

pub(super) fn short_id(id: &str) -> String {
    one_line(id.strip_prefix("sha256:").unwrap_or(id)).chars().take(SHORT_ID).collect()
}

/// For example `workspace desktop, 2 sessions, 1 other container`.
fn used_by(image: &Image) -> String {
    let sessions = image.sessions.len();
    // Sessions are known now, and containers were counted with the last list.
    let others = image.containers.map_or(0, |all| usize::try_from(all).unwrap_or(0).saturating_sub(sessions));
    let workspaces = (!image.workspaces.is_empty()).then(|| workspaces(&image.workspaces));
    let sessions = (sessions > 0).then(|| counted(sessions, "session"));
    joined([workspaces, sessions, (others > 0).then(|| counted(others, "other container"))].into_iter().flatten())
}

fn workspaces(names: &[Name]) -> String {
    match names {
        [one] => format!("workspace {one}"),
        few if few.len() <= MAX_WORKSPACES => {
            format!("workspaces {}", few.iter().map(Name::to_string).collect::<Vec<_>>().join(" and "))
        }
        many => counted(many.len(), "workspace"),
    }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn note(image: &Image, pulls: &[ImagePull]) -> String {
    let pull = pulls.iter().find(|pull| image.names.contains(&pull.image)).map(doing);
    let notes = [
        image.pinned.then(|| "pinned".to_owned()),
        image.names.is_empty().then(|| "dangling".to_owned()),
        image.removing.then(|| "being removed".to_owned()),
        pull,
    ];
    joined(notes.into_iter().flatten())
}

/// What a pull does now.
pub(super) fn doing(pull: &ImagePull) -> String {
    let ImagePull { state, fetched_bytes, size_bytes, layers_ready, layers, .. } = pull;
    match state {
        ImagePullState::Waiting => "waiting for other pulls".to_owned(),
        ImagePullState::Limited => "waiting: the registry limits pulls".to_owned(),
        ImagePullState::Done => "pulled".to_owned(),
        ImagePullState::Running if size_bytes.is_zero() && *layers_ready == 0 => "pulling".to_owned(),
        ImagePullState::Running if fetched_bytes < size_bytes => format!("pulling {fetched_bytes} of {size_bytes}"),
        ImagePullState::Running => format!("unpacking, {layers_ready} of {layers} layers done"),
    }
}

/// For example `host-a: 12 images, at most 3.4 GiB, listed 5s ago (graph driver at /var/lib/docker)`, and `2 of 12 images`
/// if the list has only some of them.
fn total(images: &NodeImages, several: bool, now: Timestamp) -> String {
    let node = if several { format!("{}: ", images.node) } else { String::new() };
    if let Some(note) = &images.note {
        return format!("{node}{}", one_line(note));
    }
    let bytes = images.total_bytes.map_or_else(
        // What several images share is counted more than once.
        || format!("at most {}", images.total_at_most_bytes),
        |bytes| bytes.to_string(),
    );
    let (shown, number) = (images.items.len(), usize::try_from(images.images).unwrap_or(usize::MAX));
    let part = if shown < number { format!("{shown} of ") } else { String::new() };
    let number = format!("{part}{}", counted(number, "image"));
    let listed = images.listed_at.map(|at| format!(", listed {} ago", age(at, now))).unwrap_or_default();
    let path = images.path.as_ref().map(|path| format!(" at {}", one_line(path))).unwrap_or_default();
    let store = images.store.map(|store| format!(" ({store}{path})")).unwrap_or_default();
    format!("{node}{number}, {bytes}{listed}{store}")
}

#[cfg(test)]
mod tests;
