use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::images::ownership::{ImageKey, Naming, Origin};
use crate::runtime::images::ImageStoreKind;
use crate::types::{BootInstant, Timestamp};

const HOUR: Duration = Duration::from_secs(3600);

fn store() -> ImageStore {
    ImageStore { engine: "engine".to_owned(), kind: ImageStoreKind::GraphDriver }
}

fn at(hours: u64) -> Moment {
    let start = Moment { wall: Timestamp::from_millis(0), boot: BootInstant::from_millis(0), boot_id: 1 };
    start.plus(HOUR * u32::try_from(hours).unwrap())
}

fn references(of: &[&str]) -> BTreeSet<ImageReference> {
    of.iter().map(|text| ImageReference::parse(text).unwrap()).collect()
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|text| (*text).to_owned()).collect()
}

fn listed(id: &str, names: &[&str]) -> ListedImage {
    ListedImage { id: id.to_owned(), names: strings(names), size: Bytes::mib(10), ..ListedImage::default() }
}

fn ours(names: &[&str], used: Moment) -> Record {
    let naming = |name: &&str| ((*name).to_owned(), Naming { ours: true, fetched: None });
    Record {
        ours: true,
        origin: Origin::Registry,
        names: names.iter().map(naming).collect(),
        content: String::new(),
        pinned: false,
        since: used.wall,
        used,
    }
}

/// A host with a catalogue that names `w:1`, at 100 h, with `min_age` 1 h.
#[derive(Debug)]
struct Host {
    images: Vec<ListedImage>,
    records: Records,
    in_use: BTreeMap<String, u32>,
    sessions: BTreeSet<ImageReference>,
    catalogue: Catalogue,
    pulls: BTreeSet<ImageReference>,
    pressure: Option<Pressure>,
}

impl Host {
    fn new() -> Self {
        Self {
            images: Vec::new(),
            records: Records::default(),
            in_use: BTreeMap::new(),
            sessions: BTreeSet::new(),
            catalogue: Catalogue { named: references(&["w:1"]), is_empty: false, is_current: true },
            pulls: BTreeSet::new(),
            pressure: None,
        }
    }

    /// Adds an image of ours that was used at this hour.
    fn with(mut self, id: &str, names: &[&str], used: u64) -> Self {
        self.images.push(listed(id, names));
        let key = ImageKey { store: store(), id: id.to_owned() };
        self.records.images.insert(key, ours(names, at(used)));
        self
    }

    fn record(&mut self, id: &str) -> &mut Record {
        self.records.images.get_mut(&ImageKey { store: store(), id: id.to_owned() }).unwrap()
    }

    fn plan(&self, mode: Prune) -> Vec<Planned> {
        let store = store();
        plan(&self.images, &self.situation(&store, mode))
    }

    fn situation<'a>(&'a self, store: &'a ImageStore, mode: Prune) -> Situation<'a> {
        Situation {
            store,
            records: &self.records,
            in_use: &self.in_use,
            sessions: &self.sessions,
            catalogue: &self.catalogue,
            pulls: &self.pulls,
            mode,
            min_age: HOUR,
            now: at(100),
            pressure: self.pressure,
        }
    }

    fn removed(&self, mode: Prune) -> Vec<(String, PruneReason)> {
        let removed = self.plan(mode).into_iter().filter_map(|planned| match planned.verdict {
            Verdict::Remove(reason) => Some((planned.image.id, reason)),
            Verdict::Keep(_) => None,
        });
        removed.collect()
    }

    /// Why the only image stays.
    fn kept(&self, mode: Prune) -> Option<KeptBecause> {
        match self.plan(mode).as_slice() {
            [Planned { verdict: Verdict::Keep(why), .. }] => Some(*why),
            [Planned { verdict: Verdict::Remove(_), .. }] => None,
            other => panic!("one image: {other:?}"),
        }
    }
}

fn removed(of: &[(&str, PruneReason)]) -> Vec<(String, PruneReason)> {
    of.iter().map(|(id, reason)| ((*id).to_owned(), *reason)).collect()
}

