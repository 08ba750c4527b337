use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::images::fake::place;
use crate::images::ownership::Records;
use crate::runtime::images::ImageDetails;
use crate::types::{BootInstant, Cores, Moment, SessionState, Timestamp, Workspace, sample};

fn now(millis: i64) -> Moment {
    Moment { wall: Timestamp::from_millis(millis), boot: BootInstant::from_millis(1), boot_id: 1 }
}

fn reference(text: &str) -> ImageReference {
    ImageReference::parse(text).unwrap()
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|text| (*text).to_owned()).collect()
}

fn listed(id: &str, names: &[&str], digests: &[&str]) -> ListedImage {
    let (names, digests) = (strings(names), strings(digests));
    ListedImage { id: id.to_owned(), names, digests, size: Bytes::mib(10), shared: None }
}

fn pulled(records: &mut Records, name: &str, id: &str, digest: &str) {
    records.begin(&reference(name), &place(), &[]);
    let image = ImageDetails { id: id.to_owned(), names: strings(&[name]), ..ImageDetails::default() };
    records.pulled(&reference(name), &image, Some(digest.to_owned()), Origin::Registry, now(1000));
}

fn snapshot(images: Vec<ListedImage>, records: Records) -> Snapshot {
    Snapshot {
        store: Some(ImageStoreInfo { store: place(), path: Some("/var/lib/docker".into()) }),
        images: Some(images.into()),
        records: Arc::new(records),
        listed_at: Some(Timestamp::from_millis(5)),
        ..Snapshot::default()
    }
}

fn workspaces(of: &[(&str, &str)]) -> catalogue::Snapshot {
    let workspace = |(name, image): &(&str, &str)| {
        let mut workspace = Workspace::new(name.parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        workspace.image = Some((*image).to_owned());
        (workspace.name.clone(), Arc::new(workspace))
    };
    catalogue::Snapshot { workspaces: of.iter().map(workspace).collect(), ..catalogue::Snapshot::default() }
}

/// Sessions by key, with the name and the digest of the image that each was made from.
fn sessions(of: &[(&str, &str, Option<&str>)]) -> sessions::Snapshot {
    let mut sessions = sessions::Snapshot::default();
    for (key, image, digest) in of {
        let mut session = sample::session_profile(key, "desktop", "alice", SessionState::Running);
        (session.image, session.image_digest) = (Some((*image).to_owned()), digest.map(str::to_owned));
        sessions.sessions.insert(session.id, Arc::new(session));
    }
    sessions
}

fn list(images: &Snapshot, catalogue: &catalogue::Snapshot, sessions: &sessions::Snapshot) -> NodeImages {
    inventory(Inputs { node: &"a".parse().unwrap(), images, pulls: &[], catalogue, sessions })
}

fn alone(images: &Snapshot) -> NodeImages {
    list(images, &catalogue::Snapshot::default(), &sessions::Snapshot::default())
}

#[test]
fn an_image_shows_whose_it_is_and_what_registries_gave() {
    let mut records = Records::default();
    pulled(&mut records, "x:1", "1", "sha256:d");
    let foreign = ImageDetails { id: "2".to_owned(), ..ImageDetails::default() };
    records.pin(&place(), &foreign, true, now(7));
    let images = vec![listed("3", &[], &[]), listed("2", &["y:1"], &[]), listed("1", &["x:1"], &[])];
    let mut snapshot = snapshot(images, records);
    snapshot.removing.insert("3".to_owned());
    snapshot.containers = Some(Arc::new([("1".to_owned(), 2)].into()));
    let all = alone(&snapshot).items;
    assert_eq!(all.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), ["1", "2", "3"], "in the order of pages");
    let whose = |image: &Image| (image.owner, image.origin, image.pinned, image.removing, image.containers);
    assert_eq!(whose(&all[0]), (ImageOwner::Ostler, Some(ImageOrigin::Registry), false, false, Some(2)));
    assert_eq!(whose(&all[1]), (ImageOwner::Foreign, Some(ImageOrigin::Here), true, false, Some(0)));
    assert_eq!(whose(&all[2]), (ImageOwner::Foreign, None, false, true, Some(0)));
    let checked_at = Timestamp::from_millis(1000);
    let source = ImageSource { name: "x:1".to_owned(), digest: Some("sha256:d".to_owned()), checked_at };
    assert_eq!((&all[0].sources, all[0].pulled_at), (&vec![source], Some(checked_at)));
    assert_eq!((&all[1].sources, all[1].pulled_at), (&Vec::new(), None));
}

