use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::runtime::images::ImageStoreKind;
use crate::types::BootInstant;

fn store(kind: ImageStoreKind) -> ImageStore {
    ImageStore { engine: "engine".to_owned(), kind }
}

fn graph() -> ImageStore {
    store(ImageStoreKind::GraphDriver)
}

fn now() -> Moment {
    Moment { wall: Timestamp::from_millis(1000), boot: BootInstant::from_millis(1000), boot_id: 1 }
}

fn reference(text: &str) -> ImageReference {
    ImageReference::parse(text).unwrap()
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|text| (*text).to_owned()).collect()
}

fn listed(id: &str, names: &[&str]) -> ListedImage {
    ListedImage { id: id.to_owned(), names: strings(names), ..ListedImage::default() }
}

fn details(id: &str, names: &[&str]) -> ImageDetails {
    let content = format!("content of {}", id.trim_start_matches("containerd-"));
    ImageDetails { id: id.to_owned(), names: strings(names), content, ..ImageDetails::default() }
}

/// The records after a pull of `name` that found `present` and brought `id`.
fn after_pull(records: &mut Records, name: &str, present: &[ListedImage], id: &str) {
    records.begin(&reference(name), &graph(), present);
    records.pulled(&reference(name), &details(id, &[name]), Some(format!("d-{id}")), Origin::Registry, now());
}

#[test]
fn what_was_not_here_is_ours_and_what_was_is_not() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[listed("b", &["y:1"])], "a");
    assert!(records.is_ours(&graph(), "a", &strings(&["x:1"])));
    after_pull(&mut records, "z:1", &[listed("a", &["x:1"]), listed("b", &["y:1"])], "b");
    assert!(!records.is_ours(&graph(), "b", &strings(&["y:1", "z:1"])));
    assert!(!records.is_ours(&graph(), "b", &strings(&["z:1"])), "another program brought it here");
    assert!(!records.is_ours(&graph(), "c", &[]), "never recorded");
    assert!(!records.is_ours(&store(ImageStoreKind::Containerd), "a", &[]), "another store");
}

#[test]
fn a_pull_may_replace_what_a_registry_gave_and_what_was_adopted_and_nothing_else() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    let may_replace = |records: &Records, id: &str, name: &str| records.may_replace(&graph(), id, &reference(name));
    assert!(may_replace(&records, "a", "x:1"));
    assert!(!may_replace(&records, "a", "y:1"), "another program gave it this name");
    assert!(!may_replace(&records, "b", "x:1"), "the name means another image now");
    records.pin(&graph(), &details("b", &["z:1"]), true, now());
    assert!(!may_replace(&records, "b", "z:1"), "pinned, and still another program's");
    records.adopt(&graph(), &details("b", &["z:1"]), now());
    assert!(may_replace(&records, "b", "z:1"));
    after_pull(&mut records, "f:1", &[listed("f", &["f:1"])], "f");
    assert!(may_replace(&records, "f", "f:1"), "a registry has given it under this name");
}

#[test]
fn a_name_that_another_program_gave_makes_it_foreign_for_as_long_as_it_has_it() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    assert!(!records.is_ours(&graph(), "a", &strings(&["mine:1", "x:1"])));
    assert!(records.is_ours(&graph(), "a", &[]), "it is dangling");
    // The other program's name is pulled too: the image had it before.
    let with_both = [listed("a", &["mine:1", "x:1"])];
    after_pull(&mut records, "mine:1", &with_both, "a");
    assert!(!records.is_ours(&graph(), "a", &strings(&["mine:1", "x:1"])));
    assert!(records.fetched(&graph(), "a", &reference("mine:1")).is_some(), "its registry was asked");
    // A second name that a pull of ours gave.
    after_pull(&mut records, "x:2", &[listed("a", &["x:1"])], "a");
    assert!(records.is_ours(&graph(), "a", &strings(&["x:1", "x:2"])));
}

#[test]
fn only_a_name_that_a_pull_brought_came_from_a_registry() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    let fetched = |records: &Records, id: &str, name: &str| {
        records.fetched(&graph(), id, &reference(name)).and_then(|fetched| fetched.digest.clone())
    };
    assert_eq!(fetched(&records, "a", "x:1"), Some("d-a".to_owned()));
    assert_eq!(fetched(&records, "a", "alpine:mine"), None, "a tag that somebody gave");
    assert_eq!(fetched(&records, "b", "x:1"), None, "the tag is on another image now");
    records.adopt(&graph(), &details("b", &["built:1"]), now());
    assert!(records.is_ours(&graph(), "b", &strings(&["built:1"])));
    assert_eq!(fetched(&records, "b", "built:1"), None, "an adopted name came from no registry");
}

