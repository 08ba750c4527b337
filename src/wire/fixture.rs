//! Samples of every message: to pin their bytes, and to damage them.

/// A value of each variant of an enum. The code does not compile while a variant is missing.
macro_rules! each {
    ($enum:ty { $($variant:pat => $value:expr,)* }) => {{
        let _ = |value: &$enum| match value { $($variant => (),)* };
        vec![$($value),*]
    }};
}

pub(crate) mod damage;
mod events;
mod image;
mod values;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::events::*;
use self::image::*;
pub(super) use self::values::actors;
use self::values::*;
use super::message::*;
use super::{Envelope, Format};
use crate::net::Hello;
use crate::sessions::LogsRequest;
use crate::types::{Actor, ClusterMode};
use crate::{catalogue, election, gossip, images};

type Is = Box<dyn Fn(&[u8]) -> bool>;

/// A message as it is on the wire.
pub(super) struct Sample {
    /// Such as `Find.request.0`: the call, request or answer, and the sample's number.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    /// Whether bytes decode to the sampled value.
    pub(super) is: Is,
}

impl Sample {
    fn new<T: Serialize + DeserializeOwned + PartialEq + 'static>(name: String, format: Format, value: T) -> Self {
        let bytes = format.encode(&value).unwrap();
        Self { name, bytes, is: Box::new(move |bytes| format.decode(bytes).as_ref() == Ok(&value)) }
    }

    fn of_call<C: Call>(name: String, by: Option<Actor>, call: &C) -> Self {
        let bytes = Envelope::encode(by.as_ref(), call).unwrap();
        let sampled = Envelope::decode(&bytes).unwrap();
        Self { name, bytes, is: Box::new(move |bytes| Envelope::decode(bytes).as_ref() == Ok(&sampled)) }
    }
}

/// Every message: the hello, then each call and its answers, in the order of their numbers, then every actor.
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
    let hellos = modes.into_iter().enumerate();
    let hellos = hellos.map(|(i, mode)| Sample::new(format!("Hello.{i}"), Format::Postcard, hello(mode)));
    let actors = actors().into_iter().enumerate();
    let actors = actors.map(|(i, actor)| Sample::of_call(format!("Actor.{i}"), Some(actor), &Undrain));
    hellos.chain(samples_of_calls()).chain(actors).collect()
}

/// A call with samples. Every call needs some: without them the table of calls does not compile in tests.
pub(super) trait Sampled: Call<Answer: PartialEq> + PartialEq {
    fn requests() -> Vec<Self>;

    fn answers() -> Vec<Self::Answer>;
}

/// The samples of one call. A change that a person may request has a token as its actor.
pub(super) fn samples_of<C: Sampled>() -> Vec<Sample> {
    let by = || (C::CHANGES && C::ASKER.role().is_some()).then(token);
    let requests = C::requests().into_iter().enumerate();
    let requests = requests.map(|(i, request)| Sample::of_call(format!("{}.request.{i}", C::NAME), by(), &request));
    let answers = C::answers().into_iter().enumerate();
    let answers = answers.map(|(i, answer)| Sample::new(format!("{}.answer.{i}", C::NAME), C::FORMAT, answer));
    requests.chain(answers).collect()
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
    Report: [None, Some(have())].map(|have| Report { ballot: ballot(), have }) => [Ok(host_report()), Err(stale())];
    Admit: [Admit(admit())] => admit_answers();
    Find: [Find { session: session_id(), fingerprint: "00ff".to_owned() }] => find_answers();
    Command: commands() => [Ok(session()), not_here()];
    Secret: [Secret(session_id())] => [Ok(None), Ok(Some("hunter2".to_owned())), not_here()];
    Explain: [Explain(session_id())] => [Ok(explanation()), not_here()];
    Hold: holds() => [None, Some(remembered())];
    Logs: [None, Some(100)].map(|tail| Logs { session: session_id(), request: LogsRequest { follow: true, tail } })
        => [Ok(()), not_here()];
    Describe: [Describe] => [node()];
    Patch: [Patch(settings_patch())] => patch_answers();
    Drain: [Drain(drain_request())] => [Ok(node()), not_stored()];
    Undrain: [Undrain] => [Ok(node()), not_stored()];
    Refresh: [Refresh] => [Ok(refreshed()), not_valid()];
    ChangeGpu: gpu_commands() => gpu_answers();
    ListImages: [ListImages(image_filter())] => [node_images()];
    PullImage: [PullImage { image: image_reference(), hold_millis: 50_000 }] => pull_image_answers();
    ChangeImage: image_commands() => [Ok(image()), Err(images::Error::NotFound("x".to_owned()))];
    TellLimit: [TellLimit { registry: "docker.io".to_owned(), pause_millis: 60_000 }] => [Ok(()), elsewhere()];
    AskLimit: [AskLimit("r.example:5000".to_owned())] => [Ok(None), Ok(Some(60_000)), elsewhere()];
    Digests: [Digests(name("desktop"))] => [Ok(None), Ok(Some(digests())), elsewhere()];
    FetchImage: fetches() => fetch_answers();
    PruneImages: [PruneImages(prune_request())] => prune_answers();
    PreviewPrune: [PreviewPrune(prune_request())] => [Ok(prune_report())];
    ListEvents: [ListEvents(event_page())] => event_answers(crate::events::Paged { events: vec![event()], more: true });
    FollowEvents: follows() => event_answers(crate::events::Following { events: vec![event()], last: 7 });
    History: [History(history_query())] => [
        Ok(history()),
        Err(crate::history::Error::Read("x".to_owned())),
        Err(crate::types::Invalid::new("step", "x").into()),
    ];
    Doctor: [Doctor] => checkups();
    Volumes: [Volumes] => [Ok(vec![volume()]), not_here()];
    RemoveVolume: [RemoveVolume("home-alice".to_owned())] => [Ok(()), not_here()];
    Place: [Place { session: session_id(), drawn: true, request: session_request() }] => place_answers();
    DryRun: [DryRun(session_request())] => [Ok(Ok(plan())), Ok(Err(no_workspace())), elsewhere()];
    Nodes: [Nodes] => [Ok(vec![node()]), elsewhere()];
    Sessions: [Sessions(filter())] => [Ok(page()), elsewhere()];
    Locate: [Locate("mfrgg".to_owned())] => [Ok(vec![remembered()]), elsewhere()];
    Edit: edits() => edit_answers();
    Keep: [Keep(entries())] => [Ok(()), Err(catalogue::Error::NoLeader)];
    Compare: [Compare(entries().into_iter().map(|entry| (entry.key, entry.version)).collect())]
        => [catalogue::Difference { newer: entries(), wanted: keys() }];
    Claim: [Claim { ballot: ballot(), session: session_id() }] => claim_answers();
    Forget: [Forget(id(3))] => forget_answers();
    Pass: [Pass(vec![15, 0, 255])] => pass_answers();
    OfferImage: [OfferImage(image_reference())] => [None, Some(offer())];
    CopyImage: [CopyImage(wanted())] => copy_answers();
    ForgetSession: [ForgetSession { node: id(3), session: session_id() }] => [Ok(()), Err(gossip::Error::Alive(id(3)))];
}