#[test]
fn the_last_use_is_known_before_it_is_on_disk_and_a_pin_is_none() {
    let mut records = Records::default();
    pulled(&mut records, "x:1", "1", "sha256:d");
    records.pin(&place(), &ImageDetails { id: "2".to_owned(), ..ImageDetails::default() }, true, now(7));
    let mut snapshot = snapshot(vec![listed("1", &["x:1"], &[]), listed("2", &[], &[])], records);
    let used = |snapshot: &Snapshot| {
        alone(snapshot).items.into_iter().map(|image| image.last_used_at.map(Timestamp::millis)).collect::<Vec<_>>()
    };
    assert_eq!(used(&snapshot), [Some(1000), None], "a pull counts");
    snapshot.used = [("1".to_owned(), now(2000)), ("2".to_owned(), now(3000))].into();
    assert_eq!(used(&snapshot), [Some(2000), Some(3000)]);
}

#[test]
fn a_workspace_uses_the_image_that_its_name_or_digest_means_now() {
    let images = vec![listed("1", &["x:1", "x:latest"], &["x@sha256:ab"]), listed("2", &["r:5000/y:1"], &[])];
    let catalogue = workspaces(&[
        ("by-tag", "docker.io/library/x:1"),
        ("by-digest", "x:9@sha256:ab"),
        ("of-latest", "x"),
        ("other", "r:5000/y:1"),
        ("absent", "x:2"),
        ("wrong", "other@sha256:ab"),
    ]);
    let all = list(&snapshot(images, Records::default()), &catalogue, &sessions::Snapshot::default()).items;
    let names = |image: &Image| image.workspaces.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&all[0]), ["by-digest", "by-tag", "of-latest"]);
    assert_eq!(names(&all[1]), ["other"]);
}

