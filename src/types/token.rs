//! API tokens, which authorise callers of the HTTP API from outside the host. They are not the cluster's token.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{Name, Timestamp};

/// What a caller may do. Each role may do everything that the roles before it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read everything but secrets.
    Read,
    /// Create, stop and remove sessions, and read their secrets.
    Operate,
    /// Change nodes, workspaces and tokens.
    Admin,
}

words!(Role { Read => "read", Operate => "operate", Admin => "admin" });

/// An API token without its text, which the API shows only once, when it creates the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// The first eight characters of the token, so that a leaked token can be identified and revoked.
    pub id: String,
    pub name: Name,
    pub role: Role,
    pub created_at: Timestamp,
    /// `null`: it does not expire.
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenRequest {
    pub role: Role,
    /// Default: `token-` followed by the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Default: the token does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub expires_in_seconds: Option<u64>,
}

/// A new token. Its text is shown only here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewApiToken {
    #[serde(flatten)]
    pub token: ApiToken,
    /// The token itself, for the header `Authorization: Bearer`.
    pub secret: String,
}
