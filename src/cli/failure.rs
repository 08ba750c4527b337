//! How a command ends: its message to the user, and its exit code.

use std::io;
use std::process::ExitCode;

use crate::types::{Bytes, Dimension, ErrorBody, ErrorCode, Invalid, NodeReason};

use super::table::{self, word};

/// The exit status of a command, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Failed,
    Usage,
    /// The request was understood and rejected: no room, a conflict, an invalid value.
    Refused,
    Unreachable,
    /// Ctrl-C: 128 plus the signal's number, as in shells.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::Unreachable => 4,
            Exit::Interrupted => 130,
        })
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The API answered with an error.
    #[error("{}", .0.message)]
    Api(Box<Refusal>),
    #[error("{0}")]
    Usage(String),
    /// A value that the API would reject with 422, found before anything was sent.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    /// No connection: nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// The connection ended or timed out before the answer arrived: the node may have carried out the request.
    #[error("{0}")]
    Lost(String),
    #[error("interrupted")]
    Interrupted,
    /// The reader of standard output has closed it.
    #[error("standard output is closed")]
    ReaderGone,
    /// The command has printed its failures already, one line each.
    #[error("already reported")]
    Reported(Exit),
}

/// An error that the API answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// `None` if the answer does not come from ostler (but from a proxy), or its code is newer than this program.
    pub(super) code: Option<ErrorCode>,
    pub(super) message: String,
    pub(super) nodes: Vec<NodeReason>,
    pub(super) retry_after_seconds: Option<u64>,
}

impl Failure {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Api(refusal) => refusal.exit(),
            Self::Usage(_) => Exit::Usage,
            Self::Refused(_) => Exit::Refused,
            Self::Failed(_) => Exit::Failed,
            Self::Unreachable(_) | Self::Lost(_) => Exit::Unreachable,
            Self::Interrupted => Exit::Interrupted,
            Self::ReaderGone => Exit::Done,
            Self::Reported(exit) => *exit,
        }
    }

    /// The message for standard error; `None` if there is nothing to print.
    pub(super) fn report(&self) -> Option<String> {
        match self {
            Self::Interrupted | Self::ReaderGone | Self::Reported(_) => None,
            Self::Api(refusal) => Some(refusal.report()),
            other => Some(format!("error: {other}")),
        }
    }

    /// Whether a retry with the same idempotency key may find out the request's outcome.
    pub(super) fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Api(refusal) => refusal.code == Some(ErrorCode::OutcomeUnknown),
            _ => false,
        }
    }

    /// Whether the node or the connection to it failed: the session, or other object of the request, may be fine.
    pub(super) fn is_unreachable(&self) -> bool {
        self.exit() == Exit::Unreachable
    }
}

impl Refusal {
    /// Reads the API's error body. Any other body becomes the message itself, cut short.
    pub(super) fn read(status: u16, retry_after_seconds: Option<u64>, body: &[u8]) -> Self {
        if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
            let (code, message, nodes) = (Some(error.code), error.message, error.nodes);
            return Self { status, code, message, nodes, retry_after_seconds };
        }
        /// Characters; enough to recognise the server that answered.
        const SHOWN: usize = 200;
        let text = table::one_line(&String::from_utf8_lossy(body));
        let shown: String = text.chars().take(SHOWN).collect();
        let message = format!("the server answered {status} {shown}").trim_end().to_owned();
        Self { status, code: None, message, nodes: Vec::new(), retry_after_seconds }
    }

    fn exit(&self) -> Exit {
        match (self.code, self.status) {
            (Some(ErrorCode::NoCapacity | ErrorCode::NodeDisabled), _) | (_, 409 | 422 | 429) => Exit::Refused,
            (_, 502..=504) => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }

    fn report(&self) -> String {
        let mut text = format!("error: {}", table::one_line(&self.message));
        if let Some(seconds) = self.retry_after_seconds {
            text.push_str(&format!("; try again in {seconds} s"));
        }
        if !self.nodes.is_empty() {
            text.push('\n');
            text.push_str(&reasons(&self.nodes));
        }
        if self.code == Some(ErrorCode::Unauthorized) {
            text.push_str("\nhint: pass an API token with --token-file or OSTLER_API_TOKEN, or run: ostler login URL");
        }
        text
    }
}

/// Each node's reason for the rejection, as a table.
fn reasons(nodes: &[NodeReason]) -> String {
    let rows = nodes.iter().map(|reason| {
        let [why, dimension, requested, available, physical] = reason_cells(reason);
        vec![reason.node.to_string(), why, dimension, requested, available, physical]
    });
    table::table(&["NODE", "REASON", "DIMENSION", "REQUESTED", "AVAILABLE", "PHYSICAL"], rows)
}

