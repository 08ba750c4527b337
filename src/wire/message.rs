//! Everything that one node may ask of another.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Document, codec};
use crate::sessions::LogsRequest;
use crate::types::{
    Ballot, DrainRequest, Explanation, List, Node, NodeId, Plan, Remembered, Session, SessionFilter, SessionId,
    SessionRequest, SettingsPatch, Volume, Wait,
};
use crate::{catalogue, election, gossip, node, placement, sessions};

/// A question and the type of its answer.
pub trait Call: Send + 'static {
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    fn into_request(self) -> Request;
}

/// Whom a request may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Any node of the cluster.
    Member,
    /// The node whose ballot the request carries.
    BallotHolder,
}

/// One line a request: its name, whom it may come from, its body, its answer.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($asker:ident, $body:ty) -> $answer:ty;)*) => {
        /// A request on the wire. Requests are only ever added at the end: their order is their number.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[expect(clippy::large_enum_variant, reason = "there is one for the time of one call")]
        pub enum Request {
            $($(#[$doc])* $name($body),)*
        }

        impl Request {
            /// For logs and metrics.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            /// Whom it may come from.
            pub const fn asker(&self) -> Asker {
                match self { $(Self::$name(_) => Asker::$asker,)* }
            }
        }

        $(impl Call for $body {
            type Answer = $answer;

            fn into_request(self) -> Request {
                Request::$name(self)
            }
        })*

        /// Reads bytes as the answer to each call in turn: whatever they are, no reader may be harmed.
        pub fn read_as_every_answer(bytes: &[u8]) {
            $(let _ = codec::decode::<$answer>(bytes);)*
        }

        /// Samples of every call. It does not compile while a call has none.
        #[cfg(test)]
        pub(super) fn samples_of_calls() -> Vec<super::fixture::Sample> {
            let mut samples = Vec::new();
            $(samples.extend(super::fixture::samples_of::<$body>(stringify!($name)));)*
            samples
        }
    };
}

calls! {
    /// Votes and heartbeats.
    Election(BallotHolder, election::Request) -> Result<election::Answer, election::Error>;
    /// A leader asks its host what it holds, and waits until that differs from what it has.
    Report(BallotHolder, Report) -> Result<Document<placement::HostReport>, election::Stale>;
    /// A leader offers a session.
    Admit(BallotHolder, Admit) -> Result<Document<sessions::Admitted>, AdmitError>;
    /// Of the session's host.
    Find(Member, Find) -> Result<Option<Document<Session>>, Document<sessions::Error>>;
    Command(Member, Command) -> Result<Document<Session>, Document<sessions::Error>>;
    Secret(Member, Secret) -> Result<Option<String>, Document<sessions::Error>>;
    Explain(Member, Explain) -> Result<Document<Explanation>, Document<sessions::Error>>;
    /// Answers once the session is as wanted, or the time is up; `None` where it is no longer known.
    Hold(Member, Hold) -> Option<Document<Remembered>>;
    /// The answer is followed by the log itself, to the end of the stream.
    Logs(Member, Logs) -> Result<(), Document<sessions::Error>>;
    /// Of any node: how it is now.
    Describe(Member, Describe) -> Document<Node>;
    Patch(Member, Patch) -> Result<Document<Node>, Document<node::Error>>;
    Drain(Member, Drain) -> Result<Document<Node>, Document<node::Error>>;
    Undrain(Member, Undrain) -> Result<Document<Node>, Document<node::Error>>;
    Volumes(Member, Volumes) -> Result<Document<Vec<Volume>>, Document<sessions::Error>>;
    RemoveVolume(Member, RemoveVolume) -> Result<(), Document<sessions::Error>>;
    /// Of the leader.
    Place(Member, Place) -> Led<Result<Document<sessions::Admitted>, Document<placement::Error>>>;
    DryRun(Member, DryRun) -> Led<Result<Document<Plan>, Document<placement::Error>>>;
    Nodes(Member, Nodes) -> Led<Document<Vec<Node>>>;
    Sessions(Member, Sessions) -> Led<Document<List<Session>>>;
    /// The sessions whose id begins so: two at most, which is one too many.
    Locate(Member, Locate) -> Led<Document<Vec<Remembered>>>;
    Edit(Member, Edit) -> Led<Result<Document<catalogue::Edited>, Document<catalogue::Error>>>;
    /// Entries to keep, where they are newer than what is there. Answered once they are on disk.
    Keep(Member, Keep) -> Result<(), Document<catalogue::Error>>;
    /// What each side has and the other has not.
    Compare(Member, Compare) -> Document<catalogue::Difference>;
    /// A leader takes charge of a session that its host could not start.
    Claim(BallotHolder, Claim) -> Result<Document<sessions::Claimed>, AdmitError>;
    /// A node is gone for good: nobody is to remember it, or one of its sessions.
    Forget(Member, Forget) -> Result<(), gossip::Error>;
    /// Of a follower: a request of its leader's, whom whoever asks cannot reach.
    Pass(Member, Pass) -> Result<Passed, NotPassed>;
}