#[test]
fn the_digest_is_that_of_the_own_repository_or_none() {
    let mut records = Records::default();
    let pulled = |records: &mut Records, digests: &[&str]| {
        records.begin(&reference("x:1"), &graph(), &[]);
        let image = ImageDetails { digests: strings(digests), ..details("a", &["x:1"]) };
        records.pulled(&reference("x:1"), &image, None, Origin::Registry, now());
        records.fetched(&graph(), "a", &reference("x:1")).unwrap().digest.clone()
    };
    assert_eq!(pulled(&mut records, &["other@sha256:1", "x@sha256:2"]), Some("sha256:2".to_owned()));
    assert_eq!(pulled(&mut records, &["other@sha256:1"]), None);
    assert_eq!(pulled(&mut records, &["x@sha256:1", "x@sha256:2"]), None, "which of them is not known");
}

#[test]
fn an_image_of_a_digest_is_found_by_the_record_where_the_engine_does_not_know_the_digest() {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let by_digest = |repository: &str, digit: &str| format!("{repository}@{}", digest(digit));
    let mut records = Records::default();
    for (name, id, digit) in [(by_digest("x", "1"), "a", "1"), ("x:2".to_owned(), "b", "2")] {
        records.begin(&reference(&name), &graph(), &[]);
        records.pulled(&reference(&name), &details(id, &[]), Some(digest(digit)), Origin::Peer, now());
    }
    let found = |kind, repository: &str, digit: &str| {
        records.of_digest(&store(kind), &reference(&by_digest(repository, digit))).map(str::to_owned)
    };
    let graph_driver = ImageStoreKind::GraphDriver;
    assert_eq!(found(graph_driver, "x", "1").as_deref(), Some("a"));
    assert_eq!(found(graph_driver, "x", "2").as_deref(), Some("b"), "a registry gave it under a tag");
    assert_eq!(found(graph_driver, "y", "2"), None, "another repository has another image");
    assert_eq!(found(graph_driver, "x", "3"), None);
    assert_eq!(found(ImageStoreKind::Containerd, "x", "1"), None, "an id is of one store");
    assert_eq!(records.of_digest(&graph(), &reference("x:2")), None);

    let mut list = [listed("a", &[]), listed("b", &["x:2"]), listed("c", &["z:1"])];
    records.complete(&graph(), &mut list);
    records.complete(&graph(), &mut list);
    assert_eq!(list.map(|image| image.digests), [vec![by_digest("x", "1")], vec![by_digest("x", "2")], Vec::new()]);
}

#[test]
fn a_question_to_the_registry_counts_even_if_it_brought_nothing() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    let later = now().plus(Duration::from_secs(9));
    records.not_answered(&graph(), "a", &reference("x:1"), later);
    records.not_answered(&graph(), "a", &reference("mine:1"), later);
    let fetched = records.fetched(&graph(), "a", &reference("x:1")).unwrap();
    assert_eq!((fetched.at, fetched.asked_at()), (now(), later), "the last answer is that of the pull");
    assert!(records.fetched(&graph(), "a", &reference("mine:1")).is_none());
    records.used(&graph(), "a", later);
    assert_eq!(records.record(&graph(), "a").unwrap().used, later);
}

#[test]
fn an_image_counts_as_checked_only_if_it_has_the_digest_of_the_registry() {
    let mut records = Records::default();
    records.begin(&reference("x:1"), &graph(), &[]);
    records.pulled(&reference("x:1"), &details("a", &["x:1"]), Some("sha256:1".to_owned()), Origin::Registry, now());
    let later = now().plus(Duration::from_secs(9));
    records.not_answered(&graph(), "a", &reference("x:1"), later);
    let mut asked_at = |digest: &str, at: Moment| {
        records.checked(&graph(), "a", &reference("x:1"), digest, at);
        records.fetched(&graph(), "a", &reference("x:1")).unwrap().clone()
    };
    assert_eq!(asked_at("sha256:2", later.plus(Duration::from_secs(1))).at, now());
    let checked = asked_at("sha256:1", later);
    assert_eq!((checked.at, checked.failed), (later, None));
}

#[test]
fn an_image_that_is_gone_is_forgotten_and_one_of_another_store_is_not() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    after_pull(&mut records, "y:1", &[], "b");
    records.listed(&store(ImageStoreKind::Containerd), &[]);
    assert_eq!(records.images.len(), 2);
    records.listed(&graph(), &[listed("b", &["y:1"])]);
    assert!(records.record(&graph(), "a").is_none() && records.record(&graph(), "b").is_some());
}

