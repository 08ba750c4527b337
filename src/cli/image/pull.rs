//! `ostler image pull`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::output::{Body, note};
use crate::cli::progress::Progress;
use crate::cli::route::Route;
use crate::cli::table::one_line;
use crate::cli::{Context, Failures};
use crate::types::{ImagePull, ImagePullState, ImageRequest, NodeImages};

use super::list::{doing, short_id};
use super::nodes::Nodes;

/// How long one request waits for the end of a pull: less than most reverse proxies wait for an answer.
const HOLD: Duration = Duration::from_secs(50);
/// The pause between two looks at the progress.
const POLL: Duration = Duration::from_millis(500);
/// Nodes that pull at the same time. A registry counts the pulls of each address.
const AT_ONCE: usize = 2;

/// Pull an image now.
///
/// The nodes pull the image even if they have it: the registry may have a newer one. An image that came from no registry
/// is not replaced, unless it was adopted. After Ctrl-C the pulls go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler image pull busybox:1.36
  ostler image pull busybox:1.36 host-a host-b
  ostler image pull busybox:1.36 -l rack=3
  ostler image pull busybox:1.36 --all")]
pub(in crate::cli) struct PullArgs {
    /// The image's name. Without a tag it means `latest`.
    #[arg(value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    nodes: Nodes,
}

pub(super) async fn run(args: &PullArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let nodes = args.nodes.resolve(&client).await?;
    everywhere(&args.image, &nodes, &client, context).await
}

/// Pulls the image on these nodes, and prints a line for each.
pub(in crate::cli) async fn everywhere(
    image: &str,
    nodes: &[String],
    client: &Client,
    context: &Context,
) -> Result<(), Failure> {
    let request = ImageRequest { image: image.to_owned() };
    request.validate()?;
    let (board, mut failures) = (Board::new(image), Failures::default());
    let pulls = nodes.iter().map(async |node| (node, pull(node, &request, client, &board).await));
    let mut ended = stream::iter(pulls).buffer_unordered(AT_ONCE);
    while let Some((node, pulled)) = ended.next().await {
        board.clear(node);
        board.progress.aside(|| match pulled {
            Ok(body) => context.out.answer(&body, describe),
            Err(failure) => {
                failures.add(node, &failure);
                Ok(())
            }
        })?;
    }
    board.ended.set(true);
    failures.into_result()
}

/// Pulls the image on one node, until the pull is done.
async fn pull(node: &str, request: &ImageRequest, client: &Client, board: &Board) -> Result<Body, Failure> {
    board.show(node, "asking");
    let mut has_waited = false;
    loop {
        let route = Route::new(&["nodes", node, "images", "pull"]).with("wait", true);
        let route = route.with("timeout", format!("{}s", HOLD.as_secs()));
        let call = Call::post(route).json(request)?.waiting(HOLD);
        let answer = tokio::select! {
            answer = client.send(call) => answer?,
            never = follow(node, client, board) => match never {},
        };
        let pulled: ImagePull = answer.read()?;
        if pulled.state == ImagePullState::Done {
            // The last request may have come when the pull that brought the image had just ended.
            return if has_waited { Body::of(&ImagePull { changed: Some(true), ..pulled }) } else { Ok(answer.body) };
        }
        has_waited = true;
    }
}

/// Shows the progress of the pull, if there is a terminal.
async fn follow(node: &str, client: &Client, board: &Board) -> std::convert::Infallible {
    if !board.progress.is_shown() {
        return std::future::pending().await;
    }
    loop {
        sleep(POLL).await;
        // A look that fails is repeated: the request that waits says what is wrong.
        let route = Route::new(&["nodes", node, "images"]).with("limit", 1);
        let Ok(images) = client.get(route).await.and_then(|body| body.read::<NodeImages>()) else { continue };
        if let Some(pull) = images.pulls.iter().find(|pull| pull.image == board.image) {
            board.show(node, &doing(pull));
        }
    }
}

/// What the nodes do now, in one line. If it is dropped before the end, it says that the pulls go on.
struct Board {
    /// As nodes list it.
    image: String,
    progress: Progress,
    doing: RefCell<BTreeMap<String, String>>,
    ended: Cell<bool>,
}

impl Board {
    fn new(image: &str) -> Self {
        let listed = crate::types::ImageReference::parse(image).map_or_else(|_| image.to_owned(), String::from);
        let progress = Progress::start(&format!("pulling {listed}"));
        Self { image: listed, progress, doing: RefCell::default(), ended: Cell::new(false) }
    }

    fn show(&self, node: &str, doing: &str) {
        self.doing.borrow_mut().insert(node.to_owned(), doing.to_owned());
        self.print();
    }

    fn clear(&self, node: &str) {
        self.doing.borrow_mut().remove(node);
        self.print();
    }

    fn print(&self) {
        let nodes: Vec<String> = self.doing.borrow().iter().map(|(node, doing)| format!("{node}: {doing}")).collect();
        self.progress.show(&format!("{}: {}", self.image, nodes.join("; ")));
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if !self.ended.get() {
            self.progress.aside(|| note("The pulls that have begun go on; see: ostler image ls"));
        }
    }
}

/// For example `host-a: pulled busybox:1.36 (3f57d9401f8d)`.
fn describe(pull: &ImagePull) -> String {
    let ImagePull { node, image, id, changed, .. } = pull;
    let id = id.as_ref().map(|id| format!(" ({})", short_id(id))).unwrap_or_default();
    let image = one_line(image);
    if *changed == Some(false) {
        format!("{node}: {image} is up to date{id}")
    } else {
        format!("{node}: pulled {image}{id}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Bytes;

    #[test]
    fn a_pull_that_is_done_names_the_node_and_what_it_changed() {
        let pull = |changed| ImagePull {
            node: "host-a".parse().unwrap(),
            image: "busybox:1.36".to_owned(),
            state: ImagePullState::Done,
            fetched_bytes: Bytes::ZERO,
            size_bytes: Bytes::ZERO,
            layers_ready: 0,
            layers: 0,
            id: Some(format!("sha256:3f57d9401f8d{}", "0".repeat(52))),
            changed,
        };
        assert_eq!(describe(&pull(Some(true))), "host-a: pulled busybox:1.36 (3f57d9401f8d)");
        assert_eq!(describe(&pull(Some(false))), "host-a: busybox:1.36 is up to date (3f57d9401f8d)");
    }
}
