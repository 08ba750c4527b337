//! Samples of every message that there is: to pin their bytes, and to damage them.

/// A value of each variant of an enum. It does not compile while one is missing.
macro_rules! each {
    ($enum:ty { $($variant:pat => $value:expr,)* }) => {{
        let _ = |value: &$enum| match value { $($variant => (),)* };
        vec![$($value),*]
    }};
}

pub(crate) mod damage;
mod values;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::values::*;
use super::message::*;
use super::{Document, codec};
use crate::net::Hello;
use crate::sessions::LogsRequest;
use crate::types::ClusterMode;
use crate::{catalogue, election};

type Is = Box<dyn Fn(&[u8]) -> bool>;

/// A message as it is on the wire.
pub(super) struct Sample {
    /// `Find.request.0`: the call, which side of it, and which of the samples.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    /// Whether bytes are the value that was sampled.
    pub(super) is: Is,
}

impl Sample {
    fn new<T: Serialize + DeserializeOwned + PartialEq + 'static>(name: String, value: T) -> Self {
        let bytes = codec::encode(&value).unwrap();
        Self { name, bytes, is: Box::new(move |bytes| codec::decode(bytes).as_ref() == Ok(&value)) }
    }
}

/// Every message: the hello, then each call and its answers, in the order of their numbers.
pub(super) fn samples() -> Vec<Sample> {
    let modes = each!(ClusterMode {
        ClusterMode::Available => ClusterMode::Available,
        ClusterMode::Quorum { .. } => ClusterMode::Quorum { expected_nodes: 5 },
    });
    let hello = |mode| Hello {
        cluster: name("prod"),
        node: id(1),
        name: name("one"),
        incarnation: 1_700_000_000_000,
        version: "0.1.0".to_owned(),
        mode,
    };
    let hellos = modes.into_iter().enumerate().map(|(i, mode)| Sample::new(format!("Hello.{i}"), hello(mode)));
    hellos.chain(samples_of_calls()).collect()
}

/// A call that there are samples of: each has to be one, or the table of calls does not compile in tests.
pub(super) trait Sampled: Call<Answer: PartialEq> + Sized {
    fn requests() -> Vec<Self>;

    fn answers() -> Vec<Self::Answer>;
}

pub(super) fn samples_of<C: Sampled>(call: &str) -> Vec<Sample> {
    let requests = C::requests().into_iter().map(Call::into_request).enumerate();
    let requests = requests.map(|(i, request)| Sample::new(format!("{call}.request.{i}"), request));
    let answers = C::answers().into_iter().enumerate();
    requests.chain(answers.map(|(i, answer)| Sample::new(format!("{call}.answer.{i}"), answer))).collect()
}

macro_rules! sampled {
    ($($body:ty: $requests:expr => $answers:expr;)*) => {
        $(impl Sampled for $body {
            fn requests() -> Vec<Self> {
                $requests.into()
            }

            fn answers() -> Vec<Self::Answer> {
                $answers.into()
            }
        })*
    };
}

sampled! {
    election::Request: election_requests() => election_answers();
    Report: [None, Some(have())].map(|have| Report { ballot: ballot(), have }) => [Ok(Document(host_report())), Err(stale())];
    Admit: [Admit(Document(admit()))] => admit_answers();
    Find: [Find { session: session_id(), fingerprint: "00ff".to_owned() }] => find_answers();
    Command: commands() => [Ok(Document(session())), not_here()];
    Secret: [Secret(session_id())] => [Ok(None), Ok(Some("hunter2".to_owned())), not_here()];
    Explain: [Explain(session_id())] => [Ok(Document(explanation())), not_here()];
    Hold: holds() => [None, Some(Document(remembered()))];
    Logs: [None, Some(100)].map(|tail| Logs { session: session_id(), request: LogsRequest { follow: true, tail } })
        => [Ok(()), not_here()];
    Describe: [Describe] => [Document(node())];
    Patch: [Patch(Document(settings_patch()))] => patch_answers();
    Drain: [Drain(Document(drain_request()))] => [Ok(Document(node())), not_stored()];
    Undrain: [Undrain] => [Ok(Document(node())), not_stored()];
    Volumes: [Volumes] => [Ok(Document(vec![volume()])), not_here()];
    RemoveVolume: [RemoveVolume("home-alice".to_owned())] => [Ok(()), not_here()];
    Place: [Place { session: session_id(), drawn: true, request: Document(session_request()) }] => place_answers();
    DryRun: [DryRun(Document(session_request()))] => [Ok(Ok(Document(plan()))), Ok(Err(no_workspace())), elsewhere()];
    Nodes: [Nodes] => [Ok(Document(vec![node()])), elsewhere()];
    Sessions: [Sessions(Document(filter()))] => [Ok(Document(page())), elsewhere()];
    Locate: [Locate("mfrgg".to_owned())] => [Ok(Document(vec![remembered()])), elsewhere()];
    Edit: edits() => edit_answers();
    Keep: [Keep(Document(entries()))] => [Ok(()), Err(Document(catalogue::Error::NoLeader))];
    Compare: [Compare(Document(entries().into_iter().map(|entry| (entry.key, entry.version)).collect()))]
        => [Document(catalogue::Difference { newer: entries(), wanted: keys() })];
    Claim: [Claim { ballot: ballot(), session: session_id() }] => claim_answers();
    Forget: [Forget { node: id(3), session: None }, Forget { node: id(3), session: Some(session_id()) }] => forget_answers();
    Pass: [Pass(vec![15, 0, 255])] => pass_answers();
}