#[test]
fn after_a_switch_of_the_store_the_same_content_under_the_same_name_is_ours() {
    let other = store(ImageStoreKind::Containerd);
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    records.pin(&graph(), &details("a", &["x:1"]), true, now());
    let here = [listed("containerd-a", &["x:1"]), listed("containerd-b", &["x:2"])];
    let ids = |images: Vec<&ListedImage>| images.into_iter().map(|image| image.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(records.unrecognised(&other, &here)), ["containerd-a"], "the other has a name that was never ours");
    records.recognise(&other, &details("containerd-b", &["x:1"]));
    assert!(!records.is_ours(&other, "containerd-b", &strings(&["x:1"])), "another content");
    records.recognise(&other, &details("containerd-a", &["y:1"]));
    assert!(!records.is_ours(&other, "containerd-a", &[]), "another name");
    records.recognise(&other, &details("containerd-a", &["x:1"]));
    assert!(records.is_ours(&other, "containerd-a", &strings(&["x:1"])));
    assert!(records.record(&other, "containerd-a").unwrap().pinned);
    assert_eq!(ids(records.unrecognised(&other, &here)), [""; 0]);
    assert!(records.is_ours(&graph(), "a", &strings(&["x:1"])), "the first store may be used again");

    let elsewhere = ImageStore { engine: "another".to_owned(), kind: ImageStoreKind::Containerd };
    assert_eq!(ids(records.unrecognised(&elsewhere, &here)), [""; 0], "another engine");
    let mut nothing = details("containerd-a", &["x:1"]);
    nothing.content = String::new();
    let mut unknown = Records::default();
    unknown.begin(&reference("x:1"), &graph(), &[]);
    unknown.pulled(
        &reference("x:1"),
        &ImageDetails { content: String::new(), ..details("a", &["x:1"]) },
        None,
        Origin::Registry,
        now(),
    );
    unknown.recognise(&other, &nothing);
    assert!(unknown.record(&other, "containerd-a").is_none(), "content that is not known is no evidence");
}

#[test]
fn adopting_pinning_and_unpinning() {
    let mut records = Records::default();
    let image = details("a", &["mine:1"]);
    records.pin(&graph(), &image, true, now());
    assert!(records.record(&graph(), "a").unwrap().pinned);
    assert!(!records.is_ours(&graph(), "a", &strings(&["mine:1"])), "a pin makes nothing ostler's");
    records.adopt(&graph(), &image, now());
    assert!(records.is_ours(&graph(), "a", &strings(&["mine:1"])));
    assert!(records.record(&graph(), "a").unwrap().pinned);
    records.pin(&graph(), &image, false, now());
    assert!(!records.record(&graph(), "a").unwrap().pinned);
    assert!(!records.is_ours(&graph(), "a", &strings(&["mine:1", "new:1"])), "a name that came later");
}

#[test]
fn a_pull_that_brought_nothing_leaves_no_trace_and_one_from_a_node_may_be_of_no_registry() {
    let mut records = Records::default();
    records.begin(&reference("x:1"), &graph(), &[]);
    records.not_pulled(&reference("x:1"));
    assert_eq!(records, Records::default());
    after_pull(&mut records, "y:1", &[], "a");
    records.not_fetched(&graph(), "a", &reference("y:1"));
    assert_eq!(records.fetched(&graph(), "a", &reference("y:1")), None);
    assert!(records.is_ours(&graph(), "a", &strings(&["y:1"])), "the name stays ostler's");
}

#[test]
fn a_list_takes_the_names_that_are_gone_and_leaves_digests_which_no_list_tells_of() {
    let mut records = Records::default();
    after_pull(&mut records, "x:1", &[], "a");
    for name in ["x:2", "x@sha256:ab"] {
        records.begin(&reference(name), &graph(), &[]);
        records.pulled(&reference(name), &details("a", &["x:1"]), None, Origin::Registry, now());
    }
    records.listed(&graph(), &[listed("a", &["x:1"])]);
    let names: Vec<&String> = records.record(&graph(), "a").unwrap().names.keys().collect();
    assert_eq!(names, ["x:1", "x@sha256:ab"]);
}

#[test]
fn the_number_of_records_is_bounded() {
    let mut records = Records::default();
    for n in 0..MAX_RECORDS + 2 {
        let later = now().plus(Duration::from_secs(n as u64));
        let name = reference(&format!("x:{n}"));
        records.begin(&name, &graph(), &[]);
        records.pulled(&name, &details(&n.to_string(), &[]), None, Origin::Registry, later);
    }
    assert_eq!(records.images.len(), MAX_RECORDS);
    assert!(records.record(&graph(), "0").is_none() && records.record(&graph(), "2").is_some());
}

