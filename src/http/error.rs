//! The mapping from the errors of all parts to status, error code and `Retry-After`. No other place sets them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::runtime::images::PullCause;
use crate::types::{ErrorBody, ErrorCode, ErrorDetail, Invalid, NoCheckup, NodeReason, Reason};
use crate::{catalogue, cluster, gpu, history, images, node, placement, runtime, sessions};

/// An error response.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    message: String,
    nodes: Vec<NodeReason>,
}

impl Refusal {
    /// A refusal with the usual status of its code.
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { status: usual_status(code), code, message: message.into(), nodes: Vec::new() }
    }

    /// The request is malformed: its syntax, its path, its query or a header.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message).with_status(StatusCode::BAD_REQUEST)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn with_nodes(mut self, nodes: Vec<NodeReason>) -> Self {
        self.nodes = nodes;
        self
    }
}

const fn usual_status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Invalid | ErrorCode::ExceedsPhysical | ErrorCode::IdempotencyMismatch => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Conflict | ErrorCode::DeclaredSetting => StatusCode::CONFLICT,
        ErrorCode::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::NoCapacity
        | ErrorCode::NodeDisabled
        | ErrorCode::NodeUnreachable
        | ErrorCode::NoLeader
        | ErrorCode::OutcomeUnknown
        | ErrorCode::RuntimeUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Seconds after which the caller should retry. A full queue or an election is over soon, missing room or an engine
/// takes longer, and an operator takes longest.
const fn retry_after(code: ErrorCode) -> Option<u64> {
    match code {
        ErrorCode::NoLeader | ErrorCode::OutcomeUnknown | ErrorCode::NodeUnreachable => Some(1),
        ErrorCode::NoCapacity | ErrorCode::RuntimeUnavailable => Some(5),
        ErrorCode::NodeDisabled => Some(30),
        _ => None,
    }
}

/// A request above a quota may succeed once the user ends a session, but there is no estimate for `Retry-After`.
const fn is_retryable(code: ErrorCode) -> bool {
    retry_after(code).is_some() || matches!(code, ErrorCode::QuotaExceeded)
}

/// What a response refuses, for the event log. It is in the response's extensions.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let retryable = is_retryable(self.code);
        let refused = Refused { code: self.code, message: self.message.clone() };
        let error = ErrorDetail { code: self.code, message: self.message, retryable, nodes: self.nodes };
        let mut response = (self.status, Json(ErrorBody { error })).into_response();
        response.extensions_mut().insert(refused);
        let headers = response.headers_mut();
        if let Some(seconds) = retry_after(self.code) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == ErrorCode::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ostler\""));
        }
        response
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorCode::Invalid, invalid.to_string())
    }
}

/// An owner with a full queue changed nothing and accepts requests again soon. `node_unreachable` says the same of a
/// node: retry.
const BUSY: ErrorCode = ErrorCode::NodeUnreachable;

/// A store that fails is a fault of this node, and nothing changed. Of the existing codes, `runtime_unavailable` is
/// the one that says so and is retryable. The message names the store.
const STORE: ErrorCode = ErrorCode::RuntimeUnavailable;

impl From<cluster::Error> for Refusal {
    fn from(error: cluster::Error) -> Self {
        use cluster::Error;
        let message = error.to_string();
        match error {
            Error::Placement(error) => error.into(),
            Error::Sessions(error) => error.into(),
            Error::Node(error) => error.into(),
            Error::Catalogue(error) => error.into(),
            Error::Gpu(error) => error.into(),
            Error::Images(error) => error.into(),
            Error::Events(_) => Self::new(STORE, message),
            Error::History(history::Error::Invalid(invalid)) => invalid.into(),
            Error::History(history::Error::Read(_)) => Self::new(STORE, message),
            Error::Doctor(NoCheckup::Failed) => Self::new(ErrorCode::Internal, message),
            // A retry may find the node in a better state.
            Error::Doctor(NoCheckup::Busy | NoCheckup::Late { .. } | NoCheckup::Stopping) => Self::new(BUSY, message),
            Error::NoSession(_) | Error::NoNode(_) | Error::NoGpu(_) => Self::not_found(message),
            Error::AmbiguousSession { .. }
            | Error::AmbiguousNode { .. }
            | Error::AmbiguousGpu { .. }
            | Error::Alive(_)
            | Error::HostAlive(_) => Self::new(ErrorCode::Conflict, message),
            Error::NotForgotten { .. } => Self::new(STORE, message),
            Error::Unreachable { .. } | Error::HostUnknown { .. } => Self::new(ErrorCode::NodeUnreachable, message),
            Error::NoAnswer { .. } => Self::new(ErrorCode::OutcomeUnknown, message),
            Error::NoLeader => Self::new(ErrorCode::NoLeader, message),
        }
    }
}

