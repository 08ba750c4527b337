use std::sync::{Mutex, PoisonError};

use bytes::Bytes as Chunk;
use futures_util::TryStreamExt;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::catalogue;
use crate::clock::Clock;
use crate::images::fake::{FakeImages, place};
use crate::images::give::{Giver, Parts};
use crate::images::pulls::Urgency;
use crate::images::store::Store;
use crate::images::task::tests::owners::Owners;
use crate::images::{Handle, Snapshot, task};
use crate::runtime::Provided;
use crate::types::{BootInstant, Cores, Moment, PullPolicy, Timestamp, Workspace};

const PATIENCE: Duration = Duration::from_secs(20);
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A node that has an engine in memory, and gives images.
struct Neighbour {
    engine: Arc<FakeImages>,
    images: Handle,
    giver: Giver,
    /// After how many bytes the next streams break.
    cuts: Mutex<Vec<usize>>,
    asked: Mutex<Vec<Wanted>>,
    /// To so many questions it answers that it offers nothing.
    offers_nothing: Mutex<usize>,
    _directory: TempDir,
}

impl Neighbour {
    async fn start() -> Arc<Self> {
        let engine = FakeImages::new();
        let images = owner(&engine, Config::default(), Others::none()).await;
        Self::on(engine, images)
    }

    /// Its catalogue has one workspace, of the image `x:1`, which is pinned to [`DIGEST`].
    fn on(engine: Arc<FakeImages>, images: Handle) -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (image, image_digest) = (Some("docker.io/library/x:1".to_owned()), Some(DIGEST.to_owned()));
        let workspace =
            Workspace { image, image_digest, ..Workspace::new("w".parse().unwrap(), Cores::whole(1), Bytes::gib(1)) };
        let mut snapshot = catalogue::Snapshot::default();
        snapshot.workspaces.insert("w".parse().unwrap(), Arc::new(workspace));
        let giver = Giver::new(Parts {
            images: images.clone(),
            catalogue: watch::channel(Arc::new(snapshot)).1,
            config: watch::channel(Config::default()).1,
            min_free: Arc::new(|| Bytes::ZERO),
            data_dir: directory.path().to_owned(),
        });
        let (cuts, asked, offers_nothing) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { engine, images, giver, cuts, asked, offers_nothing, _directory: directory })
    }

    /// The same, with `x:1` of two layers from a registry.
    async fn with_image() -> Arc<Self> {
        let neighbour = Self::start().await;
        neighbour.engine.publish("x:1", "img");
        neighbour.engine.layer("img", &["lower", "upper"]);
        pull(&neighbour.images, "x:1").await.unwrap();
        until(&neighbour.images, |now| now.meant(&reference("x:1")).is_some()).await;
        neighbour
    }

    fn asked(&self) -> Vec<Wanted> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cut(&self, after: &[usize]) {
        *self.cuts.lock().unwrap() = after.to_vec();
    }
}

#[async_trait]
impl Peers for Arc<Neighbour> {
    fn nodes(&self) -> Vec<(NodeId, String)> {
        vec![(NodeId::from_bytes([2; 10]), "b".to_owned())]
    }

    async fn offer(&self, _: &NodeId, image: &ImageReference) -> Option<Offer> {
        {
            let mut left = self.offers_nothing.lock().unwrap();
            if let Some(fewer) = left.checked_sub(1) {
                *left = fewer;
                return None;
            }
        }
        self.giver.offer(image).await
    }

    async fn take(&self, _: &NodeId, wanted: Wanted) -> Result<ByteStream, NotGiven> {
        self.asked.lock().unwrap().push(wanted.clone());
        let (_, stream) = self.giver.give(wanted).await?;
        let cut = Some(&mut *self.cuts.lock().unwrap()).filter(|cuts| !cuts.is_empty()).map(|cuts| cuts.remove(0));
        let Some(cut) = cut else { return Ok(stream) };
        let whole: Vec<Chunk> = stream.try_collect().await.unwrap();
        let torn = Chunk::from(whole.concat()).slice(..cut);
        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
        Ok(stream::iter([Ok(torn), Err(broken)]).boxed())
    }
}

fn reference(name: &str) -> ImageReference {
    ImageReference::parse(name).unwrap()
}

async fn owner(engine: &Arc<FakeImages>, config: Config, others: Others) -> Handle {
    let boot = BootInstant::from_millis(1000);
    let (handle, made) = task::make(task::Parts {
        // The sender goes: the configuration stays as it is.
        config: watch::channel(config).1,
        store: Store::failing().0,
        engine: engine.clone(),
        health: engine.health.subscribe(),
        neighbours: engine.clone(),
        events: crate::events::recorder::nowhere(),
        clock: Clock::manual(Moment { wall: Timestamp::from_millis(1000), boot, boot_id: 1 }),
        others,
    });
    made.start(Owners::new().around());
    until(&handle, |now| now.images.is_some()).await;
    handle
}

