//! Everything that one node may ask of another.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{self, Format};
use super::envelope::Envelope;
use crate::sessions::LogsRequest;
use crate::types::{
    Actor, Ballot, DrainRequest, Explanation, List, Node, NodeId, Plan, Remembered, Role, Session, SessionFilter,
    SessionId, SessionRequest, SettingsPatch, Volume, Wait,
};
use crate::{catalogue, election, gossip, node, placement, sessions};

/// A question, the type of its answer, and what the table says of it.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// For logs and metrics.
    const NAME: &'static str;
    /// What tells it on the wire.
    const NUMBER: u16;
    const ANSWERED_BY: AnsweredBy;
    const ASKER: Asker;
    /// Whether it changes something: the person who asks for that is named in its envelope.
    const CHANGES: bool;
    /// Of the call and of its answer.
    const FORMAT: Format;
}

/// The part of a node that answers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The host that is asked.
    Host,
    /// The leader. Another node may [pass](Pass) the call on to it.
    Leader,
    /// The node that is asked, over the mesh alone: the answer is more than a value of its own.
    Node,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The node whose ballot the call carries.
    Ballot,
    /// Any node of the cluster for itself, and no person.
    Member,
    /// A person of at least this role, or any node for itself.
    Person(Role),
}

impl Asker {
    /// What a person needs; `None` where no person may ask.
    pub const fn role(self) -> Option<Role> {
        match self {
            Self::Person(role) => Some(role),
            Self::Ballot | Self::Member => None,
        }
    }
}

/// The table of calls, handed to a macro that makes something of it. One line a call: its name; the part that answers
/// it; who may ask, which is a role where a person may; whether it changes something; its format; its body; its
/// answer. Calls are only ever added at the end: their order is their number.
macro_rules! calls {
    ($make:ident) => {
        $make! {
            /// Votes and heartbeats.
            Election(Host, Ballot, changes, Postcard): election::Request => Result<election::Answer, election::Error>;
            /// A leader asks its host what it holds, and waits until that differs from what it has.
            Report(Host, Ballot, reads, Json): Report => Result<placement::HostReport, election::Stale>;
            /// A leader offers a session.
            Admit(Host, Ballot, changes, Json): Admit => Result<sessions::Admitted, AdmitError>;
            /// The session of a key, with its secret, as when it was made.
            Find(Host, Member, reads, Json): Find => Result<Option<Session>, sessions::Error>;
            Command(Host, Operate, changes, Json): Command => Result<Session, sessions::Error>;
            Secret(Host, Operate, reads, Json): Secret => Result<Option<String>, sessions::Error>;
            Explain(Host, Read, reads, Json): Explain => Result<Explanation, sessions::Error>;
            /// Answers once the session is as wanted, or the time is up; `None` where it is no longer known.
            Hold(Host, Read, reads, Json): Hold => Option<Remembered>;
            /// The answer is followed by the log itself, to the end of the stream.
            Logs(Node, Read, reads, Json): Logs => Result<(), sessions::Error>;
            /// How the node is now.
            Describe(Host, Read, reads, Json): Describe => Node;
            Patch(Host, Admin, changes, Json): Patch => Result<Node, node::Error>;
            Drain(Host, Admin, changes, Json): Drain => Result<Node, node::Error>;
            Undrain(Host, Admin, changes, Json): Undrain => Result<Node, node::Error>;
            Volumes(Host, Read, reads, Json): Volumes => Result<Vec<Volume>, sessions::Error>;
            RemoveVolume(Host, Admin, changes, Json): RemoveVolume => Result<(), sessions::Error>;
            Place(Leader, Operate, changes, Json): Place => Led<Result<sessions::Admitted, placement::Error>>;
            DryRun(Leader, Operate, reads, Json): DryRun => Led<Result<Plan, placement::Error>>;
            Nodes(Leader, Read, reads, Json): Nodes => Led<Vec<Node>>;
            Sessions(Leader, Read, reads, Json): Sessions => Led<List<Session>>;
            /// The sessions whose id begins so: two at most, which is one too many.
            Locate(Leader, Read, reads, Json): Locate => Led<Vec<Remembered>>;
            Edit(Leader, Admin, changes, Json): Edit => Led<Result<catalogue::Edited, catalogue::Error>>;
            /// Entries to keep, where they are newer than what is there. Answered once they are on disk.
            Keep(Host, Member, changes, Json): Keep => Result<(), catalogue::Error>;
            /// What each side has and the other has not.
            Compare(Host, Member, reads, Json): Compare => catalogue::Difference;
            /// A leader takes charge of a session that its host could not start.
            Claim(Host, Ballot, changes, Json): Claim => Result<sessions::Claimed, AdmitError>;
            /// A node is gone and will not return: every node forgets it, and its sessions.
            Forget(Host, Admin, changes, Json): Forget => Result<(), gossip::Error>;
            /// A call of the leader's, for a node that does not reach the leader itself.
            Pass(Node, Member, reads, Postcard): Pass => Result<Passed, NotPassed>;
            /// The same as `Forget`, of one session alone.
            ForgetSession(Host, Operate, changes, Json): ForgetSession => Result<(), gossip::Error>;
        }
    };
}

