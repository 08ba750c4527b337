//! `ostler session logs`.

use clap::Args;
use http_body_util::BodyExt;

use crate::cli::Context;
use crate::cli::arguments::count;
use crate::cli::failure::Failure;
use crate::cli::route::Route;

/// Print the output of a session.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler session logs -f --tail 20 mfrggzdf")]
pub(in crate::cli) struct LogsArgs {
    /// A session's id or id prefix.
    #[arg(value_name = "ID")]
    id: String,
    /// Follow the output until the session ends.
    #[arg(short, long)]
    follow: bool,
    /// Print only this many last lines [default: all that are kept].
    #[arg(long, value_name = "LINES", value_parser = count)]
    tail: Option<u32>,
}

pub(super) async fn run(args: &LogsArgs, context: &Context) -> Result<(), Failure> {
    let route = Route::new(&["sessions", &args.id, "logs"])
        .with_any("follow", args.follow.then_some(true))
        .with_any("tail", args.tail);
    let mut body = context.client()?.stream(route).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::Lost(format!("the log ended early: {e}")))?;
        if let Some(bytes) = frame.data_ref() {
            context.out.bytes(bytes)?;
        }
    }
    Ok(())
}