/// A node without images that may take them from the other.
async fn taker(neighbour: &Arc<Neighbour>, mode: FromPeers) -> (Arc<FakeImages>, Handle) {
    let engine = FakeImages::new();
    let others = Others { peers: Arc::new(Arc::clone(neighbour)), min_free: Arc::new(|| Bytes::ZERO) };
    let handle = owner(&engine, Config { from_peers: mode, ..Config::default() }, others).await;
    (engine, handle)
}

fn no_registry(cause: PullCause) -> Option<PullError> {
    Some(PullError { cause, message: "cannot pull x:1: the registry is gone".to_owned() })
}

async fn until(handle: &Handle, is: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
    let mut snapshot = handle.watch();
    timeout(PATIENCE, snapshot.wait_for(is)).await.expect("in time").unwrap().clone()
}

async fn pull(handle: &Handle, name: &str) -> Result<(), PullError> {
    let mut pull = handle.pull(&reference(name), Urgency::Demand).await.unwrap();
    let ended = timeout(PATIENCE, pull.wait_for(|pull| matches!(pull, Pull::Ended(_)))).await.unwrap().unwrap();
    let Pull::Ended(result) = ended.clone() else { unreachable!() };
    result
}

async fn provide(handle: &Handle, name: &str) -> Result<Provided, runtime::Error> {
    handle.provide(&reference(name), PullPolicy::Daily, &mpsc::channel(1).0).await
}

#[tokio::test]
async fn an_image_comes_from_another_node_if_the_registry_does_not_serve() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    for cause in [PullCause::Absent, PullCause::Denied, PullCause::Stalled] {
        engine.refuse(no_registry(cause));
        assert_eq!(pull(&here, "x:1").await.unwrap_err().cause, cause);
        assert_eq!(there.asked(), [], "{cause:?} is no reason");
    }
    engine.refuse(no_registry(PullCause::Registry));
    pull(&here, "x:1").await.unwrap();
    let now = here.snapshot();
    assert!(now.records.is_ours(&place(), "img", &["x:1".to_owned()]));
    assert_eq!(now.records.record(&place(), "img").unwrap().origin, Origin::Peer);
    let fetched = now.fetched("img", &reference("x:1")).unwrap();
    assert_eq!(fetched.digest.as_deref(), Some("digest of x:1"), "the registry is asked for a newer one later");
    assert_eq!(engine.loaded(), [["0/layer.tar", "1/layer.tar", "id"]]);
    // It is here: nothing but a registry refreshes it.
    let before = there.asked().len();
    assert!(pull(&here, "x:1").await.is_err());
    assert_eq!(there.asked().len(), before);
}

#[tokio::test]
async fn a_node_that_has_not_heard_of_the_workspace_yet_is_asked_again() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.refuse(no_registry(PullCause::Registry));
    *there.offers_nothing.lock().unwrap() = 1;
    pull(&here, "x:1").await.unwrap();
    // Before the registry was asked, nothing waits for an offer.
    let (engine, here) = taker(&there, FromPeers::Prefer).await;
    engine.publish("x:1", "img");
    *there.offers_nothing.lock().unwrap() = 1;
    pull(&here, "x:1").await.unwrap();
    assert_eq!(here.snapshot().records.record(&place(), "img").unwrap().origin, Origin::Registry);
}

#[tokio::test]
async fn while_a_registry_limits_pulls_an_image_comes_from_another_node_without_asking_the_registry() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.limit(Some(Duration::from_secs(600)));
    // Another image waits for the registry, which is asked for neither.
    let mut other = here.pull(&reference("y:1"), Urgency::Demand).await.unwrap();
    pull(&here, "x:1").await.unwrap();
    let limited = other.wait_for(|pull| matches!(pull, Pull::Limited { .. }));
    timeout(PATIENCE, limited).await.unwrap().unwrap();
    assert_eq!((engine.pulls(), there.asked().len()), (Vec::new(), 1));
    let now = here.snapshot();
    assert_eq!(now.records.record(&place(), "img").unwrap().origin, Origin::Peer);
    assert_eq!(
        (now.limited.len(), engine.told().borrow().len()),
        (1, 0),
        "the limit holds, and nobody is told of it again"
    );

    // One that nobody waits for asks the other nodes, and ends.
    let mut ahead = here.pull(&reference("z:1"), Urgency::Ahead).await.unwrap();
    let ended = timeout(PATIENCE, ahead.wait_for(|pull| matches!(pull, Pull::Ended(_)))).await.unwrap().unwrap();
    let Pull::Ended(Err(error)) = ended.clone() else { panic!("{ended:?}") };
    let limit = "cannot pull z:1: registry docker.io limits pulls (429)";
    assert_eq!(error.message, format!("{limit}; from the other nodes: no other node offers it"));
}