pub(crate) use calls;

macro_rules! asker {
    (Ballot) => {
        Asker::Ballot
    };
    (Member) => {
        Asker::Member
    };
    ($role:ident) => {
        Asker::Person(Role::$role)
    };
}

macro_rules! changes {
    (changes) => {
        true
    };
    (reads) => {
        false
    };
}

/// The ballot of a call that carries one.
macro_rules! ballot {
    (Ballot, $call:ident) => {
        Some($call.ballot())
    };
    ($other:ident, $call:ident) => {{
        let _ = $call;
        None
    }};
}

macro_rules! define {
    ($($(#[$doc:meta])* $name:ident($part:ident, $asker:ident, $effect:ident, $format:ident): $body:ty => $answer:ty;)*) => {
        /// A call that came in.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(clippy::large_enum_variant, reason = "there is one for the time of one call")]
        pub enum Request {
            $($(#[$doc])* $name($body),)*
        }

        /// The calls in the order of their numbers.
        #[repr(u16)]
        enum Number {
            $($name,)*
        }

        $(impl Call for $body {
            type Answer = $answer;

            const NAME: &'static str = stringify!($name);
            const NUMBER: u16 = Number::$name as u16;
            const ANSWERED_BY: AnsweredBy = AnsweredBy::$part;
            const ASKER: Asker = asker!($asker);
            const CHANGES: bool = changes!($effect);
            const FORMAT: Format = Format::$format;
        })*

        impl Request {
            /// For logs and metrics.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => <$body as Call>::NAME,)* }
            }

            pub const fn answered_by(&self) -> AnsweredBy {
                match self { $(Self::$name(_) => <$body as Call>::ANSWERED_BY,)* }
            }

            pub const fn asker(&self) -> Asker {
                match self { $(Self::$name(_) => <$body as Call>::ASKER,)* }
            }

            /// In whose name it is asked, where that matters.
            pub const fn ballot(&self) -> Option<&Ballot> {
                match self { $(Self::$name(call) => ballot!($asker, call),)* }
            }

            /// The same bytes as those of the call that came in, where its actor is the same.
            ///
            /// # Errors
            /// It is larger than a frame may be.
            pub fn encode(&self, by: Option<&Actor>) -> Result<Vec<u8>, codec::Error> {
                match self { $(Self::$name(call) => Envelope::encode(by, call),)* }
            }

            pub(super) fn decode(number: u16, body: &[u8]) -> Result<Self, codec::Error> {
                $(if number == <$body as Call>::NUMBER {
                    return <$body as Call>::FORMAT.decode(body).map(Self::$name);
                })*
                Err(codec::Error::Malformed)
            }
        }

        /// Reads bytes as the answer to each call in turn: whatever they are, no reader may be harmed.
        pub fn read_as_every_answer(bytes: &[u8]) {
            $(let _ = <$body as Call>::FORMAT.decode::<$answer>(bytes);)*
        }

        /// The name of every call, and who may ask.
        #[cfg(test)]
        pub(crate) const ASKERS: &[(&str, Asker)] = &[$((<$body as Call>::NAME, <$body as Call>::ASKER),)*];

        /// Samples of every call. It does not compile while a call has none.
        #[cfg(test)]
        pub(super) fn samples_of_calls() -> Vec<super::fixture::Sample> {
            let mut samples = Vec::new();
            $(samples.extend(super::fixture::samples_of::<$body>());)*
            samples
        }
    };
}

calls!(define);

/// A call as it is on the wire, with its actor.
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
    /// What became of it is not known. With the cause as text: the error itself cannot cross the wire.
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

impl Report {
    const fn ballot(&self) -> &Ballot {
        &self.ballot
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Admit(pub sessions::Admit);

impl Admit {
    const fn ballot(&self) -> &Ballot {
        &self.0.ballot
    }
}

/// Why a host did not admit a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdmitError {
    /// It follows a higher ballot.
    Stale(election::Stale),
    Refused(sessions::Error),
}

impl From<sessions::Error> for AdmitError {
    fn from(error: sessions::Error) -> Self {
        match error {
            sessions::Error::Stale(stale) => Self::Stale(stale),
            error => Self::Refused(error),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub ballot: Ballot,
    pub session: SessionId,
}

impl Claim {
    const fn ballot(&self) -> &Ballot {
        &self.ballot
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forget(pub NodeId);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForgetSession {
    /// Its host.
    pub node: NodeId,
    pub session: SessionId,
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
pub struct Patch(pub SettingsPatch);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drain(pub DrainRequest);

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
    pub request: SessionRequest,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DryRun(pub SessionRequest);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nodes;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions(pub SessionFilter);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Locate(pub String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Edit(pub catalogue::Edit);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keep(pub Vec<catalogue::Entry>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare(pub catalogue::Versions);
