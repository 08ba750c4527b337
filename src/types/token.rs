//! API tokens: who may call the HTTP API from elsewhere. Never the cluster token.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Name, Timestamp};

/// What a caller may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything but secrets.
    Read,
    /// Create, stop and remove sessions, and read their secrets.
    Operate,
    /// Change nodes, workspaces and tokens.
    Admin,
}

words!(Role { Read => "read", Operate => "operate", Admin => "admin" });

/// A token as lists show it. The token itself was shown once, when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// Eight characters that also begin the token, so that a leaked one can be told and revoked.
    pub id: String,
    pub name: Name,
    pub role: Role,
    pub created_at: Timestamp,
    /// `null`: until it is revoked.
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenRequest {
    pub role: Role,
    /// Default: `token-` and the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Default: it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub expires_in_seconds: Option<u64>,
}

/// A token just made: the only time that its text is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewApiToken {
    #[serde(flatten)]
    pub token: ApiToken,
    pub secret: String,
}