#[tokio::test]
async fn prefer_asks_the_other_nodes_first_and_off_never() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Prefer).await;
    pull(&here, "x:1").await.unwrap();
    assert_eq!(engine.pulls(), [""; 0]);

    let (engine, here) = taker(&there, FromPeers::Off).await;
    engine.refuse(no_registry(PullCause::Registry));
    assert!(pull(&here, "x:1").await.is_err());
    assert_eq!(there.asked().len(), 1);

    // What no node offers comes from the registry all the same.
    let (engine, here) = taker(&there, FromPeers::Prefer).await;
    engine.publish("y:1", "other");
    pull(&here, "y:1").await.unwrap();
    assert_eq!(here.snapshot().records.record(&place(), "other").unwrap().origin, Origin::Registry);
}

#[tokio::test]
async fn a_stream_that_breaks_is_begun_anew_without_what_arrived() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.refuse(no_registry(PullCause::Limited));
    there.cut(&[100, 1100, 514]);
    pull(&here, "x:1").await.unwrap();
    assert_eq!(engine.loaded(), [["0/layer.tar", "1/layer.tar", "id"]], "the engine loads one whole archive");
    let left_out: Vec<usize> = there.asked().iter().map(|wanted| wanted.entries.len()).collect();
    assert_eq!(left_out, [0, 0, 1, 1]);
}

#[tokio::test]
async fn a_stream_that_always_breaks_fails_the_pull_with_both_reasons() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.refuse(no_registry(PullCause::Registry));
    there.cut(&[100; 9]);
    let error = pull(&here, "x:1").await.unwrap_err();
    assert_eq!(error.cause, PullCause::Registry);
    let message = error.to_string();
    assert!(message.starts_with("cannot pull x:1: the registry is gone; from the other nodes: node b: "), "{message}");
    assert_eq!(there.asked().len(), 1 + ANEW);
    assert_eq!((engine.loaded().len(), here.snapshot().records.intents.len()), (0, 0));
    assert!(here.snapshot().records.record(&place(), "img").is_none());
}

#[tokio::test]
async fn another_image_than_the_one_that_was_offered_is_removed() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.refuse(no_registry(PullCause::Registry));
    engine.load_as("other");
    let error = pull(&here, "x:1").await.unwrap_err();
    assert!(error.to_string().contains("it offered img, and the engine loaded other"), "{error}");
    assert_eq!(engine.removed(), ["other"]);

    // What was here before stays.
    engine.bring("other", &["mine:1"]);
    assert!(pull(&here, "x:1").await.is_err());
    assert_eq!(engine.removed(), ["other"]);
}

#[tokio::test]
async fn layers_that_are_here_are_not_sent() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.layer("base", &["lower", "another"]);
    engine.bring("base", &["base:1"]);
    engine.refuse(no_registry(PullCause::Registry));
    pull(&here, "x:1").await.unwrap();
    assert_eq!(engine.loaded(), [["1/layer.tar", "id"]]);
}

#[tokio::test]
async fn an_image_that_is_named_by_its_digest_comes_from_another_node_and_goes_to_the_next() {
    let by_digest = format!("x@{DIGEST}");
    let first = Neighbour::start().await;
    first.engine.publish(&by_digest, "img");
    pull(&first.images, &by_digest).await.unwrap();
    until(&first.images, |now| now.meant(&reference(&by_digest)).is_some()).await;

    let (engine, here) = taker(&first, FromPeers::Fallback).await;
    engine.refuse(no_registry(PullCause::Registry));
    // The engine does not know the digest of an image that it loaded: the session is made by the id.
    let provided = provide(&here, &by_digest).await.unwrap();
    assert_eq!(provided, Provided { digest: Some(DIGEST.to_owned()), id: Some("img".to_owned()) });
    assert_eq!(engine.inspect(&by_digest).await, Ok(None));
    assert_eq!(provide(&here, &by_digest).await.unwrap(), provided, "it is here");
    assert_eq!(engine.pulls().len(), 1);
    let now = until(&here, |now| now.meant(&reference(&by_digest)).is_some()).await;
    assert!(now.records.is_ours(&place(), "img", &[]));

    let second = Neighbour::on(engine, here);
    let (engine, here) = taker(&second, FromPeers::Prefer).await;
    assert_eq!(provide(&here, &by_digest).await.unwrap(), provided);
    assert_eq!((engine.pulls(), second.asked().len()), (Vec::new(), 1));
    let other = provide(&here, &format!("x@sha256:{}", "0".repeat(64))).await;
    assert!(other.is_err(), "another digest is another image");
}

