use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, SessionId};

/// A named volume on one node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The name from the workspace's template, for example `home-alice`.
    pub name: String,
    pub node: Name,
    /// Sessions, running or stopped, that use it.
    pub sessions: Vec<SessionId>,
}
