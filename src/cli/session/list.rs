//! `ostler session ls`.

use clap::Args;

use crate::cli::Context;
use crate::cli::arguments::one_of;
use crate::cli::connection::Connection;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::cli::table::{NONE, age, joined, short_ids, table, until};
use crate::types::{Endpoint, List, Session, SessionState, Timestamp};

/// List the sessions of the cluster.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler session ls
  ostler session ls --user alice --all
  ostler session ls --node host-a --state running")]
pub(in crate::cli) struct LsArgs {
    /// Include removed sessions that are still remembered.
    #[arg(short, long)]
    all: bool,
    /// Only sessions of this user.
    #[arg(long)]
    user: Option<String>,
    /// Only sessions in this state.
    #[arg(long, value_parser = one_of::<SessionState>(SessionState::ALL.iter().map(|state| state.as_str())))]
    state: Option<SessionState>,
    /// Only sessions on this node. A URL is the node to contact, as in every command.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only sessions of this workspace.
    #[arg(long)]
    workspace: Option<String>,
}

pub(super) async fn run(args: &LsArgs, context: &Context) -> Result<(), Failure> {
    let body = context.client()?.list(args.route()).await?;
    context.out.answer(&body, |list: &List<Session>| describe(&list.items, context.out.now))
}

impl LsArgs {
    fn route(&self) -> Route {
        Route::new(&["sessions"])
            .with_any("all", self.all.then_some(true))
            .with_any("user", self.user.as_ref())
            .with_any("state", self.state)
            .with_any("node", self.node.as_ref().filter(|node| !Connection::is_url(node)))
            .with_any("workspace", self.workspace.as_ref())
    }
}

fn describe(sessions: &[Session], now: Timestamp) -> String {
    let ids = short_ids(sessions.iter().map(|session| &session.id));
    let rows = ids.into_iter().zip(sessions).map(|(id, session)| {
        vec![
            id,
            session.user.to_string(),
            session.workspace.to_string(),
            session.node.to_string(),
            state(session),
            age(session.created_at, now),
            expiry(session, now),
            joined(session.endpoints.iter().map(endpoint)),
        ]
    });
    table(&["ID", "USER", "WORKSPACE", "NODE", "STATE", "AGE", "EXPIRES", "ENDPOINTS"], rows)
}

/// The state, and the end reason if the session has ended.
pub(super) fn state(session: &Session) -> String {
    match session.end_reason {
        Some(reason) => format!("{} ({reason})", session.state),
        None => session.state.to_string(),
    }
}

pub(super) fn expiry(session: &Session, now: Timestamp) -> String {
    match session.expires_at {
        None => NONE.to_owned(),
        Some(at) if at <= now => "now".to_owned(),
        Some(at) => format!("in {}", until(at, now)),
    }
}

/// `10.0.0.1:32001->6901/tcp`, as in `docker ps`.
pub(super) fn endpoint(endpoint: &Endpoint) -> String {
    format!("{}->{}/{}", address(endpoint), endpoint.container_port, endpoint.protocol)
}

/// The host and port of the endpoint.
pub(super) fn address(endpoint: &Endpoint) -> String {
    if endpoint.host.contains(':') {
        format!("[{}]:{}", endpoint.host, endpoint.host_port)
    } else {
        format!("{}:{}", endpoint.host, endpoint.host_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::session::example;
    use crate::types::EndReason;

    #[test]
    fn sessions_are_listed_as_containers_are() {
        let failed = Session {
            id: "mfrggzdfnztwq2lknnwg23tpob".parse().unwrap(),
            state: SessionState::Failed,
            end_reason: Some(EndReason::OomKilled),
            endpoints: Vec::new(),
            expires_at: None,
            ..example()
        };
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        let expected = "\
ID          USER    WORKSPACE   NODE     STATE                 AGE   EXPIRES   ENDPOINTS
mfrggzdfm   alice   desktop     host-a   running               1h    in 2h     10.0.0.1:32001->6901/tcp
mfrggzdfn   alice   desktop     host-a   failed (oom_killed)   1h    -         -";
        assert_eq!(describe(&[example(), failed], now), expected);
    }

    #[test]
    fn filters_go_into_the_query() {
        let args = LsArgs {
            all: true,
            user: Some("a@b".to_owned()),
            state: Some(SessionState::Running),
            node: Some("host-a".to_owned()),
            workspace: None,
        };
        assert_eq!(args.route().to_string(), "/v1/sessions?all=true&user=a%40b&state=running&node=host-a");
        let url = LsArgs { all: false, user: None, state: None, node: Some("http://x".to_owned()), workspace: None };
        assert_eq!(url.route().to_string(), "/v1/sessions");
    }

    #[test]
    fn an_ipv6_endpoint_has_brackets() {
        let at = Endpoint { host: "fd00::1".to_owned(), ..example().endpoints.remove(0) };
        assert_eq!(address(&at), "[fd00::1]:32001");
    }
}
