//! The table of calls: everything that one node may ask of another.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{self, Format};
use super::envelope::Envelope;
use crate::images::{Fetch, Fetching};
use crate::sessions::LogsRequest;
use crate::types::{
    Actor, Ballot, Checkup, DigestInUse, DrainRequest, Explanation, Gpu, HistoryQuery, Image, ImageFilter, ImagePull,
    ImageReference, List, Name, NoCheckup, Node, NodeId, NodeImages, Plan, PruneReport, PruneRequest, Refreshed,
    Remembered, Role, Session, SessionFilter, SessionId, SessionRequest, SettingsPatch, Volume, Wait,
};
use crate::{catalogue, election, events, gossip, gpu, history, images, node, placement, sessions};

/// A call, the type of its answer, and its line of the table.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// For logs and metrics.
    const NAME: &'static str;
    /// Its number on the wire.
    const NUMBER: u16;
    const ANSWERED_BY: AnsweredBy;
    const ASKER: Asker;
    /// Whether it changes something. Its envelope then names the actor.
    const CHANGES: bool;
    /// The format of the call and of its answer.
    const FORMAT: Format;
}

/// The part of a node that answers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The host that receives it.
    Host,
    /// The leader. Another node may [pass](Pass) the call on to it.
    Leader,
    /// The node that receives it, and only over the mesh: the answer is more than a value of that node.
    Node,
}

/// Who may make a call.
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
    /// The role that a person needs. `None`: no person may make the call.
    pub const fn role(self) -> Option<Role> {
        match self {
            Self::Person(role) => Some(role),
            Self::Ballot | Self::Member => None,
        }
    }
}