/// What a person or ostler does on an engine.
#[derive(Debug, Clone)]
enum Act {
    /// Ostler pulls this name, which brings this image.
    Pull(u8, u8),
    /// Another program pulls, loads or builds this image under this name.
    Bring(u8, u8),
    /// Another program gives a name to an image that is here.
    Tag(u8, u8),
    /// Another program removes an image.
    Remove(u8),
    /// The agent is killed after it recorded that this pull begins, and before or after the pull brought this image.
    Crash(u8, u8, bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..4u8, 0..5u8).prop_map(|(name, id)| Act::Pull(name, id)),
        (0..4u8, 0..5u8).prop_map(|(name, id)| Act::Bring(name, id)),
        (0..4u8, 0..5u8).prop_map(|(name, id)| Act::Tag(name, id)),
        (0..5u8).prop_map(Act::Remove),
        (0..4u8, 0..5u8, any::<bool>()).prop_map(|(name, id, done)| Act::Crash(name, id, done)),
    ]
}

/// An engine, and the truth of whose its images and names are.
#[derive(Default)]
struct Engine {
    /// Each image with its names.
    images: BTreeMap<u8, BTreeSet<u8>>,
    /// The images and names that another program brought.
    others: BTreeSet<u8>,
    names_of_others: BTreeSet<(u8, u8)>,
}

impl Engine {
    fn list(&self) -> Vec<ListedImage> {
        let listed = |(id, names): (&u8, &BTreeSet<u8>)| {
            let names: Vec<String> = names.iter().map(|name| format!("n{name}:1")).collect();
            ListedImage { id: id.to_string(), names, ..ListedImage::default() }
        };
        self.images.iter().map(listed).collect()
    }

    /// Moves the name to the image, which is here from then on.
    fn name(&mut self, name: u8, id: u8) {
        for (other, names) in &mut self.images {
            if *other != id && names.remove(&name) {
                self.names_of_others.remove(&(*other, name));
            }
        }
        self.images.entry(id).or_default().insert(name);
    }

    /// The same by another program. A name that the image has already stays whose it is.
    fn name_by_another(&mut self, name: u8, id: u8) {
        let has_it = self.images.get(&id).is_some_and(|names| names.contains(&name));
        self.name(name, id);
        if !has_it {
            self.names_of_others.insert((id, name));
        }
    }

    fn describe(&self, id: u8) -> ImageDetails {
        let listed = self.list().into_iter().find(|image| image.id == id.to_string()).unwrap();
        ImageDetails { id: listed.id, names: listed.names, content: format!("c{id}"), ..ImageDetails::default() }
    }
}

proptest! {
    /// Whatever people do beside ostler, what it takes for its own never was another's, and has no name of another's.
    #[test]
    fn nothing_of_another_program_is_ever_ours(acts in proptest::collection::vec(act(), 0..40)) {
        let (mut engine, mut records) = (Engine::default(), Records::default());
        for act in acts {
            match act {
                Act::Pull(name, id) => {
                    records.begin(&reference(&format!("n{name}:1")), &graph(), &engine.list());
                    engine.name(name, id);
                    let image = engine.describe(id);
                    records.pulled(&reference(&format!("n{name}:1")), &image, None, Origin::Registry, now());
                }
                Act::Bring(name, id) => {
                    if !engine.images.contains_key(&id) {
                        engine.others.insert(id);
                    }
                    engine.name_by_another(name, id);
                }
                Act::Tag(name, id) => {
                    if engine.images.contains_key(&id) {
                        engine.name_by_another(name, id);
                    }
                }
                Act::Remove(id) => {
                    engine.images.remove(&id);
                    engine.others.remove(&id);
                    engine.names_of_others.retain(|(of, _)| *of != id);
                }
                Act::Crash(name, id, done) => {
                    let name_text = reference(&format!("n{name}:1"));
                    records.begin(&name_text, &graph(), &engine.list());
                    let intent = records.intents[&name_text].clone();
                    if done {
                        engine.name(name, id);
                    }
                    // The next start: the pull is resolved as by the owner.
                    let has_it = engine.images.iter().find(|(_, names)| names.contains(&name)).map(|(id, _)| *id);
                    match has_it.map(|id| engine.describe(id)).filter(|image| !intent.present.contains(&image.id)) {
                        Some(image) => records.pulled(&name_text, &image, None, Origin::Registry, now()),
                        None => records.not_pulled(&name_text),
                    }
                }
            }
            records.listed(&graph(), &engine.list());
            for image in engine.list() {
                let id: u8 = image.id.parse().unwrap();
                let is_ours = records.is_ours(&graph(), &image.id, &image.names);
                prop_assert!(!is_ours || !engine.others.contains(&id), "image {id} is another's");
                let foreign_name = engine.images[&id].iter().any(|name| engine.names_of_others.contains(&(id, *name)));
                prop_assert!(!is_ours || !foreign_name, "a name of image {id} is another's");
            }
        }
    }
}