impl Request {
    /// In whose name it is asked, where that matters.
    pub const fn ballot(&self) -> Option<&Ballot> {
        match self {
            Self::Election(request) => Some(request.ballot()),
            Self::Report(report) => Some(&report.ballot),
            Self::Claim(claim) => Some(&claim.ballot),
            Self::Admit(Admit(Document(admit))) => Some(&admit.ballot),
            _ => None,
        }
    }
}

impl Request {
    /// Whether it is of the leader, and so may be [passed](Pass) on to it.
    pub const fn is_of_leader(&self) -> bool {
        use Request::{DryRun, Edit, Locate, Nodes, Place, Sessions};
        matches!(self, Place(_) | DryRun(_) | Nodes(_) | Sessions(_) | Locate(_) | Edit(_))
    }
}

/// A request as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pass(pub Vec<u8>);

/// What the leader answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    pub leader: NodeId,
    /// As it is on the wire.
    pub answer: Vec<u8>,
}

/// Why a request has no answer of the leader's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotPassed {
    /// The leader did not get it.
    Undelivered,
    /// What became of it is not known.
    NoAnswer(String),
}

/// The answer of a node that was asked as the leader: it may not be it.
pub type Led<T> = Result<T, NotLeader>;

/// The node that was asked does not lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotLeader {
    /// Whom it follows, as far as it knows.
    pub leader: Option<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub ballot: Ballot,
    /// What the leader has of this host, from an earlier answer.
    pub have: Option<placement::Have>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Admit(pub Document<sessions::Admit>);

/// Why a host did not admit a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdmitError {
    /// It follows a higher ballot.
    Stale(election::Stale),
    Refused(Document<sessions::Error>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub ballot: Ballot,
    pub session: SessionId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forget {
    pub node: NodeId,
    /// Only this one of its sessions.
    pub session: Option<SessionId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Find {
    pub session: SessionId,
    pub fingerprint: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub session: SessionId,
    pub command: sessions::Command,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Secret(pub SessionId);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explain(pub SessionId);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub session: SessionId,
    pub wait: Wait,
    pub timeout_millis: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logs {
    pub session: SessionId,
    pub request: LogsRequest,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Describe;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Patch(pub Document<SettingsPatch>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drain(pub Document<DrainRequest>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Undrain;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volumes;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveVolume(pub String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub session: SessionId,
    /// The entry node drew the key for this very request: it was never tried before.
    pub drawn: bool,
    pub request: Document<SessionRequest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DryRun(pub Document<SessionRequest>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nodes;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions(pub Document<SessionFilter>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Locate(pub String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Edit(pub Document<catalogue::Edit>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keep(pub Document<Vec<catalogue::Entry>>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare(pub Document<catalogue::Versions>);
