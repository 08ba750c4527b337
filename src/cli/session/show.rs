//! `ostler session show`.

use clap::Args;
use serde::Deserialize;

use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::cli::table::{NONE, age, fields, joined, one_line, or_none};
use crate::types::{Session, Timestamp};

use super::list::{endpoint, expiry, state};

/// Show a session.
#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// A session's id or id prefix.
    #[arg(value_name = "ID")]
    id: String,
    /// Print only the session's secret, such as the password of a desktop.
    #[arg(long)]
    secret: bool,
}

/// `GET /v1/sessions/{id}/secret`
#[derive(Debug, Deserialize)]
struct Secret {
    secret: Option<String>,
}

pub(super) async fn run(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    if !args.secret {
        let body = client.get(Route::new(&["sessions", &args.id])).await?;
        return context.out.answer(&body, |session| describe(session, context.out.now));
    }
    match secret(&client, &args.id).await? {
        Some(secret) => context.out.text(secret),
        None => Err(Failure::Failed("the session has no secret: its workspace uses no {secret}".to_owned())),
    }
}

/// The session's secret, if its workspace uses one.
pub(super) async fn secret(client: &Client, id: &str) -> Result<Option<String>, Failure> {
    Ok(client.get(Route::new(&["sessions", id, "secret"])).await?.read::<Secret>()?.secret)
}

fn describe(session: &Session, now: Timestamp) -> String {
    let gpus = if session.gpu_uuids.is_empty() {
        session.gpus.to_string()
    } else {
        format!("{} ({})", session.gpus, joined(session.gpu_uuids.iter().map(|uuid| one_line(uuid))))
    };
    fields(&[
        ("id", session.id.to_string()),
        ("user", session.user.to_string()),
        ("workspace", session.workspace.to_string()),
        ("image", session.image.as_deref().map_or_else(|| NONE.to_owned(), one_line)),
        ("digest", or_none(session.image_digest.as_ref())),
        ("node", format!("{} ({})", session.node, session.node_id)),
        ("container", or_none(session.container_id.as_ref())),
        ("state", state(session)),
        ("ready", session.ready_at.map_or_else(|| NONE.to_owned(), |at| format!("{} ago", age(at, now)))),
        ("health", or_none(session.health)),
        ("message", session.message.as_deref().map_or_else(|| NONE.to_owned(), one_line)),
        ("exit code", or_none(session.exit_code)),
        ("cores", session.cores.to_string()),
        ("memory", session.memory_bytes.to_string()),
        ("gpus", gpus),
        ("endpoints", joined(session.endpoints.iter().map(endpoint))),
        ("created", format!("{} ago", age(session.created_at, now))),
        ("last active", format!("{} ago", age(session.last_activity_at, now))),
        ("kept by", or_none(session.kept_alive_by.as_ref())),
        ("expires", expiry(session, now)),
        ("attempt", session.attempt.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::session::example;

    #[test]
    fn a_session_is_shown_field_by_field() {
        let mut session = example();
        session.message = Some("pulling\n40 %".to_owned());
        let expected = "  id           mfrggzdfmztwq2lknnwg23tpob
  user         alice
  workspace    desktop
  image        kasmweb/desktop:1
  digest       -
  node         host-a (k3f7q2m5x6a4b7c2)
  container    c0ffee
  state        running
  ready        59m ago
  health       -
  message      pulling 40 %
  exit code    -
  cores        2
  memory       2 GiB
  gpus         0
  endpoints    10.0.0.1:32001->6901/tcp
  created      1h ago
  last active  30m ago
  kept by      -
  expires      in 2h
  attempt      1";
        assert_eq!(describe(&session, "2026-01-31T12:00:00Z".parse().unwrap()), expected);
    }
}