#[test]
fn each_mode_takes_more_than_the_one_before() {
    let host = Host::new().with("a", &[], 1).with("b", &["b:1"], 1).with("w", &["w:1"], 1);
    assert_eq!(host.removed(Prune::Off), []);
    assert_eq!(host.removed(Prune::Normal), removed(&[("a", PruneReason::Dangling)]));
    assert_eq!(host.removed(Prune::Aggressive), removed(&[("a", PruneReason::Dangling), ("b", PruneReason::Unnamed)]));
}

#[test]
fn the_first_reason_to_keep_an_image_is_told() {
    let mut host = Host::new().with("a", &["w:1"], 100);
    host.in_use.insert("a".to_owned(), 1);
    host.sessions = references(&["w:1"]);
    host.pulls = references(&["w:1"]);
    let aggressive = |host: &Host| host.kept(Prune::Aggressive);
    host.record("a").pinned = true;
    assert_eq!(aggressive(&host), Some(KeptBecause::Pinned));
    host.record("a").pinned = false;
    assert_eq!(aggressive(&host), Some(KeptBecause::Container));
    host.in_use.clear();
    assert_eq!(aggressive(&host), Some(KeptBecause::Session));
    host.sessions.clear();
    assert_eq!(aggressive(&host), Some(KeptBecause::Pulling));
    host.pulls.clear();
    assert_eq!(aggressive(&host), Some(KeptBecause::Young));
    host.record("a").used = at(99);
    assert_eq!(aggressive(&host), Some(KeptBecause::Workspace), "an hour is old enough");
    host.catalogue.named.clear();
    assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::Named));
    assert_eq!(host.kept(Prune::Off), Some(KeptBecause::Off));
    assert_eq!(aggressive(&host), None);
    host.images[0].names.push("another:1".to_owned());
    assert_eq!(aggressive(&host), Some(KeptBecause::Foreign), "another program named it");
}

#[test]
fn nothing_but_dangling_images_goes_while_the_catalogue_does_not_tell_what_is_needed() {
    let unknown = Catalogue { is_current: false, ..Host::new().catalogue };
    let empty = Catalogue { named: BTreeSet::new(), is_empty: true, is_current: true };
    for (catalogue, why) in [(unknown, KeptBecause::CatalogueUnknown), (empty, KeptBecause::CatalogueEmpty)] {
        for pressure in [None, Some(Pressure { bytes: None })] {
            let mode = if pressure.is_some() { Prune::Normal } else { Prune::Aggressive };
            let dangling = Host { catalogue: catalogue.clone(), pressure, ..Host::new() }.with("a", &[], 1);
            assert_eq!(dangling.kept(mode), None);
            let named = Host { catalogue: catalogue.clone(), pressure, ..Host::new() }.with("a", &["x:1"], 1);
            assert_eq!(named.kept(mode), Some(why));
        }
    }
}

#[test]
fn an_image_that_is_named_by_its_digest_only_stays_while_a_workspace_or_a_session_names_it() {
    for text in ["x@sha256:ab", "x:gone@sha256:ab"] {
        let mut host = Host::new().with("a", &[], 1);
        host.images[0].digests = strings(&["x@sha256:ab"]);
        assert_eq!(host.kept(Prune::Normal), None);
        host.catalogue.named = references(&[text]);
        assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::Workspace), "{text}");
        host.catalogue.named.clear();
        host.sessions = references(&[text]);
        assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::Session), "{text}");
        // An engine that does not list the digest that it pulled.
        host.images[0].digests.clear();
        assert_eq!(host.kept(Prune::Normal), None);
        host.record("a").names.insert(text.to_owned(), Naming { ours: true, fetched: None });
        assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::Session), "{text}");
    }
}

#[test]
fn a_name_by_digest_is_no_tag_and_needs_a_catalogue_that_is_current() {
    const NAME: &str = "x@sha256:ab";
    let mut host = Host::new().with("a", &[NAME], 1);
    assert_eq!(host.kept(Prune::Normal), None, "a containerd store has it as a name");
    host.catalogue.is_current = false;
    assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::CatalogueUnknown));
    host.images[0].names.clear();
    assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::CatalogueUnknown), "a graph driver has it not");
    host.record("a").names.clear();
    assert_eq!(host.kept(Prune::Normal), None, "it is dangling, and no workspace can name it");
}

