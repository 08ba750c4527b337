use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, SessionId};

/// A named volume of this cluster on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The name that the workspace's template gave it: `home-alice`.
    pub name: String,
    pub node: Name,
    /// Sessions, running or stopped, that use it.
    pub sessions: Vec<SessionId>,
}
