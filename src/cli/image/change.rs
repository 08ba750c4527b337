//! `ostler image adopt`, `pin` and `unpin`.

use clap::Args;

use crate::cli::Context;
use crate::cli::client::Call;
use crate::cli::failure::Failure;
use crate::cli::node::SELF;
use crate::cli::route::Route;
use crate::types::{Image, ImageRequest};

use super::list::name_of;

/// An image of a node.
#[derive(Debug, Args)]
pub(in crate::cli) struct ChangeArgs {
    /// A name of the image, its id, or a unique prefix of its id.
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The node that has it, by its name, id or id prefix [default: the node that answers].
    #[arg(value_name = "NODE")]
    on: Option<String>,
}

/// Sends the change, whose answer is the image.
pub(super) async fn run(change: &str, args: &ChangeArgs, context: &Context) -> Result<(), Failure> {
    let request = ImageRequest { image: args.image.clone() };
    request.validate()?;
    let route = Route::new(&["nodes", args.on.as_deref().unwrap_or(SELF), "images", change]);
    let answer = context.client()?.send(Call::post(route).json(&request)?).await?;
    context.out.answer(&answer.body, |image: &Image| name_of(image))
}
