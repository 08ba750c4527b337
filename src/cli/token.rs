//! `ostler token`: tokens of the API.

use clap::{Args, Subcommand};

use crate::types::{ApiToken, ApiTokenRequest, List, Name, NewApiToken, Period, Role};

use super::arguments::one_of;
use super::client::Call;
use super::failure::Failure;
use super::output::Output;
use super::route::Route;
use super::table::{age, table, until};
use super::{Context, Failures};
use crate::identity;
use crate::types::Timestamp;

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Print a new cluster token of 256 random bits.
    ///
    /// The token gives root access to every host of the cluster: keep it in a file that only root can read.
    #[command(after_help = "Example:
  (umask 077; ostler token generate > /etc/ostler/token)")]
    Generate,
    /// Create, list and revoke the tokens of the HTTP API.
    #[command(subcommand)]
    Api(ApiCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum ApiCommand {
    /// Create an API token and print it. It is shown only once.
    #[command(after_help = "Examples:
  ostler token api create --role read --name dashboard
  ostler token api create --role operate --expires 30d > token")]
    Create(CreateArgs),
    /// List the API tokens, without their secrets.
    Ls,
    /// Revoke API tokens, on every node.
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// What the token allows; each role includes the roles before it.
    #[arg(long, value_parser = one_of::<Role>(Role::ALL.iter().map(|role| role.as_str())))]
    role: Role,
    /// Name of the token in lists.
    #[arg(long)]
    name: Option<Name>,
    /// Let the token expire after this time, for example 30d [default: it is valid until revoked].
    #[arg(long, value_name = "PERIOD")]
    expires: Option<Period>,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Ids of tokens, as `ostler token api ls` shows them.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

pub(super) async fn run(command: &TokenCommand, context: &Context) -> Result<(), Failure> {
    let command = match command {
        TokenCommand::Generate => return generate(&context.out),
        TokenCommand::Api(command) => command,
    };
    match command {
        ApiCommand::Create(args) => create(args, context).await,
        ApiCommand::Ls => {
            let body = context.client()?.list(Route::new(&["tokens"])).await?;
            context.out.answer(&body, |list: &List<ApiToken>| describe(&list.items, context.out.now))
        }
        ApiCommand::Revoke(args) => revoke(args, context).await,
    }
}

fn generate(out: &Output) -> Result<(), Failure> {
    let token = identity::generate().map_err(|e| Failure::Failed(e.to_string()))?;
    out.text(token.secret())
}

async fn create(args: &CreateArgs, context: &Context) -> Result<(), Failure> {
    let request = ApiTokenRequest {
        role: args.role,
        name: args.name.clone(),
        expires_in_seconds: args.expires.map(Period::as_secs),
    };
    let answer = context.client()?.send(Call::post(Route::new(&["tokens"])).json(&request)?).await?;
    let made: NewApiToken = answer.read()?;
    context.out.answer(&answer.body, |made: &NewApiToken| made.secret.clone())?;
    let token = &made.token;
    context
        .out
        .note(format!("Created token {} ({}, {}). It is shown once; keep it safe.", token.id, token.name, token.role));
    Ok(())
}

async fn revoke(args: &RevokeArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for id in &args.ids {
        match client.send(Call::delete(Route::new(&["tokens", id]))).await {
            Ok(_) => context.out.done(id)?,
            Err(failure) => failures.add(id, &failure),
        }
    }
    failures.into_result()
}

fn describe(tokens: &[ApiToken], now: Timestamp) -> String {
    let rows = tokens.iter().map(|token| {
        let expires = match token.expires_at {
            None => "never".to_owned(),
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => format!("in {}", until(at, now)),
        };
        vec![token.id.clone(), token.name.to_string(), token.role.to_string(), age(token.created_at, now), expires]
    });
    table(&["ID", "NAME", "ROLE", "AGE", "EXPIRES"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_with_the_time_until_they_expire() {
        let token = |expires_at: Option<i64>| ApiToken {
            id: "abcd2345".to_owned(),
            name: "ci".parse().unwrap(),
            role: Role::Operate,
            created_at: Timestamp::from_millis(0),
            expires_at: expires_at.map(Timestamp::from_millis),
        };
        let now = Timestamp::from_millis(600_000);
        let expected = "\
ID         NAME   ROLE      AGE   EXPIRES
abcd2345   ci     operate   10m   never
abcd2345   ci     operate   10m   in 5m
abcd2345   ci     operate   10m   expired";
        assert_eq!(describe(&[token(None), token(Some(900_000)), token(Some(600_000))], now), expected);
    }
}