impl From<placement::Error> for Refusal {
    fn from(error: placement::Error) -> Self {
        use placement::Error;
        let message = error.to_string();
        match error {
            Error::Invalid(invalid) => invalid.into(),
            Error::NoWorkspace(_) => Self::not_found(message),
            Error::ExceedsPhysical(nodes) => Self::new(ErrorCode::ExceedsPhysical, message).with_nodes(nodes),
            Error::NoCapacity(nodes) => Self::new(ErrorCode::NoCapacity, with_words(message, &nodes)).with_nodes(nodes),
            Error::Disabled(nodes) => Self::new(ErrorCode::NodeDisabled, message).with_nodes(nodes),
            Error::RuntimeUnavailable(nodes) => Self::new(ErrorCode::RuntimeUnavailable, message).with_nodes(nodes),
            Error::Host(error) => error.into(),
            Error::OutcomeUnknown { .. } => Self::new(ErrorCode::OutcomeUnknown, message),
            Error::Indexing { waiting_for } => {
                let names = waiting_for.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Self::new(ErrorCode::NoLeader, format!("{message}: the leader waits for {names}"))
            }
            Error::NotLeader
            | Error::LeaseExpired
            | Error::Stale(_)
            | Error::BeingPlaced
            | Error::PlacedElsewhere
            | Error::Changing
            | Error::HostSilent
            | Error::Stopping => Self::new(ErrorCode::NoLeader, message),
            Error::NoRandomBytes => Self::new(ErrorCode::Internal, message),
        }
    }
}

impl From<sessions::Error> for Refusal {
    fn from(error: sessions::Error) -> Self {
        use sessions::Error;
        let message = error.to_string();
        match error {
            Error::NotFound(_) => Self::not_found(message),
            Error::Conflict(_) => Self::new(ErrorCode::Conflict, message),
            Error::IdempotencyMismatch => Self::new(ErrorCode::IdempotencyMismatch, message),
            Error::Refused(reason) => Self::new(code_of(reason.reason), describe(&reason)).with_nodes(vec![*reason]),
            Error::Quota { .. } => Self::new(ErrorCode::QuotaExceeded, message),
            Error::Stale(_) => Self::new(ErrorCode::NoLeader, message),
            Error::Busy => Self::new(BUSY, message),
            Error::Journal(_) => Self::new(STORE, message),
            Error::Runtime(error) => error.into(),
            Error::PortInUse { .. } => Self::new(ErrorCode::NoCapacity, message),
            Error::Moving(_) | Error::Stopping => Self::new(ErrorCode::OutcomeUnknown, message),
        }
    }
}

impl From<runtime::Error> for Refusal {
    fn from(error: runtime::Error) -> Self {
        use runtime::Error;
        let message = error.to_string();
        match error {
            Error::Unavailable(_) | Error::Failed(_) | Error::Start { .. } => {
                Self::new(ErrorCode::RuntimeUnavailable, message)
            }
            Error::NotFound(_) => Self::not_found(message),
            Error::Refused(_) => Self::new(ErrorCode::Conflict, message),
        }
    }
}

impl From<node::Error> for Refusal {
    fn from(error: node::Error) -> Self {
        use node::Error;
        let message = error.to_string();
        match error {
            Error::Invalid(invalid) => invalid.into(),
            Error::Declared { .. } => Self::new(ErrorCode::DeclaredSetting, message),
            Error::NoGpu | Error::Configuration(_) => Self::new(ErrorCode::Invalid, message),
            Error::Store(_) => Self::new(STORE, message),
            Error::Stopping => Self::new(ErrorCode::NodeUnreachable, message),
        }
    }
}

impl From<gpu::Error> for Refusal {
    fn from(error: gpu::Error) -> Self {
        use gpu::Error;
        let message = error.to_string();
        match error {
            Error::NotFound(_) => Self::not_found(message),
            Error::Present(_) => Self::new(ErrorCode::Conflict, message),
            Error::Store(_) => Self::new(STORE, message),
            Error::Stopping => Self::new(ErrorCode::NodeUnreachable, message),
        }
    }
}

