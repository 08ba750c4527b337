use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, SessionId};

/// A named volume on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The name, made from the workspace's template: `home-alice`.
    pub name: String,
    pub node: Name,
    /// The sessions, running or stopped, that use the volume.
    pub sessions: Vec<SessionId>,
}