/// The table of calls, as input for another macro. One line a call: its name; the part that answers it; who may ask (a
/// role, if a person may); whether it changes something; its format; its body; its answer. New calls go to the end,
/// since a call's position is its number.
macro_rules! calls {
    ($make:ident) => {
        $make! {
            /// Votes and heartbeats.
            Election(Host, Ballot, changes, Postcard): election::Request => Result<election::Answer, election::Error>;
            /// A leader asks a host for its report. The host answers once something differs from what the leader has.
            Report(Host, Ballot, reads, Json): Report => Result<placement::HostReport, election::Stale>;
            /// A leader offers a session.
            Admit(Host, Ballot, changes, Json): Admit => Result<sessions::Admitted, AdmitError>;
            /// The session of a key, with its secret, as in the answer to the request that created it.
            Find(Host, Member, reads, Json): Find => Result<Option<Session>, sessions::Error>;
            Command(Host, Operate, changes, Json): Command => Result<Session, sessions::Error>;
            Secret(Host, Operate, reads, Json): Secret => Result<Option<String>, sessions::Error>;
            Explain(Host, Read, reads, Json): Explain => Result<Explanation, sessions::Error>;
            /// Answers once the wait is met or the timeout is over. `None`: the host has no record of the session.
            Hold(Host, Read, reads, Json): Hold => Option<Remembered>;
            /// The log follows the answer, up to the end of the stream.
            Logs(Node, Read, reads, Json): Logs => Result<(), sessions::Error>;
            /// The node as it is now.
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
            /// The sessions whose id begins with a prefix. Two at most, which show that the prefix is ambiguous.
            Locate(Leader, Read, reads, Json): Locate => Led<Vec<Remembered>>;
            Edit(Leader, Admin, changes, Json): Edit => Led<Result<catalogue::Edited, catalogue::Error>>;
            /// Entries to store if they are newer than the stored ones. Answered once they are on disk.
            Keep(Host, Member, changes, Json): Keep => Result<(), catalogue::Error>;
            /// The entries that one side has and the other does not.
            Compare(Host, Member, reads, Json): Compare => catalogue::Difference;
            /// A leader takes over a session that its host could not start.
            Claim(Host, Ballot, changes, Json): Claim => Result<sessions::Claimed, AdmitError>;
            /// Forget a node that will not return, and its sessions.
            Forget(Host, Admin, changes, Json): Forget => Result<(), gossip::Error>;
            /// Pass a call on to the leader, for a node that cannot reach the leader itself.
            Pass(Node, Member, reads, Postcard): Pass => Result<Passed, NotPassed>;
            /// Like `Forget`, for one session.
            ForgetSession(Host, Operate, changes, Json): ForgetSession => Result<(), gossip::Error>;
            /// Read the configuration and its files again.
            Refresh(Host, Admin, changes, Json): Refresh => Result<Refreshed, node::Error>;
            /// Cordon, uncordon or forget a GPU. The answer is the GPU after the change; `None`: the host does not know
            /// it any more.
            ChangeGpu(Host, Admin, changes, Json): ChangeGpu => Result<Option<Gpu>, gpu::Error>;
            /// The images of a host, as it last listed them.
            ListImages(Host, Read, reads, Json): ListImages => NodeImages;
            /// Pull an image. The answer is the pull, once it is done or the hold is over.
            PullImage(Host, Admin, changes, Json): PullImage => Result<ImagePull, images::Error>;
            /// Adopt, pin or unpin an image. The answer is the image after the change.
            ChangeImage(Host, Admin, changes, Json): ChangeImage => Result<Image, images::Error>;
            /// A registry limits pulls, and the caller leaves it alone for a while.
            TellLimit(Leader, Member, changes, Json): TellLimit => Led<()>;
            /// How long a registry is to be left alone, in milliseconds. `None`: not at all.
            AskLimit(Leader, Member, reads, Json): AskLimit => Led<Option<u64>>;
            /// The digests of a workspace's image that are in use. `None`: the catalogue has no such workspace.
            Digests(Leader, Read, reads, Json): Digests => Led<Option<Vec<DigestInUse>>>;
            /// Pull an image ahead, or find out whether it is the newest. Answers when that is done, or after a while that
            /// it still runs.
            FetchImage(Host, Member, changes, Json): FetchImage => Result<Fetching, images::Error>;
            /// What the node can give under an image's name. `None`: nothing.
            OfferImage(Host, Member, reads, Json): OfferImage => Option<images::offers::Offer>;
            /// The archive of the image follows the answer, up to the end of the stream.
            CopyImage(Node, Member, reads, Json): CopyImage
                => Result<images::offers::Offer, images::offers::Refusal>;
            /// Removes images that nothing needs, as the mode says. Answered once the prune has ended.
            PruneImages(Host, Admin, changes, Json): PruneImages => Result<PruneReport, images::Error>;
            /// What such a prune would do.
            PreviewPrune(Host, Read, reads, Json): PreviewPrune => Result<PruneReport, images::Error>;
            /// The newest events of the node's log.
            ListEvents(Host, Read, reads, Json): ListEvents => Result<events::Paged, events::Error>;
            /// The next events of the node's log. Answers once there is one, or the hold is over.
            FollowEvents(Host, Read, reads, Json): FollowEvents => Result<events::Following, events::Error>;
            /// The history of the host and its GPUs.
            History(Host, Read, reads, Json): History => Result<crate::types::History, history::Error>;
            /// The checks of `ostler doctor`. It changes nothing, and needs an administrator all the same: the answer names
            /// files with their modes, open ports and versions, it has commands for root, and each run asks the engine
            /// and other nodes.
            Doctor(Host, Admin, reads, Json): Doctor => Result<Checkup, NoCheckup>;
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

            pub const fn changes(&self) -> bool {
                match self { $(Self::$name(_) => <$body as Call>::CHANGES,)* }
            }

            pub const fn asker(&self) -> Asker {
                match self { $(Self::$name(_) => <$body as Call>::ASKER,)* }
            }

            /// The ballot that it carries, if it carries one.
            pub const fn ballot(&self) -> Option<&Ballot> {
                match self { $(Self::$name(call) => ballot!($asker, call),)* }
            }

            /// Encodes the call with an actor. For the actor that it came with, these are the bytes that came in.
            ///
            /// # Errors
            /// The call exceeds [`MAX_FRAME`](super::MAX_FRAME).
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

        /// Reads bytes as the answer to each call in turn. No input may crash a reader or make it allocate too much.
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

/// The leader's answer to a call that was passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    pub leader: NodeId,
    /// The answer as it is on the wire.
    pub answer: Vec<u8>,
}

/// Why a call that was to be passed on has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotPassed {
    /// The call did not reach the leader.
    Undelivered,
    /// What became of it is not known. With the cause as text: the error itself cannot cross the wire.
    NoAnswer(String),
}

/// The answer to a call for the leader, from a node that may not be the leader.
pub type Led<T> = Result<T, NotLeader>;

/// The node that was asked does not lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotLeader {
    /// The leader that it follows, if it knows one.
    pub leader: Option<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub ballot: Ballot,
    /// The versions that the leader has of this host, from an earlier answer.
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
    /// The host follows a higher ballot.
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
pub struct Refresh;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeGpu {
    /// The whole UUID.
    pub uuid: String,
    pub command: gpu::Command,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListImages(pub ImageFilter);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PullImage {
    pub image: ImageReference,
    /// How long the answer may wait for the end of the pull.
    pub hold_millis: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeImage {
    /// A name, an id or a prefix of one.
    pub image: String,
    pub command: images::Command,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TellLimit {
    /// The host of the registry, with its port if it names one.
    pub registry: String,
    pub pause_millis: u64,
}

/// The host of a registry, with its port if it names one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AskLimit(pub String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Digests(pub Name);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchImage {
    pub image: ImageReference,
    pub how: Fetch,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfferImage(pub ImageReference);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyImage(pub images::offers::Wanted);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PruneImages(pub PruneRequest);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviewPrune(pub PruneRequest);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListEvents(pub events::Page);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FollowEvents {
    pub from: events::FollowFrom,
    pub hold_millis: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History(pub HistoryQuery);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Doctor;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volumes;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveVolume(pub String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub session: SessionId,
    /// The first node that received the request drew the key for it alone, so no host can have a session of it.
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