impl From<images::Error> for Refusal {
    fn from(error: images::Error) -> Self {
        use images::Error;
        let message = error.to_string();
        match error {
            Error::NotFound(_) => Self::not_found(message),
            Error::Conflict(_) | Error::NotPulled { .. } | Error::NoImages => Self::new(ErrorCode::Conflict, message),
            Error::Pull(error) => Self::new(code_of_pull(error.cause), message),
            Error::Runtime(error) => error.into(),
            Error::Store(_) => Self::new(STORE, message),
            Error::Busy => Self::new(BUSY, message),
            Error::Stopping => Self::new(ErrorCode::NodeUnreachable, message),
        }
    }
}

/// The error code for a pull that failed. A retry does not help if the registry denies the image or does not have it.
const fn code_of_pull(cause: PullCause) -> ErrorCode {
    match cause {
        PullCause::Absent => ErrorCode::NotFound,
        PullCause::Denied => ErrorCode::Conflict,
        PullCause::Engine
        | PullCause::Limited
        | PullCause::Registry
        | PullCause::UnknownAuthority
        | PullCause::Stalled
        | PullCause::DiskFull
        | PullCause::Other => ErrorCode::RuntimeUnavailable,
    }
}

impl From<catalogue::Error> for Refusal {
    fn from(error: catalogue::Error) -> Self {
        use catalogue::Error;
        let message = error.to_string();
        match error {
            Error::Invalid(invalid) => invalid.into(),
            Error::NoWorkspace(_) | Error::NoToken(_) => Self::not_found(message),
            Error::WorkspaceExists(_) | Error::TokenExists(_) | Error::TooManyWorkspaces | Error::TooManyTokens => {
                Self::new(ErrorCode::Conflict, message)
            }
            Error::OutcomeUnknown { .. } => Self::new(ErrorCode::OutcomeUnknown, message),
            Error::NoLeader => Self::new(ErrorCode::NoLeader, message),
            Error::Store(_) => Self::new(STORE, message),
            Error::Stopping => Self::new(ErrorCode::NodeUnreachable, message),
        }
    }
}

/// The error code for the rejection by a single host.
const fn code_of(reason: Reason) -> ErrorCode {
    match reason {
        Reason::ExceedsPhysical => ErrorCode::ExceedsPhysical,
        Reason::Disabled | Reason::Draining | Reason::DuplicateNodeId => ErrorCode::NodeDisabled,
        Reason::Unreachable => ErrorCode::NodeUnreachable,
        Reason::RuntimeUnavailable => ErrorCode::RuntimeUnavailable,
        Reason::NoCapacity
        | Reason::PhysicalUnknown
        | Reason::GpuSharing
        | Reason::GpuMemoryUnknown
        | Reason::GpuClass
        | Reason::Constraint
        | Reason::Network
        | Reason::Runtime
        | Reason::Volume
        | Reason::StartFailed
        | Reason::Platform
        | Reason::SessionLimit
        | Reason::NoPorts
        | Reason::Journal
        | Reason::LowDisk => ErrorCode::NoCapacity,
    }
}

/// The message, with what the nodes say about their reasons.
fn with_words(message: String, nodes: &[NodeReason]) -> String {
    let said = nodes.iter().filter_map(|reason| Some(format!("{}: {}", reason.node, reason.message.as_ref()?)));
    std::iter::once(message).chain(said).collect::<Vec<_>>().join("; ")
}