/// Reason, dimension, requested, available and physical, for the tables that explain rejections.
pub(super) fn reason_cells(reason: &NodeReason) -> [String; 5] {
    let figure = |figure| figure_cell(reason.dimension, figure);
    [
        word(&reason.reason),
        reason.dimension.map_or_else(|| table::NONE.to_owned(), |dimension| word(&dimension)),
        figure(reason.requested),
        figure(reason.available),
        figure(reason.physical),
    ]
}

fn figure_cell(dimension: Option<Dimension>, figure: Option<f64>) -> String {
    match (dimension, figure) {
        (_, None) => table::NONE.to_owned(),
        (Some(Dimension::MemoryBytes | Dimension::DiskBytes), Some(figure)) => {
            let whole = format!("{figure:.0}");
            whole.parse::<Bytes>().map_or(whole, |bytes| bytes.to_string())
        }
        (_, Some(figure)) => figure.to_string(),
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Refused(invalid.to_string())
    }
}

/// For errors in writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(format!("the output cannot be written: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ErrorDetail, Reason};

    fn refusal(status: u16, code: Option<ErrorCode>) -> Failure {
        Failure::Api(Box::new(Refusal {
            status,
            code,
            message: "no".to_owned(),
            nodes: Vec::new(),
            retry_after_seconds: None,
        }))
    }

    #[test]
    fn every_error_of_the_api_has_its_exit_code() {
        use ErrorCode::*;
        for (status, code, exit) in [
            (400, Invalid, Exit::Failed),
            (401, Unauthorized, Exit::Failed),
            (403, Forbidden, Exit::Failed),
            (404, NotFound, Exit::Failed),
            (409, Conflict, Exit::Refused),
            (409, DeclaredSetting, Exit::Refused),
            (422, Invalid, Exit::Refused),
            (422, IdempotencyMismatch, Exit::Refused),
            (422, ExceedsPhysical, Exit::Refused),
            (429, QuotaExceeded, Exit::Refused),
            (500, Internal, Exit::Failed),
            (503, NoCapacity, Exit::Refused),
            (503, NodeDisabled, Exit::Refused),
            (503, NodeUnreachable, Exit::Unreachable),
            (503, NoLeader, Exit::Unreachable),
            (503, OutcomeUnknown, Exit::Unreachable),
            (503, RuntimeUnavailable, Exit::Unreachable),
        ] {
            assert_eq!(refusal(status, Some(code)).exit(), exit, "{status} {code:?}");
        }
        assert_eq!(refusal(504, None).exit(), Exit::Unreachable);
        assert_eq!(refusal(418, None).exit(), Exit::Failed);
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        for (exit, code) in [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::Refused, 3),
            (Exit::Unreachable, 4),
            (Exit::Interrupted, 130),
        ] {
            assert_eq!(format!("{:?}", ExitCode::from(exit)), format!("{:?}", ExitCode::from(code)));
        }
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit(), Exit::Done);
    }

    #[test]
    fn a_refusal_names_every_node_and_its_figures() {
        let memory = NodeReason {
            node: "b".parse().unwrap(),
            reason: Reason::NoCapacity,
            dimension: Some(Dimension::MemoryBytes),
            requested: Some(2_147_483_648.0),
            available: Some(0.0),
            physical: Some(6_442_450_944.0),
            message: None,
        };
        let body = ErrorBody {
            error: ErrorDetail {
                code: ErrorCode::NoCapacity,
                message: "no node has room now".to_owned(),
                retryable: true,
                nodes: vec![NodeReason::plain("a".parse().unwrap(), Reason::Disabled), memory],
            },
        };
        let refusal = Refusal::read(503, Some(5), &serde_json::to_vec(&body).unwrap());
        let expected = "\
error: no node has room now; try again in 5 s
NODE   REASON        DIMENSION      REQUESTED   AVAILABLE   PHYSICAL
a      disabled      -              -           -           -
b      no_capacity   memory_bytes   2 GiB       0 B         6 GiB";
        assert_eq!(refusal.report(), expected);
    }

    #[test]
    fn an_answer_of_another_server_is_shown_without_control_characters() {
        let refusal = Refusal::read(502, None, b"<html>\x1b[31mBad\nGateway");
        assert_eq!(refusal.message, "the server answered 502 <html> [31mBad Gateway");
        assert_eq!(refusal.code, None);
    }
}