#[test]
fn a_session_uses_the_image_that_it_was_made_from_though_the_tag_moved() {
    let mut records = Records::default();
    pulled(&mut records, "z:1", "4", "sha256:recorded");
    let images = vec![
        listed("1", &[], &["x@sha256:old"]),
        listed("2", &["x:1"], &["x@sha256:new"]),
        listed("3", &["y:1"], &[]),
        listed("4", &["z:1"], &[]),
    ];
    let mut sessions = sessions(&[
        ("old", "x:1", Some("sha256:old")),
        ("new", "x:1", Some("sha256:new")),
        ("by-id", "x:1", Some("3")),
        ("recorded", "z:1", Some("sha256:recorded")),
        ("unknown", "x:1", None),
        ("gone", "x:1", Some("sha256:new")),
        ("lost", "x:1", Some("sha256:removed")),
    ]);
    sessions.gone.insert(sample::session_id("gone"));
    let all = list(&snapshot(images, records), &catalogue::Snapshot::default(), &sessions).items;
    let of = |keys: &[&str]| {
        let mut ids: Vec<SessionId> = keys.iter().map(|key| sample::session_id(key)).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(all[0].sessions, of(&["old"]));
    assert_eq!(all[1].sessions, of(&["new", "unknown"]));
    assert_eq!(all[2].sessions, of(&["by-id"]));
    assert_eq!(all[3].sessions, of(&["recorded"]));
}

#[test]
fn shared_layers_count_once_where_the_engine_tells_enough() {
    let images = |sizes: &[(u64, Option<u64>)]| {
        let image = |(i, (size, shared)): (usize, &(u64, Option<u64>))| ListedImage {
            id: i.to_string(),
            size: Bytes::new(*size),
            shared: shared.map(Bytes::new),
            ..ListedImage::default()
        };
        alone(&snapshot(sizes.iter().enumerate().map(image).collect(), Records::default()))
    };
    let total = |sizes: &[(u64, Option<u64>)]| {
        let list = images(sizes);
        (list.total_bytes.map(Bytes::get), list.total_at_most_bytes.get())
    };
    assert_eq!(total(&[]), (Some(0), 0));
    assert_eq!(total(&[(10, Some(0)), (20, Some(0))]), (Some(30), 30));
    assert_eq!(total(&[(10, Some(6)), (20, Some(6))]), (Some(24), 24), "two images share one base");
    assert_eq!(total(&[(10, Some(6)), (20, Some(6)), (9, Some(6))]), (None, 30), "one base, or more");
    assert_eq!(total(&[(10, None), (20, None)]), (None, 30));
    let unlisted = alone(&Snapshot::default());
    assert_eq!((unlisted.total_bytes, unlisted.note.is_some()), (None, true));
}

#[test]
fn pulls_are_listed_until_they_end() {
    let progress = PullProgress { fetched: Bytes::mib(1), size: Bytes::mib(2), layers_ready: 0, layers: 1 };
    let pulls = [
        (reference("x:1"), Pull::Waiting),
        (reference("y:1"), Pull::Running(progress)),
        (reference("z:1"), Pull::Copying { node: "b".to_owned(), copied: Bytes::mib(3), size: Bytes::mib(4) }),
        (reference("z:2"), Pull::Ended(Ok(()))),
    ];
    let (node, catalogue) = ("a".parse().unwrap(), catalogue::Snapshot::default());
    let (images, sessions) = (Snapshot::default(), sessions::Snapshot::default());
    let listed =
        inventory(Inputs { node: &node, images: &images, pulls: &pulls, catalogue: &catalogue, sessions: &sessions });
    let states: Vec<_> =
        listed.pulls.iter().map(|pull| (&*pull.image, pull.state, pull.fetched_bytes, pull.size_bytes)).collect();
    let waiting = ("x:1", ImagePullState::Waiting, Bytes::ZERO, Bytes::ZERO);
    let running = ("y:1", ImagePullState::Running, Bytes::mib(1), Bytes::mib(2));
    let copying = ("z:1", ImagePullState::Running, Bytes::mib(3), Bytes::mib(4));
    assert_eq!(states, [waiting, running, copying]);
}

#[test]
fn pages_of_one_owner_together_are_all_of_that_owner() {
    let mut records = Records::default();
    pulled(&mut records, "x:2", "2", "sha256:d");
    pulled(&mut records, "x:4", "4", "sha256:e");
    let ids = ["1", "2", "3", "4"];
    let images = ids.iter().map(|id| listed(id, &[format!("x:{id}").as_str()], &[])).collect();
    let all = alone(&snapshot(images, records));
    let page = |owner, after: Option<&str>, limit| {
        let filter = ImageFilter { owner, after: after.map(str::to_owned), limit };
        let page = select(all.clone(), &filter);
        assert_eq!(page.images, 4);
        (page.items.iter().map(|image| image.id.clone()).collect::<Vec<_>>().concat(), page.next_cursor.is_some())
    };
    assert_eq!(page(None, None, 3), ("123".to_owned(), true));
    assert_eq!(page(None, Some("3"), 3), ("4".to_owned(), false));
    assert_eq!(page(Some(ImageOwner::Ostler), None, 1), ("2".to_owned(), true));
    assert_eq!(page(Some(ImageOwner::Ostler), Some("2"), 1), ("4".to_owned(), false));
    assert_eq!(page(Some(ImageOwner::Foreign), None, 9), ("13".to_owned(), false));
}

#[test]
fn a_node_without_images_says_so() {
    let none = without_images(&"a".parse().unwrap());
    assert!(none.items.is_empty() && none.note.unwrap().contains("as processes"));
}

proptest! {
    /// Images made of layers: the total lies between the bounds, and is it where it is said exactly.
    #[test]
    fn the_total_is_never_told_wrong(
        layers in prop::collection::vec(0..1000_u64, 1..8),
        images in prop::collection::vec(prop::collection::btree_set(0..8_usize, 0..6), 0..6),
    ) {
        let images: Vec<Vec<usize>> =
            images.iter().map(|of| of.iter().copied().filter(|layer| *layer < layers.len()).collect()).collect();
        let users = |layer: usize| images.iter().filter(|of| of.contains(&layer)).count();
        let sum = |of: &mut dyn Iterator<Item = usize>| of.map(|layer| layers[layer]).sum::<u64>();
        let listed: Vec<ListedImage> = images.iter().map(|of| ListedImage {
            size: Bytes::new(sum(&mut of.iter().copied())),
            shared: Some(Bytes::new(sum(&mut of.iter().copied().filter(|layer| users(*layer) > 1)))),
            ..ListedImage::default()
        }).collect();
        let truth = sum(&mut (0..layers.len()).filter(|layer| users(*layer) > 0));
        let total = Total::of(&listed);
        prop_assert!(total.at_least.get() <= truth && truth <= total.at_most.get(), "{total:?} {truth}");
        prop_assert!(total.exactly().is_none_or(|exactly| exactly.get() == truth));
    }
}