/// The message for the rejection by one host, with the figures that the host compared.
fn describe(refused: &NodeReason) -> String {
    let why = match refused.reason {
        Reason::ExceedsPhysical => "it requests more than the host has",
        Reason::PhysicalUnknown => "the container engine has not reported what the host has",
        Reason::NoCapacity => "the host has no room beside its present sessions",
        Reason::GpuSharing => "gpu_sharing does not let this user share the GPUs",
        Reason::GpuMemoryUnknown => "how much memory its GPUs have is not known, and gpu_memory_bytes requires it",
        Reason::GpuClass => "its GPUs are not of the workspace's gpu_class",
        Reason::Disabled => "the node is disabled",
        Reason::Draining => "the node is draining",
        Reason::Constraint => "the node lacks labels that the constraints require",
        Reason::Network => "runtime.networks of the node does not list the workspace's network",
        Reason::RuntimeUnavailable => "the container engine does not answer",
        Reason::Unreachable => "the node does not answer",
        Reason::Runtime => "the workspace lacks the image or command that the node's runtime needs",
        Reason::Volume => "a volume of this user is on another node",
        Reason::StartFailed => "the node failed to start the session",
        Reason::Platform => "the image is for another platform than the node's",
        Reason::DuplicateNodeId => "another live node has the same node id",
        Reason::SessionLimit => "the node has limits.max_sessions_per_node sessions",
        Reason::NoPorts => "runtime.port_range has too few free ports",
        Reason::Journal => "the node cannot write its journal",
        Reason::LowDisk => "the node has less free disk than limits.min_free_disk, or too few free inodes",
    };
    let figures = refused.dimension.zip(refused.requested).map(|(dimension, requested)| {
        let (name, limit) = match refused.reason {
            Reason::ExceedsPhysical => ("physical", refused.physical),
            _ => ("available", refused.available),
        };
        let limit = limit.map(|limit| format!(", {name} {}", dimension.describe(limit))).unwrap_or_default();
        format!(": requested {}{limit}", dimension.describe(requested))
    });
    format!("{} rejects the session: {why}{}", refused.node, figures.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dimension;

    async fn read(refusal: impl Into<Refusal>) -> (u16, Option<String>, ErrorDetail) {
        let response = refusal.into().into_response();
        let status = response.status().as_u16();
        let retry = response.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, retry, serde_json::from_slice::<ErrorBody>(&body).unwrap().error)
    }

    fn reason(reason: Reason) -> NodeReason {
        NodeReason::plain("n1".parse().unwrap(), reason)
    }

    #[tokio::test]
    async fn exceeds_physical_is_final_and_no_capacity_is_retryable() {
        let (status, retry, error) =
            read(placement::Error::ExceedsPhysical(vec![reason(Reason::ExceedsPhysical)])).await;
        assert_eq!((status, retry, error.code, error.retryable), (422, None, ErrorCode::ExceedsPhysical, false));
        assert_eq!(error.nodes.len(), 1);
        let (status, retry, error) = read(placement::Error::NoCapacity(vec![])).await;
        assert_eq!((status, error.code, error.retryable), (503, ErrorCode::NoCapacity, true));
        assert!(retry.is_some());
    }

    #[tokio::test]
    async fn every_503_has_retry_after() {
        let all = [
            read(sessions::Error::Busy).await,
            read(sessions::Error::Journal("disk full".to_owned().into())).await,
            read(sessions::Error::Stopping).await,
            read(sessions::Error::Runtime(runtime::Error::Unavailable("no answer".to_owned()))).await,
            read(sessions::Error::Refused(Box::new(reason(Reason::Draining)))).await,
            read(placement::Error::Host(sessions::Error::Busy)).await,
            read(placement::Error::Host(sessions::Error::Stopping)).await,
            read(placement::Error::NotLeader).await,
            read(placement::Error::LeaseExpired).await,
            read(placement::Error::BeingPlaced).await,
            read(placement::Error::Stopping).await,
            read(node::Error::Store("disk full".to_owned())).await,
            read(catalogue::Error::Stopping).await,
        ];
        for (status, retry, error) in all {
            assert_eq!((status, retry.is_some(), error.retryable), (503, true, true), "{error:?}");
        }
    }

    #[tokio::test]
    async fn the_rejection_of_a_host_has_its_figures() {
        let mut refused = reason(Reason::NoCapacity);
        refused.dimension = Some(Dimension::Cores);
        (refused.requested, refused.available) = (Some(4.0), Some(1.0));
        let (status, _, error) = read(sessions::Error::Refused(Box::new(refused))).await;
        assert_eq!((status, error.code), (503, ErrorCode::NoCapacity));
        assert!(error.message.ends_with(": requested 4 cores, available 1 core"), "{}", error.message);
        assert_eq!(error.nodes.len(), 1);
    }

    #[tokio::test]
    async fn declared_settings_and_missing_gpus_have_different_codes() {
        let declared = node::Error::Declared { field: "enabled".to_owned(), file: "/etc/x".to_owned() };
        let (status, _, error) = read(declared).await;
        assert_eq!((status, error.code), (409, ErrorCode::DeclaredSetting));
        assert!(error.message.contains("/etc/x"));
        assert_eq!(read(node::Error::NoGpu).await.0, 422);
    }

    #[tokio::test]
    async fn unauthorized_has_www_authenticate() {
        let response = Refusal::new(ErrorCode::Unauthorized, "x").into_response();
        assert_eq!(response.status(), 401);
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    }
}