#[tokio::test]
async fn an_image_that_is_here_without_its_name_only_gets_the_name() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.bring("img", &[]);
    engine.refuse(no_registry(PullCause::Registry));
    pull(&here, "x:1").await.unwrap();
    assert_eq!(there.asked(), []);
    assert!(!here.snapshot().records.is_ours(&place(), "img", &["x:1".to_owned()]), "another program brought it");
}

#[tokio::test]
async fn only_what_a_workspace_names_is_given_and_only_under_the_id_that_was_offered() {
    let there = Neighbour::with_image().await;
    there.engine.bring("secret", &["secret:1"]);
    until(&there.images, |now| now.meant(&reference("secret:1")).is_some()).await;
    assert_eq!(there.giver.offer(&reference("secret:1")).await, None);
    let wanted = |image: &str, id: &str| Wanted {
        image: reference(image),
        id: id.to_owned(),
        layers: BTreeSet::new(),
        entries: BTreeSet::new(),
    };
    for (image, id) in [("secret:1", "secret"), ("x:1", "secret"), ("x:2", "img")] {
        let given = there.giver.give(wanted(image, id)).await.map(|(offer, _)| offer);
        assert_eq!(given, Err(Refusal::NotHere), "{image} {id}");
    }
    let many: BTreeSet<String> = (0..=offers::MAX_LAYERS).map(|layer| layer.to_string()).collect();
    let given = there.giver.give(Wanted { layers: many, ..wanted("x:1", "img") }).await.map(|(offer, _)| offer);
    assert_eq!(given, Err(Refusal::Invalid));
}

#[tokio::test]
async fn a_node_gives_one_image_at_a_time_and_the_other_waits() {
    let there = Neighbour::with_image().await;
    let (engine, here) = taker(&there, FromPeers::Prefer).await;
    engine.publish("x:1", "of the registry");
    let offer = there.giver.offer(&reference("x:1")).await.unwrap();
    let wanted = Wanted { image: reference("x:1"), id: offer.id, layers: BTreeSet::new(), entries: BTreeSet::new() };
    let (_, upload) = there.giver.give(wanted.clone()).await.unwrap();
    assert_eq!(there.giver.give(wanted).await.map(|(offer, _)| offer), Err(Refusal::Busy));
    let waiting = tokio::spawn({
        let here = here.clone();
        async move { pull(&here, "x:1").await }
    });
    let asked = async {
        while there.asked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asked).await.expect("it asks");
    drop(upload);
    waiting.await.unwrap().unwrap();
    assert_eq!(engine.pulls(), [""; 0], "it waited for the other node");
}

#[tokio::test]
async fn a_name_that_is_from_no_registry_there_is_from_none_here() {
    let there = Neighbour::start().await;
    there.engine.bring("built", &["x:1"]);
    until(&there.images, |now| now.meant(&reference("x:1")).is_some()).await;
    let (engine, here) = taker(&there, FromPeers::Fallback).await;
    engine.refuse(no_registry(PullCause::Registry));
    pull(&here, "x:1").await.unwrap();
    assert_eq!(here.snapshot().fetched("built", &reference("x:1")), None);
    assert!(here.snapshot().records.is_ours(&place(), "built", &["x:1".to_owned()]));
}

#[tokio::test]
async fn a_disk_without_room_for_two_copies_takes_none() {
    let there = Neighbour::with_image().await;
    let directory = tempfile::tempdir().unwrap();
    let others =
        |least: u64| Others { peers: Arc::new(Arc::clone(&there)), min_free: Arc::new(move || Bytes::new(least)) };
    let here = Here {
        place: Place { store: place().kind, platform: None },
        path: Some(directory.path().to_owned()),
        ids: BTreeSet::new(),
    };
    let engine = FakeImages::new();
    engine.refuse(no_registry(PullCause::Registry));
    let config = watch::channel(Config::default()).1;
    let full = Source::new(engine, config, others(u64::MAX));
    let report = watch::Sender::new(Pull::Waiting);
    let tried = full.bring(&reference("x:1"), Via::Registry, Some(here), None, &report).await;
    assert_eq!(tried.registry, Some(Err(PullCause::Registry)));
    let refused = tried.brought.unwrap_err();
    assert_eq!(refused.cause, PullCause::DiskFull);
    assert!(refused.message.contains("limits.min_free_disk"), "{refused}");
    assert_eq!(there.asked(), []);
}
