//! The vocabulary: what a node, a workspace and a session *are*, in the words and units of the HTTP API and of all
//! parts.
//!
//! Arithmetic and parsing only: nothing here reads a clock, a file or a socket, and every part may use it. The serde
//! shapes of these types are the JSON of the HTTP API.

mod actor;
mod amount;
mod cluster;
mod condition;
mod decode;
mod doctor;
mod error;
mod event;
mod gpu;
mod history;
mod id;
mod image;
mod invalid;
mod language;
mod node;
mod placement;
mod platform;
mod profile;
mod prune;
mod query_time;
mod resources;
#[cfg(test)]
pub(crate) mod sample;
pub mod schema;
mod session;
pub mod template;
mod text;
mod time;
mod token;
mod token_text;
mod volume;
mod workspace;

pub use actor::Actor;
pub use amount::{Bytes, Cores};
pub use cluster::{ClusterMode, OnUnknown, Strategy};
pub use condition::{Condition, ConditionKind};
pub use decode::decode;
pub use doctor::{Check, Checkup, NoCheckup, Topic, Verdict};
pub use error::{ErrorBody, ErrorCode, ErrorDetail, NodeReason, Reason};
pub use event::{
    Event, EventFilter, EventGap, EventId, EventKind, EventList, EventPlace, EventTarget, Severity, TargetKind, Who,
    WhoKind,
};
pub use gpu::{
    Gpu, GpuDetails, GpuHealth, GpuMemoryEnforced, GpuProcess, GpuProfile, GpuRelease, GpuRemappedRows, GpuSharing,
    GpuState, GpuUsage, GpuXid, NVIDIA_CLASS, check_gpu_class,
};
pub use history::{History, HistoryGap, HistoryGapReason, HistoryQuery, HistorySeries};
pub use id::{Ballot, Name, NodeId, SessionId, User, is_printable};
pub use image::{
    DigestInUse, FromPeers, Image, ImageFilter, ImageOrigin, ImageOwner, ImagePull, ImagePullState, ImageReference,
    ImageRequest, ImageSource, ImageStoreKind, KeptBecause, NodeImages, check_image_digest,
};
pub use invalid::Invalid;
pub use language::other_language;
pub use node::{
    Disk, Drain, DrainRequest, Figures, Inodes, Labels, LabelsPatch, Node, NodeResources, NodeState, Pressure, Prune,
    Refreshed, RuntimeKind, RuntimeStatus, Settings, SettingsPatch, Sighting, Swap,
};
pub use placement::{Explanation, NodeVerdict, Plan};
pub use platform::Platform;
pub use profile::{NodeProfile, NodeUsage, SessionActivity, SessionProfile};
pub use prune::{KeptImage, PruneReason, PruneReport, PruneRequest, PrunedImage, SkippedImage};
pub use query_time::QueryTime;
pub use resources::{Dimension, Resources};
pub use session::{
    EndReason, Endpoint, ExtendRequest, HealthStatus, KeepaliveRequest, Protocol, Remembered, Session, SessionFilter,
    SessionRequest, SessionState, Wait,
};
pub use text::check_env;
pub(crate) use text::words;
pub use time::{BootInstant, Deadline, Moment, Period, Timestamp};
pub use token::{ApiToken, ApiTokenRequest, NewApiToken, Role};
pub use token_text::{MAX_TOKEN_INPUT, NotPlain, token_text};
pub use volume::Volume;
pub use workspace::{GpuCapability, Init, OnHostRestart, Port, PullPolicy, Ready, VolumeMount, Workspace};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// Pass it as `cursor` to get the next page; `null` on the last page.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A page of at most `limit` of the items whose key is above `after`. The items must come in the order of their
    /// keys. The cursor is the key of the last item of the page, so that the pages neither repeat nor skip an item
    /// that is in the list all the time, however the list changes between two calls.
    pub fn page(items: impl IntoIterator<Item = (String, T)>, after: Option<&str>, limit: usize) -> Self {
        let mut rest = items.into_iter().skip_while(|(key, _)| after.is_some_and(|after| key.as_str() <= after));
        let mut last = String::new();
        let items: Vec<T> = rest
            .by_ref()
            .take(limit)
            .map(|(key, item)| {
                last = key;
                item
            })
            .collect();
        let next_cursor = rest.next().map(|_| data_encoding::HEXLOWER.encode(last.as_bytes()));
        Self { items, next_cursor }
    }
}