#[test]
fn a_workspace_without_a_tag_names_latest() {
    let mut host = Host::new().with("a", &["x:latest"], 1);
    host.catalogue.named = references(&["docker.io/library/x"]);
    assert_eq!(host.kept(Prune::Aggressive), Some(KeptBecause::Workspace));
    host.catalogue.named = references(&["x:2"]);
    assert_eq!(host.kept(Prune::Aggressive), None);
}

#[test]
fn a_pull_keeps_every_image_of_its_repository() {
    let mut host = Host::new().with("a", &["r:5000/x:1"], 1);
    host.pulls = references(&["r:5000/x:2"]);
    assert_eq!(host.kept(Prune::Aggressive), Some(KeptBecause::Pulling));
    host.pulls = references(&["x:1"]);
    assert_eq!(host.kept(Prune::Aggressive), None, "another registry");
    let mut host = Host::new().with("a", &[], 1);
    host.images[0].digests = strings(&["x@sha256:ab"]);
    host.pulls = references(&["x:1"]);
    assert_eq!(host.kept(Prune::Normal), Some(KeptBecause::Pulling), "the tag may come back to it");
}

#[test]
fn under_pressure_the_images_go_that_were_used_longest_ago_until_enough_is_free() {
    let mut host = Host::new().with("b", &["b:1"], 2).with("a", &["a:1"], 1).with("c", &["c:1"], 3).with("d", &[], 9);
    let pressure = |bytes| Some(Pressure { bytes });
    let gone = |of: &[&str]| {
        let reason = |id: &&str| if *id == "d" { PruneReason::Dangling } else { PruneReason::Pressure };
        of.iter().map(|id| ((*id).to_owned(), reason(id))).collect::<Vec<_>>()
    };
    host.pressure = pressure(Some(Bytes::mib(15)));
    assert_eq!(host.removed(Prune::Normal), gone(&["d", "a"]));
    assert_eq!(host.plan(Prune::Normal).last().unwrap().verdict, Verdict::Keep(KeptBecause::Named));
    // What is shared with other images is not freed.
    host.images[1].shared = Some(Bytes::mib(9));
    assert_eq!(host.removed(Prune::Normal), gone(&["d", "a", "b"]));
    host.pressure = pressure(None);
    assert_eq!(host.removed(Prune::Normal), gone(&["d", "a", "b", "c"]));
    assert_eq!(host.removed(Prune::Off), []);
}

/// Names of a few repositories, so that lists, records, workspaces and pulls meet.
fn name() -> impl Strategy<Value = String> {
    select(vec!["x:1", "x:2", "y:1", "y:latest", "r:5000/x:1"]).prop_map(str::to_owned)
}

fn digest() -> impl Strategy<Value = String> {
    select(vec!["x@sha256:a", "x@sha256:b", "y@sha256:a", "r:5000/x@sha256:c"]).prop_map(str::to_owned)
}

fn reference() -> impl Strategy<Value = ImageReference> {
    let text = prop_oneof![name(), digest(), Just("y".to_owned()), Just("x:9@sha256:b".to_owned())];
    text.prop_map(|text| ImageReference::parse(&text).unwrap())
}

fn some<T: Ord + std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeSet<T>> {
    proptest::collection::btree_set(of, 0..3)
}

/// An image and its record.
fn image() -> impl Strategy<Value = (ListedImage, Option<Record>)> {
    let record = (any::<bool>(), any::<bool>(), some(name()), any::<bool>(), 90..101_u64);
    let record = record.prop_map(|(is_ours, pinned, foreign, all, used)| (is_ours, pinned, foreign, all, used));
    (some(name()), some(digest()), 0..4_u64, proptest::option::of(record)).prop_map(
        |(names, digests, size, recorded)| {
            let (names, digests): (Vec<String>, Vec<String>) =
                (names.into_iter().collect(), digests.into_iter().collect());
            let record = recorded.map(|(is_ours, pinned, foreign, all, used)| {
                let naming =
                    |name: &String| (name.clone(), Naming { ours: all || !foreign.contains(name), fetched: None });
                Record { ours: is_ours, pinned, names: names.iter().map(naming).collect(), ..ours(&[], at(used)) }
            });
            (ListedImage { names, digests, size: Bytes::mib(size), ..ListedImage::default() }, record)
        },
    )
}

