//! `ostler session logs`.

use clap::Args;
use http_body_util::BodyExt;

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::route::Route;

/// Print what a session has written.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler session logs -f --tail 20 mfrggzdf")]
pub(in crate::cli) struct LogsArgs {
    /// The id of a session, or its beginning.
    #[arg(value_name = "ID")]
    id: String,
    /// Go on with what comes, until the session ends.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines; left out: all that is kept.
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
}

pub(super) async fn run(args: &LogsArgs, context: &Context) -> Result<(), Failure> {
    let route = Route::new(&["sessions", &args.id, "logs"])
        .with_any("follow", args.follow.then_some(true))
        .with_any("tail", args.tail);
    let mut body = context.client()?.stream(route).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::Lost(format!("the log broke off: {e}")))?;
        if let Some(bytes) = frame.data_ref() {
            context.out.bytes(bytes)?;
        }
    }
    Ok(())
}