fn host() -> impl Strategy<Value = Host> {
    let images = proptest::collection::vec(image(), 0..8);
    let used = some(0..8_usize);
    let pressure = proptest::option::of(proptest::option::of(0..8_u64));
    let catalogue = (some(reference()), any::<bool>(), any::<bool>());
    (images, used, some(reference()), catalogue, some(reference()), pressure).prop_map(
        |(images, used, sessions, (named, is_empty, is_current), pulls, pressure)| {
            let named = if is_empty { BTreeSet::new() } else { named };
            let mut host = Host { sessions, pulls, ..Host::new() };
            host.catalogue = Catalogue { named, is_empty, is_current };
            host.in_use = used.into_iter().map(|index| (index.to_string(), 1)).collect();
            host.pressure = pressure.map(|bytes| Pressure { bytes: bytes.map(Bytes::mib) });
            for (index, (listed, record)) in images.into_iter().enumerate() {
                let id = index.to_string();
                if let Some(record) = record {
                    host.records.images.insert(ImageKey { store: store(), id: id.clone() }, record);
                }
                host.images.push(ListedImage { id, ..listed });
            }
            host
        },
    )
}

fn means(references: &BTreeSet<ImageReference>, image: &ListedImage) -> bool {
    references.iter().any(|reference| match reference.digest() {
        Some(digest) => image.digests.contains(&format!("{}@{digest}", reference.repository())),
        None => image.names.contains(&reference.to_string()),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is here and whoever needs it: what goes is ours, and nothing needs it.
    #[test]
    fn only_what_is_ours_and_nothing_needs_is_removed(host in host(), mode in select(Prune::ALL)) {
        let planned = host.plan(mode);
        let mut ids: Vec<&str> = planned.iter().map(|planned| planned.image.id.as_str()).collect();
        ids.sort_unstable();
        let all: Vec<String> = (0..host.images.len()).map(|index| index.to_string()).collect();
        prop_assert_eq!(ids, all, "each image once");
        for Planned { image, verdict } in &planned {
            let Verdict::Remove(reason) = verdict else { continue };
            let record = host.records.record(&store(), &image.id).expect("it is recorded");
            prop_assert!(record.ours && !record.pinned);
            prop_assert!(image.names.iter().all(|name| record.names[name].ours));
            prop_assert!(!host.in_use.contains_key(&image.id));
            prop_assert!(!means(&host.sessions, image) && !means(&host.pulls, image));
            prop_assert!(!means(&host.catalogue.named, image));
            prop_assert!(at(100).since(record.used) >= HOUR);
            prop_assert!(mode != Prune::Off);
            prop_assert_eq!(*reason == PruneReason::Dangling, image.names.is_empty());
            if *reason != PruneReason::Dangling {
                prop_assert!(host.catalogue.is_current && !host.catalogue.is_empty);
                prop_assert!(mode == Prune::Aggressive || host.pressure.is_some());
            }
        }
    }

    /// Under pressure no more goes than is wanted: without the last image it would be too little.
    #[test]
    fn pressure_takes_no_more_than_it_must(host in host()) {
        let Some(Pressure { bytes: Some(wanted) }) = host.pressure else { return Ok(()) };
        let planned = host.plan(Prune::Normal);
        let last = planned.iter().rposition(|planned| planned.verdict == Verdict::Remove(PruneReason::Pressure));
        let before = planned.iter().take(last.unwrap_or(0));
        let freed = before.map(|planned| own_bytes(&planned.image)).fold(Bytes::ZERO, Bytes::saturating_add);
        prop_assert!(last.is_none() || freed < wanted);
    }
}
